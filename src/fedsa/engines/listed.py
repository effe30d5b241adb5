"""A simulation lists what each client sends, as a site does for its owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch

from fedsa.engines.fleet import Fleet
from fedsa.store import Progress, RunFolder
from fedsa.types import Moment, Payloads, SplitName, State, Update

__all__ = ["ListedFleet"]


@final
class ListedFleet:
    """A fleet whose updates are listed in ``sent.jsonl`` as they come, to be read by `fedsa.runs.sent`.

    A round is written in one go, before it is committed. Each line has a client's round, its words and numbers and the
    norms of its tensors. Names, shapes and types of tensors, which hardly ever differ, are in a line of their own.

    Args:
        fleet: the clients.
        folder: the run's.
        progress: the run's; it is told the length of the list.
    """

    def __init__(self, fleet: Fleet, folder: RunFolder, progress: Progress) -> None:
        self._fleet, self._file, self._progress = fleet, folder.sent, progress

    def train(self, payloads: Payloads) -> Iterator[Update]:
        """Have clients train, and list what they send."""
        lines: list[dict[str, Any]] = []
        layouts: list[list[dict[str, Any]]] = []
        for update in self._fleet.train(payloads):
            layout = _layout(update.tensors)
            if layout not in layouts:
                layouts.append(layout)
                lines.append({"layout": len(layouts) - 1, "tensors": layout})
            lines.append(_line(update, layouts.index(layout)))
            yield update
        self._progress.sent_bytes = self._file.append(lines)

    def evaluate(self, payloads: Payloads, split: SplitName, moment: Moment) -> Iterator[tuple[str, dict[str, float]]]:
        """Measure clients: the figures are in ``metrics.jsonl``."""
        return self._fleet.evaluate(payloads, split, moment)


def _layout(tensors: State) -> list[dict[str, Any]]:
    return [
        {
            "name": str(key),
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "bytes": tensor.numel() * tensor.element_size(),
        }
        for key, tensor in tensors.items()
    ]


def _line(update: Update, layout: int) -> dict[str, Any]:
    metrics = {name: value for name, value in update.metrics.items() if name != "seconds"}  # equal runs: equal lists
    return {
        "round": update.round,
        "client": update.client,
        "about": {
            "num_examples": update.num_examples,
            "metrics": metrics,
            "base_version": update.base_version,
        },
        "layout": layout,
        "norms": [_norm(tensor) for tensor in update.tensors.values()],
    }


def _norm(tensor: torch.Tensor) -> float | None:
    """The Euclidean norm, of six digits; None: it is not finite, or the tensor is masked."""
    if not tensor.is_floating_point():
        return None
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return float(f"{float(norm):.6g}") if bool(norm.isfinite()) else None
