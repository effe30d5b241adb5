"""RAVAN: several small cores beside each other, each trained between a B and an A that all clients hold frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from fedsa.algorithms.base import LOCAL, Algorithm, Plan
from fedsa.types import Factor, Gating, Key, State


@final
@dataclass(frozen=True, kw_only=True)
class Ravan(Algorithm):
    """FedAvg of the cores in ΔW = Σⱼ s·gⱼ·Bⱼ·Rⱼ·Aⱼ, which is exact: all Bⱼ and Aⱼ are the same everywhere.

        Rⱼ ← Σ pᵢ·gᵢⱼ·Rᵢⱼ of each of four j,  so Σⱼ s·Bⱼ·Rⱼ·Aⱼ = Σ pᵢ·Σⱼ s·gᵢⱼ·Bⱼ·Rᵢⱼ·Aⱼ

    A client trains the cores Rⱼ, and of each a number gⱼ that scales it. It sends their products, so the numbers cost
    no traffic, and each is 1 again when the client hears from the server. With them the optimiser can make all of a
    core larger or smaller at once. (The paper calls the cores H and the numbers s.) A client sends 4·r² numbers per
    layer, and the update has rank 4·r: ``fed_sb`` sends 16·r² for that rank.

    The paper's abstract and a summary by others were at hand. Three things differ. The paper tries several numbers of
    cores: here there are four. Its Bⱼ and Aⱼ are random, and orthogonal or nearly so: here they are LoRA-XS's, the 4·r
    largest singular directions of W, dealt out to the cores in turn. And there a weak client trains some of the cores
    only: here every client trains all. The head is averaged, as in ``fed_sb``. With one client it is local training.
    """

    share_head: bool = True

    source: ClassVar[str] = "arXiv:2506.05568"
    exact: ClassVar[bool] = True
    export: ClassVar[str] = "merged model"
    adapters: ClassVar[tuple[str, ...]] = ("default", "second", "third", "fourth")
    gated: ClassVar[Gating] = "free"
    needs_sides: ClassVar[bool] = False
    needs_middle: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor."""
        return LOCAL if key.factor is Factor.GATE else self.rest_plan(key)

    def leaves(self, key: Key, round: int) -> bool:
        """Whether what a client learns of a tensor leaves it: the numbers do, in what they scale."""
        return key.factor is Factor.GATE or super().leaves(key, round)

    def absorb(self, tensors: State, received: State, initial: State) -> State:
        """The client's tensors with the server's cores; the numbers that scale them are 1 again."""
        taken = super().absorb(tensors, received, initial)
        cores = {key.module for key in received if key.factor is Factor.MIDDLE}
        ones = {key: torch.ones_like(taken[key]) for key in _gates(taken) if key.module in cores}
        return {**taken, **ones}

    def outgoing(self, before: State, kept: State, halves: Sequence[State], round: int) -> State:
        """The cores as a client sends them: each times its number."""
        scaled = {
            key._replace(factor=Factor.MIDDLE, adapter=adapter): number
            for key in _gates(kept)
            for adapter, number in zip(self.adapters, kept[key], strict=True)
        }
        return {**kept, **{key: number * kept[key] for key, number in scaled.items()}}


def _gates(tensors: State) -> list[Key]:
    return sorted(key for key in tensors if key.factor is Factor.GATE)
