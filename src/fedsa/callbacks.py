"""Callbacks: listeners such as progress displays, TensorBoard or any other tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsa.errors import MissingExtraError, Mistake, UserError, near
from fedsa.plugins import load_class
from fedsa.recipe import Recipe

__all__ = ["CALLBACKS", "Callback", "TensorBoard", "check_callbacks", "make_callbacks"]


class Callback:
    """A listener. Override the methods you need; by default they do nothing. They must not change their arguments."""

    def on_run_begin(self, run: Path, recipe: Recipe, clients: Sequence[str], finished_rounds: int) -> None:
        """The run starts, or continues after ``finished_rounds``; also where clients have joined it or left it."""

    def on_round_begin(self, round: int, clients: Sequence[str]) -> None:
        """A round begins, in which ``clients`` train; round 0 is the evaluation before any training."""

    def on_client_trained(self, round: int, client: str, metrics: Mapping[str, float]) -> None:
        """A client has finished its local training (``loss``, ``steps``, ``seconds``)."""

    def on_client_evaluated(self, round: int, split: str, client: str, metrics: Mapping[str, float]) -> None:
        """A client was evaluated with its tensors of ``round``, on ``validation`` after it or ``test`` at the end.

        It may be called more than once for a round, if clients are evaluated at several moments.
        """

    def on_round_end(
        self, round: int, lines: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None
    ) -> None:
        """A round is safe on disk.

        Args:
            round: its number; 0 is the evaluation before any training.
            lines: the new lines of ``metrics.jsonl``: one for each client that trained or was evaluated.
            validation: mean figures over the clients that were evaluated; None if the round was not evaluated.
        """

    def on_run_end(self, summary: Mapping[str, Any]) -> None:
        """The run is complete; ``summary`` is what ``summary.json`` holds."""


class TensorBoard(Callback):
    """Writes losses, validation figures and bytes as TensorBoard scalars into ``RUN/tensorboard``.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise MissingExtraError("callback 'tensorboard'", "track") from None
        self._make = SummaryWriter
        self._writer: Any = None

    def on_run_begin(self, run: Path, recipe: Recipe, clients: Sequence[str], finished_rounds: int) -> None:
        """Open the log; after a resume, hide the values of an interrupted round."""
        if self._writer is not None:  # the clients of a run have changed
            self._writer.close()
        self._writer = self._make(str(run / "tensorboard"), purge_step=finished_rounds + 1)

    def on_round_end(
        self, round: int, lines: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None
    ) -> None:
        """Write a round's scalars."""
        for line in lines:
            if line["train"]:
                self._writer.add_scalar(f"train_loss/{line['client']}", line["train"]["loss"], round)
            for name, value in line.get("validation", {}).items():
                if name not in ("after", "examples"):
                    self._writer.add_scalar(f"validation_{name}/{line['client']}", value, round)
        for name in ("weighted_mean", "mean", "worst"):
            if validation:
                self._writer.add_scalar(f"validation/{name}", validation[name], round)
        self._writer.add_scalar("bytes/upload", sum(line["upload_bytes"] for line in lines), round)
        self._writer.flush()

    def on_run_end(self, summary: Mapping[str, Any]) -> None:
        """Close the log."""
        self._writer.close()


CALLBACKS: dict[str, type[Callback]] = {"tensorboard": TensorBoard}


def make_callbacks(names: Sequence[str]) -> list[Callback]:
    """The callbacks of a recipe.

    Args:
        names: names of `CALLBACKS`, or ``package.module:Class``.

    Raises:
        UserError: there is no callback of a name.
        MissingExtraError: a callback needs an extra that is not installed.
    """
    return [_find(name)() for name in names]


def check_callbacks(data: Mapping[str, Any]) -> list[Mistake]:
    """The mistakes in a recipe's raw data about its callbacks."""
    names = data.get("callbacks", [])
    mistakes = []
    for name in names if isinstance(names, list) else []:
        try:
            if isinstance(name, str):  # a wrong type is the recipe's own mistake to report
                _find(name)
        except UserError as error:
            mistakes.append(Mistake("callbacks", str(error)))
    return mistakes


def _find(name: str) -> type[Callback]:
    if ":" in name:
        return load_class("callback", name, Callback)
    if name not in CALLBACKS:
        raise UserError(f"unknown callback {name!r}; {near(name, CALLBACKS)}")
    if name == "tensorboard" and find_spec("tensorboard") is None:
        raise MissingExtraError("callback 'tensorboard'", "track")
    return CALLBACKS[name]
