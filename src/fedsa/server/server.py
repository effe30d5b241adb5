"""The server's part of a round, as a state machine without I/O: it gives payloads, and takes updates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, final

from fedsa.adapters.algebra import ranked
from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.errors import ConfigError, Mistake, ProtocolError
from fedsa.secure.fixed_point import added
from fedsa.seeds import derive_seed
from fedsa.server.arrivals import Arrivals, TooLateError, check_finite, check_place, check_tensors, name_of
from fedsa.server.bases import base_of, with_bases
from fedsa.server.sampling import sample_clients
from fedsa.steps import PLAIN, Chain, SecureSum, Staleness
from fedsa.texts.words import counted
from fedsa.types import Payload, Payloads, RoundRecord, State, Update, total_bytes

__all__ = ["OpenSum", "Server", "received_by"]

OpenSum: TypeAlias = "Callable[[int, Collection[str], State], State]"
"""From a round, the clients that are in its sum, and the sum of all that was sent: the weighted mean, in float64."""


def received_by(
    algorithm: Algorithm,
    state: ServerState,
    client: str,
    round: int,
    *,
    version: int = 0,
    steps: Chain = PLAIN,
    rank: int | None = None,
) -> State:
    """The tensors of a server's state that a client receives before it trains in a round.

    Args:
        algorithm: the method.
        state: the server's state.
        client: the client's id; the method need not know it.
        round: the round that begins.
        version: the newest version that the client holds.
        steps: the changes to tensors between server and client.
        rank: the client's rank; None: the rank of the state's tensors.
    """
    return steps.on_payload(ranked(algorithm.broadcast(state, client, round, version), rank))


@final
class Server:
    """The server of a federation: it samples clients, makes their payloads and combines their updates.

    Args:
        algorithm: the method.
        state: its server state.
        clients: every registered client's id.
        seed: the run's seed; which clients are sampled depends only on it and on the round.
        fraction_train: part of the clients that trains in a round; at least one does.
        weighting: clients' weights in the average.
        steps: the changes to payloads, to updates, and to the mean of the updates.
        client_versions: client id to the newest version that it holds; a missing client holds the initial state.
        ranks: client id to its rank, if this is lower than the rank of the state's tensors.
        stateless: clients keep nothing between rounds, so each payload has all tensors that changed since the start.
        only_measured: ids of clients that are measured as the others, and never train.
        quorum: an update that does not fit is left out, named in the round's record, as long as so many good ones come;
            None: it ends the round, as a simulation wants it, where it can only be a fault of the program.
        open_sum: with secure aggregation: makes the mean of the sum of what was sent.

    Raises:
        ConfigError: a step cannot be used with the method; the method would ignore it silently.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        state: ServerState,
        clients: Sequence[str],
        *,
        seed: int,
        fraction_train: float = 1.0,
        weighting: Literal["num_examples", "uniform"] = "num_examples",
        steps: Chain = PLAIN,
        client_versions: Mapping[str, int] | None = None,
        ranks: Mapping[str, int] | None = None,
        stateless: bool = False,
        only_measured: Collection[str] = (),
        quorum: int | None = None,
        open_sum: OpenSum | None = None,
    ) -> None:
        for step in steps.steps:
            reason = step.refusal(algorithm, mixed_ranks=bool(ranks))
            if reason is not None:
                raise ConfigError([Mistake(step.setting, f"{step.name} does not go with this method: {reason}")])
        self.algorithm = algorithm
        self.state = state
        self.clients = tuple(sorted(clients))
        self._trained = tuple(client for client in self.clients if client not in only_measured)
        self.client_versions = dict(client_versions or {})
        self._ranks, self._stateless, self._quorum = dict(ranks or {}), stateless, quorum
        self._seed, self._fraction, self._weighting, self._steps = seed, fraction_train, weighting, steps
        self._late = next((step for step in steps.steps if isinstance(step, Staleness)), None)
        self._sums_only, self._open_sum = any(isinstance(step, SecureSum) for step in steps.steps), open_sum
        self._open: dict[str, int] = {}  # clients that were asked in this round, each with the bytes it was sent
        self._asked: dict[str, int] = {}  # these, and those that still train, each with the round it was asked in

    def sample(self, round: int) -> tuple[str, ...]:
        """The clients that train in a round, sorted."""
        return sample_clients(self._trained, self._fraction, derive_seed(self._seed, "clients", round))

    def begin_round(self, round: int, underway: Mapping[str, int] | None = None) -> Payloads:
        """Begin a round, and return the payloads of the clients that are asked to train.

        Each payload is made when it is looked up; its bytes are counted then, as sent.

        Args:
            round: its number.
            underway: where rounds overlap, the clients that still train, with the round that each was asked in. They
                are not asked again, and their updates may come in this round.
        """
        self._asked = dict(underway or {})
        self._open = dict.fromkeys((client for client in self.sample(round) if client not in self._asked), 0)
        self._asked |= dict.fromkeys(self._open, round)

        def sent(client: str) -> Payload:
            payload = self.payload(client, round)
            self._open[client] = total_bytes(payload.tensors)
            return payload

        return Payloads(round, self._open, sent)

    def payload(self, client: str, round: int) -> Payload:
        """The payload of one client before it trains in a round, with the steps' notes; nothing is counted."""
        payload = self.payloads([client], round)[client]
        return replace(payload, tensors={**payload.tensors, **self._steps.notes_to_client(self.state.slots)})

    def payloads(
        self,
        clients: Sequence[str],
        round: int,
        state: ServerState | None = None,
        client_versions: Mapping[str, int] | None = None,
    ) -> Payloads:
        """The payloads of clients before a round; nothing is counted.

        Args:
            clients: ids.
            round: the round.
            state: the server's state before it; None: as it is now.
            client_versions: the newest version that each client holds; None: as it is now.
        """
        versions = self.client_versions if client_versions is None else client_versions

        def made(client: str) -> Payload:
            tensors = received_by(
                self.algorithm,
                state or self.state,
                client,
                round,
                version=versions.get(client, 0),
                steps=self._steps,
                rank=self._ranks.get(client),
            )
            return Payload(client, round, round - 1, tensors, held=versions.get(client, 0))

        return Payloads(round, clients, made)

    def end_round(self, round: int, updates: Iterable[Update]) -> RoundRecord:
        """Aggregate and return the record of the round.

        Args:
            round: the round that `begin_round` began.
            updates: of the clients that finished, in the order of their ids, so that equal rounds give equal bits; a
                client that was asked may be missing. They are asked for one by one and each is checked as it comes;
                none is kept, unless the method keeps it. What they raise goes through, and the state is as it was
                before.

        Raises:
            ProtocolError: an update that was not asked for or came out of order, or whose tensors are not exactly what
                the plan declares; with a quorum: fewer good updates than that; no update, where the server has shapes
                alone. The state is as it was before.
        """
        planned, come = self._planned(round), Arrivals(round, self._quorum)

        def arriving() -> Iterator[tuple[Update, int]]:
            for update in updates:
                try:
                    self._check(update, round, planned, come.upload_bytes)
                    taken, weight = self._taken(update, round, planned)
                except ProtocolError as error:
                    if self._quorum is None and not isinstance(error, TooLateError):
                        raise
                    come.rejected[update.client] = str(error)
                    continue
                come.add(update)
                yield taken, weight

        arrivals = self._steps.screened(arriving(), self.state.tensors, come.note)
        state = self._aggregated(arrivals, round, come.check_quorum)
        for _ in arrivals:  # a method may not look at every update, but all clients must train
            pass
        come.check_quorum()
        _refuse_unknown(state, self.algorithm, round)
        if self._late is not None:
            missing = {client: asked for client, asked in self._asked.items() if client not in come.clients}
            state = with_bases(state, self.state, [*planned], missing, round=round, most=self._late.most)
        self.state = state
        if not self._stateless:
            self.client_versions |= come.base_versions
        record = come.record(self._open, self._asked if self._late else None)
        self._open, self._asked = {}, {}
        return record

    def check(self, update: Update, round: int) -> None:
        """Refuse an update that `end_round` would refuse, as soon as it is here: another one can still be asked for.

        Args:
            update: as it arrived.
            round: the open one.

        Raises:
            ProtocolError: it does not fit the round, or its values cannot be used.
        """
        planned = self._planned(round)
        self._check(update, round, planned, {})
        self._taken(update, round, planned)

    def _planned(self, round: int) -> State:
        """The server's values of the tensors that are sent in a round."""
        return {key: tensor for key, tensor in self.state.tensors.items() if self.algorithm.plan(key, round).sent}

    def _aggregated(
        self, updates: Iterable[tuple[Update, int]], round: int, check_quorum: Callable[[], None]
    ) -> ServerState:
        """The state after a round: steps compute the mean, unless the method needs each single update."""
        if self._sums_only:
            return self._summed(updates, round, check_quorum)
        if not self.algorithm.is_additive():
            return self.algorithm.aggregate(self.state, updates, round)
        weights: list[int] = []

        def weighed() -> Iterator[tuple[Update, int]]:
            for update, weight in updates:
                weights.append(weight)
                yield update, weight

        mean, slots = self._steps.mean(weighed(), self.state, round, self._seed, len(self._asked))
        return self.algorithm.combine_weighted(replace(self.state, slots=slots), mean, weights, round)

    def _summed(
        self, updates: Iterable[tuple[Update, int]], round: int, check_quorum: Callable[[], None]
    ) -> ServerState:
        """The state after a round, where the server sees sums only: steps and method get the mean."""
        if self._open_sum is None:
            raise ValueError("a server that sees sums only needs what opens them")
        weights: dict[str, int] = {}

        def arriving() -> Iterator[State]:
            for update, weight in updates:
                weights[update.client] = weight
                yield update.tensors

        sums = added(arriving())
        check_quorum()  # a sum that is opened cannot be closed again
        mean = self._open_sum(round, tuple(weights), sums) if sums else {}
        mean, slots = self._steps.mean_of_sum(mean, tuple(weights.values()), self.state, round, self._seed)
        return self.algorithm.combine_weighted(replace(self.state, slots=slots), mean, list(weights.values()), round)

    def _taken(self, update: Update, round: int, planned: State) -> tuple[Update, int]:
        """An update as the method gets it, and its weight.

        Raises:
            ProtocolError: it comes too late, or a step cannot take it.
        """
        late = round - update.round
        if self._late is not None and late > self._late.most:
            raise TooLateError(f"{name_of(update)}: it comes {counted(late, 'round')} late, {self._late.most} count")
        if late:
            base = ranked(base_of(self.state, update.round - 1), self._ranks.get(update.client))
            received = self._steps.on_payload(base) if update.round > 1 else base  # the first ones were never sent
            update = replace(update, staleness=late, base=received)
        weight = update.num_examples if self._weighting == "num_examples" else 1
        if self._sums_only:
            return update, weight
        taken, weight = self._steps.on_server(update, weight, planned)
        check_finite(taken)
        return taken, weight

    def _check(self, update: Update, round: int, planned: State, seen: dict[str, int]) -> None:
        """Refuse an update that does not fit the round; ``seen`` has the clients whose updates came, in order."""
        check_place(update, round, self._asked, seen)
        if self._sums_only and not update.tensors:
            return  # its site has added it to another client's
        forms = self._steps.forms(ranked(planned, self._ranks.get(update.client)))
        check_tensors(update, forms, cut_ranks=self.algorithm.cuts_ranks())


def _refuse_unknown(state: ServerState, algorithm: Algorithm, round: int) -> None:
    """Refuse a state that would have the server send a tensor whose value it does not know.

    Raises:
        ProtocolError: no update came, and the server has begun from shapes alone.
    """
    for key, tensor in state.tensors.items():
        if tensor.is_meta and state.versions[key] > 0 and algorithm.plan(key, round).received:
            raise ProtocolError(f"round {round}: no update came, and the server has no value of {key} yet")
