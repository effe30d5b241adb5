"""How alike clients' A's and B's are after local training: FedSA-LoRA's study (arXiv:2410.01463), at a small scale.

    python benchmarks/asymmetry.py --out runs/asymmetry

Six clients share out the quickstart's rows, IID and by label, Dirichlet 1.0 and 0.5, and each trains alone: from one
initial A, as in the paper, and from an A of its own (``adapter.own_initial_a``), the control for what the common start
alone makes alike. VeRA has no A to draw. Each cell is an ordinary ``fedsa run``; one that is finished is read, not
repeated, and one that was interrupted is resumed, so the command can be given again. All are then compared as
``fedsa analyze`` does. Writes OUT/similarity.csv (a row for each number), OUT/table.md and pictures, and prints the
table.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from fedsa.runs.analysis import Analysis, analyze
from fedsa.runs.report.similarity import draw_heat_maps, save

SPLITS = {
    "IID": 'kind = "iid"',
    "Dirichlet 1.0": 'kind = "dirichlet", dirichlet_alpha = 1.0',
    "Dirichlet 0.5": 'kind = "dirichlet", dirichlet_alpha = 0.5',
}
PARTITION = '{{ {split}, clients = 6, group = "document", max_examples = 160 }}'
STARTS = {"same": False, "own": True}
COMMON = [
    "algorithm=local",
    "rounds=1",
    "training.local_steps=40",
    "training.head_warmup_epochs=0",
    "training.optimizer_state=reset",
    "training.warmup_fraction=0.1",
    "training.trainer=cohort",
    "training.cohort_size=6",
    "training.packing=true",
    "task.max_length=32",
]
VARIANTS = {
    "lora": ["adapter.variant=lora", "training.learning_rate=5e-3"],
    "rslora": ["adapter.variant=rslora", "training.learning_rate=2e-3"],
    "vera": ["adapter.variant=vera", "training.learning_rate=3e-2"],
    "lora, SGD": ["adapter.variant=lora", "training.optimizer=sgd", "training.learning_rate=2e-2"],
}
"""AdamW at the quickstart's rate, a lower one for rsLoRA's scale, a higher one for VeRA; and the paper's optimiser."""

SIDES = {"A": "A", "lambda_d": "A", "B": "B", "lambda_b": "B", "head": "head"}
"""A factor's place in the table: VeRA's λ_d stands under A, and λ_b under B."""

ALIKE = [("raw", "A"), ("moved", "A"), ("span", "A"), ("raw", "B"), ("span", "B"), ("update", "BA"), ("moved", "head")]
BESIDE = [
    ("distance", "A"),
    ("distance", "head"),
    ("mix", "labels"),
    ("follows", "A"),
    ("follows", "B"),
    ("follows", "BA"),
    ("follows", "head"),
    ("accuracy", "test"),
]
"""Measure and side of the two tables. B and λ_b start at zero, so their movement is they themselves.

``follows`` is the correlation, over pairs of clients, of the similarity (of the movement) with that of the label mixes.
"""

COLOURS = {"A": "#0072B2", "B": "#D55E00", "head": "#555555", "BA": "#009E73"}


class Cell(NamedTuple):
    """One run."""

    variant: str
    start: str
    split: str
    seed: int

    def folder(self, out: Path) -> Path:
        """Return its run folder."""
        return out / "_".join(str(part).replace(", ", "-").replace(" ", "-") for part in self)

    def settings(self) -> list[str]:
        """Return its ``--set`` values."""
        return [
            *COMMON,
            *VARIANTS[self.variant],
            f"data.partition={PARTITION.format(split=SPLITS[self.split])}",
            f"adapter.own_initial_a={str(STARTS[self.start]).lower()}",
            f"seed={self.seed}",
        ]


def run(cell: Cell, out: Path, extra: Sequence[str]) -> None:
    """Run a cell, or finish it, unless it has been."""
    folder = cell.folder(out)
    if not (folder / "summary.json").exists():
        words = [word for setting in (*cell.settings(), *extra) for word in ("--set", setting)]
        begun = (folder / "state.json").exists()
        command = ["resume", str(folder)] if begun else ["run", "quickstart", "--out", str(folder), *words]
        done = subprocess.run([sys.executable, "-m", "fedsa", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"fedsa {' '.join(command)}\n{done.stderr}")
        print(folder.name, file=sys.stderr, flush=True)


def figures(folder: Path, found: Analysis) -> Iterator[tuple[str, str, float]]:
    """Yield measure, factor and value of a run: means over pairs (or clients) and layers."""
    for row in found.means():
        if row["measure"] != "within":  # of one round, it is what "moved" is
            yield row["measure"], row["factor"], row["mean"]
    for factor in dict.fromkeys(factor for _, factor, _ in found.distances):
        values = [value for (_, own, _), value in found.distances.items() if own == factor]
        yield "distance", factor, float(np.mean(values))
    above = np.triu_indices(len(found.clients), 1)
    yield "mix", "labels", float(found.labels[above].mean())
    if found.labels.min() < 0.9:  # else there is nothing to follow
        for measure, factor in dict.fromkeys(key[1:3] for key in found.matrices):
            matrix = found.mean_matrix(1, measure, factor) if measure in ("moved", "update") else None
            if matrix is not None:
                yield "follows", factor, float(np.corrcoef(matrix[above], found.labels[above])[0, 1])
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    yield "accuracy", "test", summary["test_final"]["weighted_mean"]


def by_seed(rows: Sequence[Mapping[str, Any]], **wanted: str) -> list[float]:
    """Return the values of the rows that have all of these, one for each seed."""
    return [row["value"] for row in rows if all(row[name] == value for name, value in wanted.items())]


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> str:
    """Return a Markdown table: mean ± sample standard deviation over seeds."""
    lines = [
        f"| variant | initial A | split | {' | '.join(f'{side}, {measure}' for measure, side in columns)} |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for variant, start, split in dict.fromkeys((row["variant"], row["start"], row["split"]) for row in rows):
        cells = []
        for measure, side in columns:
            values = by_seed(rows, variant=variant, start=start, split=split, measure=measure, side=side)
            spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.2f}{spread}" if values else "–")
        lines.append(f"| {' | '.join([variant, start, split, *cells])} |")
    return "\n".join(lines)


def draw_trends(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Return each measure over the splits: a row of panels for each variant, dashed where each client has its own A."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    measures = ["raw", "moved", "span", "update", "distance"]
    with rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(2.1 * len(measures), 1.7 * len(variants) + 0.4), layout="constrained")
        axes = figure.subplots(len(variants), len(measures), squeeze=False)
        for (line, variant), (column, measure) in product(enumerate(variants), enumerate(measures)):
            place = axes[line][column]
            for side, (start, style) in product(COLOURS, (("same", "-"), ("own", "--"))):
                wanted = {"variant": variant, "start": start, "measure": measure, "side": side}
                seeds = [by_seed(rows, split=split, **wanted) for split in SPLITS]
                if all(seeds) and (measure, side) != ("distance", "B"):  # B's is not in parts of its start
                    spread = [stdev(values) if len(values) > 1 else 0 for values in seeds]
                    label = f"{side}, {'one initial A' if start == 'same' else 'own initial A'}"
                    about: Any = {"color": COLOURS[side], "label": label, "capsize": 2, "marker": ".", "linewidth": 1}
                    place.errorbar(range(len(SPLITS)), [mean(values) for values in seeds], spread, ls=style, **about)
            if not place.lines:
                place.set_axis_off()
                continue
            if measure != "distance":
                place.set_ylim(-0.3, 1.05)
            place.set_title(f"{variant}: {measure}")
            place.grid(alpha=0.25)
            place.set_xticks(range(len(SPLITS)), [name.replace(" ", "\n") for name in SPLITS])
        known = {
            label: handle
            for place in axes.flat
            for handle, label in zip(*place.get_legend_handles_labels(), strict=True)
        }
        names = list(known)
        figure.legend(known.values(), names, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return figure


def maps(runs: Mapping[Cell, Analysis], variant: str, seed: int) -> Figure:
    """Return clients × clients maps of A and B from one initial A: a column for each split, one seed."""
    found = {split: runs[Cell(variant, "same", split, seed)] for split in SPLITS}
    a, b = ("lambda_d", "lambda_b") if variant == "vera" else ("A", "B")
    wanted = {a: ("raw", a), f"{a} moved": ("moved", a), b: ("raw", b)}
    shown = {
        name: {split: own.mean_matrix(1, measure, factor) for split, own in found.items()}
        for name, (measure, factor) in wanted.items()
    }
    return draw_heat_maps(
        {**shown, "labels": {split: own.labels for split, own in found.items()}}, None, _numbers(found)
    )


def starts(runs: Mapping[Cell, Analysis], variant: str, seed: int) -> Figure:
    """Return clients × clients maps of the last split, from one initial A and from own ones."""
    split = list(SPLITS)[-1]
    found = {start: runs[Cell(variant, start, split, seed)] for start in STARTS}
    shown = {
        f"{start} start": {
            factor: own.mean_matrix(1, measure, factor)
            for measure, factor in (("raw", "A"), ("raw", "B"), ("update", "BA"))
        }
        for start, own in found.items()
    }
    return draw_heat_maps(shown, found["same"].labels, _numbers(found))


def _numbers(found: Mapping[str, Analysis]) -> list[str]:
    return [str(number) for number, _ in enumerate(next(iter(found.values())).clients, start=1)]


def main() -> None:
    """Run all cells, compare, and write what they come to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", dest="extra", action="append", default=["compute.threads=1"], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/asymmetry"))
    options = parser.parse_args()
    cells = [
        Cell(variant, start, split, seed)
        for variant, start, split, seed in product(options.variants, STARTS, SPLITS, options.seeds)
        if (variant, start) != ("vera", "own")
    ]
    for cell in sorted(cells, key=lambda cell: cell.seed):  # an interruption leaves whole seeds
        run(cell, options.out, options.extra)
    runs, rows = {}, []
    for cell in cells:
        folder = cell.folder(options.out)
        runs[cell] = analyze(folder)
        rows += [
            {**cell._asdict(), "measure": measure, "factor": factor, "side": SIDES.get(factor, factor), "value": value}
            for measure, factor, value in figures(folder, runs[cell])
        ]
    with (options.out / "similarity.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    text = f"{table(rows, ALIKE)}\n\n{table(rows, BESIDE)}\n"
    (options.out / "table.md").write_text(text, encoding="utf-8")
    formats = ("pdf", "svg", "png")
    save(draw_trends(rows), options.out / "trends", formats)
    for variant in options.variants:
        name = variant.replace(", ", "-")
        save(maps(runs, variant, options.seeds[0]), options.out / f"maps-{name}", formats)
        if variant != "vera":
            save(starts(runs, variant, options.seeds[0]), options.out / f"starts-{name}", formats)
    print(text)


if __name__ == "__main__":
    main()
