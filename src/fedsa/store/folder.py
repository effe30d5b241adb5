"""The folder of a run: opened, locked, checked; files of a round written, committed, rolled back."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from urllib.parse import quote

import torch
from filelock import FileLock, Timeout

from fedsa.errors import RunFolderError
from fedsa.recipe import Recipe, parse_recipe
from fedsa.store.background import ReadAhead, WriteBehind
from fedsa.store.files import (
    FORMAT,
    by_key,
    by_name,
    load_tensors,
    make_folder,
    packed,
    save_tensors,
    write_atomically,
    write_error,
)
from fedsa.store.states import ClientState, Progress
from fedsa.types import Key, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["RunFolder", "recipe_of"]

_SLOT = "slot|"
_LAST_TRAINED = "last_trained"  # in the server's file: for each client of clients.json, the round it last trained in
_ROUND_FILE = re.compile(r"round-(\d{6})\.safetensors")
_FIRST_FILES = {"recipe.toml", ".recipe.toml.partial", ".lock"}  # all that `create` writes


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
        self._made: list[Path] = []  # the folders that `create` made, innermost first
        self._is_new = False
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
                f"{path} holds a run already: `fedsa resume {path}` continues it, --out takes another folder"
            )
        # A `create` that was killed may have left its first files.
        if path.exists() and (not path.is_dir() or {entry.name for entry in path.iterdir()} - _FIRST_FILES):
            raise RunFolderError(f"{path} is not an empty folder: give --out a new one")
        folder = cls(path)
        folder._made = [place for place in (path, *path.parents) if not place.exists()]
        folder._is_new = True
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(path, error) from error
        folder._acquire()
        with folder._discarded_on_error():
            write_atomically(path / "recipe.toml", recipe.encode())
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
            folder._acquire()
        try:
            progress = folder.progress()
            if progress is None and any(path.rglob("round-*.safetensors")):
                raise folder._damaged("state.json", "it is missing")
            if progress is not None:
                folder._find_clients(progress)
            elif write:
                folder.roll_back(Progress())
        except BaseException:
            folder.close()
            raise
        return folder

    def _find_clients(self, progress: Progress) -> None:
        """Learn which client's state is where, and that none is missing."""
        if not (self.path / "clients.json").exists():
            raise self._damaged("clients.json", "it is missing")
        try:
            clients = self.read_json("clients.json").items()
            self._folders = {client: entry["folder"] for client, entry in clients}
        except (AttributeError, KeyError, TypeError):
            raise self._damaged("clients.json", "not what fedsa wrote") from None
        self._scan()
        for limit in {progress.round, progress.chosen_round or 0}:
            for client, held in self.load_held(limit).items():
                # A later one will do: the client has trained since, and its update was lost.
                if not any(held + 1 <= kept <= limit for kept in self._kept.get(client, [])):
                    path = self._client_file(client, held + 1)
                    raise RunFolderError(
                        f"checkpoint {path} is missing: restore it from a copy, or start the run again"
                    )

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
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
        """Return the summary if all ``rounds`` are done and measured, else None."""
        progress = self.progress()
        if progress is None or progress.round != rounds or not (self.path / "summary.json").exists():
            return None
        summary: dict[str, Any] = self.read_json("summary.json")
        return summary

    @contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        """Remove a folder that `create` made, if an error comes before anything else is in it.

        So the same command works once the mistake is mended.
        """
        try:
            yield
        except Exception:
            if self._is_new and {entry.name for entry in self.path.iterdir()} <= _FIRST_FILES:
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
        """Write a text file of the run, atomically."""
        write_atomically(self.path / name, text.encode())

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file of the run, atomically."""
        self.write_text(name, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_table(self, name: str, table: Mapping[str, Any]) -> None:
        """Write a JSON file of the run that has an entry for every client, atomically; each on a line of its own."""
        lines = [
            f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(table[key], ensure_ascii=False)}" for key in table
        ]
        self.write_text(name, "{\n" + ",\n".join(lines) + "\n}\n")

    def read_json(self, name: str) -> Any:
        """Return what a JSON file of the run holds.

        Raises:
            RunFolderError: it is missing or damaged.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunFolderError(
                f"{path} is missing: the run stopped before it was written; `fedsa resume {self.path}`"
            ) from None
        except (OSError, ValueError) as error:
            raise self._damaged(name, error) from None

    def _damaged(self, name: str, why: object) -> RunFolderError:
        return RunFolderError(f"{self.path / name} is damaged ({why}): restore it from a copy, or start the run again")

    # -- the commit point --------------------------------------------------------------------------------------------

    def progress(self) -> Progress | None:
        """Return how far the run is, or None before its first commit.

        Raises:
            RunFolderError: it is damaged, or of another format version.
        """
        if not (self.path / "state.json").exists():
            return None
        data = self.read_json("state.json")
        version = data.pop("format", None) if isinstance(data, dict) else None
        if version != FORMAT:
            raise RunFolderError(
                f"{self.path} has run-folder format {version}, this fedsa reads format {FORMAT}: use the fedsa "
                f"version named in {self.path / 'environment.json'}"
            )
        try:
            return Progress(**data)
        except TypeError as error:
            raise self._damaged("state.json", error) from None

    def commit(self, progress: Progress) -> None:
        """Make a round exist, once all its files are safe; the files that no round needs any more go after that.

        Raises:
            UserError: a file of the round could not be written, or the commit point; the round before is safe.
        """
        self._writes.settle()
        self.write_json("state.json", {"format": FORMAT, **asdict(progress)})
        self._prune(progress)

    def settle(self) -> None:
        """Return when all that was written is safe, and all that no round needs any more is gone.

        Raises:
            UserError: a file could not be written or removed.
        """
        self._writes.settle()

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
        length = metrics.stat().st_size if metrics.exists() else 0
        if length < progress.metrics_bytes:
            raise self._damaged("metrics.jsonl", f"{length} bytes, {progress.metrics_bytes} were written")
        if length > progress.metrics_bytes:
            with metrics.open("r+b") as file:
                file.truncate(progress.metrics_bytes)
        for path in [*self.path.glob(".*.tmp"), *self.path.glob(".*.partial"), *self.path.glob("server/.*.partial")]:
            path.unlink()
        for path in (self.path / "server").glob("round-*.safetensors"):
            if _round_of(path) > progress.round:
                path.unlink()
        for path in self._scan():
            path.unlink()
        for client, rounds in self._kept.items():
            while rounds and rounds[-1] > progress.round:
                self._client_file(client, rounds.pop()).unlink()
        self._saved = set(self._kept)
        self._prune(progress)
        self._writes.settle()

    def append_metrics(self, lines: Iterable[Mapping[str, Any]]) -> int:
        """Append lines to ``metrics.jsonl`` and return its length in bytes."""
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        path = self.path / "metrics.jsonl"
        try:
            with path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
                return file.tell()
        except OSError as error:
            raise write_error(path, error) from error

    # -- tensors -----------------------------------------------------------------------------------------------------

    def register_clients(self, clients: Mapping[str, Mapping[str, Any]]) -> None:
        """Write ``clients.json``: what is known of each client, and the folder of its state."""
        folders = {
            client: f"{number:05d}-{quote(client, safe=' ').replace('%', '_')[:60].strip(' .')}"
            for number, client in enumerate(sorted(clients))
        }
        self.write_table(
            "clients.json", {client: {"folder": folders[client], **clients[client]} for client in sorted(clients)}
        )
        self._folders = folders
        self._kept = {}

    def save_initial(self, tensors: State) -> None:
        """Write the tensors that every client starts from."""
        save_tensors(self.path / "initial.safetensors", by_name(tensors), {})

    def load_initial(self) -> dict[Key, Tensor]:
        """Return the tensors that every client starts from."""
        tensors, _ = load_tensors(self.path / "initial.safetensors")
        return by_key(tensors)

    def save_server(
        self,
        round: int,
        tensors: State,
        versions: Mapping[Key, int],
        held: Mapping[str, int],
        slots: Mapping[str, Tensor] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the server's state after a round.

        Args:
            round: its number.
            tensors: the server's tensors.
            versions: of each of them.
            held: client id to the newest version that it has taken in, for whoever has trained: the one before the
                round of its last training.
            slots: further tensors by name.
            about: further values, as JSON has them.
        """
        path = self.path / "server" / f"round-{round:06d}.safetensors"
        last = torch.tensor([held.get(client, -1) + 1 for client in self._folders], dtype=torch.int32)
        own = {"versions": {str(key): version for key, version in versions.items()}}
        named = {f"{_SLOT}{name}": tensor for name, tensor in (slots or {}).items()}
        make_folder(path.parent)
        self._writes.write(path, packed({**by_name(tensors), **named, _LAST_TRAINED: last}, {**(about or {}), **own}))

    def kept_rounds(self) -> list[int]:
        """Return the rounds whose state is kept, ascending."""
        return sorted(_round_of(path) for path in (self.path / "server").glob("round-*.safetensors"))

    def load_server(self, round: int) -> tuple[dict[Key, Tensor], dict[Key, int], dict[str, Tensor], dict[str, Any]]:
        """Return the server's tensors, their versions, further tensors and further values after a round that is kept.

        Raises:
            RunFolderError: the round is not kept, or its file is damaged.
        """
        tensors, about = self._load_server(round)
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
            raise self._damaged("clients.json", f"{len(self._folders)} clients are in it, the run has {len(last)}")
        return {client: trained - 1 for client, trained in zip(self._folders, last, strict=True) if trained}

    def _load_server(self, round: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path = self.path / "server" / f"round-{round:06d}.safetensors"
        self._writes.wait(path)
        tensors, about = load_tensors(path)
        if _LAST_TRAINED not in tensors or "versions" not in about:
            raise self._damaged(f"server/{path.name}", "it is not a server's")
        return tensors, about

    def save_client(self, client: str, round: int, state: ClientState) -> None:
        """Write a client's state after it trained in a round; it is on the disk when the round is committed.

        Raises:
            UserError: this or an earlier file cannot be written.
        """
        tensors = by_name(state.tensors) | {f"optimizer|{name}": value for name, value in state.optimizer_state.items()}
        path = self._client_file(client, round)
        if client not in self._kept:
            make_folder(path.parent)
        self._writes.write(path, packed(tensors, {"held": state.held}))
        self._kept.setdefault(client, []).append(round)
        self._saved.add(client)

    def save_personal(self, client: str, round: int, tensors: State) -> None:
        """Write what a client uses after a round that cannot be told from other files: it was fitted to its rows.

        Raises:
            UserError: the file cannot be written.
        """
        path = self._personal_file(client, round)
        make_folder(path.parent)
        save_tensors(path, by_name(tensors), {})

    def load_personal(self, client: str, round: int) -> dict[Key, Tensor] | None:
        """Return what `save_personal` wrote, or None.

        Raises:
            RunFolderError: there is no such client, or its file is damaged.
        """
        path = self._personal_file(client, round)
        return by_key(load_tensors(path)[0]) if path.exists() else None

    def _personal_file(self, client: str, round: int) -> Path:
        if client not in self._folders:
            raise RunFolderError(f"run {self.path} has no client {client!r}; its clients: {', '.join(self._folders)}")
        return self.path / "clients" / self._folders[client] / f"personal-{round:06d}.safetensors"

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
        tensors, about = load_tensors(path)
        optimizer_state = {
            name.removeprefix("optimizer|"): tensors.pop(name)
            for name in list(tensors)
            if name.startswith("optimizer|")
        }
        return ClientState(by_key(tensors), optimizer_state, about["held"])

    def _client_file(self, client: str, round: int) -> Path:
        return self.path / "clients" / self._folders[client] / f"round-{round:06d}.safetensors"

    def _scan(self) -> list[Path]:
        """Learn which rounds' files each client has, and return what half a write left among them."""
        names = {folder: client for client, folder in self._folders.items()}
        self._kept, halves = {}, []
        for place in _entries(self.path / "clients"):
            files = _entries(place) if place.is_dir() else []
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
        """
        try:
            with self._discarded_on_error():
                yield self
        finally:
            self.close()


def recipe_of(folder: RunFolder) -> Recipe:
    """Return the recipe of a run.

    Raises:
        RunFolderError: it is damaged.
        ConfigError: it does not fit this version of fedsa.
    """
    path = folder.path / "recipe.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged ({error}): restore it from a copy, or start the run again") from None
    return parse_recipe(data, source=str(path))


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []


def _round_of(path: Path) -> int:
    match = _ROUND_FILE.fullmatch(path.name)
    if match is None:
        raise RunFolderError(f"{path} is not a file that fedsa wrote: move it out of the run folder")
    return int(match[1])


def _last(rounds: Sequence[int], limit: int) -> int | None:
    return max((round for round in rounds if round <= limit), default=None)
