"""GLUE's five tasks as folders that stand in for the hub's, for the recipes glue-*-small without a network.

    python benchmarks/glue_folders.py --out runs/stand-in
    FEDSA_DATA=runs/stand-in fedsa run glue-sst2-small

Reads ``$FEDSA_DATA/glue/{SST-2,RTE,QNLI,MNLI,QQP}`` and writes the hub's columns and splits. SST-2, RTE and QNLI's dev
rows are GLUE's own; of QNLI's training rows there are 9,000; MNLI's and QQP's are 9,000 and 1,000 of GLUE's *training*
rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import datasets

TASKS = {
    "sst2": ("SST-2", ("sentence",), {"train": "train.tsv", "validation": "dev.tsv"}),
    "rte": ("RTE", ("sentence1", "sentence2"), {"train": "train.tsv", "validation": "dev.tsv"}),
    "qnli": ("QNLI", ("question", "sentence"), {"train": "train9k.json", "validation": "dev.tsv"}),
    "mnli": ("MNLI", ("premise", "hypothesis"), {"train": "train.json", "validation_matched": "dev.json"}),
    "qqp": ("QQP", ("question1", "question2"), {"train": "train.json", "validation": "dev.json"}),
}
"""Task to its folder, its columns of text, and split to file."""
NAMES = {"sst2": ("negative", "positive"), "qqp": ("not_duplicate", "duplicate")}  # of labels that are numbers


def read(path: Path, columns: tuple[str, ...], names: tuple[str, ...] | None) -> Iterator[dict[str, str]]:
    """Yield the rows of a file: the columns of text, and the label by its name."""
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".json":
            found = [(row["text_a"], row["text_b"], row["label"]) for row in json.load(file).values()]
        else:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            found = [(*(row[column] for column in columns), row["label"]) for row in rows]
    for *texts, label in found:
        yield {**dict(zip(columns, texts, strict=True)), "label": names[int(label)] if names else label}


def main() -> None:
    """Write all folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not os.environ.get("FEDSA_DATA"):
        parser.error("set FEDSA_DATA to the folder that has glue/")
    for task, (folder, columns, splits) in TASKS.items():
        target = options.out / "glue" / task / "data"
        target.mkdir(parents=True, exist_ok=True)
        for split, file in splits.items():
            rows = read(Path(os.environ["FEDSA_DATA"]) / "glue" / folder / file, columns, NAMES.get(task))
            datasets.Dataset.from_list(list(rows)).to_parquet(target / f"{split}-00000-of-00001.parquet")
    print(options.out)


if __name__ == "__main__":
    main()
