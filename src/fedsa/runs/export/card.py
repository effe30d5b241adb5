"""The card of a client's model: what it is, how it was trained, what goes in, how it is loaded."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined, Template

from fedsa.algorithms.base import Algorithm
from fedsa.recipe import Recipe, fields_of
from fedsa.runs.export.base import BASE, Base
from fedsa.server import kept_in_words, plan_of_the_run, sent_in_words
from fedsa.tasks import make_task
from fedsa.texts.escapes import for_markdown, for_markdown_code, for_terminal
from fedsa.texts.words import counted

_WITH_PIPELINE = ("classification", "token_classification", "image_classification")
"""The kinds of task that transformers has a pipeline for which shows classes."""

__all__ = ["card_of", "history_of", "score_of", "weights_note"]


def history_of(summary: Mapping[str, Any], number: int) -> str:
    """Return a card's sentence on where a client's tensors come from."""
    return (
        f"Trained with fedsa in a federation of {counted(summary['clients'], 'client')} by the method "
        f"`{summary['algorithm']}` ({summary['source']}), adapter variant `{summary['variant']}`; this is round "
        f"{number} of {summary['rounds']}."
    )


def score_of(summary: Mapping[str, Any], client: str, round: str) -> str:
    """Return a card's line on the score of a client's exported tensors."""
    metric = summary["metric"]
    unseen = summary.get("unseen", {}).get("per_client", {})
    if client in unseen:
        before, after = (unseen[client][moment] for moment in ("before", "after"))
        return (
            "- This client was held out of the federation, and was taken to an adapter of its own afterwards. Test "
            f"{metric} on its own rows: {before[metric]:.4f} before, {after[metric]:.4f} after "
            f"({counted(after['examples'], 'row')})"
        )
    which = "test" if round == "chosen" else "test_final"
    if summary["evaluated_after"] != "aggregate":  # the tensors here are those after it
        which += "_after_aggregate"
    result = summary["per_client"][client].get(which)
    return (
        f"- Test {metric} on this client's own rows, after receiving the aggregate: {result[metric]:.4f} "
        f"({counted(result['examples'], 'row')})"
        if result
        else f"- Test {metric} after receiving the aggregate: not measured in this run"
    )


def weights_note(algorithm: Algorithm) -> str:
    """The words that a card adds to a score that was measured with weights which no file can hold."""
    if not algorithm.references:
        return ""
    names, rows = " and ".join(algorithm.adapters), counted(algorithm.references, "training row")
    return (
        f"\n- **This adapter differs from the measured one**: there, the adapters {names} were weighed for each row by "
        f"its similarity to {rows} of the client, which constant weights cannot do. Here each adapter has weight 1, as "
        "in training; this was not measured"
    )


def card_of(
    recipe: Recipe,
    summary: Mapping[str, Any],
    client: str,
    about: Mapping[str, Any],
    base: Base,
    target: Path,
    *,
    history: str,
    score: str,
    merged: bool = False,
    ends: Sequence[str] = (),
    begin: str = "",
) -> ModelCard:
    """Return the card of a client's model.

    Args:
        recipe: the run's.
        summary: the run's.
        client: its id.
        about: its numbers of rows (``train_examples``, ...) and ``labels``.
        base: the base model's name, or its copy.
        target: the folder of the adapter, or of the model.
        history: a sentence: where the tensors come from.
        score: a list's line: what they are worth.
        merged: it is a whole model.
        ends: the tokens at which it stops to write, where its own settings do not name them all.
        begin: the token in front of a text that it continues, where its tokenizer puts none there.
    """
    task = make_task(recipe.task, list(about["labels"]))
    options, settings = task.model_options(), recipe.task
    data = ModelCardData(
        library_name="transformers" if merged else "peft",
        base_model=base.hub_name,
        tags=["federated-learning", "fedsa", recipe.algorithm, summary["variant"]],
        pipeline_tag=task.pipeline_tag,
    )
    plan = plan_of_the_run(summary)
    by_model = not merged and summary["variant"] == "vera"  # PEFT refuses to put it into a model of transformers' own
    text = _template().render(
        metadata=data.to_yaml(),
        merged=merged,
        client=repr(client),
        history=history,
        score=score,
        shared=", ".join(sent_in_words(plan)) or "nothing",
        kept=", ".join(kept_in_words(plan)) or "nothing",
        stayed=(
            "Kept at the client in the rounds, and put together afterwards where that was asked for"
            if recipe.adaptation.share_personal
            else "Never left the client"
        ),
        class_prior=summary.get("class_prior", False),
        about=about,
        base=base,
        base_shown=base.shown,
        base_folder=_relative(base, target),
        base_code=_base_code(base, target, options),
        names=list(options.get("id2label", {}).values()),
        task=task,
        ends=[] if merged else list(ends),
        begin=begin,
        t=settings,
        kind=settings.kind,
        fields=fields_of(getattr(settings, "prompt", None) or ""),
        auto="AutoImageProcessor" if task.takes_images else "AutoTokenizer",
        processor="processor" if task.takes_images else "tokenizer",
        pads=task.has_head and not task.takes_images and base.folder is None,
        model_given=by_model,
        given="model=model, tokenizer=tokenizer" if by_model else 'model="."',
        pipeline=settings.kind in _WITH_PIPELINE and (merged or base.folder is not None),
    )
    return ModelCard(text)


@functools.cache
def _template() -> Template:
    """Return the card's template; everything that strangers name goes through one of its filters."""
    engine = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701 (no HTML)
    engine.filters |= {
        "md": for_markdown,
        "code": for_markdown_code,
        "literal": lambda text: json.dumps(text, ensure_ascii=False),
        "py": _literal,
    }
    text = resources.files("fedsa.runs.export").joinpath("card.md.jinja").read_text(encoding="utf-8")
    return engine.from_string(text)


def _relative(base: Base, target: Path) -> str:
    """Return the way from an adapter's folder to the copy of its base model."""
    if base.folder is None:
        return ""
    return BASE if base.folder.parent == target else f"../{BASE}"


def _base_code(base: Base, target: Path, options: Mapping[str, Any]) -> str | None:
    """Return the arguments, as Python code, that load the base model; None: nobody else can load it."""
    if base.folder is not None:
        return _literal(_relative(base, target))
    if base.path is None:
        return None
    if base.hub_name is None:  # a folder of this machine, which is not named in a card
        return 'PeftConfig.from_pretrained(".").base_model_name_or_path'
    told = [] if base.revision is None else [f"revision={_literal(base.revision)}"]
    if "num_labels" in options:
        told.append(f"num_labels={options['num_labels']}")
    if "id2label" in options:
        names = ", ".join(f"{number}: {_literal(name)}" for number, name in options["id2label"].items())
        told.append(f"id2label={{{names}}}")
    return ", ".join([_literal(base.hub_name), *told])


def _literal(text: str) -> str:
    r"""Return a text as it stands in Python code within a fenced block of Markdown.

    >>> print(_literal('a "b"\n```'))
    "a \"b\"\n\x60\x60\x60"
    """
    return for_terminal(json.dumps(text, ensure_ascii=False)).replace("```", r"\x60\x60\x60")
