"""FedDPA-LoRA: a global adapter that is averaged beside a local one that stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import LOCAL, SHARED, Algorithm, Plan
from fedsa.types import Key, Side


@final
@dataclass(frozen=True, kw_only=True)
class FedDPA(Algorithm):
    """Two adapters at once, their updates added: the global pair is sent and averaged, the local pair is not.

    This is the method as FedSA-LoRA's paper compares with it: both are trained together and have equal weight. The
    original also offers to train the local one afterwards, and to weigh the two for each text by its likeness to the
    client's own texts; neither is done here. With one client it is local training of two adapters.
    """

    source: ClassVar[str] = "arXiv:2403.19211"
    adapters: ClassVar[tuple[str, ...]] = ("default", "local")
    export: ClassVar[str] = "stacked adapter"
    needs_sides: ClassVar[bool] = False
    needs_product: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        """Return who trains, sends and receives a tensor."""
        match key.factor.side:
            case Side.A | Side.B:
                return LOCAL if key.adapter == "local" else SHARED
            case _:
                return self.rest_plan(key)
