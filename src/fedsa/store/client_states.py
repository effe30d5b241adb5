"""What clients keep between rounds, at the site where they are: one file for each client and round that is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final
from urllib.parse import quote

from fedsa.errors import RunFolderError
from fedsa.store.background import ReadAhead, WriteBehind
from fedsa.store.files import by_key, by_name, load_tensors, packed, remove, save_tensors, sealed, write_error
from fedsa.store.locked_folder import LockedFolder, entries_of
from fedsa.store.rounds import last_until, round_file, round_of
from fedsa.store.states import ClientState
from fedsa.types import Key, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OPTIMIZER", "STEP", "ClientStateFiles", "folders_by_number", "open_states_of_site"]

OPTIMIZER, STEP = "optimizer|", "step|"
"""How the names begin of a client's tensors that only its training reads."""

_NAME_LENGTH = 60  # of a client's id in the name of its folder: with its number, as much as any file system takes
_DIGITS = 16  # of the hash of a client's id


def folders_by_number(clients: Iterable[str]) -> dict[str, str]:
    """The name of each client's folder where all clients are known: its number, and the beginning of its id."""
    return {client: f"{number:05d}-{_file_name(client)}" for number, client in enumerate(sorted(clients))}


def _folders_by_hash(clients: Iterable[str]) -> dict[str, str]:
    """The name of each client's folder by its own id alone, so that it stays when other clients come or go."""
    return {
        client: f"{_file_name(client)}-{hashlib.sha256(client.encode()).hexdigest()[:_DIGITS]}" for client in clients
    }


def _file_name(client: str) -> str:
    return quote(client, safe=" ").replace("%", "_")[:_NAME_LENGTH].strip(" .")


@final
class ClientStateFiles:
    """The states of some clients of one run.

    A state that is saved for a round takes the place of those of later rounds: they came of a history that was given
    up. Files are written and removed behind the training; once `settle` returns, all of it has happened.

    Args:
        folder: what is locked: the folder that holds the clients' folders, or the run's around it.
        path: the folder that holds the clients' folders.
        run: the run's id, which stands in each file.
        folders: client id to the name of its folder.
        writes: writes and removes the files.
    """

    def __init__(
        self, folder: LockedFolder, path: Path, run: str, folders: Mapping[str, str], writes: WriteBehind
    ) -> None:
        self._folder, self._path = folder, path
        self._run, self._folders, self._writes = run, folders, writes
        self._reads: ReadAhead[tuple[str, int], ClientState | None] = ReadAhead()
        self._kept: dict[str, list[int]] = {}  # client -> rounds of its files, ascending
        self._twice: set[str] = set()  # clients that need two files: the last and an earlier round's
        self._saved: set[str] = set()  # clients with a new file since files were last pruned
        self._pruned_for: frozenset[int] = frozenset()  # the earlier rounds that files were last pruned for

    def close(self) -> None:
        """Let the threads come to an end, and release the lock. What is not settled may be lost."""
        self._reads.close()
        self._writes.close()
        self._folder.release()

    def settle(self) -> None:
        """Return when all that was saved is safe on the disk, and all that was pruned is gone.

        Raises:
            UserError: a file could not be written or removed.
        """
        self._writes.settle()

    def save_client(self, client: str, round: int, state: ClientState) -> None:
        """Write a client's state after it trained in a round, some time before `settle` returns.

        Raises:
            RunFolderError: there is no such client.
            UserError: this or an earlier file cannot be written.
        """
        path = self.path_of(client, round)
        if client not in self._kept:
            self._folder.make(path.parent)
        rounds = self._kept.setdefault(client, [])
        if rounds and rounds[-1] >= round:
            self._writes.settle()
            self._forget_after(client, round)
        tensors = by_name(state.tensors)
        for prefix, slots in ((OPTIMIZER, state.optimizer_state), (STEP, state.step_state)):
            tensors |= {f"{prefix}{name}": value for name, value in slots.items()}
        about = {"held": state.version, "run": self._run, "client": client, "round": round}
        self._writes.write(path, partial(sealed, packed(tensors, about)))
        if round not in rounds[-1:]:
            rounds.append(round)
        self._saved.add(client)

    def load_client(self, client: str, round: int) -> ClientState | None:
        """Return a client's state as it was after ``round``, or None if it had not trained by then.

        Raises:
            RunFolderError: there is no such client, or its file is damaged.
        """
        self._require_known(client)
        return self._reads.get((client, round), self._read)

    def last_round(self, client: str) -> int:
        """Return the last round whose state of a client is kept; 0: there is none."""
        return max(self._kept.get(client, []), default=0)

    def load_ahead(self, clients: Iterable[str], round: int) -> None:
        """Begin to read the states that `load_client` will be asked for, in this order, a few at a time."""
        self._reads.expect(((client, round) for client in clients if client in self._kept), self._read)

    def save_personal(self, client: str, round: int, tensors: State) -> None:
        """Write what a client was tested with after a round.

        Where no state tells it, this is the only file that does. Where one tells the rest, it may be a part: the head
        that was fitted for the test. At a site that exports, it is always all of it.

        Raises:
            RunFolderError: there is no such client.
            UserError: the file cannot be written.
        """
        path = self._personal_file(client, round)
        self._folder.make(path.parent)
        save_tensors(path, by_name(tensors), self._whose(client, round, personal=True))

    def load_personal(self, client: str, round: int) -> dict[Key, Tensor] | None:
        """The tensors that `save_personal` wrote, or None.

        Raises:
            RunFolderError: there is no such client, or its file is damaged.
        """
        path = self._personal_file(client, round)
        return by_key(load_tensors(path, self._whose(client, round, personal=True))[0]) if path.exists() else None

    def path_of(self, client: str, round: int) -> Path:
        """The path of a client's state after it trained in a round, whether it is there or not.

        Raises:
            RunFolderError: there is no such client.
        """
        self._require_known(client)
        return round_file(self._path / self._folders[client], round)

    def prune(self, rounds: Collection[int]) -> None:
        """Have the files removed that no round needs, some time before `settle` returns.

        Args:
            rounds: those that are needed: of each client, the last state that is not after one of them stays.
        """
        self._reads.forget()
        earlier = frozenset(rounds) - {max(rounds, default=0)}
        candidates = self._saved if earlier == self._pruned_for else self._saved | self._twice
        for client in sorted(candidates):
            kept = self._kept[client]
            needed = {last_until(kept, limit) for limit in rounds}
            for round in [round for round in kept if round not in needed]:
                self._writes.remove(self.path_of(client, round))
                kept.remove(round)
            (self._twice.add if len(kept) > 1 else self._twice.discard)(client)
        self._saved, self._pruned_for = set(), earlier

    def keep_all(self) -> None:
        """Let every file stay that is there now: what `prune` is for a run that keeps all rounds."""
        self._reads.forget()
        self._saved = set()

    def roll_back(self, round: int) -> None:
        """Remove what later rounds, and half a write, left behind.

        Raises:
            RunFolderError: there are files that are none of these clients'.
            UserError: a file cannot be removed.
        """
        for half in self.scan():
            remove(half)
        for client in self._kept:
            self._forget_after(client, round)

    def scan(self) -> list[Path]:
        """Learn which rounds' files each client has, and return what half a write left among them.

        The next `prune` looks at every client.

        Raises:
            RunFolderError: there are files that are none of these clients'.
        """
        names = {folder: client for client, folder in self._folders.items()}
        self._kept, halves = {}, []
        for place in entries_of(self._path):
            files = entries_of(place)
            halves += [path for path in files if path.name.startswith(".") and path.suffix == ".partial"]
            rounds = sorted(round_of(path) for path in files if path.match("round-*.safetensors"))
            if rounds and place.name not in names:
                raise RunFolderError(f"{place} is not a folder that fedsa made: move it out of the run folder")
            if rounds:
                self._kept[names[place.name]] = rounds
        self._saved = set(self._kept)
        return halves

    def require(self, client: str, first: int, last: int) -> None:
        """Refuse to go on without a state of one of some rounds.

        Args:
            client: its id.
            first: the first round whose state will do.
            last: the last one.

        Raises:
            RunFolderError: there is none.
        """
        if not any(first <= round <= last for round in self._kept.get(client, [])):
            raise RunFolderError(
                f"{self.path_of(client, first)} is missing: put it back from a copy, or start the run again"
            )

    def check(self, limits: Collection[int], threads: Executor, *, personal: bool) -> None:
        """Read every file that is needed, so that none is found to be damaged later.

        Args:
            limits: rounds whose states are needed.
            threads: read the files.
            personal: what `save_personal` wrote is needed too.

        Raises:
            RunFolderError: a file is damaged, or somebody else's.
        """
        needed = {(client, last_until(rounds, limit)) for client, rounds in self._kept.items() for limit in limits}
        states = sorted((client, round) for client, round in needed if round is not None)
        fitted = [(client, round) for client in self._folders for round in self._personal_rounds(client)]
        for _ in threads.map(lambda which: self._load(*which), states):
            pass
        for _ in threads.map(lambda which: self.load_personal(*which), fitted if personal else []):
            pass

    def _read(self, which: tuple[str, int]) -> ClientState | None:
        client, limit = which
        round = last_until(self._kept.get(client, []), limit)
        if round is None:
            return None
        self._writes.wait(self.path_of(client, round))
        return self._load(client, round)

    def _load(self, client: str, round: int) -> ClientState:
        tensors, about = load_tensors(self.path_of(client, round), self._whose(client, round))
        optimizer_state, step_state = (
            {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
            for prefix in (OPTIMIZER, STEP)
        )
        if type(about.get("held")) is not int:
            raise RunFolderError(
                f"{self.path_of(client, round)} is damaged (it is not a client's): put it back from a copy"
            )
        return ClientState(by_key(tensors), optimizer_state, about["held"], step_state)

    def _whose(self, client: str, round: int, *, personal: bool | None = None) -> dict[str, object]:
        return {"run": self._run, "client": client, "round": round, "personal": personal}

    def _forget_after(self, client: str, round: int) -> None:
        rounds = self._kept[client]
        while rounds and rounds[-1] > round:
            remove(self.path_of(client, rounds.pop()))

    def _personal_file(self, client: str, round: int) -> Path:
        self._require_known(client)
        return round_file(self._path / self._folders[client], round, "personal")

    def _personal_rounds(self, client: str) -> list[int]:
        return sorted(map(round_of, (self._path / self._folders[client]).glob("personal-*.safetensors")))

    def _require_known(self, client: str) -> None:
        if client not in self._folders:
            raise RunFolderError(
                f"run {self._folder.path} has no client {client!r}; its clients: {', '.join(self._folders)}"
            )


def open_states_of_site(path: Path, run: str, clients: Iterable[str]) -> ClientStateFiles:
    """Open a site's own folder of its clients' states, with a lock; it is made where it is not there.

    What was saved there and not pruned is there again, also after a crash. Files that a crash left half written go.

    Args:
        path: the folder. Runs must not share one.
        run: the run's id.
        clients: ids of the site's clients.

    Raises:
        RunFolderError: it is in use, or has states that are not of these clients.
        UserError: it cannot be written.
    """
    folder = LockedFolder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    folder.acquire()
    states = ClientStateFiles(folder, path, run, _folders_by_hash(clients), WriteBehind())
    try:
        folder.refuse_links(path, *entries_of(path))
        for half in states.scan():
            remove(half)
    except BaseException:
        states.close()
        raise
    return states
