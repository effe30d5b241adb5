"""Gaussian noise: of a simulation from its seed, of a deployment from a secret that nobody else has."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtri

from fedsa.messages import digest_of
from fedsa.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Noise", "input_of"]

_BITS = 52
"""Of a random number between 0 and 1, both left out: half a step away from either end."""


@final
class Noise:
    """Independent random numbers for one purpose. The same secret, or seed, and purpose give the same numbers.

    A noise whose numbers somebody can work out protects nothing. So where there is a secret, numbers come from it
    through SHAKE-256, from which neither the secret nor other numbers can be worked out. Without one they come from the
    run's seed through a quick generator, which is enough to see in a simulation what noise does to a model.

    Args:
        seed: the run's.
        secret: of the machine that makes the noise; None: a simulation.
        purpose: what it is for, e.g. ``("noise", client, round)``; with a secret also what it is added to (`input_of`).
    """

    def __init__(self, seed: int, secret: bytes | None, *purpose: str | int) -> None:
        self._taken = 0
        if secret is None:
            self._quick = torch.Generator().manual_seed(derive_seed(seed, *purpose))
        else:
            text = "\x1f".join(f"{type(part).__name__}:{part}" for part in purpose)
            self._key = hashlib.shake_256(secret + hashlib.sha256(text.encode()).digest()).digest(32)
        self._is_secret = secret is not None

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Numbers of a normal distribution with mean 0 and standard deviation 1, in float64.

        Args:
            shape: theirs.
        """
        if not self._is_secret:
            return torch.randn(tuple(shape), generator=self._quick, dtype=torch.float64)
        count = int(np.prod(shape, dtype=np.int64))
        return torch.from_numpy(ndtri(self._uniform(count))).reshape(tuple(shape))

    def uniform(self, count: int) -> Tensor:
        """Numbers between 0 and 1, in float64.

        Args:
            count: how many.
        """
        if not self._is_secret:
            return torch.rand(count, generator=self._quick, dtype=torch.float64)
        return torch.from_numpy(self._uniform(count))

    def seeds(self, count: int) -> npt.NDArray[np.int64]:
        """Seeds for other generators, 0 <= seed < 2**63, shape (count,).

        Args:
            count: how many.
        """
        if not self._is_secret:
            return torch.randint(2**63 - 1, (count,), generator=self._quick).numpy()
        return (self._whole(count) >> np.uint64(1)).astype(np.int64)

    def _uniform(self, count: int) -> npt.NDArray[np.float64]:
        return ((self._whole(count) >> np.uint64(64 - _BITS)).astype(np.float64) + 0.5) / 2.0**_BITS

    def _whole(self, count: int) -> npt.NDArray[np.uint64]:
        """Whole numbers of 64 bits."""
        self._taken += 1
        block = hashlib.shake_256(self._key + self._taken.to_bytes(8, "big")).digest(8 * count)
        return np.frombuffer(block, dtype="<u8")


def input_of(secret: bytes | None, *tensors: Mapping[Any, Tensor]) -> tuple[str, ...]:
    """A digest of what noise is added to, as the last part of its purpose; nothing in a simulation.

    Two inputs with one noise would tell their exact difference. So with a secret other inputs have another noise, also
    for the same client and round; the same input has the same noise again.

    Args:
        secret: of the machine that makes the noise; None: a simulation, whose noise depends on seed and purpose alone.
        tensors: by names, all that decides what the noise is added to, and how large it is. What the sum of both is
            divided by afterwards is none of it.
    """
    if secret is None:
        return ()
    named = {f"{place}|{name}": each for place, state in enumerate(tensors) for name, each in state.items()}
    return (digest_of("", named),)
