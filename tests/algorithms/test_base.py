import dataclasses
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import pytest
import torch
from pydantic import Field

from fedsa.algorithms import algorithm_names, check_algorithm, find_algorithm, make_algorithm
from fedsa.algorithms.base import FROZEN, LOCAL, SHARED, Algorithm, Plan, weighted_mean
from fedsa.algorithms.fedit import FedIT
from fedsa.algorithms.fedsa import FedSA
from fedsa.algorithms.ffa import FFA
from fedsa.algorithms.local import Local
from fedsa.errors import ConfigError, Mistake, UserError
from fedsa.types import Factor, Key, Update

HERE = __name__


@final
@dataclass(frozen=True, kw_only=True)
class Alternating(Algorithm):
    """A method from outside the package: B in odd rounds, A in even ones, as RoLoRA does."""

    strength: Annotated[float, Field(gt=0)] = 1.0
    twice: int = 2

    source: ClassVar[str] = "a test"

    def plan(self, key: Key, round: int) -> Plan:
        turn = key.factor is (Factor.B if round % 2 else Factor.A)
        return Plan(trained=turn, sent=turn, received=True)


@final
@dataclass(frozen=True, kw_only=True)
class Unfinished(Algorithm):
    """Has no plan."""


NotAnAlgorithm = dict


def error_of(kind, call, *args) -> str:
    with pytest.raises(kind) as caught:
        call(*args)
    return str(caught.value)


def test_the_methods_are_the_files_of_the_folder():
    assert algorithm_names() == ["fedit", "fedsa", "ffa", "local"]
    assert [find_algorithm(name) for name in algorithm_names()] == [FedIT, FedSA, FFA, Local]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fedsaa", "unknown algorithm 'fedsaa'; did you mean 'fedsa'?"),
        ("base", "unknown algorithm 'base'; known: fedit, fedsa, ffa, local"),
        ("", "unknown algorithm ''; known: fedit, fedsa, ffa, local"),
        ("no_such_package:X", "algorithm 'no_such_package:X' cannot be imported: No module named 'no_such_package'"),
        (
            "fedsa.algorithms.ffa:FF",
            "algorithm 'fedsa.algorithms.ffa:FF' cannot be imported: "
            "module 'fedsa.algorithms.ffa' has no attribute 'FF'",
        ),
        *(
            (name, f"{name!r} is no algorithm: it must be a class that derives from fedsa.algorithms.base.Algorithm")
            for name in (
                f"{HERE}:NotAnAlgorithm",
                f"{HERE}:HERE",
                f"{HERE}:Unfinished",
                "fedsa.algorithms.base:Algorithm",
            )
        ),
    ],
)
def test_an_unknown_algorithm_is_refused(name, text):
    assert error_of(UserError, find_algorithm, name) == text


@pytest.mark.parametrize("name", [":Class", ".relative:Class", "package:"])
def test_half_a_plug_in_name_is_refused(name):
    assert error_of(UserError, find_algorithm, name).startswith(f"algorithm {name!r} cannot be imported: ")


def test_an_algorithm_from_outside_is_found_and_gets_its_options():
    name = f"{HERE}:Alternating"
    assert find_algorithm(name) is Alternating
    assert make_algorithm(name, {"strength": 2}) == Alternating(strength=2.0)
    assert make_algorithm(name, {}, share_head=True).share_head is True


def test_share_head_is_the_methods_own_unless_given():
    assert {name: make_algorithm(name, {}).share_head for name in algorithm_names()} == {
        "fedit": True,
        "fedsa": False,
        "ffa": True,
        "local": False,
    }
    assert make_algorithm("fedsa", {}, True) == FedSA(share_head=True)
    assert make_algorithm("fedit", {}, False) == FedIT(share_head=False)


def test_options_are_checked_all_at_once():
    name = f"{HERE}:Alternating"
    assert error_of(ConfigError, make_algorithm, name, {"strenght": 1, "shape": 2}) == (
        "2 mistakes in recipe:\n"
        f"  algorithm_options.strenght: {name} has no such option; did you mean 'strength'?\n"
        f"  algorithm_options.shape: {name} has no such option; known: strength, twice"
    )
    assert error_of(ConfigError, make_algorithm, name, {"strength": -1, "twice": "often"}) == (
        "2 mistakes in recipe:\n"
        "  algorithm_options.strength: Input should be greater than 0\n"
        "  algorithm_options.twice: Input should be a valid integer, unable to parse string as an integer"
    )


def test_mistakes_in_a_recipes_algorithm():
    assert check_algorithm({"algorithm": "fedsa", "share_head": True}) == []
    assert check_algorithm({}) == []
    assert check_algorithm({"algorithm": "fed"}) == [
        Mistake("algorithm", "unknown algorithm 'fed'; did you mean 'fedsa'?")
    ]
    assert check_algorithm({"algorithm": "fedsa", "algorithm_options": {"mu": 1}}) == [
        Mistake("algorithm_options.mu", "fedsa has no such option; it has none")
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


def test_options_are_all_fields():
    for name in algorithm_names():
        fields = {field.name for field in dataclasses.fields(find_algorithm(name))}
        assert fields == {"share_head"}


def test_every_method_has_a_source_or_says_that_it_has_none():
    for name in algorithm_names():
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}|-", find_algorithm(name).source)


def test_weighted_mean_by_hand():
    # (1·[0, 4] + 3·[8, 0]) / 4 = [6, 1]
    mean = weighted_mean([torch.tensor([0.0, 4.0]), torch.tensor([8.0, 0.0])], [1, 3])
    assert mean.tolist() == [6.0, 1.0]


def test_what_is_received_but_not_sent_this_round_still_comes():
    """Round 1 sends B, round 2 sends A: a client that missed round 2 needs both in round 3, and no more after it."""
    algorithm = Alternating()
    a, b = Key("layer", Factor.A), Key("layer", Factor.B)
    initial = {a: torch.zeros(1), b: torch.zeros(1)}
    state = algorithm.init(initial)

    state = algorithm.aggregate(state, [Update("x", 1, 1, {b: torch.ones(1)})], [1], 1)
    assert set(algorithm.broadcast(state, 2, 0).tensors) == {b}
    state = algorithm.aggregate(state, [Update("x", 2, 1, {a: torch.ones(1)})], [1], 2)
    assert set(algorithm.broadcast(state, 3, 0).tensors) == {a, b}
    assert set(algorithm.broadcast(state, 3, 1).tensors) == {a}
    assert set(algorithm.broadcast(state, 3, 2).tensors) == set()
