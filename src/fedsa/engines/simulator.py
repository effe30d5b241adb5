"""The embedded engine: drives the server and every client in this process, one round after the other."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import torch

from fedsa.algorithms.base import ServerState
from fedsa.callbacks import Callback
from fedsa.client import Client, own_tensors, personal_tensors
from fedsa.data.clients import SPLITS
from fedsa.errors import RunFolderError
from fedsa.evaluation import evaluate, majority_accuracy, summarize_clients
from fedsa.federation import Federation
from fedsa.models import with_sorted_names
from fedsa.recipe import dump_recipe
from fedsa.server import Server
from fedsa.store import Progress, RunFolder
from fedsa.types import RoundRecord, State, total_bytes

__all__ = ["peak_rss_bytes", "simulate"]

Results = dict[str, dict[str, float]]
"""Client id to its metrics."""


def simulate(federation: Federation, folder: RunFolder, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Run a federation from where its folder is to the end, and return its summary.

    Args:
        federation: wired; for a folder with finished rounds, from the same recipe and rows.
        folder: open for writing.
        callbacks: told of every step.

    Raises:
        RunFolderError: the folder belongs to other rows.
        TrainingError: a client's training went wrong; the rounds before are safe.
        UserError: the disk is full or the folder cannot be written.
    """
    torch.set_num_threads(federation.recipe.compute.threads)
    return _Run(federation, folder, callbacks).to_the_end()


@final
class _Run:
    def __init__(self, federation: Federation, folder: RunFolder, callbacks: Sequence[Callback]) -> None:
        self.federation, self.folder, self.callbacks = federation, folder, callbacks
        self.recipe = federation.recipe
        self.progress = self._continue() or self._begin()
        self.initial = federation.model.initial
        self.server = self._server()
        self.clients = {
            client: Client(
                client,
                parts.train,
                federation.algorithm,
                federation.model,
                federation.task,
                federation.encoded,
                self.recipe,
                folder,
            )
            for client, parts in sorted(federation.rows.partition.clients.items())
        }

    def _begin(self) -> Progress:
        """Write what does not change during the run."""
        federation, folder = self.federation, self.folder
        folder.write_text("recipe.toml", dump_recipe(self.recipe))
        folder.write_json("environment.json", _environment(self.recipe.compute.model_dump()))
        with TemporaryDirectory() as place:
            federation.model.config.save_pretrained(place)
            config = json.loads((Path(place) / "adapter_config.json").read_text(encoding="utf-8"))
        folder.write_json("adapter_config.json", with_sorted_names(config))
        splits = {split: federation.label_counts(split) for split in SPLITS}
        folder.register_clients(
            {
                client: {
                    **{f"{split}_examples": int(sum(counts[client])) for split, counts in splits.items()},
                    "labels": dict(
                        zip(
                            federation.rows.label_names,
                            (
                                int(sum(column))
                                for column in zip(*(counts[client] for counts in splits.values()), strict=True)
                            ),
                            strict=True,
                        )
                    ),
                }
                for client in federation.clients
            }
        )
        folder.write_json(
            "partition.json",
            {
                client: {name: part.tolist() for name, part in zip(SPLITS, parts, strict=True)}
                for client, parts in sorted(federation.rows.partition.clients.items())
            },
        )
        folder.save_initial(federation.model.initial)
        return Progress(round=-1, data=federation.fingerprint())

    def _continue(self) -> Progress | None:
        progress = self.folder.progress()
        if progress is None:
            return None
        if progress.data != self.federation.fingerprint():
            raise RunFolderError(
                f"{self.folder.path}: the clients' rows are not those that the run began with, so it cannot go on: put "
                "the data (or the model's tokenizer) back as it was, or start a new run"
            )
        started = self.folder.load_initial()
        if any(not torch.equal(started[key], tensor) for key, tensor in self.federation.model.initial.items()):
            raise RunFolderError(
                f"{self.folder.path}: the initial tensors are not those that the run began with: use the versions "
                f"of torch, transformers and peft in {self.folder.path / 'environment.json'}"
            )
        self.folder.roll_back(progress)
        progress.interruptions += 1
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
            held=self.progress.held,
        )

    def _server_state(self, round: int) -> ServerState:
        """Return the server's state after a round, as it is on disk."""
        if round < 1:
            return self.federation.algorithm.init(self.federation.model.initial)
        return ServerState(*self.folder.load_server(round))

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
        self.folder.write_json("summary.json", summary)
        self._tell("on_run_end", summary)
        return summary

    def _round(self, round: int) -> None:
        """Train (not in round 0), aggregate, evaluate, commit."""
        started, progress = time.perf_counter(), self.progress
        record = self._train(round) if round else None
        if record:
            progress.train_seconds += sum(metrics["seconds"] for metrics in record.train_metrics.values())
            progress.upload_bytes += sum(record.upload_bytes.values())
            progress.download_bytes += sum(record.download_bytes.values())
            progress.held = dict(self.server.held)
            self.folder.save_server(round, self.server.state.tensors, self.server.state.versions)
        evaluation_started = time.perf_counter()
        is_evaluated = round % self.recipe.evaluation.evaluate_every == 0 or round == self.recipe.rounds
        results = {mode: self._evaluate(mode, "validation", round) for mode in self._modes} if is_evaluated else {}
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
        updates = []
        for client, payload in self.server.begin_round(round).items():
            update = self.clients[client].train(payload)
            self._tell("on_client_trained", round, client, update.metrics)
            updates.append(update)
        return self.server.end_round(round, updates)

    # -- evaluation --------------------------------------------------------------------------------------------------

    @property
    def _modes(self) -> tuple[str, ...]:
        after = self.recipe.evaluation.evaluate_after
        return ("aggregate", "training") if after == "both" else (after,)

    def _evaluate(self, mode: str, split: str, round: int, server: ServerState | None = None) -> Results:
        """Return each client's metrics on a split, with what it would use after a round."""
        federation, results = self.federation, {}
        for client, tensors in self._personal(mode, round, server or self.server.state):
            federation.model.write(tensors)
            rows = getattr(federation.rows.partition.clients[client], split)
            results[client] = evaluate(
                federation.model,
                federation.task,
                federation.encoded,
                rows,
                batch_size=self.recipe.evaluation.batch_size,
            )
        return results

    def _personal(self, mode: str, round: int, server: ServerState) -> Iterator[tuple[str, State]]:
        for client in self.federation.clients:
            state = self.folder.load_client(client, round)
            if mode == "training":
                yield client, own_tensors(self.initial, state)
            else:
                yield client, personal_tensors(self.federation.algorithm, self.initial, server, state, round)

    # -- results -----------------------------------------------------------------------------------------------------

    def _lines(
        self, round: int, record: RoundRecord | None, results: Mapping[str, Results]
    ) -> Iterator[dict[str, Any]]:
        """Yield a round's lines of ``metrics.jsonl``: of the clients that trained or were evaluated in it."""
        for client in self.federation.clients:
            trained = record is not None and client in record.train_metrics
            if not trained and not results:
                continue
            line: dict[str, Any] = {
                "round": round,
                "client": client,
                "train": dict(record.train_metrics[client]) if record and trained else None,
                "upload_bytes": record.upload_bytes.get(client, 0) if record else 0,
                "download_bytes": record.download_bytes.get(client, 0) if record else 0,
            }
            for mode, by_client in results.items():
                line["validation" if mode == self._modes[0] else f"validation_after_{mode}"] = by_client[client]
            yield line

    def _summary(self) -> dict[str, Any]:
        """Measure the chosen and the final round on test, and return all that a run comes to."""
        federation, recipe, progress = self.federation, self.recipe, self.progress
        started = time.perf_counter()
        chosen, final = progress.chosen_round or 0, recipe.rounds
        before = self._evaluate("training", "test", 0)
        tests = {
            (mode, round): self._evaluate(mode, "test", round, self._server_state(round))
            for mode in self._modes
            for round in {chosen, final}
        }
        metric, primary = federation.task.metric, self._modes[0]
        figures = {
            which if mode == primary else f"{which}_after_{mode}": {
                "round": round,
                "after": mode,
                **asdict(summarize_clients(tests[mode, round], metric)),
            }
            for mode in self._modes
            for which, round in (("test", chosen), ("test_final", final))
        }
        plan = federation.sharing_plan()
        sent = {key for key in self.initial if federation.algorithm.plan(key, 1).sent}
        received = {key for key in self.initial if federation.algorithm.plan(key, 1).received}
        clients, labels = self.folder.read_json("clients.json"), federation.rows.labels
        return {
            "algorithm": recipe.algorithm,
            "source": federation.algorithm.source,
            "variant": federation.model.variant,
            "rounds": recipe.rounds,
            "clients": len(federation.clients),
            "seed": recipe.seed,
            "share_head": recipe.share_head,
            "model": recipe.model.path,
            "data": recipe.data.path,
            "metric": metric,
            "evaluated_after": primary,
            "chosen_round": chosen,
            "chosen_score": progress.chosen_score,
            "chosen_by": f"weighted mean of validation {metric}",
            **figures,
            "trained_parameters": sum(entry["parameters"] for entry in plan if entry["trained"]),
            "upload_parameters": sum(entry["parameters"] for entry in plan if entry["sent"]),
            "upload_bytes": total_bytes({key: self.initial[key] for key in sent}),
            "download_bytes": total_bytes({key: self.initial[key] for key in received}),
            "total_upload_bytes": progress.upload_bytes,
            "total_download_bytes": progress.download_bytes,
            "train_seconds": progress.train_seconds,
            "evaluation_seconds": progress.evaluation_seconds + time.perf_counter() - started,
            "wall_seconds": progress.wall_seconds + time.perf_counter() - started,
            "peak_rss_bytes": peak_rss_bytes(),
            "interruptions": progress.interruptions,
            "sharing_plan": plan,
            "per_client": {
                client: {
                    **{name: value for name, value in clients[client].items() if name != "folder"},
                    "majority": majority_accuracy(labels[parts.train], labels[parts.test]),
                    "before": before[client][metric],
                    **{
                        which if mode == primary else f"{which}_after_{mode}": tests[mode, round][client]
                        for mode in self._modes
                        for which, round in (("test", chosen), ("test_final", final))
                    },
                }
                for client, parts in sorted(federation.rows.partition.clients.items())
            },
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


def _environment(compute: Mapping[str, Any]) -> dict[str, str]:
    versions = {
        name: importlib.metadata.version(name)
        for name in ("fedsa", "torch", "transformers", "peft", "datasets", "safetensors", "numpy")
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        **versions,
        **{name: str(value) for name, value in compute.items()},
    }
