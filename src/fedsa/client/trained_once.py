"""With differential privacy a client trains once in a round: what it was asked to train from is written down first.

What a run spends is counted for one training in each round. A server that had a client train the same round from other
tensors would get a second update with a second noise, and the client would have spent twice. Clients that are asked
together may go through the model together, where one's result depends a little on who else is there. So a message
counts as a whole: other clients in it are another beginning too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import final

from fedsa.errors import ProtocolError, RunFolderError
from fedsa.messages import digest_of
from fedsa.store.files import hash_of, write_atomically
from fedsa.store.seals import read_sealed, sealed_table
from fedsa.types import Payload, Payloads

__all__ = ["TrainedOnce"]

_NAME, _ENTRY = "trained.json", "begun"


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
            payloads: what the server sends them in one message.

        Raises:
            ProtocolError: a client has begun this round from another message, or a later round.
            RunFolderError: the file is damaged or cannot be read.
            UserError: it cannot be written.
        """
        last, digest = self._read(), _digest([payloads[client] for client in payloads])
        for client in payloads:
            round, known = last.get(client, (0, ""))
            if payloads.round < round or (payloads.round == round and digest != known):
                raise ProtocolError(
                    f"client {client!r} has begun round {round} from other tensors or beside other clients: a second "
                    f"training of round {payloads.round} would spend its privacy twice. With a quorum the server goes "
                    "on without this site in that round"
                )
        begun = last | dict.fromkeys(payloads, (payloads.round, digest))
        write_atomically(self._path, sealed_table({_ENTRY: begun}).encode())
        self._last = begun

    def _read(self) -> dict[str, tuple[int, str]]:
        """What was written down last."""
        if self._last is None:
            try:
                entries = read_sealed(self._path)[_ENTRY] if self._path.exists() else {}
                self._last = {client: (int(round), str(digest)) for client, (round, digest) in entries.items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise RunFolderError(f"{self._path} cannot be read ({error}): put it back from a copy") from None
        return self._last


def _digest(payloads: Iterable[Payload]) -> str:
    """A hash of what clients train from: of each the server's tensors, and the version that they bring it to."""
    each = [
        digest_of(
            f"{payload.client} version {payload.version}", {str(key): value for key, value in payload.tensors.items()}
        )
        for payload in payloads
    ]
    return hash_of("\n".join(each).encode())
