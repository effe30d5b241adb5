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
    """Two adapters at once, whose updates are added: the global pair is sent and averaged, the local pair stays.

        A ← Σ pᵢ·Aᵢ,  B ← Σ pᵢ·Bᵢ for the global pair

        ΔWᵢ = 2·(1 − α)·s·B·A + 2·α·s·B_local·A_local, with α = ½ in training

    Both are trained together with equal weight, as in the comparison of FedSA-LoRA's paper; the original trains them
    one after the other. At inference α = λ·max(0, mean cosine of the row with S training rows of the client).

    Choices: a row's features are the mean of the frozen base's last hidden state over its tokens, which also fits
    encoders (the authors' code takes the last token's, with the local adapter on). The S rows are drawn once for each
    client, not for each row. The more similar a row is to the client's own rows, the more the local adapter counts (in
    the authors' code α is the weight of the global adapter). This costs one more forward pass. An exported adapter has
    constant weights, so it has the equal mix. With one client it is local training of two adapters.

    Attributes:
        mixing: how adapters are weighed at inference. instance: by each row's similarity to the client's own rows;
            equal: as in training.
        instances: S: number of the client's training rows with which each row is compared.
        max_weight: λ: α for a row that is equal to the client's training rows.
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
        """Why the method cannot be used with an adapter variant; None if it can."""
        reason = super().refusal(variant, mixed_ranks=mixed_ranks)
        if reason and self.references and not replace(self, mixing="equal").refusal(variant, mixed_ranks=mixed_ranks):
            return f"{reason}: set algorithm_options.mixing = 'equal'"
        return reason

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor."""
        match key.factor.side:
            case Side.A | Side.B:
                return LOCAL if key.adapter == "local" else SHARED
            case _:
                return self.rest_plan(key)

    def weights(self, rows: Tensor, references: Tensor) -> Mapping[str, Tensor]:
        """The factors 2·(1 - α) of the global adapter and 2·α of the local one."""
        cosines = F.normalize(rows, dim=1) @ F.normalize(references, dim=1).T
        local = self.max_weight * cosines.mean(dim=1).clamp(min=0)
        return {"default": 2 * (1 - local), "local": 2 * local}
