"""The state of a run across machines, and what has left its sites, from its folders: during the run and after it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsa.client.sent import SENT_LIST, sent_messages
from fedsa.deploy.local import SITES
from fedsa.deploy.preflight import KIT, end_of, read_kit, warning_of
from fedsa.errors import RunFolderError
from fedsa.runs.sent import sent_in_run
from fedsa.store import RunFolder, recipe_of

__all__ = ["party_status_of", "sent_of", "status_of"]


def status_of(folder: Path) -> dict[str, Any]:
    """How far a run is: ``state``, ``round`` and ``rounds``, ``chosen_round``, ``clients``, ``sites``, ``left``.

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
        "clients": sum("left" not in entry for entry in about.values()),
        "sites": sorted({str(entry.get("site", "")) for entry in about.values() if "left" not in entry}),
        "left": sorted({str(entry["site"]) for entry in about.values() if "left" in entry}),
        "interruptions": progress.interruptions,
    }


def party_status_of(folder: Path) -> dict[str, Any]:
    """What a party's folder tells of it: ``party``, ``server``, ``certificate_ends``, ``days_left``, ``warning``.

    Args:
        folder: of a site, or of the server, as `fedsa deploy init` wrote it.

    Raises:
        PreflightError: its certificates cannot be read.
    """
    kit = read_kit(folder / KIT)
    end = end_of(kit)
    return {
        "party": "server" if kit.kind == "server" else kit.party,
        "server": f"{kit.host}:{kit.port}",
        "certificate_ends": f"{end:%Y-%m-%d}",
        "days_left": (end - datetime.datetime.now(datetime.UTC)).days,
        "warning": warning_of(kit),
    }


def sent_of(folder: Path) -> Iterator[dict[str, Any]]:
    """What has left a site, as `fedsa.client.sent.sent_messages` says; of a run on one machine: each site in turn.

    Of a simulation: what its clients have sent, in the same form.

    Raises:
        RunFolderError: there is no list, or it is damaged.
    """
    if (folder / "recipe.toml").exists() and not (folder / SITES).is_dir():
        yield from sent_in_run(folder)
        return
    if (folder / SENT_LIST).exists() or not (folder / SITES).is_dir():
        yield from sent_messages(folder)
        return
    places = [place for place in sorted((folder / SITES).iterdir()) if (place / SENT_LIST).exists()]
    if not places:
        raise RunFolderError(f"{folder / SITES}: no site there has sent anything yet")
    for place in places:
        yield from sent_messages(place)
