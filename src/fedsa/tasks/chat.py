"""A prompt and its answer as turns in a tokenizer's chat template: what that makes of them is what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, cast, final

from jinja2 import TemplateError

from fedsa.errors import DataError
from fedsa.tasks.base import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TEMPLATE_ERRORS", "ChatTurns", "ends_of", "has_plain_template", "own_stops", "stops_of", "with_template"]

TEMPLATE_ERRORS = (TemplateError, TypeError, KeyError, ValueError)
"""What a chat template raises for turns that it does not take."""

_WORD = "qzq"
"""An answer that no template has in its own text."""


_MEND = "set task.chat = false with task.kind = 'generation', and write the turns into task.prompt and task.answer"

_PLAIN = (
    "{% for message in messages %}{% if not loop.first %}\n\n{% endif %}{{ message['role'] | capitalize }}: "
    "{{ message['content'] | trim }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\n\nAssistant:{% endif %}"
)
"""Turns in plain words, for a tokenizer without a chat template: no token in it is new to the model."""


def has_plain_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer's chat template is the plain one, which `with_template` gives."""
    return isinstance(tokenizer.chat_template, str) and tokenizer.chat_template.endswith(_PLAIN)


def with_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer that has no chat template a plain one, and return it.

    A turn is ``User: ...`` or ``Assistant: ...``, an empty line between two of them; the tokenizer's end token ends the
    assistant's. In front stands what the tokenizer itself puts in front of texts.
    """
    if not tokenizer.chat_template:
        first = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if first else "") + _PLAIN
    return tokenizer


def ends_of(tokenizer: PreTrainedTokenizerBase, turns: ChatTurns | None) -> tuple[int, ...]:
    """Return the tokens that end an answer: the tokenizer's end token, and that of the chat template's turns.

    Raises:
        DataError: the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end token (eos_token), which ends an answer: set one")
    own = [] if turns is None or turns.end is None else [turns.end]
    return tuple(dict.fromkeys([*own, cast(int, tokenizer.eos_token_id)]))


def own_stops(model: object) -> tuple[int, ...]:
    """Return the tokens at which a model stops to write by its own settings."""
    stops = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return (stops,) if isinstance(stops, int) else tuple(stops or ())


def stops_of(model: object, tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> tuple[int, ...]:
    """Return the tokens at which a model that is asked here stops to write: those that end an answer, and its own.

    Raises:
        DataError: the tokenizer has no end token, or no chat template that goes, where ``chat`` wants one.
    """
    turns = ChatTurns(tokenizer) if chat else None
    return tuple(dict.fromkeys([*ends_of(tokenizer, turns), *own_stops(model)]))


@final
class ChatTurns:
    """Renders a prompt as the user's turn, and an answer as the model's.

    The answer is what the template adds for it: the conversation with the answer, without that up to it. Where the
    template ends a turn without a token for it, the tokenizer's end token follows, so that a model learns to stop.

    Args:
        tokenizer: the base model's.

    Raises:
        DataError: it has no chat template, or one by which a prompt is not the beginning of the conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise DataError("task.chat = true: the tokenizer has no chat template; set it to false")
        self._tokenizer = tokenizer
        before, _, behind = self._answer(None, "x", self._rendered("x"), _WORD).partition(_WORD)
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        ids: list[int] = tokenizer(behind, add_special_tokens=False)["input_ids"]
        alone = ids[0] if len(ids) == 1 and behind.strip() else None  # a word of its own is an end too
        self.end: int | None = next((token for token in ids if token in special), alone)
        """The token that ends a turn; None: the template has none."""
        shown = (tokenizer(before, add_special_tokens=False)["input_ids"], takewhile(lambda id: id != self.end, ids))
        self.around = tuple(str(tokenizer.decode([*part], skip_special_tokens=True)).strip() for part in shown)
        """What a reader sees of what the template puts in front of an answer and behind it: no part of the answer."""

    def fronts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each prompt's conversation, up to where the answer begins."""
        return self._ids([self._rendered(prompt) for prompt in prompts])

    def ids(
        self, rows: IntArray, prompts: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Return the tokens of each prompt's conversation up to where the answer begins, and those of each answer.

        Args:
            rows: their numbers, for messages.
            prompts: of each row.
            answers: of each row.

        Raises:
            DataError: a conversation does not begin with its prompt, or an answer cannot be told from it.
        """
        fronts = [self._rendered(prompt) for prompt in prompts]
        parts = [
            [self._answer(row, prompt, front, answer) for answer in own]
            for row, prompt, front, own in zip(rows.tolist(), prompts, fronts, answers, strict=True)
        ]
        given = self._ids(fronts)
        whole = iter(self._ids([front + part for front, own in zip(fronts, parts, strict=True) for part in own]))
        said = [
            [self._behind(row, front, next(whole), part) for part in own]
            for row, front, own in zip(rows.tolist(), given, parts, strict=True)
        ]
        return given, said

    def _behind(self, row: int, front: list[int], whole: list[int], part: str) -> list[int]:
        """Return an answer's tokens: those behind the prompt's."""
        end = [] if self.end is not None else [cast(int, self._tokenizer.eos_token_id)]
        if whole[: len(front)] == front:
            return whole[len(front) :] + end
        # The answer's first letters would be one token with the prompt's last ones. A model that writes begins anew.
        ids = self._ids([part])[0]
        if self._tokenizer.decode(front + ids) != self._tokenizer.decode(whole):
            raise DataError(
                f"row {row}: the tokenizer cannot tell the answer ({part[:40]!r}) from the chat template's text in "
                f"front of it: {_MEND}"
            )
        return ids + end

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _rendered(self, prompt: str, answer: str | None = None) -> str:
        turns = [{"role": "user", "content": prompt}]
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        try:
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None))
        except TEMPLATE_ERRORS as error:
            raise DataError(
                f"the tokenizer's chat template does not take a user's turn and an answer ({error}): {_MEND}"
            ) from error

    def _answer(self, row: int | None, prompt: str, front: str, answer: str) -> str:
        whole = self._rendered(prompt, answer)
        if not whole.startswith(front):
            where = "" if row is None else f"row {row}: "
            raise DataError(
                f"{where}by the tokenizer's chat template the conversation with its answer "
                f"(... {whole[-60:]!r}) does not begin with the prompt (... {front[-60:]!r}), so what is trained would "
                f"not be what the model is asked: {_MEND}"
            )
        return whole[len(front) :]
