"""Finished runs of the tiny recipe: what they leave, and what a plan must have foretold of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedsa.client.state import personal_tensors
from fedsa.federation import Federation
from fedsa.server import load_state
from fedsa.store import RunFolder
from fedsa.types import State

MEASURED = (
    "trained_parameters",
    "upload_parameters",
    "upload_bytes",
    "download_bytes",
    "sharing_plan",
    "total_upload_bytes",
    "total_download_bytes",
)
"""What a plan and a summary both tell, and must tell alike."""
SETTINGS = ["rounds=3", "training.learning_rate=0.05"]
"""Enough for clients to differ."""


@dataclass(frozen=True)
class TinyRun:
    """A finished run: its federation, its folder (open for reading) and its summary."""

    federation: Federation
    folder: RunFolder
    summary: dict[str, Any]

    def personal(self, client: str) -> State:
        """Return what a client would use after the last round."""
        last, federation = self.federation.recipe.rounds, self.federation
        server = federation.server(
            load_state(self.folder.server_states, last), self.folder.server_states.client_versions(last)
        )
        state, received = self.folder.client_states.load_client(client, last), server.payload(client, last + 1).tensors
        initial = federation.site(self.folder.client_states).initial(client)
        return personal_tensors(federation.algorithm, initial, state, received)


def states_of(run: TinyRun) -> dict[str, Tensor]:
    """Return all that server and clients have after the last round, by name."""
    server = load_state(run.folder.server_states, run.federation.recipe.rounds)
    named = {f"server {key}": tensor for key, tensor in server.tensors.items()}
    for client in run.federation.clients:
        named |= {f"{client} {key}": tensor for key, tensor in run.personal(client).items()}
    return named
