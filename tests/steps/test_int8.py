"""Updates in eight bits: what the rounding leaves comes with the next update, and the bytes are those of the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fedsa.algorithms import make_algorithm
from fedsa.cost.plan import plan_run
from fedsa.errors import ConfigError, ProtocolError
from fedsa.federation import Federation
from fedsa.recipe import StepSettings, compression_settings, parse_recipe
from fedsa.runs.sent import sent_in_run
from fedsa.server import Server
from fedsa.steps import CHECKS, SecureSum, make_chain
from fedsa.steps.base import Form
from fedsa.steps.cast import Cast
from fedsa.steps.chain import Chain
from fedsa.steps.int8 import Int8
from fedsa.testing import check_step
from fedsa.types import Factor, Key, Side, Update

A, B = Key("layer", Factor.A), Key("layer", Factor.B)
INT8 = ("compression.kind=int8",)


@pytest.mark.parametrize("chain", [(Int8(),), (Int8(), Cast("bf16"))], ids=["alone", "with bf16"])
def test_it_obeys_the_laws(chain: tuple[Any, ...]) -> None:
    check_step(chain[0])
    tensors = {A: torch.randn(3, 70), B: torch.randn(5, 3)}
    sent, _ = Chain(chain).on_client(tensors, {}, client="a", round=1, before=tensors, seed=0)
    assert {key: Form(tuple(tensor.shape), tensor.dtype) for key, tensor in sent.items()} == Chain(chain).forms(tensors)


def test_a_recipe_gets_it() -> None:
    chain = make_chain(StepSettings("bf16", compression=compression_settings({"kind": "int8"})))
    assert list(chain.steps) == [Int8(), Cast("bf16")]


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ((8, 384), (8, 388)),
        ((384, 8), (1, 3076)),
        ((16,), (1, 20)),
        ((), (1, 5)),
        ((8, 3, 64), (8, 196)),
        ((0, 9), (1, 4)),
    ],
)
def test_long_rows_have_a_scale_of_their_own(shape: tuple[int, ...], form: tuple[int, ...]) -> None:
    assert Int8().form(A, Form(shape, torch.float32)) == Form(form, torch.int8)
    zeros = {A: torch.zeros(shape)}
    sent, _ = Chain((Int8(),)).on_client(zeros, {}, client="a", round=1, before=zeros, seed=0)
    assert sent[A].shape == form
    taken, _ = Chain((Int8(),)).on_server(Update("a", 1, 1, sent), 1, zeros)
    assert torch.equal(taken.tensors[A], zeros[A])


@given(
    change=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9), scale=st.sampled_from([1e-20, 1.0, 1e20])
)
@example(change=[1.401298464324817e-45], scale=1.0)  # the smallest number that there is
@settings(deadline=None)
def test_the_error_is_half_a_step_and_is_made_up_for(change: list[float], scale: float) -> None:
    chain, before = Chain((Int8(),)), {A: torch.zeros(len(change))}
    wanted = {A: torch.tensor(change) * scale}
    slots: Any = {}
    total = torch.zeros(len(change), dtype=torch.float64)
    for round in range(1, 5):
        sent, slots = chain.on_client(wanted, slots, client="a", round=round, before=before, seed=0)
        taken, _ = chain.on_server(Update("a", round, 1, sent), 1, before)
        total += taken.tensors[A].double()
        largest = float(wanted[A].abs().max())
        left = (round * wanted[A].double() - total).abs().max()
        # the largest number that is rounded is the change with what was left of the one before
        bound = 1.01 * largest * (1 / 254 + 1 / 254**2) + 1e-5 * round * largest
        assert float(left) <= bound + torch.finfo(torch.float32).tiny  # smaller numbers have fewer digits


def test_a_tensor_that_rests_in_a_round_keeps_what_was_left_of_it() -> None:
    chain, before = Chain((Int8(),)), {A: torch.zeros(3), B: torch.zeros(3)}
    _, slots = chain.on_client({A: torch.tensor([1.0, 0.3, 0.7])}, {}, client="a", round=1, before=before, seed=0)
    _, later = chain.on_client({B: torch.tensor([1.0, 0.2, 0.1])}, slots, client="a", round=2, before=before, seed=0)
    assert later.keys() == {f"int8|{A}", f"int8|{B}"}
    assert torch.equal(later[f"int8|{A}"], slots[f"int8|{A}"])


def test_a_late_update_is_a_change_of_what_its_client_began_with() -> None:
    base = {A: torch.full((2,), 5.0)}
    sent, _ = Chain((Int8(),)).on_client({A: torch.tensor([6.0, 5.0])}, {}, client="a", round=1, before=base, seed=0)
    taken, _ = Int8().on_server(Update("a", 1, 1, sent, base=base), 1, {A: torch.full((2,), 9.0)})
    assert taken.tensors[A].tolist() == [6.0, 5.0]


@pytest.mark.parametrize(
    ("key", "shape", "form", "sent"),
    [(A, (3, 70), (3, 74), (2, 74)), (A, (3, 70), (3, 74), (3, 73)), (B, (5, 3), (1, 19), (1, 18))],
    ids=str,
)
def test_an_update_of_another_form_is_refused_and_does_not_end_the_run(
    key: Key, shape: tuple[int, ...], form: tuple[int, ...], sent: tuple[int, ...]
) -> None:
    """Packed rows are no rows of A, and packed numbers no columns of B: none of them may be fewer."""
    algorithm = make_algorithm("fedit", {})
    state = algorithm.init({key: torch.zeros(shape)})
    server = Server(algorithm, state, ["a", "b"], seed=0, steps=Chain((Int8(),)), quorum=1)
    server.begin_round(1)
    good, bad = (torch.zeros(size, dtype=torch.int8) for size in (form, sent))
    record = server.end_round(1, [Update("a", 1, 1, {key: good}), Update("b", 1, 1, {key: bad})])
    assert record.finished == ("a",)
    assert f"has shape {sent}, not {form}" in record.rejected["b"]


@pytest.mark.parametrize("scale", [torch.nan, torch.inf])
def test_a_scale_that_is_no_number_is_refused(scale: float) -> None:
    packed = torch.cat([torch.ones(1, 2, dtype=torch.int8), torch.tensor([[scale]]).view(torch.int8)], dim=1)
    with pytest.raises(ProtocolError, match="update of client 'a' for round 1: layer:A:default is not finite"):
        Int8().on_server(Update("a", 1, 1, {A: packed}), 1, {A: torch.zeros(2)})


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"secure_aggregation": True}, "each client's eight bits have a scale of their own"),
        ({"algorithm": "flora"}, "its clients do not begin with the server's values"),
        (
            {"algorithm": "hetlora", "algorithm_options": {"decay": 0.5}},
            "its clients may send tensors of other shapes than they were given, so the server cannot add",
        ),
        ({"algorithm": "local"}, "it sends nothing"),
        ({"adapter": {"ranks": [2, 4]}}, "leave adapter.ranks out"),
        ({"adapter": {"own_initial_a": True}}, "set adapter.own_initial_a = false"),
        ({"personal_state": "reconstruct"}, "personal_state must be 'store'"),
        (
            {"privacy": {"kind": "client", "noise_multiplier": 1.0, "clipping_norm": 1.0, "target_delta": 1e-5}},
            "compression.kind: does not go with privacy.kind = 'client'",
        ),
    ],
    ids=str,
)
def test_what_does_not_go_with_it_is_refused(tiny_data: dict[str, Any], more: dict[str, Any], text: str) -> None:
    data = {**tiny_data, "weighting": "uniform", "compression": {"kind": "int8"}, **more}
    if "adapter" in more:
        data["adapter"] = {**tiny_data["adapter"], **more["adapter"]}
    with pytest.raises(ConfigError) as caught:
        parse_recipe(data, checks=CHECKS)
    assert text in str(caught.value)


def test_it_goes_with_noise_at_the_client_and_with_robust_means(tiny_data: dict[str, Any]) -> None:
    privacy = {
        "kind": "client",
        "noise_at": "client",
        "noise_multiplier": 1.0,
        "clipping_norm": 1.0,
        "target_delta": 1e-5,
    }
    data = {**tiny_data, "compression": {"kind": "int8"}, "privacy": privacy, "robust": {"kind": "median"}}
    parse_recipe(data, checks=CHECKS)
    assert SecureSum().conflict(Int8()) is not None
    assert Int8().refusal(make_algorithm("flexlora", {})) is None


@pytest.mark.run
def test_a_run_sends_the_bytes_of_its_plan_and_comes_near_the_run_in_fp32(tiny_run: Callable[..., Any]) -> None:
    run, plain = tiny_run(*INT8), tiny_run()
    planned = plan_run(run.federation.recipe)
    for name in ("upload_bytes", "download_bytes", "total_upload_bytes", "total_download_bytes"):
        assert planned[name] == run.summary[name], name
    assert run.summary["compression"] == "int8"
    assert run.summary["total_download_bytes"] == plain.summary["total_download_bytes"]
    listed = [tensor for entry in sent_in_run(run.folder.path) for tensor in entry["tensors"]]
    assert {tensor["dtype"] for tensor in listed} == {"int8"}
    assert sum(tensor["bytes"] for tensor in listed) == run.summary["total_upload_bytes"]
    initial, one, two = (
        run.folder.load_initial(),
        *(each.folder.server_states.load_server(2)[0] for each in (run, plain)),
    )
    for key in (key for key in initial if key.factor.side is Side.A):
        moved = float((two[key] - initial[key]).norm())
        assert 0 < float((one[key] - two[key]).norm()) < 0.1 * moved


def tensors_of(run: Path) -> dict[str, dict[str, bytes]]:
    """Return the bytes of every tensor of a run, by file and name: what rounding has left is among them."""
    return {
        file.relative_to(run).as_posix(): {name: value.numpy().tobytes() for name, value in load_file(file).items()}
        for file in run.rglob("*.safetensors")
    }


@pytest.mark.run
def test_a_run_that_was_interrupted_comes_to_the_same_bytes(
    tiny_run: Callable[..., Any], tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    import fedsa
    from fedsa.callbacks import Callback

    class Stop(Callback):
        def on_round_end(self, round: int, *rest: Any) -> None:
            if round == 1:
                raise KeyboardInterrupt

    whole, path = tiny_run(*INT8), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fedsa.run(Federation.from_recipe(tiny_recipe(*INT8)), path, callbacks=[Stop()], progress=False)
    fedsa.resume(Federation.from_recipe(tiny_recipe(*INT8)), path, progress=False)
    found = tensors_of(path)
    assert found == tensors_of(whole.folder.path)
    assert any("int8|" in name for tensors in found.values() for name in tensors)
