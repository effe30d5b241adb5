"""What a finished run keeps and does not need any more: only going on with it would."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fedsa.errors import RunFolderError
from fedsa.store.client_states import OPTIMIZER, STEP
from fedsa.store.files import load_tensors, remove, save_tensors
from fedsa.store.locked_folder import entries_of
from fedsa.store.rounds import last_until, round_of
from fedsa.store.run_folder import RunFolder
from fedsa.texts.json_text import parsed_json
from fedsa.types import Key

__all__ = ["clean", "size_of", "unneeded_bytes"]

_ONLY_TO_GO_ON = (OPTIMIZER, STEP)
"""How the names begin of the tensors of a client's file that training alone reads."""


def unneeded_bytes(folder: RunFolder) -> int:
    """The bytes that `clean` would free of a finished run, to within a few bytes a file.

    They are the states of rounds that are neither the chosen nor the last one, what clients keep of their optimiser and
    of steps on updates, and what an interruption left half written.

    Args:
        folder: the run's, open for reading.

    Raises:
        RunFolderError: a file is damaged, or none that fedsa wrote.
    """
    rounds = _needed_rounds(folder)
    whole = [*_of_other_rounds(folder.path, rounds), *_halves(folder.path)]
    return sum(path.stat().st_size for path in whole) + sum(map(_training_bytes, _client_files(folder.path, rounds)))


def clean(path: Path) -> int:
    """Remove what `unneeded_bytes` counts, and return the bytes that were freed.

    Export, report, analysis, adaptation and prediction read none of it. Every file stays whole at any moment, so an
    interruption leaves the run as usable as it was.

    Args:
        path: a finished run's folder.

    Raises:
        RunFolderError: the run is not finished, in use or damaged: nothing is removed then.
        UserError: a file cannot be removed or written.
    """
    with RunFolder.open(path, write=True).locked() as folder:
        if not folder.is_measured:
            raise RunFolderError(f"{path} is not finished: all that is in it is needed to go on")
        before, rounds = size_of(path), _needed_rounds(folder)
        for file in [*_of_other_rounds(path, rounds), *_halves(path)]:
            remove(file)
        for file in _client_files(path, rounds):
            if _training_bytes(file):
                tensors, about = load_tensors(file, {"run": folder.run})
                kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(_ONLY_TO_GO_ON)}
                save_tensors(file, kept, about)
        return before - size_of(path)


def size_of(path: Path) -> int:
    """The bytes of all files in a folder and in those within; links are not followed."""
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def _needed_rounds(folder: RunFolder) -> set[int]:
    progress = folder.progress()
    return set() if progress is None else {progress.round, progress.chosen_round or 0}


def _of_other_rounds(path: Path, rounds: Collection[int]) -> Iterator[Path]:
    """Yield the states of server and clients that none of some rounds needs."""
    for file in _states(path / "server"):
        if round_of(file) not in rounds:
            yield file
    for place in entries_of(path / "clients"):
        files = _states(place)
        needed = _last_of(files, rounds)
        yield from (file for file in files if file not in needed)


def _client_files(path: Path, rounds: Collection[int]) -> Iterator[Path]:
    """Yield the clients' states that some rounds need."""
    for place in entries_of(path / "clients"):
        yield from _last_of(_states(place), rounds)


def _last_of(files: Collection[Path], rounds: Collection[int]) -> list[Path]:
    last = {last_until(map(round_of, files), limit) for limit in rounds}
    return [file for file in files if round_of(file) in last]


def _states(place: Path) -> list[Path]:
    return sorted(place.glob("round-*.safetensors"))


def _halves(path: Path) -> Iterator[Path]:
    """Yield what interrupted writes left."""
    for place in (path, path / "server", *entries_of(path / "clients")):
        yield from (file for pattern in (".*.partial", ".*.tmp") for file in place.glob(pattern))


def _training_bytes(file: Path) -> int:
    """The bytes of a client's file that only training reads: tensors, and what its header says of them."""
    try:
        with safe_open(file, "pt"):  # its header and its length fit each other
            pass
        with file.open("rb") as opened:
            header = parsed_json(opened.read(int.from_bytes(opened.read(8), "little")))
        own = {name: entry for name, entry in header.items() if name.startswith(_ONLY_TO_GO_ON)}
        for name in header.keys() - own.keys() - {"__metadata__"}:
            Key.parse(name)
        tensors = sum(int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]) for entry in own.values())
        return tensors + (len(json.dumps(own, separators=(",", ":"), ensure_ascii=False).encode()) if own else 0)
    except (
        SafetensorError,
        OSError,
        ValueError,
        AttributeError,
        KeyError,
        TypeError,
        IndexError,
        OverflowError,
    ) as error:
        raise RunFolderError(f"{file} is damaged ({error}): put it back from a copy, or start the run again") from None
