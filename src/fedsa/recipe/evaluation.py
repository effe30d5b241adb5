"""The sections ``[evaluation]``, ``[reconstruction]`` and ``[adaptation]``: clients are measured, or fitted anew."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedsa.recipe.base import Agreed, Machine, Settings

__all__ = [
    "DEFAULT_ADAPTATION_EPOCHS",
    "AdaptationSettings",
    "EvaluationSettings",
    "ReconstructionSettings",
    "Start",
]

DEFAULT_ADAPTATION_EPOCHS = 5
"""Passes over a newcomer's rows, where a recipe gives neither adaptation.steps nor adaptation.epochs."""

Start = Literal["initial", "mean", "nearest"]
"""Where a newcomer's personal tensors begin."""


class EvaluationSettings(Settings):
    """When and how clients are evaluated, each on its own rows."""

    evaluate_every: Agreed[int] = Field(
        1, gt=0, description="rounds between evaluations on validation; the last is always one"
    )
    fraction_evaluate: Agreed[float] = Field(
        1.0,
        gt=0,
        le=1,
        description="part of the clients that is evaluated on validation in a round, drawn anew each time; test at the "
        "end is of all",
    )
    evaluate_after: Agreed[Literal["aggregate", "training", "both"]] = Field(
        "aggregate",
        description="aggregate: with what the client would use next; training: its own model after local training; "
        "both: the round is chosen by the first",
    )
    batch_size: Machine[int] = Field(64, gt=0, description="rows per forward pass")
    samples: Machine[int] = Field(
        3,
        ge=0,
        le=100,
        description="kinds generation and language_modeling: test rows that are kept in the run folder and shown in "
        "the report, each with what the model of the chosen round writes on its prompt or its beginning and what is "
        "right there; 0: no row's text is kept",
    )
    global_model: Agreed[Literal["none", "average", "fit"]] = Field(
        "none",
        description="one model for all at the end, measured beside the clients' own. average: of their personal "
        "tensors; fit: one B fitted to the mean of their B·A. Needs adaptation.share_personal",
    )


class ReconstructionSettings(Settings):
    """How a client that keeps nothing between rounds makes its personal tensors anew (FedRecon, arXiv:2102.03448)."""

    steps: Agreed[int] = Field(10, gt=0, description="optimiser steps on the personal tensors, the shared ones frozen")
    learning_rate: Agreed[float | None] = Field(
        None, gt=0, description="constant rate of these steps; empty: training.learning_rate"
    )
    freeze_personal: Agreed[bool] = Field(
        True, description="in the round's training that follows, only what is shared is trained, as in the paper"
    )


class AdaptationSettings(Settings):
    """How a client that was not in the federation comes to an adapter of its own."""

    steps: Agreed[int | None] = Field(
        None, gt=0, description=f"optimiser steps; empty: epochs, {DEFAULT_ADAPTATION_EPOCHS} unless given"
    )
    epochs: Agreed[int | None] = Field(None, gt=0, description="passes over the client's training rows")
    freeze_shared: Agreed[bool] = Field(False, description="train the personal tensors only")
    start: Agreed[Start] = Field(
        "initial",
        description="of the personal tensors. initial: as every client began; mean: of the federation's clients; "
        "nearest: the mean of that cluster of them with the lowest loss on the newcomer's training rows",
    )
    share_personal: Agreed[bool] = Field(
        False,
        description="the clients let their personal tensors be put together: these then leave the client. Needed for "
        "start = mean and nearest, and for evaluation.global_model",
    )
    clusters: Agreed[int] = Field(
        0, ge=0, description="start = nearest: of the clients; 0: the square root of their number"
    )

    @property
    def length(self) -> dict[str, int]:
        """``steps`` or ``epochs``, after the default."""
        return {"steps": self.steps} if self.steps else {"epochs": self.epochs or DEFAULT_ADAPTATION_EPOCHS}

    @model_validator(mode="after")
    def _is_allowed(self) -> AdaptationSettings:
        if self.steps and self.epochs:
            raise ValueError("give steps or epochs, not both")
        if self.start != "initial" and not self.share_personal:
            raise ValueError(
                f"start = {self.start!r} puts clients' personal tensors together, which then leave the client: "
                "set share_personal = true if they agree, or start = 'initial'"
            )
        return self
