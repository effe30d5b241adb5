r"""Clients that come after a federation: every way to an adapter of their own, over seeds.

    python benchmarks/unseen_clients.py --out runs/unseen
    python benchmarks/unseen_clients.py --recipe runs/clinc150/clinc150.toml --set training.learning_rate=0.01 \
        --out runs/unseen-clinc150

Each seed is one ``fedsa run`` of FedSA with a part of the clients held out (a run that is finished is read, not
repeated). From its chosen round every held-out client is then taken to an adapter of its own in every way that
``fedsa adapt --compare`` knows, and from the initial tensors too: what it would come to without the federation. The
rows are cut into train and test as the run cut them; nothing is chosen on test. Prints a Markdown table, and writes it
to OUT/table.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from fedsa.federation import Federation
from fedsa.runs.onboarding import Onboarding
from fedsa.runs.personal import PersonalStates
from fedsa.store import RunFolder, recipe_of

Way = tuple[str, str, bool, int]
"""What is begun with, the start of the personal tensors, whether the shared ones are frozen, and epochs."""


def run(folder: Path, recipe: str, settings: list[str]) -> None:
    """Run one seed, unless it has been."""
    if not (folder / "summary.json").exists():
        words = [word for setting in settings for word in ("--set", setting)]
        subprocess.run([sys.executable, "-m", "fedsa", "run", recipe, "--out", str(folder), *words], check=True)


def measure(path: Path, epochs: list[int]) -> dict[Way, dict[str, tuple[float, float]]]:
    """Return each way's metric of each held-out client on test, before and after its training."""
    folder = RunFolder.open(path)
    federation = Federation.from_recipe(recipe_of(folder))
    torch.set_num_threads(federation.recipe.compute.threads)
    chosen = int(json.loads((path / "summary.json").read_text(encoding="utf-8"))["chosen_round"])
    metric = federation.task.metric
    found: dict[Way, dict[str, tuple[float, float]]] = {}
    for number in epochs:
        settings = federation.recipe.adaptation.model_copy(update={"epochs": number, "steps": None})
        for begun, round in (("nothing", 0), ("the federation", chosen)):
            onboarding = Onboarding(federation, PersonalStates(folder, federation.algorithm, round), settings)
            for start, freeze in onboarding.choices():
                if round or start == "initial":
                    found[begun, start, freeze, number] = {
                        each.client: (each.before["test"][metric], each.after["test"][metric])
                        for each in onboarding.take_in(federation.held_out, start, freeze_shared=freeze)
                    }
    return found


def spread(seeds: list[list[float]]) -> str:
    """Return mean ± sample standard deviation over seeds of the mean over clients, in per cent."""
    means = [mean(values) for values in seeds]
    return f"{100 * mean(means):.1f} ± {100 * stdev(means):.1f}" if len(means) > 1 else f"{100 * means[0]:.1f}"


def table(by_seed: list[Mapping[Way, Mapping[str, tuple[float, float]]]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| begun with | B and head start at | A | epochs | before | after | worst client |",
        "|---|---|---|---|---|---|---|",
    ]
    for way in by_seed[0]:
        begun, start, freeze, epochs = way
        before, after = ([[pair[place] for pair in seed[way].values()] for seed in by_seed] for place in (0, 1))
        worst = f"{100 * min(min(values) for values in after):.1f}"
        cells = [begun, start, "frozen" if freeze else "trained", str(epochs), spread(before), spread(after), worst]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--holdout", type=float, default=0.25, help="part of the clients")
    parser.add_argument("--epochs", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--set", dest="extra", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/unseen"))
    options = parser.parse_args()
    by_seed: list[dict[Way, Any]] = []
    for seed in options.seeds:
        folder = options.out / f"seed{seed}"
        settings = [
            f"seed={seed}",
            f"holdout_clients={options.holdout}",
            "adaptation.share_personal=true",
            "adaptation.epochs=1",
            f"evaluation.evaluate_every={10**6}",
            f"compute.threads={options.threads}",
            *options.extra,
        ]
        run(folder, options.recipe, settings)
        by_seed.append(measure(folder, options.epochs))
    text = table(by_seed)
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
