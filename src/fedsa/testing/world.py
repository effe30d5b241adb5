"""A federation without a model, on which the laws are tried.

Clients' tensors are random numbers of a layer of each of two sizes, and local training adds random numbers to what the
plan says is trained. Server, clients and method are the real ones.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from safetensors.torch import load, save

from fedsa.adapters.algebra import pairs, ranked
from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.client.halves import mean_of_halves
from fedsa.client.site import Site
from fedsa.client.state import personal_tensors
from fedsa.client.training.job import Job, TrainingResult
from fedsa.data.partition import ClientRows
from fedsa.seeds import derive_seed
from fedsa.server import Server, received_by
from fedsa.store import ClientState
from fedsa.types import Factor, Key, Side, State, Update, gate_shape

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "HEAD",
    "LAYERS",
    "RANK",
    "ROUNDS",
    "Case",
    "Store",
    "World",
    "initial_tensors",
    "layer_effects",
    "trained_tensors",
]

RANK = 2

ROUNDS = 4

LAYERS = {"layer.0": (4, 3), "layer.1": (3, 5)}
"""Each layer's (out, in)."""

HEAD = (2, 4)


@dataclass(frozen=True)
class Case:
    """What a law is tried on.

    Attributes:
        algorithm: the method with its options.
        variant: the adapter variant.
        mixed_ranks: client c1 has rank 1, the others 2.
        seed: of all numbers.
        weights: of each client, its number of rows.
        present: who trains in each round; empty: all, in four rounds.
    """

    algorithm: Algorithm
    variant: str
    mixed_ranks: bool = False
    seed: int = 0
    weights: tuple[int, ...] = (1, 3, 2)
    present: tuple[frozenset[int], ...] = ()

    @property
    def clients(self) -> tuple[str, ...]:
        """Client ids, sorted."""
        return tuple(f"c{number}" for number in range(len(self.weights)))

    @property
    def rounds(self) -> list[list[str]]:
        """Who trains in each round."""
        drawn = self.present or (frozenset(range(len(self.weights))),) * ROUNDS
        return [[client for number, client in enumerate(self.clients) if number in numbers] for numbers in drawn]

    @property
    def ranks(self) -> dict[str, int]:
        """Ranks of the clients whose rank is less than the adapter's."""
        return {client: 1 for client in self.clients[1:2] if self.mixed_ranks}


def initial_tensors(case: Case) -> dict[Key, Tensor]:
    """Return random initial tensors of a case, in fp32, with those beside the model's; what the server folds is zero.

    B is not zero, as in variants that start from the weights' own directions; with mixed ranks it is.
    """
    generator = torch.Generator().manual_seed(derive_seed(case.seed, "initial"))
    factors = [factor for factor in VARIANTS[case.variant].factors if factor is not Factor.HEAD]
    tensors: dict[Key, Tensor] = {}
    for module, adapter, factor in itertools.product(LAYERS, case.algorithm.adapters, factors):
        out, width = LAYERS[module]
        drawn = torch.randn(factor.shape(out=out, width=width, rank=RANK), generator=generator)
        zero = case.mixed_ranks and factor is Factor.B
        tensors[Key(module, factor, adapter)] = torch.zeros_like(drawn) if zero else drawn
    if gating := case.algorithm.gated:
        for module, (_, width) in LAYERS.items():
            drawn = torch.randn(gate_shape(gating, len(case.algorithm.adapters), width), generator=generator)
            tensors[Key(module, Factor.GATE)] = torch.ones_like(drawn) if gating == "free" else drawn
    for module, shape in LAYERS.items() if case.algorithm.folds else ():
        tensors[Key(module, Factor.DELTA)] = torch.zeros(shape)
    tensors[Key("classifier.weight", Factor.HEAD)] = torch.randn(HEAD, generator=generator)
    return dict(case.algorithm.whole(tensors))


def layer_effects(case: Case, tensors: State, scaling: Mapping[str, float]) -> dict[str, Tensor]:
    """Return all that a client's tensors do, in float64.

    For an adapter whose whole update is a product: Δ + Σ s·B·A of each layer, over its adapters, and the head. For
    others the tensors themselves, times what a gate of free numbers gives their adapter.
    """
    tensors = case.algorithm.models(tensors)
    if not VARIANTS[case.variant].is_product:
        return {str(key): tensor.double() for key, tensor in _multiplied(case.algorithm, tensors).items()}
    effects = {str(key): tensor.double() for key, tensor in tensors.items() if key.factor.side is Side.HEAD}
    for module in LAYERS:
        delta = tensors.get(Key(module, Factor.DELTA))
        effects[module] = torch.zeros(LAYERS[module], dtype=torch.float64) if delta is None else delta.double()
    for adapter in case.algorithm.adapters:
        for module, (b, a) in pairs(tensors, adapter).items():
            effects[module] = effects[module] + scaling[module] * b.double() @ a.double()
    return effects


def _multiplied(algorithm: Algorithm, tensors: State) -> State:
    """The tensors, where gates of free numbers have been multiplied with those of the adapters that they weigh."""
    if algorithm.gated != "free":
        return tensors
    gates = {key.module: gate for key, gate in tensors.items() if key.factor is Factor.GATE}
    return {
        key: gates[key.module][algorithm.adapters.index(key.adapter)] * tensor if key.module in gates else tensor
        for key, tensor in tensors.items()
        if key.factor is not Factor.GATE
    }


@final
class _States:
    """Clients' states, in memory."""

    def __init__(self) -> None:
        self._states: dict[str, dict[int, ClientState]] = {}

    def load_client(self, client: str, round: int) -> ClientState | None:
        kept = [number for number in self._states.get(client, {}) if number <= round]
        return self._states[client][max(kept)] if kept else None

    def save_client(self, client: str, round: int, state: ClientState) -> None:
        self._states.setdefault(client, {})[round] = state

    def save_personal(self, client: str, round: int, tensors: State) -> None:
        raise NotImplementedError("every client keeps its state here")

    def last_round(self, client: str) -> int:
        return max(self._states.get(client, {}), default=0)

    def prune(self, rounds: Collection[int]) -> None:
        pass

    def load_ahead(self, clients: Iterable[str], round: int) -> None:
        pass

    def settle(self) -> None:
        pass


@final
class Store:
    """The server's state as bytes."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[bytes, bytes, str]] = {}

    def save_server(
        self,
        round: int,
        tensors: State,
        versions: Mapping[Key, int],
        client_versions: Mapping[str, int],
        slots: Mapping[str, Tensor],
        about: Mapping[str, Any],
    ) -> None:
        """Keep the server's state after a round."""
        named = {str(key): tensor.contiguous() for key, tensor in tensors.items()}
        own = {"versions": {str(key): version for key, version in versions.items()}, "about": about}
        kept = {name: tensor.contiguous() for name, tensor in slots.items()}
        save(named | {f"slot|{name}": tensor for name, tensor in kept.items()})  # as a run does: none may share memory
        self._kept[round] = save(named), save(kept), json.dumps(own)

    def load_server(self, round: int) -> tuple[dict[Key, Tensor], dict[Key, int], dict[str, Tensor], dict[str, Any]]:
        """The server's state after a round: tensors, versions, slots, and the rest."""
        *files, text = self._kept[round]
        tensors, slots = (dict(sorted(load(file).items())) for file in files)  # the library gives them any order
        own = json.loads(text)
        versions = {Key.parse(name): version for name, version in own["versions"].items()}
        return {Key.parse(name): value for name, value in tensors.items()}, versions, slots, own["about"]


@final
class World:
    """A federation whose local training adds random numbers."""

    def __init__(self, case: Case, *, registered: Sequence[str] | None = None) -> None:
        self.case, self.algorithm = case, case.algorithm
        self.initial = initial_tensors(case)
        s = self.algorithm.scaling(2.0, RANK, len(case.clients))
        self.scaling = dict.fromkeys(LAYERS, s)
        self.states = _States()
        self.server = self.serving(self.algorithm.init(self.initial, self.scaling), registered)

    def serving(self, state: ServerState, registered: Sequence[str] | None = None) -> Server:
        """A server with a state, for the clients of the case, or for those that are named."""
        held = {} if registered is not None or not hasattr(self, "server") else self.server.client_versions
        clients = registered or self.case.clients
        return Server(self.algorithm, state, clients, seed=self.case.seed, client_versions=held, ranks=self.case.ranks)

    @property
    def site(self) -> Site:
        """A site with all clients of the case."""
        models = self.algorithm.models(self.initial)
        learner: Any = SimpleNamespace(model=SimpleNamespace(initial=models, keys=tuple(models)))
        nobody = np.arange(0)
        rows = {
            client: ClientRows(np.arange(weight), nobody, nobody)
            for client, weight in zip(self.case.clients, self.case.weights, strict=True)
        }
        return Site(self.algorithm, learner, rows, self.states, ROUNDS, self.case.seed, ranks=self.case.ranks)

    def job(self, client: str, round: int) -> Job:
        """The training of a client in a round, on what the server sends to it."""
        return self.site.prepare(self.server.payload(client, round))

    def train(self, job: Job) -> Update:
        """The update that comes of a training."""
        return self.site.finish(job, self.result(job))

    def result(self, job: Job) -> TrainingResult:
        """What a training comes to, on all rows or on each half of them."""
        metrics = {"loss": 0.0, "steps": 1.0, "seconds": 0.0}
        if not self.algorithm.trains_halves(job.round):
            return TrainingResult(trained_tensors(job), {}, metrics)
        other = replace(job, seed=derive_seed(job.seed, "other half"))
        return mean_of_halves(*(TrainingResult(trained_tensors(each), {}, metrics) for each in (job, other)))

    def round(self, round: int, clients: Iterable[str]) -> list[Update]:
        """Run a round of some clients, and return their updates."""
        payloads = self.server.begin_round(round)
        updates = [self.train(self.site.prepare(payloads[client])) for client in clients]
        self.record = self.server.end_round(round, updates)
        return updates

    def personal(self, client: str, round: int, state: ServerState | None = None) -> State:
        """The tensors that a client would use after a round."""
        initial = ranked(self.initial, self.case.ranks.get(client))
        own = self.states.load_client(client, round)
        version = own.version if own else 0
        received = received_by(self.algorithm, state or self.server.state, client, round + 1, version=version)
        return personal_tensors(self.algorithm, initial, own, received)

    def effects(self, tensors: State) -> dict[str, Tensor]:
        """All that a client's tensors do, as `layer_effects`."""
        return layer_effects(self.case, tensors, self.scaling)


def trained_tensors(job: Job) -> dict[Key, Tensor]:
    """Return a job's tensors with random numbers added to what is trained; the same for the same client and round."""
    generator = torch.Generator().manual_seed(derive_seed(job.seed, "training", job.client, job.round))
    return {
        key: tensor + torch.randn(tensor.shape, generator=generator).to(tensor.dtype) if key in job.keys else tensor
        for key, tensor in job.tensors.items()
    }
