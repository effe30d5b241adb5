"""The run that is audited: its federation with all rows, and what each client has after the last round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np
import torch

from fedsa.errors import RunFolderError, UserError
from fedsa.federation import Federation, on_this_machine
from fedsa.recipe import refuse_objects
from fedsa.runs.personal import PersonalStates, trained_keys
from fedsa.seeds import derive_seed
from fedsa.server import updates_in_round
from fedsa.store import FinishedRun, require_clients
from fedsa.types import Key, Side, State

if TYPE_CHECKING:
    from torch import Tensor

    from fedsa.tasks.base import IntArray

__all__ = ["Part", "Subject"]


class Part(NamedTuple):
    """Tensors that an attacker sees.

    Attributes:
        name: ``A``, ``B``, ``A and B``; ``all``, of an adapter without sides.
        keys: which.
        leaves: every one of them is sent in this run.
    """

    name: str
    keys: tuple[Key, ...]
    leaves: bool


@final
@dataclass(frozen=True)
class Subject:
    """The run that is audited.

    Attributes:
        run: the finished run.
        federation: the same federation again: model, rows and method.
        states: what clients have after the last round.
        clients: whose updates and adapters are attacked.
        most_rows: the most rows of a client that are looked at, of members and of others.
        summed: the server sees the sum over clients only.
    """

    run: FinishedRun
    federation: Federation
    states: PersonalStates
    clients: tuple[str, ...]
    most_rows: int = 100
    summed: bool = False

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        federation: Federation | None = None,
        most_clients: int = 8,
        most_rows: int = 100,
        tell: Callable[[str], None] = lambda text: None,
    ) -> Subject:
        """Open a finished run, and make its federation again.

        Args:
            path: the run folder.
            federation: the run's, where it was made of Python objects; None: from its recipe.
            most_clients: how many are attacked: evenly from all, by their ids.
            most_rows: as for `Subject`.
            tell: told what takes time.

        Raises:
            UserError: it is not finished, it is no simulation, or its model or rows are not here any more.
        """
        run = FinishedRun.open(path)
        require_clients(run.folder)
        if federation is None:
            refuse_objects(run.recipe, path)
            federation = Federation.from_recipe(on_this_machine(run.recipe), on_progress=tell)
        if federation.algorithm.pools_rows:
            raise UserError(f"{path}: all rows were put together, so nothing of a single client can be audited")
        run.check_base(federation.base)
        progress = run.folder.progress()
        if progress is None or progress.data != federation.data_fingerprint:
            raise RunFolderError(
                f"{path}: the clients' rows are not those that the run began with, so it cannot be audited: put the "
                "data (or the model's tokenizer) back as it was"
            )
        torch.set_num_threads(federation.recipe.compute.threads)
        states = PersonalStates(run.folder, federation.algorithm, progress.round)
        everyone = federation.clients
        some = sorted({round(place) for place in np.linspace(0, len(everyone) - 1, most_clients)})
        clients = tuple(everyone[place] for place in some)
        return cls(run, federation, states, clients, most_rows, federation.recipe.secure_aggregation)

    @property
    def together(self) -> tuple[str, ...]:
        """The clients in a sum: those that are attacked, and others, up to as many as train in a round."""
        others = [client for client in self.federation.clients if client not in self.clients]
        count = updates_in_round(self.federation.recipe, len(self.federation.clients))
        return (*self.clients, *others)[: max(count, len(self.clients))]

    @property
    def slots(self) -> Mapping[str, Tensor]:
        """What the server's steps keep from round to round."""
        return self.states.server.slots

    @property
    def keys(self) -> tuple[Key, ...]:
        """All that clients train."""
        return trained_keys(
            self.federation.recipe.rounds, self.federation.algorithm, self.federation.model.keys, personal=False
        )

    def parts(self) -> Iterator[Part]:
        """Yield what an attacker may see of an update: one side, the other, both.

        Raises:
            UserError: the method trains no adapter.
        """
        sides = {
            side: tuple(key for key in self.keys if key.factor.side is side) for side in (Side.A, Side.B, Side.WHOLE)
        }
        named = [(side.value if side is not Side.WHOLE else "all", keys) for side, keys in sides.items() if keys]
        if not named:
            raise UserError(f"{self.run.folder.path}: clients of this run train no adapter, so there is nothing to see")
        if sides[Side.A] and sides[Side.B]:
            named.append(("A and B", sides[Side.A] + sides[Side.B]))
        for name, keys in named:
            factors = {key.factor for key in keys}
            sent = {key.factor for key in keys if self.is_sent(key)}  # one of two adapters may be enough
            yield Part(name, keys, sent == factors)

    def is_sent(self, key: Key) -> bool:
        """Whether a tensor leaves a client in some round."""
        rounds = range(1, self.federation.recipe.rounds + 1)
        return any(self.federation.algorithm.leaves(key, round) for round in rounds)

    def state(self, client: str) -> State:
        """What a client would use after the last round."""
        return self.states.of(client)

    def beginning(self, client: str) -> State:
        """What a client's training would begin with after the last round."""
        return self.states.of(client, for_training=True)

    def start(self, client: str) -> State:
        """What a client started the run with: the base model, with an adapter that does nothing yet."""
        return self.states.start(client)

    def members(self, client: str) -> IntArray:
        """Some training rows of a client, in random order."""
        return self.trained(client, self.most_rows)

    def trained(self, client: str, count: int) -> IntArray:
        """So many training rows of a client, in random order: the first of them are those of `members`."""
        rows: IntArray = self.federation.rows.partition.clients[client].train
        chosen: IntArray = self.random("members", client).permutation(rows)[:count]
        return chosen

    def others(self, client: str) -> IntArray:
        """Some rows of a client that it does not train on, in random order."""
        rows = self.federation.rows.partition.clients[client]
        found = np.concatenate([rows.validation, rows.test])
        chosen: IntArray = self.random("others", client).permutation(found)[: self.most_rows]
        return chosen

    def random(self, *purpose: str | int) -> np.random.Generator:
        """Random numbers of their own for a purpose."""
        return np.random.default_rng(derive_seed(self.federation.recipe.seed, "audit", *purpose))

    def with_federation(self, federation: Federation) -> Subject:
        """The same run with another federation, whose rows or settings an attack has changed."""
        return replace(self, federation=federation)
