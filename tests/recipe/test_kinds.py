"""Sections that come in kinds: each has its own settings, and what goes with another kind is told with that kind."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from fedsa.errors import ConfigError
from fedsa.recipe import (
    ClassificationSettings,
    OwnTaskSettings,
    Recipe,
    agreed_settings,
    dump_recipe,
    parse_recipe,
    task_settings,
)
from fedsa.recipe.kinds import ByKind, by_kind

MINIMAL = {
    "rounds": 3,
    "model": {"path": "some/model"},
    "data": {"path": "rows.csv", "partition": {"kind": "iid", "clients": 2}},
}
TASKS: dict[str, dict[str, Any]] = {
    "classification": {},
    "image_classification": {},
    "token_classification": {"answer": "tags", "labels": ["O", "B-X", "I-X"]},
    "question_answering": {},
    "regression": {"answer": "score"},
    "generation": {"prompt": "{question}", "answer": "{answer}"},
    "language_modeling": {},
    "chat": {"messages": "talk"},
    "dpo": {"beta": 0.5},
    "multiple_choice": {"prompt": "{question}", "answer": "right", "choices": ["a", "b"]},
    "mine:Task": {"options": {"depth": 2}},
}
SERVERS = ("none", "fedavgm", "fedadam", "fedyogi")
WRITTEN_OUT = {
    "text_columns": ["text"],
    "chat": False,
    "choice_template": " {choice}",
    "first_choice": 0,
    "metric": "log_likelihood",
    "extract": "none",
    "max_new_tokens": 64,
    "max_length": 128,
    "doc_stride": 128,
    "max_answer_length": 30,
    "options": {},
}
"""What a resolved recipe once held of every task, whatever its kind."""


def recipe(**sections: Any) -> Recipe:
    return parse_recipe({**MINIMAL, **sections})


def mistakes(**sections: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        recipe(**sections)
    return [str(mistake) for mistake in caught.value.mistakes]


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_is_written_with_its_own_settings_and_read_back(kind: str) -> None:
    made = recipe(task={"kind": kind, **TASKS[kind]})
    written = tomllib.loads(dump_recipe(made))
    assert parse_recipe(written) == made
    assert written["task"].keys() <= set(type(made.task).model_fields)
    assert agreed_settings(made)["task"].keys() == set(type(made.task).model_fields)
    assert ("max_new_tokens" in written["task"]) == (kind in ("generation", "chat", "mine:Task"))


@pytest.mark.parametrize("optimizer", SERVERS)
def test_a_server_optimiser_is_written_with_its_own_settings_and_read_back(optimizer: str) -> None:
    made = recipe(server={"optimizer": optimizer})
    written = tomllib.loads(dump_recipe(made))
    assert parse_recipe(written) == made
    assert written["server"].keys() == set(type(made.server).model_fields)


@pytest.mark.parametrize("kind", [kind for kind in TASKS if kind not in ("mine:Task", "chat", "dpo")])
def test_recipes_that_have_every_kinds_settings_written_out_are_read(kind: str) -> None:
    defaults = {**WRITTEN_OUT, "label_column": "label"} if "classification" in kind[:20] else WRITTEN_OUT
    own = {
        "image_classification": {"text_columns": ["image"]},
        "question_answering": {"text_columns": ["question", "context"], "max_length": 384},
    }
    old = recipe(task={**defaults, **own.get(kind, {}), "kind": kind, **TASKS[kind]})
    new = recipe(task={"kind": kind, **TASKS[kind]})
    if kind == "token_classification":
        new = recipe(task={"kind": kind, "label_column": "label", **TASKS[kind]})
    assert old == new


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (
            {"prompt": "x"},
            ["task: `prompt` does not go with kind = 'classification'; it goes with generation, dpo, multiple_choice"],
        ),
        (
            {"kind": "regression", "answer": "y", "metric": "f1"},
            ["task: `metric` does not go with kind = 'regression'; it goes with generation"],
        ),
        (
            {"options": {"x": 1}},
            ["task: `options` does not go with kind = 'classification'; it goes with package.module:Class"],
        ),
        (
            {"kind": "generation"},
            ["task: kind = 'generation' needs `prompt`", "task: kind = 'generation' needs `answer`"],
        ),
        (
            {"kind": "genration", "prompt": "x"},
            ["task: kind = 'genration': did you mean 'generation'? (a task of your own is package.module:Class)"],
        ),
        ({"promt": "x"}, ["task.promt: unknown key; did you mean 'prompt'?"]),
        (3, ["task: must be a table of settings (got 3)"]),
    ],
    ids=str,
)
def test_what_does_not_go_with_a_kind_is_told_with_the_mend(task: Any, told: list[str]) -> None:
    assert mistakes(task=task) == told


def test_a_kind_that_is_no_text_is_told_with_those_that_there_are() -> None:
    [told] = mistakes(task={"kind": 3})
    assert told.startswith("task: kind = 3: known: chat, classification, dpo, generation, image_classification, ")


def test_mistakes_of_a_kind_are_told_together_with_the_others() -> None:
    assert mistakes(rounds=0, task={"kind": "generation", "doc_stride": 4, "max_length": 0}) == [
        "rounds: input should be greater than 0 (got 0)",
        "task.max_length: input should be greater than 0 (got 0)",
        "task: kind = 'generation' needs `prompt`",
        "task: kind = 'generation' needs `answer`",
        "task: `doc_stride` does not go with kind = 'generation'; it goes with question_answering",
    ]


def test_a_section_may_be_given_as_one() -> None:
    assert recipe(task=ClassificationSettings(labels=["a", "b"])).task.class_names == ["a", "b"]


def test_a_task_of_ones_own_has_every_setting_that_another_kind_has() -> None:
    field = Recipe.model_fields["task"]
    kinds = by_kind(field)
    assert isinstance(kinds, ByKind)
    sections = [each for each in kinds.sections(field.annotation).values() if each is not OwnTaskSettings]
    theirs = {name: each.model_fields[name] for each in sections for name in each.model_fields}
    assert {*theirs} == {*OwnTaskSettings.model_fields} - {"options"}
    assert [name for name, each in theirs.items() if not each.description] == []


def test_every_column_that_a_template_names_is_read() -> None:
    """What is not in `columns` is not read from a file, and the template would have nothing to put in."""
    templates = {"prompt": "{one}", "answer": "{two}", "choice_template": " {choice} {three}"}
    for kind in ("generation", "multiple_choice"):
        known = {name for name in templates if name in type(task_settings({"kind": kind, **BASE[kind]})).model_fields}
        own = task_settings({"kind": kind, **BASE[kind], **{name: templates[name] for name in known}})
        named = {field for name in known for field in ("one", "two", "three") if f"{{{field}}}" in templates[name]}
        if kind == "multiple_choice":  # there the answer is a column's name
            named -= {"two"}
        assert named <= {*own.columns}, kind


BASE = {
    "generation": {"prompt": "{a}", "answer": "{b}"},
    "multiple_choice": {"prompt": "{a}", "answer": "b", "choices": ["c"]},
}
