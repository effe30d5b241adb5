"""Answers that are spans of a text: those of a row, and the best one by a model's outputs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from fedsa.errors import DataError
from fedsa.tasks.values import shown, text_of, texts_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ints", "answers_of", "best_spans", "place_of"]

Ints = npt.NDArray[np.int32]


def answers_of(
    row: int, cell: Mapping[str, Any], answer_column: str, context_column: str
) -> tuple[tuple[str, ...], tuple[int, int]]:
    """Return a row's answers, and the characters of its context, from and to, that the first one is.

    Where it is not at ``answer_start`` (in SQuAD's own files it sometimes begins a character later, in others of
    its kind it is far away), it is where it stands nearest to that.

    Raises:
        DataError: they are not as SQuAD has them.
    """
    found, where = cell[answer_column], f"row {row}: column {answer_column!r}"
    texts, starts = (found.get(name) if isinstance(found, Mapping) else None for name in ("text", "answer_start"))
    if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
        raise DataError(f"{where} must have the lists text and answer_start, of one length (got {shown(found)})")
    texts = texts_of(texts, row, answer_column, "answers")
    if not texts or not texts[0].strip():
        raise DataError(f"{where} has no answer, and every question must have one here: leave such rows out")
    if isinstance(starts[0], bool) or not isinstance(starts[0], int | float) or starts[0] not in range(1 << 40):
        raise DataError(f"{where} has answer_start {shown(starts[0])}, which must be a whole number: correct the row")
    context = text_of(cell[context_column], row, context_column)
    text, given = texts[0].strip(), int(starts[0])
    given += len(texts[0]) - len(texts[0].lstrip())
    begins = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]
    if not begins:
        raise DataError(f"{where}: the first answer, {text!r}, is not in column {context_column!r}: correct the row")
    begin = min(begins, key=lambda place: abs(place - given))
    return tuple(texts), (begin, begin + len(text))


def place_of(spans: Ints, begin: int, end: int) -> tuple[int, int] | None:
    """Return the places of the first and last token of an answer; None where the window does not hold all of it.

    Args:
        spans: of the window's tokens.
        begin: of the answer in its context.
        end: behind it.
    """
    own = np.flatnonzero(spans[:, 1] > spans[:, 0])
    if not len(own) or spans[own[0], 0] > begin or spans[own[-1], 1] < end:
        return None
    hit = own[(spans[own, 1] > begin) & (spans[own, 0] < end)]
    return (int(hit[0]), int(hit[-1])) if len(hit) else None


def best_spans(logits: Tensor, inside: Tensor, *, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best span of each window: its score, and the places of its first and last token.

    The score is the sum of the first token's first logit and the last token's second. Of equals the shortest counts,
    then the earliest. A window without any allowed token has the score -inf, and both places are 0.

    Args:
        logits: shape (windows, tokens, 2).
        inside: shape (windows, tokens): where a span may begin and end.
        longest: tokens of a span at most.

    >>> logits = torch.tensor([[[9.0, 9.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]]])
    >>> best_spans(logits, torch.tensor([[False, True, True, True]]), longest=2)
    (tensor([4.]), tensor([2]), tensor([3]))
    """
    starts, ends = logits.masked_fill(~inside[..., None], -math.inf).unbind(dim=2)
    width = logits.shape[1]
    scores = torch.full_like(starts[:, 0], -math.inf)
    firsts = torch.zeros(len(logits), dtype=torch.int64)
    lasts = firsts.clone()
    for more in range(min(longest, width)):
        sums, places = (starts[:, : width - more] + ends[:, more:]).max(dim=1)
        better = sums > scores
        scores = torch.where(better, sums, scores)
        firsts, lasts = torch.where(better, places, firsts), torch.where(better, places + more, lasts)
    return scores, firsts, lasts
