"""Short texts that are good or bad, by the words in them, and files of them."""

from __future__ import annotations

import csv
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
