"""How many bytes a run will send, counted with the server that sends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedsa.adapters.algebra import ranked
from fedsa.algorithms.base import Algorithm
from fedsa.recipe import BufferedSettings, Recipe
from fedsa.server import Server
from fedsa.steps import make_chain
from fedsa.types import Factor, State, total_bytes

__all__ = ["count_traffic"]


def count_traffic(
    algorithm: Algorithm, tensors: State, recipe: Recipe, clients: int, ranks: Mapping[int, int] | None = None
) -> tuple[int, int]:
    """Return the bytes that all clients send and receive over the whole run, where every update arrives.

    Exact also where only a part of the clients trains in a round: which ones depends on the seed and the round alone.
    Where rounds overlap, who comes when is not known: they are taken to come in the order in which they were asked.

    Args:
        algorithm: the method.
        tensors: every tensor of the adapter and the head; only shapes and types are looked at.
        recipe: tells rounds, seed and the part that trains.
        clients: their number; their names do not matter.
        ranks: the place of a client in the order of ids to its rank, of those whose rank is less than the tensors'.
    """
    whole = algorithm.whole(tensors)
    names = [f"{number:09d}" for number in range(clients)]
    by_name = {names[place]: rank for place, rank in (ranks or {}).items()}
    scaling = {key.module: 1.0 for key in tensors if key.factor is Factor.A}  # values there are none
    steps = make_chain(recipe.steps)
    server = Server(
        algorithm,
        algorithm.init(tensors, scaling),
        names,
        seed=recipe.seed,
        fraction_train=recipe.fraction_train,
        steps=steps,
        ranks=by_name,
        stateless=recipe.personal_state == "reconstruct",
    )
    upload = download = 0
    underway: list[str] = []
    for round in range(1, recipe.rounds + 1):
        asked = [client for client in server.sample(round) if client not in underway]
        come = _come(recipe, round, underway + asked)
        sent = {key: tensor for key, tensor in whole.items() if algorithm.plan(key, round).sent}
        sizes: dict[int | None, int] = {}
        by_version: dict[tuple[int, int | None], int] = {}
        for client in asked:
            version, rank = server.client_versions.get(client, 0), by_name.get(client)
            if (version, rank) not in by_version:
                by_version[version, rank] = total_bytes(server.payload(client, round).tensors)
            download += by_version[version, rank]
            if recipe.personal_state == "store":
                server.client_versions[client] = round - 1
        for client in come:
            rank = by_name.get(client)
            if rank not in sizes:
                sizes[rank] = steps.upload_bytes(ranked(sent, rank))
            upload += sizes[rank]
        underway = (underway + asked)[len(come) :]
        server.state = algorithm.aggregate(server.state, (), round)  # new versions; values there are none
    return upload, download


def _come(recipe: Recipe, round: int, underway: Sequence[str]) -> Sequence[str]:
    """Return the clients whose updates end a round, of those that train in it."""
    if isinstance(recipe.overlap, BufferedSettings) and round < recipe.rounds:
        return underway[: recipe.overlap.buffer]
    return underway
