"""A server is made from the agreement alone: no rows, no model, and values only if the method needs them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from fedsa.agreement import Agreement
from fedsa.algorithms.base import ServerState
from fedsa.server.server import OpenSum, Server

__all__ = ["server_of"]


def server_of(
    agreement: Agreement,
    clients: Iterable[str],
    state: ServerState,
    *,
    client_versions: Mapping[str, int] | None = None,
    only_measured: Collection[str] = (),
    quorum: int | None = None,
    open_sum: OpenSum | None = None,
    secret: bytes | None = None,
) -> Server:
    """The server of a federation.

    Args:
        agreement: the settings and shapes that server and sites have in common.
        clients: every registered client's id.
        state: after the last finished round, or `Agreement.first_state`.
        client_versions: client id to the newest version that it holds; a missing client holds the initial state.
        only_measured: as for `Server`.
        quorum: as for `Server`.
        open_sum: as for `Server`.
        secret: what the server makes noise from that protects; None: the run's seed, as in a simulation.
    """
    recipe = agreement.recipe
    return Server(
        agreement.algorithm,
        state,
        tuple(clients),
        seed=recipe.seed,
        fraction_train=recipe.fraction_train,
        weighting=recipe.weighting,
        steps=replace(agreement.steps, secret=secret),
        client_versions=client_versions,
        ranks=agreement.ranks,
        stateless=recipe.personal_state == "reconstruct",
        only_measured=only_measured,
        quorum=quorum,
        open_sum=open_sum,
    )
