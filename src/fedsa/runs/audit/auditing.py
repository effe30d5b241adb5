"""Every attack on a run, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsa.errors import UserError, near
from fedsa.runs.audit.canaries import canaries
from fedsa.runs.audit.membership import membership
from fedsa.runs.audit.rebuilding import rebuilding
from fedsa.runs.audit.source import source
from fedsa.runs.audit.subject import Subject
from fedsa.texts.words import cut

if TYPE_CHECKING:
    from fedsa.federation import Federation
    from fedsa.runs.audit.finding import Finding

__all__ = ["ATTACKS", "audit"]

ATTACKS = ("source", "membership", "rebuilding", "canaries")
"""The names of all attacks."""


def audit(
    run: str | Path,
    attacks: Sequence[str] = (),
    *,
    federation: Federation | None = None,
    clients: int = 8,
    rows: int = 100,
    texts: int = 4,
    on_progress: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Iterator[Finding]:
    """Yield what attacks on a finished run come to. Nothing is written.

    Args:
        run: the run folder of a simulation: its rows must still be where its recipe says.
        attacks: their names; none: all that can be used with the run.
        federation: the run's, where it was made of Python objects.
        clients: the most clients that are attacked.
        rows: the most rows of a client that are looked at, of those that were trained on and of others.
        texts: how many updates are rebuilt to texts, for each finding.
        on_progress: told what takes time.
        on_note: told which attacks cannot be used with the run, where none is named.

    Raises:
        UserError: the run cannot be audited, or an attack that is named cannot be used with it.
        TrainingError: a client's loss is not finite.
    """
    tell, note = on_progress or (lambda text: None), on_note or (lambda text: None)
    for name in attacks:
        if name not in ATTACKS:
            raise UserError(
                f"--attack {cut(name, 80)} (in Python `attacks`): there is no such attack; {near(name, ATTACKS)}"
            )
    for name, value, least in (("clients", clients, 1), ("rows", rows, 8), ("texts", texts, 1)):
        if value < least:
            raise UserError(f"--{name} {value}: must be at least {least}, as `{name}` in Python")
    subject = Subject.open(Path(run), federation=federation, most_clients=clients, most_rows=rows, tell=tell)
    calls: dict[str, Callable[[], Iterator[Finding]]] = {
        "source": lambda: source(subject),
        "membership": lambda: membership(subject),
        "rebuilding": lambda: rebuilding(subject, texts=texts),
        "canaries": lambda: canaries(subject),
    }
    for name in [each for each in ATTACKS if each in (attacks or ATTACKS)]:
        tell(f"attacking: {name}")
        try:
            yield from calls[name]()
        except UserError as error:
            if attacks:
                raise
            note(f"{name} was left out: {error}")
