"""Same recipe, seed and thread count: same bytes, in this process and in another."""

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedsa.adapters.factors import VARIANTS
from fedsa.engines.simulator import simulate
from fedsa.federation import Federation
from fedsa.recipe import dump_recipe
from fedsa.store import RunFolder
from fedsa.types import Side
from support.tiers import factors_of, one_of_each

pytestmark = pytest.mark.run

SCRIPT = """
import sys
from pathlib import Path
import tomllib
from fedsa.engines.simulator import simulate
from fedsa.federation import Federation
from fedsa.recipe import parse_recipe
from fedsa.store import RunFolder

text = Path(sys.argv[1]).read_text(encoding="utf-8")
federation = Federation.from_recipe(parse_recipe(tomllib.loads(text)))
with RunFolder.create(Path(sys.argv[2]), text).locked() as folder:
    simulate(federation, folder)
"""


def tensor_files(path: Path) -> dict[str, str]:
    """Return the hash of every safetensors file below a run folder, by its path in it."""
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*.safetensors"))
    }


def metrics(path: Path) -> list:
    """Return the lines of ``metrics.jsonl`` without what a clock says."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["train"]:
            del line["train"]["seconds"]
    return lines


def run_again(recipe, path: Path) -> Path:
    federation = Federation.from_recipe(recipe)
    with RunFolder.create(path, dump_recipe(federation.recipe)).locked() as folder:
        simulate(federation, folder)
    return path


@pytest.mark.parametrize(
    ("algorithm", "variant"),
    one_of_each(
        [
            *itertools.product(["fedsa", "fedit", "ffa", "local"], ["lora", "rslora", "vera"]),
            *itertools.product(["fedsa", "fedit"], ["dora", "pissa", "olora", "loha"]),
            ("fedit", "ia3"),
            ("fed_sb", "lora_xs"),
            ("ravan", "lora_xs"),
        ],
        lambda algorithm, variant: (algorithm, factors_of(variant), VARIANTS[variant].starts_at_zero),
    ),
)
def test_two_runs_give_the_same_bytes(tiny_run, tiny_recipe, tmp_path, algorithm, variant):
    overrides = (f"algorithm={algorithm}", f"adapter.variant={variant}")
    first = tiny_run(*overrides).folder.path
    torch.rand(3)  # whatever ran before must not matter
    second = run_again(tiny_recipe(*overrides), tmp_path / "run")
    assert len(tensor_files(first)) >= 1 + 1 + 3  # initial, server, three clients
    assert tensor_files(first) == tensor_files(second)
    assert metrics(first) == metrics(second)


def test_another_seed_gives_other_bytes(tiny_run):
    one, other = tensor_files(tiny_run().folder.path), tensor_files(tiny_run("seed=1").folder.path)
    common = one.keys() & other.keys()
    assert "initial.safetensors" in common
    assert all(one[name] != other[name] for name in common)


def test_another_process_gives_the_same_bytes(tiny_run, tmp_path):
    run = tiny_run("fraction_train=0.67", "training.optimizer_state=keep")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(dump_recipe(run.federation.recipe), encoding="utf-8")
    out = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", SCRIPT, recipe, out], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert tensor_files(out) == tensor_files(run.folder.path)
    assert metrics(out) == metrics(run.folder.path)


@pytest.mark.parametrize("algorithm", ["fedsa", "fedit", "ffa", "local"])
def test_a_client_that_was_never_sampled_has_the_documented_initial_state(tiny_run, algorithm):
    """It has no state of its own: what it would use is the initial tensors, and what the server would send it."""
    run = tiny_run(f"algorithm={algorithm}", "fraction_train=0.34")
    lines = metrics(run.folder.path)
    sampled = {line["client"] for line in lines if line["train"]}
    assert [sum(bool(line["train"]) for line in lines if line["round"] == round) for round in (1, 2)] == [1, 1]
    never = set(run.federation.clients) - sampled
    assert never

    initial = run.folder.load_initial()
    server, versions, *_ = run.folder.server_states.load_server(2)
    for client in never:
        assert run.folder.client_states.load_client(client, 2) is None
        personal = run.personal(client)
        for key, value in personal.items():
            received = run.federation.algorithm.plan(key, 2).received
            assert torch.equal(value, server[key] if received else initial[key]), key
            assert torch.equal(value, initial[key]) is not received, key
            assert versions[key] == (2 if received else 0)
        if algorithm == "fedsa":
            assert any(not torch.equal(personal[key], initial[key]) for key in personal if key.factor.side is Side.A)
        per_client = run.summary["per_client"][client]
        assert "before" in per_client
        if algorithm == "local":
            assert per_client["test_final"]["accuracy"] == per_client["before"]
    for client in sampled:
        assert run.folder.client_states.load_client(client, 2) is not None
    assert all(line["upload_bytes"] == line["download_bytes"] == 0 for line in lines if line["client"] in never)


@pytest.mark.parametrize("trainer", ["sequential", "cohort"])
def test_sampling_does_not_change_how_a_client_trains(tiny_run, tiny_model_without_dropout, trainer):
    """Under ``local`` a client that trains in round 1 ends round 1 the same, whoever else trains.

    In a cohort this is so within rounding, and the dropout of the base model, if it has any, is one stream for all.
    """
    settings = ["algorithm=local", "rounds=1", f"training.trainer={trainer}"]
    if trainer == "cohort":
        settings += [f"model.path='{tiny_model_without_dropout.as_posix()}'", "adapter.dropout=0.2"]
    alone, together = tiny_run(*settings, "fraction_train=0.34"), tiny_run(*settings)
    (client,) = {line["client"] for line in metrics(alone.folder.path) if line["train"]}
    assert len({line["client"] for line in metrics(together.folder.path) if line["train"]}) == 3
    initial, one, other = alone.folder.load_initial(), alone.personal(client), together.personal(client)
    for key in one:
        if trainer == "sequential":
            assert torch.equal(one[key], other[key]), key
        else:
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=1e-6)
        assert (one[key] - initial[key]).abs().max() > 1e-4, key
