"""A bit that is flipped in a file of a run folder is told by every verb that reads the file, by the file's name.

The table says which verbs read which kind of file. A file of a kind that is not in the table fails the test: so whoever
adds a file says who reads it. For other verbs the file must not matter. What a verb reads, and how much it tells, is
also tried at random in `test_damages`. ``eval`` opens a run as ``predict`` does. Messages that are under way are in
`tests/engines`, a site's own files in `tests/deploy/test_deployed.py`.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import fedsa
from fedsa.commands.analyze import _write
from fedsa.federation import Federation
from fedsa.runs.analysis import analyze
from fedsa.runs.report import write_report
from fedsa.store.rounds import round_of
from fedsa.store.small_files import MEASURED
from support.run_folders import resealed
from support.tiny_rows import write_rows
from support.verbs import VERBS, World, copied, outcome

pytestmark = pytest.mark.run

ALL = frozenset(VERBS)
GO_ON = frozenset({"resume", "clean"})
"""Verbs that write into a run folder read all that it needs before."""
TRAINED = frozenset({"export", "export final", "analyze", "predict"})
READ_BY = {
    "state.json": ALL,
    "clients.json": ALL,
    "recipe.toml": ALL - {"sent"},
    "summary.json": ALL - {"resume", "clean", "report live", "predict", "sent", "status"},  # resume measures again
    "samples.json": frozenset({"report"}),
    "environment.json": GO_ON | {"report", "report live", "plan --like"},
    "metrics.jsonl": GO_ON | {"report", "report live", "plan --like"},
    "sent.jsonl": GO_ON | {"sent"},
    "partition.json": GO_ON,
    "agreement.json": GO_ON,
    "adapter_config.json": GO_ON | {"adapt"},
    "initial.safetensors": GO_ON | TRAINED | {"adapt", "audit"},
    "server/*.safetensors": ALL - {"report live"},
    "clients/*/round-*.safetensors": GO_ON | TRAINED | {"audit"},
    "clients/*/personal-*.safetensors": GO_ON | TRAINED - {"export final", "analyze"},
    "analysis/means.json": frozenset({"report"}),
    "analysis/SHA256SUMS": frozenset({"report"}),
    **dict.fromkeys(("analysis/*.svg", "analysis/*.csv", "analysis/*.parquet", "report.html", ".lock"), frozenset()),
}
"""Each kind of file of a finished run, and the verbs that read it."""
IN_PART = {("clients/*/round-*.safetensors", "runs"), ("analysis/SHA256SUMS", "report")}
"""Read in part: of a client's file the header, by which the room it takes is counted; of a list the lines needed."""


SAMPLED = ("samples.json", "state.json")
"""What differs where samples, which this run's task does not write, are lost; the second has their hash."""


@pytest.fixture(scope="module")
def world(tiny_recipe: Callable[..., Any], finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A finished run that has a file of every kind."""
    place = tmp_path_factory.mktemp("flipped")
    settings = ("holdout_clients=0.3", "adaptation={steps=1}", "training.optimizer_state=keep")
    federation = Federation.from_recipe(tiny_recipe(*settings))
    fedsa.run(federation, place / "run")
    sample = {"client": "site 1", "prompt": "the film", "written": "was great", "right": ["was fine"]}
    resealed(place / "run", lambda folder, progress: folder.write_json("samples.json", [sample]))
    _write(analyze(place / "run"), place / "run" / "analysis", ["svg"])
    write_report(place / "run")
    write_rows(place / "rows.csv", 30, seed=5, clients=1)
    return World(federation, place / "run", place / "run", finished_run, place / "rows.csv")


def files(world: World) -> Iterator[tuple[str, str]]:
    """Yield one file of each kind (of clients' states, of each round), with its kind."""
    found = sorted(path.relative_to(world.finished).as_posix() for path in world.finished.rglob("*") if path.is_file())
    seen = set()
    for name in found:
        (kind,) = [kind for kind in READ_BY if fnmatch(name, kind)]
        number = round_of(Path(name)) if name.endswith("0.safetensors") or "0000" in name else None
        if (kind, number) not in seen and (world.finished / name).stat().st_size:
            seen.add((kind, number))
            yield name, kind
    assert {kind for kind, _ in seen} | {".lock"} == {*READ_BY}, "the run lacks a kind of file"


def is_read(name: str, kind: str, verb: str) -> bool:
    """Whether a verb reads a file: of clients' states, those of the round that it is about."""
    if kind == "clients/*/round-*.safetensors":  # round 1 was chosen
        if verb in ("export", "predict") and round_of(Path(name)) != 1:
            return False
        if verb in ("export final", "audit") and round_of(Path(name)) != 2:
            return False
    return verb in READ_BY[kind]


def flip(run: Path, name: str, place: int, bit: int) -> None:
    content = bytearray((run / name).read_bytes())
    content[place] ^= 1 << bit
    (run / name).write_bytes(content)


def places(content: bytes, coins: random.Random, count: int) -> list[int]:
    """Where to flip: in text, inside a number; the rest anywhere, the first and the last byte first."""
    digits = [place for place, byte in enumerate(content) if 48 <= byte < 58 and byte != 48]
    chosen = [coins.choice(digits or [0]), 0, len(content) - 1]
    return [*chosen, *(coins.randrange(len(content)) for _ in range(count))][:count]


def told_wrongly(world: World, place: Path, name: str, verb: str, where: int, bit: int) -> str | None:
    """Flip a bit of a copy; return what is wrong with how a verb that reads the file takes it, or None."""
    run = copied(world.finished, place)
    flip(run, name, where, bit)
    try:
        told, result = outcome(verb, world, run)
    except Exception as error:
        return f"{name}, byte {where}, bit {bit}, {verb}: {error!r:.300}"
    named = str(run / name) in result if told == "told" else False
    if name == "analysis/SHA256SUMS" and told == "told":
        named = "analysis/" in result
    return None if named and "\n" not in result else f"{name}, byte {where}, bit {bit}, {verb}: {told} {result!r:.300}"


def test_a_flipped_bit_is_told_by_verbs_that_read_the_file(world: World, tmp_path: Path) -> None:
    """A third of all pairs of a file and a verb that reads it; the slow test has all."""
    wrong, count = [], 0
    for name, kind in files(world):
        content = (world.finished / name).read_bytes()
        for verb in VERBS:
            if is_read(name, kind, verb) and (kind, verb) not in IN_PART:
                coins, count = random.Random(zlib.crc32(f"{name} {verb}".encode())), count + 1
                if count % 3:
                    continue
                (where,) = places(content, coins, 1)
                wrong.append(told_wrongly(world, tmp_path / "one", name, verb, where, coins.randrange(8)))
    assert not any(wrong), "\n".join(filter(None, wrong))
    assert count > 100


@pytest.mark.slow
def test_flipped_bits_everywhere(world: World, tmp_path: Path) -> None:
    """Each file × verb × twelve places; verbs that do not read a file come to what they come to without the flip.

    ``pytest -m slow -s tests/store/test_flipped_bits.py`` prints how many there are.
    """

    @cache
    def undamaged(verb: str) -> Any:
        told, what = outcome(verb, world, copied(world.finished, tmp_path / "one"))
        assert told == "done", what
        return what

    wrong: list[str | None] = []
    count = {"told": 0, "without effect": 0}
    for name, kind in files(world):
        content = (world.finished / name).read_bytes()
        for verb in VERBS:
            coins = random.Random(zlib.crc32(f"all {name} {verb}".encode()))
            reads, in_part = is_read(name, kind, verb), (kind, verb) in IN_PART
            for where in places(content, coins, 12 if reads or in_part else 2):
                bit = coins.randrange(8)
                bad = told_wrongly(world, tmp_path / "one", name, verb, where, bit)
                if bad and (in_part or not reads):
                    run = copied(world.finished, tmp_path / "one")
                    flip(run, name, where, bit)
                    told, result = outcome(verb, world, run)
                    if told == "done" and isinstance(result, dict) and result.get(name) == (run / name).read_bytes():
                        result = {**result, name: undamaged(verb)[name]}  # resume shows all files, this one too
                    as_it_was = undamaged(verb)
                    if verb == "resume" and name in MEASURED:  # made again, but for the samples, which are not a run's
                        as_it_was, result = ({**each, **dict.fromkeys(SAMPLED)} for each in (as_it_was, result))
                    bad = None if told == "done" and result == as_it_was else bad
                    count["without effect"] += bad is None
                else:
                    count["told"] += bad is None
                wrong.append(bad)
    print(f"\n{len(wrong)} flipped bits: {count}")
    assert not any(wrong), "\n".join(filter(None, wrong))
