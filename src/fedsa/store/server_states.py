"""What the server keeps between rounds: its tensors, and which version of them each client holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from pydantic import BaseModel, ConfigDict

from fedsa.errors import RunFolderError
from fedsa.store.background import WriteBehind
from fedsa.store.files import by_key, by_name, load_tensors, packed, remove, sealed
from fedsa.store.locked_folder import LockedFolder
from fedsa.store.rounds import round_file, round_of
from fedsa.texts.words import counted
from fedsa.types import Key, State

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["ServerStateFiles"]

_SLOT = "slot|"
_LAST_TRAINED = "last_trained"  # for each client, in the order of the clients, the round it last trained in; 0: none


class _About(BaseModel):
    """What must stand in a file of the server beside the tensors."""

    model_config = ConfigDict(strict=True, extra="allow")
    versions: dict[str, int]
    scaling: dict[str, float] = {}
    groups: dict[str, str] = {}


@final
class ServerStateFiles:
    """The server's states, one file for each round that is kept, in the folder ``server``.

    Args:
        folder: the run's.
        run: the run's id, which stands in each file.
        clients: ids of all clients of the run, in the order that the files have them in, each with the first round that
            it was in: the files of the rounds before do not have it.
        writes: writes and removes the files.
    """

    def __init__(self, folder: LockedFolder, run: str, clients: Mapping[str, int], writes: WriteBehind) -> None:
        self._folder, self._path = folder, folder.path / "server"
        self._run, self._clients, self._writes = run, clients, writes

    def save_server(
        self,
        round: int,
        tensors: State,
        versions: Mapping[Key, int],
        client_versions: Mapping[str, int],
        slots: Mapping[str, Tensor] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the server's state after a round.

        Args:
            round: its number.
            tensors: the server's tensors.
            versions: of each of them.
            client_versions: client id to the newest version that it holds, for whoever has trained: the one before
                the round of its last training.
            slots: further tensors by name.
            about: further values, as JSON has them.

        Raises:
            UserError: this or an earlier file cannot be written.
        """
        last = torch.tensor([client_versions.get(client, -1) + 1 for client in self._in(round)], dtype=torch.int32)
        own = {"versions": {str(key): version for key, version in versions.items()}}
        named = {f"{_SLOT}{name}": tensor for name, tensor in (slots or {}).items()}
        self._folder.make(self._path)
        content = packed(
            {**by_name(tensors), **named, _LAST_TRAINED: last},
            {**(about or {}), **own, "run": self._run, "round": round},
        )
        self._writes.write(round_file(self._path, round), partial(sealed, content))

    def load_server(self, round: int) -> tuple[dict[Key, Tensor], dict[Key, int], dict[str, Tensor], dict[str, Any]]:
        """Return the server's tensors, their versions, further tensors and further values after a round that is kept.

        Raises:
            RunFolderError: the round is not kept, or its file is damaged.
        """
        tensors, about = self._load(round)
        for name in ("run", "round", "format"):
            del about[name]
        del tensors[_LAST_TRAINED]
        slots = {name.removeprefix(_SLOT): tensors.pop(name) for name in list(tensors) if name.startswith(_SLOT)}
        versions = {Key.parse(name): version for name, version in about.pop("versions").items()}
        return by_key(tensors), versions, slots, about

    def client_versions(self, round: int) -> dict[str, int]:
        """Return, for each client that had trained by a round that is kept, the newest version it had taken in.

        Raises:
            RunFolderError: the round is not kept, or its file is damaged.
        """
        if round < 1:
            return {}
        last, clients = self._load(round)[0][_LAST_TRAINED].tolist(), self._in(round)
        if len(last) != len(clients):
            raise self._damaged(
                self._folder.path / "clients.json",
                f"{counted(len(clients), 'client is', 'clients are')} in it, the run has {len(last)}",
            )
        return {client: trained - 1 for client, trained in zip(clients, last, strict=True) if trained}

    def kept_rounds(self) -> list[int]:
        """Return the rounds whose state is kept, ascending."""
        return sorted(map(round_of, self._files()))

    def prune(self, rounds: Collection[int]) -> None:
        """Have the files of other rounds removed, some time before the writes are settled."""
        for path in self._files():
            if round_of(path) not in rounds:
                self._writes.remove(path)

    def roll_back(self, round: int) -> None:
        """Remove what later rounds, and half a write, left behind.

        Raises:
            UserError: a file cannot be removed.
        """
        for path in self._path.glob(".*.partial"):
            remove(path)
        for path in self._files():
            if round_of(path) > round:
                remove(path)

    def _in(self, round: int) -> list[str]:
        """The clients that a round's file has."""
        return [client for client, first in self._clients.items() if first <= round]

    def _files(self) -> list[Path]:
        return list(self._path.glob("round-*.safetensors"))

    def _load(self, round: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path = round_file(self._path, round)
        self._writes.wait(path)
        tensors, about = load_tensors(path, {"run": self._run, "round": round, "client": None})
        last = tensors.get(_LAST_TRAINED)
        if last is None or last.dtype != torch.int32 or last.dim() != 1:
            raise self._damaged(path, "it is not a server's")
        try:
            _About.model_validate(about)
            for name in {
                *about["versions"],
                *(name for name in tensors if not name.startswith((_SLOT, _LAST_TRAINED))),
            }:
                Key.parse(name)
        except ValueError as error:  # a ValidationError is one
            raise self._damaged(path, " ".join(str(error).split())[:300]) from None
        return tensors, about

    @staticmethod
    def _damaged(path: Path, why: str) -> RunFolderError:
        return RunFolderError(f"{path} is damaged ({why}): put it back as it was from a copy, or start a new run")
