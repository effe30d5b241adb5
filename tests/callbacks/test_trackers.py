"""Trackers with their real libraries, offline: each holds what the run says."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsa.api import run
from fedsa.callbacks import TRACKERS, check_callbacks
from fedsa.federation import Federation
from fedsa.recipe import Recipe

pytestmark = pytest.mark.run


@pytest.fixture
def tracked(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[[str], tuple[Path, dict[str, list[float]]]]:
    """Run the tiny recipe with a tracker; give the run folder, and the values of every round by their names."""

    def make(name: str) -> tuple[Path, dict[str, list[float]]]:
        result = run(Federation.from_recipe(tiny_recipe(f'report_to=["{name}"]')), tmp_path / "run")
        lines = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
        values: dict[str, list[float]] = {"bytes/upload": [0.0] * 3}
        for line in lines:
            values["bytes/upload"][line["round"]] += line["upload_bytes"]
            values.setdefault(f"validation_accuracy/{line['client']}", []).append(line["validation"]["accuracy"])
            if line["train"]:
                values.setdefault(f"train_loss/{line['client']}", []).append(line["train"]["loss"])
        return result.path, values

    return make


def test_mlflow(tracked: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs the extra: pip install 'fedsa[mlflow]'")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path, values = tracked("mlflow")
    client = MlflowClient(tracking_uri=(path / "mlruns").as_uri())
    (kept,) = client.search_runs([client.get_experiment_by_name("fedsa").experiment_id])
    assert kept.info.status == "FINISHED"
    assert kept.data.params["adapter.r"] == "2"
    for name, expected in values.items():
        assert [each.value for each in client.get_metric_history(kept.info.run_id, name)] == expected, name


def test_trackio(tracked: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="needs the extra: pip install 'fedsa[trackio]'")
    _, values = tracked("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    kept: dict[str, list[float]] = {}
    for entry in SQLiteStorage.get_logs("fedsa", "run"):
        for name, value in entry.items():
            kept.setdefault(name, []).append(value)
    for name, expected in values.items():
        assert kept[name] == expected, name


def wandb_records(file: Path) -> Iterator[bytes]:
    """Yield what an offline run of W&B holds: a log in the form of LevelDB, blocks of 32 KiB after 7 bytes."""
    data, place, begun = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:  # too little for another header
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        begun += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield begun
            begun = b""


def test_wandb(tracked: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra: pip install 'fedsa[wandb]'")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    path, values = tracked("wandb")
    (file,) = (path / "wandb").glob("offline-run-*/*.wandb")
    kept: dict[str, list[float]] = {}
    for data in wandb_records(file):
        record = Record()
        record.ParseFromString(data)
        for item in record.history.item:
            kept.setdefault(item.key or "/".join(item.nested_key), []).append(json.loads(item.value_json))
    assert {name: kept[name] for name in values} == values


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_names_the_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsa.callbacks.trackers.find_spec", lambda module: None)
    (mistake,) = check_callbacks({"report_to": [name]})
    assert mistake.where == "report_to"
    assert f"pip install 'fedsa[{TRACKERS[name].extra}]'" in mistake.what


def test_an_unknown_tracker_is_told_with_the_known_ones() -> None:
    (mistake,) = check_callbacks({"report_to": ["tensorbord"]})
    assert "did you mean 'tensorboard'" in mistake.what
