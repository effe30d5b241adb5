"""Which client each row and token of a batch belongs to, and where its tokens lie in the layers' activations."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsa.errors import ModelError

__all__ = ["Layout", "Packed", "Place"]

# Kernels are compiled, and kept, for every shape that occurs: few shapes save over a hundred MiB.
_WIDTH = 32  # packed rows are as wide as a multiple of this
_ROWS = 4  # and as many as 4 to 8 times a power of two

Ints = npt.NDArray[np.int64]


@final
@dataclass(frozen=True)
class Place:
    """Where the clients' elements (rows, or real tokens) lie among the positions of an activation.

    Elements are counted client by client, then row by row, then token by token: an order that depends on no padding.

    Attributes:
        positions: of the activation, all leading dimensions together.
        index: shape (elements,): the position of each element; None: element i is at position i.
        counts: elements of each client.
        device: where its tensors are.
        single_rows: the number of clients with a row, where each has one of its own and rows are equally long; else 0.
    """

    positions: int
    index: Tensor | None
    counts: tuple[int, ...]
    device: torch.device
    single_rows: int = 0
    _made: dict[tuple[object, ...], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def owners(self) -> Tensor:
        """Shape (elements,): the number of each element's client."""
        return self._once(("owners",), self._owners)

    def _owners(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts)).to(self.device)

    def selector(self, width: int, dtype: torch.dtype) -> Tensor:
        """Return ones in the columns of a position's client, zeros elsewhere: shape (positions, clients · width)."""
        return self._once((width, dtype), lambda: self._selector(width, dtype))

    def _selector(self, width: int, dtype: torch.dtype) -> Tensor:
        made = torch.zeros(self.positions, len(self.counts), width, dtype=dtype, device=self.device)
        where = torch.arange(self.positions, device=self.device) if self.index is None else self.index
        made[where, self.owners] = 1
        return made.view(self.positions, -1)

    def own(self, values: Tensor) -> Tensor:
        """Return each position's client's values, shape (positions, width), of values of shape (clients, width).

        At a position of nobody's they are 0, or those of somebody else.
        """
        if self.single_rows:
            lengths = (self.single_rows, self.positions // self.single_rows, values.shape[1])
            return values[: self.single_rows, None].expand(lengths).reshape(self.positions, -1)
        return self.selector(1, values.dtype) @ values

    def scatter(self, elements: Tensor) -> Tensor:
        """Return values of elements, shape (elements, ...), at their positions; zero where no element is."""
        if self.index is None:
            return elements
        made = elements.new_zeros(self.positions, *elements.shape[1:])
        return made.index_copy_(0, self.index, elements)

    def gather(self, values: Tensor) -> Tensor:
        """Return the elements' values out of those of all positions, shape (positions, ...)."""
        return values if self.index is None else values.index_select(0, self.index)

    def _once(self, name: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


@final
@dataclass(frozen=True)
class Packed:
    """The same tokens in fewer rows, several sentences in one row.

    Attributes:
        shape: rows and width.
        position_ids: shape ``shape``: each token's place in its sentence; 0 where there is none.
        sentences: shape ``shape``: the number of each token's sentence; -1 where there is no token.
    """

    shape: tuple[int, int]
    position_ids: Tensor
    sentences: Tensor
    _masks: dict[tuple[torch.dtype, bool], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def mask(self, dtype: torch.dtype, *, causal: bool) -> Tensor:
        """The mask that is added to attention scores, shape (rows, 1, width, width): each sentence sees only itself.

        A place without a token sees the others without one, so that no row of scores is empty.
        """
        if (dtype, causal) not in self._masks:
            seen = self.sentences[:, :, None] == self.sentences[:, None, :]
            if causal:
                seen &= torch.ones(seen.shape[1:], dtype=torch.bool, device=seen.device).tril()
            shut = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._masks[dtype, causal] = shut.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
        return self._masks[dtype, causal]


@final
class Layout:
    """A batch's rows of several clients, client by client.

    Args:
        mask: shape (rows, tokens): 1 for a real token; real tokens of a row are side by side.
        counts: rows of each client; 0 is allowed.
        pack: also lay the tokens into fewer rows.
        device: where the activations are, if that is not where ``mask`` is. A mask on the CPU is not waited for.

    Attributes:
        shape: of ``mask``.
        packed: the packed rows; None without packing, or where it would change nothing.
    """

    def __init__(
        self, mask: Tensor, counts: Sequence[int], *, pack: bool = False, device: torch.device | None = None
    ) -> None:
        device = device or mask.device
        self.shape: tuple[int, int] = (mask.shape[0], mask.shape[1])
        real = mask.cpu().numpy().astype(bool)
        self._lengths = lengths = real.sum(axis=1)
        ends = np.cumsum(counts)
        starts = ends - np.asarray(counts)
        tokens = tuple(int(lengths[start:end].sum()) for start, end in zip(starts, ends, strict=True))
        index = torch.from_numpy(np.flatnonzero(real.ravel())).to(device)
        single = self.shape[0] if _are_single(counts, self.shape[0]) else 0
        self.rows = Place(self.shape[0], None, tuple(counts), device, single)
        everywhere = len(index) == real.size
        self.tokens = Place(real.size, None if everywhere else index, tokens, device, single)
        self.token_index = index
        packed, slots = _pack(lengths, device) if pack and not everywhere else (None, index)
        self.packed = packed if packed is not None and math.prod(packed.shape) < real.size else None
        if self.packed is not None:
            self.slots = Place(math.prod(self.packed.shape), slots, tokens, device)

    def place(self, values: Tensor) -> Place:
        """Return where the elements lie in an activation of shape (rows, features) or (rows, tokens, features)."""
        lead = tuple(values.shape[:2])
        if values.dim() > 2 and lead == self.shape:
            return self.tokens
        if values.dim() > 2 and self.packed is not None and lead == self.packed.shape:
            return self.slots
        positions = math.prod(values.shape[:-1])
        if positions == self.shape[0]:
            return self.rows
        if len(self.rows.counts) == 1:  # whatever it is, it is the one client's
            return Place(positions, None, (positions,), self.rows.device)
        raise RuntimeError(f"an activation of shape {tuple(values.shape)} is not by rows or tokens: whose is what?")

    def spread(self, numbers: Tensor, values: Tensor) -> Tensor:
        """Return one number for each row at all positions of an activation; zero where no element is.

        Args:
            numbers: shape (rows,).
            values: of shape (rows, features) or (rows, tokens, features); gives shape (..., 1) and device.

        Raises:
            ModelError: it is not by rows or tokens.
        """
        place, numbers = self.place(values), numbers.to(values.device)
        if place is not self.rows:
            if place is not self.tokens and (self.packed is None or place is not self.slots):
                raise ModelError(
                    f"an activation of shape {tuple(values.shape)} is not by rows or tokens, so adapters cannot be "
                    "weighed row by row in this model"
                )
            numbers = numbers.repeat_interleave(torch.from_numpy(self._lengths).to(values.device))
        return place.scatter(numbers).view(*values.shape[:-1], 1)


def _are_single(counts: Sequence[int], rows: int) -> bool:
    """Whether each of the first clients has one row, and the others have none."""
    return len(counts) > 1 and all(count == (place < rows) for place, count in enumerate(counts))


def _pack(lengths: Ints, device: torch.device) -> tuple[Packed, Tensor]:
    """Lay sentences into packed rows.

    Returns:
        The rows, and where each token lies in them, flattened: shape (tokens,).
    """
    firsts, shape = _firsts(lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    slots = np.repeat(firsts, lengths) + within
    position_ids, sentences = np.zeros(math.prod(shape), dtype=np.int64), np.full(math.prod(shape), -1)
    position_ids[slots], sentences[slots] = within, np.repeat(np.arange(len(lengths)), lengths)
    places, numbers = (torch.from_numpy(grid.reshape(shape)).to(device) for grid in (position_ids, sentences))
    return Packed(shape, places, numbers), torch.from_numpy(slots).to(device)


def _firsts(lengths: Ints) -> tuple[Ints, tuple[int, int]]:
    """Put sentences into rows as wide as the longest, each into the fullest row that has room for it.

    Returns:
        Where each sentence begins, flattened; the number of rows and their width.
    """
    width = -(-max(1, int(lengths.max())) // _WIDTH) * _WIDTH
    room: list[tuple[int, int]] = []  # (free places, row), ascending
    firsts = np.zeros(len(lengths), dtype=np.int64)
    rows = 0
    for sentence in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[sentence])
        found = bisect_left(room, (length, -1))
        if found < len(room):
            free, row = room.pop(found)
        else:
            free, row = width, rows
            rows += 1
        firsts[sentence] = row * width + width - free
        insort(room, (free - length, row))
    step = 2 ** max(0, (rows - 1).bit_length() - _ROWS.bit_length())
    return firsts, (-(-rows // step) * step, width)
