"""An exported adapter, read back: the base model with its tensors, computing as in the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from peft import PeftConfig, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedsa.adapters.factors import key_of
from fedsa.errors import ModelError, UserError
from fedsa.federation import fresh_base, load_processor
from fedsa.models import AdaptedModel, load_base, plain_fingerprint, quiet, resolve_compute
from fedsa.recipe import ComputeSettings, ModelSettings, TaskSettings, task_settings
from fedsa.runs.export.about import About, read_about
from fedsa.runs.export.base import BASE
from fedsa.tasks import make_task
from fedsa.tasks.base import Task
from fedsa.types import State

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LoadedAdapter", "load_adapter", "task_of"]

_WEIGHTS = "adapter_model.safetensors"

T = TypeVar("T")


class LoadedAdapter(NamedTuple):
    """An exported adapter, ready to be used.

    Attributes:
        about: what its folder says of it.
        task: what it is for.
        model: the base with the adapter.
        state: the adapter's tensors.
        processor: the tokenizer, or the image processor.
    """

    about: About
    task: Task
    model: AdaptedModel
    state: State
    processor: Any


def load_adapter(
    folder: Path,
    *,
    base: str | PreTrainedModel | None = None,
    tokenizer: Any = None,
    tell: Callable[[str], None] = lambda text: None,
) -> LoadedAdapter:
    """Load an adapter that `export` has written, into its base model.

    Args:
        folder: the adapter's.
        base: its base model: a hub name, a folder, ``part:NAME``, or the model itself, which is adapted in place. None:
            what the folder names.
        tokenizer: None: the one beside the adapter.
        tell: told what takes time.

    Raises:
        UserError: a file is missing or damaged, it is a whole model, or the base is missing.
        ModelError: the base is another one than the adapter's, or cannot be loaded.
    """
    about = read_about(folder)
    settings = task_of(folder, about)
    task = make_task(settings, about.labels)
    config = _config(folder)
    compute = resolve_compute(ComputeSettings(precision=about.precision))
    tell("loading the model")
    if base is None or isinstance(base, str):
        place = _place(folder, about, config) if base is None else ModelSettings(path=base)
        plain, _ = load_base(
            place, auto_model=task.auto_model, options=task.model_options(), seed=0, compute=compute, on_progress=tell
        )
    else:
        plain = fresh_base(base)
    if about.base.fingerprint not in (None, _made(folder, lambda: plain_fingerprint(plain, config))):
        raise ModelError(
            f"{folder}: the base model{f' {base!r}' if isinstance(base, str) else ''} has other weights than the one "
            "that the adapter was trained on, so the adapter does not fit it: give that one (--base, in Python `base`)"
        )
    config.base_model_name_or_path = None  # PEFT warns where that is another place than the base was loaded from
    options: dict[str, Any] = {"seed": 0, "device": compute.device, "precision": compute.precision}
    model = _made(folder, lambda: AdaptedModel(plain, config, **options))
    _write(folder, model)
    processor = tokenizer or load_processor(ModelSettings(path=str(folder)), task, settings.image_side)
    return LoadedAdapter(about, task, model, model.read(model.keys), processor)


def _made(folder: Path, make: Callable[[], T]) -> T:
    """Make something by an adapter's config, whose values PEFT takes as they are.

    Raises:
        UserError: nothing can be made by it.
    """
    try:
        return make()
    except UserError:
        raise
    except Exception as error:  # a wrong value fails anywhere
        path = folder / "adapter_config.json"
        raise UserError(f"{path} makes no adapter of the base model ({str(error)[:300]}): export it again") from error


def task_of(folder: Path, about: About) -> TaskSettings:
    """Return the settings of the task that an exported adapter is for.

    Raises:
        UserError: the folder holds a whole model, or the settings do not fit this version of fedsa.
    """
    if about.kind == "model":
        raise UserError(
            f"{folder} holds a whole model, which transformers loads by itself: README.md in it shows how. `fedsa "
            "predict` takes a run folder, or an adapter that was exported without --merge (in Python `merge`)"
        )
    try:
        return task_settings(about.task)
    except ValueError as error:
        raise UserError(f"{folder}: its task does not fit this version of fedsa ({error}): export it again") from None


def _config(folder: Path) -> PeftConfig:
    try:
        with quiet():
            config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder / 'adapter_config.json'} is damaged ({error}): export the adapter again") from error
    config.inference_mode = False
    return config


def _place(folder: Path, about: About, config: PeftConfig) -> ModelSettings:
    """Return where the base model is: its copy beside the adapter, what the adapter's config names, or its own name.

    Raises:
        UserError: none of them is there.
    """
    for place in _copies(folder, config):
        if (place / "config.json").is_file():
            return ModelSettings(path=str(place))
    if about.base.path is None:
        raise UserError(
            f"{folder}: its base model is not where {'adapter_config.json says' if _named(config) else 'it was'}, and "
            "it has no name that it could be loaded by: say where it is with --base (in Python `base`)"
        )
    return ModelSettings(path=about.base.path, revision=about.base.revision)


def _copies(folder: Path, config: PeftConfig) -> Iterator[Path]:
    yield folder / BASE
    yield folder.absolute().parent / BASE
    if _named(config):
        yield Path(_named(config))


def _named(config: PeftConfig) -> str:
    """Return the folder that an adapter's config names as its base; empty where it names none."""
    path = config.base_model_name_or_path or ""
    return path if os.path.isabs(path) else ""  # noqa: PTH117


def _write(folder: Path, model: AdaptedModel) -> None:
    """Write an adapter's tensors into a model.

    Raises:
        UserError: the file is missing or damaged.
        ModelError: the tensors are not those of the adapter.
    """
    path = folder / _WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): export the adapter again") from None
    try:
        result: Any = set_peft_model_state_dict(model.model, tensors, adapter_name=model.adapters[0])
    except (RuntimeError, KeyError, ValueError) as error:
        raise ModelError(f"{path} does not fit the base model ({str(error)[:300]}): give the adapter's own") from None
    missing = [name for name in result.missing_keys if key_of(name, trained=False) is not None]
    strange = [*result.unexpected_keys, *missing]
    if strange:
        raise ModelError(
            f"{path} and the adapter's config do not say the same tensors ({', '.join(strange[:3])}): export it again"
        )
