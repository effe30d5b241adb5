"""From the columns of a table: which task they make, and which column says whose a row is.

Each guess says why in a few words, which the recipe then has as a comment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from fedsa.data.shapes import LISTS, pair_of
from fedsa.drafting.columns import Column
from fedsa.texts.words import counted

__all__ = ["ClientGuess", "TaskGuess", "clients_of", "group_of", "task_of"]

_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("question1", "question2"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
)
"""Columns that are read as a pair."""

_CLASSES = (
    "label",
    "labels",
    "class",
    "target",
    "category",
    "sentiment",
    "intent",
    "diagnosis",
    "topic",
    "answer",
    "y",
)
_SCORES = ("score", "rating", "stars", "label", "target", "value", "y")
_TEXTS = ("text", "sentence", "content", "review", "body", "message", "comment", "document", "note", "report")
_CLIENTS = (
    *("client", "site", "hospital", "clinic", "bank", "centre", "center", "branch", "ward", "department", "user"),
    *("customer", "device", "school", "country", "region", "institution", "organisation", "organization", "source"),
    *("domain", "speaker", "author"),
)
_GROUPS = ("patient", "document", "session", "thread", "conversation", "dialog", "dialogue", "article", "case")
_FEWEST_ROWS = 10  # of a client, in all splits; the recipe's own default

_Settings = Mapping[str, Any]


@final
@dataclass(frozen=True)
class TaskGuess:
    """A task that columns make.

    Attributes:
        settings: the recipe's ``[task]``, without lengths.
        why: what was seen.
        used: the columns that it reads.
        answers: of a task with classes: its column of them.
        words: words of the longest texts, roughly.
    """

    settings: _Settings
    why: str
    used: tuple[str, ...]
    answers: Column | None = None
    words: int = 0


@final
@dataclass(frozen=True)
class ClientGuess:
    """Whose rows are whose.

    Attributes:
        partition: the recipe's ``[data.partition]``.
        why: what was seen.
        notes: what it costs.
    """

    partition: _Settings
    why: str
    notes: tuple[str, ...] = ()


def task_of(columns: Sequence[Column]) -> TaskGuess | None:
    """The task that columns make; None: they make none that is known."""
    by_name = {column.name.lower(): column for column in columns}
    for guess in (
        *(_images, _preferences, _conversations, _question_answering, _tagging, _choices, _instructions),
        *(_classes, _numbers, _plain_texts),
    ):
        found = guess(columns, by_name)
        if found is not None:
            return found
    return None


def clients_of(columns: Sequence[Column], task: TaskGuess, rows: int) -> ClientGuess:
    """Whose rows are whose, where one table has all of them: by a column, or dealt out as a simulation.

    Args:
        columns: the table's.
        task: the task; its columns name no client.
        rows: how many there are.
    """
    for name in _CLIENTS:
        for column in columns:
            words = column.name.lower().replace("-", "_").split("_")
            if column.name in task.used or name not in words or column.kind not in ("class", "name"):
                continue
            if len(column.values) > 1:
                smallest = min(column.values.values())
                partition: dict[str, Any] = {"kind": "column", "column": column.name}
                notes: tuple[str, ...] = ()
                if smallest < _FEWEST_ROWS:
                    partition["leave_out_small"] = True
                    notes = (f"some clients have fewer than {counted(_FEWEST_ROWS, 'row')}: they are left out",)
                return ClientGuess(
                    partition,
                    f"column {column.name!r} has {counted(len(column.values), 'value')}: each is a client",
                    notes,
                )
    clients = max(2, min(8, rows // 50))
    if task.settings["kind"] in ("classification", "image_classification") and rows >= 40 * clients:
        return ClientGuess(
            {"kind": "dirichlet", "clients": clients, "dirichlet_alpha": 1.0},
            "no column names a client, so the rows are dealt out to clients of different label mixes: a simulation",
        )
    return ClientGuess(
        {"kind": "iid", "clients": clients},
        "no column names a client, so the rows are dealt out at random: a simulation",
    )


def group_of(columns: Sequence[Column], task: TaskGuess, partition: _Settings) -> str | None:
    """The column whose rows belong together, such as a patient's: they stay in one split."""
    taken = {*task.used, partition.get("column")}
    for column in columns:
        words = column.name.lower().replace("-", "_").split("_")
        if column.name not in taken and set(_GROUPS) & {*words} and any(count > 1 for count in column.values.values()):
            return column.name
    return None


def _images(columns: Sequence[Column], by_name: Mapping[str, Column]) -> TaskGuess | None:
    images = [column for column in columns if column.kind == "image"]
    label = _first(columns, ("class",), _CLASSES)
    if not images or label is None:
        return None
    settings = {
        "kind": "image_classification",
        "text_columns": [images[0].name],
        "label_column": label.name,
        "labels": _class_names(label),
    }
    return TaskGuess(settings, f"{images[0].name!r} has pictures", (images[0].name, label.name), label)


def _preferences(columns: Sequence[Column], by_name: Mapping[str, Column]) -> TaskGuess | None:
    pair = [by_name[name] for name in ("chosen", "rejected") if name in by_name]
    if len(pair) < 2 or any(column.kind not in ("text", "name", "turns") for column in pair):
        return None
    asked = next((by_name[name] for name in ("prompt", *LISTS, "question", "instruction") if name in by_name), None)
    names = [column.name for column in (*pair, *((asked,) if asked else ()))]
    words = max(column.words for column in pair) + (asked.words if asked and pair[0].kind != "turns" else 0)
    own = {key: column.name for key, column in zip(("chosen", "rejected"), pair, strict=True) if column.name != key}
    return TaskGuess({"kind": "dpo", **own}, "of two answers one is the chosen one", tuple(names), words=words)


def _conversations(columns: Sequence[Column], by_name: Mapping[str, Column]) -> TaskGuess | None:
    for column in columns:
        if column.kind == "turns" and column.name in LISTS:
            return TaskGuess(
                {"kind": "chat", "messages": column.name},
                f"{column.name!r} has conversations",
                (column.name,),
                words=column.words,
            )
    texts = [column.name for column in columns if column.kind in ("text", "name", "empty")]
    pair = pair_of(texts)
    if pair is None or (pair[0], pair[2]) != ("instruction", "output"):
        return None
    used = tuple(name for name in pair if name)
    words = sum(by_name[name].words for name in used)
    return TaskGuess({"kind": "chat"}, "'output' answers 'instruction', as in Alpaca", used, words=words)


def _question_answering(columns: Sequence[Column], by_name: Mapping[str, Column]) -> TaskGuess | None:
    answers = next((column for column in columns if column.kind == "answers"), None)
    question, context = by_name.get("question"), by_name.get("context")
    if answers is None or question is None or context is None:
        return None
    names = [question.name, context.name]
    settings = {"kind": "question_answering", "text_columns": names, "answer": answers.name}
    return TaskGuess(settings, f"{answers.name!r} says where answers stand in {context.name!r}", (*names, answers.name))


def _tagging(columns: Sequence[Column], by_name: Mapping[str, Column]) -> TaskGuess | None:
    tags = next((column for column in columns if column.kind == "tags"), None)
    words = next((column for column in columns if column.kind in ("words", "choices")), None)
    if tags is None or words is None:
        return None
    settings = {
        "kind": "token_classification",
        "text_columns": [words.name],
        "answer": tags.name,
        "labels": list(tags.tags),
    }
    why = f"{tags.name!r} has a tag for each word of {words.name!r}"
    return TaskGuess(settings, why, (words.name, tags.name), tags, words.words)


def _choices(columns: Sequence[Column], by_name: Mapping[str, Column]) -> TaskGuess | None:
    choices = next((column for column in columns if column.kind == "choices"), None)
    question = _first(columns, ("text",), ("question", "prompt", "query", "text"))
    answer = _first(columns, ("class", "name", "number"), ("answer", "answerkey", "answer_key", "label", "target"))
    if choices is None or question is None or answer is None:
        return None
    settings = {
        "kind": "multiple_choice",
        "prompt": f"Question: {{{question.name}}}\nAnswer:",
        "choices": [choices.name],
        "answer": answer.name,
    }
    why = f"{choices.name!r} has choices, and {answer.name!r} says which is right"
    return TaskGuess(settings, why, (question.name, choices.name, answer.name), words=question.words + choices.words)


def _instructions(columns: Sequence[Column], by_name: Mapping[str, Column]) -> TaskGuess | None:
    for asked, more, said in (
        ("instruction", "context", "response"),
        ("question", "", "answer"),
        ("prompt", "", "completion"),
        ("prompt", "", "response"),
        ("article", "", "summary"),
        ("document", "", "summary"),
        ("source", "", "target"),
    ):
        first, second, answer = by_name.get(asked), by_name.get(more), by_name.get(said)
        if first is None or answer is None or first.kind != "text" or answer.kind not in ("text", "name"):
            continue
        prompt = f"{{{first.name}}}"
        used = [first.name, answer.name]
        if second is not None and second.kind in ("text", "name"):
            prompt += f"\n\n{{{second.name}}}"
            used.insert(1, second.name)
        settings = {"kind": "generation", "prompt": prompt, "answer": f"{{{answer.name}}}", "chat": True}
        words = sum(by_name[name.lower()].words for name in used)
        return TaskGuess(settings, f"{answer.name!r} answers {first.name!r} in words", tuple(used), words=words)
    return None


def _classes(columns: Sequence[Column], by_name: Mapping[str, Column]) -> TaskGuess | None:
    texts = _text_columns(columns, by_name)
    if not texts:
        return None
    label = _first(columns, ("class",), _CLASSES)
    if label is None:
        rest = [column for column in columns if column.kind == "class" and not _names_a_client(column)]
        label = min(rest, key=lambda column: len(column.values), default=None)
    if label is None:
        return None
    names = [text.name for text in texts]
    settings = {
        "kind": "classification",
        "text_columns": names,
        "label_column": label.name,
        "labels": _class_names(label),
    }
    why = f"{label.name!r} has {counted(len(label.values), 'class', 'classes')}"
    return TaskGuess(settings, why, (*names, label.name), label, sum(text.words for text in texts))


def _numbers(columns: Sequence[Column], by_name: Mapping[str, Column]) -> TaskGuess | None:
    texts = _text_columns(columns, by_name)
    number = _first(columns, ("number",), _SCORES)
    if not texts or number is None:
        return None
    names = [text.name for text in texts]
    settings = {"kind": "regression", "text_columns": names, "answer": number.name}
    why = f"{number.name!r} has numbers"
    return TaskGuess(settings, why, (*names, number.name), words=sum(text.words for text in texts))


def _plain_texts(columns: Sequence[Column], by_name: Mapping[str, Column]) -> TaskGuess | None:
    texts = _text_columns(columns, by_name)[:1]
    if not texts:
        return None
    settings = {"kind": "language_modeling", "text_columns": [texts[0].name]}
    why = "no column has classes, numbers or answers: the model learns to write such texts"
    return TaskGuess(settings, why, (texts[0].name,), words=texts[0].words)


def _text_columns(columns: Sequence[Column], by_name: Mapping[str, Column]) -> list[Column]:
    """The column of the text, or the two of a pair."""
    for one, other in _PAIRS:
        pair = [by_name[name] for name in (one, other) if name in by_name and by_name[name].kind in ("text", "name")]
        if len(pair) == 2:
            return pair
    first = _first(columns, ("text",), _TEXTS)
    longest = max((column for column in columns if column.kind == "text"), key=lambda each: each.words, default=None)
    return [found] if (found := first or longest) else []


def _first(columns: Sequence[Column], kinds: Sequence[str], names: Sequence[str]) -> Column | None:
    """The first column of these kinds whose name is one of these, in the order of the names."""
    for name in names:
        for column in columns:
            if column.name.lower() == name and column.kind in kinds:
                return column
    return None


def _names_a_client(column: Column) -> bool:
    return bool({*_CLIENTS, *_GROUPS} & {*column.name.lower().replace("-", "_").split("_")})


def _class_names(column: Column) -> list[str]:
    """The classes in the order of `fedsa.data`: whole numbers by size, words by the alphabet."""
    return sorted(column.values, key=int) if column.whole else sorted(column.values)
