"""Run, resume and report: what the command line and Python users both call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from rich.console import Console

from fedsa.callbacks import Callback, make_callbacks
from fedsa.engines.beginning import check_unchanged
from fedsa.engines.simulator import simulate
from fedsa.federation import Federation
from fedsa.progress import ProgressDisplay, print_notes
from fedsa.recipe import dump_recipe
from fedsa.runs.export import export
from fedsa.runs.predict import Predictor
from fedsa.store import RunFolder, recipe_of

__all__ = ["RunResult", "finish", "resume", "run"]


@final
@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        path: the run folder.
        summary: what ``summary.json`` holds.
        report: ``report.html``.

    It keeps the federation's model and tokenizer alive, for `export`.
    """

    path: Path
    summary: dict[str, Any]
    report: Path
    _federation: Federation = field(repr=False, compare=False)

    def export(
        self,
        to: str | Path,
        *,
        client: str | None = None,
        round: str = "chosen",
        merge: bool = False,
        with_base: bool = True,
    ) -> list[Path]:
        """Write one client's adapter, or every client's, as folders that PEFT loads; see `fedsa.runs.export`.

        Base model and tokenizer are those of the federation. The adapter in the federation's model ends with a
        client's tensors; a merge works on a copy of the model. Where the run computed in bf16, so that the federation's
        frozen weights are bf16, a merge loads the base again in fp32 by its name. A model that was loaded in Python has
        none: its weights are merged as the bf16 rounding left them (give `fedsa.runs.export` the base as it was).

        Args:
            to: one client's files go right here; every client's into one sub-folder each.
            client: its id; None: all.
            round: ``chosen`` or ``final``.
            merge: write the whole model with the adapter's update added to its weights.
            with_base: write a copy of the base model where transformers needs one to load the adapters with their
                classes.

        Returns:
            The folders, in the order of the clients.

        Raises:
            UserError: no such client or round, or the target is not empty.
        """
        return export(
            self.path,
            Path(to),
            clients=None if client is None else [client],
            round=round,
            merge=merge,
            base=self._federation.model,
            tokenizer=self._federation.tokenizer,
            with_base=with_base,
        )

    def predictor(self, *, round: str = "chosen") -> Predictor:
        """Return what says of new rows what clients' adapters make of them, with the federation's model and tokenizer.

        The adapter in the federation's model ends with a client's tensors.

        Args:
            round: ``chosen`` or ``final``.
        """
        return Predictor.open(self.path, round=round, base=self._federation.model, tokenizer=self._federation.tokenizer)


def run(
    federation: Federation, out: str | Path, *, callbacks: Sequence[Callback] = (), progress: bool | None = None
) -> RunResult:
    """Train a federation, write everything into a new run folder, and return the result.

    Args:
        federation: from a recipe or from objects.
        out: the run folder; it must not hold a run yet.
        callbacks: listeners, beside those that the recipe names.
        progress: show a line for each round, and a bar in a terminal, on standard error; None: if that is a terminal
            or a notebook.

    Raises:
        RunFolderError: the folder holds a run already.
        FedsaError: as `fedsa.engines.simulator.simulate` says.
    """
    with (
        RunFolder.create(Path(out), dump_recipe(federation.recipe)).locked() as folder,
        _displays(federation, progress) as displays,
    ):
        return finish(federation, folder, [*displays, *callbacks])


def resume(
    federation: Federation, out: str | Path, *, callbacks: Sequence[Callback] = (), progress: bool | None = None
) -> RunResult:
    """Continue an interrupted run of a federation that was made of Python objects.

    What was left open and chosen by measuring when the run began stays as it was chosen then, if this machine has it.

    Args:
        federation: made of the same objects and settings as the interrupted one; a machine's own settings (``compute``,
            ``training.trainer``, where model and rows lie) may be others, and then the tensors agree within rounding.
            Its model may get another attention kernel: the run's.
        out: its run folder.
        callbacks: listeners, beside those that the recipe names.
        progress: as for `run`.

    Raises:
        RunFolderError: no such run, it is damaged or in use, or the federation is another one.
    """
    with RunFolder.open(Path(out), write=True).locked() as folder:
        progress_so_far = folder.progress()
        if progress_so_far is not None:
            federation = federation.measured_as_in(recipe_of(folder))
            if folder.is_measured:  # a complete run is not simulated, which would check it
                check_unchanged(federation, folder, progress_so_far)
        with _displays(federation, progress) as displays:
            return finish(federation, folder, [*displays, *callbacks])


@contextmanager
def _displays(federation: Federation, progress: bool | None) -> Iterator[list[Callback]]:
    """Give the display of a run, as the command line has it; none where it is not wanted."""
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    if progress is None:
        progress = console.is_terminal or console.is_jupyter
    if not progress:
        yield []
        return
    print_notes(federation.notes, console)
    display = ProgressDisplay(console)
    try:
        yield [display]
    finally:
        display.close()


def finish(federation: Federation, folder: RunFolder, callbacks: Sequence[Callback]) -> RunResult:
    """Run a federation in a folder that is open for writing, from wherever the folder is; then write the report.

    A run that is complete is not measured again, only its report is written anew.
    """
    summary = folder.finished(federation.recipe.rounds)
    if summary is None:
        listeners = [*callbacks, *make_callbacks([*federation.recipe.callbacks, *federation.recipe.report_to])]
        summary = simulate(federation, folder, listeners)
    from fedsa.runs.report import write_report  # it loads matplotlib: not while clients train, it would add to the peak

    return RunResult(folder.path, summary, write_report(folder.path), federation)
