"""How good guesses are: areas under curves, intervals, and the ε that correct guesses prove."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Area", "Groups", "area_of", "epsilon_proved", "overlap"]

Scores: TypeAlias = npt.NDArray[np.float64]
Groups: TypeAlias = Sequence[tuple[Scores, Scores]]
"""Of each client the scores of members, and those of others."""

_RESAMPLES = 1000


@dataclass(frozen=True)
class Area:
    """The area under the ROC curve, mean over clients.

    Attributes:
        value: from 0 to 1; 0.5 is chance.
        low: of its 95 % interval.
        high: of the same.
    """

    value: float
    low: float
    high: float


def area_of(groups: Groups, random: np.random.Generator) -> Area:
    """The probability that a member scores higher than another row of its client, mean over clients.

    The interval is a bootstrap's, over the rows of each client. Clients are not mixed: a client whose rows all score
    higher would look like a leak.

    Args:
        groups: each client's scores.
        random: for the bootstrap.
    """
    values, samples = [], np.zeros(_RESAMPLES)
    for members, others in groups:
        wins = (members[:, None] > others).astype(np.float64) + 0.5 * (members[:, None] == others)
        values.append(wins.mean())
        left = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=_RESAMPLES)
        right = random.multinomial(len(others), np.full(len(others), 1 / len(others)), size=_RESAMPLES)
        samples += ((left @ wins) * right).sum(axis=1) / wins.size
    low, high = np.quantile(samples / len(groups), [0.025, 0.975])
    return Area(float(np.mean(values)), float(low), float(high))


def overlap(guessed: Sequence[int], right: Sequence[int]) -> float:
    """ROUGE-1: the F-measure of two bags of tokens (Lin, 2004).

    >>> round(overlap([1, 2, 3], [3, 2, 2, 9]), 3)
    0.571
    """
    if not guessed or not right:
        return 0.0
    counts: dict[int, int] = {}
    for token in right:
        counts[token] = counts.get(token, 0) + 1
    common = 0
    for token in guessed:
        if counts.get(token, 0) > 0:
            counts[token] -= 1
            common += 1
    return 2 * common / (len(guessed) + len(right))


def epsilon_proved(canaries: int, guesses: int, correct: int, delta: float, *, confidence: float = 0.95) -> float:
    """The ε below which so many correct guesses would be too unlikely, in one run.

    Each canary was in the training with probability 1/2, by itself. If the training is (ε, δ)-private, then
    P[correct ≥ v] ≤ β + 2·m·δ·α with q = e^ε / (1 + e^ε), β = P[Bin(r, q) ≥ v] and α the largest of
    P[v > Bin(r, q) ≥ v − i] / i. Source: Steinke, Nasr and Jagielski, arXiv:2305.08846, appendix D.

    Args:
        canaries: m: how many there are.
        guesses: r: for how many a guess was made. It is to be chosen before looking.
        correct: v: how many of these were right.
        delta: δ.
        confidence: of the statement.

    >>> round(epsilon_proved(1000, 100, 75, 1e-4), 3)
    0.673
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError("there are at most as many correct guesses as guesses, and as guesses as canaries")
    low, high = 0.0, 1.0
    while _likelihood(canaries, guesses, correct, high, delta) < 1 - confidence:
        high += 1
    for _ in range(40):
        middle = (low + high) / 2
        if _likelihood(canaries, guesses, correct, middle, delta) < 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _likelihood(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The largest probability of so many correct guesses, or more, under a bound on the privacy."""
    from scipy import stats

    q = 1 / (1 + math.exp(-epsilon))
    beta = float(stats.binom.sf(correct - 1, guesses, q))
    below: Any = stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, q)
    alpha = float((np.cumsum(below) / np.arange(1, correct + 1)).max()) if correct else 0.0
    return min(1.0, beta + 2 * canaries * delta * alpha)
