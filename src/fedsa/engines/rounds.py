"""The rounds of a run: train, aggregate, evaluate, commit. It knows neither rows nor a model, nor where clients are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, final

from fedsa.agreement import Agreement
from fedsa.callbacks import Callback
from fedsa.engines.fleet import Fleet
from fedsa.recipe import BufferedSettings, EvaluationSettings
from fedsa.seeds import derive_seed
from fedsa.server import Server, ServerStore, sample_clients, save_state
from fedsa.statistics import Statistics, summarize_clients
from fedsa.store import Progress
from fedsa.types import Moment, Payloads, Results, RoundRecord, SplitName, Update

__all__ = ["RoundSettings", "RunStore", "run_rounds", "told"]


class RunStore(Protocol):
    """Where a run outlives its process, at the server. The run folder is one."""

    @property
    def server_states(self) -> ServerStore:
        """Where the server's states are kept."""
        ...

    def read_metrics(self) -> str:
        """Return the lines of the run's metrics, as far as its last finished round."""
        ...

    def append_metrics(self, lines: Sequence[Mapping[str, Any]]) -> int:
        """Append lines to the run's metrics, and return their length in bytes."""
        ...

    def commit(self, progress: Progress) -> None:
        """Make a round exist, once all that belongs to it is safe."""
        ...


@final
@dataclass(frozen=True)
class RoundSettings:
    """What a round loop must know of a recipe.

    Attributes:
        rounds: how many.
        seed: the run's.
        metric: the task's: rounds are chosen by it.
        evaluation: when, of whom, and after what.
        overlaps: the next round begins while clients still train.
    """

    rounds: int
    seed: int
    metric: str
    evaluation: EvaluationSettings
    overlaps: bool = False

    @classmethod
    def of(cls, agreement: Agreement) -> RoundSettings:
        """The settings that server and sites have agreed upon."""
        recipe = agreement.recipe
        overlaps = isinstance(recipe.overlap, BufferedSettings)
        return cls(recipe.rounds, recipe.seed, agreement.metric, recipe.evaluation, overlaps)

    @property
    def moments(self) -> tuple[Moment, ...]:
        """What clients are measured after; a round is chosen by the first."""
        after = self.evaluation.evaluate_after
        return ("aggregate", "training") if after == "both" else (after,)

    def named(self, name: str, moment: Moment) -> str:
        """Return the name of a result in ``metrics.jsonl`` and the summary: the plain one for the first moment only."""
        return name if moment == self.moments[0] else f"{name}_after_{moment}"

    def evaluates(self, round: int) -> bool:
        """Say whether clients are evaluated after a round."""
        return round % self.evaluation.evaluate_every == 0 or round == self.rounds


def run_rounds(
    server: Server,
    fleet: Fleet,
    store: RunStore,
    progress: Progress,
    settings: RoundSettings,
    callbacks: Sequence[Callback] = (),
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Run every round that is left. Round 0 trains nobody: it is the evaluation before any training.

    Args:
        server: with the state of the last finished round.
        fleet: the clients.
        store: keeps what each round comes to.
        progress: how far the run is; it is brought forward with every round.
        settings: of the rounds.
        callbacks: told of every update and every round.
        until: asked before each round whether to end here; the rounds before are safe.

    Raises:
        FedsaError: a round failed; the rounds before are safe.
    """
    known = _known(store, settings) if settings.overlaps else {}
    for round in range(progress.round + 1, settings.rounds + 1):
        if until():
            return
        started = time.perf_counter()
        payloads = server.begin_round(round, progress.underway) if round else None
        for callback in callbacks:
            callback.on_round_begin(round, tuple(payloads or ()))
        record = None if payloads is None else server.end_round(round, _updates(fleet, payloads, callbacks))
        if record:
            save_state(store.server_states, round, server.state, server.client_versions)
        trained = time.perf_counter()
        drawn = _drawn(server, round, settings) if settings.evaluates(round) else ()
        idle = [client for client in drawn if client not in progress.underway]
        results = _validate(server, fleet, round, idle, settings, callbacks) if drawn else {}
        newest = results.get(settings.moments[0], {})
        known = {**known, **newest} if settings.overlaps else newest
        scores = _choose(progress, round, {client: known[client] for client in drawn if client in known}, settings)
        progress.evaluation_seconds += time.perf_counter() - trained
        if record:
            _count(progress, record)
        lines = list(_lines(round, record, results, settings, progress.clock))
        progress.metrics_bytes = store.append_metrics(lines)
        progress.round = round
        progress.wall_seconds += time.perf_counter() - started
        store.commit(progress)
        for callback in callbacks:
            callback.on_round_end(round, lines, asdict(scores) if scores else None)


def _updates(fleet: Fleet, payloads: Payloads, callbacks: Sequence[Callback]) -> Iterator[Update]:
    """Yield the updates of a round, each when the server asks for it."""
    for update in fleet.train(payloads):
        for callback in callbacks:
            callback.on_client_trained(payloads.round, update.client, update.metrics)
        yield update


def _drawn(server: Server, round: int, settings: RoundSettings) -> tuple[str, ...]:
    """Return the clients that are drawn for the evaluation after a round."""
    seed = derive_seed(settings.seed, "evaluation", round)
    return sample_clients(server.clients, settings.evaluation.fraction_evaluate, seed)


def _known(store: RunStore, settings: RoundSettings) -> Results:
    """Return each client's newest metrics on validation: those of a client that still trains count until it is idle."""
    name = settings.named("validation", settings.moments[0])
    known: Results = {}
    for line in map(json.loads, store.read_metrics().splitlines()):
        if name in line:
            known[line["client"]] = {key: value for key, value in line[name].items() if key != "after"}
    return known


def _validate(
    server: Server,
    fleet: Fleet,
    round: int,
    clients: Sequence[str],
    settings: RoundSettings,
    callbacks: Sequence[Callback],
) -> dict[Moment, Results]:
    """Return clients' metrics on validation after a round."""
    payloads = server.payloads(clients, round + 1)
    return {
        moment: told(fleet.evaluate(payloads, "validation", moment), round, "validation", callbacks)
        for moment in settings.moments
    }


def told(
    measured: Iterable[tuple[str, dict[str, float]]], round: int, split: SplitName, callbacks: Sequence[Callback]
) -> Results:
    """Return clients' metrics by their ids; callbacks are told of each as it comes."""
    results: Results = {}
    for client, metrics in measured:
        results[client] = metrics
        for callback in callbacks:
            callback.on_client_evaluated(round, split, client, metrics)
    return results


def _choose(progress: Progress, round: int, results: Results, settings: RoundSettings) -> Statistics | None:
    """Keep a round as the chosen one if no earlier one was better; return its validation scores, if it has any."""
    if not results:
        return None
    scores = summarize_clients(results, settings.metric)
    if progress.chosen_score is None or scores.weighted_mean > progress.chosen_score:
        progress.chosen_round, progress.chosen_score = round, scores.weighted_mean
    return scores


def _count(progress: Progress, record: RoundRecord) -> None:
    """Add a round's seconds and bytes to those of the run."""
    progress.train_seconds += sum(metrics["seconds"] for metrics in record.train_metrics.values())
    progress.upload_bytes += sum(record.upload_bytes.values())
    progress.download_bytes += sum(record.download_bytes.values())


def _lines(
    round: int, record: RoundRecord | None, results: Mapping[Moment, Results], settings: RoundSettings, clock: float
) -> Iterator[dict[str, Any]]:
    """Yield a round's lines of ``metrics.jsonl``: one for every client that was to train, has come or was evaluated."""
    asked = {*record.clients, *record.train_metrics} if record else set()
    for client in sorted(asked.union(record.rejected if record else (), *results.values())):
        metrics = record.train_metrics.get(client) if record else None
        line: dict[str, Any] = {
            "round": round,
            "client": client,
            "train": None if metrics is None else dict(metrics),
            "upload_bytes": record.upload_bytes.get(client, 0) if record else 0,
            "download_bytes": record.download_bytes.get(client, 0) if record else 0,
        }
        if metrics is None and client in asked and not settings.overlaps:
            line["lost"] = True  # it was asked, and no update of it counts
        if record and client in record.rejected:
            line["rejected"] = record.rejected[client]
        if record and client in record.verdicts:
            line["poison"] = {**record.verdicts[client], "left_out": client in record.rejected}
        if settings.overlaps:
            line |= {"staleness": record.staleness.get(client) if record else None, "clock": clock}
            line["asked"] = record is not None and client in record.clients  # its update may come in another round
        for moment, by_client in results.items():
            if client in by_client:
                line[settings.named("validation", moment)] = {"after": moment, **by_client[client]}
        yield line
