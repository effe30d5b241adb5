"""Short texts that are good or bad, by the words in them, and files of them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

WORDS = {"bad": ["awful", "dull", "poor", "sad"], "good": ["great", "lovely", "fine", "happy"]}
FILLER = ["the", "film", "was", "a", "product", "we", "saw", "it", "today", "very"]


def write_rows(path: Path, count: int, seed: int, *, clients: int = 3) -> None:
    """Write a CSV of ``count`` rows: text, label (bad or good) and site, each site with a label mix of its own."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "site"])
        for number in range(count):
            site = number % clients
            label = "good" if rng.random() < (site + 1) / (clients + 1) else "bad"
            before, after = rng.integers(0, 5), rng.integers(0, 9)
            words = [*rng.choice(FILLER, before), rng.choice(WORDS[label]), *rng.choice(FILLER, after)]
            writer.writerow([" ".join(words), label, f"site {site}"])


def write_clients(rows: Path, folders_of: Callable[[str], Iterable[Path]]) -> None:
    """Write the rows of each site, without the column ``site``, to a file of its name.

    Args:
        rows: a file that `write_rows` has written.
        folders_of: site to the folders that get its file; those that are missing are made.
    """
    with rows.open(newline="", encoding="utf-8") as file:
        (*names, _), *lines = csv.reader(file)
    for site in sorted({line[-1] for line in lines}):
        for folder in folders_of(site):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{site}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([names, *(line[:-1] for line in lines if line[-1] == site)])
