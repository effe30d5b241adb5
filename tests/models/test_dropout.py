"""The adapters' dropout is each client's own; the base model's is torch's, but for where its bits come from."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedsa.models.dropout import AdapterDropout, FastDropout, Streams
from fedsa.models.layout import Layout

LEVELS = 2**16


def layout(*clients: list[int], width: int | None = None, left: bool = False, pack: bool = False) -> Layout:
    """Return the layout of clients' rows with so many tokens."""
    lengths = torch.tensor([length for own in clients for length in own])
    places = torch.arange(width or int(lengths.max()))
    mask = (places.flip(0) if left else places) < lengths[:, None]
    return Layout(mask.long(), [len(own) for own in clients], pack=pack)


def streams(layers: int = 3) -> Streams:
    made = Streams()
    made.layers = layers
    return made


def draw(
    made: Layout, seeds: list[int], batches: list[int], *, p: float = 0.5, layer: int = 0, features: int = 6
) -> list[torch.Tensor]:
    """Return what dropout makes of ones, at each client's own tokens."""
    source = streams()
    source.begin(made, seeds, batches)
    shape = made.packed.shape if made.packed else made.shape
    values = source.drop(torch.ones(*shape, features), p, layer)
    assert values.shape == (*shape, features)
    place = made.place(values)
    return list(place.gather(values.flatten(0, 1)).split(list(place.counts)))


# -- the distribution -------------------------------------------------------------------------------------------------


def check_distribution(values: torch.Tensor, p: float) -> None:
    """Ones after dropout: kept ones are scaled so that their mean stays one, and the rate is p but for rounding."""
    rate = round(p * LEVELS) / LEVELS
    kept = values[values != 0]
    assert torch.equal(kept, torch.full_like(kept, 1 / (1 - rate)))
    tolerance = 5 * math.sqrt(rate * (1 - rate) / values.numel())
    assert float((values == 0).double().mean()) == pytest.approx(rate, abs=tolerance)
    assert float(values.double().mean()) == pytest.approx(1, abs=tolerance / (1 - rate))


@pytest.mark.parametrize("p", [0.05, 0.1, 1 / 3, 0.5, 0.9])
def test_rate_scale_and_mean_of_an_adapters_dropout(p: float) -> None:
    (values,) = draw(layout([50] * 20), [7], [0], p=p, features=250)
    check_distribution(values, p)


@pytest.mark.parametrize("p", [0.05, 0.1, 1 / 3, 0.5, 0.9])
def test_rate_scale_and_mean_of_the_bases_dropout(p: float) -> None:
    torch.manual_seed(0)
    with FastDropout():
        values = F.dropout(torch.ones(500, 501), p)
    check_distribution(values, p)


def test_places_are_drawn_one_by_one() -> None:
    """Neighbouring features come out of one random number, but know nothing of each other."""
    (values,) = draw(layout([50] * 200), [3], [0], p=0.5, features=8)
    kept = (values != 0).double()
    products = torch.corrcoef(kept.T)
    assert (products - torch.eye(8)).abs().max() < 5 / math.sqrt(len(kept))
    assert torch.corrcoef(torch.stack([kept[:-1, 0], kept[1:, 0]]))[0, 1].abs() < 5 / math.sqrt(len(kept))


def test_p_is_rounded_to_a_65536th() -> None:
    made = layout([50] * 20)
    at, near = (draw(made, [0], [0], p=p)[0] for p in (0.25, 0.25 + 0.4 / LEVELS))
    assert torch.equal(at, near)
    torch.manual_seed(0)
    with FastDropout():
        assert torch.equal(F.dropout(torch.ones(9999), 0.4 / LEVELS), torch.ones(9999)), "0 is drawn once in 65536"
    values = draw(made, [0], [0], p=2 / LEVELS)[0]
    assert values.max() == pytest.approx(LEVELS / (LEVELS - 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_values_keep_their_dtype(dtype: torch.dtype) -> None:
    source = streams()
    source.begin(layout([4, 2]), [0], [0])
    assert source.drop(torch.ones(2, 4, 5, dtype=dtype), 0.5, 0).dtype == dtype
    with FastDropout():
        assert F.dropout(torch.ones(3, 5, dtype=dtype), 0.5).dtype == dtype


# -- streams ----------------------------------------------------------------------------------------------------------

FIRST, SECOND, THIRD = [5, 3], [9, 2, 1], [4]


def test_a_clients_draw_depends_on_nobody_else() -> None:
    alone = draw(layout(SECOND), [11], [4])[0]
    together = draw(layout(FIRST, SECOND, THIRD), [10, 11, 12], [0, 4, 9])
    turned = draw(layout(THIRD, [], SECOND, FIRST), [12, 99, 11, 10], [9, 0, 4, 0])
    assert torch.equal(alone, together[1])
    assert torch.equal(alone, turned[2])
    assert torch.equal(together[0], turned[3])
    assert not any(
        len(one) == len(other) and torch.equal(one, other) for one, other in itertools.combinations(together, 2)
    )


@pytest.mark.parametrize("padding", [{"width": 9}, {"width": 16}, {"width": 12, "left": True}, {"pack": True}], ids=str)
def test_a_draw_depends_on_no_padding_and_no_packing(padding: dict[str, int]) -> None:
    plain = draw(layout(FIRST, SECOND), [10, 11], [0, 4])
    made = layout(FIRST, SECOND, **padding)
    assert (made.packed is not None) is ("pack" in padding)
    other = draw(made, [10, 11], [0, 4])
    assert all(torch.equal(one, same) for one, same in zip(plain, other, strict=True))


def test_where_no_token_is_nothing_is() -> None:
    source = streams()
    source.begin(layout([3, 1]), [0], [0])
    assert not source.drop(torch.ones(2, 3, 4), 0.1, 0)[1, 1:].any()


def test_the_same_batch_is_drawn_the_same_way_again() -> None:
    """Gradient checkpointing computes a layer twice: nothing may have moved on, whatever was drawn in between."""
    source = streams()
    source.begin(layout(FIRST, SECOND), [10, 11], [0, 4])
    values = torch.ones(5, 9, 6)
    first, second = source.drop(values, 0.5, 0), source.drop(values, 0.5, 1)
    torch.rand(5)
    assert torch.equal(source.drop(values, 0.5, 0), first)
    assert torch.equal(source.drop(values, 0.5, 1), second)


def test_every_seed_batch_and_layer_has_a_draw_of_its_own() -> None:
    made = layout([8])
    seen = {
        tuple(draw(made, [seed], [batch], layer=layer, features=20)[0].flatten().tolist())
        for seed, batch, layer in itertools.product((0, 1000, 2**62 + 12345), range(4), range(3))
    }
    assert len(seen) == 3 * 4 * 3


def test_a_heads_activation_is_dropped_row_by_row() -> None:
    source = streams()
    source.begin(layout(FIRST, SECOND), [10, 11], [0, 4])
    both = source.drop(torch.ones(5, 64), 0.5, 2)
    assert 0.3 < float((both == 0).double().mean()) < 0.7
    source.begin(layout(SECOND), [11], [4])
    assert torch.equal(source.drop(torch.ones(3, 64), 0.5, 2), both[2:])


def test_gradients_go_where_values_go() -> None:
    source = streams()
    source.begin(layout(FIRST), [0], [0])
    values = torch.randn(2, 5, 8, requires_grad=True)
    dropped = source.drop(values, 0.5, 0)
    dropped.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values, dropped)


def test_a_pass_must_have_begun() -> None:
    with pytest.raises(RuntimeError, match="no pass has begun"):
        streams().drop(torch.ones(1, 2, 3), 0.5, 0)


# -- an adapter's module ----------------------------------------------------------------------------------------------


def test_an_adapters_dropout_drops_in_training_alone() -> None:
    source = Streams()
    first, second, none = AdapterDropout(0.5, source), AdapterDropout(0.5, source), AdapterDropout(0.0, source)
    assert (first.layer, second.layer, none.layer, source.layers) == (0, 1, 2, 3)
    values = torch.randn(2, 4, 6)
    assert first.eval()(values) is values, "no pass needs to have begun"
    assert none.train()(values) is values
    source.begin(layout([4, 3]), [5], [0])
    assert first.eval()(values) is values
    one, other = first.train()(values), second.train()(values)
    assert torch.equal(one, source.drop(values, 0.5, 0))
    assert not torch.equal(one, other)


# -- the base model's -------------------------------------------------------------------------------------------------


def twice(make, *, fast: bool = True):
    """Return what is made from one seed without and with FastDropout."""
    torch.manual_seed(3)
    plain = make()
    torch.manual_seed(3)
    with FastDropout():
        return plain, make()


UNTOUCHED = {
    "in evaluation": lambda values: F.dropout(values, 0.5, training=False),
    "a module in evaluation": lambda values: nn.Dropout(0.5).eval()(values),
    "p = 0": lambda values: F.dropout(values, 0.0),
    "in place": lambda values: F.dropout(values.clone(), 0.5, inplace=True),
    "whole channels": lambda values: F.dropout1d(values, 0.5),
    "alpha dropout": lambda values: F.alpha_dropout(values, 0.5, training=True),
    "random numbers": lambda values: torch.rand(9) + torch.randperm(9),
    "bernoulli": lambda values: torch.bernoulli(torch.full((9,), 0.5)),
    "products": lambda values: F.linear(values, values),
}


@pytest.mark.parametrize("make", UNTOUCHED.values(), ids=UNTOUCHED)
def test_nothing_but_dropout_in_training_is_changed(make) -> None:
    values = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    plain, fast = twice(lambda: make(values))
    assert torch.equal(plain, fast)


@pytest.mark.parametrize(
    "make", [lambda values: F.dropout(values, 0.5), lambda values: nn.Dropout(0.5).train()(values)], ids=["F", "nn"]
)
def test_dropout_in_training_is_changed_inside_the_context_alone(make) -> None:
    values = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    plain, fast = twice(lambda: make(values))
    assert not torch.equal(plain, fast)
    kept = fast != 0
    torch.testing.assert_close(fast[kept], 2 * values[kept])
    torch.manual_seed(3)
    assert torch.equal(make(values), plain), "the context is over"


def test_the_bases_dropout_follows_the_global_generator() -> None:
    def draws() -> list[torch.Tensor]:
        with FastDropout():
            return [F.dropout(torch.ones(50), 0.5) for _ in range(2)]

    torch.manual_seed(1)
    first, again = draws()
    assert not torch.equal(first, again)
    torch.manual_seed(1)
    assert all(torch.equal(one, other) for one, other in zip((first, again), draws(), strict=True))


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (7,), (3, 5), (2, 3, 4)], ids=str)
def test_shapes_of_any_size(shape: tuple[int, ...]) -> None:
    with FastDropout():
        values = F.dropout(torch.ones(shape), 0.5)
    assert values.shape == shape
    assert set(values.flatten().tolist()) <= {0.0, 2.0}


def test_gradients_of_the_bases_dropout() -> None:
    values = torch.randn(6, 7).T.requires_grad_()  # not contiguous
    with FastDropout():
        dropped = F.dropout(values, 0.5)
    (gradient,) = torch.autograd.grad(dropped.sum(), values)
    torch.testing.assert_close(gradient * values, dropped)


def test_a_very_large_seed_is_a_seed() -> None:
    (values,) = draw(layout([50] * 20), [2**63 - 1], [9], layer=2)
    check_distribution(values, 0.5)
