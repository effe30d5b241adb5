"""The language model evaluation harness gives the figures of the run; what it cannot do is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fedsa
from fedsa.errors import MissingExtraError, UserError
from fedsa.runs import harness
from fedsa.types import CLASS_NUMBER
from support.blocks import blocks_of
from support.every_task import TASKS, every_federation, own_rows
from support.repository import ROOT
from support.tiny_decoder import write_decoder

needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the extra: pip install 'fedsa[eval]'")
quiet = pytest.mark.filterwarnings("default")  # the harness's own libraries warn

END = "</s>"  # fedsa's answers end with it, and it counts
SETTINGS = {
    "multiple_choice": TASKS["multiple_choice"],
    "classes": {"kind": "multiple_choice", "prompt": "{text}", "answer": "said", "labels": ["red", "green", "blue"]},
    "generation": TASKS["generation"],
    "language_modeling": TASKS["language_modeling"],
}
AS_FILES: dict[str, dict[str, Any]] = {
    "multiple_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": f"{{{{[choices[0] ~ '{END}', choices[1] ~ '{END}']}}}}",
        "doc_to_target": "choice",
        "metric_list": [{"metric": "acc"}, {"metric": "brier_score"}],
    },
    "classes": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": [f"{name}{END}" for name in ("red", "green", "blue")],
        "doc_to_target": "{{['red', 'green', 'blue'].index(said)}}",
        "metric_list": [{"metric": "acc"}, {"metric": "brier_score"}],
    },
    "generation": {
        "output_type": "generate_until",
        "doc_to_text": "what is {{text}} ?",
        "doc_to_target": "{{said}}",
        "generation_kwargs": {"until": [END], "max_gen_toks": 3, "do_sample": False},
        "filter_list": [
            {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        ],
        "metric_list": [{"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}],
    },
    "answers": {
        "output_type": "loglikelihood",
        "doc_to_text": "what is {{text}} ?",
        "doc_to_target": f" {{{{said}}}}{END}",
        "metric_list": [{"metric": "perplexity"}],
    },
    "language_modeling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": f"{{{{text}}}} {END}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}
"""The same tasks in the harness's form."""


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], fedsa.RunResult]:
    """A finished run of a decoder; change nothing in it."""
    made: dict[str, fedsa.RunResult] = {}

    def make(name: str) -> fedsa.RunResult:
        if name not in made:
            model = write_decoder(tmp_path_factory.mktemp("decoder") / "model")
            federation = every_federation("multiple_choice", model, task=SETTINGS[name])
            made[name] = fedsa.run(federation, tmp_path_factory.mktemp("runs") / name, progress=False)
        return made[name]

    return make


@pytest.fixture
def task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a task with a client's test rows, and allow task files."""
    monkeypatch.setenv("FEDSA_ALLOW_CODE", "1")

    def write(name: str, result: fedsa.RunResult, client: str) -> str:
        rows = rows_of(result, client)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        settings = {
            "task": f"own_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(tmp_path / f"{name}.jsonl")},
                "cache_dir": str(tmp_path / "cache"),
            },
            "test_split": "test",
            **AS_FILES[name],
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        return str(tmp_path / f"{name}.yaml")

    return write


def rows_of(result: fedsa.RunResult, client: str) -> list[dict[str, Any]]:
    """Return a client's test rows, with their answers."""
    return own_rows(result, client).remove_columns(CLASS_NUMBER).to_list()


def values(figures: list[harness.HarnessFigure]) -> dict[str, float]:
    return {each.metric: each.value for each in figures if each.value is not None}


@pytest.mark.run
@needs_harness
@quiet
@pytest.mark.parametrize("name", ["multiple_choice", "classes"])
def test_choices_of_an_export_come_to_the_runs_own_accuracy(
    run_of: Callable[[str], fedsa.RunResult], task_file: Callable[..., str], tmp_path: Path, name: str
) -> None:
    result, hits = run_of(name), []
    for client in ("north", "south"):
        (folder,) = result.export(tmp_path / client, client=client)
        found = values(harness.evaluate(folder, task_file(name, result, client)))
        measured = result.summary["per_client"][client]["test"]
        assert found["acc"] == measured["accuracy"]
        rows = rows_of(result, client)
        asked = [{name: row[name] for name in ("text", "choices") if name in row} for row in rows]
        said = fedsa.predict(folder, asked)
        squares = []
        for row, each in zip(rows, said, strict=True):
            right = row["choices"][row["choice"]] if name == "multiple_choice" else row["said"]
            squares.append(sum((chance - (text == right)) ** 2 for text, chance in each.probabilities.items()))
        assert found["brier_score"] == pytest.approx(np.mean(squares), abs=1e-5)
        hits.append(found["acc"])
    assert max(hits) > 0


@pytest.mark.run
@needs_harness
@quiet
def test_what_is_written_comes_to_the_runs_own_exact_match(
    run_of: Callable[[str], fedsa.RunResult],
    task_file: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harness, "_RESAMPLES", 100)
    result, hits = run_of("generation"), []
    for client in ("north", "south"):
        (folder,) = result.export(tmp_path / client, client=client)
        files = [task_file(name, result, client) for name in ("generation", "answers")]
        found = values(harness.evaluate(folder, files))
        measured = result.summary["per_client"][client]["test"]
        assert found["exact_match"] == measured["exact_match"]
        assert np.log(found["perplexity"]) == pytest.approx(2 * measured["loss"], abs=1e-5)  # a word and the end token
        hits.append(found["exact_match"])
    assert max(hits) > 0


@pytest.mark.run
@needs_harness
@quiet
def test_texts_come_to_the_runs_own_perplexity(
    run_of: Callable[[str], fedsa.RunResult], task_file: Callable[..., str], tmp_path: Path
) -> None:
    result = run_of("language_modeling")
    for client in ("north", "south"):
        (folder,) = result.export(tmp_path / client, client=client)
        found = values(harness.evaluate(folder, task_file("language_modeling", result, client)))
        measured = result.summary["per_client"][client]["test"]
        # the tiny tokenizer's tokens are words, and the end token is one
        assert found["word_perplexity"] == pytest.approx(measured["perplexity"], rel=1e-5)


@pytest.mark.run
@needs_harness
@quiet
def test_the_figures_are_those_of_the_harness_own_loading_of_the_export(
    run_of: Callable[[str], fedsa.RunResult],
    task_file: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(harness, "_RESAMPLES", 100)

    result = run_of("generation")
    (folder,) = result.export(tmp_path / "north", client="north")
    file = task_file("answers", result, "north")
    arguments = {"pretrained": result._federation.recipe.model.path, "peft": str(folder), "dtype": "float32"}
    theirs = simple_evaluate(
        "hf", arguments, [file], device="cpu", task_manager=TaskManager(include_defaults=False), bootstrap_iters=0
    )
    ours = values(harness.evaluate(folder, file))
    assert ours["perplexity"] == pytest.approx(theirs["results"]["own_answers"]["perplexity,none"], rel=1e-5)


@pytest.mark.run
@needs_harness
@quiet
def test_the_command_prints_what_python_returns(
    run_of: Callable[[str], fedsa.RunResult], task_file: Callable[..., str], fedsa_command: Callable[..., Any]
) -> None:
    result = run_of("multiple_choice")
    file = task_file("multiple_choice", result, "north")
    wanted = harness.evaluate(result.path, file, client=["north", "south"], limit=3)
    given = ("eval", result.path, "--tasks", file, "--client", "all", "--limit", 3)
    outcome = fedsa_command(*given, "--json")
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    assert told["results"] == [each.as_dict() for each in wanted]
    assert {(each["client"], each["metric"], each["rows"]) for each in told["results"]} == {
        (client, metric, 3) for client in ("north", "south") for metric in ("acc", "brier_score")
    }
    assert told["results"][0]["rows_of_task"] == len(rows_of(result, "north"))
    lines = fedsa_command(*given).out.splitlines()
    assert lines[0].split() == ["task", "client", "metric", "value", "±", "stderr", "shots", "rows"]
    assert lines[1].split()[:3] == ["own_multiple_choice", "north", "acc"]
    assert "only 3 rows of each task" in lines[-1]


@pytest.mark.run
@needs_harness
@quiet
def test_a_task_that_does_not_go_is_told(
    run_of: Callable[[str], fedsa.RunResult], task_file: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_of("multiple_choice")
    file = task_file("multiple_choice", result, "north")
    Path(file).write_text(Path(file).read_text().replace("{{text}}", "{{txt}}"))
    with pytest.raises(UserError, match=r"harness cannot use .*'txt' is undefined"):
        harness.evaluate(result.path, file, client="north")


@pytest.mark.run
@needs_harness
@quiet
def test_the_task_file_of_the_docs_goes(
    run_of: Callable[[str], fedsa.RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "evaluate.md").read_text("utf-8")
    (block,) = (block.text for block in blocks_of(page) if block.language == "yaml")
    (row,) = re.findall(r"# (\{.*\})", block)
    (tmp_path / "colours.jsonl").write_text(row + "\n")
    (tmp_path / "mine.yaml").write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSA_ALLOW_CODE", "1")
    (figure,) = harness.evaluate(run_of("multiple_choice").path, "mine.yaml", client="north")
    assert (figure.task, figure.metric, figure.rows, figure.value in (0, 1)) == ("colours", "acc", 1, True)


@pytest.mark.slow
@needs_harness
@quiet
def test_a_name_that_the_harness_does_not_know_is_told(run_of: Callable[[str], fedsa.RunResult]) -> None:
    """It is slow: the harness looks through all of its thousands of files."""
    with pytest.raises(UserError, match=r"no task 'gsm8kk'; did you mean .*'gsm8k'"):
        harness.evaluate(run_of("multiple_choice").path, "gsm8kk", client="north")


def test_without_the_extra_the_install_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedsa\[eval\]'"):
        harness.evaluate(tmp_path, "gsm8k")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [("no.yaml", "does not exist"), ("own.yaml", "can run code.*--allow-code"), ([], "give --tasks")],
)
def test_files_that_may_not_run_are_told(
    tasks: Any, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSA_ALLOW_CODE", raising=False)
    Path("own.yaml").write_text("task: own\n")
    with pytest.raises(UserError, match=message):
        harness.evaluate(tmp_path, tasks)


def test_an_encoder_is_told(monkeypatch: pytest.MonkeyPatch, finished_run: Path) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="asks models that write or score texts"):
        harness.evaluate(finished_run, "gsm8k", client="site 0")
