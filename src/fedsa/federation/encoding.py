"""A federation's rows as its model reads them: tokens or pixels."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsa.data.rows import DealtRows
from fedsa.errors import FetchError, ModelError
from fedsa.federation.base_models import load_processor
from fedsa.federation.checks import check_tokens
from fedsa.models import (
    empty_base,
    fit_padding,
    image_side,
    image_tokens,
    padding_side,
    position_limit,
    with_image_size,
)
from fedsa.recipe import ModelSettings, TaskSettings
from fedsa.tasks import make_task
from fedsa.tasks.base import Encoded, IntArray, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

__all__ = ["EncodedRows", "encode_rows", "encode_table", "notes_on_texts"]


class EncodedRows(NamedTuple):
    """All rows of a federation, encoded.

    Attributes:
        task: fitted to the model.
        processor: the tokenizer, or the image processor at the size of the task.
        encoded: the rows.
        limit: the most tokens that the model takes in one row; None: rows are images.
    """

    task: Task
    processor: Any
    encoded: Encoded
    limit: int | None


def encode_rows(
    task: Task,
    base: PreTrainedModel,
    processor: Any,
    rows: DealtRows,
    *,
    image_size: int | None = None,
    tell: Callable[[str], None],
) -> EncodedRows:
    """Return the rows that clients hold, encoded.

    Args:
        task: encodes them.
        base: the base model; its config gets the padding token.
        processor: its tokenizer, which gets a padding token where it has none, or its image processor.
        rows: all rows, and who holds which.
        image_size: of images, pixels of the side; None: what the processor says.
        tell: told what takes time.

    Raises:
        UserError: the task, the model and the rows do not fit together.
    """
    used = np.unique(np.concatenate([part for parts in rows.partition.clients.values() for part in parts]))
    return encode_table(task, base, processor, rows.table, used, image_size=image_size, tell=tell)


def encode_table(
    task: Task,
    base: PreTrainedModel,
    processor: Any,
    table: Dataset,
    used: IntArray,
    *,
    image_size: int | None = None,
    answered: bool = True,
    tell: Callable[[str], None],
) -> EncodedRows:
    """Return rows of a table, encoded.

    Args:
        task: encodes them.
        base: as for `encode_rows`.
        processor: as for `encode_rows`.
        table: all rows.
        used: the numbers of those that are encoded.
        image_size: as for `encode_rows`.
        answered: the rows have answers; False: they are to be predicted.
        tell: told what takes time.

    Raises:
        UserError: the task, the model and the rows do not fit together.
    """
    how = {} if answered else {"answered": False}  # a task of one's own that predicts nothing need not know it
    if task.takes_images:
        processor = with_image_size(processor, image_size)
        tell("reading images")
        tokens = image_tokens(base, image_side(processor))
        encoded = task.encode(table, used, copy.deepcopy(processor), limit=tokens, **how)
        return EncodedRows(task, processor, encoded, None)
    fit_padding(base, processor)
    task = task.fitted(base, processor)
    tell("tokenising")
    limit = position_limit(base, processor)
    own = copy.deepcopy(processor)  # it keeps how it was called
    own.padding_side = padding_side(base)
    encoded = task.encode(table, used, own, limit=limit, **how)
    check_tokens(base, processor, encoded)
    return EncodedRows(task, processor, encoded, limit)


def notes_on_texts(
    model: ModelSettings,
    task_settings: TaskSettings,
    rows: DealtRows,
    *,
    tokenizer: Any = None,
    on_progress: Callable[[str], None] | None = None,
) -> tuple[str, ...]:
    """Return sentences on rows of texts as a model's tokenizer reads them; no weights are loaded.

    They are those that a run tells: what is cut, and what is not known. Nothing of images, and of a task of one's own,
    whose code is not run here.

    Args:
        model: the recipe's ``[model]``.
        task_settings: its ``[task]``.
        rows: its rows.
        tokenizer: the model's; None: it is loaded.
        on_progress: told what takes time.

    Raises:
        DataError: rows that a run refuses, too.
    """
    tell = on_progress or (lambda text: None)
    if task_settings.is_own:
        return ()
    task = make_task(task_settings, rows.label_names)
    if task.takes_images:
        return ()
    try:
        base = empty_base(model, auto_model=task.auto_model, options=task.model_options(), on_progress=tell)
        if tokenizer is None:
            tell("loading the tokenizer")
            tokenizer = load_processor(model, task)
        fit_padding(base, tokenizer)
    except (ModelError, FetchError) as error:
        why = textwrap.shorten(str(error), 300, placeholder=" ...")
        return (f"It is not known how long the rows are, for the model's tokenizer cannot be had: {why}.",)
    notes: tuple[str, ...] = getattr(encode_rows(task, base, tokenizer, rows, tell=tell).encoded, "notes", ())
    return notes
