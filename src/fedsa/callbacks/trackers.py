"""Trackers: services and programs that keep the curves of many runs and show them beside each other.

Each gets the same values under the same names, a step for each round: ``train_loss/CLIENT``,
``validation_METRIC/CLIENT``, ``validation/weighted_mean``, ``validation/mean``, ``validation/worst``, ``bytes/upload``.
A new tracker is a class here, a line in `TRACKERS` and an extra in pyproject.toml.
"""

from __future__ import annotations

import os
import re
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, final

from fedsa.callbacks.base import Callback
from fedsa.errors import MissingExtraError
from fedsa.recipe import Recipe

__all__ = ["TRACKERS", "MLflow", "TensorBoard", "Tracker", "Trackio", "WandB"]

_PROJECT = "fedsa"
_SUMMARY = ("weighted_mean", "mean", "worst")


class Tracker(Callback):
    """A listener that hands each round's values to a library that keeps them.

    Raises:
        MissingExtraError: the library is not installed.
    """

    name: ClassVar[str]
    """What the recipe calls it."""
    module: ClassVar[str]
    """The library's module."""
    extra: ClassVar[str]
    """The extra of fedsa that installs it."""

    def __init__(self) -> None:
        self.require()
        self._is_open = False

    @classmethod
    def require(cls) -> None:
        """Refuse a tracker whose library is not installed.

        Raises:
            MissingExtraError: with the command that installs it.
        """
        if find_spec(cls.module) is None:
            raise MissingExtraError(f"tracker {cls.name!r}", cls.extra)

    @abstractmethod
    def open(self, run: Path, recipe: Recipe, finished_rounds: int) -> None:
        """Begin to keep values, or go on with those of the same run."""

    @abstractmethod
    def log(self, values: Mapping[str, float], round: int) -> None:
        """Keep the values of a round."""

    @abstractmethod
    def close(self) -> None:
        """Hand over what is not written yet."""

    def on_run_begin(self, run: Path, recipe: Recipe, clients: Sequence[str], finished_rounds: int) -> None:
        """Open the tracker, once: a run begins anew for its listeners when sites come or go."""
        if not self._is_open:
            self.open(run, recipe, finished_rounds)
            self._is_open = True

    def on_round_end(
        self, round: int, lines: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None
    ) -> None:
        """Hand over a round's values."""
        self.log(dict(_values(lines, validation)), round)

    def on_run_end(self, summary: Mapping[str, Any]) -> None:
        """Close the tracker."""
        self.close()
        self._is_open = False


def _values(lines: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None) -> Iterator[tuple[str, float]]:
    """Yield the names and values of a round."""
    for line in lines:
        if line["train"]:
            yield f"train_loss/{line['client']}", line["train"]["loss"]
        for name, value in line.get("validation", {}).items():
            if name not in ("after", "examples"):
                yield f"validation_{name}/{line['client']}", value
    for name in _SUMMARY if validation else ():
        yield f"validation/{name}", validation[name]  # type: ignore[index]  # it is not None here
    yield "bytes/upload", sum(line["upload_bytes"] for line in lines)


@final
class TensorBoard(Tracker):
    """Writes scalars into ``RUN/tensorboard``."""

    name, module, extra = "tensorboard", "tensorboard", "track"

    def open(self, run: Path, recipe: Recipe, finished_rounds: int) -> None:
        """Open the log; after a resume, hide the values of an interrupted round."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=finished_rounds + 1)

    def log(self, values: Mapping[str, float], round: int) -> None:
        """Write a round's scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, round)
        self._writer.flush()

    def close(self) -> None:
        """Close the log."""
        self._writer.close()


@final
class WandB(Tracker):
    """Hands values to Weights & Biases; with ``WANDB_MODE=offline`` they stay in ``RUN/wandb``."""

    name, module, extra = "wandb", "wandb", "wandb"

    def open(self, run: Path, recipe: Recipe, finished_rounds: int) -> None:
        """Begin a run of the folder's name, or go on with the one whose id is in ``RUN/wandb-id``."""
        import wandb

        kept = run / "wandb-id"
        if not kept.exists():
            kept.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=kept.read_text(encoding="utf-8"),
            name=run.name,
            dir=str(run),
            resume="allow",
            config=recipe.model_dump(mode="json"),
        )

    def log(self, values: Mapping[str, float], round: int) -> None:
        """Hand over a round's values."""
        self._run.log(dict(values), step=round)

    def close(self) -> None:
        """Wait until all is handed over."""
        self._run.finish()


@final
class Trackio(Tracker):
    """Hands values to Trackio, which keeps them in a database on this machine (``trackio show``)."""

    name, module, extra = "trackio", "trackio", "trackio"

    def open(self, run: Path, recipe: Recipe, finished_rounds: int) -> None:
        """Begin a run of the folder's name, or go on with it."""
        import trackio

        self._run = trackio.init(
            project=_PROJECT, name=run.name, config=recipe.model_dump(mode="json"), resume="allow", embed=False
        )

    def log(self, values: Mapping[str, float], round: int) -> None:
        """Hand over a round's values."""
        self._run.log(dict(values), step=round)

    def close(self) -> None:
        """Wait until all is written."""
        self._run.finish()


@final
class MLflow(Tracker):
    """Hands values to the MLflow server that ``MLFLOW_TRACKING_URI`` names; without it they go to ``RUN/mlruns``."""

    name, module, extra = "mlflow", "mlflow", "mlflow"

    def open(self, run: Path, recipe: Recipe, finished_rounds: int) -> None:
        """Begin a run of the folder's name."""
        from mlflow import MlflowClient

        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run.resolve() / "mlruns").as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(_PROJECT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(_PROJECT)
        self._run = self._client.create_run(number, run_name=run.name).info.run_id
        for name, _, value in recipe.entries():
            self._client.log_param(self._run, name, str(value)[:500])

    def log(self, values: Mapping[str, float], round: int) -> None:
        """Hand over a round's values; signs that MLflow takes in no name become ``_``."""
        for name, value in values.items():
            self._client.log_metric(self._run, re.sub(r"[^\w\-./ :]", "_", name), float(value), step=round)

    def close(self) -> None:
        """Say that the run is finished."""
        self._client.set_terminated(self._run)


TRACKERS: dict[str, type[Tracker]] = {each.name: each for each in (TensorBoard, Trackio, WandB, MLflow)}
"""Name to tracker."""
