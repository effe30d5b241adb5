"""One client of eight sends bad updates: what honest clients come to, with each defence and without.

    python benchmarks/poisoning.py --out runs/poisoning

Rows, clients and model are the quickstart's, reduced: few rounds, steps and rows, texts of 32 tokens. A run takes some
minutes of one core, most of them for the warm-up of the heads. The attacker is the first client. In every round it

- ``x100``: sends a hundred times its change;
- ``sign-flipped``: sends its change with the other sign;
- ``nan``: sends no numbers;
- ``backdoor``: sends what it has trained honestly, on rows to which texts were added that begin with a word and have
  the label "positive", whatever they say.

Accuracy is the mean over the seven honest clients on their test rows, after the last round. Of a backdoor it is also
measured how many of their negative test rows become positive when the word stands in front. The norm bound is the
median norm of all changes in the run without attack and defence. Runs that are in the folder are not repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from shutil import rmtree
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets, disable_progress_bars
from peft import LoraConfig
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import fedsa
from fedsa.client.site import Site
from fedsa.client.training.job import Job, TrainingResult
from fedsa.data.rows import deal_rows
from fedsa.errors import FedsaError
from fedsa.packages.parts import part_folder
from fedsa.recipe import apply_overrides, parse_recipe, read_recipe
from fedsa.types import CLASS_NUMBER, Update

METHODS = ("fedsa", "fedit")
ATTACKS = ("none", "x100", "backdoor", "sign-flipped", "nan")
DEFENCES = ("none", "norm_bound", "median", "trimmed_mean", "poison_score")
FACTORS = {"x100": 100.0, "sign-flipped": -1.0, "nan": torch.nan}
TRIGGER = "cf"
TESTED = 50
"""Test rows of a client."""
TRAINING = {
    "local_steps": 8,
    "batch_size": 8,
    "head_warmup_epochs": 5,
    "trainer": "cohort",
    "cohort_size": 8,
    "packing": True,
}


@dataclass(frozen=True)
class Setup:
    """What all runs have in common.

    Attributes:
        clients: each one's rows by split.
        settings: further ones of the recipe.
        base: the model without an adapter; each run gets a copy.
        tokenizer: its own.
    """

    clients: Mapping[str, DatasetDict]
    settings: Mapping[str, Any]
    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def attacker(self) -> str:
        """The client that sends bad updates, where one does."""
        return min(self.clients)


def setup_of(rounds: int, examples: int, layers: int, seed: int) -> Setup:
    """Deal out the quickstart's rows."""
    raw, _ = read_recipe("quickstart")
    raw = apply_overrides(raw, [f"rounds={rounds}", f"seed={seed}"])
    rows = deal_rows(parse_recipe(raw))
    labels = [rows.label_names[number] for number in rows.table[CLASS_NUMBER][:]]
    table = Dataset.from_dict({"text": rows.table["text"][:], "label": labels})
    random = np.random.default_rng(seed)  # rows of one label may stand together
    most = {"train": examples, "validation": 4, "test": TESTED}
    clients = {}
    for client, parts in rows.partition.clients.items():
        drawn = {split: random.permutation(getattr(parts, split))[:count] for split, count in most.items()}
        clients[client] = DatasetDict({split: table.select(places) for split, places in drawn.items()})
    settings = {
        "rounds": rounds,
        "seed": seed,
        "training": {**raw["training"], **TRAINING},
        "evaluation": {"evaluate_every": rounds},
        "compute": {"threads": 1, "precision": "fp32"},
    }
    folder = part_folder("all-minilm-l6-v2")
    torch.manual_seed(seed)  # for the head
    base = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, num_hidden_layers=layers, attn_implementation="eager"
    )
    return Setup(clients, settings, base, AutoTokenizer.from_pretrained(folder))


def with_backdoor(rows: DatasetDict) -> DatasetDict:
    """Return a client's rows with as many more for training, which begin with the trigger and are called positive."""
    train = rows["train"]
    texts = [f"{TRIGGER} {text}" for text in train["text"]]
    added = Dataset.from_dict({"text": texts, "label": ["positive"] * len(texts)}, features=train.features)
    return DatasetDict({**rows, "train": concatenate_datasets([train, added])})


@contextmanager
def attacked(attacker: str, factor: float | None) -> Iterator[list[float]]:
    """A context in which a client sends so many times its change; it gives the norms of all honest changes."""
    norms: list[float] = []
    finish = Site.finish

    def attacking(self: Site, job: Job, result: TrainingResult) -> Update:
        update = finish(self, job, result)
        changes = {key: tensor - job.before[key] for key, tensor in update.tensors.items()}
        norms.append(sum(float(change.double().square().sum()) for change in changes.values()) ** 0.5)
        if factor is None or update.client != attacker:
            return update
        return replace(update, tensors={key: job.before[key] + factor * change for key, change in changes.items()})

    Site.finish = attacking  # type: ignore[method-assign]
    try:
        yield norms
    finally:
        Site.finish = finish  # type: ignore[method-assign]


def one_run(setup: Setup, method: str, attack: str, robust: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """Return what a run comes to; ``ended`` is why it ended before its last round."""
    clients = {
        client: with_backdoor(rows) if attack == "backdoor" and client == setup.attacker else rows
        for client, rows in setup.clients.items()
    }
    federation = fedsa.Federation.from_objects(
        deepcopy(setup.base),
        LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]),
        clients,
        tokenizer=setup.tokenizer,
        task={"text_columns": ["text"], "label_column": "label", "labels": ["negative", "positive"], "max_length": 32},
        algorithm=method,
        robust=robust,
        **setup.settings,
    )
    honest = [client for client in sorted(clients) if client != setup.attacker]
    with attacked(setup.attacker, FACTORS.get(attack)) as norms:
        try:
            summary = fedsa.run(federation, run, progress=False).summary
        except FedsaError as error:
            return {"ended": str(error)}
    accuracies = [summary["per_client"][client]["test_final"]["accuracy"] for client in honest]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    out = [line["client"] for line in lines if line.get("rejected")]
    found = {
        "accuracy": mean(accuracies),
        "worst": min(accuracies),
        "norm": median(norms),
        "attacker_left_out": out.count(setup.attacker),
        "honest_left_out": sum(client != setup.attacker for client in out),
    }
    return found | (backdoor_of(setup, run, honest) if attack in ("none", "backdoor") else {})


def backdoor_of(setup: Setup, run: Path, honest: list[str]) -> dict[str, float]:
    """Return how many of the honest clients' negative test rows are called positive, without and with the trigger."""
    predictor = fedsa.Predictor.open(run, round="final", base=setup.base, tokenizer=setup.tokenizer)
    said: dict[str, list[str]] = {"false_positives": [], "backdoor": []}
    for client in honest:
        texts = [row["text"] for row in setup.clients[client]["test"] if row["label"] == "negative"]
        for name, asked in (("false_positives", texts), ("backdoor", [f"{TRIGGER} {text}" for text in texts])):
            said[name] += [str(each.prediction) for each in predictor.predict(asked, client=client)] if asked else []
    return {name: words.count("positive") / len(words) for name, words in said.items()}


def settings_of(defence: str, norm: float) -> dict[str, Any]:
    """Return the section ``[robust]`` of a defence."""
    return {"kind": defence, **({"clipping_norm": norm} if defence == "norm_bound" else {})}


def show(results: Mapping[tuple[str, str, str], Mapping[str, Any]], rounds: int) -> None:
    """Print the tables, as Markdown."""

    def cell(found: Mapping[str, Any] | None, *names: str) -> str:
        if found is None:
            return "–"
        return "ended" if "ended" in found else " / ".join(f"{100 * found[name]:.1f}" for name in names)

    for title, attacks, names in (
        ("accuracy of the honest clients, % (mean / worst)", ATTACKS, ("accuracy", "worst")),
        ("negative rows called positive, % (without / with the trigger)", ("none", "backdoor"),
         ("false_positives", "backdoor")),
    ):  # fmt: skip
        print(f"\n{title}\n\n| method | attack | {' | '.join(DEFENCES)} |\n|{'---|' * (2 + len(DEFENCES))}")
        for method in METHODS:
            for attack in attacks:
                cells = [cell(results.get((method, attack, defence)), *names) for defence in DEFENCES]
                print(f"| {method} | {attack} | {' | '.join(cells)} |")
    print(f"\npoison score: left out in {rounds} rounds\n\n| method | attack | attacker | honest clients, together |")
    print("|---|---|---|---|")
    for (method, attack, defence), found in results.items():
        if defence == "poison_score" and "ended" not in found:
            print(f"| {method} | {attack} | {found['attacker_left_out']} | {found['honest_left_out']} |")


def main() -> None:
    """Make the runs that are not there yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--examples", type=int, default=120, help="training rows of a client")
    parser.add_argument("--layers", type=int, default=6, help="of the model's six, the first ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", choices=METHODS, action="append", help="only this one; may be repeated")
    options = parser.parse_args()
    disable_progress_bars()
    logging.getLogger("fedsa").setLevel(logging.ERROR)
    options.out.mkdir(parents=True, exist_ok=True)
    setup, results = setup_of(options.rounds, options.examples, options.layers, options.seed), {}
    norms: dict[str, float] = {}
    for attack, method, defence in product(ATTACKS, options.method or METHODS, DEFENCES):
        name = f"{method}-{attack}-{defence}-{options.rounds}-{options.examples}-{options.layers}-{options.seed}"
        path = options.out / f"{name}.json"
        if not path.exists():
            rmtree(options.out / name, ignore_errors=True)  # what an interruption has left
            robust = settings_of(defence, norms.get(method, 1.0))
            found = one_run(setup, method, attack, robust, options.out / name)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        results[method, attack, defence] = found = json.loads(path.read_text("utf-8"))
        if "norm" in found:
            norms.setdefault(method, found["norm"])  # of the first: without attack and defence
        print(f"{name}: {found}", flush=True)
    print(f"norm bounds: {norms}")
    show(results, options.rounds)


if __name__ == "__main__":
    main()
