"""Whether the change of an update can be told from what was sent before: for steps that work on changes."""

from __future__ import annotations

from fedsa.algorithms.base import Algorithm
from fedsa.types import Factor

__all__ = ["CUT_RANKS", "change_refusal", "sends_notes"]

CUT_RANKS = "its clients may send tensors of other shapes than they were given"
"""Why what a client sends has no change, where the method may cut its rank."""


def change_refusal(algorithm: Algorithm, so_that: str) -> str | None:
    """Why a client's change is not that from a value which the server knows, so that a step cannot work on changes.

    Args:
        algorithm: the method.
        so_that: what follows of it, to be put at the end of the reason.
    """
    if not algorithm.sends():
        return "it sends nothing"
    reason = f"its clients do not begin with the server's values of what they send, so {so_that}"
    if algorithm.restarts or algorithm.folds:
        return reason
    if algorithm.cuts_ranks():
        return f"{CUT_RANKS}, so {so_that}"
    if sends_notes(algorithm):
        return f"its clients also send numbers that are no change of anything, so {so_that}"
    for key in filter(algorithm.in_model, algorithm.every_kind()):
        plans = [algorithm.plan(key, round) for round in (1, 2)]
        if any(plan.sent and not plan.received for plan in plans):
            return reason
    return None


def sends_notes(algorithm: Algorithm) -> bool:
    """Whether a method's clients send numbers that belong together with the tensors: no step may change one alone."""
    notes = [key for key in algorithm.every_kind() if key.factor is Factor.NOTE]
    return any(algorithm.plan(key, round).sent for key in notes for round in (1, 2))
