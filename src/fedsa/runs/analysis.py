"""How alike the clients' tensors are, from a run folder alone: what is general in them, and what is each one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fedsa.adapters.algebra import cropped, pairs
from fedsa.adapters.factors import VARIANTS
from fedsa.adapters.similarity import cosine, product_cosine, span_similarity
from fedsa.algorithms import make_algorithm
from fedsa.client.state import initial_of_client, own_tensors, personal_tensors
from fedsa.errors import UserError
from fedsa.federation import client_ranks
from fedsa.server import load_state, own_shares, received_by
from fedsa.steps import make_chain
from fedsa.steps.poison_score import Scored, poison_scores
from fedsa.store import FinishedRun, require_clients
from fedsa.types import Factor, Key, Side, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MEASURES", "Analysis", "analyze", "label_similarity"]

Measure: TypeAlias = Literal["raw", "moved", "within", "span", "update"]
Matrix = npt.NDArray[np.float64]

MEASURES: dict[Measure, str] = {
    "raw": "cosine of the flattened tensors",
    "moved": "cosine of their movement since the start of the run",
    "within": "cosine of their movement within the round, from what the client began it with",
    "span": "mean squared cosine of the principal angles (row space of A, column space of B)",
    "update": "cosine of B·A, which the two come to together",
}
"""Averaging makes tensors alike, whatever was learned: ``raw`` and ``moved`` show that too, ``within`` does not.
``span`` and ``update`` do not depend on the basis that a client's factors happen to have."""

_SPANNING = {Factor.A, Factor.B}


@dataclass(frozen=True)
class Analysis:
    """What a run's clients have in common.

    Attributes:
        clients: that trained in all of the rounds, sorted: rows and columns of the matrices.
        matrices: (round, measure, factor, module) to the similarity of each two clients, shape (clients, clients); not
            a number where one of the two is zero.
        distances: (round, factor, module) to each client's distance from its own initial tensor over that one's norm
            (not divided where that is zero), shape (clients,).
        labels: the similarity of the clients' label counts, shape (clients, clients).
        scores: (round, client) to how far its change of A was from those of the others; of rounds before which tensors
            were kept, too.
        own_shares: the part of a movement that clients keep of their own, where the method has one: `own_shares`.
    """

    clients: tuple[str, ...]
    matrices: Mapping[tuple[int, str, str, str], Matrix]
    distances: Mapping[tuple[int, str, str], Matrix]
    labels: Matrix
    scores: Mapping[tuple[int, str], Scored] = field(default_factory=dict)
    own_shares: Sequence[Mapping[str, Any]] = ()

    @property
    def rounds(self) -> list[int]:
        """The rounds, ascending."""
        return sorted({round for round, *_ in self.matrices})

    def mean_matrix(self, round: int, measure: str, factor: str) -> Matrix | None:
        """Return the similarity of each two clients, mean over modules; None where there is none."""
        found = [matrix for (r, m, f, _), matrix in self.matrices.items() if (r, m, f) == (round, measure, factor)]
        return np.nanmean(found, axis=0) if found else None

    def means(self) -> Iterator[dict[str, Any]]:
        """Yield for each round, measure and factor the mean over pairs of clients and modules, and its spread.

        ``mean``, ``std`` (over pairs, of the mean over modules), ``lowest`` and ``highest`` pair, ``modules``.
        """
        above = np.triu_indices(len(self.clients), 1)
        for round, measure, factor in dict.fromkeys(key[:3] for key in self.matrices):
            matrix = self.mean_matrix(round, measure, factor)
            values = matrix[above] if matrix is not None else np.array([])
            values = values[~np.isnan(values)]
            if len(values):
                yield {
                    "round": round,
                    "measure": measure,
                    "factor": factor,
                    "mean": float(values.mean()),
                    "std": float(values.std()),
                    "lowest": float(values.min()),
                    "highest": float(values.max()),
                }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row for each pair of clients and each round, measure, factor and module."""
        for (round, measure, factor, module), matrix in self.matrices.items():
            for i, j in combinations(range(len(self.clients)), 2):
                yield {
                    "round": round,
                    "measure": measure,
                    "factor": factor,
                    "module": module,
                    "client": self.clients[i],
                    "other": self.clients[j],
                    "similarity": float(matrix[i, j]),
                }


def analyze(run: Path, rounds: Sequence[int] | None = None) -> Analysis:
    """The similarity of the clients' tensors at the end of their local training, before they were averaged.

    Args:
        run: a finished run's folder.
        rounds: which; None: the last, and every other whose files were kept (``keep_rounds = "all"`` keeps them all).

    Raises:
        UserError: a round that is not kept, or fewer than two clients trained.
    """
    finished = FinishedRun.open(run)
    require_clients(finished.folder)
    folder, summary, about = finished.folder, finished.summary, finished.clients
    kept = [round for round in folder.server_states.kept_rounds() if round > 0]
    wanted = sorted(set(rounds)) if rounds else kept
    missing = [round for round in wanted if round not in kept]
    if missing:
        raise UserError(
            f"{run} does not keep round {missing[0]}: it has {', '.join(map(str, kept))} of {summary['rounds']}; run "
            "again with keep_rounds = 'all' in the recipe"
        )
    variant = VARIANTS[finished.recipe.adapter.variant]
    # Of the layers whose A and B are the matrices of a product.
    products = load_state(folder.server_states, wanted[-1]).scaling
    states = {round: dict(_trained(finished, round, kept)) for round in wanted}
    clients = sorted(set.intersection(*(set(found) for found in states.values())))
    if len(clients) < 2:
        raise UserError(f"{run}: fewer than two clients trained in round {' and '.join(map(str, wanted))}")
    matrices: dict[tuple[int, str, str, str], Matrix] = {}
    distances: dict[tuple[int, str, str], Matrix] = {}
    scores: dict[tuple[int, str], Scored] = {}
    for round, by_client in states.items():
        scores |= {(round, client): scored for client, scored in _scores(finished, round, clients, by_client)}
        firsts, starts, ends = zip(*(by_client[client] for client in clients), strict=True)
        for key in _compared(ends):
            values = [end[key] for end in ends]
            first = [cropped(state[key], value.shape) for state, value in zip(firsts, values, strict=True)]
            names = (key.factor.value, _named(key))
            moved = [value - start for value, start in zip(values, first, strict=True)]
            distances[round, *names] = np.array(
                [float(move.norm() / (start.norm() or 1)) for move, start in zip(moved, first, strict=True)]
            )
            for measure, matrix in _matrices(key, values, moved, starts, spans=_is_matrix(key, values[0], products)):
                matrices[round, measure, *names] = matrix
        if variant.is_product and variant.starts_at_zero:
            for adapter in dict.fromkeys(key.adapter for key in ends[0]):
                factors = [pairs(end, adapter) for end in ends]
                for module, (_, a) in factors[0].items():
                    if not _is_matrix(Key(module, Factor.A, adapter), a, products):
                        continue
                    name = _named(Key(module, Factor.B, adapter))
                    matrices[round, "update", "BA", name] = _pairs([own[module] for own in factors], product_cosine)
    labels = label_similarity([about[client] for client in clients])
    algorithm = make_algorithm(finished.recipe.algorithm, finished.recipe.algorithm_options, finished.recipe.share_head)
    shares = own_shares(algorithm, load_state(folder.server_states, summary["rounds"]))
    return Analysis(tuple(clients), matrices, distances, labels, scores, shares)


def _scores(
    run: FinishedRun,
    round: int,
    clients: Sequence[str],
    by_client: Mapping[str, tuple[State, State | None, State]],
) -> Iterator[tuple[str, Scored]]:
    """Yield each client with the poison score of what it trained of A in a round; nothing where that is not known."""
    algorithm = make_algorithm(run.recipe.algorithm, run.recipe.algorithm_options, run.recipe.share_head)
    changes = []
    for _, start, end in (by_client[client] for client in clients):
        if start is None:
            return
        keys = [key for key in end if key.factor.side is Side.A and algorithm.plan(key, round).trained]
        changes.append({key: end[key] - start[key] for key in keys})
    shapes = [{key: tensor.shape for key, tensor in change.items()} for change in changes]
    if shapes[0] and all(shape == shapes[0] for shape in shapes):
        yield from zip(clients, poison_scores(changes), strict=False)  # there are none of two clients


def label_similarity(about: Sequence[Mapping[str, Any]]) -> Matrix:
    """Return the cosine of the clients' label counts, shape (clients, clients).

    Args:
        about: each client's entry of ``clients.json``.
    """
    counts = np.array([list(client["labels"].values()) for client in about], dtype=np.float64)
    unit = counts / np.linalg.norm(counts, axis=1, keepdims=True)
    matrix: Matrix = unit @ unit.T
    return matrix


def _trained(
    run: FinishedRun, round: int, kept: Sequence[int]
) -> Iterator[tuple[str, tuple[State, State | None, State]]]:
    """Yield each client that trained in a round: its id, and its tensors.

    They are those that it started the run from, those it began the round with (None: not kept), and ended it with.
    """
    folder, recipe, initial = run.folder, run.recipe, run.folder.load_initial()
    algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
    clients = list(run.clients)
    ranks = client_ranks(recipe.adapter, clients)
    before = round - 1
    server = None
    if before == 0:
        server = algorithm.init(initial, load_state(folder.server_states, round).scaling)
    elif before in kept:
        server = load_state(folder.server_states, before)
    for client in clients:
        state = folder.client_states.load_client(client, round)
        if state is None or state.version != round - 1:  # it did not train in this very round
            continue
        own = initial_of_client(
            initial,
            algorithm,
            client,
            seed=recipe.seed,
            own_a=recipe.adapter.own_initial_a,
            rank=ranks.get(client),
        )
        start = None
        if server is not None:
            earlier = folder.client_states.load_client(client, before) if before else None
            received = received_by(
                algorithm,
                server,
                client,
                round,
                version=earlier.version if earlier else 0,
                steps=make_chain(recipe.steps),
            )
            start = algorithm.models(personal_tensors(algorithm, own, earlier, received, for_training=True))
        yield client, (algorithm.models(own), start, algorithm.models(own_tensors(own, state)))


def _compared(ends: Sequence[State]) -> Iterator[Key]:
    """Yield the keys whose tensors are compared: those that clients have in common, in one shape."""
    order = list(Factor)
    for key, value in sorted(ends[0].items(), key=lambda entry: order.index(entry[0].factor)):
        same_shape = all(key in end and end[key].shape == value.shape for end in ends)
        if key.factor.side is not Side.BASE and (same_shape or key.factor in _SPANNING):
            yield key


def _matrices(
    key: Key, values: Sequence[Tensor], moved: Sequence[Tensor], starts: Sequence[State | None], *, spans: bool
) -> Iterator[tuple[Measure, Matrix]]:
    """Yield the measures of one tensor that can be taken."""
    if len({value.shape for value in values}) == 1:
        yield "raw", _pairs(values, cosine)
        yield "moved", _pairs(moved, cosine)
        began = [cropped(start[key], values[0].shape) for start in starts if start is not None]
        if len(began) == len(values):
            yield "within", _pairs([value - start for value, start in zip(values, began, strict=True)], cosine)
    if spans:
        yield "span", _pairs(values, lambda x, y: span_similarity(x, y, key.factor.side))


def _is_matrix(key: Key, value: Tensor, products: Mapping[str, float]) -> bool:
    """Say whether a tensor is a factor of a layer's B·A: not that of a convolution, or of many experts."""
    return key.factor in _SPANNING and key.module in products and value.dim() == 2


def _pairs(values: Sequence[Any], similarity: Any) -> Matrix:
    matrix = np.eye(len(values))
    for i, j in combinations(range(len(values)), 2):
        matrix[i, j] = matrix[j, i] = similarity(values[i], values[j])
    return matrix


def _named(key: Key) -> str:
    return key.module if key.adapter == "default" else f"{key.module}:{key.adapter}"
