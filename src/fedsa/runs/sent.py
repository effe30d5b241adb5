"""What has left the clients of a simulation: the list that it keeps, as a site's owner would see it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsa.errors import RunFolderError
from fedsa.store import RunFolder, require_clients
from fedsa.store.commits import read_commit
from fedsa.texts.json_text import parsed_json

__all__ = ["sent_in_run"]


def sent_in_run(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what clients have sent in the finished rounds of a simulation: one entry for each message, in order.

    Each entry has what one of a site has: ``site`` (the client: each counts as a site of its own), ``round``, ``kind``
    (``update``), ``bytes`` (of its tensors, without framing), ``about`` (numbers and words beside the tensors) and
    ``tensors``: of each its ``client``, ``name``, ``shape``, ``dtype``, ``bytes`` and ``norm``.

    Args:
        path: the run folder.

    Raises:
        RunFolderError: it is not the folder of a simulation, is damaged, or is from before there were such lists.
    """
    folder, commit = RunFolder.open(path), read_commit(path)
    if commit is None or commit.progress.round < 1:
        return
    require_clients(folder)
    if not commit.progress.sent_bytes:
        raise RunFolderError(f"{path} is from a fedsa that did not list what clients send: run its recipe again")
    layouts: dict[int, list[dict[str, Any]]] = {}
    for number, text in enumerate(folder.sent.read(folder, commit).decode().splitlines(), start=1):
        try:
            line = parsed_json(text)
            if "tensors" in line:
                layouts[line["layout"]] = line["tensors"]
                continue
            entry = _entry(line, layouts[line["layout"]])
        except (ValueError, KeyError, TypeError) as error:
            raise folder.damaged(f"sent.jsonl, line {number}", error) from None
        yield entry


def _entry(line: dict[str, Any], layout: list[dict[str, Any]]) -> dict[str, Any]:
    client = line["client"]
    return {
        "site": client,
        "round": line["round"],
        "kind": "update",
        "about": {"updates": {client: line["about"]}},
        "bytes": sum(tensor["bytes"] for tensor in layout),
        "tensors": [
            {"client": client, **tensor, "norm": norm} for tensor, norm in zip(layout, line["norms"], strict=True)
        ],
    }
