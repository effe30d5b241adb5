"""Draw a partition: who has how many rows of which class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsa.texts.escapes import for_drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_partition"]

_MOST_BARS = 40
_MOST_COLOURS = 12
_MOST_TICKS = 40


def draw_partition(counts_by_client: Mapping[str, Sequence[int]], label_names: Sequence[str]) -> Figure:
    """Return a figure of rows per client and class.

    Stacked bars, one per client, for up to 40 clients and 12 classes; beyond that a heat map of each client's label
    mix with its number of rows beside it.

    Args:
        counts_by_client: client to its rows of each class, at least one client, as ``label_counts`` gives them.
        label_names: class names in order of their number.
    """
    from matplotlib.figure import Figure

    clients = list(counts_by_client)
    counts = np.array([counts_by_client[client] for client in clients], dtype=np.int64).reshape(len(clients), -1)
    height = min(1.6 + 0.24 * len(clients), 14.0)
    if len(clients) <= _MOST_BARS and len(label_names) <= _MOST_COLOURS:
        figure = Figure(figsize=(8.0, height), layout="constrained")
        _bars(figure.add_subplot(), clients, counts, label_names)
    else:
        figure = Figure(figsize=(9.0, max(height, 4.0)), layout="constrained")
        mix, rows = figure.subplots(1, 2, sharey=True, width_ratios=[4, 1])
        _heat_map(figure, mix, counts, label_names)
        rows.barh(range(len(clients)), counts.sum(1), height=0.9, color="0.45")
        rows.set_xlabel("rows")
        _client_ticks(mix, clients)
    return figure


def _bars(axes: Axes, clients: Sequence[str], counts: NDArray[np.int64], label_names: Sequence[str]) -> None:
    from matplotlib import colormaps

    colours = colormaps["tab10" if len(label_names) <= 10 else "tab20"].colors  # type: ignore[attr-defined]  # listed maps have it
    left = np.zeros(len(clients))
    for label, name in enumerate(label_names):
        axes.barh(
            range(len(clients)), counts[:, label], left=left, height=0.8, color=colours[label], label=for_drawing(name)
        )
        left += counts[:, label]
    axes.set_xlabel("rows")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _client_ticks(axes, clients)


def _heat_map(figure: Figure, axes: Axes, counts: NDArray[np.int64], label_names: Sequence[str]) -> None:
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(share, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=axes, location="top", label="share of the client's rows", shrink=0.6)
    ticks = _thinned(len(label_names))
    axes.set_xticks(ticks, [for_drawing(label_names[tick]) for tick in ticks], rotation=90)


def _client_ticks(axes: Axes, clients: Sequence[str]) -> None:
    ticks = _thinned(len(clients))
    axes.set_yticks(ticks, [for_drawing(clients[tick]) for tick in ticks])
    axes.set_ylim(len(clients) - 0.5, -0.5)


def _thinned(count: int) -> list[int]:
    return list(range(0, count, -(-count // _MOST_TICKS)))
