"""One client's part of a round, where the plan changes from round to round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import pytest
import torch

from fedsa.algorithms.base import FROZEN, LOCAL, Algorithm, Plan
from fedsa.api import run
from fedsa.client import Client
from fedsa.errors import TrainingError
from fedsa.export import personal_state
from fedsa.federation import Federation
from fedsa.recipe import Recipe
from fedsa.store import RunFolder
from fedsa.types import Factor, Key, Payload


@final
@dataclass(frozen=True, kw_only=True)
class OddB(Algorithm):
    """Train B in odd rounds, A in even ones; share nothing."""

    source: ClassVar[str] = "-"

    def plan(self, key: Key, round: int) -> Plan:
        return LOCAL if (key.factor is Factor.B) == (round % 2 == 1) else FROZEN


@pytest.mark.parametrize("optimizer_state", ["reset", "keep"])
def test_what_a_round_does_not_train_keeps_its_value(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, optimizer_state: str
) -> None:
    settings = (f"algorithm={__name__}:OddB", "rounds=2", f"training.optimizer_state={optimizer_state}")
    run(Federation.from_recipe(tiny_recipe(*settings)), tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    client = "site 1"
    state = folder.load_client(client, 2)
    assert state is not None
    held = personal_state(folder, OddB(), client, 2)
    assert any(bool(value.any()) for key, value in held.items() if key.factor is Factor.B)
    slots = {Key.parse(name.partition("|")[2]).factor for name in state.optimizer_state}
    assert slots == (set() if optimizer_state == "reset" else {Factor.A, Factor.B, Factor.HEAD})


def test_out_of_memory_names_the_client_and_what_to_lower(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("fedsa.client.train", fail)
    with pytest.raises(TrainingError, match=r"client 'site 0', round 1: out of memory .* lower training.batch_size"):
        run(Federation.from_recipe(tiny_recipe()), tmp_path / "run")


def test_a_client_without_a_state_starts_from_the_initial_one(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    federation = Federation.from_recipe(tiny_recipe())

    class Nothing:
        saved: ClassVar[dict[str, object]] = {}

        def load_client(self, client: str, round: int) -> None:
            return None

        def save_client(self, client: str, round: int, state: object) -> None:
            self.saved[client] = state

    memory = Nothing()
    rows = federation.rows.partition.clients["site 2"].train
    client = Client(
        id="site 2",
        rows=rows,
        algorithm=federation.algorithm,
        model=federation.model,
        task=federation.task,
        encoded=federation.encoded,
        recipe=federation.recipe,
        memory=memory,  # type: ignore[arg-type]  # it keeps nothing
    )
    first, second = client.train(Payload(1, {})), client.train(Payload(1, {}))
    assert first.num_examples == len(rows)
    assert all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)
    assert list(memory.saved) == ["site 2"]
