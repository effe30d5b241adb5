"""New rows in, what clients' adapters say of them out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from fedsa.client.evaluation import Personal
from fedsa.client.evaluation import predict as ask
from fedsa.data.asked import AskedRows, Given, asked_of_objects, read_asked
from fedsa.errors import DataError, TrainingError, UserError, near
from fedsa.federation import encode_table
from fedsa.recipe import TaskSettings
from fedsa.runs.predict.sources import Loaded, Source, open_source
from fedsa.tasks.base import Encoded, IntArray, Prediction, Task
from fedsa.texts.words import cut

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fedsa.models import AdaptedModel

__all__ = ["ALL", "Predicted", "Predictor", "predict"]

ALL = "all"
"""In place of a client's id: every client."""

_ROWS = 1024
"""Rows that are asked at once: their outputs are in memory together, for every client of a pass."""


@final
@dataclass(frozen=True)
class Predicted:
    """What one client's adapter says of one row.

    Attributes:
        client: its id.
        row: the row's number, from 0.
        prediction: a class, a number, a text, or a list of tags.
        probabilities: of each class or choice, where there are some.
        about: what else is known, by name: each kind of task has names of its own.
    """

    client: str
    row: int
    prediction: str | float | list[str | None]
    probabilities: Mapping[str, float] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as one table of values that JSON can hold."""
        told: dict[str, Any] = {"client": self.client, "row": self.row, "prediction": self.prediction}
        if self.probabilities is not None:
            told["probabilities"] = dict(self.probabilities)
        return {**told, **self.about}


@final
class Predictor:
    """Clients' adapters of a run, or one that was exported, with their base model: loaded once, asked often.

    Args:
        source: the adapters. `Predictor.open` makes it from a path.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @cached_property
    def _loaded(self) -> Loaded:
        return self._source.load()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        round: str = "chosen",
        base: str | PreTrainedModel | AdaptedModel | Callable[[], PreTrainedModel] | None = None,
        tokenizer: Any = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> Predictor:
        """Open adapters. Their base model is loaded when they are asked first.

        Args:
            path: a run folder (also of a run that is not finished, and that of a site), or an exported adapter.
            round: of a run: ``chosen`` or ``final``; of one that is not finished, so far.
            base: the base model as it was before the run (it is copied), or a function that loads it: for a run of a
                model that was loaded in Python. Of an exported adapter also a name or a folder. None: loaded by its
                name.
            tokenizer: None: the model's own.
            on_progress: told what takes time.

        Raises:
            UserError: it is neither, or it is damaged.
        """
        tell = on_progress or (lambda text: None)
        return cls(open_source(Path(path).expanduser(), round=round, base=base, tokenizer=tokenizer, tell=tell))

    @property
    def clients(self) -> tuple[str, ...]:
        """Every client's id."""
        return self._source.clients

    @property
    def path(self) -> Path:
        """The folder that the adapters are of."""
        return self._source.path

    @property
    def round(self) -> int:
        """The round whose tensors are asked."""
        return self._source.round

    @property
    def notes(self) -> tuple[str, ...]:
        """Whole sentences on the adapters that a user should know."""
        return self._source.notes

    @property
    def settings(self) -> TaskSettings:
        """The settings of the task."""
        return self._source.settings

    def chosen(self, client: str | Sequence[str] | None) -> tuple[str, ...]:
        """Return the clients that are meant: one, several, or ``all``; None: the only one that there is.

        Raises:
            UserError: there is no such client, or none is named and there are several.
        """
        known = self.clients
        if client is None:
            if len(known) == 1:
                return known
            shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
            raise UserError(
                f"give --client ID, or --client {ALL} (in Python `client`): whose adapter is asked? There are {shown}"
            )
        wanted = (client,) if isinstance(client, str) else tuple(dict.fromkeys(client))
        if ALL in wanted:
            return known
        for each in wanted:
            if each not in known:
                raise UserError(f"{self._source.path} has no client {cut(each, 80)!r}; {near(each, known)}")
        return wanted

    def read(self, path: str | Path, *, split: str = "train") -> AskedRows:
        """Return the rows of a file or folder, of any kind that a recipe's ``data.path`` may name; or one picture.

        Raises:
            DataError: it cannot be read, it has no rows, or lacks what the task asks for.
        """
        return read_asked(str(path), self._source.settings, self._source.data, split=split)

    def predict(
        self,
        rows: Given | Path | AskedRows,
        *,
        client: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> Iterator[Predicted]:
        """Yield what clients' adapters say of rows: row by row, of each what every client's says.

        Args:
            rows: a text, several, tables of columns, a data set, or the path of a file (as a `pathlib.Path`).
            client: an id, several, or ``all``; None: the only client that there is.
            batch_size: rows of a forward pass; None: as the run's recipe says for evaluation.
            on_note: told in whole sentences what is to be known of the rows: what is cut off, say.

        Raises:
            UserError: no such client, the rows do not fit the task, or the base model is missing or another one.
            TrainingError: memory ran out.
        """
        clients = self.chosen(client)
        asked = self._rows(rows)
        encoded, task = self._encoded(asked)
        for note in (*asked.notes, *getattr(encoded, "notes", ())):
            if on_note is not None:
                on_note(note)
        return self._predicted(task, encoded, clients, len(asked.table), batch_size or self._source.batch_size)

    def _rows(self, rows: Given | Path | AskedRows) -> AskedRows:
        if isinstance(rows, AskedRows):
            return rows
        return self.read(rows) if isinstance(rows, Path) else asked_of_objects(rows, self._source.settings)

    def _encoded(self, asked: AskedRows) -> tuple[Encoded, Task]:
        """Return rows as the model reads them, and the task as it is with the model.

        Raises:
            DataError: with the file and line of the row that does not fit.
        """
        source = self._source
        loaded = self._loaded
        if type(loaded.task).predictions is Task.predictions:
            raise UserError(
                f"the task {type(loaded.task).__name__} does not say what it predicts of a row without an answer: give "
                "it the method `predictions`, and its `encode` the argument `answered` (docs/tasks.md)"
            )
        base: Any = loaded.model.model.get_base_model()
        try:
            made = encode_table(
                loaded.task,
                base,
                loaded.processor,
                asked.table,
                np.arange(len(asked.table)),
                image_size=source.settings.image_side,
                answered=False,
                tell=lambda text: None,
            )
        except DataError as error:
            raise DataError(_placed(str(error), asked.place)) from None
        if made.task.predicts_text and not getattr(made.task, "writes", True):
            raise UserError(f"{type(base).__name__} cannot write text, so there is nothing that it could answer with")
        return made.encoded, made.task

    def _predicted(
        self, task: Task, encoded: Encoded, clients: Sequence[str], count: int, batch_size: int
    ) -> Iterator[Predicted]:
        source, loaded = self._source, self._loaded
        together = min(source.together, len(clients)) if len(clients) > 1 else 0
        for start in range(0, count, _ROWS):
            rows: IntArray = np.arange(start, min(start + _ROWS, count))
            personal = (Personal(client, loaded.state(client), rows) for client in clients)
            by_client: dict[str, list[Prediction]] = {}
            try:
                for client, said in ask(
                    loaded.model,
                    task,
                    encoded,
                    personal,
                    batch_size=batch_size,
                    together=together,
                    pack=source.pack and together > 0,
                ):
                    by_client[client] = said
            except torch.OutOfMemoryError as error:
                raise TrainingError(
                    f"out of memory on {loaded.model.device}: lower --batch-size (in Python `batch_size`), now "
                    f"{batch_size}"
                ) from error
            for place, row in enumerate(rows.tolist()):
                for client in clients:
                    said_of_row = by_client[client][place]
                    yield Predicted(client, row, said_of_row.value, said_of_row.probabilities, said_of_row.about)


def predict(
    path: str | Path,
    rows: Given | Path,
    *,
    client: str | Sequence[str] | None = None,
    round: str = "chosen",
    base: str | PreTrainedModel | AdaptedModel | Callable[[], PreTrainedModel] | None = None,
    tokenizer: Any = None,
    batch_size: int | None = None,
    on_progress: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[Predicted]:
    """Return what clients' adapters say of new rows. To ask more than once, keep a `Predictor`.

    Args:
        path: as for `Predictor.open`, like ``round``, ``base``, ``tokenizer`` and ``on_progress``.
        rows: as for `Predictor.predict`, like ``client``, ``batch_size`` and ``on_note``.
        client: whose adapter is asked.
        round: whose tensors.
        base: the base model.
        tokenizer: its tokenizer or image processor.
        batch_size: rows of a forward pass.
        on_progress: told what takes time.
        on_note: told what is to be known of the adapters and the rows.

    Returns:
        Row by row, of each row what every client's adapter says.

    Raises:
        UserError: the folder, the client or the rows cannot be used.
    """
    predictor = Predictor.open(path, round=round, base=base, tokenizer=tokenizer, on_progress=on_progress)
    for note in predictor.notes:
        if on_note is not None:
            on_note(note)
    return list(predictor.predict(rows, client=client, batch_size=batch_size, on_note=on_note))


def _placed(message: str, place: Callable[[int], str]) -> str:
    """Return a message whose row is named as the user knows it: by file and line."""
    found = re.match(r"row (\d+)\b", message)
    return message if found is None else place(int(found[1])) + message[found.end() :]
