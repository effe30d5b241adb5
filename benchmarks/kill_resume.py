"""Kill a run with ``kill -9`` at moments uniform over its time, resume it, and compare the bytes.

    python benchmarks/kill_resume.py --recipe quickstart --kills 10 --out runs/kill-resume

The recipe runs once without interruption, which takes T seconds from the start of the process to its end. Kill i of N
then starts a new run and ends its whole process group after (i + 1/2)/N·T seconds, wherever that falls: while libraries
load, while a client trains, inside a write; a run that was finished by then is repeated, with its own time as T.
``fedsa resume`` continues it (``fedsa run`` starts it again where nothing had been written yet). The figure is the
number of files that differ, byte for byte, from the uninterrupted run: every file below server/ and clients/, and all
that ``fedsa export --all`` writes. It must be 0; else the exit code is 1. POSIX only.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

FEDSA = [sys.executable, "-m", "fedsa"]


def call(*arguments: str) -> None:
    """Run fedsa to its end, and stop here if it fails."""
    done = subprocess.run([*FEDSA, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"fedsa {shlex.join(arguments)}: exit code {done.returncode}\n{done.stderr}")


def kill_after(seconds: float, *arguments: str) -> bool:
    """Start fedsa and kill its process group after a time; return whether it was still running."""
    process = subprocess.Popen(
        [*FEDSA, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    if process.returncode:
        raise SystemExit(f"fedsa {shlex.join(arguments)}: exit code {process.returncode}")
    return False


def moment(run: Path) -> str:
    """Say how far a killed run had come."""
    if not (run / "recipe.toml").exists():
        return "nothing written yet"
    if not (run / "state.json").exists():
        return "nothing finished yet"
    state = json.loads((run / "state.json").read_text(encoding="utf-8"))
    unfinished = [path for path in run.rglob("round-*.safetensors") if int(path.stem[6:]) > state["round"]]
    inside = ", inside a write" if any(run.rglob(".*.partial")) else ""
    training = f", {len(unfinished)} files of the next" if unfinished else ""
    return f"after round {state['round']}{training}{inside}"


def result(run: Path) -> dict[str, bytes]:
    """Return the files that must not differ: the states of server and clients, and the exported adapters."""
    export = run.with_name(f"{run.name}-export")
    shutil.rmtree(export, ignore_errors=True)
    call("export", str(run), "--all", "--to", str(export))
    files = [path for folder in (run / "server", run / "clients") for path in folder.rglob("*")]
    files += export.rglob("*")
    return {
        path.relative_to(run.parent).as_posix().partition("/")[2]: path.read_bytes() for path in files if path.is_file()
    }


def main() -> None:
    """Run, kill, resume, compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart", help="a recipe file or name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--kills", type=int, default=10, help="number of moments")
    parser.add_argument("--out", type=Path, default=Path("runs/kill-resume"), help="a new folder for all runs")
    options = parser.parse_args()
    print(f"python {shlex.join(sys.argv)}\n", flush=True)
    if options.out.exists() and any(options.out.iterdir()):
        raise SystemExit(f"{options.out} is not empty: give --out a new folder")
    settings = [word for setting in options.set for word in ("--set", setting)]

    whole = options.out / "whole"
    call("run", options.recipe, *settings, "--out", str(options.out / "first"))  # fetches and caches what is missing
    started = time.monotonic()
    call("run", options.recipe, *settings, "--out", str(whole))
    seconds = time.monotonic() - started
    expected = result(whole)
    print(f"uninterrupted: {seconds:.1f} s, {len(expected)} files to compare\n")
    print("| killed at | how far it was | files that differ |\n|---|---|---|", flush=True)
    differing = len(expected) if result(options.out / "first") != expected else 0
    for number in range(options.kills):
        run = options.out / f"killed-{number}"
        while True:
            after, started = (number + 0.5) / options.kills * seconds, time.monotonic()
            if kill_after(after, "run", options.recipe, *settings, "--out", str(run)):
                break
            seconds = time.monotonic() - started  # the machine has become faster: again, within the time it takes now
            shutil.rmtree(run)
        stage = moment(run)
        if not (run / "recipe.toml").exists():
            call("run", options.recipe, *settings, "--out", str(run))
        else:
            call("resume", str(run))
        got = result(run)
        wrong = [name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)]
        differing += len(wrong)
        print(
            f"| {after:.1f} s | {stage} | {len(wrong)}{': ' if wrong else ''}{', '.join(sorted(wrong)[:3])} |",
            flush=True,
        )
    print(f"\n{options.kills} kills, {differing} differing files")
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
