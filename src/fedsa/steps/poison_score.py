"""How far each update of a round is from the others, and which are left out for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

import torch

from fedsa.algorithms.base import Algorithm
from fedsa.steps.base import Screening, Verdict
from fedsa.steps.changes import CUT_RANKS
from fedsa.types import Factor, Key, Side, State, Update

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FEWEST", "LARGEST_RATIO", "PoisonScore", "Scored", "poison_scores"]

LARGEST_RATIO = 3.0
"""A change that is so many times as large as the median one has the score 1."""

FEWEST = 3
"""Updates of which one can be told from the others."""


class Scored(NamedTuple):
    """How far a change is from the others.

    Attributes:
        score: max(1 - cosine, ratio / `LARGEST_RATIO`); above 1 the change points away from what the others have in
            common, or it is too large.
        cosine: of the change and the median change.
        ratio: of its norm to the median norm.
    """

    score: float
    cosine: float
    ratio: float


def poison_scores(changes: Sequence[State]) -> list[Scored]:
    """Return the score of each change against all of them; none, where they are fewer than `FEWEST`.

    With m the median of each number over the changes, ρᵢ = ‖Δᵢ‖ / median ‖Δ‖ and R = `LARGEST_RATIO`, the score is

        sᵢ = max(1 - cos(Δᵢ, m), ρᵢ / R)

    Args:
        changes: of the same tensors, in the same shapes.
    """
    if len(changes) < FEWEST:
        return []
    count, half = len(changes), (len(changes) - 1) // 2
    products, squares = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    of_middle = torch.zeros((), dtype=torch.float64)
    for key in sorted(changes[0]):  # one tensor at a time: all of them together would be in memory once more
        rows = torch.stack([change[key].double().flatten() for change in changes])
        middle = rows.sort(0).values[half : count - half].mean(0)
        products += rows @ middle
        squares += rows.square().sum(1)
        of_middle += middle.square().sum()
    norms = squares.sqrt()
    cosines = products / (norms * of_middle.sqrt()).clamp(min=1e-300)
    ratios = norms / norms.quantile(0.5).clamp(min=1e-300)
    ratios[norms == 0] = 0.0
    return [
        Scored(max(1 - cosine, ratio / LARGEST_RATIO), cosine, ratio)
        for cosine, ratio in zip(cosines.tolist(), ratios.tolist(), strict=True)
    ]


@final
@dataclass(frozen=True)
class PoisonScore(Screening):
    """Each update has a score: how far its change of A is from the changes of the others. Others' tensors do not count.

    A is what clients have in common, and its changes differ less between honest clients than those of B (Zhang et al.,
    arXiv:2508.03579). In a round in which no A is sent, all that is sent counts. Updates with a score above the
    threshold are left out, but always fewer than half: the median is of the others only as long as these are more.

    Cosine and norm as in Cao et al., arXiv:2012.13995 (FLTrust), with the median of the clients (Yin et al.,
    arXiv:1803.01498) in the place of the server's own update, for which it would need rows.

    Attributes:
        threshold: the largest score of an update that counts.
        leave_out: updates above it are left out; False: scores are only recorded.
    """

    threshold: float
    leave_out: bool

    setting: ClassVar[str] = "robust.kind"
    needs_values: ClassVar[bool] = True
    additive: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """What it is called in the recipe."""
        return "poison_score"

    def refusal(self, algorithm: Algorithm, *, mixed_ranks: bool = False) -> str | None:
        """Why the step cannot be used with a method: what it sends must be comparable."""
        if not algorithm.sends():
            return "it sends nothing"
        if mixed_ranks:
            return "clients of different ranks do not have the same numbers to compare: leave adapter.ranks out"
        if algorithm.cuts_ranks():
            return f"{CUT_RANKS}, which cannot be compared"
        return None

    def screen(self, updates: Sequence[Update], before: State) -> Mapping[str, Verdict]:
        """The verdict on each update of a round; those of the server's own shapes have none where they are too few.

        An update of other shapes cannot be compared. It is left out, also where scores are only recorded.
        """
        comparable = [update for update in updates if _has_shapes_of(before, update.tensors)]
        scores = poison_scores([_change(update.tensors, before) for update in comparable])
        worst = sorted(range(len(scores)), key=lambda place: -scores[place].score)[: (len(scores) - 1) // 2]
        others = {update.client for update in updates} - {update.client for update in comparable}
        verdicts = {client: Verdict({}, _OTHER_SHAPES) for client in sorted(others)}
        for place, (update, scored) in enumerate(zip(comparable, scores, strict=bool(scores))):
            values = {"score": scored.score, "cosine": scored.cosine, "norm_ratio": scored.ratio}
            is_out = self.leave_out and place in worst and scored.score > self.threshold
            verdicts[update.client] = Verdict(values, _reason(scored, self.threshold) if is_out else None)
        return verdicts


_OTHER_SHAPES = "its tensors have other shapes than the server's, so it cannot be compared with the others"


def _has_shapes_of(before: State, tensors: State) -> bool:
    """Whether tensors have the shapes of the server's; numbers beside them are not compared."""
    return all(tensor.shape == before[key].shape for key, tensor in tensors.items() if key.factor is not Factor.NOTE)


def _change(tensors: State, before: State) -> dict[Key, Tensor]:
    """The change of A, or of all that was sent where no A was."""
    sent = {key: tensor for key, tensor in tensors.items() if key.factor is not Factor.NOTE}
    of_a = {key: tensor for key, tensor in sent.items() if key.factor.side is Side.A}
    return {key: tensor.float() - before[key].float() for key, tensor in (of_a or sent).items()}


def _reason(scored: Scored, threshold: float) -> str:
    return (
        f"its poison score is {scored.score:.2f}, and {threshold:g} is the most: the cosine of its change with the "
        f"median one is {scored.cosine:.2f}, and its norm is {scored.ratio:.2g} times the median"
    )
