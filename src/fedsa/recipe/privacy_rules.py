"""What does not go with ``[privacy]``: each would break its guarantee without a word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedsa.errors import Mistake
from fedsa.recipe.compression import Int8Settings
from fedsa.recipe.overlap import BufferedSettings
from fedsa.recipe.privacy import ClientPrivacySettings, ExamplePrivacySettings
from fedsa.recipe.robust import MedianSettings, PoisonScoreSettings, TrimmedMeanSettings

if TYPE_CHECKING:
    from fedsa.recipe.recipe import Recipe

__all__ = ["contradictions_of_privacy"]


def contradictions_of_privacy(recipe: Recipe) -> list[Mistake]:
    """The mistakes that come from ``[privacy]`` and another section together."""
    match recipe.privacy:
        case ClientPrivacySettings():
            found = [*_of_clients(recipe), *(_of_the_sum(recipe) if recipe.privacy.noise_at == "server" else ())]
        case ExamplePrivacySettings():
            found = [*_of_rows(recipe)]
        case _:
            return []
    kind = recipe.privacy.kind
    return [Mistake(setting, f"does not go with privacy.kind = {kind!r}: {why}") for setting, why in found]


def _of_clients(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.adaptation.share_personal:
        yield (
            "adaptation.share_personal",
            "clients' own tensors would leave them without noise: set it to false, and evaluation.global_model to "
            "'none'",
        )
    if recipe.adapter.own_initial_a:
        yield (
            "adapter.own_initial_a",
            "clients do not begin with the server's values, so a change cannot be clipped: set it to false",
        )


def _of_the_sum(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What the sum of clipped changes, with noise from the server, cannot be made of."""
    if recipe.weighting != "uniform":
        yield (
            "weighting",
            "a client with many rows would change the mean by more than the noise covers: set weighting = 'uniform'",
        )
    if recipe.wire_dtype != "fp32":
        yield (
            "wire_dtype",
            "rounding after the clipping would move an update by more than clipping_norm: use fp32, or "
            "privacy.noise_at = 'client'",
        )
    if isinstance(recipe.compression, Int8Settings):
        yield (
            "compression.kind",
            "rounding after the clipping would move an update by more than clipping_norm: leave it out, or use "
            "privacy.noise_at = 'client'",
        )
    if recipe.secure_aggregation:
        yield (
            "secure_aggregation",
            "it rounds after the clipping, which would move an update by more than clipping_norm: leave it out, or use "
            "privacy.noise_at = 'client'",
        )
    if isinstance(recipe.robust, MedianSettings | TrimmedMeanSettings):
        yield (
            "robust.kind",
            f"noise for a sum does not cover what one client changes in a {recipe.robust.kind.replace('_', ' ')}: use "
            "norm_bound, or privacy.noise_at = 'client'",
        )
    if isinstance(recipe.robust, PoisonScoreSettings) and recipe.robust.leave_out:
        yield (
            "robust.kind",
            "which updates count would depend on one client's update by more than the noise covers: set "
            "robust.leave_out = false, use norm_bound, or privacy.noise_at = 'client'",
        )
    if isinstance(recipe.overlap, BufferedSettings):
        yield (
            "overlap.kind",
            "how many updates a round has depends on how fast clients are, so the sum has no fixed divisor: set it to "
            "'none', or use privacy.noise_at = 'client'",
        )


def _of_rows(recipe: Recipe) -> Iterator[tuple[str, str]]:
    without = "would be trained without noise, and carry rows into what is sent later"
    if recipe.training.head_warmup_epochs:
        yield "training.head_warmup_epochs", f"the head {without}: set it to 0"
    if recipe.evaluation.fit_head_epochs:
        yield (
            "evaluation.fit_head_epochs",
            "the head would be fitted without noise, and be in the client's adapter: set it to 0",
        )
    if recipe.personal_state == "reconstruct":
        yield "personal_state", f"personal tensors {without}: use 'store'"
    if recipe.holdout_clients:
        yield (
            "holdout_clients",
            "clients outside the rounds train their adapters without noise, and the figures would not be those of one "
            "guarantee: set it to 0, and use `fedsa adapt`",
        )
    if recipe.training.group_by_length:
        yield "training.group_by_length", "each row must be drawn by itself: set it to false"
    if recipe.training.packing:
        yield "training.packing", "rows are clipped one by one: leave it out"
    if recipe.task.kind == "question_answering":
        yield "task.kind", "a row comes to several windows, whose gradients are not clipped together: use another task"
