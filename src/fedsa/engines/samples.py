"""What the model writes on a few test rows, kept for the report of a simulation."""

from __future__ import annotations

from typing import Any

from fedsa.client.evaluation import Sampling
from fedsa.federation import Federation
from fedsa.store import RunFolder
from fedsa.tasks.base import Sample

__all__ = ["samples_of"]


def samples_of(federation: Federation, folder: RunFolder) -> Sampling | None:
    """A sampling that keeps the first test rows of clients in turn, with the model's texts, in ``samples.json``.

    Returns:
        None where the task shows no rows, or the recipe wants no samples.
    """
    wanted, clients = federation.recipe.evaluation.samples, federation.clients
    writing = federation.task.sampling(federation.encoded) if wanted else None
    if writing is None:
        return None
    counts = {client: len(range(place, wanted, len(clients))) for place, client in enumerate(clients)}
    kept: list[dict[str, Any]] = []

    def keep(client: str, samples: list[Sample]) -> None:
        kept.extend({"client": client, **sample._asdict()} for sample in samples)
        folder.write_json("samples.json", kept)

    return Sampling(*writing, counts, keep)
