"""Conversations in the shapes that people have, as one: a list of turns, each with a role and a content."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from fedsa.data.reading.cells import kind_of
from fedsa.texts.json_text import parsed_json

__all__ = ["Turn", "Turns", "common_beginning", "in_words", "turns_of", "written"]

Turn: TypeAlias = "dict[str, Any]"
"""``role`` and ``content``; ``train`` is False for a turn of the assistant that is not to be learned."""

Turns: TypeAlias = "list[Turn]"

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "bing", "bard", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}
"""What roles are called, and what chat templates call them."""

_WHO, _WHAT = ("role", "from"), ("content", "value")
_MARKS = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")


def turns_of(cell: Any, *, role: str) -> Turns:
    """Return a cell's turns: of a list of messages (also written as JSON), of one message, or of a plain text.

    A text in which ``Human:`` and ``Assistant:`` stand in front of the turns (as in HH-RLHF) is a conversation, too.

    Args:
        cell: what the table has.
        role: whose turn a plain text is.

    Raises:
        ValueError: what is wrong with it, to be put behind the name of the column.

    >>> turns_of([{"from": "human", "value": "so?"}, {"from": "gpt", "value": "yes"}], role="user")
    [{'role': 'user', 'content': 'so?'}, {'role': 'assistant', 'content': 'yes'}]
    >>> turns_of("so?", role="user")
    [{'role': 'user', 'content': 'so?'}]
    """
    if isinstance(cell, str):
        found = _parsed(cell)
        if found is None:
            return _marked(cell) or [{"role": role, "content": cell}]
        cell = found
    if isinstance(cell, Mapping):
        cell = [cell]
    if not isinstance(cell, list):
        raise ValueError(f"holds {kind_of(cell)}, and a list of turns is needed")
    return [_turn(each) for each in cell]


def in_words(cell: Any) -> str | None:
    """Return how a cell's messages name role and content; None: it holds no messages.

    >>> in_words([{"from": "human", "value": "so?"}]), in_words("so?")
    ('from and value, as in ShareGPT', None)
    """
    found = _parsed(cell) if isinstance(cell, str) else cell
    if isinstance(found, Mapping):
        found = [found]
    first = found[0] if isinstance(found, list) and found else None
    if not isinstance(first, Mapping):
        return None
    for names, said in (
        (("role", "content"), "role and content"),
        (("from", "value"), "from and value, as in ShareGPT"),
    ):
        if first.get(names[0]) is not None and names[1] in first:
            return said
    return None


def written(turns: Sequence[Turn]) -> str | None:
    """Return turns as a text, the same for the same turns; None where there are none: an empty cell."""
    return json.dumps(turns, ensure_ascii=False, separators=(",", ":")) if turns else None


def common_beginning(one: Turns, other: Turns) -> Turns:
    """Return the turns that two conversations begin with alike; at least the last of each is left out."""
    most = max(0, min(len(one), len(other)) - 1)
    return one[: next((place for place in range(most) if one[place] != other[place]), most)]


def _parsed(text: str) -> Any:
    """Return the messages that a text is JSON of; None: it is none."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        found = parsed_json(text)
    except ValueError:
        return None
    entries = found if isinstance(found, list) else [found]
    tables = [each for each in entries if isinstance(each, dict)]
    return found if len(tables) == len(entries) and any({*_WHO} & {*each} for each in tables) else None


def _marked(text: str) -> Turns:
    """Return the turns of a text that has ``Human:`` and ``Assistant:`` in front of them; else none."""
    if not text.startswith("\n\nHuman:"):
        return []
    parts = _MARKS.split(text)[1:]
    return [
        {"role": _ROLES[{"Human": "human", "Assistant": "assistant"}[who]], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _turn(message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise ValueError(f"has {kind_of(message)} in the place of a turn; a turn has role and content")
    who = next((message[name] for name in _WHO if message.get(name) is not None), None)
    if who is None:
        raise ValueError("has a turn without a role: give it `role` (or `from`)")
    role = _ROLES.get(str(who).strip().lower())
    if role is None:
        raise ValueError(f"has a turn of the role {who!r}, which is not known; known are {', '.join(_ROLES)}")
    if message.get("tool_calls"):
        raise ValueError("has a turn that calls tools, which is not read: write the call into its content")
    turn: Turn = {
        "role": role,
        "content": _content(next((message[n] for n in _WHAT if message.get(n) is not None), None)),
    }
    if role == "assistant" and (message.get("weight") == 0 or message.get("train") is False):
        turn["train"] = False
    return turn


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
        kinds = {str(part.get("type", "text")) for part in value} - {"text"}
        if kinds:
            raise ValueError(f"has a turn with content of the type {sorted(kinds)[0]!r}; only texts are read")
        return "".join(str(part.get("text") or "") for part in value)
    if value is None:
        raise ValueError("has a turn without content: fill it in, or leave the turn out")
    if isinstance(value, bool | int | float):
        return str(value)
    raise ValueError(f"has a turn whose content is {kind_of(value)}; a text is needed")
