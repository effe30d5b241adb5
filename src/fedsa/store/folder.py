"""The folder of a run: opened, locked, checked; files of a round written, committed, rolled back."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from urllib.parse import quote

import torch
from filelock import FileLock, Timeout

from fedsa.errors import RunFolderError, UserError
from fedsa.recipe import Recipe, parse_recipe
from fedsa.store.background import ReadAhead, WriteBehind
from fedsa.store.commits import Commit, read_commit
from fedsa.store.files import (
    by_key,
    by_name,
    hash_of,
    load_tensors,
    packed,
    read_file,
    remove,
    save_tensors,
    sealed,
    write_atomically,
    write_error,
)
from fedsa.store.states import ClientState, Progress
from fedsa.texts.json_text import parsed_json
from fedsa.texts.words import counted
from fedsa.types import Key, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["RunFolder", "recipe_of"]

_SLOT = "slot|"
_OPTIMIZER, _STEP = "optimizer|", "step|"  # in a client's file
_LAST_TRAINED = "last_trained"  # in the server's file: for each client of clients.json, the round it last trained in
_ROUND_FILE = re.compile(r"(?:round|personal)-(\d{6})\.safetensors")
_FIRST_FILES = {"recipe.toml", ".recipe.toml.partial", ".lock"}  # all that `create` writes
_SEAL = "# sha256 of the lines above, so that a change is noticed: "
_SUMMARY = "summary.json"
_MEASURED = (_SUMMARY, "samples.json")  # what is written when all rounds are done, and can be made again
_CHECKERS = 4  # threads that read files when a run goes on


@final
class RunFolder:
    """A run's folder, opened for writing (with a lock) or for reading.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock")
        self._kept: dict[str, list[int]] = {}  # client -> rounds of its files, ascending
        self._twice: set[str] = set()  # clients that need two files: the last and the chosen round's
        self._saved: set[str] = set()  # clients with a new file since files were last pruned
        self._pruned_for: int | None = None  # the chosen round when they were
        self._folders: dict[str, str] = {}
        self._writes = WriteBehind()
        self._reads: ReadAhead[tuple[str, int], ClientState | None] = ReadAhead()
        self._run = ""  # the run's id
        self._files: dict[str, str] = {}  # the hash of each small file that belongs to the run
        self._metrics = hashlib.sha256()  # of metrics.jsonl, as far as it is written
        self._place: tuple[int, int] | None = None  # device and inode of the folder that is written
        self._made: list[Path] = []  # the folders that `create` made, innermost first
        self._is_new, self._is_discarded = False, False
        self.keeps_all_rounds = False
        """Not only the files that are needed to go on and to export, but those of every round."""

    @classmethod
    def create(cls, path: Path, recipe: str) -> RunFolder:
        """Make the folder, write the recipe into it and lock it.

        Raises:
            RunFolderError: there is a run already.
            UserError: the folder cannot be written.
        """
        if (path / "recipe.toml").exists():
            raise RunFolderError(
                f"{path} holds a run already: `fedsa resume {path}` continues it, --out (in Python `out`) takes "
                "another folder"
            )
        # A `create` that was killed may have left its first files.
        if path.exists() and (not path.is_dir() or {entry.name for entry in path.iterdir()} - _FIRST_FILES):
            raise RunFolderError(f"{path} is not an empty folder: give --out (in Python `out`) a new one")
        folder = cls(path)
        folder._made = [place for place in (path, *path.parents) if not place.exists()]
        folder._is_new = True
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(path, error) from error
        folder._refuse_links()
        folder._acquire()
        with folder._discarded_on_error():
            folder.write_recipe(recipe)
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
            folder._refuse_links()
            folder._acquire()
        try:
            commit = read_commit(path)
            if commit is None and any(path.rglob("round-*.safetensors")):
                raise folder._damaged("state.json", "it is missing")
            if commit is not None:
                folder._run, folder._files = commit.run, dict(commit.files)
                folder._find_clients(commit.progress)
                if write:
                    folder._check(commit)
            elif write:
                folder.roll_back(Progress())
        except BaseException:
            folder.close()
            raise
        return folder

    def _refuse_links(self) -> None:
        """Refuse to write and delete through links: they may lead anywhere.

        The folder itself may be reached through one: that is what the user named.
        """
        places = [self.path, self.path / "server", self.path / "clients", *_entries(self.path / "clients")]
        for place in places:
            for entry in _entries(place):
                if entry.is_symlink():
                    raise RunFolderError(
                        f"{entry} is a link, and a run writes and deletes nothing through links: put the file or "
                        "folder itself there, or move the link out of the run folder"
                    )

    def _check(self, commit: Commit) -> None:
        """Refuse to go on with files that are not what was written, before anything is written.

        All that the last and the chosen round need is read: a run must not find out after its last round.
        """
        for name in self._files:
            if name not in _MEASURED:
                self._read(name)
        self.recipe_text()
        self.load_initial()
        self._metrics = hashlib.sha256(self._checked_metrics(commit))
        progress = commit.progress
        limits = {progress.round, progress.chosen_round or 0}
        needed = {
            (client, round)
            for client, rounds in self._kept.items()
            for round in (_last(rounds, limit) for limit in limits)
            if round is not None
        }
        personal = []
        if self.finished(progress.round):  # else they are made anew
            personal = [(client, _round_of(path)) for client in self._folders for path in self._personal_files(client)]
        with ThreadPoolExecutor(_CHECKERS, "fedsa-check") as threads:
            for _ in threads.map(lambda key: self._load_client_file(*key), sorted(needed)):
                pass
            for _ in threads.map(lambda key: self.load_personal(*key), personal):
                pass

    def _find_clients(self, progress: Progress) -> None:
        """Learn which client's state is where, and that none is missing."""
        try:
            self._folders = {client: entry["folder"] for client, entry in self.read_json("clients.json").items()}
        except (AttributeError, KeyError, TypeError):
            raise self._damaged("clients.json", "not what fedsa wrote") from None
        if self._folders != _folders_of(self._folders):  # files below them are deleted: they must be our own
            raise self._damaged("clients.json", "its folders are not those that fedsa gives")
        self._scan()
        for limit in {progress.round, progress.chosen_round or 0}:
            for client, held in self.load_held(limit).items():
                # A later one will do: the client has trained since, and its update was lost.
                if not any(held + 1 <= kept <= limit for kept in self._kept.get(client, [])):
                    path = self._client_file(client, held + 1)
                    raise RunFolderError(f"{path} is missing: put it back from a copy, or start the run again")

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
            status = self.path.stat()
            self._place = (status.st_dev, status.st_ino)
        except Timeout:
            raise RunFolderError(
                f"{self.path} is in use: another fedsa process is writing this run; wait for it, or end it first"
            ) from None
        except OSError as error:
            raise write_error(self.path, error) from error

    def close(self) -> None:
        """Let the threads come to an end, and release the lock."""
        self._reads.close()
        self._writes.close()
        self._lock.release()

    def finished(self, rounds: int) -> dict[str, Any] | None:
        """Return the summary if all ``rounds`` are done and measured, else None: what is lost is measured again."""
        commit = read_commit(self.path)
        if commit is None or commit.progress.round != rounds or _SUMMARY not in commit.files:
            return None
        try:
            read = {name: self.read_json(name) for name in _MEASURED if self.has(name)}
        except RunFolderError:
            return None
        summary: dict[str, Any] = read[_SUMMARY]
        return summary

    @property
    def run(self) -> str:
        """The run's id."""
        return self._run

    @property
    def is_measured(self) -> bool:
        """Whether there is a summary, by the commit point."""
        return self.has(_SUMMARY)

    def has(self, name: str) -> bool:
        """Say whether a small file belongs to the run."""
        return name in self._files

    def is_there(self) -> bool:
        """Say whether the folder that was opened for writing is where it was: not moved, deleted or replaced."""
        try:
            status = self.path.stat()
        except OSError:
            return False
        return self._place in (None, (status.st_dev, status.st_ino))

    def _require_there(self) -> None:
        if not self.is_there():
            raise RunFolderError(
                f"{self.path} was moved, deleted or replaced while it was being written. What was finished is safe in "
                "it, wherever it is now: put it back, then `fedsa resume` it; if it is gone, start the run again"
            )

    @contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        """Remove a folder that `create` made, if an error comes before anything else is in it.

        So the same command works once the mistake is mended.
        """
        try:
            yield
        except Exception:
            if self._is_new and self.is_there() and {entry.name for entry in self.path.iterdir()} <= _FIRST_FILES:
                self._is_discarded = True
                with suppress(OSError):
                    (self.path / "recipe.toml").unlink(missing_ok=True)
                    self.close()
                    for entry in list(self.path.iterdir()):
                        entry.unlink()
                    for place in self._made:
                        place.rmdir()
            raise

    # -- small files -------------------------------------------------------------------------------------------------

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run, atomically; the next commit point has its hash."""
        content = text.encode()
        write_atomically(self.path / name, content)
        self._files[name] = hash_of(content)

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file of the run, atomically."""
        self.write_text(name, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_table(self, name: str, table: Mapping[str, Any]) -> None:
        """Write a JSON file of the run that has an entry for every client, atomically; each on a line of its own."""
        lines = [
            f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(table[key], ensure_ascii=False)}" for key in table
        ]
        self.write_text(name, "{\n" + ",\n".join(lines) + "\n}\n")

    def write_recipe(self, recipe: str) -> None:
        """Write ``recipe.toml``, with its hash in a last line: it is there before any commit point."""
        self.write_text("recipe.toml", f"{recipe}{_SEAL}{hash_of(recipe.encode())}\n")

    def recipe_text(self) -> str:
        """Return the recipe, as `write_recipe` was given it.

        Raises:
            RunFolderError: it is missing or was changed.
        """
        text, _, seal = self.read_text("recipe.toml").rpartition(_SEAL)
        if seal.strip() != hash_of(text.encode()):
            raise self._changed("recipe.toml")
        return text

    def read_text(self, name: str) -> str:
        """Return a small text file of the run.

        Raises:
            RunFolderError: it is missing, or is not what was written.
        """
        try:
            return self._read(name).decode()
        except UnicodeDecodeError as error:
            raise self._damaged(name, error) from None

    def read_json(self, name: str) -> Any:
        """Return what a JSON file of the run holds.

        Raises:
            RunFolderError: it is missing, or is not what was written.
        """
        try:
            return parsed_json(self.read_text(name))
        except ValueError as error:
            raise self._damaged(name, error) from None

    def read_metrics(self) -> str:
        """Return ``metrics.jsonl``, as far as the last commit.

        Raises:
            RunFolderError: it is missing, or is not what was written.
        """
        commit = read_commit(self.path)
        return "" if commit is None else self._checked_metrics(commit).decode()

    def check_file(self, name: str) -> Path:
        """Return the path of a small file of the run, for others to read.

        Raises:
            RunFolderError: it is missing, or is not what was written.
        """
        self._read(name)
        return self.path / name

    def _read(self, name: str) -> bytes:
        try:
            content = read_file(self.path / name)
        except FileNotFoundError:
            raise RunFolderError(f"{self.path / name} is missing: {self._mend(name)}") from None
        except OSError as error:
            raise self._damaged(name, error.strerror or error) from None
        if self._files.get(name, hash_of(content)) != hash_of(content):
            raise self._changed(name)
        return content

    def _checked_metrics(self, commit: Commit) -> bytes:
        """Return the metrics that were written by a commit; an interruption may have left more."""
        content = self._metrics_so_far(commit.progress)
        if self.is_measured and len(content) > commit.progress.metrics_bytes:
            raise self._changed("metrics.jsonl")
        content = content[: commit.progress.metrics_bytes]
        if hash_of(content) != commit.metrics:
            raise self._changed("metrics.jsonl")
        return content

    def _metrics_so_far(self, progress: Progress) -> bytes:
        """Return all that is in ``metrics.jsonl``: an interruption may have left more than was committed."""
        name, size = "metrics.jsonl", progress.metrics_bytes
        content = self._read(name) if size or (self.path / name).exists() else b""
        if len(content) < size:
            raise self._damaged(name, f"{counted(len(content), 'byte')}, {size} were written")
        return content

    def _changed(self, name: str) -> RunFolderError:
        return RunFolderError(
            f"{self.path / name} was changed after it was written, or is of another run: {self._mend(name)}"
        )

    def _damaged(self, name: str, why: object) -> RunFolderError:
        return RunFolderError(f"{self.path / name} is damaged ({why}): {self._mend(name)}")

    def _mend(self, name: str) -> str:
        if name in _MEASURED:
            return f"`fedsa resume {shlex.quote(str(self.path))}` measures the finished run again and writes it anew"
        return "put it back as it was from a copy, or start a new run"

    # -- the commit point --------------------------------------------------------------------------------------------

    def begin(self, run: str) -> None:
        """Take the id of the run, which all its files of tensors get: the same for runs that give the same bytes."""
        self._run = run

    def progress(self) -> Progress | None:
        """Return how far the run is, or None before its first commit.

        Raises:
            RunFolderError: it is damaged, or of another format version.
        """
        commit = read_commit(self.path)
        return None if commit is None else commit.progress

    def commit(self, progress: Progress) -> None:
        """Make a round exist, once all its files are safe; the files that no round needs any more go after that.

        Raises:
            UserError: a file of the round could not be written, or the commit point; the round before is safe.
        """
        self._writes.settle()
        for name in _MEASURED:
            self._files.pop(name, None)
        self._commit(progress)
        self._prune(progress)

    def settle(self) -> None:
        """Return when all that was written is safe, and all that no round needs any more is gone.

        Raises:
            UserError: a file could not be written or removed.
        """
        self._writes.settle()

    def finish(self, progress: Progress, summary: Mapping[str, Any]) -> None:
        """Write the summary: the run is finished once the commit point names it.

        Raises:
            UserError: it could not be written.
        """
        self.write_json(_SUMMARY, summary)
        self._commit(progress)

    def _commit(self, progress: Progress) -> None:
        self._require_there()
        commit = Commit(progress, self._run, self._files, self._metrics.hexdigest())
        write_atomically(self.path / "state.json", commit.text().encode())

    def _prune(self, progress: Progress) -> None:
        """Have the files deleted that no round needs any more, of whoever may have one."""
        self._reads.forget()
        if self.keeps_all_rounds:
            self._saved = set()
            return
        keep = {progress.round, progress.chosen_round}
        for path in (self.path / "server").glob("round-*.safetensors"):
            if _round_of(path) not in keep:
                self._writes.remove(path)
        chosen_anew = progress.chosen_round != self._pruned_for
        for client in sorted(self._saved | self._twice if chosen_anew else self._saved):
            rounds = self._kept[client]
            needed = {_last(rounds, limit) for limit in keep if limit is not None}
            for round in [round for round in rounds if round not in needed]:
                self._writes.remove(self._client_file(client, round))
                rounds.remove(round)
            (self._twice.add if len(rounds) > 1 else self._twice.discard)(client)
        self._saved, self._pruned_for = set(), progress.chosen_round

    def roll_back(self, progress: Progress) -> None:
        """Remove what an interruption left behind, whichever write it came in.

        Raises:
            RunFolderError: ``metrics.jsonl`` has lost lines.
        """
        metrics = self.path / "metrics.jsonl"
        content = self._metrics_so_far(progress)
        self._metrics = hashlib.sha256(content[: progress.metrics_bytes])
        if len(content) > progress.metrics_bytes or (content and metrics.stat().st_nlink > 1):
            # Written anew, not cut or appended to: the same file may have another name elsewhere (a hard link).
            write_atomically(metrics, content[: progress.metrics_bytes])
        for path in [*self.path.glob(".*.tmp"), *self.path.glob(".*.partial"), *self.path.glob("server/.*.partial")]:
            remove(path)
        for path in (self.path / "server").glob("round-*.safetensors"):
            if _round_of(path) > progress.round:
                remove(path)
        for path in self._scan():
            remove(path)
        for client, rounds in self._kept.items():
            while rounds and rounds[-1] > progress.round:
                remove(self._client_file(client, rounds.pop()))
        self._saved = set(self._kept)
        self._prune(progress)
        self._writes.settle()

    def append_metrics(self, lines: Iterable[Mapping[str, Any]]) -> int:
        """Append lines to ``metrics.jsonl`` and return its length in bytes."""
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines).encode()
        path = self.path / "metrics.jsonl"
        try:
            with path.open("ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                length = file.tell()
        except OSError as error:
            raise write_error(path, error) from error
        self._metrics.update(text)
        return length

    # -- tensors -----------------------------------------------------------------------------------------------------

    def register_clients(self, clients: Mapping[str, Mapping[str, Any]]) -> None:
        """Write ``clients.json``: what is known of each client, and the folder of its state."""
        folders = _folders_of(clients)
        self.write_table(
            "clients.json", {client: {"folder": folders[client], **clients[client]} for client in sorted(clients)}
        )
        self._folders = folders
        self._kept = {}

    def save_initial(self, tensors: State) -> None:
        """Write the tensors that every client starts from."""
        save_tensors(self.path / "initial.safetensors", by_name(tensors), {"run": self._run})

    def load_initial(self) -> dict[Key, Tensor]:
        """Return the tensors that every client starts from."""
        tensors, _ = load_tensors(self.path / "initial.safetensors", {"run": self._run, "round": None, "client": None})
        return by_key(tensors)

    def save_server(
        self,
        round: int,
        tensors: State,
        versions: Mapping[Key, int],
        client_versions: Mapping[str, int],
        slots: Mapping[str, Tensor] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the server's state after a round.

        Args:
            round: its number.
            tensors: the server's tensors.
            versions: of each of them.
            client_versions: client id to the newest version that it holds, for whoever has trained: the one before
                the round of its last training.
            slots: further tensors by name.
            about: further values, as JSON has them.
        """
        path = self.path / "server" / f"round-{round:06d}.safetensors"
        last = torch.tensor([client_versions.get(client, -1) + 1 for client in self._folders], dtype=torch.int32)
        own = {"versions": {str(key): version for key, version in versions.items()}}
        named = {f"{_SLOT}{name}": tensor for name, tensor in (slots or {}).items()}
        self._make(path.parent)
        content = packed(
            {**by_name(tensors), **named, _LAST_TRAINED: last},
            {**(about or {}), **own, "run": self._run, "round": round},
        )
        self._writes.write(path, partial(sealed, content))

    def kept_rounds(self) -> list[int]:
        """Return the rounds whose state is kept, ascending."""
        return sorted(_round_of(path) for path in (self.path / "server").glob("round-*.safetensors"))

    def load_server(self, round: int) -> tuple[dict[Key, Tensor], dict[Key, int], dict[str, Tensor], dict[str, Any]]:
        """Return the server's tensors, their versions, further tensors and further values after a round that is kept.

        Raises:
            RunFolderError: the round is not kept, or its file is damaged.
        """
        tensors, about = self._load_server(round)
        for name in ("run", "round", "format"):
            del about[name]
        del tensors[_LAST_TRAINED]
        slots = {name.removeprefix(_SLOT): tensors.pop(name) for name in list(tensors) if name.startswith(_SLOT)}
        versions = {Key.parse(name): version for name, version in about.pop("versions").items()}
        return by_key(tensors), versions, slots, about

    def load_held(self, round: int) -> dict[str, int]:
        """Return, for each client that had trained by a round that is kept, the newest version it had taken in.

        Raises:
            RunFolderError: the round is not kept, or its file is damaged.
        """
        if round < 1:
            return {}
        last = self._load_server(round)[0][_LAST_TRAINED].tolist()
        if len(last) != len(self._folders):
            raise self._damaged(
                "clients.json",
                f"{counted(len(self._folders), 'client is', 'clients are')} in it, the run has {len(last)}",
            )
        return {client: trained - 1 for client, trained in zip(self._folders, last, strict=True) if trained}

    def _load_server(self, round: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path = self.path / "server" / f"round-{round:06d}.safetensors"
        self._writes.wait(path)
        tensors, about = load_tensors(path, {"run": self._run, "round": round, "client": None})
        if _LAST_TRAINED not in tensors or "versions" not in about:
            raise self._damaged(f"server/{path.name}", "it is not a server's")
        return tensors, about

    def save_client(self, client: str, round: int, state: ClientState) -> None:
        """Write a client's state after it trained in a round; it is on the disk when the round is committed.

        Raises:
            UserError: this or an earlier file cannot be written.
        """
        tensors = by_name(state.tensors)
        for prefix, slots in ((_OPTIMIZER, state.optimizer_state), (_STEP, state.step_state)):
            tensors |= {f"{prefix}{name}": value for name, value in slots.items()}
        path = self._client_file(client, round)
        if client not in self._kept:
            self._make(path.parent)
        about = {"held": state.version, "run": self._run, "client": client, "round": round}
        self._writes.write(path, partial(sealed, packed(tensors, about)))
        self._kept.setdefault(client, []).append(round)
        self._saved.add(client)

    def save_personal(self, client: str, round: int, tensors: State) -> None:
        """Write what a client uses after a round that cannot be told from other files: it was fitted to its rows.

        Raises:
            UserError: the file cannot be written.
        """
        path = self._personal_file(client, round)
        self._make(path.parent)
        save_tensors(path, by_name(tensors), {"run": self._run, "client": client, "round": round, "personal": True})

    def load_personal(self, client: str, round: int) -> dict[Key, Tensor] | None:
        """Return what `save_personal` wrote, or None.

        Raises:
            RunFolderError: there is no such client, or its file is damaged.
        """
        path = self._personal_file(client, round)
        if not path.exists():
            return None
        whose = {"run": self._run, "client": client, "round": round, "personal": True}
        return by_key(load_tensors(path, whose)[0])

    def _personal_file(self, client: str, round: int) -> Path:
        if client not in self._folders:
            raise RunFolderError(f"run {self.path} has no client {client!r}; its clients: {', '.join(self._folders)}")
        return self.path / "clients" / self._folders[client] / f"personal-{round:06d}.safetensors"

    def _personal_files(self, client: str) -> list[Path]:
        return sorted((self.path / "clients" / self._folders[client]).glob("personal-*.safetensors"))

    def load_ahead(self, clients: Iterable[str], round: int) -> None:
        """Begin to read the states that `load_client` will be asked for, in this order, a few at a time."""
        self._reads.expect(((client, round) for client in clients if client in self._kept), self._read_client)

    def load_client(self, client: str, round: int) -> ClientState | None:
        """Return a client's state as it was after ``round``, or None if it had not trained by then.

        Raises:
            RunFolderError: there is no such client, or its file is damaged.
        """
        if client not in self._folders:
            raise RunFolderError(f"run {self.path} has no client {client!r}; its clients: {', '.join(self._folders)}")
        return self._reads.get((client, round), self._read_client)

    def _read_client(self, which: tuple[str, int]) -> ClientState | None:
        client, round = which
        found = _last(self._kept.get(client, []), round)
        if found is None:
            return None
        path = self._client_file(client, found)
        self._writes.wait(path)
        return self._load_client_file(client, found)

    def _load_client_file(self, client: str, round: int) -> ClientState:
        whose = {"run": self._run, "client": client, "round": round, "personal": None}
        tensors, about = load_tensors(self._client_file(client, round), whose)
        optimizer_state, step_state = (
            {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
            for prefix in (_OPTIMIZER, _STEP)
        )
        return ClientState(by_key(tensors), optimizer_state, about["held"], step_state)

    def _client_file(self, client: str, round: int) -> Path:
        return self.path / "clients" / self._folders[client] / f"round-{round:06d}.safetensors"

    def _scan(self) -> list[Path]:
        """Learn which rounds' files each client has, and return what half a write left among them."""
        names = {folder: client for client, folder in self._folders.items()}
        self._kept, halves = {}, []
        for place in _entries(self.path / "clients"):
            files = _entries(place)
            halves += [path for path in files if path.name.startswith(".") and path.suffix == ".partial"]
            rounds = sorted(_round_of(path) for path in files if path.match("round-*.safetensors"))
            if rounds and place.name not in names:
                raise RunFolderError(f"{place} is not a folder that fedsa made: move it out of the run folder")
            if rounds:
                self._kept[names[place.name]] = rounds
        return halves

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
            if not self._is_discarded:
                self._require_there()
            raise
        finally:
            self.close()

    def _make(self, place: Path) -> None:
        """Make a folder in the run's. The run's own is never made again: it would be empty beside what was moved.

        Raises:
            RunFolderError: another folder is in its place.
        """
        self._require_there()
        try:
            if place.parent != self.path:
                place.parent.mkdir(exist_ok=True)
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(place, error) from error


def recipe_of(folder: RunFolder) -> Recipe:
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


def _folders_of(clients: Iterable[str]) -> dict[str, str]:
    """Return the name of each client's folder: its number, and as much of its id as any file system takes."""
    return {
        client: f"{number:05d}-{quote(client, safe=' ').replace('%', '_')[:60].strip(' .')}"
        for number, client in enumerate(sorted(clients))
    }


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _round_of(path: Path) -> int:
    match = _ROUND_FILE.fullmatch(path.name)
    if match is None:
        raise RunFolderError(f"{path} is not a file that fedsa wrote: move it out of the run folder")
    return int(match[1])


def _last(rounds: Sequence[int], limit: int) -> int | None:
    return max((round for round in rounds if round <= limit), default=None)
