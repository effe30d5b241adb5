"""Do two versions of fedsa train the same tensors, byte for byte? Hashes of runs, written to a file and compared.

    python benchmarks/golden.py write before.json        # with one version
    python benchmarks/golden.py compare before.json      # with another; exits with 1 where a hash differs

The runs: the quickstart with one thread (a real encoder), and for each method × {lora, vera, dora, loha} that goes
together two rounds of three clients on a tiny random encoder, with both trainers. What is hashed of a run: the names,
shapes, dtypes and bytes of all tensors: the clients' states, the server's, the initial ones, and every exported
adapter (not the copy of the base beside it). How files are called and what else stands in them may change between
versions.

``--quick`` leaves the quickstart out. About ten minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import sys
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import tomli_w
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from fedsa.algorithms import algorithm_names
from fedsa.cli import app

VARIANTS = ("lora", "vera", "dora", "loha")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
GOOD, BAD = ("works", "shines", "fits"), ("broke", "leaks", "smells")
SUBJECTS = ("lamp", "printer", "ticket", "coat", "bread")


def write_model(folder: Path) -> None:
    """Write a tiny random BERT with a tokenizer of whole words."""
    words = {word: number for number, word in enumerate((*SPECIAL, "the", "my", *SUBJECTS, *GOOD, *BAD))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, words[name]) for name in ("[CLS]", "[SEP]")]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=32, initializer_range=0.3, **sizes)
    BertModel(config).save_pretrained(folder)


def write_rows(path: Path) -> None:
    """Write 120 rows of three sites whose label mixes differ."""
    random = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "site"])
        for number in range(120):
            site = number % 3
            good = bool(random.random() < (site + 1) / 4)
            text = f"{random.choice(['the', 'my'])} {random.choice(SUBJECTS)} {random.choice(GOOD if good else BAD)}"
            writer.writerow([f"{text} {number % 7} {number}", "good" if good else "bad", f"site {site}"])


def recipe(folder: Path, method: str, variant: str) -> dict[str, object]:
    """Return the recipe of a tiny run."""
    return {
        "algorithm": method,
        "rounds": 2,
        "model": {"path": str(folder / "model"), "attn_implementation": "eager"},
        "adapter": {"variant": variant, "r": 2, "target_modules": ["query", "value"]},
        "data": {"path": str(folder / "rows.csv"), "partition": {"kind": "column", "column": "site"}},
        "training": {"local_steps": 3, "batch_size": 4, "learning_rate": 0.02, "packing": False},
        "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
    }


def digest_of(folder: Path) -> str:
    """Return the hash of all tensors in all safetensors files of a folder, in the order of the files' names."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        if path.parent.name == "base":  # beside adapters: the model that they adapt
            continue
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
                digest.update(
                    tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
                )
    return digest.hexdigest()


def digests(name: str, settings: dict[str, object], folder: Path) -> dict[str, str]:
    """Run a recipe, export every client, and return the hashes, or the refusal."""
    run, adapters, file = folder / "run", folder / "adapters", folder / "recipe.toml"
    folder.mkdir(parents=True)
    file.write_text(tomli_w.dumps(settings), encoding="utf-8")
    outcome = CliRunner().invoke(app, ["run", str(file), "--out", str(run)])
    if not (run / "summary.json").exists():
        return {name: f"refused: {type(outcome.exception).__name__}"}
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    figures = {key: summary[key] for key in ("test", "test_final", "upload_bytes", "per_client")}
    hashes = {
        f"{name} clients": digest_of(run / "clients"),
        f"{name} server": digest_of(run / "server"),
        f"{name} figures": hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest(),
    }
    merge = ["--merge"] if summary["export"] == "merged model" else []
    if summary["export"] != "none":
        CliRunner().invoke(app, ["export", str(run), "--all", "--to", str(adapters), *merge])
        hashes[f"{name} adapters"] = digest_of(adapters)
    return hashes


def measure(*, quick: bool) -> dict[str, str]:
    """Return the hashes of every run."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_model(root / "model")
        write_rows(root / "rows.csv")
        for method in algorithm_names():
            for variant in VARIANTS:
                for trainer, size in (("sequential", 1), ("cohort", 3)):
                    settings = recipe(root, method, variant)
                    settings["training"] |= {"trainer": trainer, **({"cohort_size": size} if size > 1 else {})}  # type: ignore[operator]
                    name = f"{method} {variant} {trainer}"
                    found |= digests(name, settings, root / name.replace(" ", "-"))
                    print(name, next(reversed(found.values()))[:20], flush=True)
        if not quick:
            import fedsa.recipes

            settings = tomllib.loads((Path(fedsa.recipes.__file__).parent / "quickstart.toml").read_text("utf-8"))
            settings["compute"] = {"device": "cpu", "threads": 1, "precision": "fp32"}
            settings["training"] |= {"trainer": "cohort", "cohort_size": 4, "packing": False}
            found |= digests("quickstart", settings, root / "quickstart")
    return found


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--quick", action="store_true", help="leave the quickstart out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    found = measure(quick=arguments.quick)
    if arguments.what == "write":
        arguments.file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{len(found)} hashes in {arguments.file}")
        return
    before = json.loads(arguments.file.read_text(encoding="utf-8"))
    different = [name for name in before if name in found and found[name] != before[name]]
    missing = sorted(set(before) - set(found)) if not arguments.quick else []
    print(
        f"{len(before)} hashes before, {len(different)} differ, {len(missing)} missing",
        *different,
        *missing,
        sep="\n  ",
    )
    sys.exit(bool(different or missing))


if __name__ == "__main__":
    main()
