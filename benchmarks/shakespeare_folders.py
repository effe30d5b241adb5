"""Tiny Shakespeare by role: the rows of the recipe shakespeare-small.

    python benchmarks/shakespeare_folders.py --out runs/stand-in
    FEDSA_DATA=runs/stand-in fedsa run shakespeare-small

Reads ``$FEDSA_DATA/tinyshakespeare/input.txt`` (github.com/karpathy/char-rnn, data/tinyshakespeare; public domain):
turns with an empty line between them, the role's name on the first line of each. Writes a row for each turn, role and
text, of the roles that say the most. Roles of one name in different plays are one.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path

import datasets


def turns(text: str) -> list[dict[str, str]]:
    """Return the turns of a text in order, each with its role."""
    found = [turn.partition(":\n") for turn in text.strip().split("\n\n")]
    return [{"role": role, "text": said} for role, _, said in found if said]


def main() -> None:
    """Write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--roles", type=int, default=8, help="that say the most, in characters")
    options = parser.parse_args()
    if not os.environ.get("FEDSA_DATA"):
        parser.error("set FEDSA_DATA to the folder that has tinyshakespeare/input.txt")
    source = Path(os.environ["FEDSA_DATA"]) / "tinyshakespeare" / "input.txt"
    rows = turns(source.read_text(encoding="utf-8"))
    said: Counter[str] = Counter()
    for row in rows:
        said[row["role"]] += len(row["text"])
    roles = [role for role, _ in said.most_common(options.roles)]
    target = options.out / "tiny_shakespeare_roles" / "data"
    target.mkdir(parents=True, exist_ok=True)
    kept = datasets.Dataset.from_list([row for row in rows if row["role"] in roles])
    kept.to_parquet(target / "train-00000-of-00001.parquet")
    print(f"{options.out}: {len(kept)} turns of {', '.join(roles)}")


if __name__ == "__main__":
    main()
