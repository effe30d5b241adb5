"""The section ``[training]``: a client's local training in one round."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fedsa.recipe.base import Agreed, Machine, Resolved, Settings

__all__ = ["DEFAULT_LOCAL_STEPS", "TrainingSettings"]

DEFAULT_LOCAL_STEPS = 10
"""Optimiser steps a round, where a recipe gives neither local_steps nor local_epochs."""


class TrainingSettings(Settings):
    """A client's local training in one round."""

    local_steps: Agreed[Resolved[int | None]] = Field(
        None, gt=0, description=f"optimiser steps per round; {DEFAULT_LOCAL_STEPS} if local_epochs is not given"
    )
    local_epochs: Agreed[int | None] = Field(None, gt=0, description="passes over the client's rows per round")
    batch_size: Agreed[int] = Field(16, gt=0, description="rows per optimiser step and accumulation step")
    gradient_accumulation_steps: Agreed[int] = Field(1, gt=0, description="batches per optimiser step")
    optimizer: Agreed[Literal["adamw", "sgd"]] = Field("adamw", description="AdamW, or SGD")
    learning_rate: Agreed[float] = Field(1e-3, gt=0, description="peak rate")
    head_learning_rate: Agreed[float | None] = Field(
        None, gt=0, description="peak rate of the head; empty: learning_rate"
    )
    head_warmup_epochs: Agreed[int] = Field(
        0,
        ge=0,
        description="passes over a client's rows that fit its head alone, before its first training; the rows go "
        "through the frozen model only once",
    )
    head_warmup_learning_rate: Agreed[float] = Field(
        1e-2, gt=0, description="rate of the head's warm-up, which always uses AdamW"
    )
    b_learning_rate_ratio: Agreed[float] = Field(
        1.0, gt=0, description="LoRA+: peak rate of the B side divided by learning_rate, the rate of the A side"
    )
    weight_decay: Agreed[float] = Field(0.0, ge=0, description="decoupled for adamw, L2 for sgd")
    momentum: Agreed[float] = Field(0.0, ge=0, lt=1, description="sgd only")
    schedule: Agreed[Literal["constant", "linear", "cosine"]] = Field(
        "constant", description="course of the learning rate over the whole run, not over one round"
    )
    warmup_fraction: Agreed[float] = Field(0.0, ge=0, lt=1, description="part of the whole run with a rising rate")
    max_grad_norm: Agreed[float | None] = Field(
        1.0,
        gt=0,
        description="clip the global gradient norm; 'none' in a recipe: off; with privacy.kind = 'example' rows are "
        "clipped in its place",
    )
    proximal_mu: Agreed[float] = Field(
        0.0, ge=0, description="FedProx: add μ/2·‖w − w_received‖² to the loss, for received tensors"
    )
    optimizer_state: Agreed[Literal["reset", "keep"]] = Field(
        "reset", description="reset or keep a client's optimiser state from round to round"
    )
    group_by_length: Agreed[bool] = Field(
        False, description="batches of rows of similar length: less padding, but batches are no longer fully random"
    )
    trainer: Machine[Resolved[Literal["auto", "sequential", "cohort"]]] = Field(
        "auto", description="cohort: many clients in one pass, equal within rounding; auto: where the adapter allows it"
    )
    cohort_size: Machine[Resolved[int]] = Field(
        0, ge=0, description="clients in one pass; 0: chosen by compute.memory_budget and speed"
    )
    packing: Machine[Resolved[bool | None]] = Field(
        None, description="cohort: several texts in one row instead of padding; empty: where the model allows it"
    )

    def at_rate(self, rate: float | None) -> TrainingSettings:
        """These settings with one rate for all tensors, heads included; as they are where none is given."""
        return self if rate is None else self.model_copy(update={"learning_rate": rate, "head_learning_rate": None})

    @field_validator("max_grad_norm", mode="before")
    @classmethod
    def _none_turns_clipping_off(cls, value: Any) -> Any:
        return None if value == "none" else value

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        if self.local_steps and self.local_epochs:
            raise ValueError("give local_steps or local_epochs, not both")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("momentum goes with optimizer = 'sgd' only: remove it, or set optimizer = 'sgd'")
        if self.trainer == "sequential" and (self.cohort_size or self.packing):
            raise ValueError("cohort_size and packing do not go with trainer = 'sequential': remove them")
        return self
