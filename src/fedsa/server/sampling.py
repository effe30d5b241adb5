"""Choosing clients: those that train in a round, are evaluated, or are held out of the federation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedsa.errors import DataError
from fedsa.recipe import BufferedSettings, Recipe
from fedsa.seeds import derive_seed
from fedsa.texts.words import counted

__all__ = ["held_out", "most_rounds", "sample_clients", "sample_size", "updates_in_round"]


def sample_clients(clients: Sequence[str], fraction: float, seed: int) -> tuple[str, ...]:
    """A random part of the clients, drawn without replacement, in their given order."""
    count = sample_size(fraction, len(clients))
    if count == len(clients):
        return tuple(clients)
    places = np.random.default_rng(seed).choice(len(clients), count, replace=False)
    return tuple(clients[place] for place in sorted(places))


def held_out(clients: Sequence[str], fraction: float, seed: int) -> tuple[str, ...]:
    """The clients that are never in the federation, sorted; at least one if the fraction is above 0.

    Args:
        clients: every client's id.
        fraction: the recipe's ``holdout_clients``.
        seed: the run's.

    Raises:
        DataError: no client would be left for the federation.
    """
    if not fraction:
        return ()
    drawn = sample_clients(sorted(clients), fraction, derive_seed(seed, "held-out clients"))
    if len(drawn) == len(clients):
        raise DataError(
            f"holdout_clients = {fraction:g} of {counted(len(clients), 'client')} leaves none for the federation: "
            "lower it, or share the rows out over more clients"
        )
    return drawn


def sample_size(fraction: float, clients: int) -> int:
    """The number of clients that train in a round: the nearest whole number (.5 is rounded up), and at least one.

    >>> [sample_size(0.1, clients) for clients in (1, 14, 15, 25)]
    [1, 1, 2, 3]
    """
    return max(1, math.floor(fraction * clients + 0.5))


def most_rounds(recipe: Recipe, clients: Sequence[str]) -> int:
    """The number of rounds that the client trains in which trains most often, as the run's seed has it.

    Args:
        recipe: tells the rounds, the seed and the part that trains.
        clients: ids of those that train at all.
    """
    if recipe.fraction_train >= 1:
        return recipe.rounds
    drawn = Counter(
        client
        for round in range(1, recipe.rounds + 1)
        for client in sample_clients(sorted(clients), recipe.fraction_train, derive_seed(recipe.seed, "clients", round))
    )
    return max(drawn.values())


def updates_in_round(recipe: Recipe, clients: int) -> int:
    """The number of updates that a round of a recipe combines.

    Args:
        recipe: tells the part that trains, and whether rounds overlap.
        clients: those that are in the federation.
    """
    asked = sample_size(recipe.fraction_train, clients)
    return min(recipe.overlap.buffer, asked) if isinstance(recipe.overlap, BufferedSettings) else asked
