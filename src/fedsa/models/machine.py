"""What this machine computes with: device, precision and threads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from fedsa.errors import ModelError
from fedsa.recipe import ComputeSettings

__all__ = ["resolve_compute"]


def resolve_compute(settings: ComputeSettings) -> ComputeSettings:
    """Return the settings with every ``auto`` replaced by what this machine has.

    Raises:
        ModelError: the device is not a device, or not there.
    """
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=device).item()  # the device meta has no values
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"compute.device = {device!r} cannot be used here: {reason}") from None
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if _has_bf16(device) else "fp32"
    return settings.model_copy(
        update={"device": device, "threads": settings.threads or _cores(), "precision": precision}
    )


def _has_bf16(device: str) -> bool:
    """Whether the hardware computes in bf16 itself; emulated bf16 is slower than fp32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
