"""Damaged run folders: each damage is told by the file's name, or changes nothing in what a verb makes of the run."""

from __future__ import annotations

import json
import random
import shutil
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

import fedsa
from fedsa.callbacks import Callback
from fedsa.federation import Federation
from support.damages import FILES, damages_of, reseal
from support.damages import JSON as JSON_DAMAGES
from support.tiny_rows import write_rows
from support.verbs import VERBS, World, copied, outcome

pytestmark = pytest.mark.run

ALL = [(name, what) for name in FILES for what in damages_of(name)]
SEALED = ("clients.json", "partition.json", "environment.json", "summary.json", "metrics.jsonl", "state.json")


class _Stop(Callback):
    def on_round_end(self, round: int, lines: Any, validation: Any) -> None:
        if round == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def world(tiny_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("world")
    federation = Federation.from_recipe(tiny_recipe())
    fedsa.run(federation, place / "finished")
    with pytest.raises(KeyboardInterrupt):
        fedsa.run(federation, place / "unfinished", callbacks=[_Stop()])
    fedsa.run(Federation.from_recipe(tiny_recipe("seed=1")), place / "other")
    write_rows(place / "rows.csv", 30, seed=5, clients=1)
    return World(federation, place / "finished", place / "unfinished", place / "other", place / "rows.csv")


@pytest.fixture(scope="module")
def undamaged(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Any]:
    """What a verb makes of the run as it is."""
    place = tmp_path_factory.mktemp("undamaged") / "one"

    @cache
    def result(verb: str, which: str) -> Any:
        told, what = outcome(verb, world, copied(getattr(world, which), place))
        assert told == "done", what
        return what

    return result


def check(
    world: World, undamaged: Callable[[str, str], Any], place: Path, which: str, name: str, what: str, verb: str
) -> str:
    """Damage a file of a copy; return whether that was told, or assert that it had no effect."""
    coins = random.Random(zlib.crc32(f"{which} {name} {what} {verb}".encode()))
    run = copied(getattr(world, which), place)
    shutil.rmtree(run.with_name("elsewhere"), ignore_errors=True)
    before = (run / name).read_bytes()
    damages_of(name)[what](run / name, world.other / name, coins)
    told, result = outcome(verb, world, run)
    case = f"{which} run, {name}: {what}, {verb}"
    for elsewhere in (run.parent / "elsewhere").glob("*"):
        assert elsewhere.read_bytes() == before, f"{case}: a file outside of the run folder was changed"
    if told == "done":
        assert result == undamaged(verb, which), f"{case}: used without a word"
    else:
        # With the commit point of another run no file is what was written.
        named = [*FILES] if name == "state.json" else [name]
        named += [f"clients/{folder.name}/{Path(name).name}" for folder in (world.finished / "clients").iterdir()]
        whole = (f"{run} is not a", f"{run} is another run than the sweep asks for")
        assert any(str(run / each) in result for each in named) or any(text in result for text in whole), result
        assert len(result) < 1500, f"{case}: {result}"
        assert "\n" not in result, f"{case}: {result}"
    return told


def cases(which: str, verbs: list[str]) -> list[tuple[str, str, str, str]]:
    there = [name for name in FILES if which == "finished" or name not in ("summary.json",)]
    there = [name for name in there if which == "finished" or "000002" not in name]
    return [(which, name, what, verb) for name in there for what in damages_of(name) for verb in verbs]


def checked(
    world: World, undamaged: Callable[[str, str], Any], place: Path, chosen: Sequence[tuple[str, str, str, str]]
) -> list[str]:
    """Return what became of each of many damages; fail with all that were neither told nor without effect."""
    results, wrong = [], []
    for case in chosen:
        try:
            results.append(check(world, undamaged, place, *case))
        except Exception as error:  # a traceback in a verb, too, is one wrong case
            wrong.append(f"{case}: {type(error).__name__}: {str(error)[:300]}")
    assert not wrong, "\n".join(wrong)
    return results


FULL = [*cases("unfinished", ["resume"]), *cases("finished", list(VERBS))]


def test_a_sample_of_damages(world: World, undamaged: Callable[[str, str], Any], tmp_path: Path) -> None:
    """Some damages of each file, and one verb in turn."""
    verbs = list(VERBS)
    sample = cases("unfinished", ["resume"])[::8]
    for number, (which, name, what, _) in enumerate(cases("finished", ["resume"])[::3]):
        sample.append((which, name, what, verbs[number % len(verbs)]))
    results = checked(world, undamaged, tmp_path / "one", sample)
    assert results.count("told") > len(sample) // 2


@pytest.mark.slow
@pytest.mark.parametrize("which", ["unfinished", "finished"])
def test_all_damages(world: World, undamaged: Callable[[str, str], Any], tmp_path: Path, which: str) -> None:
    """Every file × damage × verb. ``pytest -m slow -s tests/store/test_damages.py`` prints how many there are."""
    chosen = [case for case in FULL if case[0] == which]
    results = checked(world, undamaged, tmp_path / "one", chosen)
    print(f"\n{which}: {len(results)} damages, {results.count('told')} told, {results.count('done')} without effect")
    assert len(results) >= 300


def mutate(world: World, place: Path, coins: random.Random) -> tuple[Path, str]:
    """Return a copy of one of the runs with one to three files changed, and what was done."""
    which = coins.choice(["finished", "unfinished"])
    run, done = copied(getattr(world, which), place), []
    shutil.rmtree(run.with_name("elsewhere"), ignore_errors=True)
    for _ in range(coins.randint(1, 3)):
        name = coins.choice([each for each in FILES if (run / each).is_file() and not (run / each).is_symlink()])
        if name in SEALED and name != "state.json" and coins.random() < 0.7 and not done:
            kind = coins.choice(list(JSON_DAMAGES))
            JSON_DAMAGES[kind](run / name, world.other / name, coins)
            if kind != "no text":
                reseal(run, name)
            done.append(f"{name}: {kind}, sealed")
            continue
        what = coins.choice(list(damages_of(name)))
        try:
            damages_of(name)[what](run / name, world.other / name, coins)
        except (
            SafetensorError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            OSError,
        ):  # of a file that is damaged already
            continue
        done.append(f"{name}: {what}")
    return run, f"{which} run, {'; '.join(done)}"


def no_traceback(world: World, place: Path, seeds: range) -> int:
    """Try a verb on each of many changed folders; return how many were told, and fail with all tracebacks."""
    told, wrong = 0, []
    for seed in seeds:
        coins = random.Random(seed)
        run, what = mutate(world, place, coins)
        verb = coins.choice(list(VERBS))
        try:
            told += outcome(verb, world, run)[0] == "told"
        except Exception as error:
            wrong.append(f"seed {seed}: {verb} of {what}: {error!r:.300}")
    assert not wrong, "\n".join(wrong)
    return told


def test_no_change_gives_a_traceback(world: World, tmp_path: Path) -> None:
    assert no_traceback(world, tmp_path / "one", range(120)) > 60


@pytest.mark.slow
def test_no_change_of_thousands_gives_a_traceback(world: World, tmp_path: Path) -> None:
    count = 2500
    told = no_traceback(world, tmp_path / "one", range(1000, 1000 + count))
    print(f"\n{count} changed run folders: {told} told, {count - told} without effect or done, no traceback")


@pytest.mark.parametrize(
    ("where", "value", "text"),
    [
        (("test", "worst"), "~", "test.worst: Input should be a valid number"),
        (("test_final", "weighted_mean"), None, "test_final.weighted_mean: Input should be a valid number"),
        (("per_client", "site 1", "test", "accuracy"), "~", "per_client.site 1.test: accuracy is no number"),
        (("train_seconds",), "long", "train_seconds: Input should be a valid number"),
        (("source",), "\ud800", "it has half a character"),
    ],
)
def test_a_summary_with_other_values_is_told_by_whoever_reads_it(
    world: World, tmp_path: Path, where: Sequence[str], value: Any, text: str
) -> None:
    """Its hash is right, as somebody who wants to break a run folder would make it."""
    run = copied(world.finished, tmp_path / "one")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    _put(summary, where, value)
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    reseal(run, "summary.json")
    for verb in ("compare", "report", "export"):
        told, said = outcome(verb, world, run)
        assert (told, text in said) == ("told", True), (verb, said)


@pytest.mark.parametrize(
    ("where", "value", "text"),
    [
        (("validation", "accuracy"), "~", "validation.accuracy is no number"),
        (("validation", "examples"), None, "validation.examples is no number"),
        (("validation",), {"accuracy": 0.5}, "validation has no number of examples"),
        (("validation",), 7, "validation has no number of examples"),
        (("upload_bytes",), "many", "upload_bytes: Input should be a valid integer"),
        (("train",), {"seconds": "long"}, "train.seconds: Input should be a valid number"),
    ],
)
def test_a_line_of_figures_with_other_values_is_told_by_whoever_reads_it(
    world: World, tmp_path: Path, where: Sequence[str], value: Any, text: str
) -> None:
    run = copied(world.finished, tmp_path / "one")
    first, *lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    line = json.loads(first)
    _put(line, where, value)
    (run / "metrics.jsonl").write_text("\n".join([json.dumps(line), *lines, ""]), encoding="utf-8")
    reseal(run, "metrics.jsonl")
    told, said = outcome("report", world, run)
    assert told == "told"
    assert f"{run / 'metrics.jsonl'}, line 1" in said
    assert text in said


def _put(table: dict[str, Any], where: Sequence[str], value: Any) -> None:
    """Put a value somewhere into a table of tables."""
    *path, last = where
    for name in path:
        table = table[name]
    table[last] = value
