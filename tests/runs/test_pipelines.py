"""An exported adapter in a plain pipeline of transformers says what `fedsa.predict` says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import pipeline

import fedsa
from fedsa.runs.predict import Predicted
from support.every_task import TASKS, own_rows, without_answers

pytestmark = pytest.mark.run

PIPELINES = {
    "classification": "text-classification",
    "pair": "text-classification",
    "regression": "text-classification",
    "token_classification": "token-classification",
    "image_classification": "image-classification",
    "generation": "text-generation",
    "language_modeling": "text-generation",
    "chat": "text-generation",
}
WITHOUT = {"question_answering", "multiple_choice", "dpo", "generation_by_likelihood"}
"""Transformers has no pipeline that answers, chooses or prefers; the last one writes as generation does."""


def shown(name: str, folder: Path, table: datasets.Dataset, said: list[Predicted]) -> list[Any]:
    """Return what a pipeline that gets the folder's name shows of rows."""
    if name == "token_classification":
        ask = pipeline(PIPELINES[name], model=str(folder), ignore_labels=[])
        return [[each["entity"] for each in ask(" ".join(words))] for words in table["words"][:]]
    ask = pipeline(PIPELINES[name], model=str(folder))
    if PIPELINES[name] == "text-generation":
        tokens = 32 if name == "language_modeling" else 3
        if name == "generation":
            prompts = [f"what is {text} ?" for text in table["text"][:]]
        elif name == "chat":
            prompts = [json.loads(turns)[:-1] for turns in table["messages"][:]]
        else:
            (begin,) = re.findall(r"behind the token `(.+)`", (folder / "README.md").read_text("utf-8"))
            prompts = [begin + text for text in table["text"][:]]
        how = {"max_new_tokens": tokens, "do_sample": False, "return_full_text": False}
        return [ask(prompt, **how)[0]["generated_text"].strip() for prompt in prompts]
    if name == "regression":
        return [ask(text, function_to_apply="none")[0]["score"] for text in table["text"][:]]
    if name == "image_classification":
        best = [ask(image, top_k=1)[0] for image in table["image"][:]]
    elif name == "pair":
        pairs = zip(table["text"][:], table["second"][:], strict=True)
        best = [ask({"text": first, "text_pair": second}) for first, second in pairs]
    else:
        best = ask(table["text"][:])
    chances = [each.probabilities[each.prediction] for each in said if each.probabilities]
    assert [each["score"] for each in best] == pytest.approx(chances, abs=1e-5)
    return [each["label"] for each in best]


def test_every_kind_is_here() -> None:
    assert {*PIPELINES} | WITHOUT == {*TASKS}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_shows_what_predict_shows(
    run_of: Callable[[str], fedsa.RunResult], tmp_path: Path, name: str
) -> None:
    result, kinds = run_of(name), set()
    for client, folder in zip(("north", "south"), result.export(tmp_path / "all", round="final"), strict=True):
        table = without_answers(own_rows(result, client))
        said = fedsa.predict(folder, table)
        wanted = [each.prediction for each in said]
        found = shown(name, folder, table, said)
        assert found == (pytest.approx(wanted, abs=1e-5) if name == "regression" else wanted)
        kinds |= {str(each) for each in wanted}
    assert len(kinds) > 1 or name == "generation"  # else equal would mean little
