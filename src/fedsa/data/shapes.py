"""Which columns of a table hold conversations, or pairs of answers: found by looking, and read as one shape.

What comes out are columns of texts: each is a list of turns, written as JSON (`fedsa.data.conversations`). So the files
of several clients need not have one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, final

from fedsa.data.conversations import Turns, common_beginning, in_words, turns_of, written
from fedsa.data.reading.base import Shaped
from fedsa.data.reading.tables import Table, as_dataset
from fedsa.errors import DataError
from fedsa.recipe import TaskSettings
from fedsa.texts.json_text import parsed_json

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from fedsa.data.reading.base import Shape

__all__ = ["LISTS", "dataset_in_shape", "pair_of", "shape_of"]

LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
"""Columns that hold whole conversations."""
_ASKED = ("instruction", "prompt", "question", "query")
_MORE = ("input", "context")
_SAID = ("output", "completion", "response", "answer")
_SYSTEM = ("system", "system_prompt")
_HISTORY = "history"
_NOTHING: tuple[Any, ...] = (None, "", [], "[]")
"""Cells without a turn, also as JSON files have them."""

_Row = Mapping[str, Any]


class _MisfitError(ValueError):
    """What is wrong with a cell, with the name of its column."""

    def __init__(self, column: str, what: object) -> None:
        super().__init__(f"column {column!r} {what}")


class _Found(NamedTuple):
    """How the rows of a table are read: from which columns, what to say of it, and what is made of a row."""

    sources: tuple[str, ...]
    what: str
    make: Callable[[_Row], tuple[Turns, ...]]


def shape_of(task: TaskSettings, kept: Iterable[str] = (), *, answered: bool = True) -> Shape | None:
    """Return the shape that a task's rows are read in; None: its columns are read as they are.

    Args:
        task: the recipe's ``[task]``.
        kept: columns that are needed besides.
        answered: the rows have answers; False: they are to be predicted, and the last answer is left away.
    """
    named, others = task.given_columns, frozenset(kept)
    if task.shape == "conversation":
        return _Conversations(named, others, answered)
    return _Preferences(named, others) if task.shape == "preference" else None


def dataset_in_shape(
    table: datasets.Dataset, shape: Shape, place: Callable[[int], str], where: str
) -> tuple[datasets.Dataset, Shaped]:
    """Return a data set in a shape, and how it was read.

    Args:
        table: the rows.
        shape: what they are made into.
        place: of a row number: where the row is, for messages.
        where: what the rows are, for messages.

    Raises:
        DataError: it does not fit.
    """
    import datasets

    read = shape(table.with_format("arrow")[:], place, where)
    features = {
        name: datasets.Value("string") if name in shape.columns else table.features[name]
        for name in read.table.column_names
    }
    return as_dataset(Table(read.table, features)), read


def pair_of(names: Iterable[str], *, answered: bool = True) -> tuple[str, str | None, str | None] | None:
    """Return the columns of a question, of what belongs to it, and of its answer; None: there are no such columns.

    >>> pair_of(["instruction", "input", "output"]), pair_of(["question", "answer"]), pair_of(["text"])
    (('instruction', 'input', 'output'), ('question', None, 'answer'), None)
    """
    known = list(names)
    asked = next((name for name in _ASKED if name in known), None)
    said = next((name for name in _SAID if name in known), None)
    if asked is None or (said is None and answered):
        return None
    return asked, next((name for name in _MORE if name in known and asked == "instruction"), None), said


@final
@dataclass(frozen=True)
class _Conversations:
    """Conversations, in a column ``messages``."""

    named: Mapping[str, str]
    kept: frozenset[str]
    answered: bool

    columns = ("messages",)

    @property
    def sources(self) -> frozenset[str]:
        """Every column that is looked at."""
        if self.named:
            return frozenset({*self.named.values(), *_SYSTEM})
        return frozenset({*LISTS, *_ASKED, *_MORE, *_SAID, *_SYSTEM, _HISTORY})

    def __call__(self, table: pa.Table, place: Callable[[int], str], where: str, others: Sequence[str] = ()) -> Shaped:
        """Return a table in the shape."""
        return _shaped(self, table, place, self._found(table, where, others))

    def _found(self, table: pa.Table, where: str, others: Sequence[str]) -> _Found:
        names = table.column_names
        system = next((name for name in _SYSTEM if name in names), None)
        wanted = [self.named["messages"]] if self.named else [name for name in LISTS if name in names]
        for name in wanted:
            said = in_words(_first(table, name)) if name in names else None
            if said is not None or (name in names and (self.named or not self.answered)):
                told = f"column {name!r}" + (f" ({said})" if said else "")
                return self._of_lists(name, system, f"conversations are read from {told}")
        pair = None if self.named else pair_of(names, answered=self.answered)
        if pair is None:
            looked = repr(wanted[0]) if self.named else "messages, conversations, instruction and output, ..."
            raise DataError(
                f"{where}: no column holds conversations (looked for: {looked}): name it as task.messages; the "
                f"columns are: {', '.join([*names, *others])}"
            )
        asked, more, answer = pair if self.answered else (*pair[:2], None)
        history = _HISTORY if _HISTORY in names else None
        sources = tuple(each for each in (asked, more, answer, history, system) if each)
        alpaca = ", as in Alpaca" if (asked, answer) == ("instruction", "output") else ""
        *before, last = [repr(each) for each in (asked, more, answer) if each]
        told = f"{', '.join(before)} and {last}" if before else last
        return _Found(
            sources,
            f"conversations are read from the {'columns' if before else 'column'} {told}{alpaca}",
            lambda row: (self._cut(_of_pair(row, asked, more, answer, history, system), answer or asked),),
        )

    def _of_lists(self, name: str, system: str | None, what: str) -> _Found:
        def make(row: _Row) -> tuple[Turns, ...]:
            return (self._cut(_with_system(_turns(row, name, "user"), row, system), name),)

        return _Found((name, *((system,) if system else ())), what, make)

    def _cut(self, turns: Turns, column: str) -> Turns:
        """Return the turns as far as they are needed."""
        if not self.answered:
            while turns and turns[-1]["role"] == "assistant":
                turns = turns[:-1]
            if not turns:
                raise _MisfitError(column, "has no turn of the user's")
        elif turns:
            _require_learned(turns, column)
        return turns


@final
@dataclass(frozen=True)
class _Preferences:
    """A conversation so far, the preferred answer to it, and the other one: ``prompt``, ``chosen``, ``rejected``."""

    named: Mapping[str, str]
    kept: frozenset[str]

    columns = ("prompt", "chosen", "rejected")

    @property
    def sources(self) -> frozenset[str]:
        """Every column that is looked at."""
        return frozenset({*self.named.values(), *LISTS, *_ASKED, *_MORE, *_SYSTEM})

    def __call__(self, table: pa.Table, place: Callable[[int], str], where: str, others: Sequence[str] = ()) -> Shaped:
        """Return a table in the shape."""
        return _shaped(self, table, place, self._found(table, where, others))

    def _found(self, table: pa.Table, where: str, others: Sequence[str]) -> _Found:
        names = table.column_names
        better, worse = self.named["chosen"], self.named["rejected"]
        missing = [name for name in (better, worse, self.named.get("prompt")) if name and name not in names]
        if missing:
            raise DataError(
                f"{where}: no column {missing[0]!r}: name the columns of the two answers as task.chosen and "
                f"task.rejected; the columns are: {', '.join([*names, *others])}"
            )
        asked = self.named.get("prompt") or next((name for name in ("prompt", *LISTS, *_ASKED) if name in names), None)
        more = next((name for name in _MORE if name in names and asked == "instruction"), None)
        system = next((name for name in _SYSTEM if name in names), None)
        whole = _holds_prompt(_first(table, better))
        if asked is None and not whole:
            raise DataError(
                f"{where}: no column says what {better!r} and {worse!r} answer (looked for: prompt, messages, "
                f"question, instruction): name it as task.prompt; the columns are: {', '.join([*names, *others])}"
            )
        told = "what both begin with" if whole else " and ".join(repr(each) for each in (asked, more) if each)
        used = (system,) if whole else (asked, more, system)

        def make(row: _Row) -> tuple[Turns, ...]:
            answers = [_turns(row, name, "assistant") for name in (better, worse)]
            if not all(answers):  # an empty cell: refused or left out as any other
                return max(answers, key=len), *answers
            if any(each[0]["role"] != "assistant" for each in answers):
                before = common_beginning(*answers)
                if not before:
                    raise _MisfitError(better, f"and column {worse!r} have no beginning in common, and so no prompt")
                answers = [each[len(before) :] for each in answers]
            else:
                before = _of_pair(row, asked, more, None, None, None) if asked else []
            for name, each in zip((better, worse), answers, strict=True):
                _require_learned(each, name)
            return _with_system(before, row, system), *answers

        return _Found(
            tuple(each for each in (better, worse, *used) if each),
            f"pairs of answers are read from the columns {better!r} and {worse!r}; the prompt is {told}",
            make,
        )


def _holds_prompt(cell: Any) -> bool:
    """Whether an answer's cell begins with what is asked."""
    try:
        turns = turns_of(cell, role="assistant")
    except ValueError:
        return False
    return bool(turns) and turns[0]["role"] != "assistant"


def _shaped(
    shape: _Conversations | _Preferences, table: pa.Table, place: Callable[[int], str], found: _Found
) -> Shaped:
    """Return a table with the shape's columns in the place of those that they are made of.

    Raises:
        DataError: with the row that does not fit.
    """
    import pyarrow as pa

    cells: list[list[str | None]] = [[] for _ in shape.columns]
    columns = {name: table[name].to_pylist() for name in found.sources}
    first = found.sources[0]
    for row, values in enumerate(zip(*columns.values(), strict=True)):
        given = dict(zip(columns, values, strict=True))
        try:
            made: Sequence[Turns] = [[] for _ in cells] if given[first] in _NOTHING else found.make(given)
        except _MisfitError as error:
            raise DataError(f"{place(row)}: {error}") from None
        for column, turns in zip(cells, made, strict=True):
            column.append(written(turns))
    rest = [name for name in table.column_names if name in shape.kept and name not in shape.columns]
    unread = [name for name in table.column_names if name not in found.sources and name not in rest]
    kept = table.select(rest)
    for name, column in zip(shape.columns, cells, strict=True):
        kept = kept.append_column(name, pa.chunked_array([pa.array(column, pa.string())]))
    return Shaped(kept, tuple(unread), found.what)


def _turns(row: _Row, column: str, role: str) -> Turns:
    """Return the turns of a cell; none of an empty one.

    Raises:
        _MisfitError: it holds no turns.
    """
    if row[column] in _NOTHING:
        return []
    try:
        return turns_of(row[column], role=role)
    except ValueError as error:
        raise _MisfitError(column, error) from None


def _require_learned(turns: Turns, column: str) -> None:
    """Refuse turns of which nothing is to be learned.

    Raises:
        _MisfitError: no turn is the assistant's, or none of these is to be learned.
    """
    own = [turn for turn in turns if turn["role"] == "assistant"]
    if not own:
        raise _MisfitError(column, "has no turn of the assistant's, so there is nothing to learn: leave the row out")
    if all(turn.get("train") is False for turn in own):
        raise _MisfitError(
            column,
            "has no turn of the assistant's that is to be learned (all have weight = 0 or train = false): leave the "
            "row out",
        )


def _of_pair(
    row: _Row, asked: str, more: str | None, answer: str | None, history: str | None, system: str | None
) -> Turns:
    """Return the turns of a question with its answer, behind what was said before."""
    turns: Turns = []
    for exchange in _exchanges(row.get(history)) if history else ():
        if not (isinstance(exchange, list) and len(exchange) == 2):
            raise _MisfitError(history or _HISTORY, "is no list of questions with their answers")
        try:
            turns += turns_of(exchange[0], role="user") + turns_of(exchange[1], role="assistant")
        except ValueError as error:
            raise _MisfitError(history or _HISTORY, error) from None
    question = _turns(row, asked, "user")
    if not question:
        return []
    added = row.get(more) if more else None
    if added not in (None, ""):
        question[-1] = {**question[-1], "content": f"{question[-1]['content']}\n\n{added}"}
    turns += question
    if answer is not None:
        said = _turns(row, answer, "assistant")
        if not said:
            return []  # an empty cell: refused or left out as any other
        turns += said
    return _with_system(turns, row, system)


def _exchanges(cell: Any) -> Sequence[Any]:
    """Return what was said before, as Alpaca's ``history`` has it: a list of questions, each with its answer."""
    found = parsed_json(cell) if isinstance(cell, str) and cell else cell or []
    return found if isinstance(found, list) else [found]


def _with_system(turns: Turns, row: _Row, system: str | None) -> Turns:
    said = row.get(system) if system else None
    if not said or not turns or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": str(said)}, *turns]


def _first(table: pa.Table, name: str) -> Any:
    """Return the first cell of a column that holds something."""
    cells = (cell.as_py() for cell in table[name])
    return next((cell for cell in cells if cell not in _NOTHING), None)
