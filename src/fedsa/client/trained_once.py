"""With differential privacy a client trains once in a round: what it was asked to train from is written down first.

What a run spends is counted for one training in each round. A server that had a client train the same round from other
tensors would get a second update with a second noise, and the client would have spent twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import final

from fedsa.errors import ProtocolError, RunFolderError
from fedsa.messages import digest_of
from fedsa.store.files import read_file, write_atomically
from fedsa.texts.json_text import parsed_json
from fedsa.types import Payload, Payloads

__all__ = ["TrainedOnce"]

_NAME = "trained.json"


@final
class TrainedOnce:
    """The last round that each client of a site has begun to train, and from what; it outlives the process.

    Args:
        folder: the site's own.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._last: dict[str, tuple[int, str]] | None = None

    def begin(self, payloads: Payloads) -> None:
        """Write down what clients are about to train from, before any of them trains.

        The same again is no second training: it comes to the same update.

        Args:
            payloads: what the server sends them.

        Raises:
            ProtocolError: a client has begun this round from other tensors, or a later round.
            RunFolderError: the file is damaged or cannot be read.
            UserError: it cannot be written.
        """
        last, begun = self._read(), {}
        for client in payloads:
            digest, (round, known) = _digest(payloads[client]), last.get(client, (0, ""))
            if payloads.round < round or (payloads.round == round and digest != known):
                raise ProtocolError(
                    f"client {client!r} has begun round {round} from other tensors: a second training of round "
                    f"{payloads.round} would spend its privacy twice"
                )
            begun[client] = (payloads.round, digest)
        write_atomically(self._path, json.dumps(last | begun).encode())
        self._last = last | begun

    def _read(self) -> dict[str, tuple[int, str]]:
        """What was written down last."""
        if self._last is None:
            try:
                entries = parsed_json(read_file(self._path)) if self._path.exists() else {}
                self._last = {client: (int(round), str(digest)) for client, (round, digest) in entries.items()}
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise RunFolderError(f"{self._path} cannot be read ({error}): put it back from a copy") from None
        return self._last


def _digest(payload: Payload) -> str:
    """A hash of what a client trains from: the server's tensors, and the version that they bring the client to."""
    return digest_of(f"version {payload.version}", {str(key): tensor for key, tensor in payload.tensors.items()})
