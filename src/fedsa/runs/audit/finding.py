"""What one attack came to: a score beside chance, and a control that shows that the attack works at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

__all__ = ["Finding"]


@final
@dataclass(frozen=True)
class Finding:
    """What one attack came to.

    Attributes:
        attack: its name: ``source``, ``membership``, ``rebuilding`` or ``canaries``.
        shared: the tensors that the attacker sees: ``A``, ``B``, ``A and B``, or ``adapter``: all that is exported.
        leaves: whether these tensors leave a client in this run.
        metric: what the score is.
        score: what the attack reached.
        chance: what guessing reaches.
        control: the same attack where it must succeed; None: it has none of its own.
        control_is: what the control is.
        interval: of the score, 95 %.
        count: of what was guessed: updates, rows, texts, canaries.
        update: what was seen, in words: of how many steps of which optimiser.
        steps: how many; 0: the whole run's.
        privacy: how the rows were protected, in words.
        method: the attack's source.
        note: a whole sentence that a reader should know.
        more: further figures, by name.
    """

    attack: str
    shared: str
    leaves: bool
    metric: str
    score: float
    chance: float
    control: float | None
    control_is: str
    interval: tuple[float, float] | None
    count: int
    update: str
    steps: int
    privacy: str
    method: str
    note: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as a table that JSON can hold."""
        told = dict(vars(self))
        more = told.pop("more")
        return {**told, "interval": None if self.interval is None else list(self.interval), **more}
