"""How long a run still takes: its work counted in rows, its pace measured on what is finished."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, final

from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import Algorithm
from fedsa.recipe import DEFAULT_LOCAL_STEPS, AdaptationSettings, EvaluationSettings, Recipe, TrainingSettings
from fedsa.server import sample_size
from fedsa.types import SPLITS

__all__ = [
    "Pace",
    "evaluated_rounds",
    "is_evaluated",
    "local_steps",
    "passes_on_test",
    "passes_on_validation",
    "refit_steps",
    "trained_rows",
]

Kind: TypeAlias = Literal["training", "evaluation"]

_FORWARD = 1 / 3
"""Time of an evaluated row over that of a trained one, until it is measured: backward takes twice what forward does."""


def is_evaluated(settings: EvaluationSettings, rounds: int, round: int) -> bool:
    """Whether clients are measured on validation after a round."""
    return round % settings.evaluate_every == 0 or round == rounds


def evaluated_rounds(settings: EvaluationSettings, rounds: int, after: int) -> int:
    """The number of the rounds after a round that end with an evaluation.

    >>> settings = EvaluationSettings(evaluate_every=4)
    >>> [evaluated_rounds(settings, 10, after) for after in (-1, 0, 4, 9, 10)]
    [4, 3, 2, 1, 0]
    """
    every = settings.evaluate_every
    return max(0, rounds // every - after // every + (rounds % every != 0 and after < rounds))


def passes_on_validation(settings: EvaluationSettings) -> int:
    """How often a client's validation rows are measured in an evaluated round."""
    return 2 if settings.evaluate_after == "both" else 1


def passes_on_test(settings: EvaluationSettings, rounds: int = 2) -> int:
    """How often a client's test rows are measured with its own model.

    Args:
        settings: the recipe's ``[evaluation]``.
        rounds: that are measured after the first evaluation, before training: the chosen and the final one, or 1.
    """
    modes = 1 if settings.evaluate_after == "aggregate" else 2
    return 1 + modes * rounds


def local_steps(training: TrainingSettings, algorithm: Algorithm, round: int) -> int:
    """The number of steps that a client trains in a round, where the recipe does not count in epochs.

    On each half of its rows it trains as many as the recipe says.
    """
    return (training.local_steps or DEFAULT_LOCAL_STEPS) * (1 + algorithm.trains_halves(round))


def refit_steps(recipe: Recipe) -> int:
    """The number of steps in which a client that keeps nothing first fits its personal tensors anew, in each round."""
    return recipe.reconstruction.steps if recipe.personal_state == "reconstruct" else 0


def trained_rows(recipe: Recipe, algorithm: Algorithm, round: int, rows: int) -> int:
    """The number of rows that a client goes through in a round's training.

    Args:
        recipe: the run's.
        algorithm: its method.
        round: from 1.
        rows: of the client's training split.
    """
    training = recipe.training
    if training.local_epochs:
        return training.local_epochs * rows
    steps = local_steps(training, algorithm, round) + refit_steps(recipe)
    return steps * training.gradient_accumulation_steps * training.batch_size


@final
class Pace:
    """What is left of a run, as its events come.

    Work is counted in rows that go through the model, and a row's time is measured apart for training and evaluation,
    on what the last two rounds took. The first pass of each kind, which begins slowly, counts until there is another.

    Args:
        recipe: the run's, resolved.
        rows: client id to its ``train_examples``, ``validation_examples`` and ``test_examples``.
        finished: rounds that are done; -1: not even the evaluation before the first.
        clock: seconds that only rise.
        outside: the same numbers of rows, of each client that is held out of the federation.
    """

    def __init__(
        self,
        recipe: Recipe,
        rows: Mapping[str, Mapping[str, Any]],
        finished: int = -1,
        clock: Callable[[], float] = time.monotonic,
        *,
        outside: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._recipe, self._clock, self._round = recipe, clock, finished
        self._algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
        settings = recipe.evaluation
        self._rows: dict[str, dict[str, int]] = {
            client: {split: int(about[f"{split}_examples"]) for split in SPLITS} for client, about in rows.items()
        }
        count = max(1, len(self._rows))
        self._totals = {split: sum(each[split] for each in self._rows.values()) for split in SPLITS}
        self._pooled = self._algorithm.pools_rows  # one training is that of all clients of the round
        passes = self._pooled and recipe.training.local_epochs  # over all rows
        part_that_trains = 1.0 if passes else sample_size(recipe.fraction_train, count) / count
        self._training_rows = [0.0] + [  # of each round, from 1
            part_that_trains * sum(self._trained_rows(client, round + 1) for client in self._rows)
            for round in range(recipe.rounds)
        ]
        part = sample_size(settings.fraction_evaluate, count) / count
        self._validation_rows = self._totals["validation"] * part * passes_on_validation(settings)
        self._training = self._validation = 0.0  # rows that are left in the round
        self._test = float(self._totals["test"] * passes_on_test(settings))
        self._passes, self._tested = passes_on_test(settings), 0
        # What is measured of one model for all, and of clients outside, is not told one by one.
        self._beside = 2.0 * self._totals["test"] * (settings.global_model != "none")
        self._beside += 2.0 * sum(int(about["test_examples"]) for about in outside)
        self._adapting = sum(
            _adapted_rows(recipe.training, recipe.adaptation, int(about["train_examples"])) for about in outside
        )
        together = recipe.training.cohort_size if recipe.training.trainer == "cohort" else 1
        self._measured = {kind: _Rate(max(1, together), 2 * count) for kind in ("training", "evaluation")}
        self._since = clock()

    def _trained_rows(self, client: str, round: int) -> int:
        return trained_rows(self._recipe, self._algorithm, round, self._rows[client]["train"])

    def _rows_of_training(self, client: str) -> int:
        return round(self._training_rows[self._round]) if self._pooled else self._trained_rows(client, self._round)

    def round_begins(self, round: int, clients: Sequence[str]) -> None:
        """Take note of a round and of who trains in it."""
        self._round, self._since = round, self._clock()
        self._training = float(sum(map(self._rows_of_training, clients)))
        self._validation = (
            self._validation_rows if is_evaluated(self._recipe.evaluation, self._recipe.rounds, round) else 0.0
        )
        for rate in self._measured.values():
            rate.begin()

    def trained(self, client: str) -> None:
        """Take note of a finished local training."""
        rows = self._rows_of_training(client)
        self._training = max(0.0, self._training - rows)
        self._count("training", rows)

    def evaluated(self, client: str, split: str, round: int) -> None:
        """Take note of a finished evaluation."""
        rows = self._rows[client][split]
        if split == "validation":
            self._validation = max(0.0, self._validation - rows)
        else:
            self._training = self._validation = 0.0
            if self._tested == len(self._rows) and round == self._recipe.rounds:  # the chosen round is the last
                self._passes = passes_on_test(self._recipe.evaluation, 1)
                self._test = float(self._totals["test"] * (self._passes - 1))
            self._tested += 1
            self._test = max(0.0, self._test - rows)
        self._count("evaluation", rows)

    def _count(self, kind: Kind, rows: int) -> None:
        now = self._clock()
        self._measured[kind].add(rows, now - self._since)
        self._since = now

    @property
    def evaluates(self) -> bool:
        """The round ends with an evaluation."""
        return is_evaluated(self._recipe.evaluation, self._recipe.rounds, self._round)

    @property
    def tests(self) -> int:
        """How many tests of a client there are, as far as it is known."""
        return self._passes * len(self._rows)

    @property
    def left(self) -> float | None:
        """Seconds until the run is complete; None: nothing was trained yet that would tell."""
        training, evaluation = self._seconds()
        if training is None or evaluation is None:
            return None
        rows_to_train = sum(self._training_rows[max(self._round, 0) + 1 :]) + self._adapting
        rows = (
            evaluated_rounds(self._recipe.evaluation, self._recipe.rounds, self._round) * self._validation_rows
            + self._test
            + self._beside
        )
        later = rows_to_train * training + rows * evaluation
        now, then = self._training * training, self._validation * evaluation
        if not now:  # what is under way counts down by the clock, but not into what comes after it
            now, then = then, 0.0
        if not now:
            now, later = later, 0.0
        return max(0.0, now - (self._clock() - self._since)) + then + later

    def rows_per_second(self, kind: Kind) -> float | None:
        """How many rows are trained, or evaluated, in a second; None: none were yet."""
        seconds = self._measured[kind].seconds
        return 1 / seconds if seconds else None

    @property
    def part(self) -> float:
        """Which part of the run's time is over, from 0 to 1."""
        left = self.left
        training, evaluation = self._seconds()
        if left is None or training is None or evaluation is None:
            return max(0, self._round - 1) / self._recipe.rounds
        rows = evaluated_rounds(self._recipe.evaluation, self._recipe.rounds, -1) * self._validation_rows + self._beside
        rows += self._totals["test"] * self._passes
        whole = (sum(self._training_rows) + self._adapting) * training + rows * evaluation
        return min(1.0, max(0.0, 1 - left / whole)) if whole else 0.0

    def _seconds(self) -> tuple[float | None, float | None]:
        """Return the seconds of a trained and of an evaluated row."""
        training, evaluation = (self._measured[kind].seconds for kind in ("training", "evaluation"))
        if evaluation is None and training is not None:
            evaluation = _FORWARD * training
        return training, evaluation


def _adapted_rows(training: TrainingSettings, adaptation: AdaptationSettings, rows: int) -> int:
    """The number of rows that a client outside goes through on its way to an adapter of its own."""
    length = adaptation.length
    if "epochs" in length:
        return length["epochs"] * rows
    return length["steps"] * training.gradient_accumulation_steps * training.batch_size


@final
class _Rate:
    """Seconds of a row, by what was finished last.

    Args:
        together: clients whose results come at once, after the time of them all.
        window: how many clients' results count.
    """

    def __init__(self, together: int, window: int) -> None:
        self._together = together
        self._groups: deque[list[float]] = deque(maxlen=max(2, -(-window // together)))  # rows, seconds, clients
        self._first = True  # the first group is among them

    def begin(self) -> None:
        """The next result begins a group of its own."""
        if self._groups:
            self._groups[-1][2] = self._together

    def add(self, rows: float, seconds: float) -> None:
        """Count a client's result, and the time since the one before."""
        if not self._groups or self._groups[-1][2] >= self._together:
            if self._first and len(self._groups) > 1:
                self._groups.popleft()
                self._first = False
            self._groups.append([0.0, 0.0, 0])
        group = self._groups[-1]
        group[0], group[1], group[2] = group[0] + rows, group[1] + seconds, group[2] + 1

    @property
    def seconds(self) -> float | None:
        """Of one row; None: nothing is finished."""
        groups = list(self._groups)
        if self._first and len(groups) > 1:
            groups = groups[1:]
        rows = sum(group[0] for group in groups)
        return sum(group[1] for group in groups) / rows if rows else None
