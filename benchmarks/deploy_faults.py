"""Do to a federation across machines what goes wrong in life, at random moments, and check what must hold all the same.

    python benchmarks/deploy_faults.py --times 5 --seed 1 --out runs/faults
    python benchmarks/deploy_faults.py --only slow --only "bad answers" --times 5 --out runs/faults

Real processes: `fedsa deploy server` and `fedsa deploy site` with a tiny model, NVFlare between them, TLS on both
sides. Each fault is done so many times in one run, each time at a random moment of its own part of the run. Then is
checked:

- the run ends: by itself, or with the same command where the server had to stop and said why;
- a round that was finished is never lost, and no line of metrics.jsonl changes;
- each round's A is the mean of the updates that counted, computed again here from what was seen to leave the sites: so
  no update counts twice, in another round, or not at all;
- each update that counted is in its site's list of what has left;
- with a deadline, no round takes longer than its two deadlines and a few seconds;
- where nobody was left out, all states of the server, the last of each site, and the adapters are, byte for byte, those
  of a run that nothing happened to.

The table says how each fault ended. What does not hold is printed with the seed, the run's folder is kept, and the exit
code is 1. Linux only; ``disk`` needs root, for it mounts small file systems.
"""

from __future__ import annotations

import argparse
import random
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fault_federation import (
    PROGRAMS,
    Federation,
    Template,
    ViolationError,
    below_with_itself,
    free_port,
    signal_all,
)
from fault_helpers import BAD, CutProxy, fill_disk, play_site, play_worker, small_disk

SITES = ("east", "north", "south")
ROUNDS = 30
DEADLINE = 4.0
_SLACK = 6.0  # seconds beside its deadlines that a round may take


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    fault: str
    times: int
    ended: str


class Suite:
    """What all scenarios share: templates with their undisturbed runs, and where runs are kept.

    Args:
        out: a new folder.
        seed: of the moments.
        times: each fault is done so often.
    """

    def __init__(self, out: Path, seed: int, times: int) -> None:
        self.out, self.seed, self.times = out, seed, times
        self.draw = random.Random(seed)
        self._templates: dict[tuple[int, int], Template] = {}
        self._undisturbed: dict[tuple[int, int], dict[str, bytes]] = {}
        self._runs = 0
        self.last: Federation | None = None

    def template(self, sites: Sequence[str] = SITES, rounds: int = ROUNDS) -> Template:
        """Return what a run of so many rounds starts from."""
        key = (len(sites), rounds)
        if key not in self._templates:
            self._templates[key] = Template.make(self.out / f"template-{len(sites)}-{rounds}", sites, rounds)
        return self._templates[key]

    def undisturbed(self, template: Template) -> dict[str, bytes]:
        """Return the files of a run that nothing happens to."""
        key = (len(template.sites), template.rounds)
        if key not in self._undisturbed:
            with Federation(template, self.out / f"undisturbed-{key[0]}-{key[1]}") as run:
                run.wait_for_end()
                run.check_means()
                run.check_sent()
            self._undisturbed[key] = run.files()
            if run.violations:
                raise ViolationError(f"the undisturbed run: {run.violations[0]}")
        return self._undisturbed[key]

    def run(
        self,
        name: str,
        *,
        template: Template | None = None,
        options: Sequence[str] = (),
        bad: Sequence[str] = (),
        ports: dict[str, int] | None = None,
        disks: dict[str, int] | None = None,
    ) -> Federation:
        """Return a new run's federation, to be used as a context."""
        self._runs += 1
        folder = self.out / f"{self._runs:02d}-{name.replace(' ', '-')}"
        template = template or self.template()
        folder.mkdir(parents=True)
        for place, size in (disks or {}).items():
            small_disk(folder / place, size)
        self.last = Federation(template, folder, tuple(options), tuple(bad), ports or {}, tuple(disks or ()))
        return self.last

    def close(self, run: Federation, *, equal: bool) -> str:
        """Wait for a run's end and check it; return how it ended."""
        run.wait_for_end()
        run.check_means()
        run.check_sent()
        if not equal:
            return "ends"
        there, here = self.undisturbed(run.template), run.files()
        differ = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        if differ:
            run.say(f"{len(differ)} files differ from the undisturbed run: {', '.join(differ[:3])}")
        return f"ends with the undisturbed run's bytes ({len(there)} files)"


def with_quorum(deadline: float | None = DEADLINE) -> list[str]:
    """Options of the server that let a round end without one of three sites."""
    return ["--quorum", "2", *([] if deadline is None else ["--deadline", str(deadline)])]


def check_rounds(run: Federation) -> str:
    """Check that no round has taken longer than its deadlines; return the longest."""
    longest = run.longest_round()
    if longest > 2 * DEADLINE + _SLACK:
        run.say(f"a round took {longest:.1f} s, with a deadline of {DEADLINE:g} s for each of its two messages")
    return f"longest round {longest:.1f} s"


def slow(suite: Suite) -> list[Row]:
    """A site's processes, or its worker alone, are stopped for a while; nobody is left out."""
    with suite.run("slow") as run:
        for _ in run.moments(suite.times, suite.draw):
            party = run.sites[suite.draw.choice(SITES)]
            stopped = below_with_itself(party) if suite.draw.random() < 0.5 else [party.find("worker")]
            signal_all(stopped, lambda one: one.suspend())
            time.sleep(suite.draw.uniform(1, 6))
            signal_all(stopped, lambda one: one.resume())
        return [Row("a site is slow; no deadline", suite.times, suite.close(run, equal=True))]


def slow_deadline(suite: Suite) -> list[Row]:
    """A site is stopped for longer than the deadline; the round ends without it, its late answer is dropped."""
    with suite.run("slow with a deadline", options=with_quorum()) as run:
        missed = 0
        for _ in run.moments(suite.times, suite.draw):
            since = len(run.server.told())
            party = run.sites[suite.draw.choice(SITES)]
            stopped = below_with_itself(party) if suite.draw.random() < 0.5 else [party.find("worker")]
            signal_all(stopped, lambda one: one.suspend())
            missed += run.wait_for_line(f"{party.name} has not answered", since=since, seconds=3 * DEADLINE)
            signal_all(stopped, lambda one: one.resume())
        if missed < suite.times:
            run.say(f"{suite.times - missed} times the server has not said whom it goes on without")
        ended = suite.close(run, equal=False)
        return [
            Row("a site is slower than the deadline", suite.times, f"left out and named, {check_rounds(run)}; {ended}")
        ]


def dead(suite: Suite) -> list[Row]:
    """One site after the other is killed for good; with the last ones the rounds go on."""
    return _gone(suite, "a site is dead for good", lambda run, site: run.sites[site].kill())


def removed(suite: Suite) -> list[Row]:
    """One owner after the other ends the site's process for good, and deletes its folder."""

    def remove(run: Federation, site: str) -> None:
        run.sites[site].stop()
        shutil.rmtree(run.folder / site)

    return _gone(suite, "a site is removed by its owner", remove)


def _gone(suite: Suite, fault: str, do: Callable[[Federation, str], None]) -> list[Row]:
    names = [f"site-{number}" for number in range(suite.times + 2)]
    with suite.run(fault, template=suite.template(names, 3 * suite.times + 2), options=with_quorum()) as run:
        gone: list[str] = []
        for number in run.moments(suite.times, suite.draw):
            do(run, names[number])
            gone.append(names[number])
        run.wait_for_round(run.template.rounds)
        if not run.wait_for_line(f"waiting for {', '.join(gone)}"):
            run.say("the server does not say for whom it waits with the test")
        run.check_means()
        longest = check_rounds(run)
        return [Row(fault, suite.times, f"all rounds end, {longest}; the test waits and says for whom")]


def killed(suite: Suite) -> list[Row]:
    """All of a site is killed at any moment, and comes back with its state."""
    with suite.run("killed") as run:
        for _ in run.moments(suite.times, suite.draw):
            party = run.sites[suite.draw.choice(SITES)]
            party.kill()
            time.sleep(suite.draw.uniform(0, 2))
            party.start()
        return [Row("a site is killed and comes back", suite.times, suite.close(run, equal=True))]


def killed_deadline(suite: Suite) -> list[Row]:
    """The same with a quorum: rounds go on without it until it is back."""
    with suite.run("killed with a deadline", options=with_quorum()) as run:
        for _ in run.moments(suite.times, suite.draw):
            party = run.sites[suite.draw.choice(SITES)]
            party.kill()
            time.sleep(suite.draw.uniform(0, 2))
            party.start()
        ended = suite.close(run, equal=False)
        return [Row("the same, with a quorum", suite.times, f"rounds go on without it, {check_rounds(run)}; {ended}")]


def state_lost(suite: Suite) -> list[Row]:
    """A site comes back without its states; it and the server say so, and with the states the run goes on."""

    def lose(run: Federation, site: str, newest: Path) -> None:
        for name in ("states", *(suite.draw.choice([(), ("answers", "sent.jsonl", "run.json")]))):
            path = run.folder / site / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    return _folder_lost(suite, "a site comes back without its states", lose, first=3)


def old_copy(suite: Suite) -> list[Row]:
    """A site comes back with its folder as it was some rounds before."""

    def age(run: Federation, site: str, newest: Path) -> None:
        shutil.rmtree(run.folder / site)
        shutil.copytree(run.folder / "copies" / site, run.folder / site)

    return _folder_lost(suite, "a site comes back with an old copy of its folder", age, first=4)


def _folder_lost(suite: Suite, fault: str, lose: Callable[[Federation, str, Path], None], first: int) -> list[Row]:
    with suite.run(fault) as run:
        run.wait_for_round(1)
        for site, party in run.sites.items():
            worker = party.find("worker")
            worker.suspend()
            shutil.copytree(run.folder / site, run.folder / "copies" / site)
            worker.resume()
        for number in run.moments(suite.times, suite.draw, first=first):
            site = suite.draw.choice(SITES)
            since, party, newest = len(run.server.told()), run.sites[site], run.folder / f"newest-{number}"
            party.kill()
            shutil.copytree(run.folder / site, newest)
            lose(run, site, newest)
            party.start()
            if run.wait_for_round(run.round + 5, server_may_end=True):
                run.say(f"the run went on with a site whose folder was not the newest ({site})")
                continue
            told = run.server.told()[since:]
            if f"{site}: it refuses" not in told and f"site '{site}' cannot take part" not in told:
                run.say(f"the server has ended without naming {site}: {told[-300:]}")
            party.kill()
            shutil.rmtree(run.folder / site)
            shutil.copytree(newest, run.folder / site)
            run.server.start()
            run.wait_for_port()
            party.start()
        ended = suite.close(run, equal=True)
        return [Row(fault, suite.times, f"refused and named; with the newest folder it {ended}")]


def bad_answers(suite: Suite) -> list[Row]:
    """A worker answers a round badly, in each way; with a quorum the round goes on without it."""
    kinds = [kind for kind in BAD for _ in range(suite.times)]
    suite.draw.shuffle(kinds)
    template = suite.template(SITES, 2 * len(kinds) + 10)
    with suite.run("bad answers", template=template, options=with_quorum(None), bad=["south"]) as run:
        seen = dict.fromkeys(BAD, 0)
        for number, kind in enumerate(kinds):
            since = len(run.server.told())
            run.wait_for_round(2 * number + 1)
            (run.folder / "south" / ".bad").write_text(kind, encoding="utf-8")
            seen[kind] += run.wait_for_line(BAD[kind], since=since, seconds=60)
        ended = suite.close(run, equal=False)
        for kind, count in seen.items():
            if count < suite.times:
                run.say(f"{kind}: {suite.times - count} times the server did not say {BAD[kind]!r}")
        return [Row(f"a site answers with {kind}", suite.times, f"left out, with the reason; {ended}") for kind in BAD]


def bad_stops(suite: Suite) -> list[Row]:
    """The same without a quorum: the server stops and names the reason; the same command goes on."""
    with suite.run("bad answers without a quorum", bad=["south"]) as run:
        for _ in run.moments(suite.times, suite.draw):
            kind = suite.draw.choice(list(BAD))
            since = len(run.server.told())
            (run.folder / "south" / ".bad").write_text(kind, encoding="utf-8")
            if run.wait_for_round(run.round + 5, server_may_end=True):
                run.say(f"the run went on after an answer of {kind}")
                continue
            if BAD[kind] not in run.server.told()[since:]:
                run.say(f"the server has ended without saying {BAD[kind]!r}: {run.server.told()[-300:]}")
            run.server.start()
        ended = suite.close(run, equal=True)
        return [Row("the same without a quorum", suite.times, f"stops with the reason; the same command {ended}")]


def server_killed(suite: Suite) -> list[Row]:
    """The server is killed at any moment, and started again with the same command."""
    with suite.run("server killed") as run:
        for _ in run.moments(suite.times, suite.draw):
            run.server.kill()
            time.sleep(suite.draw.uniform(0, 1))
            run.server.start()
        return [Row("the server is killed; the same command again", suite.times, suite.close(run, equal=True))]


def process_killed(suite: Suite, kind: str) -> list[Row]:
    """A process that a party's command has started is killed; the command starts it again."""
    with suite.run(f"{kind} killed") as run:
        for _ in run.moments(suite.times, suite.draw):
            whose = PROGRAMS[kind][0]
            party = run.server if whose == "server" else run.sites[suite.draw.choice(SITES)]
            party.find(kind).kill()
        return [Row(f"a process is killed: {kind}", suite.times, suite.close(run, equal=True))]


def network(suite: Suite) -> list[Row]:
    """The way between some sites and the server is cut for seconds: connections break, or nothing comes through."""
    template = suite.template()
    with ExitStack() as stack:
        proxies = {site: stack.enter_context(CutProxy(free_port(), template.port)) for site in SITES}
        ports = {site: proxy.port for site, proxy in proxies.items()}
        run = stack.enter_context(suite.run("network", ports=ports))
        for _ in run.moments(suite.times, suite.draw):
            cut = suite.draw.sample(SITES, suite.draw.randint(1, len(SITES)))
            breaks = suite.draw.random() < 0.5
            for site in cut:
                proxies[site].cut(breaks=breaks)
            time.sleep(suite.draw.uniform(1, 8))
            for site in cut:
                proxies[site].mend()
        return [Row("the network is cut for 1 to 8 s", suite.times, suite.close(run, equal=True))]


def disk(suite: Suite, place: str, what: str) -> list[Row]:
    """A disk is full for some seconds."""
    with suite.run(f"disk of {place}", disks={place: 24}) as run:
        stops = 0
        for _ in run.moments(suite.times, suite.draw):
            filler = fill_disk(run.folder / place)
            run.wait_for_round(run.round + 6, seconds=suite.draw.uniform(4, 10), server_may_end=True, may_wait=True)
            filler.unlink()
            if run.server.status is not None:
                stops += 1
                if "disk" not in run.server.told()[-600:] and "log says why" not in run.server.told()[-600:]:
                    run.say(f"the server stopped and did not say why: {run.server.told()[-300:]}")
                run.server.start()
        ended = suite.close(run, equal=True)
        return [
            Row(what, suite.times, f"the server stops {stops} times and says why; with room the same command {ended}")
        ]


SCENARIOS: dict[str, Callable[[Suite], list[Row]]] = {
    "slow": slow,
    "slow deadline": slow_deadline,
    "dead": dead,
    "removed": removed,
    "killed": killed,
    "killed deadline": killed_deadline,
    "state lost": state_lost,
    "old copy": old_copy,
    "bad answers": bad_answers,
    "bad stops": bad_stops,
    "server": server_killed,
    **{kind: (lambda suite, kind=kind: process_killed(suite, kind)) for kind in PROGRAMS},
    "network": network,
    "disk of a site": lambda suite: disk(suite, "south", "a site's disk is full"),
    "disk of the run": lambda suite: disk(suite, "out", "the disk of the server's run folder is full"),
    "disk of the server": lambda suite: disk(suite, "server", "the disk of the server's own folder is full"),
}


def main() -> int:
    """Run the scenarios, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="this one; may be repeated")
    parser.add_argument("--times", type=int, default=5, help="how often each fault is done")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("runs/faults"), help="a new folder for all runs")
    parser.add_argument("--play-site", nargs=2, metavar=("FOLDER", "ROWS"), help=argparse.SUPPRESS)
    parser.add_argument("--play-worker", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play_worker:
        return play_worker(options.play_worker)
    if options.play_site:
        return play_site(Path(options.play_site[0]), options.play_site[1], Path(__file__))
    if sys.platform != "linux":
        raise SystemExit("the fault suite is for Linux")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended then too
    print(f"python {shlex.join(sys.argv)}    # seed {options.seed}\n", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):
        raise SystemExit(f"{options.out} is not empty: give --out a new folder")
    print("| what happens | times | how it ended | invariants |\n|---|---|---|---|", flush=True)
    failed = 0
    for name in options.only or SCENARIOS:
        suite = Suite(options.out.resolve() / name.replace(" ", "-"), options.seed, options.times)
        rows, wrong = [Row(name, options.times, "")], []
        try:
            rows = SCENARIOS[name](suite)
        except ViolationError as error:
            wrong.append(str(error))
        except Exception:  # a mistake of this program must not hide the other scenarios' rows
            wrong.append(traceback.format_exc())
        wrong += suite.last.violations if suite.last else []
        for row in rows:
            print(f"| {row.fault} | {row.times} | {row.ended} | {'VIOLATED' if wrong else 'held'} |", flush=True)
        for text in wrong:
            print(f"\nVIOLATION, {name}, seed {options.seed}, {suite.last.folder if suite.last else ''}: {text}\n")
        failed += bool(wrong)
        if not wrong:
            shutil.rmtree(suite.out)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
