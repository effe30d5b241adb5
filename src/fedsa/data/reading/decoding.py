"""Text files in the encoding that they are in: the one that is named, or else found by looking."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, TextIO, TypeVar, cast

from fedsa.errors import DataError

__all__ = ["open_bytes", "open_text", "with_encoding"]

T = TypeVar("T")

_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LOOKED_AT = 4096
_FOREIGN = {
    b"PK\x03\x04": "an Excel or zip file",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF file",
    b"\x1f\x8b": "packed",
}


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file to read its bytes, unpacked where its name ends in ``.gz``."""
    return cast("IO[bytes]", gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def open_text(path: Path, encoding: str, *, errors: str = "strict") -> TextIO:
    """Open a text file, with its line ends as they are."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=errors, newline="")


def with_encoding(path: Path, encoding: str | None, read: Callable[[str], T]) -> tuple[T, dict[str, str]]:
    """Read a text file in its encoding; return the result of ``read``, and a remark if the encoding is not UTF-8.

    Args:
        path: the file.
        encoding: its own; None: that of its first bytes (UTF-8, UTF-16, UTF-32), else UTF-8, else cp1252.
        read: takes the encoding.

    Raises:
        DataError: the file cannot be opened or unpacked, is of another kind, or is in no known encoding.
    """
    try:
        with open_bytes(path) as file:
            head = file.read(_LOOKED_AT)
        if encoding is not None:
            return read("utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding), {}
        marked = _marked(head, path)
        try:
            found = read(marked or "utf-8")
        except UnicodeDecodeError:
            if marked:
                raise
        else:
            return found, {"encoding": marked.upper()} if marked and marked != "utf-8-sig" else {}
        with open_bytes(path) as file:
            guess, remark = _guessed(file.read(), path)
        return read(guess), remark
    except UnicodeError as error:
        raise DataError(
            f"{path} cannot be read as {getattr(error, 'encoding', encoding)} text "
            f"({getattr(error, 'reason', error)}): "
            "set data.encoding to the encoding that it was written in"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _marked(head: bytes, path: Path) -> str | None:
    """Return the encoding that a file's first bytes show, if they do."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    for sign, kind in _FOREIGN.items():
        if head.startswith(sign):
            raise DataError(f"{path} is {kind}, not a text file: give it the ending of its kind, or save it as text")
    if b"\0" in head:
        even, odd = head[::2].count(0), head[1::2].count(0)
        if max(even, odd) > len(head) // 4:
            return "utf-16-le" if odd > even else "utf-16-be"
        raise DataError(f"{path} holds bytes of 0, so it is no text file: save it as text, or move it away")
    return None


def _guessed(content: bytes, path: Path) -> tuple[str, dict[str, str]]:
    """Return a one-byte encoding for what is not UTF-8, with an example of what it makes of the file.

    Raises:
        DataError: most of the file is UTF-8: then a few of its bytes are damaged.
    """
    rough = content.decode("utf-8", errors="surrogateescape")
    broken = [place for place, letter in enumerate(rough) if "\udc80" <= letter <= "\udcff"]
    if sum(letter > "\x7f" for letter in rough) > 2 * len(broken):
        line = rough.count("\n", 0, broken[0]) + 1
        raise DataError(
            f"{path}, line {line}: bytes that are not UTF-8, while the rest of the file is: mend that line, or set "
            "data.encoding"
        )
    encoding = "cp1252"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        encoding = "latin-1"
        text = content.decode(encoding)
    example = re.search(r"\w*[^\x00-\x7f]\w*", text)
    shown = example.group()[:30] if example else ""
    line = text.count("\n", 0, example.start()) + 1 if example else 1
    return encoding, {"encoding": f"{encoding} (Western European); line {line} then has {shown!r}"}
