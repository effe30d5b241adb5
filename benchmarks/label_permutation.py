"""Clients that disagree on what labels mean: write the rows and a recipe for them.

    python benchmarks/label_permutation.py --out runs/permuted
    fedsa sweep quickstart --recipe runs/permuted/permuted.toml --out runs/permuted/sweep

The rows of ``part:sentiment``, two clients in each of its four domains (documents are shared out by a hash of their
name). The second client of each domain has its labels exchanged: what it calls positive, all others call negative.
``--agree`` leaves them as they are, for comparison: the rows, their clients and splits are the same.
"""

from __future__ import annotations

import argparse
from hashlib import sha256
from pathlib import Path

import tomli_w

from fedsa.data.sources import load_rows
from fedsa.recipe import parse_recipe, read_recipe

OTHER = {"positive": "negative", "negative": "positive"}


def main() -> None:
    """Write the rows and the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--agree", action="store_true", help="do not exchange any labels")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    recipe, _ = read_recipe("quickstart")
    table = load_rows(parse_recipe(recipe).data).table

    def shared_out(row: dict[str, str]) -> dict[str, str]:
        second = sha256(row["document"].encode()).digest()[0] % 2 == 1
        exchanged = second and not options.agree
        return {
            "client": f"{row['domain']}-{'b' if second else 'a'}",
            "label": OTHER[row["label"]] if exchanged else row["label"],
        }

    name = "agreed" if options.agree else "permuted"
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    table.map(shared_out).to_json(folder / "train.jsonl")
    recipe |= {
        "description": f"sentiment of eight clients: labels {'alike' if options.agree else 'exchanged at half'}",
        "rounds": options.rounds,
        "data": {
            "path": str(folder.absolute()),
            "partition": {"kind": "column", "column": "client", "group": "document", "max_examples": 500},
        },
    }
    path = options.out / f"{name}.toml"
    path.write_text(tomli_w.dumps(recipe), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
