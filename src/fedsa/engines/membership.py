"""Sites that come and go while a run goes on: between two rounds, the run's clients are made those of the roster."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, final

from fedsa.agreement import Agreement
from fedsa.engines.remote import RemoteFleet
from fedsa.engines.roster import Roster
from fedsa.errors import ConfigError, Mistake, UserError
from fedsa.server import updates_in_round
from fedsa.store import Progress, RunFolder, replace_clients
from fedsa.store.run_folder import CLIENTS
from fedsa.texts.words import counted
from fedsa.types import Side

__all__ = ["Membership", "check_only_measured", "check_same_scale", "mark_left"]

_INVITE_SECONDS = 2.0  # that a site which has come is waited for before a round; it is asked again before the next one


def check_only_measured(agreement: Agreement) -> None:
    """Refuse clients that are measured and never train, where they would lack what others train for themselves.

    Raises:
        ConfigError: the method keeps something at the client, which such a client never gets.
    """
    recipe, algorithm = agreement.recipe, agreement.algorithm
    if recipe.personal_state == "reconstruct":
        return
    rounds, keys = range(1, recipe.rounds + 1), [*agreement.adapter.empty()]
    for key in keys:
        if key.factor.side is Side.HEAD and recipe.evaluation.fit_head_epochs:
            continue  # each client fits it when it is measured
        plans = [algorithm.plan(key, round) for round in rounds]
        if any(plan.trained for plan in plans) and not any(plan.received for plan in plans):
            why = (
                f"with {recipe.algorithm}, {key.factor.value} stays at the client that trains it: a client that never "
                "trains has none, and nothing could be measured. Let it train, set personal_state = 'reconstruct' "
                "(each client then fits such tensors when it is measured), or use a method that shares all of them"
            )
            raise ConfigError([Mistake("algorithm", why)], "a site that is only measured")


def check_same_scale(agreement: Agreement, before: int, after: int) -> None:
    """Refuse more clients, where the agreed scale of the adapter depends on how many train in a round.

    Args:
        agreement: of the federation.
        before: clients that train, as the federation began.
        after: clients that would.

    Raises:
        ConfigError: the scale would be another one.
    """
    recipe = agreement.recipe
    scales = [
        agreement.algorithm.scaling(1.0, recipe.adapter.rank, updates_in_round(recipe, count))
        for count in (before, after)
    ]
    if scales[0] != scales[1]:
        why = (
            f"the scale of {recipe.algorithm} is that of {counted(before, 'client')}, as all sites have agreed; with "
            f"{after} it would be another one. Begin a new federation with all sites"
        )
        raise ConfigError([Mistake("algorithm", why)], "a site that joins")


@final
class Membership:
    """Keeps the clients of a run what the roster says.

    Args:
        read: the roster as it is now.
        admit: lets a site's messages be carried from now on.
        dismiss: shuts a site out, for good.
        tell: is called with a line about each site that comes or goes.
        seconds: that a site which has come is waited for before each round.
    """

    def __init__(
        self,
        read: Callable[[], Roster],
        *,
        admit: Callable[[str], None] = lambda site: None,
        dismiss: Callable[[str], None] = lambda site: None,
        tell: Callable[[str], None] = lambda line: None,
        seconds: float = _INVITE_SECONDS,
    ) -> None:
        self._read, self._admit, self._dismiss, self._tell, self._seconds = read, admit, dismiss, tell, seconds
        self.roster = read()
        """As it was when it was looked at last."""
        self._shut_out = {*self.roster.left}  # the carrier has begun without these
        self._told = ""  # what was wrong with the roster when it was looked at last

    def follow(self, agreement: Agreement, folder: RunFolder, fleet: RemoteFleet, progress: Progress) -> bool:
        """Look at the roster: ask who has come, leave out who has gone, and write down who is in the next round.

        The round is then chosen anew, among those that follow: figures of before are of other clients.

        Args:
            agreement: what server and sites hold alike.
            folder: the run's.
            fleet: of the run.
            progress: how far it is.

        Returns:
            Whether the run has other clients than before.

        Raises:
            UserError: it cannot be written down.
        """
        self._look()
        entries: Mapping[str, Mapping[str, Any]] = folder.read_json(CLIENTS)
        next_round = progress.round + 1
        for site in self.roster.left:  # also one that was never taken in
            if site not in self._shut_out:
                self._dismiss(site)
                self._shut_out.add(site)
        gone = [site for site in self.roster.left if site in fleet.sites]
        for site in gone:
            fleet.leave_out(site)
            self._tell(f"{site} has left: from round {next_round} on it is not asked any more")
        progress.underway = {client: round for client, round in progress.underway.items() if client in fleet.clients}
        come = []
        for site, clients in self.roster.clients.items():
            if site in fleet.sites:
                continue
            self._admit(site)
            if fleet.invite(agreement, site, clients, self._seconds):
                come.append(site)
                self._tell(f"{site} has joined: it takes part from round {next_round} on")
        if not come and not gone:
            return False
        new = {client: about for client, about in fleet.about_clients.items() if client not in entries}
        joined = {client: {**about, "joined": next_round} for client, about in new.items()}
        _replace(folder, {**_with_left(entries, gone, next_round), **joined}, progress, agreement.recipe.rounds)
        return True

    def _look(self) -> None:
        """Read the roster; one that cannot be used is told, and the one of before holds."""
        try:
            roster = self._read()
            if roster.run != self.roster.run or not {*self.roster.sites} <= {*roster.sites}:
                raise UserError("the roster is of another federation, or lacks a site: `fedsa deploy leave` marks it")
        except UserError as error:
            if str(error) != self._told:
                self._told = str(error)
                self._tell(f"the roster stays as it was: {error}")
            return
        self.roster, self._told = roster.with_left(self.roster.left), ""


def mark_left(folder: RunFolder, sites: Collection[str], progress: Progress, rounds: int) -> None:
    """Write down that sites have left while the run was interrupted.

    Args:
        folder: the run's.
        sites: all that have left, now or before.
        progress: how far the run is.
        rounds: of the run. After the last one no other round can be chosen any more, so the choice stays.
    """
    entries: Mapping[str, Mapping[str, Any]] = folder.read_json(CLIENTS)
    after = _with_left(entries, sites, progress.round + 1)
    if after != entries:
        _replace(folder, after, progress, rounds)


def _with_left(
    entries: Mapping[str, Mapping[str, Any]], sites: Collection[str], round: int
) -> dict[str, Mapping[str, Any]]:
    """What ``clients.json`` holds, after sites have left before a round; of those that left earlier it says so."""
    return {client: {"left": round, **about} if about["site"] in sites else about for client, about in entries.items()}


def _replace(folder: RunFolder, entries: Mapping[str, Mapping[str, Any]], progress: Progress, rounds: int) -> None:
    """Write other clients down; while rounds are left, one is chosen anew, since scores of before are of others."""
    if progress.round < rounds:
        progress.chosen_round = progress.chosen_score = None
    replace_clients(folder, entries, progress)
