"""The callback door, and TensorBoard behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsa.api import run
from fedsa.callbacks import Callback, Tracker, make_callbacks
from fedsa.errors import UserError
from fedsa.federation import Federation
from fedsa.recipe import Recipe

pytestmark = pytest.mark.run


class Recorder(Callback):
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def on_run_begin(self, run: Path, recipe: Recipe, clients: Any, finished_rounds: int) -> None:
        self.events.append(("begin", len(clients), finished_rounds))

    def on_client_trained(self, round: int, client: str, metrics: Any) -> None:
        self.events.append(("trained", round, client))

    def on_round_end(self, round: int, lines: Any, validation: Any) -> None:
        self.events.append(("round", round, len(lines), validation is not None))

    def on_run_end(self, summary: Any) -> None:
        self.events.append(("end", summary["rounds"]))


def test_every_step_is_told_in_order(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recorder = Recorder()
    recipe = tiny_recipe("rounds=1", "evaluation.evaluate_every=1")
    run(Federation.from_recipe(recipe), tmp_path / "run", callbacks=[recorder])
    assert recorder.events == [
        ("begin", 3, 0),
        ("round", 0, 3, True),
        ("trained", 1, "site 0"),
        ("trained", 1, "site 1"),
        ("trained", 1, "site 2"),
        ("round", 1, 3, True),
        ("end", 1),
    ]


def test_tensorboard_holds_losses_and_validation(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(Federation.from_recipe(tiny_recipe('report_to=["tensorboard"]')), tmp_path / "run")
    events = EventAccumulator(str(result.path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train_loss/site 0", "validation_accuracy/site 2", "validation/worst", "bytes/upload"} <= {
        tag.replace("_0", " 0") for tag in tags
    } | tags
    assert [event.step for event in events.Scalars("bytes/upload")] == [0, 1, 2]


def test_callback_by_import_path_and_mistakes() -> None:
    (made,) = make_callbacks([f"{__name__}:Recorder"])
    assert isinstance(made, Recorder)
    for name, text in {
        "tensorbord": "did you mean 'tensorboard'",
        "no.such.module:Thing": "cannot be imported",
        "pathlib:Path": "is no callback",
    }.items():
        with pytest.raises(UserError, match=text):
            make_callbacks([name])


def test_a_tracker_is_opened_once_though_a_run_begins_anew_when_sites_come(tmp_path: Path) -> None:
    class Counting(Tracker):
        name, module, extra = "counting", "json", "none"

        def __init__(self) -> None:
            super().__init__()
            self.events: list[str] = []

        def open(self, run: Path, recipe: Any, finished_rounds: int) -> None:
            self.events.append("open")

        def log(self, values: Any, round: int) -> None:
            self.events.append(f"round {round}")

        def close(self) -> None:
            self.events.append("close")

    tracker = Counting()
    for finished in (0, 1):
        tracker.on_run_begin(tmp_path, None, (), finished)  # type: ignore[arg-type]
        tracker.on_round_end(finished + 1, [], None)
    tracker.on_run_end({})
    assert tracker.events == ["open", "round 1", "round 2", "close"]
