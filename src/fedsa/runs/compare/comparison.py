"""What groups of runs come to beside each other, and what of it can honestly be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from fedsa.errors import RunFolderError, UserError
from fedsa.recipe import agreed_settings
from fedsa.runs.compare.groups import ComparedRun, Group, grouped
from fedsa.statistics import Difference, paired_difference
from fedsa.store import FinishedRun
from fedsa.texts.words import counted
from fedsa.types import SPLITS

__all__ = ["Beside", "ClientPair", "Comparison", "compare"]

_FEW = 8
"""Units (seeds, or clients of one seed) below which a bootstrap interval is rough."""


@dataclass(frozen=True)
class ClientPair:
    """One client in a group and in the reference.

    Attributes:
        client: its id.
        rows: its test rows, of all seeds together.
        own: its value of the metric, mean over seeds.
        against: the same in the reference.
        seeds: how many.
    """

    client: str
    rows: int
    own: float
    against: float
    seeds: int

    @property
    def difference(self) -> float:
        """By how much it is above the reference."""
        return self.own - self.against


@dataclass
class Beside:
    """A group beside the reference.

    Attributes:
        group: the group.
        difference: mean over clients and seeds, with its interval; None: nothing can be paired.
        clients: those that are paired, by id.
        reasons: whole sentences: what is not compared, and why.
    """

    group: Group
    difference: Difference | None = None
    clients: list[ClientPair] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How many of the paired clients are better, worse and the same as in the reference."""
        found = [pair.difference for pair in self.clients]
        return {
            "better": sum(value > 0 for value in found),
            "worse": sum(value < 0 for value in found),
            "same": sum(value == 0 for value in found),
        }


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        metric: the reference's; groups with another one are not compared.
        which: the name in summaries of the results that are compared: ``test``, or ``test_after_aggregate``.
        moment: what these were measured after: ``aggregate`` or ``training``.
        groups: in the order that they were given in.
        reference: what the others are compared with.
        beside: the others.
        notes: whole sentences on all of it.
    """

    metric: str
    which: Mapping[Path, str]
    moment: str
    groups: tuple[Group, ...]
    reference: Group
    beside: tuple[Beside, ...]
    notes: tuple[str, ...]

    def results(self, run: ComparedRun) -> dict[str, float]:
        """Each client's result on test that is compared."""
        return run.results(self.which[run.path])

    def figures(self, run: ComparedRun) -> Mapping[str, Any]:
        """The statistics over clients of the results that are compared.

        Raises:
            RunFolderError: there are none.
        """
        figures: Mapping[str, Any] = run.summary[self.which[run.path]]
        if not figures:
            raise RunFolderError(f"{run.path}: its summary.json has no figures under {self.which[run.path]!r}")
        return figures


def compare(paths: Sequence[Path], against: Path | None = None) -> Comparison:
    """Put finished runs beside each other.

    Runs whose recipes differ only in the seed are one group. Each other group is compared with the reference client by
    client, on test rows that are the same in both; what cannot be paired is named.

    Args:
        paths: run folders.
        against: the run whose group the others are compared with; None: the first one's.

    Raises:
        RunFolderError: one is no finished run, or damaged.
        UserError: there are less than two runs, one is given twice, or ``against`` is none of them.
    """
    paths = [*paths, *([against] if against is not None and _place(against) not in map(_place, paths) else [])]
    places = [_place(path) for path in paths]
    twice = next((path for path, place in zip(paths, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice: give every run once")
    if len(paths) < 2:
        raise UserError("one run alone cannot be compared: give two run folders, or more")
    runs = [ComparedRun(path, FinishedRun.open(path)) for path in paths]
    groups = grouped(runs)
    first = _place(against) if against is not None else places[0]
    reference = next(group for group in groups if first in [_place(run.path) for run in group.runs])
    metric, notes = reference.runs[0].metric, []
    moments = {str(run.summary.get("evaluated_after", "aggregate")) for run in runs}
    if len(moments) > 1:
        which = {run.path: _after_aggregate(run) for run in runs}
        notes.append(
            "The runs measured their clients at different moments. What is compared here was measured after clients "
            "received the aggregate: that is what an export has."
        )
    else:
        which = {run.path: "test" for run in runs}
    moment = "aggregate" if len(moments) > 1 else moments.pop()
    beside = tuple(_beside(group, reference, which) for group in groups if group is not reference)
    few = [each for each in beside if each.difference is not None and _units(each.difference) < _FEW]
    if few:
        smallest = min(_units(each.difference) for each in few if each.difference is not None)
        what = "seed" if any(each.difference is not None and each.difference.seeds > 1 for each in few) else "client"
        notes.append(f"An interval rests on {counted(smallest, what)} only, so it is rough.")
    if any(each.difference is not None and each.difference.seeds == 1 for each in beside):
        notes.append(
            "With one seed an interval is over clients alone: it says nothing of how the difference would vary with "
            "another seed."
        )
    return Comparison(metric, which, moment, tuple(groups), reference, beside, tuple(notes))


def _place(path: Path) -> Path:
    return path.resolve()


def _units(difference: Difference) -> int:
    """What is drawn again by the bootstrap: seeds, or the clients of one seed."""
    return difference.seeds if difference.seeds > 1 else difference.pairs


def _after_aggregate(run: ComparedRun) -> str:
    name = "test" if run.summary.get("evaluated_after", "aggregate") == "aggregate" else "test_after_aggregate"
    if name not in run.summary:
        raise RunFolderError(
            f"{run.path} has no figures after the aggregate, and another run has no others: compare runs with the same "
            "evaluation.evaluate_after"
        )
    return name


def _beside(group: Group, reference: Group, which: Mapping[Path, str]) -> Beside:
    """Pair a group's runs with the reference's, seed by seed and client by client."""
    beside = Beside(group)
    metrics = {run.metric for run in (*group.runs, *reference.runs)}
    if len(metrics) > 1:
        own, other = group.runs[0].metric, reference.runs[0].metric
        beside.reasons.append(f"Not compared: its metric is {own}, and that of {reference.name} is {other}.")
        return beside
    own_values: dict[int, dict[str, float]] = {}
    other_values: dict[int, dict[str, float]] = {}
    rows: dict[int, dict[str, int]] = {}
    for own_run, other_run in _pairs(group, reference, beside.reasons):
        shared, reasons = _same_rows(own_run, other_run)
        beside.reasons += [reason for reason in reasons if reason not in beside.reasons]
        own_all, other_all = own_run.results(which[own_run.path]), other_run.results(which[other_run.path])
        kept = [client for client in shared if client in own_all and client in other_all]
        if kept:
            own_values[own_run.seed] = {client: own_all[client] for client in kept}
            other_values[own_run.seed] = {client: other_all[client] for client in kept}
            entries = own_run.summary["per_client"]
            rows[own_run.seed] = {client: int(entries[client].get("test_examples", 0)) for client in kept}
    beside.difference = paired_difference(own_values, other_values)
    for client in sorted({client for values in own_values.values() for client in values}):
        seeds = [seed for seed, values in own_values.items() if client in values]
        beside.clients.append(
            ClientPair(
                client,
                sum(rows[seed][client] for seed in seeds),
                mean(own_values[seed][client] for seed in seeds),
                mean(other_values[seed][client] for seed in seeds),
                len(seeds),
            )
        )
    return beside


def _pairs(group: Group, reference: Group, reasons: list[str]) -> list[tuple[ComparedRun, ComparedRun]]:
    """Return runs of the same seed; of two single runs, those, if their test rows turn out to be the same."""
    others = {run.seed: run for run in reference.runs}
    pairs = [(run, others[run.seed]) for run in group.runs if run.seed in others]
    alone = [str(run.seed) for run in group.runs if run.seed not in others]
    alone += [str(seed) for seed in others if seed not in group.seeds]
    if not pairs and len(group.runs) == len(reference.runs) == 1:
        reasons.append(
            f"The seeds are not the same ({group.seeds[0]}, and {reference.seeds[0]} in {reference.name}), so a "
            "difference may come from the seed alone."
        )
        return [(group.runs[0], reference.runs[0])]
    if alone:
        reasons.append(f"Not paired, since only one of the two has it: seed {', '.join(sorted(alone))}.")
    return pairs


def _same_rows(run: ComparedRun, other: ComparedRun) -> tuple[list[str], list[str]]:
    """The clients whose test rows are the same in two runs, and sentences on the others."""
    here, there = (set(each.summary["per_client"]) for each in (run, other))
    both, reasons = sorted(here & there), []
    for lacking, having, name in ((there - here, other, run), (here - there, run, other)):
        if lacking:
            reasons.append(
                f"{counted(len(lacking), 'client')} of {having.path.name} not in {name.path.name}: "
                f"{_listed(sorted(lacking))}."
            )
    if not both:
        return [], [*reasons, "Not compared: there is no client in both."]
    if run.rows and run.rows == other.rows:
        return both, reasons
    if run.partition is None or other.partition is None:
        return _alike_by_numbers(run, other, both, reasons)
    if _source(run) != _source(other):
        return [], [
            *reasons,
            f"Not compared: the rows are of {_source(run)[0]}, and those of {other.path.name} of {_source(other)[0]}.",
        ]
    same = [client for client in both if run.partition[client]["test"] == other.partition[client]["test"]]
    if run.partition == other.partition and _reads(run) == _reads(other):
        return [], [*reasons, "Not compared: the same clients have other rows, so the data were changed in between."]
    changed = sorted(set(both) - set(same))
    if changed:
        reasons.append(
            f"{counted(len(changed), 'client')} not compared, whose test rows are others: {_listed(changed)}."
        )
    return same, reasons


def _alike_by_numbers(
    run: ComparedRun, other: ComparedRun, both: Sequence[str], reasons: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The same where one of the runs is a server's, which sees no rows: by how many there are and how they are cut."""
    if run.seed != other.seed or _cut(run) != _cut(other):
        return [], [*reasons, "Not compared: the clients' rows are at their sites, and they are cut in another way."]
    splits = [f"{split}_examples" for split in SPLITS]
    entries, others = run.finished.clients, other.finished.clients
    same = [client for client in both if all(entries[client].get(s) == others[client].get(s) for s in splits)]
    told, unlike = [*reasons], sorted({*both} - {*same})
    if unlike:
        told.append(f"{counted(len(unlike), 'client')} not compared, with other numbers of rows: {_listed(unlike)}.")
    if same:
        told.append(
            "Rows are at their sites and cannot be looked at here: a client's are taken to be the same, since it has "
            "as many of them, and they are cut alike."
        )
    return same, told


def _cut(run: ComparedRun) -> Any:
    """How a client's rows are cut into train, validation and test."""
    return agreed_settings(run.finished.recipe).get("data")


def _source(run: ComparedRun) -> tuple[Any, ...]:
    """Where rows come from: equal for runs whose row numbers mean the same rows."""
    data = run.finished.recipe.data
    source = data.model_dump(exclude={"partition", "path"})
    return (data.path, sorted(source.items(), key=str), run.finished.recipe.task.columns)


def _reads(run: ComparedRun) -> Any:
    """What the fingerprint of the rows depends on, beside the rows: the tokenizer and how texts are cut."""
    return (run.finished.recipe.model.path, run.finished.recipe.model.revision, run.finished.recipe.task)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
