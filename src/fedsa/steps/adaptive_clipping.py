"""Client-level privacy with a clipping norm that adapts itself to a quantile of the clients' norms.

Beside its clipped update each client sends one bit: whether its change was within the norm. The server adds noise to
the number of those that were, and moves the norm for the next round. The noise of the updates is a little larger than
with a fixed norm, so that both together cost what one fixed norm costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch

from fedsa.accounting import noise_of_updates
from fedsa.adapters.algebra import norm_of
from fedsa.algorithms.base import Algorithm
from fedsa.errors import ProtocolError
from fedsa.steps.base import ClientContext, Form, MeanContext, MeanStep, Slots
from fedsa.steps.client_privacy import NAME, clipped, noisy_mean, noisy_mean_refusal
from fedsa.types import Factor, Key, State, Update

__all__ = ["NORM", "WITHIN", "AdaptiveMean", "norms_in"]

NORM = Key("privacy.clipping_norm", Factor.NOTE)
"""The round's clipping norm, which goes to each client."""

WITHIN = Key("privacy.within_norm", Factor.NOTE)
"""1 from a client whose change was within the norm, 0 from another."""

_SLOT = f"by round|{NORM}"


@final
@dataclass(frozen=True)
class AdaptiveMean(MeanStep):
    """As `NoisyMean`, with a clipping norm C that follows the γ-quantile of the clients' norms.

    With n clients asked, bᵢ = 1 if ‖Δᵢ‖ ≤ C and else 0, and a client from which nothing came in neither sum:

        b̃ = 1/2 + (Σ (bᵢ - 1/2) + N(0, σ_b²)) / n,    C ← C · exp(-η (b̃ - γ)).

    A client changes Σ Δᵢ by at most C and Σ (bᵢ - 1/2) by 1/2. With noise of z_Δ·C on the first and σ_b on the second,
    the two are together one Gaussian mechanism of noise multiplier σ where z_Δ = (σ⁻² - (2σ_b)⁻²)^(-1/2).

    Source: Andrew et al., arXiv:1905.03871, algorithm 1 and theorem 1.

    Attributes:
        clipping_norm: C of the first round, over all tensors of an update together.
        noise_multiplier: σ of both noises together.
        target_quantile: γ.
        clipping_rate: η.
        count_noise: σ_b.
    """

    clipping_norm: float
    noise_multiplier: float
    target_quantile: float
    clipping_rate: float
    count_noise: float

    setting: ClassVar[str] = "privacy.kind"
    needs_values: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return NAME

    def refusal(self, algorithm: Algorithm, *, mixed_ranks: bool = False) -> str | None:
        """Why the step cannot be used with a method."""
        return noisy_mean_refusal(algorithm, mixed_ranks=mixed_ranks)

    def notes_to_client(self, slots: Slots) -> State:
        """The norm of the round that begins."""
        return {NORM: self._norms(slots)[-1].clone()}

    def notes_to_server(self) -> Mapping[Key, Form]:
        """One number."""
        return {WITHIN: Form((), torch.float32)}

    def on_client(self, tensors: State, slots: Slots, context: ClientContext) -> tuple[State, Slots]:
        """The update with its change clipped, and whether it was within the norm.

        Raises:
            ProtocolError: the server's norm is none.
        """
        norm = float(context.before[NORM])
        if not 0 <= norm < math.inf:
            raise ProtocolError(f"the server sends a clipping norm of {norm:g}")
        change = {key: tensor.double() - context.before[key].double() for key, tensor in tensors.items()}
        within = torch.tensor(float(norm_of(change) <= norm))
        return {**clipped(tensors, context.before, norm), WITHIN: within}, {}

    def on_server(self, update: Update, weight: int, before: State) -> tuple[Update, int]:
        """The update with a bit between 0 and 1, whatever the client has sent."""
        within = update.tensors[WITHIN].clamp(0.0, 1.0)
        return replace(update, tensors={**update.tensors, WITHIN: within}), weight

    def on_mean(self, mean: State, slots: Slots, context: MeanContext) -> tuple[State, Slots]:
        """The sum of the changes with noise, over the number of clients that were asked; and the norms up to the next.

        A round in which nothing came has left the norm as it was.
        """
        norms = self._norms(slots).tolist()
        norms += norms[-1:] * (context.round - len(norms))
        norm, came = norms[context.round - 1], len(context.weights)
        deviation = norm * noise_of_updates(self.noise_multiplier, self.count_noise)
        noisy = noisy_mean({key: value for key, value in mean.items() if key != WITHIN}, context, deviation)
        count = (float(mean[WITHIN]) - 0.5) * came + self.count_noise * float(context.noise.normal(()))
        share = 0.5 + count / max(context.asked or 0, came)
        norms = [*norms[: context.round], norm * math.exp(-self.clipping_rate * (share - self.target_quantile))]
        return noisy, {_SLOT: torch.tensor(norms, dtype=torch.float32)}

    def _norms(self, slots: Slots) -> torch.Tensor:
        """The norms of the rounds so far, and of the next one."""
        return slots.get(_SLOT, torch.tensor([self.clipping_norm], dtype=torch.float32))


def norms_in(slots: Slots, rounds: int) -> list[float]:
    """The clipping norm of each round, from what the server keeps after the last.

    Args:
        slots: what it keeps.
        rounds: of the run.
    """
    norms = slots[_SLOT].tolist() if _SLOT in slots else []
    return [float(f"{norm:.6g}") for norm in (norms + norms[-1:] * rounds)[:rounds]]
