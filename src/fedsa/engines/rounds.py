"""The rounds of a run: train, aggregate, evaluate, commit. It knows neither rows nor a model, nor where clients are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, final

from fedsa.agreement import Agreement
from fedsa.callbacks import Callback
from fedsa.engines.fleet import Fleet
from fedsa.recipe import EvaluationSettings
from fedsa.seeds import derive_seed
from fedsa.server import Server, ServerStore, sample_clients, save_state
from fedsa.statistics import Statistics, summarize_clients
from fedsa.store import Progress
from fedsa.types import Moment, Results, RoundRecord, SplitName, Update

__all__ = ["RoundSettings", "RunStore", "run_rounds", "told"]


class RunStore(Protocol):
    """Where a run outlives its process, at the server. The run folder is one."""

    @property
    def server_states(self) -> ServerStore:
        """Where the server's states are kept."""
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
    """

    rounds: int
    seed: int
    metric: str
    evaluation: EvaluationSettings

    @classmethod
    def of(cls, agreement: Agreement) -> RoundSettings:
        """The settings that server and sites have agreed upon."""
        recipe = agreement.recipe
        return cls(recipe.rounds, recipe.seed, agreement.metric, recipe.evaluation)

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
    for round in range(progress.round + 1, settings.rounds + 1):
        if until():
            return
        started = time.perf_counter()
        for callback in callbacks:
            callback.on_round_begin(round, server.sample(round) if round else ())
        record = server.end_round(round, _updates(server, fleet, round, callbacks)) if round else None
        if record:
            save_state(store.server_states, round, server.state, server.client_versions)
        trained = time.perf_counter()
        results = _validate(server, fleet, round, settings, callbacks) if settings.evaluates(round) else {}
        scores = _choose(progress, round, results, settings)
        progress.evaluation_seconds += time.perf_counter() - trained
        if record:
            _count(progress, record)
        lines = list(_lines(round, record, results, settings))
        progress.metrics_bytes = store.append_metrics(lines)
        progress.round = round
        progress.wall_seconds += time.perf_counter() - started
        store.commit(progress)
        for callback in callbacks:
            callback.on_round_end(round, lines, asdict(scores) if scores else None)


def _updates(server: Server, fleet: Fleet, round: int, callbacks: Sequence[Callback]) -> Iterator[Update]:
    """Yield the updates of a round, each when the server asks for it."""
    for update in fleet.train(server.begin_round(round)):
        for callback in callbacks:
            callback.on_client_trained(round, update.client, update.metrics)
        yield update


def _validate(
    server: Server, fleet: Fleet, round: int, settings: RoundSettings, callbacks: Sequence[Callback]
) -> dict[Moment, Results]:
    """Return the metrics on validation, after a round, of the clients that are drawn for it."""
    seed = derive_seed(settings.seed, "evaluation", round)
    clients = sample_clients(server.clients, settings.evaluation.fraction_evaluate, seed)
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


def _choose(
    progress: Progress, round: int, results: Mapping[Moment, Results], settings: RoundSettings
) -> Statistics | None:
    """Keep a round as the chosen one if no earlier one was better; return its validation scores, if it has any."""
    if not results:
        return None
    scores = summarize_clients(results[settings.moments[0]], settings.metric)
    if progress.chosen_score is None or scores.weighted_mean > progress.chosen_score:
        progress.chosen_round, progress.chosen_score = round, scores.weighted_mean
    return scores


def _count(progress: Progress, record: RoundRecord) -> None:
    """Add a round's seconds and bytes to those of the run."""
    progress.train_seconds += sum(metrics["seconds"] for metrics in record.train_metrics.values())
    progress.upload_bytes += sum(record.upload_bytes.values())
    progress.download_bytes += sum(record.download_bytes.values())


def _lines(
    round: int, record: RoundRecord | None, results: Mapping[Moment, Results], settings: RoundSettings
) -> Iterator[dict[str, Any]]:
    """Yield a round's lines of ``metrics.jsonl``: one for every client that was to train or was evaluated."""
    asked = set(record.clients) if record else set()
    for client in sorted(asked.union(*results.values())):
        metrics = record.train_metrics.get(client) if record else None
        line: dict[str, Any] = {
            "round": round,
            "client": client,
            "train": None if metrics is None else dict(metrics),
            "upload_bytes": record.upload_bytes.get(client, 0) if record else 0,
            "download_bytes": record.download_bytes.get(client, 0) if record else 0,
        }
        for moment, by_client in results.items():
            if client in by_client:
                line[settings.named("validation", moment)] = {"after": moment, **by_client[client]}
        yield line
