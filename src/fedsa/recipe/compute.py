"""The section ``[compute]``: the hardware that a run uses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedsa.recipe.base import Machine, Resolved, Settings

__all__ = ["ComputeSettings"]


class ComputeSettings(Settings):
    """The hardware that the run uses. ``auto`` is resolved once and written to the resolved recipe."""

    device: Machine[Resolved[str]] = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    threads: Machine[Resolved[int]] = Field(0, ge=0, le=1024, description="processor threads; 0: all cores")
    precision: Machine[Resolved[Literal["auto", "fp32", "bf16"]]] = Field(
        "auto", description="of frozen weights, forward and backward; auto: bf16 if the hardware supports it"
    )
    memory_budget: Machine[float | None] = Field(
        None, gt=0, description="GiB that a cohort's training may take; empty: half of what is free at the start"
    )
    gradient_checkpointing: Machine[bool] = Field(
        False, description="compute activations again in the backward pass: less memory, about a third more time"
    )
    compile: Machine[bool] = Field(False, description="torch.compile the layers: saves time only in long runs")
