"""What the model wrote on a few test rows, kept for the report of a simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from fedsa.federation import Federation
from fedsa.store import RunFolder
from fedsa.tasks.base import IntArray

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OnWritten", "samples_of"]

OnWritten: TypeAlias = "Callable[[str, IntArray, Tensor], None]"
"""Told a client, its rows and what the model wrote on them."""


def samples_of(federation: Federation, folder: RunFolder) -> OnWritten | None:
    """Return what keeps the first test rows with what the model wrote in ``samples.json``, one client's in turn.

    Returns:
        None where the model writes nothing, or the recipe wants no samples.
    """
    task, wanted, clients = federation.task, federation.recipe.evaluation.samples, federation.clients
    if not task.generates or not wanted:
        return None
    counts = {client: len(range(place, wanted, len(clients))) for place, client in enumerate(clients)}
    kept: list[dict[str, Any]] = []

    def keep(client: str, rows: IntArray, written: Tensor) -> None:
        count = counts[client]
        if count:
            shown = task.samples(federation.encoded, rows[:count], written[:count])
            kept.extend({"client": client, **sample._asdict()} for sample in shown)
            folder.write_json("samples.json", kept)

    return keep
