"""Does a share of B that is estimated with another norm come to a lower loss? One more round of a run tells.

    fedsa run quickstart --out runs/norms --set algorithm=partial_pooling \
        --set 'algorithm_options={own_share="difference", pool_columns=1.0, class_prior=false}'
    python benchmarks/share_norms.py runs/norms

Every client trains once more from where the run's chosen round left it, on two random halves of its rows. λ, the part
of a movement that is not common, is then estimated for each B and each tensor of the head: as partial pooling with all
columns does it (docs/partial-pooling.md), but with one λ for all rows of a head, whatever its standard error, and with
clients weighed by their rows. There are three norms:

- distance: of B's numbers, which is what the method takes;
- change of W: of ΔB·A, what the layer's output is changed by;
- Fisher: each number weighted by the mean square of its gradient, over batches (with dropout) and clients.

With each of these, and with λ the same for all tensors, a client's B moves by Δ + λ·(Δᵢ - Δ), and A by Δ. What that
comes to is measured on its rows of validation, which nothing was trained or chosen on but the round. Prints a Markdown
table: λ, the loss, the metric, and by how much the loss is above the lowest, over pairs of the same client.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch
from torch import Tensor

from fedsa.client.evaluation import Personal
from fedsa.client.halves import in_halves
from fedsa.client.learner import Learner
from fedsa.client.training.job import Job
from fedsa.data.partition import ClientRows
from fedsa.federation import Federation
from fedsa.runs.personal import PersonalStates, trained_keys
from fedsa.seeds import derive_seed
from fedsa.store import RunFolder, recipe_of
from fedsa.types import Factor, Key, Side, State

Share = Mapping[Key, float]
Inner = Callable[[Key, Tensor, Tensor], float]
"""The inner product of two movements of a tensor."""
GIVEN = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCHES = 8


class Moved(NamedTuple):
    """What a client began with, how far each half of its rows has moved it, and mean squares of its gradients."""

    start: State
    halves: tuple[State, State]
    squares: State

    def by(self, key: Key) -> Tensor:
        """Return the mean movement of the two."""
        return (self.halves[0][key] + self.halves[1][key]) / 2


def moved(learner: Learner, job: Job) -> Moved:
    """Train a client on each half of its rows; and take a step of SGD on each of some batches, for gradients."""
    ends = [learner.train([half])[0].tensors for half in in_halves(job)]
    one, two = ({key: end[key].double() - job.tensors[key].double() for key in job.keys} for end in ends)
    step = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0, "head_learning_rate": None, "local_steps": 1}
    plain = learner.training.model_copy(
        update={**step, "local_epochs": None, "b_learning_rate_ratio": 1.0, "max_grad_norm": None, "weight_decay": 0.0}
    )
    single, squares = replace(learner, training=plain), {key: torch.zeros_like(one[key]) for key in job.keys}
    for batch in range(BATCHES):
        (result,) = single.train([replace(job, seed=derive_seed(job.seed, "batch", batch))])
        for key in job.keys:
            squares[key] += (result.tensors[key].double() - job.tensors[key].double()).square() / BATCHES
    return Moved(job.tensors, (one, two), squares)


def movements(path: Path) -> tuple[Federation, Mapping[str, ClientRows], dict[str, Moved]]:
    """Return a run's federation, its clients' rows, and one more round of each client."""
    folder = RunFolder.open(path)
    federation = Federation.from_recipe(recipe_of(folder))
    recipe, rows, progress = federation.recipe, federation.site(folder.client_states).rows, folder.progress()
    torch.set_num_threads(recipe.compute.threads)
    if progress is None or not progress.chosen_round:
        raise SystemExit(f"{path}: the run has no chosen round; let it run to its end first")
    round, states = progress.chosen_round, PersonalStates(folder, federation.algorithm, progress.chosen_round)
    keys = trained_keys(recipe.rounds, federation.algorithm, states.initial, personal=False)
    steady = federation.learner.training.model_copy(update={"schedule": "constant", "warmup_fraction": 0.0})
    learner, found = replace(federation.learner, training=steady), {}
    for client in federation.clients:
        start = states.of(client, for_training=True)
        job = Job(client, round + 1, recipe.rounds, recipe.seed, start, keys, (), {}, rows[client].train)
        found[client] = moved(learner, job)
    return federation, rows, found


def distance(key: Key, one: Tensor, two: Tensor) -> float:
    """Of the numbers themselves."""
    return float((one * two).sum())


def change_of_w(key: Key, one: Tensor, two: Tensor, *, start: State) -> float:
    """Of what the layer's matrix is changed by, with the A that clients have in common; a head is a matrix itself."""
    if key.factor is not Factor.B:
        return distance(key, one, two)
    a = start[key._replace(factor=Factor.A)].double()
    return float(((one @ a) * (two @ a)).sum())


def fisher(key: Key, one: Tensor, two: Tensor, *, squares: State) -> float:
    """Of the numbers, each weighted by the mean square of its gradient."""
    return float((one * two * squares[key]).sum())


def estimated(clients: Sequence[Moved], weights: Sequence[float], keys: Sequence[Key], inner: Inner) -> Share:
    """Return λ = 1 - b / s of each tensor, as partial pooling has it, whatever its standard error."""
    q = sum(weight**2 for weight in weights)
    shares, pairs = {}, list(zip(weights, clients, strict=True))
    for key in keys:
        together = torch.stack([weight * each.by(key) for weight, each in pairs]).sum(0)
        signal = sum(weight * inner(key, each.halves[0][key], each.halves[1][key]) for weight, each in pairs)
        power = sum(weight * inner(key, each.by(key), each.by(key)) for weight, each in pairs)
        common = (inner(key, together, together) - q * power) / (1 - q)
        shares[key] = min(1.0, max(0.0, 1 - common / signal)) if signal > 0 else 0.0
    return shares


def after(client: Moved, together: State, share: Share) -> State:
    """Return a client's tensors after the round: what is not pooled has the mean movement."""
    ends = dict(client.start)
    for key, movement in together.items():
        own = share.get(key, 0.0) * (client.by(key) - movement)
        ends[key] = (client.start[key].double() + movement + own).to(client.start[key].dtype)
    return ends


def mean_of(weights: Sequence[float], tensors: Sequence[State]) -> State:
    """Return the weighted mean of clients' tensors."""
    return {
        key: torch.stack([weight * each[key] for weight, each in zip(weights, tensors, strict=True)]).sum(0)
        for key in tensors[0]
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run, whose method shares A")
    federation, rows, by_client = movements(parser.parse_args().run)
    clients = list(by_client.values())
    whole = sum(len(rows[client].train) for client in by_client)
    weights = [len(rows[client].train) / whole for client in by_client]
    pooled = [key for key in clients[0].squares if key.factor.side in (Side.B, Side.HEAD)]
    together = mean_of(weights, [{key: each.by(key) for key in each.squares} for each in clients])
    squares = mean_of(weights, [each.squares for each in clients])
    norms: dict[str, Inner] = {
        "distance": distance,
        "change of W": partial(change_of_w, start=clients[0].start),
        "Fisher": partial(fisher, squares=squares),
    }
    choices = {name: estimated(clients, weights, pooled, inner) for name, inner in norms.items()}
    choices |= {f"λ = {given:g}": dict.fromkeys(pooled, given) for given in GIVEN}
    metric, found = federation.task.metric, {}
    for name, share in choices.items():
        ends = {client: after(each, together, share) for client, each in by_client.items()}
        measured = (Personal(client, tensors, rows[client].validation) for client, tensors in ends.items())
        found[name] = dict(federation.learner.evaluate(measured))
    losses = {name: [each["loss"] for each in values.values()] for name, values in found.items()}
    lowest = min(losses, key=lambda name: mean(losses[name]))
    print(f"{len(clients)} clients, each alike; rows of validation\n")
    print("| share | λ of B's | λ of the head | loss | above the lowest | metric |\n|---|---|---|---|---|---|")
    for name, share in choices.items():
        parts = [
            f"{mean(values):.2f}" if (values := [share[key] for key in pooled if key.factor.side is side]) else ""
            for side in (Side.B, Side.HEAD)
        ]
        above = [one - two for one, two in zip(losses[name], losses[lowest], strict=True)]
        gap = f"{mean(above):.4f} ± {stdev(above) / len(above) ** 0.5:.4f}" if name != lowest else ""
        value = mean(each[metric] for each in found[name].values())
        print(f"| {name} | {' | '.join(parts)} | {mean(losses[name]):.4f} | {gap} | {value:.4f} |")


if __name__ == "__main__":
    main()
