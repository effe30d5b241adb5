"""What an exported folder says of itself for programs, ``fedsa.json``: what the adapter's config has no place for.

Transformers and PEFT look for nothing of it beside an adapter: a ``config.json`` there would make the folder a whole
model, and PEFT warns of keys in its config that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from fedsa.errors import UserError
from fedsa.packages.parts import PREFIX
from fedsa.recipe import Recipe
from fedsa.runs.export.base import Base
from fedsa.system.sums import SUMS, changed_file
from fedsa.tasks import make_task
from fedsa.texts.json_text import parsed_json

__all__ = ["ABOUT", "About", "BaseOfAdapter", "about_of", "read_about"]

ABOUT = "fedsa.json"
_FORM = ConfigDict(strict=True, extra="ignore")


class BaseOfAdapter(BaseModel):
    """The base model that an adapter is for.

    Attributes:
        path: its name on the hub, or of a packaged part; None: it has none, and ``adapter_config.json`` may say where
            it is.
        revision: of a hub name.
        fingerprint: hash of its weights; None: it was used in 4 or 8 bits.
    """

    model_config = _FORM
    path: str | None = None
    revision: str | None = None
    fingerprint: str | None = None


class About(BaseModel):
    """What ``fedsa.json`` holds.

    Attributes:
        format: of this file.
        fedsa: the version that wrote it.
        kind: an ``adapter``, or a whole ``model`` with the adapter's update in it.
        client: whose it is.
        run: the run's id.
        round: whose tensors these are.
        task: the recipe's ``[task]``, with the prompt's template where there is one.
        labels: the label column's values, in order of their number.
        classes: names of the classes or tags, in order of their number; empty where there are none.
        model_options: what the base model's config has of the task (``num_labels``, ``id2label``, ``label2id``), as it
            stands in a ``config.json``.
        base: the base model.
        precision: that the run computed in.
    """

    model_config = _FORM
    format: Literal[1] = 1
    fedsa: str = ""
    kind: Literal["adapter", "model"] = "adapter"
    client: str
    run: str = ""
    round: NonNegativeInt = 0
    task: dict[str, Any]
    labels: list[str]
    classes: list[str] = []
    model_options: dict[str, Any] = {}
    base: BaseOfAdapter = BaseOfAdapter()
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def write(self, folder: Path) -> None:
        """Write the file."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (folder / ABOUT).write_text(text + "\n", encoding="utf-8")


def about_of(
    recipe: Recipe,
    labels: Sequence[str],
    base: Base,
    *,
    client: str,
    run: str,
    round: int,
    fingerprint: str | None,
    merged: bool = False,
) -> About:
    """Return what is to be said of a client's adapter.

    Args:
        recipe: the run's.
        labels: the label column's values, in order of their number.
        base: the base model as the adapter names it.
        client: the client's id.
        run: the run's id.
        round: whose tensors these are.
        fingerprint: of the base model as it was loaded.
        merged: it is a whole model.
    """
    options = make_task(recipe.task, labels).model_options()
    path = recipe.model.path if recipe.model.path.startswith(PREFIX) else base.hub_name
    return About(
        fedsa=version("fedsa"),
        kind="model" if merged else "adapter",
        client=client,
        run=run,
        round=round,
        task=recipe.task.model_dump(mode="json"),
        labels=list(labels),
        classes=list(options.get("id2label", {}).values()),
        model_options=options,
        base=BaseOfAdapter(
            path=path,
            revision=recipe.model.revision if base.hub_name else None,
            fingerprint=None if recipe.model.quantization else fingerprint,
        ),
        precision=recipe.compute.precision,
    )


def read_about(folder: Path) -> About:
    """Return what an exported folder says of itself, once all its files are found to be what was written.

    Raises:
        UserError: a file was changed, or it says nothing, or not in the form of this version.
    """
    _check_files(folder)
    path = folder / ABOUT
    try:
        return About.model_validate(parsed_json(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {ABOUT}, which says what the adapter was trained for: export it again with this version "
            "of fedsa, or use it as its README.md says"
        ) from None
    except ValidationError as error:
        first, *_ = error.errors(include_url=False, include_input=False)
        where = ".".join(str(part)[:40] for part in first["loc"])
        raise UserError(f"{path}, {where}: {first['msg']}: export the adapter again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): export the adapter again") from None


def _check_files(folder: Path) -> None:
    """Refuse an export whose files are not what was written; one of a version that listed no hashes is taken as it is.

    Raises:
        UserError: which file was changed, or cannot be read.
    """
    try:
        changed = changed_file(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read ({error.strerror or error})") from None
    if changed is not None:
        if not changed.exists():
            raise UserError(f"{changed} is missing, and {folder / SUMS} lists it: export the adapter again")
        raise UserError(
            f"{changed} is not as it was when {folder / SUMS} was written: export the adapter again; if you have "
            f"changed it on purpose, write that list again too (there: sha256sum * > {SUMS})"
        )
