"""Pooled: all rows in one place, the ceiling that federated methods are compared with; in a simulation only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import Algorithm


@final
@dataclass(frozen=True, kw_only=True)
class Pooled(Algorithm):
    """No federation, but a control in a simulation: one adapter and one head, trained on all clients' rows together.

        A, B, head ← one training on the rows of all clients,  measured on each client's own test rows

    Every client's training rows leave it. Many ask for this ceiling, and no site could compute it, so `fedsa deploy`
    refuses it. It is a ceiling only where clients mean the same by a class: one head for all cannot be right where two
    clients mean opposite things, and it has to choose among all classes where each client has only some.

    A round has as much training as a round of a federation: ``local_steps`` for each client that would train in it,
    one after the other; with ``local_epochs`` passes over all rows. Rows of clients that are held out are not among
    them. In the files of a run the first client stands for all: it is shown as the one that trains, and the others as
    clients that were never drawn. With one client it is local training.
    """

    share_head: bool = True

    source: ClassVar[str] = "-"
    pools_rows: ClassVar[bool] = True
    needs_sides: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.share_head:
            raise ValueError("pooled trains one head for all: share_head = false does not go with it (use local)")
        if self.class_prior:
            raise ValueError("pooled trains one head for all: class_prior = true does not go with it")

    def mean_refusal(self) -> str | None:
        """Why no step can act on the mean of a round's updates."""
        return "one party trains on all rows, so there is no mean of updates"
