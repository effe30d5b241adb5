"""Changes to run folders that fedsa does not notice, for tests of what comes after: hashes are made right again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsa.store import Progress, RunFolder


def resealed(run: Path, change: Callable[[RunFolder, Progress], Any]) -> None:
    """Change something in a run folder, and commit it as fedsa would; the summary stays if it is there.

    Args:
        run: the folder.
        change: given the folder, open for writing, and its progress; it may change both.
    """
    with RunFolder.open(run, write=True).locked() as folder:
        progress = folder.progress()
        assert progress is not None
        change(folder, progress)
        folder._commit(progress)


def rewrite_recipe(run: Path, old: str, new: str) -> None:
    """Replace a part of a run's recipe."""

    def change(folder: RunFolder, progress: Progress) -> None:
        text = folder.recipe_text()
        assert old in text
        folder.write_recipe(text.replace(old, new))

    resealed(run, change)


def unfinish(run: Path) -> None:
    """Take a finished two-round run back to the end of round 1, as if it had been interrupted there."""

    def change(folder: RunFolder, progress: Progress) -> None:
        assert progress.chosen_round == 1  # so its files are kept
        lines = [line for line in folder.read_metrics().splitlines(keepends=True) if json.loads(line)["round"] <= 1]
        progress.round, progress.metrics_bytes = 1, len("".join(lines).encode())
        (run / "summary.json").unlink()
        folder.roll_back(progress)
        folder._files.pop("summary.json")

    resealed(run, change)
