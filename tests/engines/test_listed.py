"""What leaves the clients of a simulation is listed as at a site."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsa
from fedsa.callbacks import Callback
from fedsa.engines.listed import _norm
from fedsa.errors import RunFolderError
from fedsa.federation import Federation
from fedsa.runs.sent import sent_in_run
from fedsa.store.lines import LinesFile
from fedsa.types import Key, Side
from support.tiny_runs import TinyRun

pytestmark = pytest.mark.run


def test_every_message_is_listed_with_the_norms_of_what_was_sent(tiny_run: Callable[..., TinyRun]) -> None:
    run = tiny_run("keep_rounds=all")
    entries = list(sent_in_run(run.folder.path))
    assert [(entry["round"], entry["site"]) for entry in entries] == [
        (round, client) for round in (1, 2) for client in run.federation.clients
    ]
    for entry in entries:
        kept = run.folder.client_states.load_client(entry["site"], entry["round"])
        assert kept is not None
        named = {tensor["name"]: tensor for tensor in entry["tensors"]}
        assert named.keys() == {str(key) for key in kept.tensors if key.factor.side is Side.A}
        for name, tensor in named.items():
            value = kept.tensors[Key.parse(name)]
            assert (tensor["shape"], tensor["dtype"]) == (list(value.shape), "float32")
            assert tensor["norm"] == pytest.approx(float(value.norm()), rel=1e-5)
            assert tensor["client"] == entry["site"]
        assert entry["bytes"] == sum(tensor["bytes"] for tensor in entry["tensors"]) == run.summary["upload_bytes"]
        said = entry["about"]["updates"][entry["site"]]
        assert said["num_examples"] == len(run.federation.rows.partition.clients[entry["site"]].train)
        assert {"loss", "steps"} <= said["metrics"].keys()


def test_the_list_is_as_of_the_wire(tiny_run: Callable[..., TinyRun]) -> None:
    run = tiny_run("algorithm=fedit", "wire_dtype=bf16", "fraction_train=0.67")
    entries = list(sent_in_run(run.folder.path))
    assert len(entries) == 2 * 2
    for entry in entries:
        assert {tensor["dtype"] for tensor in entry["tensors"]} == {"bfloat16"}
        assert {tensor["name"].split(":")[-2] for tensor in entry["tensors"]} == {"A", "B", "head"}


def test_a_method_that_sends_nothing_sends_messages_without_tensors(tiny_run: Callable[..., TinyRun]) -> None:
    entries = list(sent_in_run(tiny_run("algorithm=local").folder.path))
    assert len(entries) == 6
    assert all(entry["tensors"] == [] and entry["bytes"] == 0 for entry in entries)


class _Stop(Callback):
    def on_client_trained(self, round: int, client: str, metrics: Any) -> None:
        if round == 2:
            raise KeyboardInterrupt


def test_what_a_round_that_failed_would_have_sent_is_not_listed(
    tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    federation, path = Federation.from_recipe(tiny_recipe()), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fedsa.run(federation, path, callbacks=[_Stop()])
    assert {entry["round"] for entry in sent_in_run(path)} == {1}
    with (path / "sent.jsonl").open("a") as file:  # an interruption between the list and the commit leaves more
        file.write(json.dumps({"round": 2}) + "\n")
    assert {entry["round"] for entry in sent_in_run(path)} == {1}
    fedsa.resume(federation, path)
    assert [entry["round"] for entry in sent_in_run(path)] == [1] * 3 + [2] * 3


def test_a_list_that_was_changed_is_named(tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "run"
    fedsa.run(Federation.from_recipe(tiny_recipe()), path)
    content = bytearray((path / "sent.jsonl").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "sent.jsonl").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"sent\.jsonl was changed"):
        list(sent_in_run(path))


def test_a_round_is_written_in_one_go(tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    written: list[int] = []

    class Counted(LinesFile):
        def append(self, lines: Any) -> int:
            lines = list(lines)
            written.append(len(lines))
            return super().append(lines)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsa.store.run_folder.LinesFile", Counted)
        fedsa.run(Federation.from_recipe(tiny_recipe("rounds=1")), tmp_path / "run")
    assert sorted(written) == [3, 3, 4], "metrics of rounds 0 and 1, and three messages with one line for their shapes"


def test_a_norm_that_is_not_finite_has_no_number() -> None:
    assert _norm(torch.tensor([float("nan"), 1.0])) is None
    assert _norm(torch.tensor([3.0, 4.0], dtype=torch.bfloat16)) == 5.0
