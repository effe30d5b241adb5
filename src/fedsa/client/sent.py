"""What has left a site: a list for its owner, and every answer as it went, so that a repeated message gets the same.

A site keeps its last answers by the digest of the message. It writes an answer and its entry in the list before the
answer goes: what is not on the disk has not left.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
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
        _drop_cut_line(folder / SENT_LIST)

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
        line = json.dumps({"site": self._site, **entry}, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            with path.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    file.write(line.encode())
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)  # a full disk leaves half a line
                    raise
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
        lines = read_file(path).decode("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be read ({error.strerror or error}): give the folder of a site that has taken part in a run"
        ) from None
    for number, line in enumerate(lines, start=1):
        try:
            entry = parsed_json(line)
            if not isinstance(entry, dict):
                raise ValueError("not an entry")
        except ValueError as error:
            if number == len(lines):
                return  # a crash cut the line that it was writing: its message has not left
            raise RunFolderError(f"{path}, line {number}, is damaged ({error}): put it back from a copy") from None
        yield entry


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


def _drop_cut_line(path: Path) -> None:
    """Remove a last line that a crash cut: the message that it was for has not left.

    Raises:
        UserError: the list cannot be written.
    """
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    except FileNotFoundError:
        return
    except OSError as error:
        raise write_error(path, error) from error
