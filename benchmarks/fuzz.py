"""Mutated inputs: none may end in a traceback, take over 5 s or 1 GiB, or write a file outside of its folder.

    python benchmarks/fuzz.py                          # 100,000 inputs
    python benchmarks/fuzz.py --inputs 2000 --seed 7   # fewer, others
    python benchmarks/fuzz.py --repeat "run folder" 7000123

Recipes, sweeps, messages, files of tensors, rows (CSV, JSONL, JSON, Parquet, Arrow, Excel), run folders, exported
adapters, and what the parties of a federation keep. Half of the changes are to bytes; the others are to values, with
the hashes made right again, as somebody who wants to break fedsa would. What reads an input is what fedsa's own
commands call, in a process that was forked for it, so that a crash takes nothing else along.

An input that fails is kept, with its kind and seed and the traceback, below ``--keep``; ``--repeat KIND SEED`` reads
one again, on the spot. The run folder has times in it, so an input of a run folder is the same only as it was kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}

import fuzz_readers
import pyarrow as pa
from fuzz_inputs import Kind, kinds_of

from fedsa.errors import FedsaError

SECONDS, BYTES = 5.0, 2**30
"""The most that an input may take."""
BATCH = 2000  # inputs of one process
WRITES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
}


class OutsideError(Exception):
    """A file outside of the input's folder was to be written."""


@dataclass
class Result:
    """What became of inputs.

    Attributes:
        told: refused by an error of fedsa's.
        taken: read without an error.
        failures: what is wrong, by kind and seed.
    """

    told: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, int, str]] = field(default_factory=list)


class Watch:
    """Where a process writes what it is doing, for the one that started it: seed, time, and counts."""

    FORM = struct.Struct("qdqq")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self.FORM.size)

    def note(self, seed: int, told: int, taken: int) -> None:
        """Write down the seed that is begun, and the counts."""
        self._memory[:] = self.FORM.pack(seed, time.monotonic(), told, taken)

    def read(self) -> tuple[int, float, int, int]:
        """The seed, when it was begun, and the counts."""
        seed, began, told, taken = self.FORM.unpack(self._memory[:])
        return seed, began, told, taken


def forbid_writes_outside(place: Path) -> None:
    """Let this process raise where it would write outside of a folder."""
    allowed = (str(place.resolve()) + "/", "/dev/")

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                return
            paths: tuple[object, ...] = (path,)
        elif event in WRITES:
            paths = arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]
        else:
            return
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):
                real = os.path.realpath(os.fsdecode(path))
                if not f"{real}/".startswith(allowed):
                    raise OutsideError(f"{event} {real}")

    sys.addaudithook(hook)


def work(kinds: dict[str, Kind], name: str, seeds: range, place: Path, watch: Watch, keep: Path) -> None:
    """Read inputs one after the other; in a process of its own."""
    kind, told, taken = kinds[name], 0, 0
    folder = place / "input"
    os.chdir(place)
    keep.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    if name == "adapter":
        fuzz_readers._base()
    limit = _virtual_bytes() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    shutil.rmtree(folder, ignore_errors=True)
    forbidden = False
    for seed in seeds:
        watch.note(seed, told, taken)
        write(kind, seed, folder)
        if not forbidden:
            forbid_writes_outside(place)
            forbidden = True
        try:
            with (
                Path(os.devnull).open("w") as nothing,
                contextlib.redirect_stdout(nothing),
                contextlib.redirect_stderr(nothing),
            ):
                kind.read(folder, random.Random(seed))
            taken += 1
        except FedsaError as error:
            told += 1
            if len(str(error)) > 20_000:
                report(place, seed, f"a message of {len(str(error)):,} characters")
        except BaseException:
            report(place, seed, traceback.format_exc())
        shutil.rmtree(folder)
    watch.note(seeds.stop, told, taken)


def report(place: Path, seed: int, what: str) -> None:
    """Keep an input that failed, for the process that started this one."""
    kept = place / "failed" / str(seed)
    shutil.copytree(place / "input", kept / "input", dirs_exist_ok=True, symlinks=True)
    (kept / "why.txt").write_text(what, encoding="utf-8", errors="replace")


def write(kind: Kind, seed: int, folder: Path) -> None:
    """Write the input of a seed into a new folder."""
    for name, content in kind.made(seed).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def try_kind(kinds: dict[str, Kind], name: str, seeds: range, place: Path, keep: Path, result: Result) -> None:
    """Read the inputs of some seeds in processes, a new one where one was ended or has read many."""
    start = seeds.start
    while start < seeds.stop:
        own = range(start, min(start + BATCH, seeds.stop))
        watch = Watch()
        watch.note(own.start, 0, 0)
        process = os.fork()
        if not process:
            try:
                work(kinds, name, own, place, watch, keep)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        ended, why = _wait(process, watch)
        seed, _, told, taken = watch.read()
        result.told[name] += told
        result.taken[name] += taken
        if not ended:
            if not (place / "input").is_dir():
                raise SystemExit(f"{name}: {why}, between two inputs")
            report(place, seed, why)
            start = seed + 1
        else:
            start = own.stop
        for kept in sorted((place / "failed").glob("*")):
            target = keep / name.replace(" ", "-").replace("'", "") / kept.name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(kept, target, symlinks=True)
            result.failures.append((name, int(kept.name), (kept / "why.txt").read_text(encoding="utf-8")))
            shutil.rmtree(kept)


def _wait(process: int, watch: Watch) -> tuple[bool, str]:
    """Wait until a process has ended by itself; end it where an input takes too long."""
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            if status == 0:
                return True, ""
            return False, f"the process died: status {os.waitstatus_to_exitcode(status)}"
        if time.monotonic() - watch.read()[1] > SECONDS:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return False, f"it took more than {SECONDS:g} s"
        time.sleep(0.01)


def shares(kinds: dict[str, Kind], inputs: int) -> dict[str, int]:
    """How many inputs of each kind there are."""
    everything = sum(kind.share for kind in kinds.values())
    return {name: math.ceil(inputs * kind.share / everything) for name, kind in kinds.items()}


def in_its_own_process(do: Callable[[], None], what: str) -> None:
    """Do something in a process of its own: no thread of it is left when others are forked."""
    process = os.fork()
    if not process:
        try:
            with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
                do()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(process, 0)[1]:
        raise SystemExit(what)


def read_valid(kinds: dict[str, Kind], place: Path) -> None:
    """Read the valid input of each kind: what fails there too would show nothing."""
    for kind in kinds.values():
        for name, content in kind.files.items():
            (place / "input" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "input" / name).write_bytes(content)
        for seed in range(4):
            kind.read(place / "input", random.Random(seed))
        shutil.rmtree(place / "input")


def main() -> None:
    """Try inputs, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the first seed of each kind; each input has the next one")
    parser.add_argument("--kind", action="append", help="only this kind; may be repeated")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="where inputs that fail are kept")
    parser.add_argument("--repeat", nargs=2, metavar=("KIND", "SEED"), help="read one input, in this process")
    options = parser.parse_args()
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as temporary:
        world, place = Path(temporary).resolve() / "world", Path(temporary).resolve() / "work"
        place.mkdir()
        os.environ |= {"HF_HOME": str(place / "cache"), "TMPDIR": str(place)}
        tempfile.tempdir = str(place)
        world.mkdir()
        in_its_own_process(lambda: fuzz_readers.make_world(world), "the valid inputs could not be made")
        fuzz_readers.WORLD.place = world
        kinds = kinds_of(world)
        in_its_own_process(lambda: read_valid(kinds, place), "a valid input could not be read")
        if options.repeat:
            name, seed = options.repeat[0], int(options.repeat[1])
            write(kinds[name], seed, place / "input")
            print(kinds[name].read(place / "input", random.Random(seed)))
            return
        chosen = {name: kinds[name] for name in options.kind} if options.kind else kinds
        result, keep, began = Result(), options.keep.resolve(), time.monotonic()
        print("| kind | inputs | told | taken | failed | seconds |\n|---|---|---|---|---|---|")
        for name, count in shares(chosen, options.inputs).items():
            started = time.monotonic()
            try_kind(kinds, name, range(options.seed, options.seed + count), place, keep, result)
            failed = sum(each[0] == name for each in result.failures)
            seconds = time.monotonic() - started
            print(
                f"| {name} | {count} | {result.told[name]} | {result.taken[name]} | {failed} | {seconds:.0f} |",
                flush=True,
            )
        total, seconds = sum(shares(chosen, options.inputs).values()), time.monotonic() - began
        print(f"\n{total} inputs from seed {options.seed}, {len(result.failures)} failed, {seconds:.0f} s")
    for name, seed, why in result.failures[:40]:
        print(f"\n{name}, seed {seed}: {json.dumps(why.strip().splitlines()[-1][:300])}")
    if result.failures:
        print(f"\nkept in {keep}")
    sys.exit(bool(result.failures))


if __name__ == "__main__":
    main()
