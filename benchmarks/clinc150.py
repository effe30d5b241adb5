"""CLINC150 by domain, ten clients with fifteen intents each: the rows of the recipe clinc150-small, and one of them.

    python benchmarks/clinc150.py --out runs/clinc150
    FEDSA_DATA=runs/clinc150 fedsa run clinc150-small
    fedsa sweep quickstart --recipe runs/clinc150/clinc150.toml --out runs/clinc150-compare

Reads ``clinc150/data_full.json`` and ``clinc150/domains.json`` (github.com/clinc/oos-eval, CC BY 3.0) in
``$FEDSA_DATA``. Each domain is a client; intents are numbered over all domains, so the clients' label sets do not
overlap: pure label skew, with a head of 150 classes. Out-of-scope rows are left out.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import tomli_w

from fedsa.recipe import read_recipe

SPLITS = {"train": "train", "validation": "val", "test": "test"}


def main() -> None:
    """Write the rows and the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--max-examples", type=int, default=900, help="of a client's 2,250 rows, all splits together")
    options = parser.parse_args()
    if "FEDSA_DATA" not in os.environ:
        raise SystemExit("set FEDSA_DATA to a folder that has clinc150/data_full.json and clinc150/domains.json")
    source = Path(os.environ["FEDSA_DATA"]) / "clinc150"
    rows = json.loads((source / "data_full.json").read_text(encoding="utf-8"))
    domains = json.loads((source / "domains.json").read_text(encoding="utf-8"))
    domain_of = {intent: domain for domain, intents in domains.items() for intent in intents}
    recipe, _ = read_recipe("clinc150-small")
    data = options.out / recipe["data"]["path"]
    data.mkdir(parents=True, exist_ok=True)
    for split, name in SPLITS.items():
        lines = [{"text": text, "intent": intent, "domain": domain_of[intent]} for text, intent in rows[name]]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    recipe["rounds"] = options.rounds
    recipe["model"]["attn_implementation"] = "eager"
    recipe["data"]["path"] = str(data.absolute())
    recipe["data"]["partition"]["max_examples"] = options.max_examples
    path = options.out / "clinc150.toml"
    path.write_text(tomli_w.dumps(recipe), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
