"""The server's side of a run over several sites. It has neither rows nor a model: sites train, measure and export."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fedsa.accounting import require_accountant
from fedsa.adapters.heads import bias_of_classes
from fedsa.agreement import AGREEMENT, Agreement
from fedsa.algorithms import find_algorithm
from fedsa.callbacks import Callback
from fedsa.engines.fleet import Fleet
from fedsa.engines.membership import Membership, mark_left
from fedsa.engines.overlapping import OverlappingFleet
from fedsa.engines.remote import RemoteFleet
from fedsa.engines.remote_runners import RemoteRunners
from fedsa.engines.rounds import RoundSettings, run_rounds
from fedsa.engines.secure_fleet import SecureFleet
from fedsa.engines.summary import measure, summary_of
from fedsa.engines.summed import about_sums, check_enough
from fedsa.errors import ConfigError, Mistake, RunFolderError, UserError
from fedsa.recipe import BufferedSettings, ClientPrivacySettings, Recipe, dump_recipe
from fedsa.secure import fixed_point_for, require_secure
from fedsa.server import load_state, server_of, updates_in_round
from fedsa.store import MessagesUnderWay, Progress, RunFolder
from fedsa.store.run_folder import CLIENTS
from fedsa.store.secret import forget_secret, secret_in
from fedsa.system.environment import environment
from fedsa.types import State

__all__ = ["check_deployable", "check_drawn", "open_server_folder", "run_id_of", "serve"]


def check_drawn(recipe: Recipe, clients: int) -> None:
    """Refuse rounds of so few clients that secure aggregation would show single ones.

    Args:
        recipe: the recipe.
        clients: the number of clients that train.

    Raises:
        UserError: they are too few.
    """
    if recipe.secure_aggregation:
        check_enough(updates_in_round(recipe, clients), "client")


def check_deployable(recipe: Recipe, sites: int) -> None:
    """Refuse settings that need what does not leave a site.

    Args:
        recipe: the recipe.
        sites: the number of sites that train.

    Raises:
        ConfigError: with every mistake.
        UserError: the sites are too few for secure aggregation.
    """
    if recipe.secure_aggregation:
        check_enough(sites, "site")
    mistakes = []
    if find_algorithm(recipe.algorithm).pools_rows:
        mistakes.append(Mistake("algorithm", f"{recipe.algorithm} puts all rows together, which stay at their sites"))
    if recipe.data.partition.permuted_clients:
        mistakes.append(Mistake("data.partition.permuted_clients", "is a control of simulations: set it to 0"))
    if recipe.holdout_clients:
        mistakes.append(
            Mistake("holdout_clients", "goes with a simulation only: at a site, `fedsa adapt` takes in a new client")
        )
    if recipe.evaluation.global_model != "none":
        mistakes.append(
            Mistake("evaluation.global_model", "puts clients' personal tensors together, which stay at their sites")
        )
    if recipe.adaptation.share_personal:
        mistakes.append(Mistake("adaptation.share_personal", "personal tensors stay at their sites: leave it out"))
    if mistakes:
        raise ConfigError(mistakes, "a run over several sites")


def run_id_of(agreement: Agreement, sites: Sequence[str]) -> str:
    """The id of a run: of what was agreed upon and of the sites that take part."""
    return hashlib.sha256("\n".join([agreement.fingerprint(), *sorted(sites)]).encode()).hexdigest()[:32]


def open_server_folder(path: Path, recipe: Recipe) -> RunFolder:
    """Open the server's run folder for writing; it is made where it is not there.

    Args:
        path: the folder.
        recipe: for a new folder; the run writes the agreed one in its place when it begins.

    Raises:
        RunFolderError: it is damaged or in use.
        UserError: it cannot be written.
    """
    if (path / "recipe.toml").exists():
        return RunFolder.open(path, write=True)
    return RunFolder.create(path, dump_recipe(recipe))


def serve(
    agreement: Agreement,
    folder: RunFolder,
    fleet: RemoteFleet,
    *,
    engine: str,
    keeps_all_rounds: bool = False,
    callbacks: Sequence[Callback] = (),
    membership: Membership | None = None,
) -> dict[str, Any]:
    """Run a federation over its sites from where the folder is to the end, and return its summary.

    A run that is finished is not run again; sites that have missed its end are told.

    Args:
        agreement: what server and sites hold alike.
        folder: the server's, open for writing.
        fleet: the sites; not set up yet.
        engine: the name of what carries the messages, for the summary.
        keeps_all_rounds: whether the folder keeps the server's state of every round, and not only what is needed.
        callbacks: told of every step.
        membership: looked at before each round, for sites that have come or gone; None: they stay the same.

    Raises:
        RunFolderError: the agreement or the clients are not those that the run began with.
        ProtocolError: a site does not hold what was agreed upon.
        UserError: rounds overlap and there is a deadline or a quorum; the disk is full or the folder cannot be
            written.
    """
    recipe, settings = agreement.recipe, RoundSettings.of(agreement)
    if settings.overlaps and (fleet.deadline is not None or fleet.quorum is not None):
        raise UserError(
            "a deadline and a quorum are for rounds that do not overlap. In [overlap], `buffer` says how many updates "
            "end a round, and `max_staleness` how late one may come: leave `deadline` and `quorum` out"
        )
    _check_agreement(folder, agreement)
    finished = folder.finished(recipe.rounds)
    if finished is not None:
        forget_secret(folder.path)  # a crash may have come between the end of the run and this
        return _told_again(folder, fleet, finished)
    folder.keeps_all_rounds = keeps_all_rounds
    secret = _secret_of(folder, recipe)
    if recipe.secure_aggregation:
        require_secure()
    initial = fleet.set_up(agreement)
    first = agreement.first_state(initial)
    gone = membership.roster.left if membership else ()
    progress = _go_on(folder, fleet, gone, recipe.rounds) or _begin(agreement, folder, fleet, initial or {})
    fleet.progress = progress

    def has_changed() -> bool:
        return membership is not None and membership.follow(agreement, folder, fleet, progress)

    secure = _secure(agreement, folder, fleet)
    driven = secure or _with_overlap(agreement, folder, fleet)
    quorum = 1 if settings.overlaps else fleet.quorum  # where rounds overlap, one good update makes a round
    while True:  # once for each time that sites come or go
        state = load_state(folder.server_states, progress.round, first) if progress.round > 0 else first
        versions = folder.server_states.client_versions(progress.round)
        measured = membership.roster.only_measured if membership else ()
        server = server_of(
            agreement,
            fleet.clients,
            state,
            client_versions=versions,
            only_measured=measured,
            quorum=quorum,
            open_sum=secure.open_sum if secure else None,
            secret=secret,
        )
        fleet.check = server.check
        for callback in callbacks:
            callback.on_run_begin(folder.path, recipe, fleet.clients, max(progress.round, 0))
        run_rounds(server, driven, folder, progress, settings, callbacks, has_changed)
        if progress.round == settings.rounds:
            break
    MessagesUnderWay(folder.path).only(())
    started = time.perf_counter()
    tests = measure(server, fleet, folder, progress, settings, first, callbacks)
    seconds = time.perf_counter() - started
    tensors = agreement.adapter.empty()
    has_classes = agreement.algorithm.class_prior and recipe.task.has_classes
    known = has_classes and bias_of_classes(tensors, len(agreement.labels)) is not None
    more = {"engine": engine, "sites": len(fleet.sites), "notes": [], "class_prior": known}
    more |= _about_sums(folder, recipe)
    summary = summary_of(
        recipe, agreement.algorithm, tensors, folder, progress, settings, tests, seconds=seconds, more=more
    )
    summary["sites_without_adapters"] = list(fleet.finish(summary, fleet.sites))
    folder.settle()
    folder.finish(progress, summary)
    forget_secret(folder.path)
    for callback in callbacks:
        callback.on_run_end(summary)
    return summary


def _about_sums(folder: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """What the summary says of secure aggregation: the bound that holds in all rounds, whoever has come and gone."""
    if not recipe.secure_aggregation:
        return {}
    everyone = folder.read_json(CLIENTS).values()
    rows = recipe.weighting == "num_examples"
    return about_sums(fixed_point_for(sum(about["train_examples"] if rows else 1 for about in everyone)))


def _secret_of(folder: RunFolder, recipe: Recipe) -> bytes | None:
    """Return what the server makes noise from, until the run has ended; None where the server makes none.

    Raises:
        MissingExtraError: the library that accounts for privacy is not installed.
        UserError: the disk is full or the folder cannot be written.
    """
    if recipe.privacy.kind != "none":
        require_accountant()
    is_here = isinstance(recipe.privacy, ClientPrivacySettings) and recipe.privacy.noise_at == "server"
    return secret_in(folder.path) if is_here else None


def _secure(agreement: Agreement, folder: RunFolder, fleet: RemoteFleet) -> SecureFleet | None:
    """Return the fleet as a server sees it that sees sums only; None: it sees each update."""
    if not agreement.recipe.secure_aggregation:
        return None
    return SecureFleet(fleet, MessagesUnderWay(folder.path), agreement.recipe.weighting)


def _with_overlap(agreement: Agreement, folder: RunFolder, fleet: RemoteFleet) -> Fleet:
    """Return the fleet as the round loop sees it: with open questions that outlive a round, where rounds overlap."""
    recipe = agreement.recipe
    if not isinstance(recipe.overlap, BufferedSettings):
        return fleet
    runners = RemoteRunners(fleet, MessagesUnderWay(folder.path), fleet.progress)
    return OverlappingFleet(fleet, runners, recipe.overlap, recipe.rounds, fleet.progress)


def _told_again(folder: RunFolder, fleet: RemoteFleet, summary: dict[str, Any]) -> dict[str, Any]:
    """Tell the sites that have missed the end of a finished run; return its summary, as it is then."""
    progress = folder.progress()
    missing = [site for site in summary.get("sites_without_adapters", ()) if site in fleet.sites]
    if not missing or progress is None:
        return summary
    fleet.know(folder.read_json(CLIENTS))
    fleet.progress = progress
    summary = {**summary, "sites_without_adapters": list(fleet.finish(summary, missing))}
    folder.finish(progress, summary)
    return summary


def _check_agreement(folder: RunFolder, agreement: Agreement) -> None:
    """Refuse a run that was begun with another agreement.

    Raises:
        RunFolderError: what is not the same.
    """
    if folder.progress() is None:
        return
    path = folder.path / AGREEMENT
    changed = Agreement.parse(folder.read_text(AGREEMENT), str(path)).differences(agreement)
    if changed:
        raise RunFolderError(
            f"{folder.path} was begun with another agreement ({', '.join(changed)}): go on with its own, {path}, or "
            "start a new run"
        )


def _begin(agreement: Agreement, folder: RunFolder, fleet: RemoteFleet, initial: State) -> Progress:
    """Write what does not change during the run, and return the progress of a run without rounds."""
    folder.begin(fleet.run)
    folder.write_recipe(dump_recipe(agreement.recipe))
    folder.write_json("environment.json", environment("fedsa", "torch", "safetensors", "numpy"))
    folder.write_text(AGREEMENT, agreement.text())
    folder.write_json("adapter_config.json", agreement.adapter.config)
    folder.register_clients(fleet.about_clients)
    folder.save_initial(initial)
    return Progress(fingerprints={"agreement": agreement.fingerprint()})


def _go_on(folder: RunFolder, fleet: RemoteFleet, gone: Collection[str], rounds: int) -> Progress | None:
    """Return how far an interrupted run is, once what the interruption left behind is gone; None: it has not begun.

    Args:
        folder: the run's.
        fleet: set up.
        gone: sites that have left.
        rounds: of the run.

    Raises:
        RunFolderError: a client is missing or new, or has other rows.
    """
    progress = folder.progress()
    if progress is None:
        return None
    begun = {c: about for c, about in folder.read_json(CLIENTS).items() if about["site"] not in gone}
    now = fleet.about_clients
    other = sorted({*begun} ^ {*now})
    if other:
        what = "is at no site any more" if other[0] in begun else "was not in the run when it began"
        raise RunFolderError(
            f"{folder.path}: client {other[0]!r} {what}: bring the sites of before, or start a new run"
        )
    changed = [client for client in sorted(now) if not now[client].items() <= begun[client].items()]
    if changed:
        raise RunFolderError(
            f"{folder.path}: client {changed[0]!r} has other rows or another site than when the run began: bring "
            "back those of before, or start a new run"
        )
    folder.go_on(progress)
    mark_left(folder, gone, progress, rounds)
    return progress
