"""Make token sequences of prompts and answers, and cut those that are too long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

import numpy as np
import numpy.typing as npt

from fedsa.errors import DataError
from fedsa.tasks.base import IntArray
from fedsa.tasks.chat import ChatTurns, ends_of
from fedsa.tasks.lengths import Reading, raise_length, told
from fedsa.tasks.sequences import SequenceRows
from fedsa.texts.words import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Fitted", "Writer", "begin_of", "fixed_ends", "without_middle"]


class Fitted(NamedTuple):
    """An item's tokens, as many as are kept, and how many at their end are to be predicted."""

    tokens: npt.NDArray[np.int32]
    answer: int


@dataclass
class _Cuts:
    """How rows were cut: tokens of each before, and how many lost what."""

    whole: list[int] = field(default_factory=list)
    prompts: int = 0
    answers: int = 0
    bare: int = 0


@final
class Writer:
    """Makes `SequenceRows` of prompts and answers.

    What is too long loses the middle of its prompt, but nothing of what the template has before a row's first value and
    behind its last one; then the end of its answer.

    Args:
        tokenizer: the base model's.
        longest: tokens kept of an item.
        limit: the most tokens that the model takes.
        template: the prompt's; None: there are no prompts, an answer begins a text.
        chat: prompt and answer are a turn each in the tokenizer's chat template.

    Raises:
        DataError: the tokenizer has no end token, or no chat template that goes, where one is wanted.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        longest: int,
        *,
        limit: int | None,
        template: str | None,
        chat: bool = False,
    ) -> None:
        self._tokenizer, self._longest, self._limit = tokenizer, longest, limit
        self._turns = ChatTurns(tokenizer) if chat else None
        self.ends = ends_of(tokenizer, self._turns)
        self._template = template
        self._parts: list[npt.NDArray[np.int32]] = [np.empty(0, dtype=np.int32)]
        self._items: list[IntArray] = []
        self._sizes: list[tuple[int, int]] = []
        self._cuts, self._reading, self._silent, self._written = _Cuts(), Reading(tokenizer), 0, _Cuts()

    def fit(
        self,
        rows: IntArray,
        prompts: Sequence[str],
        answers: Sequence[Sequence[str]],
        first: Sequence[int] | None = None,
    ) -> list[list[Fitted]]:
        """Return some rows' items: each row's prompt with each of its answers, cut to what is kept.

        The answers of a row stand behind one and the same prompt, which is cut for the longest of them.

        Args:
            rows: their numbers, for messages.
            prompts: of each row.
            answers: of each row, one at least.
            first: which of its answers the notes on a row are about; None: the first.

        Raises:
            DataError: nothing of an answer is left, or the chat template does not go with a row.
        """
        fronts, said = self._ids(rows, prompts, answers)
        told_by = [0] * len(rows) if first is None else first
        own = [[*front, *each[place]] for front, each, place in zip(fronts, said, told_by, strict=True)]
        self._reading.add(own, list(map(len, own)))
        if self._template is not None:
            self._silent += sum(not all(map(str.strip, each)) for each in answers)
        return [self._cut(row, front, each) for row, front, each in zip(rows.tolist(), fronts, said, strict=True)]

    def put(self, items: IntArray, fitted: Iterable[Fitted]) -> None:
        """Add items, behind all that were added before.

        Args:
            items: their numbers, ascending.
            fitted: what each is.
        """
        for tokens, answer in fitted:
            self._parts.append(tokens)
            self._sizes.append((len(tokens), answer))
        self._items.append(items)

    def put_prompts(
        self, rows: IntArray, items: IntArray, prompts: Sequence[str], room: int, *, read: bool = False
    ) -> None:
        """Add prompts alone, for the model to write on. Of a text that is to be continued, the end is kept.

        Args:
            rows: their numbers, for messages.
            items: their items' numbers, ascending.
            prompts: of each row.
            room: tokens that the model may write.
            read: the notes are about them: the rows were not added with answers.

        Raises:
            DataError: the model takes no prompt beside what it is to write.
        """
        longest = self._longest if self._limit is None else min(self._longest, self._limit - room)
        begin = len(self._begun([""])[0]) if self._template is None else None
        fitted, fronts = [], self._fronts(prompts) if begin is None else self._begun(prompts)
        if read:
            self._reading.add(fronts, list(map(len, fronts)))
        for row, front in zip(rows.tolist(), fronts, strict=True):
            head, tail = self._fixed(front) if begin is None else (begin, 0)
            if longest < max(1, head + tail):
                raise DataError(
                    f"row {row}: the model takes {self._limit} tokens, which has no room for the fixed text of "
                    f"task.prompt ({counted(head + tail, 'token')}) and task.max_new_tokens = {room}: lower "
                    "task.max_new_tokens"
                )
            self._written.whole.append(len(front))
            if begin is not None:
                tail = longest - head  # all that there is room for
            fitted.append(Fitted(np.asarray(without_middle(front, longest, head, tail), dtype=np.int32), 0))
        self._writes = longest
        self.put(items, fitted)

    def _ids(
        self, rows: IntArray, prompts: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Return the tokens of each row's prompt, and those of each of its answers."""
        counts = [len(each) for each in answers]
        if self._turns is not None:
            return self._turns.ids(rows, prompts, answers)
        flat = list(chain.from_iterable(answers))
        ids = iter(self._tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"])
        end = cast(int, self._tokenizer.eos_token_id)
        return self._fronts(prompts), [[[*next(ids), end] for _ in range(count)] for count in counts]

    def _fronts(self, prompts: Sequence[str]) -> list[list[int]]:
        if self._turns is not None:
            return self._turns.fronts(prompts)
        ids: list[list[int]] = self._tokenizer(list(prompts), verbose=False)["input_ids"]
        first = self._tokenizer.bos_token_id
        first = self._tokenizer.eos_token_id if first is None else first
        return [each or [first] for each in ids]  # the first token of an answer is predicted from something

    def _begun(self, texts: Sequence[str]) -> list[list[int]]:
        """Return texts as a text begins where there are no prompts: what stands in front of any, and theirs."""
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        (front,) = self._fronts([""])
        return [[*front, *own] for own in ids]

    @cached_property
    def _probe(self) -> list[int]:
        """The prompt's tokens where every column says next to nothing."""
        return [] if self._template is None else self._fronts([self._template.format_map(_Anything())])[0]

    def _fixed(self, front: Sequence[int]) -> tuple[int, int]:
        """The numbers of the template's own tokens at the beginning and at the end of a prompt."""
        return fixed_ends(self._probe, front)

    def _cut(self, row: int, front: list[int], said: Sequence[list[int]]) -> list[Fitted]:
        """Return a row's items, cut where they are too long."""
        cuts, longest, answer = self._cuts, self._longest, max(map(len, said))
        cuts.whole.append(len(front) + answer)
        if len(front) + answer > longest:
            head, tail = self._fixed(front)
            least = max(1, head + tail)  # something must stand in front of an answer
            if least >= longest:
                raise DataError(
                    f"row {row}: nothing of its answer is left, because the text of task.prompt around its columns "
                    f"takes {counted(least, 'token')} of task.max_length = {longest}: raise it, or shorten the template"
                )
            answer = min(answer, longest - least)
            kept = without_middle(front, longest - answer, head, tail)
            cuts.prompts += len(kept) < len(front)
            cuts.bare += len(kept) == least < len(front)
            cuts.answers += answer < max(map(len, said))
            front = kept
        return [Fitted(np.asarray([*front, *each[:answer]], dtype=np.int32), min(len(each), answer)) for each in said]

    def notes(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Return sentences on the rows that were added.

        Args:
            columns: where their texts are.

        Raises:
            DataError: the tokenizer knows nothing of most rows.
        """
        cuts, notes = self._cuts, self._reading.unread(columns)
        if self._silent:
            notes.append(
                f"{self._silent:,} of {counted(len(cuts.whole), 'row')} have an empty answer: the model learns to say "
                "none."
            )
        if cut := told(np.array(self._written.whole), getattr(self, "_writes", 0)):
            part = "beginning" if self._template is None else "middle"
            notes.insert(0, f"{cut}, which is what a prompt may have where the model writes: it loses its {part}.")
        cut = told(np.array(cuts.whole), self._longest)
        if cut and self._template is None:
            notes.insert(0, f"{cut}: what is beyond is not read; {raise_length(self._longest, self._limit)}.")
        elif cut:
            lost = [
                f"{count:,} lose {what}"
                for count, what in (
                    (cuts.prompts, "the middle of the prompt"),
                    (cuts.bare, "all that is their own in it"),
                    (cuts.answers, "the end of the answer"),
                )
                if count
            ]
            notes.insert(0, f"{cut}: {', '.join(lost)}; {raise_length(self._longest, self._limit)}.")
        return tuple(notes)

    def rows(
        self,
        labels: IntArray,
        items: int,
        columns: Sequence[str],
        *,
        first: IntArray | None = None,
        right: IntArray | None = None,
    ) -> SequenceRows:
        """Return all that was added.

        Args:
            labels: class numbers, shape (rows,).
            items: how many there are, with the empty ones: rows that are not used.
            columns: where the texts are, for the notes.
            first: as `SequenceRows` has it; None: a row itself is asked.
            right: as `SequenceRows` has it; None: the first.

        Raises:
            DataError: the tokenizer knows nothing of most rows.
        """
        sizes = np.zeros((items, 2), dtype=np.int64)
        sizes[np.concatenate(self._items)] = self._sizes
        return SequenceRows(
            tokens=np.concatenate(self._parts),
            offsets=np.concatenate([[0], np.cumsum(sizes[:, 0])]),
            answers=sizes[:, 1].copy(),
            labels=labels,
            first=np.arange(len(labels) + 1) if first is None else first,
            pad=cast(int, self._tokenizer.pad_token_id),  # fit_padding has set it
            widest=self._limit,
            ends=self.ends,
            tokenizer=self._tokenizer,
            right=np.zeros(len(labels), dtype=np.int64) if right is None else right,
            weights=np.ones(items, dtype=np.int64),
            notes=self.notes(columns),
            around=("", "") if self._turns is None else self._turns.around,
        )


def begin_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the token in front of a text that is continued, as it is spelt; empty where the tokenizer itself puts it.

    The first token of such a text is predicted from something, too.
    """
    if tokenizer("", verbose=False)["input_ids"]:
        return ""
    return str(tokenizer.eos_token if tokenizer.bos_token_id is None else tokenizer.bos_token)


class _Anything(dict[str, Any]):
    """Columns that say next to nothing, whatever they are called."""

    def __missing__(self, name: str) -> _Word:
        return _Word("x")


class _Word(str):
    """A word, however a template wants it written."""

    __slots__ = ()

    def __format__(self, how: str) -> str:
        return str(self)


def fixed_ends(probe: Sequence[int], front: Sequence[int]) -> tuple[int, int]:
    """Return how many tokens at the beginning and at the end of a prompt are its template's own.

    Args:
        probe: the tokens of the same template around next to nothing.
        front: the prompt's.
    """
    most = min(len(probe), len(front))
    head = next((place for place in range(most) if probe[place] != front[place]), most)
    most -= head
    tail = next((place for place in range(most) if probe[-1 - place] != front[-1 - place]), most)
    return head, tail


def without_middle(ids: list[int], longest: int, head: int, tail: int) -> list[int]:
    """Return so many tokens at most: those at the beginning and the end, where ``head`` and ``tail`` are kept.

    >>> without_middle(list(range(10)), 6, 2, 1)
    [0, 1, 2, 3, 8, 9]
    """
    if len(ids) <= longest:
        return ids
    free = max(0, longest - head - tail)
    before = min(longest, head + (free + 1) // 2)
    return [*ids[:before], *ids[len(ids) - (longest - before) :]]
