"""`check_laws` finds what is wrong with a method: each law is broken by one here."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from fedsa.adapters.means import mean_update, weighted_mean
from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import LOCAL, SHARED, Algorithm, Plan, ServerState
from fedsa.errors import ProtocolError
from fedsa.testing import LAWS, Case, check_laws, initial_tensors
from fedsa.types import Factor, Key, Payload, Side, State, Update

Updates = Iterable[tuple[Update, int]]
RANDOM = random.Random(0)


@dataclass(frozen=True, kw_only=True)
class Good(Algorithm):
    """Averages everything."""

    source: ClassVar[str] = "a test"

    def plan(self, key: Key, round: int) -> Plan:
        return SHARED if key.factor.side is not Side.HEAD else self.rest_plan(key)


class ChangesItsMind(Good):
    def plan(self, key: Key, round: int) -> Plan:
        return super().plan(key, round) if RANDOM.random() < 0.5 else LOCAL


class SendsWhatItDoesNotTrain(Good):
    def plan(self, key: Key, round: int) -> Plan:
        return super().plan(key, round)._replace(trained=False)


class ReceivesNowAndThen(Good):
    def plan(self, key: Key, round: int) -> Plan:
        return super().plan(key, round)._replace(received=key.factor.side is Side.A and round % 2 == 1)


class IgnoresShareHead(Good):
    def plan(self, key: Key, round: int) -> Plan:
        return SHARED


class AbsorbsSomethingElse(Good):
    def absorb(self, tensors: State, payload: Payload, initial: State) -> State:
        return {key: value + 1 for key, value in super().absorb(tensors, payload, initial).items()}


class SendsEverythingDown(Good):
    def broadcast(self, state: ServerState, client: str, round: int, version: int) -> State:
        return dict(state.tensors)


class ForgetsVersions(Good):
    def renewed(self, state: ServerState, tensors: State, round: int) -> ServerState:
        return replace(super().renewed(state, tensors, round), versions=state.versions)


class TakesTheFirstByOrder(Good):
    def aggregate(self, state: ServerState, updates: Updates, round: int) -> ServerState:
        return self.renewed(state, {} if not (sent := list(updates)) else sent[0][0].tensors, round)


class SumsWeights(Good):
    def aggregate(self, state: ServerState, updates: Updates, round: int) -> ServerState:
        sent = [(update.tensors, weight) for update, weight in updates]
        whole = sum(weight for _, weight in sent)
        return self.renewed(state, {key: mean * whole for key, mean in weighted_mean(sent).items()}, round)


class GoesHalfWay(Good):
    def combine(self, state: ServerState, mean: State, round: int) -> ServerState:
        return self.renewed(state, {key: (value + state.tensors[key]) / 2 for key, value in mean.items()}, round)


class SaysItIsExact(Good):
    exact: ClassVar[bool] = True


class FoldsTwice(Good):
    """As FedEx, but the server forgets what was folded in earlier rounds."""

    exact: ClassVar[bool] = True
    folds: ClassVar[bool] = True
    needs_product: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        return self.rest_plan(key) if key.factor.side in (Side.HEAD, Side.BASE) else SHARED

    def aggregate(self, state: ServerState, updates: Updates, round: int) -> ServerState:
        sent = [(update.tensors, weight) for update, weight in updates]
        means = weighted_mean(sent)
        for module, update in mean_update(state.tensors, state.scaling, sent).items():
            a, b = means[Key(module, Factor.A)], means[Key(module, Factor.B)]
            means[Key(module, Factor.DELTA)] = update - state.scaling[module] * b @ a
        return self.renewed(state, means, round)


class NumbersGroups(Good):
    def aggregate(self, state: ServerState, updates: Updates, round: int) -> ServerState:
        sent = list(updates)
        after = super().aggregate(state, sent, round)
        groups = {update.client: ("group", 1) for update, _ in sent}  # JSON has no tuples
        return replace(after, groups=groups)


class ShrinksEachRound(Good):
    def aggregate(self, state: ServerState, updates: Updates, round: int) -> ServerState:
        after = super().aggregate(state, list(updates), round)
        return replace(after, tensors={key: value * 0.5 for key, value in after.tensors.items()})


class WritesIntoTheState(Good):
    def aggregate(self, state: ServerState, updates: Updates, round: int) -> ServerState:
        for value in state.tensors.values():
            value += 0.0
            value[0] = 1.0
        return super().aggregate(state, updates, round)


class AsksForTooMuch(Good):
    """It asks for every update, and the mean would do."""

    def aggregate(self, state: ServerState, updates: Updates, round: int) -> ServerState:
        return self.renewed(state, weighted_mean((update.tensors, weight) for update, weight in updates), round)


class RemembersTheFirst(Good):
    """It says by `combine` that the mean is enough, and looks at the updates in another place."""

    @classmethod
    def is_additive(cls) -> bool:
        return True

    def aggregate(self, state: ServerState, updates: Updates, round: int) -> ServerState:
        sent = [update.tensors for update, _ in updates]
        return self.renewed(
            state, {key: torch.stack([own[key] for own in sent]).median(0).values for key in (sent or [{}])[0]}, round
        )


class SendsOnlyTheLastRounds(Good):
    def plan(self, key: Key, round: int) -> Plan:
        turn = key.factor.side is (Side.A if round % 2 else Side.B)
        return self.rest_plan(key) if key.factor.side is Side.HEAD else Plan(turn, turn, received=True)

    def broadcast(self, state: ServerState, client: str, round: int, version: int) -> State:
        return super().broadcast(state, client, round, max(version, round - 2))


class ComputesWithInitialValues(Good):
    def combine(self, state: ServerState, mean: State, round: int) -> ServerState:
        return self.renewed(state, {key: value + 0 * state.tensors[key] for key, value in mean.items()}, round)


class AsksForInitialValues(Good):
    needs_initial_values = True


VALUES = "the server computes with initial values only where it says"
BROKEN = [
    (ChangesItsMind, "plan is a function"),
    (SendsWhatItDoesNotTrain, "plan is a function"),
    (ReceivesNowAndThen, "plan is a function"),
    (IgnoresShareHead, "plan is a function"),
    (AbsorbsSomethingElse, "combine after partition is the identity"),
    (SendsEverythingDown, "uploads are what the plan declares"),
    (ForgetsVersions, "uploads are what the plan declares"),
    (SumsWeights, "order and scale of weights do not matter"),
    (TakesTheFirstByOrder, "order and scale of weights do not matter"),
    (GoesHalfWay, "one client keeps its own"),
    (SaysItIsExact, "an exact method is exact"),
    (FoldsTwice, "an exact method is exact"),
    (NumbersGroups, "a saved state goes on as if never saved"),
    (SendsOnlyTheLastRounds, "who skips rounds catches up"),
    (ShrinksEachRound, "without updates nothing changes"),
    (WritesIntoTheState, "aggregate is pure"),
    (AsksForTooMuch, "an additive method needs sums alone"),
    (RemembersTheFirst, "an additive method needs sums alone"),
    (ComputesWithInitialValues, VALUES),
    (AsksForInitialValues, VALUES),
]


def broken_laws(algorithm: Algorithm, variant: str = "lora") -> set[str]:
    """Return the names of the laws that do not hold in some of a few federations."""
    broken = set()
    for seed, (name, law) in itertools.product(range(3), LAWS.items()):
        present = (frozenset({0, 1, 2}), frozenset({1, 2}), frozenset({2}), frozenset({0, 1, 2}))
        try:
            law(Case(algorithm, variant, seed=seed, present=present))
        except (AssertionError, ProtocolError):
            broken.add(name)
    return broken


@pytest.mark.run
@pytest.mark.parametrize(("cls", "law"), BROKEN, ids=lambda each: getattr(each, "__name__", None))
def test_a_law_that_is_broken_is_found(cls: type[Algorithm], law: str) -> None:
    assert law in broken_laws(cls())
    with pytest.raises(AssertionError, match=f"^{cls.__name__} on lora: "):
        check_laws(cls())


@pytest.mark.run
def test_laws_hold_where_nothing_is_broken() -> None:
    assert broken_laws(Good()) == set()
    assert broken_laws(Good(), "vera") == set()
    check_laws(Good())
    check_laws(make_algorithm("fedsa", {}))


def test_every_law_can_be_broken() -> None:
    by_the_server = {"the server refuses what is not declared"}  # broken only by a broken server
    assert {law for _, law in BROKEN} | by_the_server == set(LAWS)


def test_a_server_that_takes_anything_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsa.server import Server

    monkeypatch.setattr(Server, "_check", lambda *_: None)
    monkeypatch.setattr(Algorithm, "aggregate", lambda self, state, updates, round: (list(updates), state)[1])
    assert "the server refuses what is not declared" in broken_laws(make_algorithm("fedsa", {}))


class RefusesAll(Good):
    def refusal(self, variant: str, *, mixed_ranks: bool = False) -> str | None:
        return "no"


def test_a_method_that_refuses_all_is_not_lawful() -> None:
    with pytest.raises(AssertionError, match="RefusesAll refuses every adapter variant"):
        check_laws(RefusesAll())


def test_initial_tensors_are_those_of_the_contract() -> None:
    folding = initial_tensors(Case(FoldsTwice(), "lora"))
    assert {key.factor for key in folding} == {Factor.A, Factor.B, Factor.HEAD, Factor.DELTA}
    assert not any(value.any() for key, value in folding.items() if key.factor is Factor.DELTA)
    mixed = initial_tensors(Case(Good(), "lora", mixed_ranks=True))
    assert not any(value.any() for key, value in mixed.items() if key.factor is Factor.B)
