"""The wire in bf16: half the bytes both ways, and nothing but what travels is rounded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedsa.adapters.means import weighted_mean
from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import ServerState
from fedsa.client.evaluation import evaluate
from fedsa.client.site import Site
from fedsa.client.training.job import Job, TrainingResult
from fedsa.errors import ProtocolError
from fedsa.federation import Federation
from fedsa.recipe import StepSettings, dump_recipe
from fedsa.runs.export import personal_state
from fedsa.server import Server
from fedsa.steps import make_chain
from fedsa.steps.cast import Cast
from fedsa.store import RunFolder
from fedsa.types import Factor, Key, Payload, Side, State, Update, total_bytes

BF16 = ("wire_dtype=bf16",)
A_BYTES = {"fp32": 4 * (4 * 2 * 16), "bf16": 2 * (4 * 2 * 16)}  # four A's of 2 × 16


def rounded(tensors: State) -> dict[Key, torch.Tensor]:
    """Return the nearest bf16 values, worked out by bits: to the nearest, of two equally near to the even one."""
    result = {}
    for key, tensor in tensors.items():
        bits = tensor.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
        kept = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
        result[key] = (kept - ((kept >> 31) << 32)).to(torch.int32).view(torch.float32)
    return result


def same(one: State, two: State) -> bool:
    """Say whether values and types are equal; `torch.equal` looks at values alone."""
    return one.keys() == two.keys() and all(
        one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]) for key in one
    )


def of_side(tensors: State, *sides: Side) -> dict[Key, torch.Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key.factor.side in sides}


def test_numbers_beside_the_tensors_keep_all_their_digits() -> None:
    """Their squares and differences would have none that are right."""
    chain = make_chain(StepSettings("bf16"))
    note, a = Key("numbers", Factor.NOTE), Key("layer", Factor.A)
    tensors = {note: torch.tensor([1 + 2**-20]), a: torch.tensor([1 + 2**-20])}
    sent, _ = chain.on_client(tensors, {}, client="c", round=1, before=tensors, seed=0)
    for travelling in (sent, chain.on_payload(tensors)):
        assert torch.equal(travelling[note], tensors[note])
        assert {key: value.dtype for key, value in travelling.items()} == {note: torch.float32, a: torch.bfloat16}
    assert {key: form.dtype for key, form in chain.forms(tensors).items()} == {note: torch.float32, a: torch.bfloat16}


@pytest.fixture(scope="module")
def crossing(
    tiny_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, list[Payload], list[Update], Federation]:
    """A run with a wire in bf16, and what crossed it."""
    import fedsa

    payloads, updates, prepare, finish = [], [], Site.prepare, Site.finish

    def watched_prepare(self: Site, payload: Payload) -> Job:
        payloads.append(payload)
        return prepare(self, payload)

    def watched_finish(self: Site, job: Job, trained: TrainingResult) -> Update:
        updates.append(finish(self, job, trained))
        return updates[-1]

    federation = Federation.from_recipe(tiny_recipe(*BF16))
    path = tmp_path_factory.mktemp("crossing") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Site, "prepare", watched_prepare)
        patch.setattr(Site, "finish", watched_finish)
        fedsa.run(federation, path)
    return RunFolder.open(path), payloads, updates, federation


def test_a_cast_rounds_to_the_nearest_and_copies_nothing_in_fp32() -> None:
    key = Key("layer", Factor.A)
    values = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, 1.00390625, 1.01171875, -1.00390625, 1e-40])])
    down = Cast("bf16").on_payload({key: values})[key]
    assert torch.equal(down.float(), rounded({key: values})[key])
    assert down.dtype == torch.bfloat16
    assert Cast("fp32").on_payload({key: values})[key] is values


def test_what_crosses_is_in_bf16_and_half_the_bytes(tiny_run: Callable[..., Any], crossing: Any) -> None:
    _, payloads, updates, _ = crossing
    assert len(payloads) == len(updates) == 6
    for tensors in (each.tensors for each in (*payloads, *updates)):
        assert {tensor.dtype for tensor in tensors.values()} <= {torch.bfloat16}
    assert [total_bytes(update.tensors) for update in updates] == [A_BYTES["bf16"]] * 6
    assert [total_bytes(payload.tensors) for payload in payloads] == [0] * 3 + [A_BYTES["bf16"]] * 3
    for wire, settings in (("bf16", BF16), ("fp32", ())):
        summary = tiny_run(*settings).summary
        assert summary["wire_dtype"] == wire
        assert summary["upload_bytes"] == summary["download_bytes"] == A_BYTES[wire]
        assert summary["total_upload_bytes"] == 6 * A_BYTES[wire]
        assert summary["total_download_bytes"] == 3 * A_BYTES[wire]


@pytest.mark.run
def test_what_a_client_keeps_is_not_rounded(crossing: Any) -> None:
    folder, _, updates, federation = crossing
    for update in updates[3:]:
        state = folder.client_states.load_client(update.client, 2)
        assert state is not None
        assert same(
            {key: tensor.float() for key, tensor in update.tensors.items()}, rounded(of_side(state.tensors, Side.A))
        )
        for key, tensor in state.tensors.items():
            assert tensor.dtype == torch.float32
            assert not torch.equal(tensor, rounded({key: tensor})[key]), key
    assert set(state.tensors) == set(federation.model.keys)


def test_the_server_keeps_the_mean_of_what_came_in_fp32(crossing: Any) -> None:
    folder, _, updates, federation = crossing
    state, *_ = folder.server_states.load_server(2)
    mean = weighted_mean((update.tensors, update.num_examples) for update in updates[3:])
    assert same(of_side(state, Side.A), {key: tensor.float() for key, tensor in mean.items()})
    assert not any(torch.equal(tensor, rounded({key: tensor})[key]) for key, tensor in of_side(state, Side.A).items())
    rest = of_side(federation.model.initial, Side.B, Side.HEAD)
    assert same(of_side(state, Side.B, Side.HEAD), rest)


def test_a_client_is_measured_and_exported_with_what_it_would_receive(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*BF16)
    federation, state = run.federation, run.folder.server_states.load_server(2)[0]
    for client, parts in federation.rows.partition.clients.items():
        own = run.folder.client_states.load_client(client, 2)
        expected = {**rounded(of_side(state, Side.A)), **of_side(own.tensors, Side.B, Side.HEAD)}
        assert same(personal_state(run.folder, federation.algorithm, client, 2), expected)
        asked = [(client, expected, parts.test)]
        ((_, result),) = evaluate(federation.model, federation.task, federation.encoded, asked, batch_size=64)
        assert run.summary["per_client"][client]["test_final"] == pytest.approx(result, abs=1e-5)


def test_a_client_begins_a_round_with_what_it_received() -> None:
    algorithm, key, other = make_algorithm("fedsa", {}), Key("layer", Factor.A), Key("layer", Factor.B)
    own, new = {key: torch.randn(8), other: torch.randn(8)}, {key: torch.randn(8)}
    absorbed = algorithm.absorb(own, Cast("bf16").on_payload(new), own)
    assert same(absorbed, {**rounded(new), other: own[other]})
    assert absorbed[other] is own[other]


def test_where_nothing_is_shared_the_wire_changes_no_byte(tiny_run: Callable[..., Any]) -> None:
    def files(path: Path) -> dict[str, dict[str, bytes]]:
        return {
            str(file.relative_to(path)): {name: value.numpy().tobytes() for name, value in load_file(file).items()}
            for file in path.rglob("*.safetensors")
        }

    assert files(tiny_run("algorithm=local", *BF16).folder.path) == files(tiny_run("algorithm=local").folder.path)
    assert files(tiny_run(*BF16).folder.path) != files(tiny_run().folder.path)


@pytest.mark.parametrize(("wire", "sent"), [("bf16", torch.float32), ("fp32", torch.bfloat16)])
def test_an_update_in_another_dtype_than_the_wires_is_refused(wire: Any, sent: torch.dtype) -> None:
    algorithm, key = make_algorithm("fedsa", {}), Key("layer", Factor.A)
    server = Server(
        algorithm, algorithm.init({key: torch.zeros(2)}), ["a"], seed=0, steps=make_chain(StepSettings(wire))
    )
    server.begin_round(1)
    with pytest.raises(ProtocolError, match=r"is of torch\.\w+, not torch\.\w+, the wire's$"):
        server.end_round(1, [Update("a", 1, 1, {key: torch.ones(2, dtype=sent)})])


def test_a_value_that_overflows_on_the_wire_is_refused_like_any_that_is_not_finite() -> None:
    algorithm, key = make_algorithm("fedsa", {}), Key("layer", Factor.A)
    server = Server(
        algorithm, algorithm.init({key: torch.zeros(1)}), ["a"], seed=0, steps=make_chain(StepSettings("bf16"))
    )
    server.begin_round(1)
    most = Cast("bf16").on_payload({key: torch.tensor([torch.finfo(torch.float32).max])})
    with pytest.raises(ProtocolError, match="is not finite"):
        server.end_round(1, [Update("a", 1, 1, most)])


def test_the_wire_is_part_of_the_recipe(tiny_recipe: Callable[..., Any]) -> None:
    assert 'wire_dtype = "bf16"' in dump_recipe(tiny_recipe(*BF16))
    assert tiny_recipe().wire_dtype == "fp32"


def test_the_servers_own_state_is_not_rounded_by_sending_it() -> None:
    algorithm, key = make_algorithm("fedsa", {}), Key("layer", Factor.A)
    value = torch.randn(8)
    server = Server(
        algorithm, ServerState({key: value.clone()}, {key: 1}), ["a"], seed=0, steps=make_chain(StepSettings("bf16"))
    )
    server.begin_round(2)
    assert torch.equal(server.payload("a", 2).tensors[key].float(), rounded({key: value})[key])
    assert torch.equal(server.state.tensors[key], value)
