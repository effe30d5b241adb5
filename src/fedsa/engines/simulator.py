"""The embedded engine: drives the server and every client in this process, one round after the other."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, Literal, TypeAlias, final

import numpy as np
import torch

from fedsa.adaptation import Onboarding, PersonalStates, global_model, trained_keys
from fedsa.algorithms.base import ServerState
from fedsa.callbacks import Callback
from fedsa.client import (
    Client,
    own_tensors,
    personal_tensors,
    reconstructed,
    sent_to,
    starting_tensors,
    train_clients,
)
from fedsa.data.clients import ClientRows, SplitName
from fedsa.engines.beginning import begin, check_unchanged
from fedsa.errors import TrainingError
from fedsa.evaluation import Personal, evaluate, majority_accuracy, summarize_clients
from fedsa.federation import Federation, first_round
from fedsa.pace import is_evaluated
from fedsa.seeds import derive_seed
from fedsa.server import Server, load_state, sample_clients, save_state
from fedsa.store import Progress, RunFolder
from fedsa.tasks.base import IntArray
from fedsa.training.jobs import highest_rate
from fedsa.types import RoundRecord, Update

__all__ = ["peak_rss_bytes", "simulate"]

Mode: TypeAlias = Literal["aggregate", "training"]
"""What a client is evaluated after: it has taken in the aggregate, or just its own local training."""

Results: TypeAlias = dict[str, dict[str, float]]
"""Client id to its metrics."""


def simulate(federation: Federation, folder: RunFolder, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Run a federation from where its folder is to the end, and return its summary.

    Args:
        federation: wired; for a folder with finished rounds, from the same recipe and rows.
        folder: open for writing.
        callbacks: told of every step.

    Raises:
        RunFolderError: the folder belongs to another federation.
        TrainingError: a client's training or evaluation went wrong; the rounds before are safe.
        UserError: the disk is full or the folder cannot be written.
    """
    torch.set_num_threads(federation.recipe.compute.threads)
    return _Run(federation, folder, callbacks).to_the_end()


@final
class _Run:
    def __init__(self, federation: Federation, folder: RunFolder, callbacks: Sequence[Callback]) -> None:
        self.federation, self.folder, self.callbacks = federation, folder, callbacks
        self.recipe = federation.recipe
        folder.keeps_all_rounds = self.recipe.keep_rounds == "all"
        self.progress = self._continue() or begin(federation, folder)
        self.initial = federation.model.initial
        self.server = self._server()
        self.clients = {
            client: Client(
                id=client,
                rows=parts.train,
                algorithm=federation.algorithm,
                model=federation.model,
                task=federation.task,
                encoded=federation.encoded,
                recipe=self.recipe,
                memory=folder,
                rank=federation.ranks.get(client),
            )
            for client, parts in federation.rows.partition.clients.items()
            if client not in federation.held_out
        }

    def _continue(self) -> Progress | None:
        progress = self.folder.progress()
        if progress is None:
            return None
        check_unchanged(self.federation, self.folder, progress)
        self.folder.roll_back(progress)
        progress.interruptions += 1
        self.folder.commit(progress)
        return progress

    def _server(self) -> Server:
        recipe, algorithm = self.recipe, self.federation.algorithm
        return Server(
            algorithm,
            self._server_state(self.progress.round),
            self.federation.clients,
            seed=recipe.seed,
            fraction_train=recipe.fraction_train,
            weighting=recipe.weighting,
            wire_dtype=recipe.wire_dtype,
            held=self.folder.load_held(self.progress.round),
            ranks=self.federation.ranks,
            stateless=recipe.personal_state == "reconstruct",
            optimizer=recipe.server,
        )

    def _server_state(self, round: int) -> ServerState:
        """Return the server's state after a round, as it is on disk."""
        if round < 1:
            return self.federation.initial_state()
        return load_state(self.folder, round)

    # -- the rounds --------------------------------------------------------------------------------------------------

    def to_the_end(self) -> dict[str, Any]:
        """Run every round that is left, then measure."""
        finished = self.progress.round
        self._tell("on_run_begin", self.folder.path, self.recipe, self.federation.clients, max(finished, 0))
        if finished < 0:
            self._round(0)
        for round in range(self.progress.round + 1, self.recipe.rounds + 1):
            self._round(round)
        summary = self._summary()
        self.folder.settle()  # a finished run is not tidied up by anybody who comes later
        self.folder.finish(self.progress, summary)
        self._tell("on_run_end", summary)
        return summary

    def _round(self, round: int) -> None:
        """Train (not in round 0), aggregate, evaluate, commit."""
        started, progress = time.perf_counter(), self.progress
        self._tell("on_round_begin", round, self.server.sample(round) if round else ())
        record = self._train(round) if round else None
        if record:
            progress.train_seconds += sum(metrics["seconds"] for metrics in record.train_metrics.values())
            progress.upload_bytes += sum(record.upload_bytes.values())
            progress.download_bytes += sum(record.download_bytes.values())
            save_state(self.folder, round, self.server.state, self.server.held)
        evaluation_started = time.perf_counter()
        results = self._validate(round) if is_evaluated(self.recipe, round) else {}
        progress.evaluation_seconds += time.perf_counter() - evaluation_started
        figures = None
        if results:
            figures = summarize_clients(results[self._modes[0]], self.federation.task.metric)
            if progress.chosen_score is None or figures.weighted_mean > progress.chosen_score:
                progress.chosen_round, progress.chosen_score = round, figures.weighted_mean
        lines = list(self._lines(round, record, results))
        progress.metrics_bytes = self.folder.append_metrics(lines)
        progress.round = round
        progress.wall_seconds += time.perf_counter() - started
        self.folder.commit(progress)
        self._tell("on_round_end", round, lines, asdict(figures) if figures else None)

    def _train(self, round: int) -> RoundRecord:
        return self.server.end_round(round, self._updates(round))

    def _updates(self, round: int) -> Iterator[Update]:
        """Train the round's clients, as many at a time as go through the model at once, when the server asks."""
        clients = self.server.begin_round(round)
        self.folder.load_ahead(clients, round - 1)
        asked = ((self.clients[client], self.server.payload(client, round)) for client in clients)
        for update in train_clients(asked):
            self._tell("on_client_trained", round, update.client, update.metrics)
            yield update

    # -- evaluation --------------------------------------------------------------------------------------------------

    @property
    def _modes(self) -> tuple[Mode, ...]:
        """What rounds are evaluated after; the first is what they are chosen by."""
        after = self.recipe.evaluation.evaluate_after
        return ("aggregate", "training") if after == "both" else (after,)

    def _named(self, what: str, mode: Mode) -> str:
        """Return the name of a result in ``metrics.jsonl`` and the summary: only the first mode's is the plain one."""
        return what if mode == self._modes[0] else f"{what}_after_{mode}"

    def _validate(self, round: int) -> dict[Mode, Results]:
        """Return the metrics on validation of the clients that are drawn for it."""
        seed = derive_seed(self.recipe.seed, "evaluation", round)
        clients = sample_clients(self.federation.clients, self.recipe.evaluation.fraction_evaluate, seed)
        return {mode: self._evaluate(mode, "validation", round, clients=clients) for mode in self._modes}

    def _evaluate(
        self,
        mode: Mode,
        split: SplitName,
        round: int,
        server: ServerState | None = None,
        clients: Sequence[str] | None = None,
        on_written: Callable[[str, IntArray, torch.Tensor], None] | None = None,
    ) -> Results:
        """Return each client's metrics on a split, with what it would use after a round.

        Args:
            mode: what it is measured after.
            split: the rows.
            round: the round that ended.
            server: the server's state after that round; None: as it is now.
            clients: whose; None: everyone's.
            on_written: told what the model writes.

        Raises:
            TrainingError: they are not finite, or memory ran out; whose, and what to lower.
        """
        federation, training = self.federation, self.recipe.training
        results: Results = {}
        measured = evaluate(
            federation.model,
            federation.task,
            federation.encoded,
            self._personal(mode, split, round, server or self.server.state, clients or federation.clients),
            batch_size=self.recipe.evaluation.batch_size,
            together=training.cohort_size if training.trainer == "cohort" else 0,
            pack=bool(training.packing),
            mixing=federation.mixing,
            on_written=on_written,
        )
        try:
            for client, metrics in measured:
                results[client] = metrics
                wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
                if wrong:
                    highest = highest_rate(federation.model.initial, training)
                    mend = f"lower {highest}" if round else "the base model itself gives it: take another"
                    raise TrainingError(
                        f"client {client!r}, round {round}: the {split} {' and '.join(wrong)} is not finite; {mend}"
                    )
                self._tell("on_client_evaluated", round, split, client, metrics)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"round {round}: out of memory on {federation.model.device} in the evaluation on {split}, after "
                f"{len(results)} clients; lower evaluation.batch_size or task.max_length"
            ) from error
        return results

    def _personal(
        self, mode: Mode, split: SplitName, round: int, server: ServerState, clients: Sequence[str]
    ) -> Iterator[Personal]:
        algorithm, wire_dtype = self.federation.algorithm, self.recipe.wire_dtype
        if mode == "aggregate" and self.recipe.personal_state == "reconstruct":
            yield from self._reconstructed(split, round, server, clients)
            return
        self.folder.load_ahead(clients, round)
        for client in clients:
            state = self.folder.load_client(client, round)
            initial = starting_tensors(self.initial, algorithm, self.recipe, client, self.federation.ranks.get(client))
            tensors = (
                own_tensors(initial, state)
                if mode == "training"
                else personal_tensors(algorithm, initial, server, client, state, round, wire_dtype)
            )
            yield client, tensors, getattr(self.federation.rows.partition.clients[client], split)

    def _reconstructed(
        self, split: SplitName, round: int, server: ServerState, clients: Sequence[str]
    ) -> Iterator[Personal]:
        """Yield clients with personal tensors that were fitted to their training rows just now.

        Those that are tested are kept: they are what is exported, and cannot be told from the run folder.
        """
        federation, recipe = self.federation, self.recipe
        remaining = iter(clients)
        while group := list(islice(remaining, max(1, recipe.training.cohort_size))):
            payloads = [
                sent_to(
                    federation.algorithm,
                    server,
                    client,
                    round + 1,
                    0,
                    recipe.wire_dtype,
                    rank=federation.ranks.get(client),
                )
                for client in group
            ]
            jobs = [self.clients[client].prepare(payload) for client, payload in zip(group, payloads, strict=True)]
            fitted = reconstructed(jobs, recipe, federation.model, federation.task, federation.encoded)
            for client, own in zip(group, fitted, strict=True):
                if split == "test":
                    self.folder.save_personal(client, round, own.tensors)
                yield client, own.tensors, getattr(federation.rows.partition.clients[client], split)

    # -- results -----------------------------------------------------------------------------------------------------

    def _lines(
        self, round: int, record: RoundRecord | None, results: Mapping[Mode, Results]
    ) -> Iterator[dict[str, Any]]:
        """Yield a round's lines of ``metrics.jsonl``: one for every client that was to train or was evaluated."""
        asked = set(record.clients) if record else set()
        for client in sorted(asked.union(*results.values())):
            trained = record.train_metrics.get(client) if record else None
            line: dict[str, Any] = {
                "round": round,
                "client": client,
                "train": None if trained is None else dict(trained),
                "upload_bytes": record.upload_bytes.get(client, 0) if record else 0,
                "download_bytes": record.download_bytes.get(client, 0) if record else 0,
            }
            for mode, by_client in results.items():
                if client in by_client:
                    line[self._named("validation", mode)] = {"after": mode, **by_client[client]}
            yield line

    def _summary(self) -> dict[str, Any]:
        """Measure on test, and return all that a run comes to."""
        federation, recipe, progress = self.federation, self.recipe, self.progress
        started = time.perf_counter()
        before, tests = self._evaluate_initial(), self._tests()
        further = self._unseen() | self._global_model()
        seconds = time.perf_counter() - started
        metric = federation.task.metric
        return {
            "algorithm": recipe.algorithm,
            "source": federation.algorithm.source,
            "export": federation.algorithm.export,
            "variant": federation.model.variant,
            "rounds": recipe.rounds,
            "clients": len(federation.clients),
            "seed": recipe.seed,
            "share_head": recipe.share_head,
            "wire_dtype": recipe.wire_dtype,
            "server_optimizer": recipe.server.optimizer,
            "model": recipe.model.path,
            "data": recipe.data.path,
            "notes": list(federation.notes),
            "metric": metric,
            "evaluated_after": self._modes[0],
            "chosen_round": progress.chosen_round or 0,
            "chosen_score": progress.chosen_score,
            "chosen_by": f"weighted mean of validation {metric}",
            **{
                name: {"round": round, "after": mode, **asdict(summarize_clients(results, metric))}
                for name, (mode, round, results) in tests.items()
            },
            **further,
            **first_round(federation.algorithm, self.initial, recipe.wire_dtype, recipe.rounds),
            "total_upload_bytes": progress.upload_bytes,
            "total_download_bytes": progress.download_bytes,
            "train_seconds": progress.train_seconds,
            "evaluation_seconds": progress.evaluation_seconds + seconds,
            "wall_seconds": progress.wall_seconds + seconds,
            "peak_rss_bytes": peak_rss_bytes(),
            "interruptions": progress.interruptions,
            "per_client": self._per_client(before, {name: results for name, (_, _, results) in tests.items()}),
        }

    def _evaluate_initial(self) -> Results:
        """Return each client's test metrics before any training, when all hold the initial tensors."""
        return self._evaluate("training", "test", 0)

    def _tests(self) -> dict[str, tuple[Mode, int, Results]]:
        """Return the test results of the chosen and the final round by their names in the summary.

        Those after the aggregate are always among them: what is exported is that.
        """
        modes = self._modes if "aggregate" in self._modes else (*self._modes, "aggregate")
        rounds = {"test": self.progress.chosen_round or 0, "test_final": self.recipe.rounds}
        first = (modes[0], rounds["test"])
        measured = {
            which: self._evaluate(
                which[0],
                "test",
                which[1],
                self._server_state(which[1]),
                on_written=self._keep_samples() if which == first else None,
            )
            for which in ((mode, round) for mode in modes for round in sorted(set(rounds.values())))
        }
        return {
            self._named(which, mode): (mode, round, measured[mode, round])
            for mode in modes
            for which, round in rounds.items()
        }

    def _keep_samples(self) -> Callable[[str, IntArray, torch.Tensor], None] | None:
        """Return what keeps the first test rows with what the model wrote in ``samples.json``, one client's in turn."""
        task, wanted = self.federation.task, self.recipe.evaluation.samples
        if not task.generates or not wanted:
            return None
        clients = self.federation.clients
        each = {client: len(range(place, wanted, len(clients))) for place, client in enumerate(clients)}
        kept: list[dict[str, Any]] = []

        def keep(client: str, rows: IntArray, written: torch.Tensor) -> None:
            count = each[client]
            if count:
                shown = task.samples(self.federation.encoded, rows[:count], written[:count])
                kept.extend({"client": client, **sample._asdict()} for sample in shown)
                self.folder.write_json("samples.json", kept)

        return keep

    def _per_client(self, before: Results, tests: Mapping[str, Results]) -> dict[str, dict[str, Any]]:
        rows, about = self.federation.rows, self.folder.read_json("clients.json")
        return {
            client: {
                **{name: value for name, value in about[client].items() if name != "folder"},
                **self._majority(parts),
                "before": before[client][self.federation.task.metric],
                **{name: results[client] for name, results in tests.items()},
            }
            for client, parts in sorted(rows.partition.clients.items())
            if client in self.clients
        }

    def _majority(self, parts: ClientRows) -> dict[str, float]:
        """Return what guessing a client's most frequent class comes to, where there are classes to guess."""
        if not self.recipe.task.has_classes:
            return {}
        labels = self.federation.rows.labels
        return {"majority": majority_accuracy(labels[parts.train], labels[parts.test])}

    def _unseen(self) -> dict[str, Any]:
        """Take the clients that were held out to adapters of their own; return what they come to, as ``unseen``."""
        federation, settings, round = self.federation, self.recipe.adaptation, self.progress.chosen_round or 0
        if not federation.held_out:
            return {}
        metric, about, rows = federation.task.metric, self.folder.read_json("clients.json"), federation.rows
        onboarding = Onboarding(federation, PersonalStates(self.folder, federation.algorithm, round), settings)
        per_client: dict[str, dict[str, Any]] = {}
        for adapted in onboarding.take_in(federation.held_out, settings.start, freeze_shared=settings.freeze_shared):
            client, parts = adapted.client, rows.partition.clients[adapted.client]
            self.folder.save_personal(client, round, adapted.tensors)
            told = {name: value for name, value in about[client].items() if name not in ("folder", "held_out")}
            per_client[client] = {
                **told,
                **self._majority(parts),
                "before": adapted.before["test"],
                "after": adapted.after["test"],
            }
        figures = {
            moment: asdict(summarize_clients({client: entry[moment] for client, entry in per_client.items()}, metric))
            for moment in ("before", "after")
        }
        how = {"start": settings.start, "freeze_shared": settings.freeze_shared, **settings.length}
        return {"unseen": {"clients": len(per_client), "round": round, **how, **figures, "per_client": per_client}}

    def _global_model(self) -> dict[str, Any]:
        """Measure the one model for all, where it is asked for; return the figures as ``global_model``."""
        federation, recipe, how = self.federation, self.recipe, self.recipe.evaluation.global_model
        if how == "none":
            return {}
        round, partition = self.progress.chosen_round or 0, federation.rows.partition.clients
        tensors = global_model(PersonalStates(self.folder, federation.algorithm, round), federation.algorithm, how)
        rows = {client: partition[client].test for client in federation.clients}
        union = np.concatenate(list(rows.values()))
        everything = [*((client, tensors, own) for client, own in rows.items()), ("all rows", tensors, union)]
        results = [
            metrics
            for _, metrics in evaluate(
                federation.model,
                federation.task,
                federation.encoded,
                everything,
                batch_size=recipe.evaluation.batch_size,
            )
        ]
        per_client = dict(zip(rows, results[:-1], strict=True))
        figures = asdict(summarize_clients(per_client, federation.task.metric))
        left = sorted({key.factor.value for key in trained_keys(recipe, federation.algorithm, tensors, personal=True)})
        return {
            "global_model": {
                "how": how,
                "round": round,
                "left_the_clients": left,
                **figures,
                "union": results[-1],
                "per_client": per_client,
            }
        }

    def _tell(self, event: str, *what: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*what)


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
