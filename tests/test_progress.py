"""The bar of a run: what it names while it goes, and that it fits a narrow terminal."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedsa import progress
from fedsa.progress import LiveLines, ProgressDisplay
from fedsa.recipe import Recipe

pytestmark = pytest.mark.run

SCREEN = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def on_screen(written: io.StringIO) -> list[str]:
    """Return every line that was on the screen, at whatever time."""
    return [line.rstrip() for line in SCREEN.sub("", written.getvalue()).replace("\r", "\n").splitlines()]


class FrameByFrame(LiveLines):
    """A bar that is drawn when a test says so, a second later each time."""

    def __init__(self, *columns: Any, **options: Any) -> None:
        self.seconds = 0.0
        super().__init__(*columns, **options, auto_refresh=False, get_time=lambda: self.seconds)

    def draw(self) -> None:
        self.seconds += 1
        self.refresh()


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[FrameByFrame]:
    """The bars that are shown."""
    shown: list[FrameByFrame] = []

    def made(*columns: Any, **options: Any) -> FrameByFrame:
        shown.append(FrameByFrame(*columns, **options))
        return shown[-1]

    monkeypatch.setattr(progress, "LiveLines", made)
    return shown


@pytest.mark.parametrize("width", [60, 100])
def test_the_bar_names_the_round_that_trains_and_what_is_done(
    tiny_recipe: Callable[..., Recipe], bars: list[FrameByFrame], tmp_path: Path, width: int
) -> None:
    clients = ["a", "b"]
    about = {c: {"train_examples": 30, "validation_examples": 8, "test_examples": 10} for c in clients}
    (tmp_path / "clients.json").write_text(json.dumps(about))
    written = io.StringIO()
    display = ProgressDisplay(Console(file=written, force_terminal=True, width=width, _environ={}))
    validation = {"weighted_mean": 0.5, "worst": 0.25, "worst_client": "a"}
    display.on_run_begin(tmp_path, tiny_recipe("rounds=2"), clients, 0)
    (bar,) = bars
    for round in range(3):
        trained = clients if round else []
        display.on_round_begin(round, trained)
        bar.draw()
        for client in trained:
            display.on_client_trained(round, client, {"loss": 0.25, "steps": 3, "seconds": 1.5})
        bar.draw()
        for client in clients:
            display.on_client_evaluated(round, "validation", client, {"accuracy": 0.5})
        display.on_round_end(round, [], validation)
    bar.draw()
    for place, client in enumerate(clients * 2):  # before training, and after the last round, which was chosen
        display.on_client_evaluated(2 * (place > 1), "test", client, {})
    bar.draw()
    display.close()
    lines = on_screen(written)
    drawn = [line for line in lines if "left " in line]
    said = list(dict.fromkeys(re.split(" [━╸╺]", line)[0].rstrip() for line in drawn))
    for words in (
        "before training  evaluating 0/2",
        "round 1/2  training 0/2",
        "round 1/2  evaluating 0/2",
        "round 2/2  training 0/2",
        "round 2/2  evaluating 0/2",
        "round 2/2  testing 0/6",
        "round 2/2  testing 4/4",
    ):
        assert words in said
    assert said.index("round 1/2  evaluating 0/2") < said.index("round 2/2  training 0/2")
    assert any("left -:--:--" in line for line in drawn)
    assert all("left 0:00:0" in line for line in drawn if "round 2/2" in line)
    assert max(map(len, lines)) <= width
    live = [line for line in lines if re.fullmatch(r"b  .*rows/s", line)]
    assert any(re.fullmatch(r"b  train loss 0\.250, 3 steps in 1\.5 s, [\d,.]+ rows/s", line) for line in live)


def test_without_a_terminal_there_are_only_lines(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "clients.json").write_text(
        json.dumps({"a": {"train_examples": 30, "validation_examples": 8, "test_examples": 10}})
    )
    written = io.StringIO()
    display = ProgressDisplay(Console(file=written, width=200, _environ={}))
    display.on_run_begin(tmp_path, tiny_recipe("rounds=1"), ["a"], 0)
    display.on_round_begin(1, ["a"])
    display.on_client_trained(1, "a", {"loss": 1.0})
    display.on_round_end(1, [{"train": {"loss": 1.0}}], None)
    display.close()
    first, second = written.getvalue().splitlines()
    assert first.startswith("fedsa on lora, 1 client, 1 round, cpu (fp32, 1 thread)")
    assert re.fullmatch(r"round 1  train loss 1\.000  \d+\.\d s, [\d,.]+ rows/s", second)
