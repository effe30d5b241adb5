"""A client's tensors: what it starts a run with, what it holds by itself, and what it would use next."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedsa.adapters.algebra import cropped, ranked
from fedsa.algorithms.base import Algorithm
from fedsa.seeds import derive_seed
from fedsa.types import Factor, State

if TYPE_CHECKING:
    from fedsa.store import ClientState

__all__ = ["initial_of_client", "own_tensors", "personal_tensors"]


def initial_of_client(
    initial: State, algorithm: Algorithm, client: str, *, seed: int, own_a: bool = False, rank: int | None = None
) -> State:
    """The tensors that a client starts the run with, the model's and others: the common ones, or with an A of its own.

    Its own A is drawn as PEFT draws LoRA's, from U(-1/√in, 1/√in), by the run's seed, the client and the layer. An A
    that is zero at the start (of an adapted embedding, whose B is not) stays zero.

    Args:
        initial: the model's, common to all, of the full rank.
        algorithm: the method: where it sends or receives A, A is the common one.
        client: its id.
        seed: the run's.
        own_a: ``adapter.own_initial_a``.
        rank: the client's; None: the full one.
    """
    if not own_a:
        return ranked(algorithm.whole(initial), rank)
    drawn = {}
    for key, value in initial.items():
        if key.factor is Factor.A and algorithm.keeps(key) and value.any():
            generator = torch.Generator().manual_seed(derive_seed(seed, "initial A", client, str(key)))
            drawn[key] = torch.empty_like(value)
            nn.init.kaiming_uniform_(drawn[key], a=math.sqrt(5), generator=generator)
    return ranked(algorithm.whole({**initial, **drawn}), rank)


def own_tensors(initial: State, state: ClientState | None) -> State:
    """A client's own tensors: those that it keeps, and initial ones where it has never changed the value."""
    return {**initial, **(state.tensors if state else {})}


def personal_tensors(
    algorithm: Algorithm, initial: State, state: ClientState | None, received: State, *, for_training: bool = False
) -> State:
    """A client's tensors after it has absorbed its payload. This is the only place where they are computed.

    Args:
        algorithm: the method.
        initial: the tensors that the client started the run with, of its own rank.
        state: what it keeps; None if it has not trained yet.
        received: the tensors that the server sent it, of its own rank or of the full one.
        for_training: those that its training begins with; else those that it would use.
    """
    fitting = {key: cropped(value, initial[key].shape) for key, value in received.items()}
    taken = algorithm.begin if for_training else algorithm.absorb
    return taken(own_tensors(initial, state), fitting, initial)
