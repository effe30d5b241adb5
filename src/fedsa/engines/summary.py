"""A run's results: the tests of the chosen and the final round, and ``summary.json``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.callbacks import Callback
from fedsa.engines.fleet import Fleet
from fedsa.engines.rounds import RoundSettings, told
from fedsa.engines.spent import privacy_of
from fedsa.recipe import Recipe
from fedsa.server import Server, first_round, load_state, own_shares
from fedsa.statistics import summarize_clients
from fedsa.steps import make_chain
from fedsa.store import Progress, RunFolder, numbers_of
from fedsa.system.process import peak_rss_bytes
from fedsa.types import Moment, Results, State

__all__ = ["Test", "Tests", "is_test", "measure", "scores_of", "summary_of", "trained_until"]


class Test(NamedTuple):
    """Clients' test metrics as of one round.

    Attributes:
        moment: what they were measured after.
        round: the round.
        results: client id to its metrics.
    """

    moment: Moment
    round: int
    results: Results


class Tests(NamedTuple):
    """All test results of a run.

    Attributes:
        before: before any training.
        by_name: those of the chosen and the final round, by their names in the summary.
    """

    before: Results
    by_name: Mapping[str, Test]


def measure(
    server: Server,
    fleet: Fleet,
    folder: RunFolder,
    progress: Progress,
    settings: RoundSettings,
    initial: ServerState,
    callbacks: Sequence[Callback] = (),
) -> Tests:
    """Measure every client on its test rows: before any training, and after the chosen and the final round.

    Results after the aggregate are always among them, because these tensors are exported.

    Args:
        server: of the run.
        fleet: the clients.
        folder: has the server's states.
        progress: tells the chosen round.
        settings: of the rounds.
        initial: the server's state before the first round.
        callbacks: told of every client that is measured.
    """

    def results(moment: Moment, round: int) -> Results:
        state = load_state(folder.server_states, round) if round else initial
        payloads = server.payloads(server.clients, round + 1, state, folder.server_states.client_versions(round))
        return told(fleet.evaluate(payloads, "test", moment), round, "test", callbacks)

    moments = settings.moments if "aggregate" in settings.moments else (*settings.moments, "aggregate")
    rounds = {"test": progress.chosen_round or 0, "test_final": settings.rounds}
    before = results("training", 0)
    measured = {(moment, round): results(moment, round) for moment in moments for round in sorted(set(rounds.values()))}
    return Tests(
        before,
        {
            settings.named(name, moment): Test(moment, round, measured[moment, round])
            for moment in moments
            for name, round in rounds.items()
        },
    )


_UNTIL_CHOSEN, _UNTIL_END = "rounds_trained_until_chosen", "rounds_trained"


def trained_until(round: int, chosen: int) -> str:
    """The name in a client's entry of the number of rounds that it had trained in by the round of a test.

    Args:
        round: of the test: the chosen or the final one.
        chosen: the chosen one.
    """
    return _UNTIL_CHOSEN if round == chosen else _UNTIL_END


def is_test(name: str, value: Any) -> bool:
    """Whether an entry of a summary has the statistics of a test over clients."""
    return name.startswith("test") and isinstance(value, dict)


def _shares(algorithm: Algorithm, folder: RunFolder, rounds: int) -> dict[str, Any]:
    """``own_shares``: what part of a movement clients kept of their own, where the method estimates it."""
    if type(algorithm).own_shares is Algorithm.own_shares:
        return {}
    return {"own_shares": own_shares(algorithm, load_state(folder.server_states, rounds))}


def scores_of(results: Results, metric: str, trained: Mapping[str, int]) -> dict[str, Any]:
    """The statistics of a test over clients, and of those among them that had not trained.

    Args:
        results: client id to its metrics.
        metric: the task's.
        trained: client id to the number of rounds that it had trained in by then.

    Returns:
        Those of `summarize_clients`, ``untrained_clients`` (how many had not trained) and ``untrained_mean`` (their
        mean, each client alike; None: all had).
    """
    untrained = {client: result for client, result in results.items() if not trained[client]}
    return {
        **asdict(summarize_clients(results, metric)),
        "untrained_clients": len(untrained),
        "untrained_mean": summarize_clients(untrained, metric).mean if untrained else None,
    }


def _rounds_trained(
    trainings: Iterable[tuple[int, str]], clients: Iterable[str], until: int, *, pools: bool
) -> dict[str, int]:
    """The number of rounds in which each client had trained, and its update had come, by the end of a round.

    Args:
        trainings: rounds and the clients whose updates came in them.
        clients: ids of all.
        until: the round.
        pools: the rows of all clients are trained together: who trains, trains for all.
    """
    found = Counter(client for round, client in trainings if round <= until)
    return dict.fromkeys(clients, max(found.values(), default=0)) if pools else {each: found[each] for each in clients}


def _per_client(
    tests: Tests, metric: str, about: Mapping[str, Mapping[str, Any]], trained: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, Any]]:
    """The numbers and test results of each client, as the summary has them.

    Args:
        tests: the results.
        metric: the task's.
        about: client id to what ``clients.json`` says of it.
        trained: name in the summary to each client's number of rounds in which it has trained.
    """
    return {
        client: {
            **numbers_of(about[client]),
            **{name: by_client[client] for name, by_client in trained.items()},
            "before": tests.before[client][metric],
            **{name: test.results[client] for name, test in tests.by_name.items()},
        }
        for client in sorted(tests.before)
    }


def summary_of(
    recipe: Recipe,
    algorithm: Algorithm,
    tensors: State,
    folder: RunFolder,
    progress: Progress,
    settings: RoundSettings,
    tests: Tests,
    *,
    seconds: float,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``summary.json`` holds of a run: a simulation, or one over sites.

    Args:
        recipe: the run's.
        algorithm: its method.
        tensors: every tensor of the adapter and the head; only shapes and types are looked at.
        folder: has ``clients.json``.
        progress: the run's, at its end.
        settings: of the rounds.
        tests: the clients' results.
        seconds: the time of the tests.
        more: further entries, which only one kind of run has.
    """
    metric = settings.metric
    about, metrics = folder.read_json("clients.json"), folder.read_metrics().splitlines()
    chosen = progress.chosen_round or 0
    trainings = [(line["round"], line["client"]) for line in map(json.loads, metrics) if line["train"] is not None]
    trained = {
        name: _rounds_trained(trainings, tests.before, until, pools=algorithm.pools_rows)
        for name, until in ((_UNTIL_CHOSEN, chosen), (_UNTIL_END, recipe.rounds))
    }
    clients = _per_client(tests, metric, about, trained)
    return {
        "algorithm": recipe.algorithm,
        "source": algorithm.source,
        "export": algorithm.export,
        "variant": recipe.adapter.variant,
        "rounds": recipe.rounds,
        "clients": len(clients),
        "seed": recipe.seed,
        "share_head": algorithm.share_head,
        "wire_dtype": recipe.wire_dtype,
        "server_optimizer": recipe.server.optimizer,
        "robust": recipe.robust.kind,
        "compression": recipe.compression.kind,
        "overlap": recipe.overlap.kind,
        "metric": metric,
        "evaluated_after": settings.moments[0],
        **privacy_of(
            recipe,
            metrics,
            about,
            lambda: load_state(folder.server_states, recipe.rounds).slots,
        ),
        **_shares(algorithm, folder, recipe.rounds),
        "chosen_round": chosen,
        "chosen_score": progress.chosen_score,
        "chosen_by": f"weighted mean of validation {metric}",
        **{
            name: {
                "round": test.round,
                "after": test.moment,
                **scores_of(test.results, metric, trained[trained_until(test.round, chosen)]),
            }
            for name, test in tests.by_name.items()
        },
        **more,
        **first_round(
            algorithm, tensors, make_chain(recipe.steps), recipe.rounds, mixed_ranks=bool(recipe.adapter.ranks)
        ),
        "total_upload_bytes": progress.upload_bytes,
        "total_download_bytes": progress.download_bytes,
        "train_seconds": progress.train_seconds,
        "evaluation_seconds": progress.evaluation_seconds + seconds,
        "wall_seconds": progress.wall_seconds + seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "interruptions": progress.interruptions,
        "per_client": clients,
    }
