"""All clients' rows in one place: what a method that asks for it trains on, in a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedsa.client.site import Site
from fedsa.texts.words import counted

__all__ = ["note_on_pooling", "pooled_site"]


def pooled_site(site: Site, clients: Sequence[str], in_a_round: int) -> Site:
    """A site whose first client trains on the training rows of all, for as many steps as they would have together.

    Args:
        site: with every client's own rows.
        clients: ids of those in the federation, sorted.
        in_a_round: how many of them would train in a round.
    """
    first = clients[0]
    together = np.sort(np.concatenate([site.rows[client].train for client in clients]))
    training = site.learner.training
    if training.local_steps:
        training = training.model_copy(update={"local_steps": training.local_steps * in_a_round})
    rows = {**site.rows, first: replace(site.rows[first], train=together)}
    return replace(site, rows=rows, learner=replace(site.learner, training=training))


def note_on_pooling(name: str, clients: Sequence[str]) -> str:
    """A sentence that says what a run without a federation is.

    Args:
        name: of the method.
        clients: ids of those whose rows are put together, sorted.
    """
    whose = counted(len(clients), "client")
    return (
        f"algorithm = {name!r} is no federation: the training rows of {whose} are put together in "
        f"this simulation, one adapter is trained on them (in the tables by {clients[0]!r}, which stands for all), and "
        "it is measured on each client's own rows. It is a control to compare with; no site could compute it"
    )
