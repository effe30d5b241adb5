"""Randomness that depends on what it is for, not on what ran before: so a resumed run repeats an uninterrupted one."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed", "seed_torch"]


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a seed for one purpose, 0 <= seed < 2**63.

    Args:
        seed: the run's seed.
        purpose: what it is for, e.g. ``("batches", client, round)``; another purpose gives an unrelated seed.

    >>> derive_seed(0, "init") == derive_seed(0, "init") != derive_seed(1, "init")
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_torch(seed: int) -> None:
    """Let torch's default generators draw from a seed: that of the CPU, and those of the devices that are there.

    `torch.manual_seed` also leaves a word, with the stack that it came from, for each kind of device that is not there.
    """
    import torch

    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
