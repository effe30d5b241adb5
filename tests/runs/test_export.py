"""Exports: what plain PEFT and plain transformers load gives the logits that the client has inside fedsa."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import fedsa
from fedsa.algorithms import make_algorithm
from fedsa.errors import UserError
from fedsa.federation import Federation
from fedsa.runs.export import export, personal_state
from fedsa.store import FinishedRun, RunFolder
from fedsa.system.sums import file_hash
from support.exports import CLIENTS, inside, outside, plain_base
from support.run_folders import resealed
from support.tiers import one_of_each

pytestmark = pytest.mark.run

ADAPTERS = {
    "lora": "adapter={r=2, lora_alpha=4, target_modules=['query', 'value']}",
    "rslora": "adapter={variant='rslora', r=4, lora_alpha=4, target_modules=['query', 'value']}",
    "vera": "adapter={variant='vera', r=8, target_modules=['query', 'value']}",
    "dora": "adapter={variant='dora', r=2, lora_alpha=4, target_modules=['query', 'value']}",
    "pissa": "adapter={variant='pissa', r=3, lora_alpha=4, target_modules=['query', 'output.dense']}",
    "olora": "adapter={variant='olora', r=2, lora_alpha=4, target_modules=['query', 'value']}",
    "loha": "adapter={variant='loha', r=2, lora_alpha=4, target_modules=['query', 'value']}",
    "ia3": "adapter={variant='ia3', target_modules=['key', 'output.dense'], feedforward_modules=['output.dense']}",
    "lora_xs": "adapter={variant='lora_xs', r=5, lora_alpha=4, target_modules=['query', 'output.dense']}",
}

MERGED = [["algorithm=ravan", ADAPTERS["lora_xs"].replace("r=5", "r=3")], ["algorithm=fedtreelora", ADAPTERS["lora"]]]
"""Methods whose layers weigh their adapters, the same for all tokens."""


@pytest.fixture(
    scope="module",
    params=one_of_each(
        [
            ((variant, algorithm),)
            for variant, algorithm in itertools.product(ADAPTERS, ["fedsa", "fedit", "ffa", "local", "fed_sb"])
            if make_algorithm(algorithm, {}).refusal(variant) is None
        ],
        lambda pair: pair[0] if pair[1] == "fedsa" or pair[0] == "ia3" else pair[1],
    ),
    ids=lambda pair: "-".join(pair),
)
def trained(
    request: pytest.FixtureRequest, tiny_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Federation, Path]:
    variant, algorithm = request.param
    # four rounds of which the best on validation need not be the last; half of the clients train in each
    recipe = tiny_recipe(
        f"algorithm={algorithm}", ADAPTERS[variant], "rounds=4", "fraction_train=0.6", "training.learning_rate=0.05"
    )
    federation = Federation.from_recipe(recipe)
    path = tmp_path_factory.mktemp("trained") / "run"
    fedsa.run(federation, path)
    return federation, path


def assert_equal_folders(one: Path, other: Path) -> None:
    """Assert that two exports hold the same files, but for where each says that its copy of the base is."""
    assert sorted(path.relative_to(one) for path in one.rglob("*")) == sorted(
        path.relative_to(other) for path in other.rglob("*")
    )
    for path in one.rglob("*"):
        if path.is_file():
            told = [path.read_bytes(), (other / path.relative_to(one)).read_bytes()]
            if path.name == "adapter_config.json":
                told = [re.sub(rb'"base_model_name_or_path": "[^"]*/base"', b"", text) for text in told]
            assert told[0] == told[1], path


@pytest.mark.parametrize("round", ["chosen", "final"])
def test_peft_alone_gives_the_same_logits(
    trained: tuple[Federation, Path], tiny_model: Path, tmp_path: Path, round: str
) -> None:
    federation, run = trained
    folders = export(run, tmp_path / "all", round=round)
    assert [folder.name[6:] for folder in folders] == CLIENTS
    logits = []
    for client, folder in zip(CLIENTS, folders, strict=True):
        torch.manual_seed(12345)  # nothing may hang on what is drawn while loading
        model = PeftModel.from_pretrained(plain_base(tiny_model), str(folder))
        logits.append(outside(model, folder))
        torch.testing.assert_close(logits[-1], inside(federation, run, client, round), atol=1e-5, rtol=0)
    if not (federation.recipe.algorithm in ("fedit", "ffa", "fed_sb") and federation.recipe.share_head):
        assert not all(torch.equal(logits[0], other) for other in logits[1:])  # personal


@pytest.mark.parametrize("round", ["chosen", "final"])
def test_transformers_alone_gives_the_same_logits_from_a_merged_model(
    trained: tuple[Federation, Path], tmp_path: Path, round: str
) -> None:
    federation, run = trained
    (folder,) = export(run, tmp_path / "one", clients=["site 2"], round=round, merge=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "bad", 1: "good"}
    torch.testing.assert_close(outside(model, folder), inside(federation, run, "site 2", round), atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", MERGED, ids=lambda settings: settings[0])
def test_a_merged_model_has_all_of_a_clients_weighed_adapters(
    tiny_run: Callable[..., Any], tmp_path: Path, settings: list[str]
) -> None:
    run = tiny_run(*settings, "rounds=3", "training.learning_rate=0.05")
    (folder,) = export(run.folder.path, tmp_path / "one", clients=["site 2"], merge=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    expected = inside(run.federation, run.folder.path, "site 2", "chosen")
    torch.testing.assert_close(outside(model, folder), expected, atol=1e-5, rtol=0)


def test_every_folder_has_a_card_and_nothing_is_a_pickle(trained: tuple[Federation, Path], tmp_path: Path) -> None:
    federation, run = trained
    summary = json.loads((run / "summary.json").read_text())
    folders = export(run, tmp_path / "adapters") + export(run, tmp_path / "models", merge=True)
    for client, folder in zip(CLIENTS * 2, folders, strict=True):
        merged = folder.parent.name == "models"
        card = ModelCard.load(folder / "README.md")
        assert card.data.library_name == ("transformers" if merged else "peft")
        assert card.data.pipeline_tag == "text-classification"
        assert {"federated-learning", federation.recipe.algorithm, summary["variant"]} <= set(card.data.tags)
        assert repr(client) in card.text
        assert f"this is round {summary['chosen_round']} of 4" in card.text
        names = {path.name for path in folder.iterdir()}
        if not merged:  # in an order that does not hang on the process
            config = json.loads((folder / "adapter_config.json").read_text())
            assert config["target_modules"] == sorted(federation.recipe.adapter.target_modules)
        assert names >= {"README.md", "tokenizer.json"}
        weights = {"model.safetensors", "config.json"} if merged else {"adapter_model.safetensors"}
        assert names >= weights
    for place in (run, tmp_path):
        assert not [path for path in place.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl", ".pickle"}]


def test_the_command_writes_what_python_writes(
    fedsa_command: Callable[..., Any], finished_run: Path, tmp_path: Path
) -> None:
    outcome = fedsa_command("export", finished_run, "--all", "--to", tmp_path / "all")
    assert outcome.code == 0
    assert outcome.out.split("\n")[:-1] == [str(tmp_path / "all" / f"{n:05d}-site {n}") for n in range(3)]
    one = fedsa_command("export", finished_run, "--client", "site 1", "--round", "final", "--to", tmp_path / "one")
    assert one.out == f"{tmp_path / 'one'}\n"
    python = export(finished_run, tmp_path / "python", clients=["site 1"], round="final")
    assert_equal_folders(tmp_path / "one", python[0])
    several = export(finished_run, tmp_path / "several", clients=["site 2", "site 0"])
    assert [folder.name for folder in several] == ["00002-site 2", "00000-site 0"]


def test_a_flipped_bit_in_any_file_of_an_export_is_told(finished_run: Path, tmp_path: Path) -> None:
    (folder,) = export(finished_run, tmp_path / "to", clients=["site 1"], with_base=False)
    names = sorted(path.name for path in folder.iterdir())
    assert {"SHA256SUMS", "adapter_config.json", "adapter_model.safetensors", "fedsa.json", "tokenizer.json"} <= {
        *names
    }
    for name in names:
        whole = (folder / name).read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            changed = bytearray(whole)
            changed[place] ^= 1 << place % 8
            (folder / name).write_bytes(changed)
            with pytest.raises(UserError, match=rf"{folder}/.* (is not as it was when|is missing, and) .*SHA256SUMS"):
                fedsa.Predictor.open(folder)
        (folder / name).write_bytes(whole)
    assert fedsa.Predictor.open(folder).clients == ("site 1",)
    (folder / "SHA256SUMS").unlink()  # of a version that wrote none
    assert fedsa.Predictor.open(folder).clients == ("site 1",)


def test_what_a_killed_export_left_is_no_obstacle(finished_run: Path, tmp_path: Path) -> None:
    staging = tmp_path / "to" / ".fedsa-export.partial"
    staging.mkdir(parents=True)
    (staging / "adapter_model.safetensors").write_bytes(b"half")
    (folder,) = export(finished_run, tmp_path / "to", clients=["site 1"])
    assert not staging.exists()
    assert (folder / "adapter_config.json").exists()


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def whole_folder(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("everyone", [True, False])
def test_an_export_that_was_killed_can_be_repeated(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, everyone: bool
) -> None:
    """Killed before or after each file comes to its place; then it ends as if it had not been."""
    clients = None if everyone else ["site 1"]
    export(finished_run, tmp_path / "whole", clients=clients, with_base=False)
    expected = whole_folder(tmp_path / "whole")
    assert not any(name.startswith(".fedsa") for name in expected)
    replace, moved = Path.replace, 0

    def counted(path: Path, to: Path) -> Path:
        nonlocal moved
        if moved == limit:
            raise Killed
        moved += 1
        return replace(path, to)

    for limit in range(0, len(expected), 2):
        moved, to = 0, tmp_path / f"killed-{limit}"
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", counted)
            with pytest.raises(Killed):
                export(finished_run, to, clients=clients, with_base=False)
        with pytest.raises(UserError, match="a part of another export"):
            export(finished_run, to, clients=clients, merge=True)
        times = {path: path.stat().st_mtime_ns for path in to.glob("00000*/*")}
        export(finished_run, to, clients=clients, with_base=False)
        assert whole_folder(to) == expected
        if limit > len(expected) // 3:
            assert times == {path: path.stat().st_mtime_ns for path in to.glob("00000*/*")}, "written twice"
        with pytest.raises(UserError, match="is not an empty folder"):
            export(finished_run, to, clients=clients, with_base=False)


def test_what_others_put_beside_an_interrupted_export_is_theirs(finished_run: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    export(finished_run, to, clients=["site 0", "site 1"], with_base=False)
    first = to / "00000-site 0"
    journal = {"run": FinishedRun.open(finished_run).folder.run, "round": 1, "merge": False, "fedsa": version("fedsa")}
    files = {name: file_hash(first / name) for name in whole_folder(first)}
    lines = [journal, {"folder": "00000-site 0", "files": files}]
    (to / ".fedsa-export.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(to / "00001-site 1")
    for name, content in (("thesis.tex", b"mine"), ("README.md", b"mine")):
        kept = (first / name).read_bytes() if (first / name).exists() else None
        (first / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} is not as the interrupted export wrote it"):
            export(finished_run, to, clients=["site 0", "site 1"], with_base=False)
        assert (first / name).read_bytes() == content
        (first / name).unlink()
        if kept is not None:
            (first / name).write_bytes(kept)
    export(finished_run, to, clients=["site 0", "site 1"], with_base=False)
    assert sorted(path.name for path in to.iterdir()) == ["00000-site 0", "00001-site 1"]


def test_an_export_writes_nothing_through_links(finished_run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("00001-site 1", ".fedsa-export.jsonl", "00000-site 0/.fedsa-export.partial"):
        to = tmp_path / f"to-{len(name)}"
        (to / name).parent.mkdir(parents=True)
        (to / name).symlink_to(elsewhere)
        with pytest.raises(UserError, match="is a link, and an export writes nothing through links"):
            export(finished_run, to)
        assert not list(elsewhere.iterdir())
    (tmp_path / "mine").symlink_to(elsewhere)  # the folder that the user names may be one
    export(finished_run, tmp_path / "mine", clients=["site 1"])
    assert (elsewhere / "adapter_config.json").exists()


@pytest.mark.parametrize("place", [0, 3, "rows"])
@pytest.mark.parametrize("verb", ["export", "merge", "adapt"])
def test_a_base_whose_weights_changed_is_refused(
    tiny_recipe: Callable[..., Any],
    tiny_model: Path,
    tiny_rows: Path,
    tmp_path: Path,
    place: int | str,
    verb: str,
) -> None:
    """One value by one bit, or two rows that changed their places."""
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    fedsa.run(Federation.from_recipe(tiny_recipe(f"model.path={base}", "rounds=1")), tmp_path / "run")
    kept = (base / "model.safetensors").read_bytes()
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if "word_embeddings" in name)
    if isinstance(place, int):
        weights[name].view(torch.int32).flatten()[place] ^= 1
    else:
        weights[name][[1, 2]] = weights[name][[2, 1]]
    save_file(weights, base / "model.safetensors", {"format": "pt"})

    def call(to: str) -> None:
        if verb == "adapt":
            fedsa.adapt(tmp_path / "run", tiny_rows, steps=1)
        else:
            export(tmp_path / "run", tmp_path / to, merge=verb == "merge")

    with pytest.raises(UserError, match=rf"base model's weights \({base}\) are not those .* put the model back"):
        call("to")
    (base / "model.safetensors").write_bytes(kept)
    call("again")


def test_a_base_whose_checkpoint_lacks_more_than_the_head(
    tiny_recipe: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    """A frozen layer that is drawn at random when the model is loaded must come with the export."""
    from safetensors.torch import load_file, save_file

    half = Path(shutil.copytree(tiny_model, tmp_path / "half"))
    weights = {name: value for name, value in load_file(half / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, half / "model.safetensors", {"format": "pt"})
    federation = Federation.from_recipe(tiny_recipe(f"model.path={half}"))
    fedsa.run(federation, tmp_path / "run")
    (folder,) = export(tmp_path / "run", tmp_path / "to", clients=["site 0"])
    torch.manual_seed(12345)
    model = PeftModel.from_pretrained(plain_base(half), str(folder))
    torch.testing.assert_close(
        outside(model, folder), inside(federation, tmp_path / "run", "site 0", "chosen"), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("after", ["aggregate", "training", "both"])
@pytest.mark.parametrize("round", ["chosen", "final"])
def test_the_card_states_the_score_of_the_tensors_beside_it(
    tiny_recipe: Callable[..., Any], tmp_path: Path, after: str, round: str
) -> None:
    """Exported is what a client would use next, whatever the rounds were chosen by."""
    federation = Federation.from_recipe(
        tiny_recipe("algorithm=fedit", f"evaluation.evaluate_after={after}", "training.learning_rate=0.05")
    )
    result = fedsa.run(federation, tmp_path / "run")
    for client, folder in zip(federation.clients, result.export(tmp_path / "all", round=round), strict=True):
        from fedsa.client.evaluation import evaluate

        number = result.summary["chosen_round" if round == "chosen" else "rounds"]
        tensors = personal_state(RunFolder.open(result.path), federation.algorithm, client, number)
        rows = federation.rows.partition.clients[client].test
        model, task, encoded = federation.model, federation.task, federation.encoded
        ((_, metrics),) = evaluate(model, task, encoded, [(client, tensors, rows)], batch_size=64)
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert f"own rows, after receiving the aggregate: {metrics['accuracy']:.4f} ({len(rows)} rows)" in card


def test_the_card_of_an_older_run_states_no_other_score(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    summary = json.loads((run / "summary.json").read_text())
    resealed(run, lambda folder, _: folder.write_json("summary.json", {**summary, "evaluated_after": "training"}))
    (folder,) = export(run, tmp_path / "to", clients=["site 1"])
    assert "after receiving the aggregate: not measured" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["compute.precision=bf16"],
        ["compute.precision=bf16", "adapter.variant=vera"],
        ["adapter.variant=pissa"],
        ["compute.precision=bf16", "adapter.variant=dora"],
        ["compute.precision=bf16", "adapter.variant=olora"],
        ["compute.precision=bf16", "adapter.variant=lora_xs", "algorithm=fedit"],
    ],
    ids=str,
)
def test_what_the_result_exports_is_what_the_folder_exports(
    tiny_recipe: Callable[..., Any], tmp_path: Path, settings: list[str]
) -> None:
    result = fedsa.run(Federation.from_recipe(tiny_recipe(*settings)), tmp_path / "run")
    for merge in (True, False):
        pairs = zip(
            result.export(tmp_path / f"live-{merge}", merge=merge),
            export(result.path, tmp_path / f"disk-{merge}", merge=merge),
            strict=True,
        )
        for live, disk in pairs:
            assert_equal_folders(live, disk)
