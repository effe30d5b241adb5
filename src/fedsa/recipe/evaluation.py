"""The sections ``[evaluation]``, ``[reconstruction]`` and ``[adaptation]``."""

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
"""Passes over a new client's rows, if a recipe gives neither adaptation.steps nor adaptation.epochs."""

Start = Literal["initial", "mean", "nearest"]
"""Where a new client's personal tensors begin."""


class EvaluationSettings(Settings):
    """When and how clients are evaluated, each on its own rows."""

    evaluate_every: Agreed[int] = Field(
        1, gt=0, description="rounds between evaluations on validation; the last round is always evaluated"
    )
    fraction_evaluate: Agreed[float] = Field(
        1.0,
        gt=0,
        le=1,
        description="part of the clients that is evaluated on validation in a round, drawn again in each round; the "
        "test at the end is on all clients",
    )
    evaluate_after: Agreed[Literal["aggregate", "training", "both"]] = Field(
        "aggregate",
        description="aggregate: with the tensors that the client would use next; training: its own model after local "
        "training; both: the round is chosen by the first",
    )
    fit_head_epochs: Agreed[int] = Field(
        0,
        ge=0,
        description="passes over a client's training rows that fit its head alone before it is measured, as long as "
        "the client has not trained; for the measurement only, at training.head_warmup_learning_rate; 0: it is "
        "measured with the head that it holds",
    )
    batch_size: Machine[int] = Field(64, gt=0, description="rows per forward pass")
    samples: Machine[int] = Field(
        3,
        ge=0,
        le=100,
        description="kinds generation and language_modeling: number of test rows that are kept in the run folder and "
        "shown in the report, each with the text that the model of the chosen round writes and the right text; 0: no "
        "row's text is kept",
    )
    global_model: Agreed[Literal["none", "average", "fit"]] = Field(
        "none",
        description="one model for all clients, evaluated at the end beside their own models. average: the mean of "
        "their personal tensors; fit: one B fitted to the mean of their B·A. Needs adaptation.share_personal",
    )


class ReconstructionSettings(Settings):
    """How a client that keeps nothing between rounds fits its personal tensors again (FedRecon, arXiv:2102.03448)."""

    steps: Agreed[int] = Field(
        10, gt=0, description="optimiser steps on the personal tensors, with the shared tensors frozen"
    )
    learning_rate: Agreed[float | None] = Field(
        None, gt=0, description="constant rate of these steps, of the head too; empty: those of training"
    )
    freeze_personal: Agreed[bool] = Field(
        True, description="train only the shared tensors in the round's training that follows, as in the paper"
    )


class AdaptationSettings(Settings):
    """How a client that was not in the federation trains an adapter of its own."""

    steps: Agreed[int | None] = Field(
        None, gt=0, description=f"optimiser steps; empty: as epochs says (default: {DEFAULT_ADAPTATION_EPOCHS})"
    )
    epochs: Agreed[int | None] = Field(None, gt=0, description="passes over the client's training rows")
    learning_rate: Agreed[float | None] = Field(
        None, gt=0, description="peak rate of these steps, of the head too; empty: those of training"
    )
    freeze_shared: Agreed[bool] = Field(False, description="train the personal tensors only")
    start: Agreed[Start] = Field(
        "initial",
        description="initial values of the personal tensors. initial: as every client began; mean: the mean of the "
        "federation's clients; nearest: the mean of the cluster with the lowest loss on the new client's training rows",
    )
    share_personal: Agreed[bool] = Field(
        False,
        description="the clients allow that their personal tensors leave them and are averaged. Needed for "
        "start = mean and nearest, and for evaluation.global_model",
    )
    clusters: Agreed[int] = Field(
        0, ge=0, description="start = nearest: number of clusters; 0: the square root of the number of clients"
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
                f"start = {self.start!r} averages clients' personal tensors, which then leave the clients: "
                "set share_personal = true if the clients agree, or start = 'initial'"
            )
        return self
