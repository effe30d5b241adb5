"""The server's state on its way to a disk and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from fedsa.algorithms.base import ServerState
from fedsa.types import Key, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ServerStore", "load_state", "save_state"]


class ServerStore(Protocol):
    """Where the server's state outlives a round. The run folder is one."""

    def save_server(
        self,
        round: int,
        tensors: State,
        versions: Mapping[Key, int],
        client_versions: Mapping[str, int],
        slots: Mapping[str, Tensor],
        about: Mapping[str, Any],
    ) -> None:
        """Keep the state that a round left; ``client_versions`` is the newest version that each client holds."""
        ...

    def load_server(self, round: int) -> tuple[dict[Key, Tensor], dict[Key, int], dict[str, Tensor], dict[str, Any]]:
        """Return the tensors, their versions, further tensors and further values after a round that is kept."""
        ...


def save_state(store: ServerStore, round: int, state: ServerState, client_versions: Mapping[str, int]) -> None:
    """Keep the server's state after a round."""
    about = {"scaling": dict(state.scaling), "groups": dict(state.groups)}
    store.save_server(round, state.tensors, state.versions, client_versions, state.slots, about)


def load_state(store: ServerStore, round: int) -> ServerState:
    """Return the server's state as it was after a round > 0 that is kept."""
    tensors, versions, slots, about = store.load_server(round)
    return ServerState(tensors, versions, about["scaling"], about["groups"], slots)
