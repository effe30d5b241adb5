"""Packed layers give every token what they give it in padded rows."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedsa.client.training.autotune import packing_obstacle
from fedsa.models import AdaptedModel
from fedsa.models.dropout import Streams
from fedsa.models.layout import Layout
from fedsa.models.packing import LayerStack
from fedsa.tasks.classification import TokenRows
from support.tiers import first_is_quick
from support.tiny_models import (
    BASES,
    TASK,
    adapt,
    albert,
    bart,
    begin,
    bert,
    client_tensors,
    llama,
    mistral,
    modernbert,
    rows_of,
    token_rows,
)

LENGTHS = [23, 3, 9, 14, 4, 3, 17, 5, 3]


@pytest.fixture(autouse=True)
def _short_rows_are_packed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsa.models.layout._WIDTH", 8)


def hidden_states(model: AdaptedModel, encoded: TokenRows, *, pack: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return what each layer gives the real tokens, row by row, and the logits."""
    seen = []

    def keep(layer, args, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep, prepend=True) for layer in model.layers.layers]  # before it is laid back
    batch = begin(model, encoded, [range(len(encoded.labels))], pack=pack)
    layout = model.streams.layout
    assert layout is not None
    assert (layout.packed is not None) is pack
    with torch.inference_mode():
        logits = TASK.outputs(model.model, batch)
    for hook in hooks:
        hook.remove()
    place = layout.slots if layout.packed else layout.tokens
    expected = layout.packed.shape if layout.packed else layout.shape
    assert all(hidden.shape[:2] == expected for hidden in seen), "the layers see the packed rows"
    return [place.gather(hidden.flatten(0, 1)) for hidden in seen], logits


def outputs(model: AdaptedModel, encoded: TokenRows, *, pack: bool) -> torch.Tensor:
    """Return the logits of all rows."""
    batch = begin(model, encoded, [range(len(encoded.labels))], pack=pack)
    with torch.inference_mode():
        return TASK.outputs(model.model, batch)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", first_is_quick(BASES.values()), ids=BASES)
def test_packed_hidden_states_are_padded_ones(make, attention):
    model = adapt(make, attention=attention)
    encoded = rows_of(LENGTHS)
    padded, plain = hidden_states(model, encoded, pack=False)
    packed, logits = hidden_states(model, encoded, pack=True)
    assert len(padded) == len(packed) == 2
    for one, other in zip(padded, packed, strict=True):
        assert one.std() > 0.1
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9 * float(one.abs().max()))
    torch.testing.assert_close(plain, logits, rtol=0, atol=1e-9 * float(plain.abs().max()))


@pytest.mark.parametrize("make", [bert, llama])
def test_packing_keeps_sentences_apart(make):
    """What one sentence says changes nothing in its neighbours, in a packed row as in a row of its own."""
    model = adapt(make)
    encoded = rows_of(LENGTHS)
    (_, before), _ = hidden_states(model, encoded, pack=True)
    encoded.tokens[: LENGTHS[0]] = 5 + (encoded.tokens[: LENGTHS[0]] - 4) % 30
    (_, after), _ = hidden_states(model, encoded, pack=True)
    assert not torch.isclose(before[: LENGTHS[0]], after[: LENGTHS[0]]).all(dim=1).any()
    torch.testing.assert_close(before[LENGTHS[0] :], after[LENGTHS[0] :], rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", first_is_quick(BASES.values()), ids=BASES)
def test_packed_gradients_are_padded_ones(make):
    model, encoded = adapt(make), rows_of(LENGTHS)
    model.write(client_tensors(model, 1)[0])
    came = []
    for pack in (False, True):
        batch = begin(model, encoded, [range(len(LENGTHS))], pack=pack)
        parameters = model.train_only(model.keys)
        sums, _ = TASK.losses(model.model, batch)
        sums.sum().backward()
        came.append({key: parameter.grad.clone() for key, parameter in parameters.items()})
    for key, gradient in came[0].items():
        size = float(gradient.abs().max())
        assert size > 1e-3
        torch.testing.assert_close(came[1][key], gradient, rtol=0, atol=1e-6 * size)  # LLaMA has softmax in fp32


def test_left_padding_is_packed_too():
    rows = rows_of(LENGTHS)
    left = TokenRows(rows.tokens, None, rows.offsets, rows.labels, pad=0, left=True)
    model = adapt(bert)
    (_, padded), _ = hidden_states(model, rows, pack=False)  # a BERT counts positions by place, padding included
    batch = begin(model, left, [range(len(LENGTHS))], pack=True)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    seen = []
    hook = model.layers.layers[-1].register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.inference_mode():
        model.model(input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions)
    hook.remove()
    torch.testing.assert_close(seen[0][mask.bool()], padded, rtol=0, atol=1e-9)


def test_where_no_token_is_the_last_layer_gives_zero():
    model = adapt(bert)
    batch = begin(model, rows_of(LENGTHS), [range(len(LENGTHS))], pack=True)
    seen = []
    hook = model.layers.layers[-1].register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.inference_mode():
        TASK.outputs(model.model, batch)
    hook.remove()
    assert seen[0].shape[:2] == batch["attention_mask"].shape
    assert not seen[0][batch["attention_mask"] == 0].any()


# -- the row of alike layers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", first_is_quick(BASES.values()), ids=BASES)
def test_the_layers_are_found(make):
    model = adapt(make)
    names = {name for name, module in model.model.named_modules() if module in model.layers.layers}
    assert [name.rpartition(".")[2] for name in sorted(names)] == ["0", "1"]
    assert len({name.rpartition(".")[0] for name in names}) == 1
    assert model.layers.takes_mask


class Layer(nn.Module):
    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return hidden


class Other(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_of_several_lists_the_longest_of_one_class_is_taken():
    model = nn.Module()
    model.short = nn.ModuleList([Other(), Other()])
    model.mixed = nn.ModuleList([Layer(), Other(), Layer(), Layer()])
    model.long = nn.ModuleList([Layer(), Layer(), Layer()])
    stack = LayerStack(model, Streams())
    assert stack.layers == list(model.long)
    assert stack.takes_mask


def test_layers_without_a_mask_and_models_without_layers():
    model = nn.Module()
    assert LayerStack(model, Streams()).layers == []
    assert not LayerStack(model, Streams()).takes_mask
    model.layers = nn.ModuleList([Other(), Other()])
    assert not LayerStack(model, Streams()).takes_mask


def test_without_a_packed_layout_a_layer_gets_what_it_is_given():
    streams, model, seen = Streams(), nn.Module(), []
    model.layers = nn.ModuleList([Layer(), Layer()])
    stack = LayerStack(model, streams)
    stack.layers[1].register_forward_pre_hook(lambda layer, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    hidden, mask = torch.randn(2, 4, 3), torch.ones(2, 4)
    for layout in (
        None,
        Layout(torch.ones(2, 4), [2], pack=True),
        Layout(torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]), [2]),
    ):
        streams.layout = layout
        assert stack.layers[1](hidden, attention_mask=mask) is hidden
        ((args, kwargs),) = seen
        assert args[0] is hidden
        assert kwargs["attention_mask"] is mask
        seen.clear()


def test_arguments_that_follow_the_tokens_are_packed_with_them(monkeypatch):
    """Positions, rotary tables (of each row or of all rows alike), in a tuple or not; others stay."""
    monkeypatch.setattr("fedsa.models.layout._WIDTH", 10)  # all in one row
    streams, model, seen = Streams(), nn.Module(), []

    class Rotary(nn.Module):
        def forward(self, hidden, attention_mask=None, position_ids=None, tables=None, other=None, **more):
            seen.append(SimpleNamespace(hidden=hidden, mask=attention_mask, positions=position_ids, tables=tables,
                                        other=other, more=more))  # fmt: skip
            return (hidden, "kept")

    model.layers = nn.ModuleList([Rotary(), Rotary()])
    LayerStack(model, streams)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    layout = Layout(mask, [3], pack=True)
    streams.begin(layout)
    packed = layout.packed
    assert packed is not None
    assert packed.shape[0] == 1
    hidden, positions = torch.randn(3, 5, 2), torch.arange(5)[None]
    each, alike = torch.randn(3, 5, 4), torch.randn(1, 5, 4)
    other = torch.randn(7)
    first, note = model.layers[0](hidden, mask, position_ids=positions, tables=(each, alike), other=other, more=each)
    last, note = model.layers[1](first, attention_mask=mask, tables=(each, alike), more=other)
    assert note == "kept"
    slots = layout.slots.gather(torch.arange(layout.slots.positions))
    rows, columns = mask.nonzero(as_tuple=True)
    for call in seen:
        assert call.hidden.shape == (*packed.shape, 2)
        assert torch.equal(call.hidden[0, slots], hidden[rows, columns])
        assert torch.equal(call.mask, packed.mask(torch.float32, causal=False))
        assert torch.equal(call.tables[0][0, slots], each[rows, columns])
        assert torch.equal(call.tables[1][0, slots], alike[0, columns])
    assert torch.equal(seen[0].positions, packed.position_ids)
    assert seen[0].other is other
    assert torch.equal(seen[0].more["more"][0, slots], each[rows, columns])
    assert torch.equal(last, hidden * mask[:, :, None])


@pytest.mark.parametrize(("make", "causal"), [(bert, False), (llama, True)])
def test_a_decoder_looks_back_only(make, causal):
    model, seen = adapt(make), []
    model.layers.layers[0].register_forward_pre_hook(
        lambda layer, args, kwargs: seen.append(kwargs.get("attention_mask", args[-1])), with_kwargs=True
    )
    batch = begin(model, rows_of(LENGTHS), [range(len(LENGTHS))], pack=True)
    TASK.outputs(model.model, batch)
    packed = model.streams.layout.packed
    assert torch.equal(seen[0], packed.mask(torch.float64, causal=causal))


# -- what cannot be packed --------------------------------------------------------------------------------------------

WINDOWS = {
    "modernbert": (modernbert, {"local_attention": 4, "global_attn_every_n_layers": 2}),
    "mistral": (mistral, {"sliding_window": 4}),
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("make", "window"), WINDOWS.values(), ids=WINDOWS)
def test_a_window_smaller_than_the_rows_is_noticed(make, window, attention):
    model = adapt(make, base=window, attention=attention, dtype=torch.float32)
    rows = token_rows()
    obstacle = packing_obstacle(model, TASK, rows, torch.arange(60).numpy())
    assert obstacle is not None
    assert obstacle.startswith("a token in packed rows differs by ")
    assert not model.model.training
    short = rows_of([3] * 10 + [2] * 10)
    assert packing_obstacle(model, TASK, short, torch.arange(20).numpy()) is None, "no row is longer than the window"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("make", first_is_quick(BASES.values()), ids=BASES)
def test_a_model_that_can_be_packed_has_no_obstacle(make, precision):
    model = adapt(make, dtype=torch.float32, precision=precision)
    assert packing_obstacle(model, TASK, token_rows(), torch.arange(60).numpy()) is None


def test_an_encoder_beside_a_decoder_is_not_taken_for_causal_unnoticed():
    model, rows = adapt(bart, dtype=torch.float32), rows_of(LENGTHS)
    rows.tokens[rows.offsets[1:] - 1] = 2  # where it looks for what it says of a row
    obstacle = packing_obstacle(model, TASK, rows, torch.arange(9).numpy())
    padded, packed = (outputs(model, rows, pack=pack) for pack in (False, True))
    assert obstacle is not None or torch.allclose(padded, packed, atol=1e-4)


def test_layers_that_take_no_mask_are_an_obstacle():
    model = adapt(bert)
    model.layers.takes_mask = False
    assert packing_obstacle(model, TASK, token_rows(), torch.arange(60).numpy()) == "its layers take no attention mask"


def test_layers_that_refuse_packed_rows_are_an_obstacle():
    model = adapt(bert)

    def refuse(layer, args, kwargs):
        if model.streams.layout.packed is not None:
            raise ValueError("five rows expected\nand a second line")

    model.layers.layers[1].register_forward_pre_hook(refuse, with_kwargs=True)
    obstacle = packing_obstacle(model, TASK, token_rows(), torch.arange(60).numpy())
    assert obstacle == "its layers do not take packed rows: five rows expected"


# -- what is noticed too late, or not at all --------------------------------------------------------------------------


@pytest.mark.parametrize("window", [8, 16, 24])
def test_a_window_that_few_tokens_look_beyond_is_noticed(window):
    base = {"local_attention": window, "global_attn_every_n_layers": 2}
    model, rows = adapt(modernbert, base=base, dtype=torch.float32), rows_of([30, *LENGTHS])
    padded, packed = (outputs(model, rows, pack=pack) for pack in (False, True))
    assert (padded - packed).abs().max() > 1e-3
    assert packing_obstacle(model, TASK, rows, torch.arange(10).numpy()) is not None


def test_it_is_tried_out_with_rows_that_are_packed():
    model = adapt(modernbert, base={"local_attention": 4, "global_attn_every_n_layers": 2}, dtype=torch.float32)
    rows = rows_of([31] * 60 + [15] * 4)
    assert packing_obstacle(model, TASK, rows, torch.arange(60, 64).numpy()) is not None
    assert packing_obstacle(model, TASK, rows, torch.arange(64).numpy()) is not None


def test_a_layer_that_is_called_several_times_is_packed_in_each():
    model = adapt(albert, dtype=torch.float32)
    padded, packed = (outputs(model, rows_of(LENGTHS), pack=pack) for pack in (False, True))
    torch.testing.assert_close(padded, packed, rtol=0, atol=1e-4)
    assert packing_obstacle(model, TASK, rows_of(LENGTHS), torch.arange(9).numpy()) is None


# -- afterwards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_after_packed_batches_the_model_takes_any_batch(fails):
    """The model is the user's, too: no batch of its own is taken for the last one that was packed."""
    model, rows = adapt(bert), token_rows()
    batch = {name: value for name, value in rows.batch(range(12)).items() if name != "labels"}
    with torch.inference_mode():
        before = model.model(**batch).logits
    for context in (model.evaluating, model.training):
        with contextlib.suppress(ZeroDivisionError), context():
            begin(model, rows, [range(12, 24)], pack=True)
            assert model.streams.layout.packed is not None
            _ = 1 / (not fails)
        assert not model.model.training
        with torch.inference_mode():
            assert torch.equal(model.model(**batch).logits, before)
