"""The end of a run at a site: a run folder of its own clients, and their adapters."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedsa.algorithms.base import ServerState
from fedsa.deploy.site_folder import ADAPTERS, FINISHED_RUN
from fedsa.engines.beginning import begin
from fedsa.engines.summary import is_test, scores_of, trained_until
from fedsa.errors import ProtocolError, RunFolderError
from fedsa.recipe import dump_recipe
from fedsa.runs.export import export
from fedsa.server import save_state
from fedsa.store import RunFolder, numbers_of
from fedsa.store.client_states import ClientStateFiles
from fedsa.types import Key, State

if TYPE_CHECKING:
    from fedsa.federation import Federation

__all__ = ["finish_site"]

_ROUNDING = 1e-5
"""What of a bias may be lost where a client's class frequencies are added and taken off again."""


def finish_site(folder: Path, federation: Federation, states: ClientStateFiles, about: Mapping[str, Any]) -> None:
    """Write the run folder of a site's own clients, which every verb reads as any other, and their adapters.

    What was written before is left as it is. Figures over clients are of the site's own ones.

    Args:
        folder: the site's.
        federation: the site's part of the federation.
        states: what its clients keep; with what they were tested with after the chosen and the final round.
        about: the server's summary, with the entries of this site's clients only.

    Raises:
        ProtocolError: the summary does not fit this site.
        UserError: the disk is full or the folder cannot be written.
    """
    summary, rounds, federation = dict(about), _rounds(about, federation), _with_own_ranks(federation)
    path = folder / FINISHED_RUN
    if not _is_written(path):
        shutil.rmtree(path, ignore_errors=True)  # half of it, from a time that was interrupted
        with RunFolder.create(path, dump_recipe(federation.recipe)).locked() as run:
            progress = begin(federation, run)
            clients = run.read_json("clients.json")
            for round in {*rounds.values()}:
                tested: dict[str, State] = {}
                for client in federation.clients:
                    tensors = states.load_personal(client, round)
                    if tensors is None:
                        raise ProtocolError(f"client {client!r} was not tested after round {round}: nothing to export")
                    run.client_states.save_personal(client, round, tensors)
                    tested[client] = tensors
                alike = tested
                if federation.recipe.evaluation.fit_head_epochs:  # the head of one that has not trained is its own
                    trained = {c: own for c, own in tested.items() if states.load_client(c, round)}
                    alike = trained or tested
                save_state(run.server_states, round, _received(federation, alike, round), {})
            summary["per_client"] = {
                client: {**numbers_of(clients[client]), **entry} for client, entry in about["per_client"].items()
            }
            summary |= _scores(summary)
            progress.round, progress.chosen_round = rounds["final"], rounds["chosen"]
            progress.chosen_score = summary["chosen_score"]
            run.keeps_all_rounds = True
            run.commit(progress)
            run.finish(progress, {**summary, "clients": len(federation.clients), "notes": list(federation.notes)})
    shutil.rmtree(folder / ADAPTERS, ignore_errors=True)  # of an earlier try: they are made of the run folder
    if "adapter" in federation.algorithm.export:  # else its owner writes whole models, where he has room for them
        export(path, folder / ADAPTERS, base=federation.model, tokenizer=federation.tokenizer, with_base=False)


def _with_own_ranks(federation: Federation) -> Federation:
    """The federation with a recipe that names the ranks of the site's own clients: the run folder has no others."""
    if federation.recipe.adapter.ranks is None:
        return federation
    own = {client: rank for client, rank in federation.ranks.items() if client in federation.clients}
    adapter = federation.recipe.adapter.model_copy(update={"ranks": own or None})
    return replace(federation, recipe=federation.recipe.model_copy(update={"adapter": adapter}))


def _is_written(path: Path) -> bool:
    """Whether a run folder is there as a whole."""
    try:
        return RunFolder.open(path).is_measured
    except RunFolderError:
        return False


def _received(federation: Federation, tested: Mapping[str, State], round: int) -> ServerState:
    """What a site knows of the server's state: the tensors that all of its clients received alike.

    A new client of the site (`fedsa adapt`) starts from them.

    Args:
        federation: the site's part of the federation.
        tested: what each of them used after the round.
        round: the round.
    """
    priors = federation.class_priors
    first, *others = (tensors if priors is None else priors.taken_off(c, tensors) for c, tensors in tested.items())
    plans = {key: federation.algorithm.plan(key, round + 1) for key in first}

    def is_alike(key: Key) -> bool:
        slack = 0.0 if priors is None or key != priors.bias else _ROUNDING
        value = first[key]
        return all(
            other[key].shape == value.shape and torch.allclose(other[key], value, rtol=0, atol=slack)
            for other in others
        )

    shared = {key: value for key, value in first.items() if round and plans[key].received and is_alike(key)}
    return ServerState(shared, dict.fromkeys(shared, round))


def _rounds(about: Mapping[str, Any], federation: Federation) -> dict[str, int]:
    """The chosen and the final round.

    Raises:
        ProtocolError: the summary has none, or is not of this site's clients.
    """
    chosen, final, entries = about.get("chosen_round"), about.get("rounds"), about.get("per_client")
    if type(chosen) is not int or type(final) is not int or not isinstance(entries, dict):
        raise ProtocolError("the end of a run without its rounds or its results")
    if {*entries} != {*federation.clients}:
        raise ProtocolError("the end of a run with the results of other clients than this site's")
    return {"chosen": chosen, "final": final}


def _scores(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Each test's statistics over the site's own clients."""
    entries, found = summary["per_client"], {}
    for name, value in summary.items():
        if is_test(name, value):
            until = trained_until(value["round"], summary["chosen_round"])
            results, trained = ({client: each[key] for client, each in entries.items()} for key in (name, until))
            found[name] = {**value, **scores_of(results, summary["metric"], trained)}
    return found
