"""The laws that every method obeys, as functions. `fedsa.testing.checking` tries them all on a method.

A law runs a federation without a model (`fedsa.testing.world`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsa.adapters.algebra import rank_of, ranked
from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms.base import Algorithm, Plan
from fedsa.client.training.job import Job
from fedsa.errors import ProtocolError
from fedsa.server import load_state, save_state
from fedsa.testing.comparing import are_close, are_equal, hold, mean_effects
from fedsa.testing.world import (
    LAYERS,
    RANK,
    ROUNDS,
    Case,
    Store,
    World,
    initial_tensors,
    layer_effects,
    trained_tensors,
)
from fedsa.types import Key, Side, State, Update, total_bytes

if TYPE_CHECKING:
    pass

__all__ = [
    "a_saved_state_goes_on_as_if_never_saved",
    "aggregate_is_pure",
    "an_additive_method_needs_sums_alone",
    "an_exact_method_is_exact",
    "combine_after_partition_is_the_identity",
    "one_client_keeps_its_own",
    "order_and_scale_of_weights_do_not_matter",
    "plan_is_a_function",
    "the_server_computes_with_initial_values_only_where_it_says",
    "the_server_refuses_what_is_not_declared",
    "uploads_are_what_the_plan_declares",
    "who_skips_rounds_catches_up",
    "without_updates_nothing_changes",
]


def _overrides(algorithm: Algorithm, *methods: str) -> bool:
    """Whether a method overrides one of these."""
    return any(getattr(type(algorithm), name) is not getattr(Algorithm, name) for name in methods)


def _unsent(case: Case, rounds: Iterable[int]) -> set[Key]:
    """Return the keys that clients train in some round without sending them."""
    plans = [(key, case.algorithm.plan(key, round)) for round in rounds for key in initial_tensors(case)]
    return {key for key, plan in plans if plan.trained and not plan.sent}


def plan_is_a_function(case: Case) -> None:
    """A plan depends on key and round alone; what is sent is trained; what is received is so in all rounds."""
    algorithm, keys = case.algorithm, list(initial_tensors(case))
    for key in keys:
        plans = [algorithm.plan(key, round) for round in range(1, 9)]
        hold(all(isinstance(plan, Plan) for plan in plans), f"plan({key}, ...) is not a Plan")
        hold(plans == [algorithm.plan(key, round) for round in range(1, 9)], f"plan({key}, ...) is not a function")
        hold(len({plan.received for plan in plans}) == 1, f"{key} is received in some rounds and not in others")
        if not algorithm.in_model(key):
            hold(not any(plan.trained for plan in plans), f"{key} is beside the model: no optimiser changes it")
            continue
        hold(all(plan.trained for plan in plans if plan.sent), f"{key} is sent in a round in which it is not trained")
        if key.factor.side is Side.HEAD:
            obeyed = {(plan.trained, plan.sent, plan.received) for plan in plans}
            hold(obeyed == {(True, algorithm.share_head, algorithm.share_head)}, "the head is not as share_head says")
        if key.factor.side is Side.BASE:
            hold(not any(plan.trained or plan.sent for plan in plans), f"{key} is the server's: it cannot be trained")
            hold(plans[0].received, f"{key}: what the server adds to the weights must be received")


def combine_after_partition_is_the_identity(case: Case) -> None:
    """What is sent, kept and frozen are the client's tensors, each once; the sent ones put back give the same."""
    tensors = initial_tensors(case)
    for round in range(1, ROUNDS + 1):
        plans = {key: case.algorithm.plan(key, round) for key in tensors}
        sent = {key: value for key, value in tensors.items() if plans[key].sent}
        kept = {key: value for key, value in tensors.items() if plans[key].trained and not plans[key].sent}
        frozen = {key: value for key, value in tensors.items() if not plans[key].trained and key not in sent}
        hold(len(sent) + len(kept) + len(frozen) == len(tensors), "a tensor is in two parts of the plan, or in none")
        back = case.algorithm.absorb({**frozen, **kept, **sent}, sent, tensors)
        hold(are_equal(back, tensors), "a client that receives its own tensors does not hold the same as before")


def uploads_are_what_the_plan_declares(case: Case) -> None:
    """An update has the tensors that the plan declares sent, no others, and their bytes; so has what comes down."""
    world, algorithm = World(case), case.algorithm
    renewed = dict.fromkeys(world.initial, 0)
    for round, clients in enumerate(case.rounds, start=1):
        sent = {key for key in world.initial if algorithm.plan(key, round).sent}
        received = {key for key in world.initial if algorithm.plan(key, round).received}
        payloads = {client: world.server.payload(client, round) for client in clients}
        for client, payload in payloads.items():
            lacking = {key for key in received if renewed[key] > world.server.client_versions.get(client, 0)}
            hold(set(payload.tensors) <= lacking, f"{client} is sent what it does not receive, or has already")
            complete = set(payload.tensors) == lacking or _overrides(algorithm, "broadcast")
            hold(complete, f"{client} is not sent all that it lacks: does the server give it the round as version?")
        for update in world.round(round, clients):
            hold(
                set(update.tensors) == sent, f"round {round}: an update's tensors are not those that the plan declares"
            )
            own = ranked({key: world.initial[key] for key in sent}, case.ranks.get(update.client))
            size, most = world.record.upload_bytes[update.client], total_bytes(own)
            may_be_less = _overrides(algorithm, "after_training")
            hold(size == most or (may_be_less and size < most), "bytes sent are not bytes planned")
        for client, payload in payloads.items():
            size = total_bytes(payload.tensors)
            hold(world.record.download_bytes[client] == size, "bytes received are not the payload's")
        renewed |= {key: round for key in renewed if algorithm.renews(key, round)}
        hold(dict(world.server.state.versions) == renewed, "the server renews other tensors than `renews` says")


def the_server_refuses_what_is_not_declared(case: Case) -> None:
    """An update with one tensor more than the plan declares is refused, and the state stays."""
    world = World(case)
    world.server.begin_round(1)
    update, before = world.train(world.job(case.clients[0], 1)), world.server.state
    for key, value in world.initial.items():
        if key not in update.tensors:
            try:
                world.server.end_round(1, [replace(update, tensors={**update.tensors, key: value})])
            except ProtocolError:
                hold(world.server.state is before, "a refused update changed the server's state")
            else:
                raise AssertionError(f"the server took {key}, which the plan does not declare sent")


def order_and_scale_of_weights_do_not_matter(case: Case) -> None:
    """Clients registered in another order change no bit; updates in another order and a common factor only round."""
    world, other = World(case), World(case, registered=case.clients[::-1])
    for round, clients in enumerate(case.rounds[:2], start=1):
        state = world.server.state
        updates = world.round(round, clients)
        other.round(round, clients)
        hold(are_equal(world.server.state.tensors, other.server.state.tensors), "the order of registration matters")
        turned = [(update, 7 * update.num_examples) for update in reversed(updates)]
        after = case.algorithm.aggregate(state, iter(turned), round)
        for client in clients:
            one, two = world.personal(client, round), world.personal(client, round, after)
            same = are_close(world.effects(one), world.effects(two), 1e-4)
            hold(same, f"{client} has something else if updates come in another order, with weights times 7")


def one_client_keeps_its_own(case: Case) -> None:
    """With one client the aggregate does what the client's own tensors do."""
    one = replace(case, weights=case.weights[:1], present=(), mixed_ranks=False)
    world = World(one)
    for round in range(1, ROUNDS + 1):
        job = world.job("c0", round)
        own = case.algorithm.after_training(job.tensors, world.result(job).tensors, round)
        world.round(round, ["c0"])
        after = world.personal("c0", round)
        hold(
            are_close(world.effects(after), world.effects(own), 1e-4),
            f"round {round}: one client loses what it learned",
        )
        plain = not _overrides(
            case.algorithm, "absorb", "aggregate", "combine", "combine_weighted", "renewed", "broadcast"
        )
        hold(
            not plain or are_equal(after, own), f"round {round}: the mean of one client is not that client, bit for bit"
        )


def an_exact_method_is_exact(case: Case) -> None:
    """If a method is exact: the aggregate's update is Σ wᵢ·(Δ + s·Bᵢ·Aᵢ), to 1e-6 in float64, in every round."""
    algorithm = case.algorithm
    if not (algorithm.exact and VARIANTS[case.variant].is_product):
        return
    initial = {key: value.double() for key, value in initial_tensors(case).items()}
    scaling = dict.fromkeys(LAYERS, algorithm.scaling(2.0, RANK, len(case.clients)))
    state = algorithm.init(initial, scaling)
    own = {client: dict(ranked(initial, case.ranks.get(client))) for client in case.clients}
    start = dict(own)
    versions = dict.fromkeys(case.clients, 0)

    def received(client: str, round: int, tensors: State) -> State:
        newer = ranked(algorithm.broadcast(state, client, round, versions[client]), case.ranks.get(client))
        return algorithm.absorb(tensors, newer, start[client])

    for round in range(1, ROUNDS + 1):
        updates, effects = [], []
        for client, weight in zip(case.clients, case.weights, strict=True):
            before = received(client, round, own[client])
            trained = tuple(key for key in initial if algorithm.plan(key, round).trained)
            job = Job(client, round, ROUNDS, case.seed, before, trained, (), {}, np.arange(weight))
            own[client] = dict(algorithm.after_training(before, trained_tensors(job), round))
            versions[client] = round - 1
            effects.append(layer_effects(case, own[client], scaling))
            sent = {key: value for key, value in own[client].items() if algorithm.plan(key, round).sent}
            updates.append((Update(client, round, weight, sent), weight))
        state = algorithm.aggregate(state, iter(updates), round)
        mean = mean_effects(effects, case.weights)
        for client in case.clients:
            after = layer_effects(case, received(client, round + 1, own[client]), scaling)
            both = [{module: values[module] for module in LAYERS} for values in (after, mean)]
            hold(are_close(both[0], both[1], 1e-6), f"round {round}: {client} has not the mean of the clients' updates")


def a_saved_state_goes_on_as_if_never_saved(case: Case) -> None:
    """A server whose state is saved and loaded between rounds ends in the same bits."""
    straight, saved, store = World(case), World(case), Store()
    for round, clients in enumerate(case.rounds, start=1):
        straight.round(round, clients)
        saved.round(round, clients)
        save_state(store, round, saved.server.state, saved.server.client_versions)
        saved.server = saved.serving(load_state(store, round))
        one, two = straight.server.state, saved.server.state
        hold(are_equal(one.tensors, two.tensors) and are_equal(one.slots, two.slots), "tensors differ after a resume")
        hold(dict(one.versions) == dict(two.versions), "versions differ after a resume")
        hold(one.groups == two.groups and one.scaling == two.scaling, "groups or scales differ after a resume")
        for client in case.clients:
            both = straight.personal(client, round), saved.personal(client, round)
            hold(are_equal(*both), f"{client} differs after a resume")


def who_skips_rounds_catches_up(case: Case) -> None:
    """A client that was away receives what it would hold had it been sent something in every round.

    Not compared is what a client trains in some round without sending it: that is its own.
    """
    world, algorithm = World(case), case.algorithm
    initial = {client: ranked(world.initial, case.ranks.get(client)) for client in case.clients}
    synchronised = {client: dict(initial[client]) for client in case.clients}
    own = _unsent(case, range(1, len(case.rounds) + 1))
    known: dict[str, set[Key]] = {client: set() for client in case.clients}

    def synchronise(round: int) -> None:
        for client, tensors in synchronised.items():
            newer = algorithm.broadcast(world.server.state, client, round, max(0, round - 2))
            received = ranked(newer, case.ranks.get(client))
            synchronised[client] = dict(algorithm.absorb(tensors, received, initial[client]))
            known[client] |= set(received) - own

    def compare(client: str, round: int, tensors: State) -> None:
        expected = ranked(synchronised[client], rank_of(tensors))
        wrong = [str(key) for key in sorted(known[client]) if not torch.equal(tensors[key], expected[key])]
        hold(not wrong, f"round {round}: {client} was away and does not hold what it would otherwise: {wrong[:3]}")

    for round, clients in enumerate(case.rounds, start=1):
        synchronise(round)
        for client in clients:
            compare(client, round, world.job(client, round).tensors)
        world.round(round, clients)
    last = len(case.rounds)
    synchronise(last + 1)
    for client in case.clients:
        compare(client, last + 1, world.personal(client, last))


def without_updates_nothing_changes(case: Case) -> None:
    """A round in which no update arrives leaves what every client would use in a round.

    Not compared is what a client trains in some round without sending it: the server's value takes the place of it.
    """
    world = World(case)
    own = _unsent(case, range(1, 3))
    world.round(1, case.rounds[0])
    before = world.server.state
    world.round(2, [])
    for client in case.clients:
        one, two = world.personal(client, 2, before), world.personal(client, 2)
        same = all(torch.equal(one[key], two[key]) for key in one if key not in own)
        hold(same and one.keys() == two.keys(), f"{client} has something else after a round without updates")


def aggregate_is_pure(case: Case) -> None:
    """Aggregation changes neither the state before nor the updates; the new state has its shapes and types."""
    world = World(case)
    for round, clients in enumerate(case.rounds[:2], start=1):
        state = world.server.state
        world.server.begin_round(round)
        updates = [world.train(world.job(client, round)) for client in clients]
        copies = [{key: value.clone() for key, value in own.items()} for own in (state.tensors, *_tensors(updates))]
        slots = {name: value.clone() for name, value in state.slots.items()}
        world.server.end_round(round, updates)
        unchanged = all(
            are_equal(own, copy) for own, copy in zip((state.tensors, *_tensors(updates)), copies, strict=True)
        )
        hold(unchanged and are_equal(state.slots, slots), "aggregate changed what it was given")
        after = world.server.state.tensors
        hold(after.keys() == state.tensors.keys(), "aggregate adds or drops tensors")
        for key, value in after.items():
            like = value.shape == state.tensors[key].shape and value.dtype == state.tensors[key].dtype
            hold(like and bool(value.isfinite().all()), f"{key} has another shape or type, or is not finite")


def _tensors(updates: Iterable[Update]) -> list[State]:
    return [update.tensors for update in updates]


def an_additive_method_needs_sums_alone(case: Case) -> None:
    """A method without `aggregate` needs no more than the mean, and one with it needs more, with its default options.

    What is compared: clients that all send the mean, and clients that send their own tensors.
    """
    if case.mixed_ranks:
        return
    if case.algorithm.is_additive():
        hold(_needs_sums_alone(case), "it is not additive: the mean of the updates is not all that the server needs")
        return
    plain = replace(case, algorithm=type(case.algorithm)(), weights=(1, 3, 2))
    hold(
        not _needs_sums_alone(plain),
        "it overrides aggregate, and the mean of the updates is all that the server needs: override combine instead",
    )


def _needs_sums_alone(case: Case) -> bool:
    """Whether the result is the same if all clients send the mean, as if each sends its own tensors."""
    world = World(case)
    state = world.server.state
    updates = world.round(1, case.clients)
    mean = {
        key: torch.stack([update.tensors[key].double() * update.num_examples for update in updates]).sum(0)
        / sum(case.weights)
        for key in updates[0].tensors
    }
    alike = [replace(update, tensors=mean) for update in updates]
    states = [
        case.algorithm.aggregate(state, ((update, update.num_examples) for update in sent), 1)
        for sent in (updates, alike)
    ]
    pairs_of_effects = ([world.effects(world.personal(client, 1, each)) for each in states] for client in case.clients)
    return all(are_close(one, two, 1e-4) for one, two in pairs_of_effects)


def the_server_computes_with_initial_values_only_where_it_says(case: Case) -> None:
    """A server that starts from shapes alone sends what one with values sends, unless the method says otherwise.

    Mixed ranks are left out: there a mean has the initial values in the rows and columns that no update has.
    """
    if case.mixed_ranks:
        return
    if not case.algorithm.needs_initial_values:
        hold(_shapes_are_enough(case), "the server computes with initial values: needs_initial_values = True says so")
        return
    plain = replace(case, algorithm=type(case.algorithm)(), weights=(1, 3, 2))
    hold(not _shapes_are_enough(plain), "needs_initial_values = True, and shapes are enough for the server")


def _shapes_are_enough(case: Case) -> bool:
    """Whether a server without initial values sends the same as one that has them: to one client, and to all."""
    whole, bare = World(case), World(case)
    shapes = {key: value if key.factor.side is Side.BASE else value.to("meta") for key, value in bare.initial.items()}
    bare.server = bare.serving(case.algorithm.init(shapes, bare.scaling))
    for round, clients in enumerate([case.clients[:1], case.clients, *case.rounds], start=1):
        for client in case.clients:
            one, two = (world.server.payload(client, round).tensors for world in (whole, bare))
            if any(tensor.is_meta for tensor in two.values()) or not are_equal(one, two):
                return False
        if clients:  # without an update there is nothing to send instead of the initial values
            whole.round(round, clients)
            try:
                bare.round(round, clients)
            except (
                ProtocolError,
                RuntimeError,
            ):  # of the server, or of torch: a tensor without values was computed with
                return False
    return True
