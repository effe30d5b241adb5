"""The card of a client's model: what it is, how it was trained, what goes in, how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from fedsa.algorithms.base import Algorithm
from fedsa.models import AdaptedModel
from fedsa.parts import PREFIX
from fedsa.recipe import OBJECTS, Recipe
from fedsa.tasks import make_task

if TYPE_CHECKING:
    pass

__all__ = ["card_of", "history_of", "score_of", "weights_note"]


_NO_NAME = "a model that was loaded in Python"


def _name(recipe: Recipe, model: AdaptedModel) -> str:
    """Return the name that a user can load the base model by, as far as it has one."""
    return recipe.model.path if recipe.model.path != OBJECTS else model.config.base_model_name_or_path or _NO_NAME


def history_of(recipe: Recipe, summary: Mapping[str, Any], number: int) -> str:
    """Return a card's sentence on where a client's tensors come from."""
    return (
        f"Trained with fedsa in a federation of {summary['clients']} clients by the method `{recipe.algorithm}` "
        f"({summary['source']}), adapter variant `{summary['variant']}`; this is round {number} of {summary['rounds']}."
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
            f"({after['examples']} rows)"
        )
    which = "test" if round == "chosen" else "test_final"
    if summary["evaluated_after"] != "aggregate":  # the tensors here are those after it
        which += "_after_aggregate"
    result = summary["per_client"][client].get(which)
    return (
        f"- Test {metric} on this client's own rows, after receiving the aggregate: {result[metric]:.4f} "
        f"({result['examples']} rows)"
        if result
        else f"- Test {metric} after receiving the aggregate: not measured in this run"
    )


def weights_note(algorithm: Algorithm) -> str:
    """Return what a card adds to a score where it was measured with weights that no file can hold."""
    if not algorithm.references:
        return ""
    return (
        "\n- **That is not quite what is here**: it was measured with the adapters "
        f"{' and '.join(algorithm.adapters)} weighed for each row by its likeness to {algorithm.references} training "
        "rows of the client, which static weights cannot do. Here each has weight 1, as in training; that was not "
        "measured"
    )


def card_of(
    recipe: Recipe,
    model: AdaptedModel,
    summary: Mapping[str, Any],
    client: str,
    about: Mapping[str, Any],
    *,
    history: str,
    score: str,
    merged: bool = False,
) -> ModelCard:
    """Return the card of a client's model.

    Args:
        recipe: the run's.
        model: whose base is named.
        summary: the run's.
        client: its id.
        about: its numbers of rows (``train_examples``, ...) and ``labels``.
        history: a sentence: where the tensors come from.
        score: a list's line: what they are worth.
        merged: it is a whole model.
    """
    base_name = _name(recipe, model)
    local = base_name == _NO_NAME or base_name.startswith(PREFIX) or Path(base_name).exists()
    labels = list(about["labels"])
    task = make_task(recipe.task, labels)
    data = ModelCardData(
        library_name="transformers" if merged else "peft",
        base_model=None if local else base_name,
        tags=["federated-learning", "fedsa", recipe.algorithm, summary["variant"]],
        pipeline_tag=task.pipeline_tag,
    )
    shared = ", ".join(entry["factor"] for entry in summary["sharing_plan"] if entry["sent"]) or "nothing"
    kept = (
        ", ".join(entry["factor"] for entry in summary["sharing_plan"] if entry["trained"] and not entry["sent"])
        or "nothing"
    )
    stayed = "Never left the client"
    if recipe.adaptation.share_personal:
        stayed = "Kept at the client in the rounds, and put together afterwards where that was asked for"
    classes = ""
    if recipe.task.has_classes:
        named = ", ".join(f"{index} = {name}" for index, name in enumerate(labels))
        classes = f"- Classes, in order of their number: {named}\n"
    outputs = task.model_options().get("num_labels")
    auto, what = ("AutoImageProcessor", "processor") if task.takes_images else ("AutoTokenizer", "tokenizer")
    load = (
        f"""from transformers import {task.auto_model}, {auto}

model = {task.auto_model}.from_pretrained("FOLDER")
{what} = {auto}.from_pretrained("FOLDER")"""
        if merged
        else f"""from peft import PeftModel
from transformers import {task.auto_model}, {auto}

base = {task.auto_model}.from_pretrained("BASE"{f", num_labels={outputs}" if task.has_head else ""})
model = PeftModel.from_pretrained(base, "FOLDER").eval()
{what} = {auto}.from_pretrained("FOLDER")"""
    )
    return ModelCard(f"""---
{data.to_yaml()}
---

# {"Model" if merged else "Adapter"} of client {client!r}

{history}
Averaged over clients: {shared}. {stayed}: {kept}.

- Base model: {base_name if base_name == _NO_NAME else f"`{base_name}`"}
{classes}- Rows of this client: {about["train_examples"]} for training, {about["validation_examples"]} for validation, \
{about["test_examples"]} for test
{score}

```python
{load}
```
""")
