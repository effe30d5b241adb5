"""Pictures of how alike the clients' tensors are, fit for a paper."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsa.texts.escapes import for_terminal

__all__ = ["draw_dendrogram", "draw_heat_maps", "draw_layers", "draw_trend", "save"]

Matrix = npt.NDArray[np.float64]

_DRAWING: dict[str, Any] = {
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "fedsa",
    "text.parse_math": False,  # a client may be called $x$
    "pdf.fonttype": 42,
}
_COLOURS = {"A": "#0072B2", "B": "#D55E00", "lambda_d": "#0072B2", "lambda_b": "#D55E00", "head": "#555555"}
_DASHES = ["-", "--", ":", "-."]
_MOST_NAMES = 20  # clients named along an axis


def save(figure: Figure, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Write a figure in several formats; equal figures give equal bytes. Returns the files."""
    paths = []
    for name in formats:
        path = stem.with_name(f"{stem.name}.{name}")
        metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(name)
        with style.context(_DRAWING):
            figure.savefig(path, dpi=200, bbox_inches="tight", metadata=metadata)
        paths.append(path)
    return paths


def draw_heat_maps(
    matrices: Mapping[str, Mapping[str, Matrix]], labels: Matrix | None, clients: Sequence[str]
) -> Figure:
    """Return clients × clients maps: a row for each measure, a column for each factor, and the label mix.

    Args:
        matrices: by measure and factor.
        labels: the similarity of the label mixes; None: not shown.
        clients: their names.
    """
    factors = list(dict.fromkeys(factor for row in matrices.values() for factor in row))
    columns = len(factors) + (labels is not None)
    with style.context(_DRAWING):
        figure = Figure(figsize=(1.9 * columns + 0.6, 1.9 * len(matrices) + 0.3), layout="constrained")
        axes = figure.subplots(len(matrices), columns, squeeze=False)
        image = None
        for row, (measure, found) in zip(axes, matrices.items(), strict=True):
            for place, factor in zip(row, factors, strict=False):
                if factor in found:
                    image = _map(place, found[factor], clients)
                    place.set_title(f"{factor}, {measure}")
                else:
                    place.set_axis_off()
            if labels is not None:
                row[-1].set_axis_off()
        if labels is not None:
            axes[0][-1].set_axis_on()
            _map(axes[0][-1], labels, clients)
            axes[0][-1].set_title("label mix")
        for row in axes:
            _name(row[0].yaxis, clients)
        for place in axes[-1][: len(factors)]:
            _name(place.xaxis, clients)
        if image is not None:
            figure.colorbar(image, ax=axes, shrink=0.6, label="similarity")
    return figure


def _map(place: Axes, matrix: Matrix, clients: Sequence[str]) -> Any:
    image = place.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    place.set_xticks([])
    place.set_yticks([])
    for side in place.spines.values():
        side.set_visible(False)
    if len(clients) <= 10:
        for (i, j), value in np.ndenumerate(matrix):
            if i != j and not np.isnan(value):
                colour = "white" if abs(value) > 0.6 else "black"
                place.text(j, i, f"{value:.2f}".replace("0.", ".", 1), ha="center", va="center", size=5, color=colour)
    return image


def _name(axis: Any, clients: Sequence[str]) -> None:
    if len(clients) <= _MOST_NAMES:
        axis.set_ticks(range(len(clients)), list(map(for_terminal, clients)))
        axis.set_tick_params(length=0, labelrotation=90 if axis.axis_name == "x" else 0, labelsize=6)


def draw_layers(profile: Mapping[tuple[str, str], Mapping[str, float]]) -> Figure:
    """Return the mean similarity over pairs of clients along the modules.

    Args:
        profile: by measure and factor: each module's mean, in the model's order.
    """
    measures = list(dict.fromkeys(measure for measure, _ in profile))
    with style.context(_DRAWING):
        figure = Figure(figsize=(3.0 * len(measures), 2.4), layout="constrained")
        for place, measure in zip(
            figure.subplots(1, len(measures), sharey=True, squeeze=False)[0], measures, strict=True
        ):
            for (_, factor), by_module in [entry for entry in profile.items() if entry[0][0] == measure]:
                for dash, (kind, values) in zip(_cycle(_DASHES), _by_kind(by_module).items(), strict=False):
                    label = f"{factor}, {kind}" if kind else factor
                    place.plot(
                        values, dash, color=_COLOURS.get(factor, "#009E73"), label=label, marker=".", markersize=3
                    )
            place.set_title(measure)
            place.set_xlabel("layer")
            place.grid(alpha=0.25)
        first = figure.axes[0]
        first.set_ylabel("similarity, mean over pairs")
        for place in (figure.axes[0], figure.axes[-1]):  # the last may have what no other has
            place.legend(fontsize=6)
    return figure


def _by_kind(by_module: Mapping[str, float]) -> dict[str, list[float]]:
    """Return the values of alike modules (query, value, ...) in their order."""
    kinds: dict[str, list[float]] = {}
    for module, value in by_module.items():
        kinds.setdefault(re.split(r"\.\d+\.", module)[-1].rpartition(".")[2], []).append(value)
    return kinds


def draw_trend(means: Iterable[Mapping[str, Any]]) -> Figure:
    """Return the mean similarity over rounds, one panel a measure; bands are the standard deviation over pairs."""
    rows = list(means)
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    with style.context(_DRAWING):
        figure = Figure(figsize=(3.0 * len(measures), 2.4), layout="constrained")
        for place, measure in zip(
            figure.subplots(1, len(measures), sharey=True, squeeze=False)[0], measures, strict=True
        ):
            for factor in dict.fromkeys(row["factor"] for row in rows if row["measure"] == measure):
                own = [row for row in rows if (row["measure"], row["factor"]) == (measure, factor)]
                rounds, mean, std = (np.array([row[name] for row in own]) for name in ("round", "mean", "std"))
                colour = _colour(factor)
                place.plot(rounds, mean, color=colour, label=factor, marker=".")
                place.fill_between(rounds, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
            place.set_title(measure)
            place.set_xlabel("round")
            place.grid(alpha=0.25)
        figure.axes[0].set_ylabel("similarity, mean over pairs")
        for place in (figure.axes[0], figure.axes[-1]):  # the last may have what no other has
            place.legend(fontsize=6)
    return figure


def draw_dendrogram(similarity: Matrix, labels: Matrix, clients: Sequence[str], factor: str) -> Figure:
    """A dendrogram of the clients by 1 − similarity (average linkage), beside their label distributions.

    Args:
        similarity: of a factor's tensors.
        labels: of the label mixes.
        clients: their names.
        factor: named in the title.
    """
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    distances = np.clip(1 - np.nan_to_num(similarity), 0, 2)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average")
    with style.context(_DRAWING), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=(5.6, 0.22 * len(clients) + 1.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2, 1])
        drawn = dendrogram(
            tree,
            orientation="left",
            labels=list(map(for_terminal, clients)),
            ax=left,
            color_threshold=0,
            leaf_font_size=7,
        )
        left.set_title(f"clients by {factor}: 1 − similarity")
        order = drawn["leaves"][::-1]
        _map(right, labels[np.ix_(order, order)], clients)
        right.set_title("label mix, same order")
    return figure


def _cycle(values: Sequence[str]) -> Iterator[str]:
    while True:
        yield from values


def _colour(factor: str) -> str:
    return _COLOURS.get(factor, "#009E73")
