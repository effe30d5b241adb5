"""What is looked at before transformers opens a model: its files may be a stranger's.

Weights are read from safetensors files inside the model's own folder, and code that comes with a model runs only where
the user has allowed it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils.hub import cached_file

from fedsa.errors import ModelError
from fedsa.system.permissions import HOW_TO_ALLOW, code_allowed

__all__ = ["check_files", "no_pickle", "own_code", "own_code_refusal"]

_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_MOST_LAYERS, _LARGEST = 10_000, 10**8
_SIZES = ("size", "position", "dim", "head", "expert", "channels")
_UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_MOST_LETTERS = 200


def own_code() -> dict[str, Any]:
    """The arguments of ``from_pretrained`` about a model's own code: it runs only where it is allowed."""
    return {"trust_remote_code": code_allowed()}


def own_code_refusal(path: str) -> ModelError:
    """The error of a model that needs code of its own."""
    return ModelError(
        f"model.path = {path!r}: the model needs code that comes with it, and that is not run; {HOW_TO_ALLOW}"
    )


def check_files(path: str, location: str, revision: str | None = None) -> None:
    """Refuse a model of which something would be opened that must not be, or that is no model.

    Args:
        path: as the recipe names it.
        location: a folder, or a name on the hub.
        revision: on the hub.

    Raises:
        ModelError: it is an adapter, its weights are not all in safetensors files inside its folder, or its config is
            none.
    """
    folder = Path(location) if Path(location).is_dir() else None

    def read(name: str) -> Any:
        file = folder / name if folder else _of_the_hub(location, name, revision)
        return _json(path, file) if file is not None and file.is_file() else None

    adapter = read(_ADAPTER)
    if adapter is not None:
        raise _adapter_refusal(path, adapter)
    config = read("config.json")
    if config is not None:
        _check_config(path, config)
    single = folder is not None and (folder / "model.safetensors").is_file()
    index = None if single else read(_INDEX)
    if index is not None:
        _check_index(path, index)
    elif folder is not None and not single:
        _require_safetensors(path, folder)


@contextmanager
def no_pickle(path: str) -> Iterator[None]:
    """A context in which nothing is read by pickle, whatever a model's files name.

    Args:
        path: the model, as the recipe names it.

    Raises:
        ModelError: something would have been.
    """
    given: Callable[..., Any] = torch.load

    def refuse(file: Any, *args: Any, **kwargs: Any) -> Any:
        raise ModelError(f"model.path = {path!r}: {file} would be opened by pickle, which can run code; {_CONVERT}")

    torch.load = refuse  # type: ignore[assignment]  # it takes whatever the other does
    try:
        yield
    finally:
        torch.load = given


_CONVERT = "take a copy of the model in safetensors (`save_pretrained` of transformers writes it)"


def _of_the_hub(location: str, name: str, revision: str | None) -> Path | None:
    """Return a file of a model on the hub, in the cache; None where it has none, or the hub cannot be asked."""
    try:
        found = cached_file(
            location,
            name,
            revision=revision or "main",
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # what is wrong with the name is told where the model itself is fetched
        return None
    return None if found is None else Path(found)


def _json(path: str, file: Path) -> Any:
    """Return the table that is in a JSON file.

    Raises:
        ModelError: there is none in it.
    """
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model.path = {path!r}: {file.name} cannot be read ({_short(error)}): {_ANEW}") from None
    if not isinstance(table, dict):
        raise ModelError(f"model.path = {path!r}: {file.name} holds a {type(table).__name__}, not a table: {_ANEW}")
    return table


_ANEW = "take the model's folder anew"


def _adapter_refusal(path: str, adapter: Mapping[str, Any]) -> ModelError:
    base = adapter.get("base_model_name_or_path")
    named = f" ({_short(base)!r})" if isinstance(base, str) and base else ""
    return ModelError(
        f"model.path = {path!r} is an adapter, and a whole model is needed: give the base model that it is for{named}, "
        "or merge the adapter into it first (`fedsa export RUN --client CLIENT --merge --to FOLDER`) and give that"
    )


def _check_config(path: str, config: Mapping[str, Any]) -> None:
    """Refuse a ``config.json`` that names weights of its own, or that no machine could build."""
    weights = config.get("transformers_weights")
    if weights is not None:
        _check_name(path, "transformers_weights in config.json", weights)
    for name, value in config.items():
        most = _MOST_LAYERS if "layer" in name else _LARGEST if any(part in name for part in _SIZES) else None
        if most is not None and type(value) is int and value > most:
            raise ModelError(f"model.path = {path!r}: {_short(name)} in config.json is over {most:,}: {_ANEW}")
    kernel = config.get("attn_implementation")
    if isinstance(kernel, str) and "/" in kernel and not code_allowed():
        raise own_code_refusal(path)


def _check_index(path: str, index: Mapping[str, Any]) -> None:
    """Refuse an index that names anything but safetensors files beside it."""
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"model.path = {path!r}: {_INDEX} has no table weight_map: {_ANEW}")
    for name in {str(name): name for name in places.values()}.values():
        _check_name(path, _INDEX, name)


def _check_name(path: str, where: str, name: Any) -> None:
    plain = isinstance(name, str) and name == Path(name).name and "\\" not in name
    if not plain or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise ModelError(
            f"model.path = {path!r}: {where} names {_short(name)!r}, which is no safetensors file inside the model's "
            f"folder; {_CONVERT}"
        )


def _require_safetensors(path: str, folder: Path) -> None:
    """Refuse a folder whose weights are in other files only, and say which."""
    others = sorted(file.name for file in folder.iterdir() if file.suffix in _UNSAFE)
    if others and (folder / "config.json").is_file():
        raise ModelError(
            f"model.path = {path!r}: the folder has {others[0]} and no model.safetensors; pickle can run code, so only "
            f"safetensors files are read: {_CONVERT}"
        )


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + " ..."
