"""Conversations in a tokenizer's chat template: which of their tokens are to be learned, and what is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast, final

import numpy as np

from fedsa.errors import DataError
from fedsa.tasks.base import IntArray
from fedsa.tasks.chat import TEMPLATE_ERRORS, ChatTurns, ends_of, has_plain_template
from fedsa.tasks.lengths import raise_length, told
from fedsa.tasks.sequences import SequenceRows
from fedsa.tasks.tokenizing import tokens_with_places
from fedsa.tasks.writer import fixed_ends, without_middle
from fedsa.texts.words import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Cuts", "Dialogues", "Kept", "Spoken", "Turns", "answer_of"]

Turns: TypeAlias = "Sequence[Mapping[str, Any]]"
"""Each with ``role`` and ``content``; one of the assistant's with ``train`` = False is not learned."""

Kept: TypeAlias = "tuple[list[int], list[bool]]"
"""The tokens that are kept of a conversation, and of each whether it is to be learned."""

_WORDS = ("qzq", "xwx")
"""Contents that no template has in its own text."""


class Spoken(NamedTuple):
    """A conversation's tokens up to the last that is to be learned, and of each whether it is.

    Attributes:
        tokens: all of them.
        asked: of each.
        first: so many stand in front of the first that is to be learned.
        probe: gives the tokens of the same turns up to there with next to no contents: these are the template's own.
    """

    tokens: list[int]
    asked: list[bool]
    first: int
    probe: Callable[[], list[int]]


@final
class Dialogues:
    """Renders conversations. What is learned of a turn is what the template adds for it, with what ends the turn.

    Some templates render a turn in another way when others follow it (they leave a thought out). Of such a turn the
    content is learned, and the token that ends it.

    Args:
        tokenizer: the base model's.

    Raises:
        DataError: it has no chat template, or one that does not go.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._turns = tokenizer, ChatTurns(tokenizer)
        self.ends = ends_of(tokenizer, self._turns)
        """The tokens that end an answer."""
        self.around = self._turns.around
        """What the template puts in front of an answer and behind it, as a reader sees it."""
        self.notes: tuple[str, ...] = ()
        """Sentences on the template."""
        if has_plain_template(tokenizer):
            self.notes = (
                "The tokenizer has no chat template, so a plain one is used: turns are written as 'User: ...' and "
                "'Assistant: ...', and the end token ends the assistant's.",
            )
        end = self._turns.end
        self._end = "" if end is None else str(tokenizer.decode([end], skip_special_tokens=False))

    def spoken(self, rows: IntArray, conversations: Sequence[Turns]) -> list[Spoken]:
        """Return conversations as tokens.

        Args:
            rows: their numbers, for messages.
            conversations: each with a turn of the assistant's that is to be learned.

        Raises:
            DataError: the template does not go with a row.
        """
        kept = [turns[: _learned(turns)[-1] + 1] for turns in conversations]
        texts, spans = [], []
        for row, turns in zip(rows.tolist(), kept, strict=True):
            text = self._rendered(row, turns)
            texts.append(text)
            spans.append([self._span(row, turns, place, text) for place in _learned(turns)])
        whole = tokens_with_places(self._tokenizer, texts, add_special_tokens=False, verbose=False)
        made = []
        for row, turns, text, own, ids, places in zip(
            rows.tolist(), kept, texts, spans, whole["input_ids"], whole["offset_mapping"], strict=True
        ):
            tokens, asked = self._asked(row, text, own, ids, places)
            first = asked.index(True)
            made.append(Spoken(tokens, asked, first, partial(self._probe, turns[: _learned(turns)[0]], row)))
        return made

    def fronts(self, rows: IntArray, conversations: Sequence[Turns]) -> list[tuple[list[int], Callable[[], list[int]]]]:
        """Return the tokens of conversations that the assistant is to answer, and what `Spoken` has as ``probe``.

        Args:
            rows: their numbers, for messages.
            conversations: each ends where the answer begins.

        Raises:
            DataError: the template does not go with a row.
        """
        return [
            (self._front(turns, row), partial(self._probe, turns, row))
            for row, turns in zip(rows.tolist(), conversations, strict=True)
        ]

    def encoded(
        self,
        made: Sequence[Kept],
        numbers: IntArray,
        items: int,
        labels: IntArray,
        *,
        limit: int | None,
        notes: tuple[str, ...] = (),
    ) -> SequenceRows:
        """Return conversations as items.

        Args:
            made: what is kept of each.
            numbers: their items' numbers, ascending.
            items: how many there are; the others are empty.
            labels: class numbers, shape (rows,).
            limit: the most tokens that the model takes.
            notes: sentences on them.
        """
        sizes, answers = np.zeros(items, dtype=np.int64), np.zeros(items, dtype=np.int64)
        sizes[numbers] = [len(tokens) for tokens, _ in made]
        answers[numbers] = [len(asked) - asked.index(True) if True in asked else 0 for _, asked in made]
        return SequenceRows(
            tokens=np.fromiter(chain.from_iterable(tokens for tokens, _ in made), dtype=np.int32),
            offsets=np.concatenate([[0], np.cumsum(sizes)]),
            answers=answers,
            labels=labels,
            first=np.arange(len(labels) + 1),
            pad=cast(int, self._tokenizer.pad_token_id),  # fit_padding has set it
            widest=limit,
            ends=self.ends,
            tokenizer=self._tokenizer,
            right=np.zeros(len(labels), dtype=np.int64),
            weights=np.ones(items, dtype=np.int64),
            notes=notes,
            around=self.around,
            asked_tokens=np.fromiter(chain.from_iterable(asked for _, asked in made), dtype=np.bool_),
        )

    def _probe(self, turns: Turns, row: int) -> list[int]:
        return self._front([{**turn, "content": "x"} for turn in turns], row)

    def _front(self, turns: Turns, row: int) -> list[int]:
        return self._ids(self._rendered(row, turns, asks=True)) if turns else []

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _rendered(self, row: int, turns: Turns, *, asks: bool = False) -> str:
        plain = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
        try:
            return str(self._tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=asks))
        except TEMPLATE_ERRORS as error:
            roles = ", ".join(turn["role"] for turn in plain)
            raise DataError(
                f"row {row}: the tokenizer's chat template does not take these turns ({roles}): {error}; change the "
                "row, or take a model with another template"
            ) from error

    def _span(self, row: int, turns: Turns, place: int, text: str) -> tuple[int, int]:
        """Return where in a conversation's text a turn begins and ends, of which all is to be learned."""
        upto = text if place == len(turns) - 1 else self._rendered(row, turns[: place + 1])
        front = self._rendered(row, turns[:place], asks=True) if place else None
        if front is not None and text.startswith(upto) and upto.startswith(front) and len(upto) > len(front):
            return len(front), len(upto)
        content = str(turns[place]["content"]).strip()
        word = next(each for each in _WORDS if each[:1] != content[:1] and each[-1:] != content[-1:])
        other = self._rendered(row, [*turns[:place], {**turns[place], "content": word}, *turns[place + 1 :]])
        most = min(len(text), len(other))
        start = next((at for at in range(most) if text[at] != other[at]), most)
        rest = next((at for at in range(most - start) if text[-1 - at] != other[-1 - at]), most - start)
        stop = len(text) - rest
        if start >= stop and content:
            raise DataError(
                f"row {row}: the tokenizer's chat template leaves out the assistant's turn {content[:40]!r}, so there "
                "is nothing to learn of it: take a model with another template"
            )
        end = text.find(self._end, stop) if self._end else -1
        return start, end + len(self._end) if end >= 0 and not text[stop:end].strip() else stop

    def _asked(
        self,
        row: int,
        text: str,
        spans: Sequence[tuple[int, int]],
        ids: list[int],
        places: Sequence[tuple[int, int]],
    ) -> tuple[list[int], list[bool]]:
        """Return a conversation's tokens, and of each whether it is to be learned."""
        begins = [start for start, _ in spans]
        # A place may be told without the blank in front of a word.
        if any(start < begin < stop for start, stop in places for begin in begins) or any(
            text[begin - 1 : begin] == " " for begin in begins
        ):
            # An answer's first letters are one token with what stands in front. A model that writes begins anew.
            ids, places = [], []
            for shift, upto in zip([0, *begins], [*begins, len(text)], strict=True):
                found = tokens_with_places(self._tokenizer, [text[shift:upto]], add_special_tokens=False, verbose=False)
                ids += found["input_ids"][0]
                places = [*places, *((min(start + shift, upto - 1), upto) for start, _ in found["offset_mapping"][0])]
            if self._tokenizer.decode(ids) != self._tokenizer.decode(self._ids(text)):
                raise DataError(
                    f"row {row}: the tokenizer cannot tell an answer from the chat template's text in front of it: "
                    "take a model with another template"
                )
        asked = [any(begin <= start < end for begin, end in spans) for start, _ in places]
        asked[:1] = [False]  # nothing stands in front of it that it could be predicted from
        if not any(asked):
            raise DataError(f"row {row}: the assistant's turns have no token to learn: leave the row out")
        last = len(asked) - asked[::-1].index(True)
        if self._turns.end is None and last == len(asked):
            return [*ids, cast(int, self._tokenizer.eos_token_id)], [*asked, True]
        return ids[:last], asked[:last]


def answer_of(spoken: Spoken) -> int:
    """Return how many tokens the first stretch has that is to be learned."""
    return (*spoken.asked[spoken.first :], False).index(False)


def _learned(turns: Turns) -> list[int]:
    """Return the places of the turns that are to be learned."""
    return [place for place, turn in enumerate(turns) if turn["role"] == "assistant" and turn.get("train") is not False]


@final
@dataclass
class Cuts:
    """Cuts conversations to so many tokens, and counts what that takes.

    A conversation loses its end. Where its first answer would not be whole, what stands in front of that loses its
    middle first, but nothing of the template's own beginning and end: so there is always something to learn.

    Attributes:
        longest: tokens kept.
        limit: the most that the model takes.
        room: of these, kept for what it writes.
    """

    longest: int
    limit: int | None
    whole: list[int] = field(default_factory=list)
    room: int = 0
    ends: int = 0
    middles: int = 0
    answers: list[int] = field(default_factory=lambda: [0, 0])

    def fit(self, row: int, together: Sequence[Spoken], answer: int) -> list[Kept]:
        """Return conversations that begin alike, as much as is kept: the beginning is cut alike for all of them.

        Args:
            row: their row's number.
            together: one, or several that have the same tokens up to the first that is to be learned.
            answer: so many tokens, from the first that is to be learned, are kept rather than the beginning.

        Raises:
            DataError: the template's own text leaves no room for an answer.
        """
        self.whole.append(max(len(each.tokens) for each in together))
        self.answers[0] += sum(_runs(each.asked) for each in together)
        if self.whole[-1] <= self.longest:
            self.answers[1] += sum(_runs(each.asked) for each in together)
            return [(each.tokens, each.asked) for each in together]
        first = together[0]
        head, tail = fixed_ends(first.probe(), first.tokens[: first.first])
        least = max(1, head + tail)
        if least >= self.longest:
            raise DataError(
                f"row {row}: nothing of the assistant's turns is left, because the chat template's own text in front "
                f"of the first takes {counted(least, 'token')} of task.max_length = {self.longest}: raise it"
            )
        room = max(least, self.longest - answer)
        front = without_middle(first.tokens[: first.first], room, head, tail)
        self.middles += len(front) < first.first
        made = []
        for each in together:
            tokens = [*front, *each.tokens[each.first :]][: self.longest]
            asked = [*[False] * len(front), *each.asked[each.first :]][: self.longest]
            self.answers[1] += _runs(asked)
            last = len(asked) - asked[::-1].index(True)
            made.append((tokens[:last], asked[:last]))
        self.ends += any(
            len(tokens) - len(front) < len(each.tokens) - each.first
            for each, (tokens, _) in zip(together, made, strict=True)
        )
        return made

    def fit_front(self, row: int, front: list[int], probe: Callable[[], list[int]], room: int) -> list[int]:
        """Return what the model is given to write on: so much that there is room for what it writes.

        Args:
            row: its number.
            front: the tokens.
            probe: as `Spoken` has it.
            room: tokens that the model may write.

        Raises:
            DataError: there is no room.
        """
        self.room = room
        longest = self._longest
        self.whole.append(len(front))
        if len(front) <= longest:
            return front
        fixed = fixed_ends(probe(), front)
        if longest < max(1, sum(fixed)):
            raise DataError(
                f"row {row}: there is no room for the chat template's own text ({counted(sum(fixed), 'token')}) in the "
                f"{counted(longest + room, 'token')} that are kept or that the model takes, beside what it may write "
                f"(task.max_new_tokens = {room}): lower that, or raise task.max_length"
            )
        self.middles += 1
        return without_middle(front, longest, *fixed)

    def notes(self) -> Iterable[str]:
        """Return a sentence on what was cut, if anything was."""
        longest = self._longest
        cut = told(np.array(self.whole), longest)
        if cut:
            whole, kept = self.answers
            lost = [
                f"{count:,} lose {what}"
                for count, what in (
                    (self.middles, "the middle of what stands before the first answer"),
                    (self.ends, "their end"),
                )
                if count
            ]
            gone = (
                f", so that {whole - kept:,} of {counted(whole, 'answer')} are not read at all" if whole > kept else ""
            )
            mend = raise_length(self.longest, self.limit)
            if longest < self.longest:
                mend = f"the model takes {self.limit:,}, and task.max_new_tokens = {self.room:,} are for its answer"
            yield f"{cut}: {', '.join(lost)}{gone}; {mend}."

    @property
    def _longest(self) -> int:
        """Tokens kept, so that there is room for what the model writes."""
        return self.longest if self.limit is None else min(self.longest, self.limit - self.room)


def _runs(asked: Sequence[bool]) -> int:
    """Return how many stretches there are that are to be learned."""
    return sum(own and not before for own, before in zip(asked, [False, *asked[:-1]], strict=True))
