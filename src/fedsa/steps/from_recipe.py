"""Which steps a recipe asks for, in which order, and whether they go with its method: the one list of all steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fedsa.algorithms import algorithm_in, check_algorithm
from fedsa.errors import Mistake, UserError
from fedsa.recipe import (
    BufferedSettings,
    Check,
    ClientPrivacySettings,
    CompressionSettings,
    Int8Settings,
    MeanSettings,
    MedianSettings,
    NormBoundSettings,
    NotRobustSettings,
    OverlapSettings,
    PoisonScoreSettings,
    PrivacySettings,
    RobustSettings,
    ServerSettings,
    StepSettings,
    TrimmedMeanSettings,
    compression_settings,
    overlap_settings,
    privacy_settings,
    robust_settings,
    server_settings,
)
from fedsa.steps.adaptive_clipping import AdaptiveMean
from fedsa.steps.base import Step
from fedsa.steps.cast import Cast
from fedsa.steps.chain import Chain
from fedsa.steps.client_privacy import NoisyMean, NoisyUpdate
from fedsa.steps.int8 import Int8
from fedsa.steps.median import Median
from fedsa.steps.norm_bound import NormBound
from fedsa.steps.poison_score import PoisonScore
from fedsa.steps.secure_sum import SecureSum
from fedsa.steps.server_optimizer import ServerOptimizer
from fedsa.steps.staleness import Staleness
from fedsa.steps.trimmed_mean import TrimmedMean

__all__ = ["CHECKS", "PLAIN", "check_steps", "make_chain"]


def make_chain(settings: StepSettings = StepSettings()) -> Chain:  # noqa: B008  # it is frozen
    """Return the steps that a recipe asks for, in the order in which a client takes them.

    Args:
        settings: the recipe's `steps`; by default those of a recipe that asks for none.
    """
    late = _late(settings.overlap)  # the server takes an update off the wire, makes up for its age, and bounds it then
    steps = [*_on_the_mean(settings.server), *_robust(settings.robust), *_private(settings.privacy), *late]
    steps += [*_compressed(settings.compression), Cast(settings.wire_dtype)]
    return Chain((*steps, *([SecureSum()] if settings.secure_aggregation else [])))


def _on_the_mean(server: ServerSettings) -> list[Step]:
    return [] if isinstance(server, MeanSettings) else [ServerOptimizer(server)]


def _robust(robust: RobustSettings) -> list[Step]:
    match robust:
        case MedianSettings():
            return [Median()]
        case TrimmedMeanSettings(trim_fraction=fraction):
            return [TrimmedMean(fraction)]
        case NormBoundSettings(clipping_norm=norm):
            return [NormBound(norm)]
        case PoisonScoreSettings(threshold=threshold, leave_out=leave_out):
            return [PoisonScore(threshold, leave_out)]
        case NotRobustSettings():
            return []


def _private(privacy: PrivacySettings) -> list[Step]:
    if not isinstance(privacy, ClientPrivacySettings):
        return []  # rows are protected where they are trained on
    norm, noise = privacy.clipping_norm, privacy.noise_multiplier or 0.0
    if privacy.noise_at == "client":
        return [NoisyUpdate(norm, noise)]
    if privacy.clipping == "fixed":
        return [NoisyMean(norm, noise)]
    adapts = privacy.target_quantile, privacy.clipping_rate, privacy.count_noise or 0.0
    return [AdaptiveMean(norm, noise, *adapts)]


def _late(overlap: OverlapSettings) -> list[Step]:
    match overlap:
        case BufferedSettings(staleness_exponent=exponent, max_staleness=most):
            return [Staleness(exponent, most)]
        case _:
            return []


def _compressed(compression: CompressionSettings) -> list[Step]:
    return [Int8()] if isinstance(compression, Int8Settings) else []


PLAIN = make_chain()
"""The steps of a recipe that asks for none: the mean of what clients send, in fp32."""


def check_steps(data: Mapping[str, Any]) -> list[Mistake]:
    """Return the mistakes in a recipe's raw data about steps that do not go with its method."""
    adapter = data.get("adapter", {})
    try:
        algorithm = algorithm_in(data)
        server = server_settings(data.get("server", {}))
        robust = robust_settings(data.get("robust", {}))
        overlap = overlap_settings(data.get("overlap", {}))
        privacy = privacy_settings(data.get("privacy", {}))
        compression = compression_settings(data.get("compression", {}))
    except (UserError, ValidationError):
        return []  # for `check_algorithm` and the recipe itself to report
    if algorithm is None or not isinstance(adapter, Mapping):
        return []
    name, mixed_ranks = data.get("algorithm", "fedsa"), bool(adapter.get("ranks"))
    secure = data.get("secure_aggregation") is True
    settings = StepSettings("fp32", server, robust, overlap, secure, privacy, compression)
    steps = make_chain(settings).steps
    reasons = [(step, name, step.refusal(algorithm, mixed_ranks=mixed_ranks)) for step in steps]
    for sums in (step for step in steps if isinstance(step, SecureSum)):
        reasons += [(sums, f"{step.setting} = {step.name!r}", sums.conflict(step)) for step in steps]
    return [
        Mistake(step.setting, f"{step.name} does not go with {other}: {reason}")
        for step, other, reason in reasons
        if reason is not None
    ]


CHECKS: tuple[Check, ...] = (check_algorithm, check_steps)
"""What every recipe is checked by, beside its own form."""
