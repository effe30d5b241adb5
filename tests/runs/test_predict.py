"""Predictions of a run's adapters: they are what the run measured, from every door, and mistakes are told."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from scipy.stats import rankdata
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

import fedsa
from fedsa.errors import DataError, ModelError, RunFolderError, UserError
from fedsa.runs.predict import Predicted, Predictor
from fedsa.tasks.base import Prediction
from fedsa.tasks.classification import Classification
from fedsa.tasks.tagging import entities
from fedsa.tasks.text_metrics import best_of, squad_exact_match, squad_f1
from support.every_task import TASKS, every_federation, own_rows, without_answers

pytestmark = pytest.mark.run


def figures(name: str, table: Dataset, said: list[Predicted], labels: list[str]) -> dict[str, float]:
    """Return metrics as they follow from predictions alone, by other code than the tasks' own where there is some."""
    values = [each.prediction for each in said]
    kind = TASKS[name].get("kind", "classification")
    if kind in ("classification", "image_classification"):
        chances = [float(each.probabilities[label]) for each, label in zip(said, labels, strict=True)]
        hits = [max(each.probabilities, key=each.probabilities.get) == each.prediction for each in said]
        assert all(hits)
        return {
            "accuracy": np.mean([a == b for a, b in zip(values, labels, strict=True)]),
            "loss": -np.mean(np.log(chances)),
        }
    if kind == "regression":
        wanted = np.array(table["number"][:])
        ranks = [rankdata(each) for each in (wanted, values)]
        return {
            "loss": np.mean((wanted - values) ** 2),
            "pearson": np.corrcoef(wanted, values)[0, 1],
            "spearman": np.corrcoef(*ranks)[0, 1],
        }
    if kind == "token_classification":
        pairs = [(entities(right), entities(own)) for right, own in zip(table["tags"][:], values, strict=True)]
        right, given, common = (sum(map(len, part)) for part in zip(*((a, b, a & b) for a, b in pairs), strict=True))
        same = [
            a == b for row, own in zip(table["tags"][:], values, strict=True) for a, b in zip(row, own, strict=True)
        ]
        return {
            "f1": 2 * common / max(1, right + given),
            "precision": common / max(1, given),
            "recall": common / max(1, right),
            "accuracy": np.mean(same),
        }
    if kind == "question_answering":
        right = [each["text"] for each in table["answers"][:]]
        assert [
            context[each.about["start"] : each.about["end"]]
            for context, each in zip(table["context"][:], said, strict=True)
        ] == values
        return {"f1": best_of(squad_f1, values, right), "exact_match": best_of(squad_exact_match, values, right)}
    if name == "generation":
        right = [[text] for text in table["said"][:]]
        return {"f1": best_of(squad_f1, values, right), "exact_match": best_of(squad_exact_match, values, right)}
    if kind == "multiple_choice":
        right = [choices[place] for choices, place in zip(table["choices"][:], table["choice"][:], strict=True)]
        assert [each.about["choice"] for each in said] == [
            row.index(own) for row, own in zip(table["choices"][:], values, strict=True)
        ]
        by_byte = [
            max(zip(row, each.about["log_likelihoods"], strict=True), key=lambda pair: pair[1] / len(pair[0].encode()))
            for row, each in zip(table["choices"][:], said, strict=True)
        ]
        return {
            "accuracy": np.mean([a == b for a, b in zip(values, right, strict=True)]),
            "accuracy_norm": np.mean([a == b for (a, _), b in zip(by_byte, right, strict=True)]),
        }
    if kind == "dpo":
        margins = [each.about["margin"] for each in said]
        assert values == ["chosen" if margin > 0 else "rejected" for margin in margins]
        chances = [each.probabilities["chosen"] for each in said]
        return {
            "margin": np.mean(margins),
            "accuracy": np.mean([value == "chosen" for value in values]),
            "loss": -np.mean(np.log(chances)),
        }
    nats = sum(each.about["log_likelihood"] * each.about["tokens"] for each in said)
    loss = -nats / sum(each.about["tokens"] for each in said)
    return {"log_likelihood": -loss, "loss": loss, "perplexity": np.exp(loss)}


NOT_SAID = {"examples", "loss"}
"""What no prediction tells."""


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("generation_by_likelihood", "chat")])
def test_predictions_give_the_figures_of_the_run(run_of: Callable[[str], fedsa.RunResult], name: str) -> None:
    result = run_of(name)
    predictor, best = Predictor.open(result.path), 0.0
    for client in ("north", "south"):
        table = own_rows(result, client)
        rows = result._federation.rows
        labels = [rows.label_names[number] for number in rows.labels[rows.partition.clients[client].test]]
        said = list(predictor.predict(without_answers(table), client=client))
        assert [(each.client, each.row) for each in said] == [(client, row) for row in range(len(table))]
        measured = result.summary["per_client"][client]["test"]
        got = figures(name, table, said, labels)
        assert got == pytest.approx({key: measured[key] for key in got}, rel=1e-5, abs=1e-5)
        missing = {*measured} - {*got} - NOT_SAID
        assert not missing or (name == "generation" and missing == {"log_likelihood", "perplexity"})
        best = max(best, abs(next(iter(got.values()))))
        for each in said:
            json.dumps(each.as_dict())
    assert best > 0  # else zeros were compared with zeros


@pytest.mark.parametrize("name", ["generation_by_likelihood", "chat"])
def test_what_is_written_is_what_the_run_kept(run_of: Callable[[str], fedsa.RunResult], name: str) -> None:
    """Of a decoder that is measured by likelihood the run kept some texts."""
    result = run_of(name)
    samples = json.loads((result.path / "samples.json").read_text())
    assert samples
    predictor = Predictor.open(result.path)
    for client in ("north", "south"):
        kept = [each["written"] for each in samples if each["client"] == client]
        said = predictor.predict(without_answers(own_rows(result, client)), client=client)
        assert [each.prediction for each in said][: len(kept)] == kept


@pytest.mark.parametrize("name", TASKS)
def test_an_export_says_the_same_and_all_clients_at_once_too(
    run_of: Callable[[str], fedsa.RunResult], tmp_path: Path, name: str
) -> None:
    result = run_of(name)
    table = without_answers(own_rows(result, "north"))
    together = list(result.predictor(round="final").predict(table, client="all"))
    assert [(each.row, each.client) for each in together[:3]] == [(0, "north"), (0, "south"), (1, "north")]
    folders = dict(zip(("north", "south"), result.export(tmp_path / "all", round="final"), strict=True))
    differ = 0
    for client, folder in folders.items():
        alone = fedsa.predict(folder, table)
        mine = [each for each in together if each.client == client]
        for one, other in zip(mine, alone, strict=True):
            assert one.prediction == (
                pytest.approx(other.prediction, abs=1e-5) if name == "regression" else other.prediction
            )
            if one.probabilities:
                assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        differ += sum(
            one.as_dict() != {**two.as_dict(), "client": client} for one, two in zip(alone, together[::2], strict=True)
        )
    assert differ or name in (
        "generation",
        "generation_by_likelihood",
        "chat",
    )  # adapters are personal: they are not one model


def test_clients_in_one_pass_say_what_each_says_alone(models: dict[str, Path], tmp_path: Path) -> None:
    training = {"learning_rate": 0.05, "local_steps": 8, "batch_size": 8, "trainer": "cohort", "cohort_size": 2}
    result = fedsa.run(every_federation("classification", models["encoder"], training=training), tmp_path / "run")
    predictor = Predictor.open(result.path)
    assert predictor._source.together == 2
    texts = ["the film was great today", "a dull product"]
    together = list(predictor.predict(texts, client="all"))
    alone = [each for client in ("north", "south") for each in predictor.predict(texts, client=client)]
    for each in together:
        (other,) = [own for own in alone if (own.client, own.row) == (each.client, each.row)]
        assert each.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_a_plain_pipeline_shows_the_classes_that_predict_shows(
    run_of: Callable[[str], fedsa.RunResult], models: dict[str, Path], tmp_path: Path
) -> None:
    result = run_of("classification")
    (folder,) = result.export(tmp_path / "north", client="north", with_base=False)
    about = json.loads((folder / "fedsa.json").read_text())
    names = dict(enumerate(about["classes"]))
    base = AutoModelForSequenceClassification.from_pretrained(models["encoder"], num_labels=len(names), id2label=names)
    model = PeftModel.from_pretrained(base, folder).eval()
    texts = own_rows(result, "north")["text"][:]
    classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    shown = classify(texts)
    said = fedsa.predict(folder, texts, base=str(models["encoder"]))
    assert [each["label"] for each in shown] == [each.prediction for each in said]
    assert {each["label"] for each in shown} <= {"class 0", "class 1"}
    wanted = [each.probabilities[each.prediction] for each in said if each.probabilities]
    assert [each["score"] for each in shown] == pytest.approx(wanted, abs=1e-5)
    assert about["task"]["kind"] == "classification"
    assert about["client"] == "north"


def test_an_export_carries_its_template(run_of: Callable[[str], fedsa.RunResult], tmp_path: Path) -> None:
    (folder,) = run_of("generation").export(tmp_path / "north", client="north")
    about = json.loads((folder / "fedsa.json").read_text())
    assert about["task"]["prompt"] == "what is {text} ?"
    assert about["model_options"] == {}


def test_clients_of_one_batch_have_their_own_adapters_in_peft(
    run_of: Callable[[str], fedsa.RunResult], tmp_path: Path
) -> None:
    """What docs/predict.md shows: one base, the adapters of several sites, and each row says whose it is."""
    result = run_of("generation")
    north, south = result.export(tmp_path / "all", round="final")
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(north, padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(result._federation.recipe.model.path)
    model = PeftModel.from_pretrained(base, north, adapter_name="north")
    model.load_adapter(south, adapter_name="south")
    texts = [f"what is {text} ?" for text in own_rows(result, "north")["text"][:4]] * 2
    owners = ["north"] * 4 + ["south"] * 4
    inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        logits = model.eval()(**inputs, adapter_names=owners).logits[:, -1]
        written = model.generate(**inputs, adapter_names=owners, max_new_tokens=3, do_sample=False)
    assert not torch.allclose(logits[:4], logits[4:])
    mixed = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    rows = own_rows(result, "north").select(range(4))
    said = [each.prediction for client in ("north", "south") for each in fedsa.predict(
        result.path, without_answers(rows), client=client, round="final")]  # fmt: skip
    assert [text.strip() for text in mixed] == said


def test_clients_of_one_batch_have_their_own_heads_in_peft(
    run_of: Callable[[str], fedsa.RunResult], models: dict[str, Path], tmp_path: Path
) -> None:
    result = run_of("classification")
    north, south = result.export(tmp_path / "all", round="final")
    about = json.loads((north / "fedsa.json").read_text())
    names = dict(enumerate(about["classes"]))
    base = AutoModelForSequenceClassification.from_pretrained(models["encoder"], num_labels=len(names), id2label=names)
    model = PeftModel.from_pretrained(base, north, adapter_name="north")
    model.load_adapter(south, adapter_name="south")
    texts = own_rows(result, "north")["text"][:5]
    inputs = AutoTokenizer.from_pretrained(north)([*texts, *texts], padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(**inputs, adapter_names=["north"] * len(texts) + ["south"] * len(texts)).logits
    wanted = [list(each.probabilities.values()) for client in ("north", "south") for each in fedsa.predict(
        result.path, texts, client=client, round="final") if each.probabilities]  # fmt: skip
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), wanted, atol=1e-5)


# -- what is not so usual ---------------------------------------------------------------------------------------------


def test_a_run_that_is_not_finished_answers_with_its_best_round(models: dict[str, Path], tmp_path: Path) -> None:
    class Stop(fedsa.Callback):
        def on_round_end(self, round: int, *arguments: Any, **more: Any) -> None:
            if round == 2:
                raise KeyboardInterrupt

    federation = every_federation("classification", models["encoder"], rounds=4)
    with pytest.raises(KeyboardInterrupt):
        fedsa.run(federation, tmp_path / "run", callbacks=[Stop()])
    predictor = Predictor.open(tmp_path / "run")
    (note,) = predictor.notes
    assert "is not finished" in note
    assert f"round {predictor.round}" in note
    assert len(list(predictor.predict("the film was great", client="all"))) == 2


def test_a_run_of_a_loaded_model_is_asked_with_that_model(models: dict[str, Path], tmp_path: Path) -> None:
    named = every_federation("classification", models["encoder"])
    loaded = AutoModelForSequenceClassification.from_pretrained(models["encoder"], num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(models["encoder"])
    from datasets import Dataset as Table
    from peft import LoraConfig

    clients = {
        client: Table.from_dict({
            "text": named.rows.table["text"][:20], "label": [f"class {number % 2}" for number in range(20)]
        })
        for client in ("north", "south")
    }  # fmt: skip
    federation = fedsa.Federation.from_objects(
        loaded, LoraConfig(r=2, target_modules=["query"]), clients, rounds=1, tokenizer=tokenizer,
        task={"label_column": "label"}, compute={"device": "cpu", "threads": 1, "precision": "fp32"},
    )  # fmt: skip
    result = fedsa.run(federation, tmp_path / "run")
    with pytest.raises(UserError, match=r"loaded in Python.*base="):
        Predictor.open(result.path)
    said = [each.prediction for each in result.predictor().predict(["the film was great"], client="all")]
    fresh = lambda: AutoModelForSequenceClassification.from_pretrained(models["encoder"], num_labels=2)  # noqa: E731
    again = fedsa.predict(result.path, "the film was great", client="all", base=fresh, tokenizer=tokenizer)
    assert [each.prediction for each in again] == said


def test_a_task_of_ones_own_without_predictions_is_told(models: dict[str, Path], tmp_path: Path) -> None:
    predictor = fedsa.run(every_federation("classification", models["encoder"], rounds=1), tmp_path / "run").predictor()
    loaded = predictor._loaded

    class Own(type(loaded.task).__mro__[2]):  # type: ignore[misc]  # Task itself
        from_settings = model_options = encode = losses = outputs = score = lambda self: None

    predictor.__dict__["_loaded"] = loaded._replace(task=Own())
    with pytest.raises(UserError, match="does not say what it predicts"):
        predictor.predict("a text", client="north")
    assert isinstance(loaded.task, Classification)
    assert Prediction("a").probabilities is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["the film", None], r"row 1 \(counted from 0\).*'text' is empty|'text' is empty in 1 row \(row 1"),
        ([{"txt": "a film"}], r"'text': did you mean 'txt'"),
        ([], "there are no rows"),
        ([{"text": ["a", "list"]}], "holds a list"),
        (["[PAD]"], "no token that the model could read"),
    ],
)
def test_rows_that_do_not_fit_are_told(run_of: Callable[[str], fedsa.RunResult], rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fedsa.predict(run_of("classification").path, rows, client="north")


def test_a_row_is_named_by_file_and_line(run_of: Callable[[str], fedsa.RunResult], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"words": ["the", "film"]}\n\n{"words": []}\n')
    with pytest.raises(DataError, match=r"^rows.jsonl, line 3: column 'words' has no words"):
        fedsa.predict(run_of("token_classification").path, file, client="north")


def test_a_picture_that_is_not_there_is_told(run_of: Callable[[str], fedsa.RunResult]) -> None:
    with pytest.raises(
        DataError, match=r"row 0 .counted from 0.: column 'image': the image no/such.png cannot be read"
    ):
        fedsa.predict(run_of("image_classification").path, ["no/such.png"], client="north")


def test_long_rows_are_counted(run_of: Callable[[str], fedsa.RunResult]) -> None:
    notes: list[str] = []
    texts = ["the film was great today", "the film " * 40]
    fedsa.predict(run_of("classification").path, texts, client="north", on_note=notes.append)
    assert re.search(r"1 of 2 rows are longer than \d+ tokens \(longest 82\)", " ".join(notes))
    notes.clear()
    said = fedsa.predict(run_of("language_modeling").path, ["it is so " * 60], client="north", on_note=notes.append)
    assert "it loses its beginning" in " ".join(notes)
    assert said[0].about["tokens"] < 181


def test_clients_and_folders_that_are_not_there_are_told(
    run_of: Callable[[str], fedsa.RunResult], models: dict[str, Path], tmp_path: Path
) -> None:
    run = run_of("classification").path
    for client, message in (("nrth", "did you mean 'north'"), (None, "There are north, south")):
        with pytest.raises(UserError, match=message):
            fedsa.predict(run, "a film", client=client)
    with pytest.raises(UserError, match="neither a run folder"):
        fedsa.predict(tmp_path, "a film")
    with pytest.raises(UserError, match="does not exist"):
        fedsa.predict(tmp_path / "no", "a film")
    run_of("classification").export(tmp_path / "all")
    with pytest.raises(UserError, match=r"holds several adapters.*00000-north"):
        fedsa.predict(tmp_path / "all", "a film")
    north = tmp_path / "all" / "00000-north"
    with pytest.raises(UserError, match="did you mean 'north'"):
        fedsa.predict(north, "a film", client="norht")
    shutil.copytree(models["encoder"], tmp_path / "other")
    torch.manual_seed(5)
    AutoModel.from_config(AutoModel.from_pretrained(models["encoder"]).config).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="has other weights than the one that the adapter was trained on"):
        fedsa.predict(north, "a film", base=str(tmp_path / "other"))
    with pytest.raises(UserError, match="--base goes with an exported adapter"):
        fedsa.predict(run, "a film", client="north", base=str(tmp_path / "other"))
    run_of("classification").export(tmp_path / "merged", client="north", merge=True)
    with pytest.raises(UserError, match="holds a whole model"):
        fedsa.predict(tmp_path / "merged", "a film")
    (north / "fedsa.json").unlink()
    with pytest.raises(UserError, match=r"fedsa.json is missing, and .*SHA256SUMS lists it"):
        fedsa.predict(north, "a film")
    (north / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match=r"has no fedsa.json"):
        fedsa.predict(north, "a film")


def test_a_run_without_a_round_is_told(run_of: Callable[[str], fedsa.RunResult], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(run_of("classification").path / "recipe.toml", tmp_path / "run")
    with pytest.raises(RunFolderError, match="has no finished round yet"):
        fedsa.predict(tmp_path / "run", "a film", client="north")


def test_a_moved_export_finds_its_base(run_of: Callable[[str], fedsa.RunResult], tmp_path: Path) -> None:
    run_of("classification").export(tmp_path / "all")
    before = fedsa.predict(tmp_path / "all" / "00000-north", "the film was great")
    (tmp_path / "all").rename(tmp_path / "elsewhere")
    assert fedsa.predict(tmp_path / "elsewhere" / "00000-north", "the film was great") == before
    shutil.rmtree(tmp_path / "elsewhere" / "base")
    with pytest.raises(UserError, match="--base"):
        fedsa.predict(tmp_path / "elsewhere" / "00000-north", "the film was great")
