"""Rows of tokens, end to end in one array, as batches of one width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F

from fedsa.tasks.base import IntArray

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["filled", "of_tokens", "width_of"]

_WIDTH = 8  # batches are as wide as a multiple of this: kernels are compiled, and kept, for every width that occurs


def width_of(longest: int, limit: int | None) -> int:
    """The padded width of a batch with ``longest`` tokens in its longest row.

    Args:
        longest: in tokens.
        limit: the most tokens that the model takes; None: no limit.
    """
    rounded = -(-max(1, longest) // _WIDTH) * _WIDTH
    return rounded if limit is None else max(longest, min(rounded, limit))


def filled(
    values: npt.NDArray[Any], starts: IntArray, ends: IntArray, width: int, *, fill: int, left: bool
) -> npt.NDArray[np.int64]:
    """Return ``values[start:end]`` of each row beside ``fill``, shape (rows, width).

    Args:
        values: of all rows, end to end.
        starts: shape (rows,).
        ends: shape (rows,); no row is longer than ``width``.
        width: of what is returned.
        fill: where a row has no value.
        left: the row stands at the right, the filling at its left.
    """
    lengths, columns = ends - starts, np.arange(width)
    taken = columns >= width - lengths[:, None] if left else columns < lengths[:, None]
    before = np.cumsum(lengths) - lengths
    made = np.full(taken.shape, fill, dtype=np.int64)
    made[taken] = values[np.arange(lengths.sum()) + np.repeat(starts - before, lengths)]
    return made


def of_tokens(logits: Tensor, mask: Tensor, longest: int) -> Tensor:
    """Lay each token's logits out in one width for all batches, with zeros behind a row's last token.

    Args:
        logits: shape (rows, tokens, outputs).
        mask: shape (rows, tokens): 0 where there is no token.
        longest: how many tokens a row has at the most.

    Returns:
        Shape (rows, `width_of` longest, outputs).
    """
    shown = logits * mask[..., None]
    return F.pad(shown, (0, 0, 0, width_of(longest, None) - shown.shape[1]))
