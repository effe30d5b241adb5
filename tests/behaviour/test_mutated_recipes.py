"""No recipe ends in a traceback: two thousand are made wrong at random; each is told in a short message, or taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedsa.algorithms import check_algorithm
from fedsa.callbacks import check_callbacks
from fedsa.errors import ConfigError
from fedsa.recipe import Recipe, dump_recipe, parse_recipe, parse_toml
from fedsa.steps import check_steps
from support.mutated_recipes import mutated

pytestmark = pytest.mark.run

SAMPLE = range(400)
ALL = range(2000)
LONGEST = 20_000
"""Characters of a message: twenty mistakes of six hundred each, and some more."""


def parsed(data: dict[str, Any]) -> Recipe | None:
    """Return the recipe, or None where it is refused with a short message."""
    try:
        return parse_recipe(data, checks=[check_algorithm, check_steps, check_callbacks])
    except ConfigError as error:
        mistakes = error
    assert mistakes.mistakes
    assert len(str(mistakes)) < LONGEST
    return None


def check_parsing(data: dict[str, Any], seeds: range) -> None:
    """Parse mutated recipes; those that are taken can be written and read again."""
    for seed in seeds:
        try:
            recipe = parsed(mutated(data, seed))
            if recipe is not None:
                assert parse_recipe(parse_toml(dump_recipe(recipe), "resolved")) == recipe
        except Exception as error:
            raise AssertionError(f"mutated(data, {seed})") from error


def check_verb(verb: str, command: Callable[..., Any], data: dict[str, Any], seeds: Iterable[int]) -> int:
    """Give mutated recipes to a verb: it does what was asked, or ends with one error. Return how many were given."""
    count = 0
    for seed in seeds:
        try:
            text = tomli_w.dumps(mutated(data, seed))
        except (RecursionError, TypeError, ValueError):  # what TOML cannot say comes from Python only
            continue
        count += 1
        Path("mutated.toml").write_bytes(text.encode(errors="surrogatepass"))
        try:
            outcome = command(verb, "mutated.toml")
        except Exception as error:
            raise AssertionError(f"fedsa {verb} of mutated(data, {seed})") from error
        assert outcome.code in (0, 1, 2), (seed, outcome)
        assert (outcome.code == 0) == (not outcome.error.startswith("error: ")), (seed, outcome)
        assert len(outcome.error) < LONGEST, seed
    return count


def taken(data: dict[str, Any], seeds: range) -> list[int]:
    """Return the seeds whose recipes get past the parser, where a verb begins its own work."""
    return [seed for seed in seeds if parsed(mutated(data, seed)) is not None]


def test_mutated_recipes_are_told_or_taken(tiny_data: dict[str, Any]) -> None:
    check_parsing(tiny_data, SAMPLE)


@pytest.mark.parametrize("verb", ["plan", "data"])
def test_mutated_recipes_at_the_command_line(
    verb: str,
    fedsa_command: Callable[..., Any],
    tiny_data: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    seeds = [*range(10), *taken(tiny_data, SAMPLE)[:6]]
    assert check_verb(verb, fedsa_command, tiny_data, seeds) > 10


@pytest.mark.slow
def test_two_thousand_mutated_recipes_are_told_or_taken(tiny_data: dict[str, Any]) -> None:
    check_parsing(tiny_data, ALL)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["plan", "data"])
def test_all_mutated_recipes_at_the_command_line(
    verb: str,
    fedsa_command: Callable[..., Any],
    tiny_data: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_verb(verb, fedsa_command, tiny_data, ALL) > 1500
