"""BoolQ and ARC as folders that stand in for the hub's, for the recipes boolq-small and arc-small without a network.

    python benchmarks/commonsense_folders.py --out runs/stand-in
    FEDSA_DATA=runs/stand-in fedsa run arc-small

Reads ``$FEDSA_DATA/commonsense/{boolq,ARC-Easy,ARC-Challenge}/{train,test}.json`` as LLM-Adapters has them
(github.com/AGI-Edgerunners/LLM-Adapters), question and choices in one instruction, and writes the hub's columns and
splits. BoolQ's passages are not there, so there is no such column; nor is ARC's validation split. What is BoolQ's test
file there is the hub's validation split.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import datasets

ARC = re.compile(r"Please choose the correct answer to the question: (.*)\n\nAnswer1: (.*)\n\nAnswer format: .*", re.S)
BOOLQ = re.compile(
    r"Please answer the following question with true or false, question: (.*)\?\n\nAnswer format.*", re.S
)


def arc(instruction: str, answer: str) -> dict[str, Any]:
    """Return a row of ARC: its question, its choices with their letters, and the right one's letter."""
    question, listed = matched(ARC, instruction)
    texts = re.split(r" Answer\d: ", listed)
    letters = list("ABCDE"[: len(texts)])
    right = letters[int(answer.removeprefix("answer")) - 1]
    return {"question": question, "choices": {"text": texts, "label": letters}, "answerKey": right}


def boolq(instruction: str, answer: str) -> dict[str, Any]:
    """Return a row of BoolQ: its question, without the question mark, and whether the answer is yes."""
    (question,) = matched(BOOLQ, instruction)
    return {"question": question, "answer": {"true": True, "false": False}[answer]}


def matched(pattern: re.Pattern[str], instruction: str) -> tuple[str, ...]:
    """Return the parts of an instruction.

    Raises:
        SystemExit: it has another form.
    """
    found = pattern.fullmatch(instruction)
    if found is None:
        raise SystemExit(f"an instruction of another form: {instruction!r}")
    return found.groups()


SETS = {
    "boolq": ("boolq", boolq, {"train": "train", "validation": "test"}),
    "ARC-Easy": ("ai2_arc/ARC-Easy", arc, {"train": "train", "test": "test"}),
    "ARC-Challenge": ("ai2_arc/ARC-Challenge", arc, {"train": "train", "test": "test"}),
}
"""Folder that is read, to the one that is written, what makes a row, and split to file."""


def main() -> None:
    """Write all folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not os.environ.get("FEDSA_DATA"):
        parser.error("set FEDSA_DATA to the folder that has commonsense/")
    for source, (folder, row, splits) in SETS.items():
        target = options.out / folder / "data"
        target.mkdir(parents=True, exist_ok=True)
        for split, file in splits.items():
            path = Path(os.environ["FEDSA_DATA"]) / "commonsense" / source / f"{file}.json"
            found = json.loads(path.read_text(encoding="utf-8"))
            rows = [row(each["instruction"], each["answer"]) for each in found]
            datasets.Dataset.from_list(rows).to_parquet(target / f"{split}-00000-of-00001.parquet")
    print(options.out)


if __name__ == "__main__":
    main()
