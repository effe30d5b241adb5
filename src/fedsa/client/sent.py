"""What has left a site: a list for its owner, and every answer as it went, so that a repeated message gets the same.

Each line of the list ends with a hash of the hash of the line before and of what stands before it in the line: so a
line that was changed, and one that is lacking between others, is noticed; whole lines cut off at the end are not. A
site keeps its last answers by the digest of the message. It writes an answer and its entry in the list before the
answer goes: what is not on the disk has not left.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from fedsa.errors import RunFolderError
from fedsa.messages import Message
from fedsa.store.files import read_file, remove, write_atomically, write_error
from fedsa.texts.json_text import parsed_json

__all__ = ["KEPT_OF_SUMS", "SENT_LIST", "SentAnswers", "sent_messages"]

SENT_LIST = "sent.jsonl"
"""The name of the list in a site's folder."""

KEPT, KEPT_OF_SUMS = 4, 12
"""Answers that stay: those of this round and the last, to train and to measure; with secure aggregation four more."""

_DIGEST = hashlib.sha256(b"").digest_size


@final
class SentAnswers:
    """A site's answers, in a folder of its own.

    Args:
        folder: made if it does not exist.
        site: the site's name, for the list.
        kept: how many answers stay.
    """

    def __init__(self, folder: Path, site: str, kept: int = KEPT) -> None:
        self._folder, self._site, self._kept = folder, site, kept
        self._answers = folder / "answers"
        try:
            self._answers.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self._answers, error) from error
        self._last = _without_cut_line(folder / SENT_LIST)

    def find(self, request: bytes) -> bytes | None:
        """The answer that a message had before, which is listed as sent again; None: there is none, or it is damaged.

        Raises:
            UserError: the list cannot be written.
        """
        path = self._place(request)
        try:
            content = read_file(path)
        except OSError:
            return None
        answer = content[_DIGEST:]
        if content[:_DIGEST] != hashlib.sha256(answer).digest():
            return None  # it is worked out anew, which gives the same bytes
        self._note({"kind": "again", "bytes": len(answer), "request": path.name})
        return answer

    def keep(self, request: bytes, message: Message, answer: bytes) -> None:
        """Write an answer and its entry in the list; the oldest answers go.

        Args:
            request: the message that was answered.
            message: the answer.
            answer: the same as bytes.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        path = self._place(request)
        self._note({**_entry(message), "bytes": len(answer), "request": path.name})  # first: no answer leaves unlisted
        write_atomically(path, hashlib.sha256(answer).digest() + answer)
        answers = sorted(self._answers.glob("[0-9a-f]*"), key=lambda found: found.stat().st_mtime_ns)
        for old in answers[: -self._kept]:
            remove(old)

    def list_only(self, message: Message, answer: bytes) -> None:
        """Write the entry of an answer that is not kept, as of a refusal.

        Raises:
            UserError: the list cannot be written.
        """
        self._note({**_entry(message), "bytes": len(answer), "request": None})

    def _place(self, request: bytes) -> Path:
        return self._answers / hashlib.sha256(request).hexdigest()

    def _note(self, entry: dict[str, Any]) -> None:
        path = self._folder / SENT_LIST
        text = json.dumps({"site": self._site, **entry}, ensure_ascii=False, allow_nan=False).encode()
        digest = _chained(self._last, text[:-1])
        line = text[:-1] + _HASH % digest
        try:
            with path.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    file.write(line)
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)  # a full disk leaves half a line
                    raise
            self._last = digest
        except OSError as error:
            raise write_error(path, error) from error


def sent_messages(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what has left a site, in order: one entry for each message.

    Each has ``site``, ``kind``, ``bytes`` and ``request`` (the digest of the message that it answers; None: it was
    refused). An answer that was sent ``again`` says no more. The others have ``round``, ``about`` (every number and
    word beside the tensors) and ``tensors``: of each its ``client``, ``name``, ``shape``, ``dtype``, ``bytes`` and
    ``norm`` (Euclidean; None: it is not finite, or the tensor is masked).

    Args:
        folder: the site's.

    Raises:
        RunFolderError: there is no list, or a line of it is damaged.
    """
    path = folder / SENT_LIST
    try:
        content = read_file(path)
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be read ({error.strerror or error}): give the folder of a site that has taken part in a run"
        ) from None
    for line, _ in _lines(path, content):
        yield {name: value for name, value in parsed_json(line).items() if name != "sha256"}


def _entry(message: Message) -> dict[str, Any]:
    """Describe a message: all that it says, except the values of its tensors."""
    tensors = []
    for client, state in message.states.items():
        for key, tensor in state.items():
            norm = float(tensor.double().norm()) if tensor.is_floating_point() else math.nan  # a masked one has none
            entry = {
                "client": client,
                "name": str(key),
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "bytes": tensor.numel() * tensor.element_size(),
                "norm": norm if math.isfinite(norm) else None,
            }
            tensors.append(entry)
    return {"round": message.round, "kind": message.kind, "about": dict(message.about), "tensors": tensors}


_HASH = b', "sha256": "%s"}\n'
"""How a line ends, after the text that it has the hash of."""

_LINE = re.compile(rb'(.*), "sha256": "([0-9a-f]{64})"\}', re.DOTALL)
_OLDER = re.compile(rb'.*"request": (?:null|"[0-9a-f]{64}")\}', re.DOTALL)
"""Whole lines; one of a list of before there were hashes ends otherwise."""


def _chained(last: bytes, text: bytes) -> bytes:
    """The hash of a line's text and of the hash of the line before, in hexadecimal digits."""
    return hashlib.sha256(last + text).hexdigest().encode()


def _lines(path: Path, content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the lines of a list, each with its hash; a last one that a crash cut is left out: its message has not left.

    Raises:
        RunFolderError: a line is damaged, or the one before it is lacking.
    """
    *lines, rest = content.split(b"\n")
    last = b""
    for number, line in enumerate(lines, start=1):
        found = _LINE.fullmatch(line)
        fits = last == b"" and _OLDER.fullmatch(line) if found is None else _chained(last, found[1]) == found[2]
        if not fits or not _is_entry(line):
            raise _damaged(path, number)
        last = b"" if found is None else found[2]
        yield line, last
    whole = _LINE.match(rest)
    if whole is not None and _chained(last, whole[1]) == whole[2]:  # it is not its end that is lacking
        raise _damaged(path, len(lines) + 1)


def _is_entry(line: bytes) -> bool:
    try:
        return isinstance(parsed_json(line), dict)
    except ValueError:
        return False


def _damaged(path: Path, number: int) -> RunFolderError:
    return RunFolderError(
        f"{path}, line {number}, is damaged, or the line before it is lacking: put it back from a copy"
    )


def _without_cut_line(path: Path) -> bytes:
    """Remove a last line that a crash cut, since the message that it was for has not left; return the last hash.

    Raises:
        RunFolderError: the list is damaged.
        UserError: it cannot be written.
    """
    try:
        content = path.read_bytes()
        found = [last for _, last in _lines(path, content)]
        if content and not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise write_error(path, error) from error
    return found[-1] if found else b""
