"""How long a recipe's run will take, by what a finished run of the same kind took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsa.algorithms import make_algorithm
from fedsa.cost.pace import evaluated_rounds, local_steps, passes_on_test, passes_on_validation
from fedsa.errors import UserError
from fedsa.recipe import Recipe
from fedsa.server import sample_size, updates_in_round
from fedsa.store import FinishedRun, RunFolder, recipe_of

__all__ = ["time_like"]

_ALIKE = (
    ("model", "path"),
    ("model", "quantization"),
    ("adapter", "variant"),
    ("adapter", "rank"),
    ("task", "kind"),
    ("training", "batch_size"),
    ("data", "path"),
)
"""What must be the same for a row to take the same time; what a run resolves by itself is taken as it did."""


def time_like(recipe: Recipe, clients: int, run: Path) -> dict[str, Any]:
    """Return how long a run will take if a trained row and an evaluated client take what they took in a finished run.

    Args:
        recipe: of the run to come.
        clients: their number.
        run: the folder of a finished run with the same model, adapter, task, batches and data.

    Returns:
        ``seconds``, and of them ``training``, ``evaluation`` and ``other`` (aggregation, files); ``run``, ``platform``,
        ``device`` and ``threads``: what was measured, and where.

    Raises:
        UserError: the run is not finished, or of another kind; all that differs is named.
    """
    folder = RunFolder.open(run)
    measured = recipe_of(folder)
    if not folder.is_measured:
        raise UserError(f"--like {run} (in Python `run`): the run is not finished; finish it with: fedsa resume {run}")
    finished = FinishedRun.open(run)
    summary = finished.summary
    different = [
        f"{section}.{name} is {getattr(getattr(measured, section), name)!r} there and {wanted!r} here"
        for section, name in _ALIKE
        if getattr(getattr(measured, section), name) != (wanted := getattr(getattr(recipe, section), name))
    ]
    if recipe.task.max_length < measured.task.max_length:  # there it is resolved: no more than the model takes
        different.append(f"task.max_length is {measured.task.max_length} there and {recipe.task.max_length} here")
    if recipe.personal_state != measured.personal_state:
        different.append(f"personal_state is {measured.personal_state!r} there and {recipe.personal_state!r} here")
    if different:
        raise UserError(
            f"--like {run} (in Python `run`): its rows do not take the time of this recipe's: {'; '.join(different)}"
        )
    lines = list(finished.lines())
    trained = [line["train"] for line in lines if line["train"]]
    if not trained:
        raise UserError(f"--like {run} (in Python `run`): nothing was trained in it")
    batch = measured.training.batch_size * measured.training.gradient_accumulation_steps
    rows = sum(each["steps"] for each in trained) * batch
    evaluations = sum(sum(name.startswith("validation") for name in line) for line in lines)
    ends = len({summary["chosen_round"], summary["rounds"]})
    evaluations += len(summary["per_client"]) * passes_on_test(measured.evaluation, ends)
    other = summary["wall_seconds"] - summary["train_seconds"] - summary["evaluation_seconds"]
    environment = finished.environment()

    training = recipe.training
    if training.local_epochs:
        epochs = measured.training.local_epochs
        if not epochs:
            raise UserError(
                f"--like {run} (in Python `run`): it has training.local_steps, and this recipe local_epochs"
            )
        rows_of_one = rows / len(trained) / epochs * training.local_epochs * recipe.rounds
    else:
        algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
        steps = sum(local_steps(training, algorithm, round + 1) for round in range(recipe.rounds))
        rows_of_one = steps * training.batch_size * training.gradient_accumulation_steps
    validations = evaluated_rounds(recipe.evaluation, recipe.rounds, -1) * sample_size(
        recipe.evaluation.fraction_evaluate, clients
    )
    measures = validations * passes_on_validation(recipe.evaluation) + clients * passes_on_test(recipe.evaluation)
    parts = {
        "training": updates_in_round(recipe, clients) * rows_of_one * summary["train_seconds"] / rows,
        "evaluation": measures * summary["evaluation_seconds"] / evaluations,
        "other": max(0.0, other) / measured.rounds * recipe.rounds,
    }
    where = {
        "run": str(run),
        "platform": environment.get("platform"),
        "device": measured.compute.device,
        "threads": measured.compute.threads,
    }
    return {"seconds": sum(parts.values()), **parts, **where}
