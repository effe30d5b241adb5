"""RAVAN: several small cores beside each other, each trained between a B and an A that all clients hold frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import Algorithm


@final
@dataclass(frozen=True, kw_only=True)
class Ravan(Algorithm):
    """FedAvg of the cores Rⱼ in ΔW = Σⱼ s·Bⱼ·Rⱼ·Aⱼ, which is exact: all Bⱼ and Aⱼ are the same everywhere.

        Rⱼ ← Σ pᵢ·Rᵢⱼ of each of four j,  so Σⱼ s·Bⱼ·Rⱼ·Aⱼ = Σ pᵢ·Σⱼ s·Bⱼ·Rᵢⱼ·Aⱼ

    A client sends 4·r² numbers per layer, and the update has rank 4·r: ``fed_sb`` sends 16·r² for that rank. Only the
    abstract of the paper was at hand. It calls the cores H, and does not say how many there are: here there are four.

    One thing in the paper is not done here: a trained number sⱼ beside each core. A client sends sⱼ·Rⱼ there, which is
    averaged as Rⱼ is here: what can be learnt is the same, but the optimiser has one more number for each core to scale
    its steps with. The frozen Bⱼ and Aⱼ are LoRA-XS's: the 4·r largest singular directions of W, dealt out to the cores
    in turn. The head is averaged, as in ``fed_sb``. With one client it is local training of four adapters.
    """

    share_head: bool = True

    source: ClassVar[str] = "arXiv:2506.05568"
    exact: ClassVar[bool] = True
    export: ClassVar[str] = "merged model"
    adapters: ClassVar[tuple[str, ...]] = ("default", "second", "third", "fourth")
    needs_sides: ClassVar[bool] = False
    needs_middle: ClassVar[bool] = True
