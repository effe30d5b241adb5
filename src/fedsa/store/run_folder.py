"""The folder of a run: opened, locked, checked; rounds committed and rolled back."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fedsa.errors import RunFolderError, UserError
from fedsa.recipe import Recipe, parse_recipe
from fedsa.store.background import WriteBehind
from fedsa.store.client_states import ClientStateFiles, folders_by_number
from fedsa.store.commits import Commit, read_commit
from fedsa.store.files import by_key, by_name, load_tensors, remove, save_tensors, write_atomically
from fedsa.store.lines import METRICS, SENT, LinesFile
from fedsa.store.locked_folder import LockedFolder, entries_of
from fedsa.store.new_folder import NewFolder
from fedsa.store.server_states import ServerStateFiles
from fedsa.store.small_files import MEASURED, SUMMARY, SmallFiles
from fedsa.store.states import Progress
from fedsa.types import Key, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["CLIENTS", "RunFolder", "numbers_of", "recipe_of", "replace_clients", "require_clients"]

CLIENTS = "clients.json"
"""What is known of each client."""

_CHECKERS = 4  # threads that read files when a run goes on


@final
class RunFolder(SmallFiles):
    """A run's folder, opened for writing (with a lock) or for reading: what server and clients keep, in one place.

    Args:
        path: the folder.

    Attributes:
        run: the run's id; "" before it has begun.
        keeps_all_rounds: not only the files that are needed to go on and to export, but those of every round.
        server_states: what the server keeps.
        client_states: what the clients keep.
        sent: what has left the clients of a simulation.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.keeps_all_rounds = False
        self._folder, self._writes = LockedFolder(path), WriteBehind()
        self._metrics, self.sent = LinesFile(path, METRICS), LinesFile(path, SENT)
        self._new: NewFolder | None = None  # where `create` made the folder
        self._set_up("", {}, {})

    @classmethod
    def create(cls, path: Path, recipe: str) -> RunFolder:
        """Make the folder, write the recipe into it and lock it.

        Raises:
            RunFolderError: there is a run already.
            UserError: the folder cannot be written.
        """
        new = NewFolder(path)
        folder = cls(path)
        folder._new = new
        folder._lock()
        try:
            with folder._discarded_on_error():
                folder.write_recipe(recipe)
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def open(cls, path: Path, *, write: bool = False) -> RunFolder:
        """Open a run.

        Args:
            path: the run folder.
            write: lock it.

        Raises:
            RunFolderError: it is no run folder, of another format version, damaged, or in use.
        """
        if not (path / "recipe.toml").is_file():
            there = "is not a run folder (no recipe.toml in it)" if path.is_dir() else "does not exist"
            raise RunFolderError(f"{path} {there}; `fedsa run` makes one, by default below runs/")
        folder = cls(path)
        if write:
            folder._lock()
        try:
            commit = read_commit(path)
            if commit is None and any(path.rglob("round-*.safetensors")):
                raise folder.damaged("state.json", "it is missing")
            if commit is not None:
                folder._take_up(commit)
                if write:
                    folder._check(commit)
            elif write:
                folder.roll_back(Progress())
        except BaseException:
            folder.close()
            raise
        return folder

    @contextmanager
    def locked(self) -> Iterator[RunFolder]:
        """Hold the lock that `create` or `open` took, and release it at the end.

        A folder that `create` made goes again if an error comes before the run has begun.

        Raises:
            RunFolderError: the folder was moved or deleted meanwhile, whatever error told it first.
        """
        try:
            with self._discarded_on_error():
                yield self
        except (OSError, UserError):
            if self._new is None or not self._new.is_discarded:
                self._folder.require_there()
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Let the threads come to an end, and release the lock."""
        self.client_states.close()
        self._writes.close()
        self._folder.release()

    def read_metrics(self) -> str:
        """Return ``metrics.jsonl``, as far as the last commit.

        Raises:
            RunFolderError: it is missing, or is not what was written.
        """
        commit = read_commit(self.path)
        return "" if commit is None else self._metrics.read(self, commit).decode()

    def append_metrics(self, lines: Iterable[Mapping[str, Any]]) -> int:
        """Append lines to ``metrics.jsonl`` and return its length in bytes."""
        return self._metrics.append(lines)

    def begin(self, run: str) -> None:
        """Take the id of the run, which all its files of tensors get: the same for runs that give the same bytes."""
        self._set_up(run, {}, {})

    def register_clients(self, clients: Mapping[str, Mapping[str, Any]]) -> None:
        """Write ``clients.json``: what is known of each client, and the folder of its state."""
        table = _clients_table(clients)
        self.write_table(CLIENTS, table)
        self._set_up(self.run, *_folders_and_rounds(table))

    def save_initial(self, tensors: State) -> None:
        """Write the tensors that every client starts from."""
        save_tensors(self.path / "initial.safetensors", by_name(tensors), {"run": self.run})

    def load_initial(self) -> dict[Key, Tensor]:
        """Return the tensors that every client starts from."""
        tensors, _ = load_tensors(self.path / "initial.safetensors", {"run": self.run, "round": None, "client": None})
        return by_key(tensors)

    def commit(self, progress: Progress) -> None:
        """Make a round exist, once all its files are safe; the files that no round needs any more go after that.

        Raises:
            UserError: a file of the round could not be written, or the commit point; the round before is safe.
        """
        self._writes.settle()
        for name in MEASURED:
            self._files.pop(name, None)
        self._commit(progress)
        self._prune(progress)

    def finish(self, progress: Progress, summary: Mapping[str, Any]) -> None:
        """Write the summary: the run is finished once the commit point names it.

        Raises:
            UserError: it could not be written.
        """
        self.write_json(SUMMARY, summary)
        self._commit(progress)

    def settle(self) -> None:
        """Return when all that was written is safe, and all that no round needs any more is gone.

        Raises:
            UserError: a file could not be written or removed.
        """
        self._writes.settle()

    def roll_back(self, progress: Progress) -> None:
        """Remove what an interruption left behind, whichever write it came in.

        Raises:
            RunFolderError: ``metrics.jsonl`` has lost lines.
        """
        self._metrics.cut(self, progress.metrics_bytes)
        self.sent.cut(self, progress.sent_bytes)
        for path in [*self.path.glob(".*.tmp"), *self.path.glob(".*.partial")]:
            remove(path)
        self.server_states.roll_back(progress.round)
        self.client_states.roll_back(progress.round)
        self._prune(progress)
        self._writes.settle()

    def go_on(self, progress: Progress) -> None:
        """Remove what an interruption left behind, and count the interruption."""
        self.roll_back(progress)
        progress.interruptions += 1
        self.commit(progress)

    def _set_up(self, run: str, folders: Mapping[str, str], joined: Mapping[str, int]) -> None:
        """Take the run's id, and its clients with the names of their folders, and the round that each has joined in."""
        self.run = run
        self.server_states = ServerStateFiles(self._folder, run, joined, self._writes)
        self.client_states = ClientStateFiles(self._folder, self.path / "clients", run, folders, self._writes)

    def _lock(self) -> None:
        clients = self.path / "clients"
        self._folder.refuse_links(self.path, self.path / "server", clients, *entries_of(clients))
        self._folder.acquire()

    def _take_up(self, commit: Commit) -> None:
        """Learn what belongs to the run, which client's state is where, and that none is missing."""
        self.run, self._files, progress = commit.run, dict(commit.files), commit.progress
        try:
            entries = self.read_json(CLIENTS)
            folders, joined = _folders_and_rounds(entries)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise self.damaged(CLIENTS, "not what fedsa wrote") from None
        if folders != folders_by_number(folders):  # files below them are deleted: they must be our own
            raise self.damaged(CLIENTS, "its folders are not those that fedsa gives")
        self._set_up(commit.run, folders, joined)
        self.client_states.scan()
        for limit in {progress.round, progress.chosen_round or 0}:
            for client, version in self.server_states.client_versions(limit).items():
                # A later one will do: the client has trained since, and its update was lost. Sites keep their own.
                if "site" not in entries[client]:
                    self.client_states.require(client, version + 1, limit)

    def _check(self, commit: Commit) -> None:
        """Refuse to go on with files that are not what was written, before anything is written.

        All that the last and the chosen round need is read: a run must not find out after its last round.
        """
        self.check_hashes()
        self.load_initial()
        self._metrics.go_on(self, commit)
        self.sent.go_on(self, commit)
        progress = commit.progress
        is_finished = self.finished(progress.round) is not None  # else what clients were tested with is made anew
        with ThreadPoolExecutor(_CHECKERS, "fedsa-check") as threads:
            self.client_states.check({progress.round, progress.chosen_round or 0}, threads, personal=is_finished)

    def _commit(self, progress: Progress) -> None:
        self._folder.require_there()
        commit = Commit(progress, self.run, self._files, self._metrics.sha256, self.sent.sha256)
        write_atomically(self.path / "state.json", commit.text().encode())

    def _prune(self, progress: Progress) -> None:
        """Have the files deleted that no round needs any more, of whoever may have one."""
        if self.keeps_all_rounds:
            self.client_states.keep_all()
            return
        rounds = {progress.round} if progress.chosen_round is None else {progress.round, progress.chosen_round}
        self.server_states.prune(rounds)
        self.client_states.prune(rounds)

    @contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        """Remove a folder that `create` made, if an error comes before all else: then the same command works again."""
        try:
            yield
        except Exception:
            if self._new is not None and self._folder.is_there():
                self._new.discard(self.close)
            raise


def _clients_table(clients: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What ``clients.json`` holds: of each client the name of its folder, and what is known of it."""
    folders = folders_by_number(clients)
    return {client: {**clients[client], "folder": folders[client]} for client in sorted(clients)}


def numbers_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of ``clients.json`` without what only the run itself needs: a folder, and rows of each class."""
    return {name: value for name, value in entry.items() if name not in ("folder", "train_labels")}


def replace_clients(folder: RunFolder, clients: Mapping[str, Mapping[str, Any]], progress: Progress) -> None:
    """Write ``clients.json`` anew in the middle of a run, so that an interruption leaves the old one or the new one.

    Args:
        folder: a server's: no client has files in it.
        clients: of before, and those that have come; ``joined`` is the first round of one that was not there before.
        progress: how far the run is.

    Raises:
        UserError: a file cannot be written.
    """
    table = _clients_table(clients)
    folder.expect_table(CLIENTS, table)
    folder.commit(progress)
    folder.register_clients(table)
    folder.commit(progress)


def _folders_and_rounds(entries: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, int]]:
    """The name of each client's folder, and the first round that it was in, of what ``clients.json`` holds."""
    joined = {client: int(entry.get("joined", 0)) for client, entry in entries.items()}
    return {client: entry["folder"] for client, entry in entries.items()}, joined


def recipe_of(folder: SmallFiles) -> Recipe:
    """Return the recipe of a run.

    Raises:
        RunFolderError: it is damaged.
        ConfigError: it does not fit this version of fedsa.
    """
    text, path = folder.recipe_text(), folder.path / "recipe.toml"
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged ({error}): put it back from a copy, or start the run again") from None
    return parse_recipe(data, source=str(path))


def require_clients(folder: RunFolder) -> None:
    """Refuse the folder of a server across machines, where what is needed lies at the sites.

    Raises:
        RunFolderError: what to use in its place.
    """
    sites = {str(entry["site"]) for entry in folder.read_json(CLIENTS).values() if "site" in entry}
    if sites:
        raise RunFolderError(
            f"{folder.path} is the folder of a server: the model and the clients' tensors are at the sites "
            f"({', '.join(sorted(sites)[:5])}). Use the folder `run` of a site; to go on with the run, start its "
            "server again"
        )
