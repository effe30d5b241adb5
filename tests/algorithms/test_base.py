import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, final

import pytest
import torch
from pydantic import Field

from fedsa import algorithms
from fedsa.algorithms import algorithm_names, check_algorithm, find_algorithm, make_algorithm
from fedsa.algorithms.base import FROZEN, LOCAL, SHARED, Algorithm, Plan, ServerState
from fedsa.algorithms.fedit import FedIT
from fedsa.algorithms.fedsa import FedSA
from fedsa.algorithms.ffa import FFA
from fedsa.algorithms.local import Local
from fedsa.errors import ConfigError, Mistake, UserError
from fedsa.server import Server
from fedsa.types import Factor, Key, Side, Update
from support.methods import Alternating, Median

HERE = __name__


@final
@dataclass(frozen=True, kw_only=True)
class WithOptions(Algorithm):
    """A method from outside the package."""

    strength: Annotated[float, Field(gt=0)] = 1.0
    twice: int = 2

    source: ClassVar[str] = "a test"

    def plan(self, key: Key, round: int) -> Plan:
        return SHARED


@final
@dataclass(frozen=True, kw_only=True)
class First(Algorithm):
    """Takes the first client's tensors and asks for no more."""

    source: ClassVar[str] = "a test"

    def plan(self, key: Key, round: int) -> Plan:
        return SHARED

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        update, _ = next(iter(updates))
        return ServerState(update.tensors, dict.fromkeys(state.tensors, round))


@final
@dataclass(frozen=True, kw_only=True)
class Unfinished(Algorithm):
    """Does not name its source."""


NotAnAlgorithm = dict


def error_of(kind, call, *args) -> str:
    with pytest.raises(kind) as caught:
        call(*args)
    return str(caught.value)


METHODS = sorted(path.stem for path in Path(algorithms.__file__).parent.glob("[!_]*.py") if path.stem != "base")


def test_the_methods_are_the_files_of_the_folder():
    assert algorithm_names() == METHODS
    assert [find_algorithm(name) for name in ("fedit", "fedsa", "ffa", "local")] == [FedIT, FedSA, FFA, Local]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fedsaa", "unknown algorithm 'fedsaa'; did you mean 'fedsa'?"),
        ("base", f"unknown algorithm 'base'; known: {', '.join(METHODS)}"),
        ("", f"unknown algorithm ''; known: {', '.join(METHODS)}"),
        (
            "no_such_package:X",
            "algorithm 'no_such_package:X' cannot be imported: No module named 'no_such_package', neither installed "
            "nor in the current folder",
        ),
        (
            "fedsa.algorithms.ffa:FF",
            "algorithm 'fedsa.algorithms.ffa:FF' cannot be imported: "
            "AttributeError: module 'fedsa.algorithms.ffa' has no attribute 'FF'",
        ),
        *(
            (name, f"{name!r} is no algorithm: it must be a class that derives from fedsa.algorithms.base.Algorithm")
            for name in (
                f"{HERE}:NotAnAlgorithm",
                f"{HERE}:HERE",
            )
        ),
        *(
            (name, f"{name!r} does not name its paper: add source: ClassVar[str] to the class, '-' if there is none")
            for name in (f"{HERE}:Unfinished", "fedsa.algorithms.base:Algorithm")
        ),
    ],
)
def test_an_unknown_algorithm_is_refused(name, text):
    assert error_of(UserError, find_algorithm, name) == text


@pytest.mark.parametrize("name", [":Class", ".relative:Class", "package:"])
def test_half_a_plug_in_name_is_refused(name):
    assert error_of(UserError, find_algorithm, name).startswith(f"algorithm {name!r} cannot be imported: ")


def test_an_algorithm_from_outside_is_found_and_gets_its_options():
    name = f"{HERE}:WithOptions"
    assert find_algorithm(name) is WithOptions
    assert make_algorithm(name, {"strength": 2}) == WithOptions(strength=2.0)
    assert make_algorithm(name, {}, share_head=True).share_head is True


def test_share_head_is_the_methods_own_unless_given():
    local = {name for name in algorithm_names() if not make_algorithm(name, {}).share_head}
    merging = {"partial_pooling", "potara"}
    assert local == {"alora", "clustered", "fedalt", "feddpa", "fedsa", "fedtreelora", "local", "sfed"} | merging
    assert make_algorithm("fedsa", {}, True) == FedSA(share_head=True)
    assert make_algorithm("fedit", {}, False) == FedIT(share_head=False)


def test_options_are_checked_all_at_once():
    name = f"{HERE}:WithOptions"
    assert error_of(ConfigError, make_algorithm, name, {"strenght": 1, "shape": 2}) == (
        "2 mistakes in recipe:\n"
        f"  algorithm_options.strenght: {name} has no such option; did you mean 'strength'?\n"
        f"  algorithm_options.shape: {name} has no such option; known: class_prior, strength, twice"
    )
    assert error_of(ConfigError, make_algorithm, name, {"strength": -1, "twice": "often"}) == (
        "2 mistakes in recipe:\n"
        "  algorithm_options.strength: Input should be greater than 0\n"
        "  algorithm_options.twice: Input should be a valid integer, unable to parse string as an integer"
    )


def test_mistakes_in_a_recipes_algorithm():
    assert check_algorithm({"algorithm": "fedsa", "share_head": True}) == []
    assert check_algorithm({}) == []
    assert check_algorithm({"algorithm": "fedsaa"}) == [
        Mistake("algorithm", "unknown algorithm 'fedsaa'; did you mean 'fedsa'?")
    ]
    assert check_algorithm({"algorithm": "fedsa", "algorithm_options": {"mu": 1}}) == [
        Mistake("algorithm_options.mu", "fedsa has no such option; known: class_prior")
    ]
    assert check_algorithm({"algorithm_options": {"share_head": True}}) == [
        Mistake("algorithm_options.share_head", "give share_head at the top level of the recipe")
    ]
    (mistake,) = check_algorithm({"algorithm": "local", "share_head": True})
    assert mistake.where == "algorithm"
    assert mistake.what == "local shares nothing: share_head = true does not go with it (use fedsa or fedit)"


@pytest.mark.parametrize("data", [{"algorithm": 3}, {"algorithm_options": []}, {"share_head": "yes"}])
def test_a_wrong_type_is_left_to_the_recipe(data):
    assert check_algorithm(data) == []


def test_the_constants_of_the_plan():
    assert Plan(trained=True, sent=True, received=True) == SHARED
    assert Plan(trained=True, sent=False, received=False) == LOCAL
    assert Plan(trained=False, sent=False, received=False) == FROZEN


def test_every_option_is_described():
    for name in algorithm_names():
        method = find_algorithm(name)
        for field in dataclasses.fields(method):
            assert field.name in ("share_head", "class_prior") or f"    {field.name}: " in (method.__doc__ or "")


def test_every_method_has_a_source_or_says_that_it_has_none():
    for name in algorithm_names():
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}|openreview:\w+|-", find_algorithm(name).source)


def test_whoever_overrides_aggregate_is_not_additive():
    assert Alternating.is_additive()
    assert not Median.is_additive()


def test_a_method_that_needs_all_updates_at_once_may_have_them():
    algorithm, key = Median(), Key("layer", Factor.A)
    server = Server(algorithm, algorithm.init({key: torch.zeros(1)}), ["c0", "c1", "c2"], seed=0)
    server.begin_round(1)
    server.end_round(
        1, (Update(f"c{number}", 1, 1, {key: torch.tensor([value])}) for number, value in enumerate((9.0, 1.0, 2.0)))
    )
    assert server.state.tensors[key].tolist() == [2.0]


def test_a_method_that_does_not_look_at_all_updates_still_has_all_clients_trained():
    algorithm, key, trained = First(), Key("layer", Factor.A), []

    def training():
        for client in ("c0", "c1", "c2"):
            trained.append(client)
            yield Update(client, 1, 1, {key: torch.ones(1)})

    server = Server(algorithm, algorithm.init({key: torch.zeros(1)}), ["c0", "c1", "c2"], seed=0)
    server.begin_round(1)
    assert server.end_round(1, training()).finished == ("c0", "c1", "c2")
    assert trained == ["c0", "c1", "c2"]


def test_what_is_received_but_not_sent_this_round_still_comes():
    """Round 1 sends B, round 2 sends A: a client that missed round 2 needs both in round 3, and no more after it."""
    algorithm = Alternating(first=Side.B)
    a, b = Key("layer", Factor.A), Key("layer", Factor.B)
    initial = {a: torch.zeros(1), b: torch.zeros(1)}
    state = algorithm.init(initial)

    state = algorithm.aggregate(state, [(Update("x", 1, 1, {b: torch.ones(1)}), 1)], 1)
    assert set(algorithm.broadcast(state, "x", 2, 0)) == {b}
    state = algorithm.aggregate(state, [(Update("x", 2, 1, {a: torch.ones(1)}), 1)], 2)
    assert set(algorithm.broadcast(state, "x", 3, 0)) == {a, b}
    assert set(algorithm.broadcast(state, "x", 3, 1)) == {a}
    assert set(algorithm.broadcast(state, "x", 3, 2)) == set()
