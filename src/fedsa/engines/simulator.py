"""A simulation: the server and every client in this process, one round after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from fedsa.callbacks import Callback
from fedsa.client.evaluation import Personal
from fedsa.engines.beginning import begin, check_unchanged
from fedsa.engines.fleet import Fleet
from fedsa.engines.listed import ListedFleet
from fedsa.engines.local import LocalFleet
from fedsa.engines.overlapping import OverlappingFleet
from fedsa.engines.rounds import RoundSettings, run_rounds
from fedsa.engines.samples import samples_of
from fedsa.engines.simulated_clock import ClockedRunners
from fedsa.engines.summary import measure, summary_of
from fedsa.engines.summed import SummedFleet, about_sums, check_enough
from fedsa.federation import Federation
from fedsa.recipe import BufferedSettings
from fedsa.runs.global_model import global_model
from fedsa.runs.onboarding import Onboarding
from fedsa.runs.personal import PersonalStates, trained_keys
from fedsa.secure import fixed_point_for
from fedsa.server import load_state, updates_in_round
from fedsa.statistics import summarize_clients
from fedsa.store import MessagesUnderWay, Progress, RunFolder, numbers_of

__all__ = ["simulate"]


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
    recipe = federation.recipe
    torch.set_num_threads(recipe.compute.threads)
    folder.keeps_all_rounds = recipe.keep_rounds == "all"
    progress = _go_on(federation, folder) or begin(federation, folder)
    settings = RoundSettings.of(federation.agreement)
    initial, fleet = federation.initial_state(), LocalFleet(federation.site(folder.client_states))
    state = load_state(folder.server_states, progress.round) if progress.round > 0 else initial
    summed = _summed(federation, fleet)
    versions = folder.server_states.client_versions(progress.round)
    server = federation.server(state, versions, summed.open_sum if summed else None)
    for callback in callbacks:
        callback.on_run_begin(folder.path, recipe, federation.clients, max(progress.round, 0))
    driven = ListedFleet(summed or _with_overlap(federation, folder, fleet, progress), folder, progress)
    run_rounds(server, driven, folder, progress, settings, callbacks)
    MessagesUnderWay(folder.path).only(())
    started = time.perf_counter()
    fleet.keep_samples(samples_of(federation, folder), after=progress.chosen_round or 0, moment=settings.moments[0])
    tests = measure(server, fleet, folder, progress, settings, initial, callbacks)
    further = _unseen(federation, folder, progress) | _global_model(federation, folder, progress)
    seconds = time.perf_counter() - started
    summary = summary_of(
        recipe,
        federation.algorithm,
        federation.model.initial,
        folder,
        progress,
        settings,
        tests,
        seconds=seconds,
        more={
            "model": recipe.model.path,
            "data": recipe.data.path,
            "notes": list(federation.notes),
            "class_prior": federation.class_priors is not None,
            **({"pools_rows": True} if federation.algorithm.pools_rows else {}),
            **further,
            **(about_sums(summed.point) if summed else {}),
        },
    )
    folder.settle()  # a finished run is not tidied up by anybody who comes later
    folder.finish(progress, summary)
    for callback in callbacks:
        callback.on_run_end(summary)
    return summary


def _with_overlap(federation: Federation, folder: RunFolder, fleet: LocalFleet, progress: Progress) -> Fleet:
    """Return the fleet as the round loop sees it: with a simulated clock, where the recipe has rounds overlap."""
    recipe = federation.recipe
    if not isinstance(recipe.overlap, BufferedSettings):
        return fleet
    runners = ClockedRunners(fleet.site, MessagesUnderWay(folder.path), folder.run, recipe.overlap, progress)
    return OverlappingFleet(fleet, runners, recipe.overlap, recipe.rounds, progress)


def _summed(federation: Federation, fleet: LocalFleet) -> SummedFleet | None:
    """Return the fleet as a server sees it that sees sums only; None: it sees each update.

    Raises:
        UserError: clients are too few, or have too many rows.
    """
    recipe, rows = federation.recipe, fleet.site.rows
    if not recipe.secure_aggregation:
        return None
    check_enough(updates_in_round(recipe, len(federation.clients)), "client")
    weights = {c: len(rows[c].train) if recipe.weighting == "num_examples" else 1 for c in federation.clients}
    return SummedFleet(fleet, fixed_point_for(sum(weights.values())), weights)


def _go_on(federation: Federation, folder: RunFolder) -> Progress | None:
    """Return how far an interrupted run is, once what the interruption left behind is gone; None: it has not begun."""
    progress = folder.progress()
    if progress is None:
        return None
    check_unchanged(federation, folder, progress)
    folder.go_on(progress)
    return progress


def _unseen(federation: Federation, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Take the clients that were held out to adapters of their own; return what they come to, as ``unseen``."""
    if not federation.held_out:
        return {}
    settings, round, metric = federation.recipe.adaptation, progress.chosen_round or 0, federation.task.metric
    about = folder.read_json("clients.json")
    onboarding = Onboarding(federation, PersonalStates(folder, federation.algorithm, round), settings)
    entries: dict[str, dict[str, Any]] = {}
    for adapted in onboarding.take_in(federation.held_out, settings.start, freeze_shared=settings.freeze_shared):
        client = adapted.client
        folder.client_states.save_personal(client, round, adapted.tensors)
        entries[client] = {
            **{name: value for name, value in numbers_of(about[client]).items() if name != "held_out"},
            "before": adapted.before["test"],
            "after": adapted.after["test"],
        }
    statistics = {
        moment: asdict(summarize_clients({client: entry[moment] for client, entry in entries.items()}, metric))
        for moment in ("before", "after")
    }
    how = {"start": settings.start, "freeze_shared": settings.freeze_shared, **settings.length}
    return {"unseen": {"clients": len(entries), "round": round, **how, **statistics, "per_client": entries}}


def _global_model(federation: Federation, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Measure the one model for all, where it is asked for; return the figures as ``global_model``."""
    recipe, how, algorithm = federation.recipe, federation.recipe.evaluation.global_model, federation.algorithm
    if how == "none":
        return {}
    round, partition = progress.chosen_round or 0, federation.rows.partition.clients
    tensors = global_model(PersonalStates(folder, algorithm, round), algorithm, how)
    rows = {client: partition[client].test for client in federation.clients}
    everyone = [Personal(client, tensors, own) for client, own in rows.items()]
    learner = replace(
        federation.learner, mixing=None
    )  # one model for all rows: there are no client's own ones to compare
    results = dict(learner.evaluate(everyone, moment=f"round {round}, global model", split="test", one_by_one=True))
    union = Personal("all rows", tensors, np.concatenate(list(rows.values())))
    ((_, whole),) = learner.evaluate([union], moment=f"round {round}, global model", split="test", one_by_one=True)
    left = sorted({key.factor.value for key in trained_keys(recipe.rounds, algorithm, tensors, personal=True)})
    return {
        "global_model": {
            "how": how,
            "round": round,
            "left_the_clients": left,
            **asdict(summarize_clients(results, federation.task.metric)),
            "union": whole,
            "per_client": results,
        }
    }
