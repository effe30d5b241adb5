"""``fedsa adapt``: an adapter for a client that was not in a run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fedsa
from fedsa.data.rows import deal_client
from fedsa.store import RunFolder, recipe_of
from support.run_folders import resealed, rewrite_recipe
from support.tiny_rows import write_rows

CLIENTS = "data.partition={kind='iid', clients=5}"
RATE = 0.05


@pytest.fixture(scope="module")
def run(tiny_run: Callable[..., Any]) -> Path:
    """A finished run whose clients let their personal tensors be put together."""
    path: Path = tiny_run(CLIENTS, f"training.learning_rate={RATE}", "adaptation.share_personal=true").folder.path
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    write_rows(tmp_path / "new.csv", 40, seed=5)
    return tmp_path / "new.csv"


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_peft_alone_gives_the_accuracy_that_was_told(run: Path, rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    before = contents(run)
    result = fedsa.adapt(run, rows, to=tmp_path / "to", steps=6)
    assert contents(run) == before
    assert result.path == tmp_path / "to"
    assert (result.client, result.metric, result.length) == ("new", "accuracy", {"steps": 6})
    assert sum(result.examples.values()) == 40
    assert result.chosen.before["test"] != result.chosen.after["test"]
    model = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2), str(tmp_path / "to")
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "to")
    shared, _ = deal_client("new", str(rows), recipe_of(RunFolder.open(run)), ["bad", "good"], newcomer=True)
    test = shared.partition.clients["new"].test
    with torch.inference_mode():
        logits = model(**tokenizer(shared.table[test]["text"], return_tensors="pt", padding=True)).logits
    labels = torch.from_numpy(shared.labels[test])
    told = result.chosen.after["test"]
    assert told["accuracy"] == (logits.argmax(1) == labels).double().mean().item()
    assert told["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
    card = (tmp_path / "to" / "README.md").read_text(encoding="utf-8")
    assert "was not in the federation of 5 clients" in card
    assert f"{told['accuracy']:.4f} after" in card


def test_the_same_again_gives_the_same(run: Path, rows: Path) -> None:
    assert fedsa.adapt(run, rows, steps=3) == fedsa.adapt(run, rows, steps=3)


def test_a_rate_of_its_own(run: Path, rows: Path, tiny_run: Callable[..., Any]) -> None:
    """As the run's it changes nothing; a tiny one hardly trains; a recipe may have one, an option goes before."""
    again, tiny = (fedsa.adapt(run, rows, steps=3, learning_rate=rate) for rate in (RATE, 1e-12))
    assert again == fedsa.adapt(run, rows, steps=3)
    loss = {name: tiny.chosen.after["test"][name] - value for name, value in tiny.chosen.before["test"].items()}
    assert loss == pytest.approx(dict.fromkeys(loss, 0), abs=1e-6)
    head = "training.head_learning_rate=0.1"  # of a run: the client's rate is that of its head too
    path = tiny_run(CLIENTS, "rounds=1", head, "adaptation={learning_rate=1e-12, steps=3}").folder.path
    own, given = (fedsa.adapt(path, rows, **rate).chosen for rate in ({}, {"learning_rate": RATE}))
    assert own.after["test"] == pytest.approx(own.before["test"], abs=1e-6)
    assert given.after["validation"] != own.after["validation"]


def test_a_held_out_client_and_a_newcomer_of_the_same_rows_begin_alike(
    tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    """Before training, on all of its rows, both have the server's tensors over the initial ones."""
    held = tiny_run(CLIENTS, "holdout_clients=0.2", "training.learning_rate=0.05", "training.trainer=sequential")
    (client,) = held.federation.held_out
    federation = held.federation
    parts = federation.rows.partition.clients[client]
    table = federation.rows.table
    (tmp_path / "data").mkdir()
    for split, numbers in zip(("train", "validation", "test"), parts, strict=True):
        own = datasets.Dataset.from_dict(
            {"text": table[numbers]["text"], "label": [["bad", "good"][n] for n in federation.rows.labels[numbers]]}
        )
        own.to_csv(tmp_path / "data" / f"{split}.csv")
    run = Path(shutil.copytree(held.folder.path, tmp_path / "run"))
    splits = 'split = "train"\nvalidation_split = "validation"\ntest_split = "test"'
    rewrite_recipe(run, 'split = "train"', splits)
    result = fedsa.adapt(run, tmp_path / "data")
    unseen = held.summary["unseen"]["per_client"][client]
    assert result.examples == {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)}
    assert result.chosen.before["test"]["loss"] == pytest.approx(unseen["before"]["loss"], abs=1e-5)


def test_compare_takes_the_best_on_validation(
    fedsa_command: Callable[..., Any], run: Path, rows: Path, tmp_path: Path
) -> None:
    outcome = fedsa_command("adapt", run, "--data", rows, "--compare", "--epochs", 2, "--json", "--to", tmp_path / "to")
    assert outcome.code == 0, outcome
    told = json.loads(outcome.out)
    assert told["length"] == {"epochs": 2}
    assert {(each["start"], each["freeze_shared"]) for each in told["tried"]} == {
        (start, freeze) for start in ("initial", "mean", "nearest") for freeze in (False, True)
    }

    def rank(each: dict[str, Any]) -> tuple[float, float]:
        return each["after"]["validation"]["accuracy"], -each["after"]["validation"]["loss"]

    assert told["chosen"] == max(told["tried"], key=rank)
    card = (tmp_path / "to" / "README.md").read_text(encoding="utf-8")
    assert f"{told['chosen']['after']['test']['accuracy']:.4f} after" in card
    assert f"start: {told['chosen']['start']}" in card


def test_the_command_prints_a_table(fedsa_command: Callable[..., Any], run: Path, rows: Path, tmp_path: Path) -> None:
    outcome = fedsa_command("adapt", run, "--data", rows, "--steps", 1, "--freeze-shared", "--start", "mean")
    assert outcome.code == 0, outcome
    assert "client new: " in outcome.out
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("mean ")]
    assert "frozen" in line
    assert not (tmp_path / "to").exists()


def test_frozen_or_not_is_as_the_recipe_says_unless_told(
    fedsa_command: Callable[..., Any], tiny_run: Any, rows: Path
) -> None:
    path = tiny_run(CLIENTS, "rounds=1", "adaptation={freeze_shared=true, steps=2}").folder.path
    assert fedsa.adapt(path, rows).chosen.freeze_shared
    assert fedsa.adapt(path, rows).length == {"steps": 2}
    assert not fedsa.adapt(path, rows, freeze_shared=False).chosen.freeze_shared
    outcome = fedsa_command("adapt", path, "--data", rows, "--compare")
    assert "mean and nearest need adaptation.share_personal" in outcome.out


def test_rows_are_cut_without_a_group_that_they_do_not_have(
    fedsa_command: Callable[..., Any], tiny_run: Callable[..., Any], rows: Path
) -> None:
    path = tiny_run("rounds=1", "data.partition.group='text'").folder.path
    assert fedsa.adapt(path, rows, steps=1).notes == ()
    grouped = tiny_run("rounds=1").folder.path
    run = Path(shutil.copytree(grouped, rows.parent / "grouped"))
    rewrite_recipe(run, 'column = "site"', 'column = "site"\ngroup = "paragraph"')
    outcome = fedsa_command("adapt", run, "--data", rows, "--steps", 1)
    assert outcome.code == 0, outcome
    assert "rows with one 'paragraph' in one split" in outcome.out


def test_rows_of_one_class_will_do(run: Path, tmp_path: Path) -> None:
    lines = ["text,label", *(f"the film was {word},good" for word in ("fine", "great", "happy", "lovely") * 3)]
    (tmp_path / "one.csv").write_text("\n".join(lines), encoding="utf-8")
    assert fedsa.adapt(run, tmp_path / "one.csv", steps=1).examples["train"] > 0


@pytest.mark.parametrize("settings", [["algorithm=local"], ["personal_state=reconstruct"], ["algorithm=ffa"]])
def test_other_methods_have_newcomers_too(tiny_run: Callable[..., Any], rows: Path, settings: list[str]) -> None:
    path = tiny_run(CLIENTS, "rounds=1", "adaptation.share_personal=true", *settings).folder.path
    assert fedsa.adapt(path, rows, steps=1, compare=True).tried


@pytest.mark.run
def test_a_run_of_objects_needs_them_again(tiny_model: Path, tiny_rows: Path, rows: Path, tmp_path: Path) -> None:
    def base() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    table = datasets.Dataset.from_csv(str(tiny_rows))
    federation = fedsa.Federation.from_objects(
        base(),
        LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"),
        [table.select(range(90)), table.select(range(90, 180))],
        rounds=1,
        tokenizer=tokenizer,
        task={"text_columns": ["text"]},
        training={"local_steps": 1, "batch_size": 4},
        compute={"device": "cpu", "precision": "fp32", "threads": 1},
    )
    fedsa.run(federation, tmp_path / "run")
    with pytest.raises(fedsa.errors.UserError, match="loaded in Python"):
        fedsa.adapt(tmp_path / "run", rows)
    given = base()
    names = [name for name, _ in given.named_parameters()]
    result = fedsa.adapt(tmp_path / "run", rows, steps=1, base=given, tokenizer=tokenizer)
    assert [name for name, _ in given.named_parameters()] == names  # it was copied
    assert result == fedsa.adapt(tmp_path / "run", rows, steps=1, base=base, tokenizer=tokenizer)


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def refuses(fedsa_command: Callable[..., Any]) -> Callable[..., str]:
    def call(*arguments: object) -> str:
        outcome = fedsa_command("adapt", *arguments)
        assert outcome.code == 2, outcome
        assert "Traceback" not in outcome.err
        assert outcome.error.startswith("error: ")
        return str(outcome.error)

    return call


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param(
            "words,label\na,good\nb,bad\n",
            ["1 column is missing", "'text'", "the columns are: label, words"],
            id="column",
        ),
        pytest.param("text,label\n", ["new.csv", "no rows"], id="header only"),
        pytest.param("", ["new.csv is empty"], id="empty"),
        pytest.param("text,label\na,good\nb,bad\n", ["client 'new'", "fewer than min_examples = 3"], id="few rows"),
        pytest.param("text,label\n" + "a,good\nb,ugly\n" * 9, ["label outside task.labels", "ugly"], id="label"),
    ],
)
def test_rows_that_do_not_fit(
    refuses: Callable[..., str], run: Path, tmp_path: Path, text: str, parts: list[str]
) -> None:
    (tmp_path / "new.csv").write_text(text, encoding="utf-8")
    message = refuses(run, "--data", tmp_path / "new.csv", "--to", tmp_path / "to")
    assert all(part in message for part in parts), message
    assert not (tmp_path / "to").exists()


def test_what_is_not_there(refuses: Callable[..., str], run: Path, rows: Path, tmp_path: Path) -> None:
    assert f"no file or folder {tmp_path / 'none.csv'}" in refuses(run, "--data", tmp_path / "none.csv")
    assert "no file or folder rotten_tomatoes" in refuses(run, "--data", "rotten_tomatoes")
    assert "does not exist" in refuses(tmp_path / "norun", "--data", rows)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "not an empty folder" in refuses(run, "--data", rows, "--to", tmp_path / "full")


def test_a_run_that_is_not_finished(refuses: Callable[..., str], run: Path, rows: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    (copied / "summary.json").unlink()
    assert f"summary.json is missing: `fedsa resume {copied}` measures" in refuses(copied, "--data", rows)
    resealed(copied, lambda folder, progress: folder._files.pop("summary.json"))
    assert f"is not finished: `fedsa resume {copied}`" in refuses(copied, "--data", rows)


@pytest.mark.parametrize("start", ["mean", "nearest"])
def test_clients_that_do_not_share(refuses: Callable[..., str], finished_run: Path, rows: Path, start: str) -> None:
    message = refuses(finished_run, "--data", rows, "--start", start)
    assert "adaptation.share_personal = true" in message
    assert "leave the clients" in message


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--start", "middle"], "--start middle: must be initial, mean or nearest"),
        (["--steps", 1, "--epochs", 1], "--steps or --epochs, not both"),
        (["--steps", 0], "--steps 0: must be at least 1"),
        (["--learning-rate", 0], "--learning-rate 0: must be a number greater than 0"),
        (["--learning-rate", "nan"], "--learning-rate nan: must be a number greater than 0"),
        (["--compare", "--start", "mean"], "leave --start and --freeze-shared out"),
        (["--compare", "--freeze-shared"], "leave --start and --freeze-shared out"),
    ],
)
def test_options_that_do_not_go_together(
    refuses: Callable[..., str], run: Path, rows: Path, options: list[object], part: str
) -> None:
    assert part in refuses(run, "--data", rows, *options)


def test_nothing_left_to_train(refuses: Callable[..., str], tiny_run: Callable[..., Any], rows: Path) -> None:
    path = tiny_run(CLIENTS, "rounds=1", "algorithm=fedit", "share_head=true").folder.path
    assert "fedit keeps nothing at the client" in refuses(path, "--data", rows, "--freeze-shared")
