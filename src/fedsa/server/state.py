"""Saving and loading the server's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from fedsa.algorithms.base import ServerState
from fedsa.errors import RunFolderError
from fedsa.types import Key, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ServerStore", "load_state", "save_state"]


class ServerStore(Protocol):
    """Storage for the server's state after each round. A run folder has one."""

    def save_server(
        self,
        round: int,
        tensors: State,
        versions: Mapping[Key, int],
        client_versions: Mapping[str, int],
        slots: Mapping[str, Tensor],
        about: Mapping[str, Any],
    ) -> None:
        """Keep the state after a round; ``client_versions`` is the newest version that each client holds."""
        ...

    def load_server(self, round: int) -> tuple[dict[Key, Tensor], dict[Key, int], dict[str, Tensor], dict[str, Any]]:
        """The tensors, their versions, further tensors and further values after a round that is kept."""
        ...


def save_state(store: ServerStore, round: int, state: ServerState, client_versions: Mapping[str, int]) -> None:
    """Keep the server's state after a round. Tensors that have no values yet, on the device ``meta``, are not kept."""
    about = {"scaling": dict(state.scaling), "groups": dict(state.groups)}
    tensors = {key: tensor for key, tensor in state.tensors.items() if not tensor.is_meta}
    store.save_server(round, tensors, state.versions, client_versions, state.slots, about)


def load_state(store: ServerStore, round: int, first: ServerState | None = None) -> ServerState:
    """The server's state after a round > 0 that is kept.

    Args:
        store: the storage.
        round: the round.
        first: the state before the first round, needed if it has tensors without values.

    Raises:
        RunFolderError: it is not what `save_state` was given.
    """
    tensors, versions, slots, about = store.load_server(round)
    if not {"scaling", "groups"} <= {*about}:
        raise RunFolderError(
            f"the server's state after round {round} is damaged (it lacks scaling or groups): put the run folder back "
            "from a copy, or start a new run"
        )
    if first is not None:
        tensors, versions = {**first.tensors, **tensors}, {**first.versions, **versions}
    return ServerState(tensors, versions, about["scaling"], about["groups"], slots)
