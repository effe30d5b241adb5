"""JSON files whose last entry is the hash of what stands before it: whoever reads them notices a change."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fedsa.store.files import hash_of, read_file
from fedsa.texts.json_text import parsed_json

__all__ = ["fits_seal", "read_sealed", "sealed_table", "unsealed_table"]

_END = "\n}"
_NAME = "sha256"
_SEAL = re.compile(r',\n  "sha256": "([0-9a-f]{64})"\n\}\n\Z')


def sealed_table(table: Mapping[str, Any]) -> str:
    """Return a JSON object as text, each entry on a line of its own, and the hash of it all as a last entry.

    >>> print(sealed_table({"run": "a"})[:27])
    {
      "run": "a",
      "sha256":
    """
    body = json.dumps(dict(table), indent=2, ensure_ascii=False, allow_nan=False)
    return body[: -len(_END)] + f',\n  "{_NAME}": "{hash_of(body.encode())}"{_END}\n'


def fits_seal(text: str) -> bool:
    """Say whether a text is as `sealed_table` made it."""
    seal = _SEAL.search(text)
    return seal is not None and hash_of((text[: seal.start()] + _END).encode()) == seal[1]


def unsealed_table(text: str, older: Collection[str] = ()) -> dict[str, Any]:
    """Return what `sealed_table` was given.

    Args:
        text: its result.
        older: the names that a table of a version without hashes may have; such a table is taken as it is. A table
            whose last entry was damaged has another name among its own. Empty: every table must have its hash.

    Raises:
        ValueError: the text was changed, or is none of `sealed_table`.
    """
    table = parsed_json(text)
    if not isinstance(table, dict):
        raise ValueError("it is not a table")
    if not fits_seal(text) and not (older and {*table} <= {*older}):
        raise ValueError("its content does not fit the hash in its last line")
    table.pop(_NAME, None)
    return table


def read_sealed(path: Path, older: Collection[str] = ()) -> dict[str, Any]:
    """Return the table in a file that `sealed_table` made; see `unsealed_table`.

    Raises:
        OSError: it cannot be read.
        ValueError: it was changed.
    """
    return unsealed_table(read_file(path).decode(), older)
