"""What crosses the wire under each method, and what training must leave alone: seen on real tiny runs."""

import itertools
import re
from dataclasses import dataclass

import pytest
import torch

from fedsa.adapters.algebra import pairs
from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms import make_algorithm
from fedsa.client.site import Site
from fedsa.engines.simulator import simulate
from fedsa.federation import Federation
from fedsa.recipe import dump_recipe
from fedsa.server import Server
from fedsa.store import RunFolder
from fedsa.types import Factor, Payload, Side, State, Update, total_bytes

ADAPTER_NAME = re.compile(
    r"\.lora_([AB]|magnitude_vector)\.|\.vera_lambda_[bd]\.|\.hada_w[12]_[ab]\.|\.ia3_l\.|\.modules_to_save\."
)
FITTING = [
    (algorithm, variant)
    for algorithm in ("fedsa", "fedit", "ffa", "local")
    for variant in VARIANTS
    if make_algorithm(algorithm, {}).refusal(variant) is None
]
SIDED = tuple(variant for variant in VARIANTS if variant not in ("ia3", "lora_xs"))
A_SIDE = {Factor.A, Factor.LAMBDA_D, Factor.HADAMARD_A1, Factor.HADAMARD_A2}
B_SIDE = {Factor.B, Factor.MAGNITUDE, Factor.LAMBDA_B, Factor.HADAMARD_B1, Factor.HADAMARD_B2}


@dataclass
class Watched:
    """A run with all that crossed between its clients and its server."""

    federation: Federation
    updates: list[Update]
    payloads: list[Payload]
    server_states: list[State]
    base_before: dict[str, torch.Tensor]
    own: dict[str, State]
    folder: RunFolder
    summary: dict


def base_tensors(federation: Federation) -> dict[str, torch.Tensor]:
    """Return copies of all parameters and buffers whose PEFT name is not an adapter's or a trained head's."""
    model = federation.model.model
    named = itertools.chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name: tensor.detach().clone() for name, tensor in named if not ADAPTER_NAME.search(name)}


@pytest.fixture(scope="module")
def watched_run(tiny_recipe, tmp_path_factory):
    """Run the tiny recipe once for each algorithm and variant, with prepare, finish and end_round watched."""
    runs: dict[tuple[str, str], Watched] = {}

    def watch(algorithm: str, variant: str) -> Watched:
        if (algorithm, variant) in runs:
            return runs[algorithm, variant]
        federation = Federation.from_recipe(tiny_recipe(f"algorithm={algorithm}", f"adapter.variant={variant}"))
        updates, payloads, states = [], [], []
        prepare, finish, end_round = Site.prepare, Site.finish, Server.end_round

        def watched_prepare(self, payload):
            payloads.append(payload)
            return prepare(self, payload)

        def watched_finish(self, job, trained):
            update = finish(self, job, trained)
            updates.append(update)
            return update

        def watched_end(self, round, arrived):
            arrived = list(arrived)
            assert all(any(update is seen for seen in updates) for update in arrived)
            record = end_round(self, round, arrived)
            states.append(self.state.tensors)
            return record

        before = base_tensors(federation)
        path = tmp_path_factory.mktemp("watched") / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Site, "prepare", watched_prepare)
            patch.setattr(Site, "finish", watched_finish)
            patch.setattr(Server, "end_round", watched_end)
            with RunFolder.create(path, dump_recipe(federation.recipe)).locked() as folder:
                summary = simulate(federation, folder)
        last = federation.recipe.rounds
        own = {client: folder.client_states.load_client(client, last).tensors for client in federation.clients}
        runs[algorithm, variant] = Watched(federation, updates, payloads, states, before, own, folder, summary)
        return runs[algorithm, variant]

    return watch


@pytest.mark.parametrize("variant", SIDED)
def test_under_fedsa_no_b_side_and_no_head_is_in_any_update(watched_run, variant):
    run = watched_run("fedsa", variant)
    a_side = {key for key in run.federation.model.initial if key.factor in A_SIDE}
    assert len(run.updates) == len(run.payloads) == 6
    for update in run.updates:
        assert set(update.tensors) == a_side
        assert not {key.factor for key in update.tensors} & {*B_SIDE, Factor.HEAD}
    for payload in run.payloads:
        assert set(payload.tensors) == (a_side if payload.round > 1 else set())


@pytest.mark.parametrize("variant", SIDED)
def test_the_upload_is_the_a_side_to_the_byte(watched_run, variant):
    run = watched_run("fedsa", variant)
    a_side = {key: value for key, value in run.federation.model.initial.items() if key.factor.side is Side.A}
    expected = total_bytes(a_side)
    assert expected == {"vera": 4 * (4 * 2), "loha": 4 * (4 * 2 * 2 * 16)}.get(variant, 4 * (4 * 2 * 16))
    assert run.summary["upload_bytes"] == expected
    assert [total_bytes(update.tensors) for update in run.updates] == [expected] * 6
    assert run.summary["total_upload_bytes"] == 6 * expected
    assert run.summary["total_download_bytes"] == 3 * expected  # in round 1 every client holds the initial tensors
    assert run.summary["upload_parameters"] == expected // 4


@pytest.mark.parametrize("variant", SIDED)
def test_under_fedsa_every_client_has_a_b_side_and_a_head_of_its_own(watched_run, variant):
    run = watched_run("fedsa", variant)
    for one, other in itertools.combinations(run.own.values(), 2):
        for key, initial in run.federation.model.initial.items():
            if key.factor.side is not Side.A:
                assert not torch.equal(one[key], other[key]), key
                assert not torch.equal(one[key], initial), key


@pytest.mark.parametrize("variant", SIDED)
def test_under_fedsa_the_server_never_holds_a_clients_b_side_or_head(watched_run, variant):
    run = watched_run("fedsa", variant)
    on_disk, versions, *_ = run.folder.server_states.load_server(run.federation.recipe.rounds)
    for state in (*run.server_states, on_disk):
        for key, initial in run.federation.model.initial.items():
            assert torch.equal(state[key], initial) is (key.factor.side is not Side.A), key
    assert {key for key, version in versions.items() if version} == {
        key for key in on_disk if key.factor.side is Side.A
    }


@pytest.mark.parametrize(("algorithm", "variant"), FITTING)
def test_the_base_is_bit_identical_to_what_it_was_after_adapter_initialisation(watched_run, algorithm, variant):
    run = watched_run(algorithm, variant)
    after = base_tensors(run.federation)
    assert after.keys() == run.base_before.keys()
    assert any("vera_A" in name for name in after) is (variant == "vera")
    assert any("original_module" in name for name in after)
    for name, tensor in after.items():
        assert torch.equal(tensor, run.base_before[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_base_is_the_checkpoint(watched_run, variant, tiny_model):
    """But for what PiSSA and OLoRA took out of it at the start: the same for all clients."""
    from safetensors.torch import load_file

    checkpoint = load_file(tiny_model / "model.safetensors")
    federation = watched_run("fedit", variant).federation
    after, moved = base_tensors(federation), {}
    if not VARIANTS[variant].starts_at_zero:
        for module, (b, a) in pairs(federation.model.initial).items():
            moved[f"{module}.weight"] = federation.model.scaling[module] * (b @ a)
        assert len(moved) == 4
    plain = {
        name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", "."): tensor
        for name, tensor in after.items()
    }
    assert checkpoint.keys() <= plain.keys()
    for name, tensor in checkpoint.items():
        if name in moved:
            assert not torch.allclose(plain[name], tensor)
            torch.testing.assert_close(plain[name] + moved[name], tensor)
        else:
            assert torch.equal(plain[name], tensor), name


@pytest.mark.parametrize("variant", [variant for algorithm, variant in FITTING if algorithm == "ffa"])
def test_ffa_never_changes_the_a_side(watched_run, tiny_run, variant):
    run = watched_run("ffa", variant)
    a_side = [key for key in run.federation.model.initial if key.factor.side is Side.A]
    assert a_side
    for key in a_side:
        initial = run.federation.model.initial[key]
        assert all(key not in update.tensors for update in run.updates)
        assert all(torch.equal(state[key], initial) for state in run.server_states)
        assert all(key not in tensors or torch.equal(tensors[key], initial) for tensors in run.own.values())
        assert torch.equal(run.federation.model.read([key])[key], initial)
    last = tiny_run("algorithm=ffa", f"adapter.variant={variant}")
    for client, key in itertools.product(last.federation.clients, a_side):
        assert torch.equal(last.personal(client)[key], run.federation.model.initial[key])


@pytest.mark.parametrize("variant", VARIANTS)
def test_under_local_nothing_crosses(watched_run, variant):
    run = watched_run("local", variant)
    assert all(not update.tensors for update in run.updates)
    assert all(not payload.tensors for payload in run.payloads)
    assert run.summary["total_upload_bytes"] == run.summary["total_download_bytes"] == 0
    for state in run.server_states:
        assert all(torch.equal(state[key], initial) for key, initial in run.federation.model.initial.items())


def test_a_shared_head_is_one_head_and_a_kept_one_is_not(tiny_run):
    for shared in (True, False):
        run = tiny_run("algorithm=fedit", f"share_head={str(shared).lower()}")
        first, second, _ = (run.personal(client) for client in run.federation.clients)
        for key in first:
            assert torch.equal(first[key], second[key]) is (shared or key.factor.side is not Side.HEAD), key
