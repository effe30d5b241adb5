"""Four methods on three adapter variants: does the loss fall, and does plain PEFT load what is exported?

    python benchmarks/variants.py --out runs/variants

For each of lora, rslora, vera × fedsa, fedit, ffa, local: an ordinary ``fedsa run`` of the recipe,
``fedsa export --all``, and for every client the largest difference of logits on its test rows between fedsa's own
model and ``peft.PeftModel.from_pretrained`` on a plain transformers model, both in fp32. Exits with 1 if a loss does
not fall or a difference is above 1e-5.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import mean

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from fedsa.algorithms import make_algorithm
from fedsa.federation import Federation
from fedsa.models import quiet
from fedsa.packages.parts import PREFIX, part_folder
from fedsa.recipe import Recipe
from fedsa.runs.export import personal_state
from fedsa.store import RunFolder, recipe_of

METHODS = ("fedit", "fedsa", "ffa", "local")
VARIANTS = ("lora", "rslora", "vera")
ROWS = 32  # of each client's test rows


def losses(run: Path) -> list[float]:
    """Return the mean training loss of each round."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rounds = sorted({line["round"] for line in lines if line["train"]})
    return [mean(line["train"]["loss"] for line in lines if line["round"] == round) for round in rounds]


def largest_difference(run: Path, exported: Path) -> float:
    """Return the largest difference of logits over all clients."""
    folder = RunFolder.open(run)
    recipe: Recipe = recipe_of(folder)
    recipe = recipe.model_copy(update={"compute": recipe.compute.model_copy(update={"precision": "fp32"})})
    federation = Federation.from_recipe(recipe)
    algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
    summary, about = folder.read_json("summary.json"), folder.read_json("clients.json")
    path = recipe.model.path
    location = str(part_folder(path.removeprefix(PREFIX))) if path.startswith(PREFIX) else path
    worst = 0.0
    for client in federation.clients:
        batch = federation.encoded.batch(federation.rows.partition.clients[client].test[:ROWS])
        federation.model.write(personal_state(folder, algorithm, client, summary["chosen_round"]))
        with quiet():
            base = AutoModelForSequenceClassification.from_pretrained(location, num_labels=len(about[client]["labels"]))
            plain = PeftModel.from_pretrained(base, exported / about[client]["folder"]).eval()
        with torch.inference_mode():
            ours = federation.task.outputs(federation.model.model, batch)
            theirs = federation.task.outputs(plain, batch)
        worst = max(worst, float((ours - theirs).abs().max()))
    return worst


def main() -> None:
    """Run all combinations and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--set", dest="extra", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/variants"))
    options = parser.parse_args()
    fedsa = [sys.executable, "-m", "fedsa"]
    failed = False
    print("| variant | method | training loss, each round | logits differ by at most |\n|---|---|---|---|", flush=True)
    for variant, method in product(VARIANTS, METHODS):
        run, exported = options.out / f"{variant}-{method}", options.out / f"{variant}-{method}-exported"
        settings = [f"adapter.variant={variant}", f"algorithm={method}", *options.extra]
        words = [word for setting in settings for word in ("--set", setting)]
        if not (run / "summary.json").exists():
            subprocess.run([*fedsa, "run", options.recipe, "--out", str(run), *words], check=True, capture_output=True)
        if not exported.exists():
            command = [*fedsa, "export", str(run), "--all", "--to", str(exported)]
            subprocess.run(command, check=True, capture_output=True)
        curve, difference = losses(run), largest_difference(run, exported)
        failed |= curve[-1] >= curve[0] or difference > 1e-5
        print(f"| {variant} | {method} | {', '.join(f'{loss:.3f}' for loss in curve)} | {difference:.1e} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
