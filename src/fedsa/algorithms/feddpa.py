"""FedDPA-LoRA: a global adapter that is averaged beside a local one that stays, mixed for each row at inference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

import torch.nn.functional as F
from pydantic import Field

from fedsa.algorithms.base import LOCAL, SHARED, Algorithm, Plan
from fedsa.types import Key, Side

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class FedDPA(Algorithm):
    """Two adapters at once, their updates added: the global pair is sent and averaged, the local pair is not.

    Both are trained together with equal weight, as FedSA-LoRA's paper compares with it; the original trains them one
    after the other. At inference the local one has the share α = λ·(mean cosine of the row with S training rows of the
    client, at least 0) and the global one 1 - α. Here the two weigh 2·(1 - α) and 2·α: α = ½ is as they were trained.

    Choices: what a row is like is told by the frozen base's last hidden state, the mean over its tokens, for encoders
    (the authors' code: the last token's, with the local adapter on). The S rows are drawn once for each client, not for
    each row. The more a row is like the client's own, the more the local adapter says (in the authors' code α is the
    global one's share). It costs one more forward pass, and an exported adapter, whose weights are static, has the
    equal mix. With one client it is local training of two adapters.

    Attributes:
        mixing: at inference. instance: by each row's likeness to the client's own rows; equal: as they were trained.
        instances: S: training rows of the client that each row is compared with.
        max_weight: λ: the local adapter's share for a row that is exactly like them.
    """

    mixing: Literal["instance", "equal"] = "instance"
    instances: Annotated[int, Field(gt=0)] = 5
    max_weight: Annotated[float, Field(gt=0, le=1)] = 0.5

    source: ClassVar[str] = "arXiv:2403.19211"
    adapters: ClassVar[tuple[str, ...]] = ("default", "local")
    export: ClassVar[str] = "stacked adapter"
    needs_sides: ClassVar[bool] = False
    needs_product: ClassVar[bool] = True

    @property
    def references(self) -> int:
        """S, or 0 where the mix is equal."""
        return self.instances if self.mixing == "instance" else 0

    def refusal(self, variant: str, *, mixed_ranks: bool = False) -> str | None:
        """Return why the method does not go with an adapter variant, or None if it does."""
        reason = super().refusal(variant, mixed_ranks=mixed_ranks)
        if reason and self.references and not replace(self, mixing="equal").refusal(variant, mixed_ranks=mixed_ranks):
            return f"{reason}: set algorithm_options.mixing = 'equal'"
        return reason

    def plan(self, key: Key, round: int) -> Plan:
        """Return who trains, sends and receives a tensor."""
        match key.factor.side:
            case Side.A | Side.B:
                return LOCAL if key.adapter == "local" else SHARED
            case _:
                return self.rest_plan(key)

    def weights(self, rows: Tensor, references: Tensor) -> Mapping[str, Tensor]:
        """Return 2·(1 - α) for the global and 2·α for the local adapter."""
        cosines = F.normalize(rows, dim=1) @ F.normalize(references, dim=1).T
        local = self.max_weight * cosines.mean(dim=1).clamp(min=0)
        return {"default": 2 * (1 - local), "local": 2 * local}
