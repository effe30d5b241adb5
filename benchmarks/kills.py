"""Kill fedsa with ``kill -9`` at random moments, in every verb that writes; then do it again, and compare the bytes.

    python benchmarks/kills.py                              # 200 kills: some twenty minutes on one idle core
    python benchmarks/kills.py --kills 20 --seed 7 --only run

What is killed: a run, a run that is resumed (again and again), an export of all clients, the adapter of a new client,
a sweep with its runs, the worker of a site, and the server of a federation. The model is a tiny random one. Each verb
runs once undisturbed, which takes T seconds; a kill comes after a time that is drawn from 0 to T. Then the same command
is given again (after a kill of a run `fedsa resume`, once there is a folder), and it must come to its end. Checked are:

- what was told before the kill (a round's line, a message's answer) is there after it;
- no folder is one that fedsa does not go on with;
- the bytes at the end are those of the undisturbed command: of a run, states of server and clients; of an export and an
  adapter, every file; of a sweep, its runs; of a federation, states, adapters and the server's tensors.

Processes are forked from one that has loaded the libraries, so that a kill costs two seconds and not ten; a sweep's
runs are processes as usual. Sites and server are fedsa's own (`fedsa.deploy.site`, `fedsa.engines.deployed`), and talk
over the sockets of the workers. NVFlare, which carries the bytes between machines, is not there: `deploy_faults.py`
kills its processes. The exit code is 1 if anything is wrong, and the folders are kept. POSIX only.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}

from kill_processes import Killed, contents, forked, make_template, run_command, serve_federation, worker_of

SITES = ("north", "south")
SHARES = {"run": 45, "resume": 45, "export": 25, "adapt": 20, "sweep": 10, "site": 30, "server": 25}
"""How many of 200 kills each verb gets."""


@dataclass
class Place:
    """The folders of this program.

    Attributes:
        root: of all.
        draw: coins.
        expected: files of the undisturbed commands, by what they are of.
        seconds: that the undisturbed commands took.
        wrong: what is wrong.
        moments: how far what was killed had come.
    """

    root: Path
    draw: random.Random
    expected: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    moments: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)

    @property
    def recipe(self) -> str:
        """The recipe file."""
        return str(self.root / "recipe.toml")

    def moment(self, verb: str) -> float:
        """A time at which a verb is killed, in seconds from its start."""
        return self.draw.uniform(0.0, self.seconds[verb])

    def count(self, verb: str, moment: str) -> None:
        """Count a kill."""
        self.kills[verb] += 1
        self.moments[f"{verb}: {moment}"] += 1

    def blame(self, what: str) -> None:
        """Note what is wrong, and say it."""
        self.wrong.append(what)
        print(f"wrong: {what}", file=sys.stderr, flush=True)

    def compare(self, verb: str, got: Mapping[str, bytes], what: str) -> None:
        """Note files that differ from those of the undisturbed command."""
        want = self.expected[verb]
        differing = sorted(name for name in want.keys() | got.keys() if want.get(name) != got.get(name))
        if differing:
            self.blame(f"{what}: {len(differing)} files differ: {', '.join(differing[:4])}")


def states_of(run: Path) -> dict[str, bytes]:
    """The states of a run's server and clients."""
    return {name: value for name, value in contents(run).items() if name.startswith(("server/", "clients/"))}


def told_rounds(log: Path) -> int:
    """The last round whose line a run has printed; 0: the one before training; -1: none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    rounds = [int(line.split()[1].partition("/")[0]) for line in lines if line.startswith("round ")]
    return max([*rounds, *(0 for line in lines if line.startswith("before training"))], default=-1)


def committed_round(run: Path) -> int:
    """The round that a run's folder has; -1: none."""
    from fedsa.store.commits import read_commit

    commit = read_commit(run)
    return -1 if commit is None else commit.progress.round


# -- a run, resumed once or again and again ----------------------------------------------------------------------------


def undisturbed_run(place: Place) -> None:
    """Run the recipe, as a first run has resolved it: what that has measured is not measured again."""
    first, run, log = place.root / "first", place.root / "whole", place.root / "whole.log"
    run_command(["run", place.recipe, "--out", str(first)], log)
    shutil.copy(first / "recipe.toml", place.recipe)
    shutil.rmtree(first)
    place.seconds["run"] = run_command(["run", place.recipe, "--out", str(run)], log)
    place.expected["run"] = place.expected["resume"] = states_of(run)


def go_on(place: Place, run: Path) -> list[str]:
    """The command that goes on with a run that was killed."""
    return ["resume", str(run)] if (run / "recipe.toml").exists() else ["run", place.recipe, "--out", str(run)]


def kill_run(place: Place, number: int, *, times: int) -> int:
    """Kill a run, and what goes on with it; return how many kills came before its end."""
    verb = "run" if times == 1 else "resume"
    run, log = place.root / f"{verb}-{number}", place.root / f"{verb}-{number}.log"
    kills, words = 0, ["run", place.recipe, "--out", str(run)]
    for _ in range(times):
        killed = Killed.after(place.moment("run"), words, log)
        told, there = told_rounds(log), committed_round(run) if run.exists() else -1
        if there < told:
            place.blame(f"{run.name}: round {told} was told, and {there} is there")
        if killed.came:
            kills += 1
            half = ", inside a write" if any(run.rglob(".*.partial")) else ""
            place.count(verb, f"round {there}{half}" if there >= 0 else "before the first commit")
        words = go_on(place, run)
        if not killed.came:
            break
    run_command(words, log)
    place.compare("run", states_of(run), run.name)
    shutil.rmtree(run)
    return kills


# -- what is made of a finished run ------------------------------------------------------------------------------------


def words_of(place: Place, verb: str, to: Path) -> list[str]:
    """The command of a verb that writes a folder."""
    run = str(place.root / "whole")
    if verb == "export":
        return ["export", run, "--all", "--to", str(to)]
    if verb == "adapt":
        return ["adapt", run, "--data", str(place.root / "new.csv"), "--to", str(to)]
    return ["sweep", str(place.root / "sweep.toml"), "--out", str(to)]


def made_by(verb: str, to: Path) -> dict[str, bytes]:
    """What a verb has written: of a sweep the states of its runs."""
    found = {name: value for name, value in contents(to).items() if not name.endswith(".lock")}
    if verb == "sweep":
        return {name: value for name, value in found.items() if "/server/" in name or "/clients/" in name}
    return found


def undisturbed(place: Place, verb: str) -> None:
    """Give a verb's command. Adapters name the folder of the base beside them, so all are written to one place."""
    to = place.root / verb
    place.seconds[verb] = run_command(words_of(place, verb, to), place.root / f"{verb}.log")
    place.expected[verb] = made_by(verb, to)
    shutil.rmtree(to)


def kill_verb(place: Place, verb: str, number: int) -> int:
    """Kill a verb, give its command again, and compare what is there."""
    to, log = place.root / verb, place.root / f"{verb}.log"
    before = contents(place.root / "whole")
    shutil.rmtree(to, ignore_errors=True)  # of one that went wrong
    killed = Killed.after(place.moment(verb), words_of(place, verb, to), log, group=True)
    if killed.came:
        left = len(made_by(verb, to)) if to.exists() else 0
        place.count(verb, f"{left} of {len(place.expected[verb])} files" if verb != "sweep" else f"{left} states")
    if verb == "sweep" or made_by(verb, to) != place.expected[verb]:  # else all was written, and it was ending
        run_command(words_of(place, verb, to), log)
    place.compare(verb, made_by(verb, to), f"{verb} {number}")
    if contents(place.root / "whole") != before:
        place.blame(f"{verb} {number}: the run's own folder has changed")
    shutil.rmtree(to)
    return int(killed.came)


# -- sites and server --------------------------------------------------------------------------------------------------


def federation(place: Place, name: str) -> Path:
    """A new federation's folders."""
    return Path(shutil.copytree(place.root / "federation", place.root / name))


def end_of(folder: Path) -> dict[str, bytes]:
    """What must be equal at the end of a federation: the server's states, the sites' states and adapters."""
    found = {f"server/{name}": value for name, value in contents(folder / "out" / "server").items()}
    for site in SITES:
        for part in ("states", "adapters"):
            found |= {f"{site}/{part}/{name}": value for name, value in contents(folder / site / part).items()}
    return {name: value for name, value in found.items() if not name.endswith((".lock", "README.md"))}


def undisturbed_federation(place: Place) -> None:
    """Run a federation."""
    folder = federation(place, "undisturbed")
    workers = {site: worker_of(folder, site) for site in SITES}
    place.seconds["server"] = place.seconds["site"] = serve_federation(folder, SITES).wait(300)
    for worker in workers.values():
        worker.kill()
    place.expected["site"] = place.expected["server"] = end_of(folder)
    shutil.rmtree(folder)


def kill_party(place: Place, verb: str, number: int) -> int:
    """Kill a site's worker, or the server, once in a federation; start it again, and compare the end."""
    from fedsa.client.sent import sent_messages

    folder, kills = federation(place, f"{verb}-{number}"), 0
    workers = {site: worker_of(folder, site) for site in SITES}
    server = serve_federation(folder, SITES)
    whom = place.draw.choice(SITES)
    ended = server.ended_within(place.moment(verb))
    if not ended:
        kills = 1
        place.count(verb, f"round {committed_round(folder / 'out')}" if (folder / "out").exists() else "the beginning")
        answered = {site: len(list(sent_messages(folder / site))) for site in SITES if _has_list(folder / site)}
        if verb == "site":
            workers[whom].kill()
            workers[whom] = worker_of(folder, whom)
        else:
            server.kill()
            server = serve_federation(folder, SITES)
        for site, count in answered.items():
            if len(list(sent_messages(folder / site))) < count:
                place.blame(f"{folder.name}: {site}'s list of what it has sent has lost messages")
        server.wait(300)
    for worker in workers.values():
        worker.kill()
    place.compare(verb, end_of(folder), folder.name)
    shutil.rmtree(folder)
    return kills


def _has_list(folder: Path) -> bool:
    return (folder / "sent.jsonl").exists()


# -- all of it ---------------------------------------------------------------------------------------------------------


def prepare(place: Place, verbs: list[str]) -> None:
    """Make the tiny model, and give every command once without a kill."""
    forked(lambda: make_template(place.root, SITES), place.root / "template.log").wait(300)
    undisturbed_run(place)
    for verb in ("export", "adapt", "sweep"):
        if verb in verbs:
            undisturbed(place, verb)
    if {"site", "server"} & {*verbs}:
        undisturbed_federation(place)


def main() -> None:
    """Kill, do again, compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many, over all verbs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", action="append", choices=[*SHARES], help="only this verb; may be repeated")
    parser.add_argument("--out", type=Path, help="a new folder for everything; default: a temporary one")
    options = parser.parse_args()
    print(f"python {shlex.join(sys.argv)}\n", flush=True)
    root = (options.out or Path(tempfile.mkdtemp(prefix="fedsa-kills-"))).resolve()
    root.mkdir(parents=True, exist_ok=True)
    place, began = Place(root, random.Random(options.seed)), time.monotonic()
    verbs = options.only or [*SHARES]
    whole = sum(SHARES[verb] for verb in verbs)
    prepare(place, verbs)
    ways: dict[str, Callable[[int], int]] = {
        "run": lambda number: kill_run(place, number, times=1),
        "resume": lambda number: kill_run(place, number, times=3),
        **{verb: lambda number, verb=verb: kill_verb(place, verb, number) for verb in ("export", "adapt", "sweep")},
        **{verb: lambda number, verb=verb: kill_party(place, verb, number) for verb in ("site", "server")},
    }
    print("| killed | kills | seconds undisturbed | wrong |\n|---|---|---|---|", flush=True)
    for verb in verbs:
        wanted, wrong, number = max(1, round(options.kills * SHARES[verb] / whole)), len(place.wrong), 0
        while place.kills[verb] < wanted:
            try:
                ways[verb](number)
            except (RuntimeError, OSError) as error:
                place.blame(f"{verb} {number}: {error}")
                if len(place.wrong) - wrong > 5:
                    break
            number += 1
        seconds = place.seconds["run" if verb == "resume" else verb]
        print(f"| {verb} | {place.kills[verb]} | {seconds:.1f} | {len(place.wrong) - wrong} |", flush=True)
    print(f"\n{sum(place.kills.values())} kills, {len(place.wrong)} wrong, {time.monotonic() - began:.0f} s")
    for moment, count in sorted(place.moments.items()):
        print(f"  {moment}: {count}")
    if not place.wrong and options.out is None:
        shutil.rmtree(root)
    sys.exit(bool(place.wrong))


if __name__ == "__main__":
    main()
