"""Load what belongs to a model with transformers: from where, quietly, and what to say when it cannot be loaded."""

from __future__ import annotations

import contextlib
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import transformers
from safetensors import SafetensorError

from fedsa.errors import ModelError
from fedsa.models.converted import converted
from fedsa.models.opening import own_code_refusal
from fedsa.packages.parts import PREFIX, part_folder
from fedsa.recipe import ModelSettings

__all__ = ["WRITES", "location_of", "not_loadable", "quiet"]

_OF_LOADING = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)

WRITES = {"tokenizer": "tokenizer.save_pretrained(FOLDER)", "image processor": "processor.save_pretrained(FOLDER)"}
"""What comes with a model, and how it is written into its folder."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence loading bars and reports of transformers, and the warnings that no user can act on."""
    logger = transformers.utils.logging
    verbosity, bars = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity_error()
    logger.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT then sets it right
            warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA")  # PEFT's own export is not used
            yield
    finally:
        logger.set_verbosity(verbosity)
        if bars:
            logger.enable_progress_bar()


def location_of(path: str, on_progress: Callable[[str], None] | None) -> str:
    """The place that transformers loads a model from: a hub name, or a folder (a part is fetched first)."""
    if path.startswith(PREFIX):
        return str(converted(part_folder(path.removeprefix(PREFIX), on_progress=on_progress), on_progress))
    return str(converted(Path(path), on_progress)) if Path(path).is_dir() else path


def not_loadable(settings: ModelSettings, error: Exception, what: str = "model") -> ModelError:
    """The error where transformers cannot load a model, its tokenizer or its image processor.

    Args:
        settings: where it is.
        error: what transformers said.
        what: model, tokenizer or image processor.
    """
    if "trust_remote_code" in str(error):
        return own_code_refusal(settings.path)
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if first.rstrip().endswith(":"):  # a list follows
        first = str(error)
    first = textwrap.shorten(first, 300, placeholder=" ...")
    if "ignore_mismatched_sizes" in str(error):  # transformers tells what does not fit in a report that is silenced
        other = "the checkpoint's head has another number of classes than the task"
        mend = "take the model without that head, mend task.labels, or see if its config.json is that of these weights"
        return ModelError(f"model.path = {settings.path!r}: {other}; {mend}")
    if what == "model" and not isinstance(error, _OF_LOADING):  # a model's own code, to a config it was not written for
        other = f"transformers cannot make a model of its config.json ({type(error).__name__}: {first})"
        return ModelError(f"model.path = {settings.path!r}: {other}; take the model anew")
    headless = re.search(
        r"Unrecognized configuration class .*?(\w+)Config'?>? for this kind of AutoModel: (\w+)", first
    )
    if headless:
        return ModelError(
            f"model.path = {settings.path!r}: transformers has no {headless[2]} for a model of this kind "
            f"({headless[1]}), so it has no head for this task: take another model, or another task.kind"
        )
    if Path(settings.path).exists():
        write = WRITES.get(what)
        mend = f"; write it there with {write}, or copy its files from where the model is from" if write else ""
        return ModelError(
            f"model.path = {settings.path!r}: the folder holds no {what} that transformers can load: "
            f"{textwrap.shorten(first, 200, placeholder=' ...')}{mend}"
        )
    return ModelError(
        f"model.path = {settings.path!r}: there is no such local folder, and the hub did not give a {what} of that "
        f"name ({first}); check the name, the network, or the token for a gated model"
    )
