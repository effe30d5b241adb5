"""The state of a run across machines, and what has left its sites, from its folders: during the run and after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsa.client.sent import SENT_LIST, sent_messages
from fedsa.deploy.local import SITES
from fedsa.errors import RunFolderError
from fedsa.store import RunFolder, recipe_of

__all__ = ["sent_of", "status_of"]


def status_of(folder: Path) -> dict[str, Any]:
    """How far a run is: ``state``, ``round`` and ``rounds``, ``chosen_round``, ``clients``, ``sites``.

    Args:
        folder: the server's run folder.

    Raises:
        RunFolderError: the folder is not a run folder, or is damaged.
    """
    run = RunFolder.open(folder)
    recipe, progress = recipe_of(run), run.progress()
    begun: dict[str, Any] = {"state": "not begun", "round": 0, "rounds": recipe.rounds}
    if progress is None:
        return begun
    about = run.read_json("clients.json")
    return {
        "state": "finished" if run.is_measured else "running or interrupted",
        "round": max(progress.round, 0),
        "rounds": recipe.rounds,
        "chosen_round": progress.chosen_round or 0,
        "clients": len(about),
        "sites": sorted({str(entry.get("site", "")) for entry in about.values()}),
        "interruptions": progress.interruptions,
    }


def sent_of(folder: Path) -> Iterator[dict[str, Any]]:
    """What has left a site, as `fedsa.client.sent.sent_messages` says; of a run on one machine: each site in turn.

    Raises:
        RunFolderError: there is no list, or it is damaged.
    """
    if (folder / SENT_LIST).exists() or not (folder / SITES).is_dir():
        yield from sent_messages(folder)
        return
    places = [place for place in sorted((folder / SITES).iterdir()) if (place / SENT_LIST).exists()]
    if not places:
        raise RunFolderError(f"{folder / SITES}: no site there has sent anything yet")
    for place in places:
        yield from sent_messages(place)
