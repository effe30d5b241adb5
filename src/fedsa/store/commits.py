"""``state.json``, the commit point: how far a run is, and the hashes of the files that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedsa.errors import RunFolderError
from fedsa.store.files import FORMAT, hash_of, read_file
from fedsa.store.seals import fits_seal, sealed_table
from fedsa.store.states import Progress
from fedsa.texts.json_text import parsed_json

__all__ = ["Commit", "read_commit"]

_FILES_FORM, _PROGRESS_FORM = TypeAdapter(dict[str, str]), TypeAdapter(Progress)


@dataclass(frozen=True)
class Commit:
    """What ``state.json`` holds.

    Attributes:
        progress: how far the run is.
        run: the run's id, which stands in each of its files of tensors.
        files: the SHA-256 of each small file, by its name. Those of tensors carry their own: there are too many.
        metrics: the SHA-256 of ``metrics.jsonl``, as far as `Progress.metrics_bytes`.
        sent: the same of ``sent.jsonl``, as far as `Progress.sent_bytes`.
    """

    progress: Progress
    run: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    metrics: str = ""
    sent: str = hash_of(b"")

    def text(self) -> str:
        """Return the content of ``state.json``; its last line is the hash of what is before it."""
        hashes = {"metrics_sha256": self.metrics, "sent_sha256": self.sent}
        values = {"format": FORMAT, "run": self.run, "files": dict(self.files), **hashes}
        return sealed_table({**values, **asdict(self.progress)})


def read_commit(folder: Path) -> Commit | None:
    """The contents of a run folder's ``state.json``, or None where there is none.

    Raises:
        RunFolderError: it is damaged, or of another format version.
    """
    path = folder / "state.json"
    try:
        text = read_file(path).decode()
        data = parsed_json(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    if not isinstance(data, dict):
        raise _damaged(path, "it is not a table")
    _check_format(folder, data.pop("format", None))
    if not fits_seal(text):
        raise _damaged(path, "its content does not fit the hash in its last line")
    try:
        run, files, metrics = (data.pop(name) for name in ("run", "files", "metrics_sha256"))
        sent = str(data.pop("sent_sha256", hash_of(b"")))  # a run from before there was such a file has none
        files = _FILES_FORM.validate_python(files)
        return Commit(_PROGRESS_FORM.validate_python(data), str(run), files, str(metrics), sent)
    except (KeyError, ValidationError) as error:
        raise _damaged(path, str(error).replace("\n", " ")) from None


def _check_format(folder: Path, version: Any) -> None:
    """Refuse a folder of another layout."""
    if version == FORMAT:
        return
    shown = f"{version!r:.20}"
    if isinstance(version, int) and 0 < version < FORMAT:
        raise RunFolderError(
            f"{folder} is of run-folder format {shown}, which has no hashes; this fedsa reads format {FORMAT}: use the "
            f"fedsa that made it ({_maker(folder)}), or run its recipe again with this one: "
            f"fedsa run {folder / 'recipe.toml'} --out NEW_FOLDER"
        )
    raise RunFolderError(
        f"{folder} is of run-folder format {shown}, this fedsa reads format {FORMAT}: use the fedsa that made it "
        f"({_maker(folder)})"
    )


def _maker(folder: Path) -> str:
    """Say which fedsa made a run, as far as ``environment.json`` tells it."""
    try:
        version = parsed_json(read_file(folder / "environment.json"))["fedsa"]
    except (OSError, ValueError, KeyError, TypeError):
        version = None
    told = f"version {version}, " if isinstance(version, str) and len(version) < 40 else ""
    return f"{told}see {folder / 'environment.json'}"


def _damaged(path: Path, why: object) -> RunFolderError:
    return RunFolderError(f"{path} is damaged ({why}): put it back from a copy, or start the run again")
