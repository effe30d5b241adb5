"""Layouts: which client an element belongs to, and where its tokens lie in padded and in packed rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa.models.layout import _ROWS, _WIDTH, Layout, Place

LAW = settings(max_examples=100, deadline=None, database=None, derandomize=True)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Rows:
    """Rows of some clients, as a test sees them."""

    lengths: list[int]
    counts: list[int]
    width: int
    left: bool

    @property
    def mask(self) -> torch.Tensor:
        starts = [self.width - length if self.left else 0 for length in self.lengths]
        mask = torch.zeros(len(self.lengths), self.width, dtype=torch.int64)
        for row, (start, length) in enumerate(zip(starts, self.lengths, strict=True)):
            mask[row, start : start + length] = 1
        return mask

    @property
    def owners(self) -> list[int]:
        """The client of each row."""
        return [client for client, count in enumerate(self.counts) for _ in range(count)]

    @property
    def tokens(self) -> list[tuple[int, int]]:
        """Row and column of each real token, row by row."""
        return [(int(row), int(column)) for row, column in self.mask.nonzero()]


@st.composite
def batches(draw: st.DrawFn) -> Rows:
    """Clients with 0 to 5 rows of 0 to 20 tokens, at least one row, padded on either side to any width."""
    counts = draw(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any))
    lengths = draw(st.lists(st.integers(0, 20), min_size=sum(counts), max_size=sum(counts)))
    return Rows(lengths, counts, max([1, *lengths]) + draw(st.integers(0, 9)), draw(st.booleans()))


def layout(rows: Rows, *, pack: bool) -> Layout:
    return Layout(rows.mask, rows.counts, pack=pack)


# -- places -----------------------------------------------------------------------------------------------------------


def test_a_place_by_hand() -> None:
    """Two clients with one and two elements, at positions 1, 3 and 0 of four."""
    place = Place(4, torch.tensor([1, 3, 0]), (1, 2), CPU)
    assert place.owners.tolist() == [0, 1, 1]
    assert place.scatter(torch.tensor([[10.0], [11.0], [12.0]])).tolist() == [[12.0], [10.0], [0.0], [11.0]]
    assert place.gather(torch.tensor([0, 1, 2, 3])).tolist() == [1, 3, 0]
    assert place.selector(1, torch.float64).tolist() == [[0, 1], [1, 0], [0, 0], [0, 1]]
    assert place.selector(2, torch.float32).tolist() == [[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]
    assert place.selector(2, torch.bfloat16).dtype == torch.bfloat16


def test_a_place_without_an_index_has_element_i_at_position_i() -> None:
    place = Place(3, None, (2, 0, 1), CPU)
    values = torch.randn(3, 2)
    assert torch.equal(place.scatter(values), values)
    assert torch.equal(place.gather(values), values)
    assert place.selector(1, torch.float32).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]


def places(rows: Rows) -> list[Place]:
    padded, packed = layout(rows, pack=False), layout(rows, pack=True)
    return [padded.rows, padded.tokens, packed.tokens, *([packed.slots] if packed.packed else [])]


@given(rows=batches(), width=st.integers(1, 3))
@LAW
def test_scatter_gather_and_selector_agree(rows: Rows, width: int) -> None:
    for place in places(rows):
        elements = torch.randn(sum(place.counts), 2, generator=torch.Generator().manual_seed(0)) + 9
        scattered = place.scatter(elements)
        assert scattered.shape == (place.positions, 2)
        assert torch.equal(place.gather(scattered), elements)
        assert int(scattered.count_nonzero()) == elements.numel(), "zero where no element is"
        selector = place.selector(width, torch.float32)
        assert selector.shape == (place.positions, len(rows.counts) * width)
        assert place.selector(width, torch.float32) is selector, "it is made once"
        by_client = selector.view(place.positions, len(rows.counts), width)
        assert by_client.sum(dim=0).tolist() == [[count] * width for count in place.counts]
        assert place.gather(by_client[:, :, 0]).argmax(dim=1).tolist() == place.owners.tolist()


# -- padded rows ------------------------------------------------------------------------------------------------------


@given(rows=batches(), pack=st.booleans())
@LAW
def test_every_row_and_token_belongs_to_its_client(rows: Rows, pack: bool) -> None:
    made = layout(rows, pack=pack)
    assert made.shape == (len(rows.lengths), rows.width)
    assert made.rows.counts == tuple(rows.counts)
    assert made.rows.owners.tolist() == rows.owners
    of_client = [
        sum(length for length, owner in zip(rows.lengths, rows.owners, strict=True) if owner == client)
        for client in range(len(rows.counts))
    ]
    assert made.tokens.counts == tuple(of_client)
    where = [row * rows.width + column for row, column in rows.tokens]
    assert made.token_index.tolist() == where
    assert made.tokens.gather(torch.arange(made.tokens.positions)).tolist() == where
    assert made.tokens.owners.tolist() == [rows.owners[row] for row, _ in rows.tokens]


def test_clients_without_rows_have_no_elements() -> None:
    made = Layout(torch.ones(2, 3, dtype=torch.int64), [0, 1, 0, 1, 0])
    assert made.rows.counts == (0, 1, 0, 1, 0)
    assert made.tokens.counts == (0, 3, 0, 3, 0)
    assert made.tokens.selector(1, torch.float32).tolist() == [[0, 1, 0, 0, 0]] * 3 + [[0, 0, 0, 1, 0]] * 3


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows of 8 or 16 places: few enough to write down."""
    monkeypatch.setattr("fedsa.models.layout._WIDTH", 8)


@pytest.mark.usefixtures("narrow")
def test_an_activations_shape_tells_what_its_elements_are() -> None:
    rows = Rows([9, 3, 2, 2], [1, 3], 9, left=False)
    padded, packed = layout(rows, pack=False), layout(rows, pack=True)
    assert packed.packed is not None
    assert packed.packed.shape == (1, 16)
    for made in (padded, packed):
        assert made.place(torch.zeros(4, 9, 5)) is made.tokens
        assert made.place(torch.zeros(4, 5)) is made.rows
        assert made.place(torch.zeros(4, 9)) is made.rows, "nine features of each row"
    assert packed.place(torch.zeros(1, 16, 5)) is packed.slots


# -- packed rows ------------------------------------------------------------------------------------------------------


@given(rows=batches())
@LAW
def test_packing_has_every_token_once_and_every_sentence_in_one_row(rows: Rows) -> None:
    made = layout(rows, pack=True)
    if made.packed is None:
        return
    slots = made.slots.gather(torch.arange(made.slots.positions)).tolist()
    assert len(set(slots)) == len(slots) == sum(rows.lengths)
    assert made.slots.counts == made.tokens.counts
    assert made.slots.positions == made.packed.shape[0] * made.packed.shape[1]
    sentences, positions = made.packed.sentences.flatten(), made.packed.position_ids.flatten()
    assert sorted(slots) == (sentences >= 0).nonzero().flatten().tolist()
    assert not positions[sentences < 0].any()
    start = 0
    for sentence, length in enumerate(rows.lengths):
        own = slots[start : start + length]  # its tokens, first to last
        assert own == list(range(own[0], own[0] + length)) if own else True, "side by side"
        assert len({slot // made.packed.shape[1] for slot in own}) == min(length, 1), "in one row"
        assert sentences[own].tolist() == [sentence] * length
        assert positions[own].tolist() == list(range(length))
        start += length


@given(rows=batches())
@LAW
def test_packing_wastes_little(rows: Rows) -> None:
    made = layout(rows, pack=True)
    if made.packed is None:
        return
    count, width = made.packed.shape
    longest = max([1, *rows.lengths])
    assert width % _WIDTH == 0
    assert 0 <= width - longest < _WIDTH
    used = [tokens for tokens in (made.packed.sentences >= 0).sum(dim=1).tolist() if tokens]
    assert count - max(1, len(used)) <= len(used) / _ROWS, "few rows are empty"
    assert all(one + other > width for one, other in itertools.combinations(used, 2)), "no two rows fit into one"


@given(rows=batches())
@LAW
def test_only_where_it_changes_something_is_anything_packed(rows: Rows) -> None:
    assert layout(rows, pack=False).packed is None
    made = layout(rows, pack=True)
    if all(length == rows.width for length in rows.lengths):
        assert made.packed is None, "there is no padding"
    if made.packed is not None:
        assert made.packed.shape != made.shape


@pytest.mark.usefixtures("narrow")
def test_packing_by_hand() -> None:
    """Eight places: 5 and 3 tokens fill one row, 4 and 2 share another."""
    made = layout(Rows([3, 4, 5, 2], [2, 2], 8, left=True), pack=True)
    assert made.packed is not None
    assert made.packed.sentences.tolist() == [[2, 2, 2, 2, 2, 0, 0, 0], [1, 1, 1, 1, 3, 3, -1, -1]]
    assert made.packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 0, 0]]
    assert made.slots.gather(torch.arange(16)).tolist() == [5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 12, 13]
    assert made.slots.counts == (7, 7)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(rows=batches())
@LAW
def test_a_token_sees_its_own_sentence_alone(rows: Rows, causal: bool, dtype: torch.dtype) -> None:
    packed = layout(rows, pack=True).packed
    if packed is None:
        return
    mask = packed.mask(dtype, causal=causal)
    count, width = packed.shape
    assert mask.shape == (count, 1, width, width)
    assert mask.dtype == dtype
    assert packed.mask(dtype, causal=causal) is mask, "it is made once"
    for row, sentences in enumerate(packed.sentences.tolist()):
        seen = [
            [sentences[at] == sentences[other] and (other <= at or not causal) for other in range(width)]
            for at in range(width)
        ]
        assert (mask[row, 0] == 0).tolist() == seen
        assert bool((mask[row, 0] == 0).any(dim=1).all()), "no row of scores is empty"
    assert set(mask.unique().tolist()) <= {0.0, torch.finfo(dtype).min}


def test_masks_of_both_kinds_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsa.models.layout._WIDTH", 8)
    packed = layout(Rows([3, 2], [2], 6, left=False), pack=True).packed
    assert packed is not None
    masks = [packed.mask(dtype, causal=causal) for dtype in (torch.float32, torch.float64) for causal in (False, True)]
    assert len({id(mask) for mask in masks}) == 4
    assert not torch.equal(masks[0], masks[1])
