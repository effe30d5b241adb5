"""The faults of `deploy_faults.py`, one function each: what is done to a run, and what must be seen."""

from __future__ import annotations

import functools
import random
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from fault_certificates import REFUSED, Stranger, spoil_kit
from fault_federation import PROGRAMS, Federation, below_with_itself, signal_all
from fault_helpers import BAD, CutProxy, fill_disk
from fault_suite import DEADLINE, SITES, Row, Suite, check_rounds, with_quorum

from fedsa.deploy.parties import free_port


def stop_for_a_while(run: Federation, draw: random.Random) -> None:
    """Stop a site's processes, or its worker alone, and let them go on."""
    party = run.sites[draw.choice(SITES)]
    stopped = below_with_itself(party) if draw.random() < 0.5 else [party.find("worker")]
    signal_all(stopped, lambda one: one.suspend())
    time.sleep(draw.uniform(1, 6))
    signal_all(stopped, lambda one: one.resume())


def kill_site(run: Federation, draw: random.Random) -> None:
    """Kill all of a site, and start it again with the same command."""
    party = run.sites[draw.choice(SITES)]
    party.kill()
    time.sleep(draw.uniform(0, 2))
    party.start()


def kill_server(run: Federation, draw: random.Random) -> None:
    """Kill the server's command, and with it all that it has started; start it again."""
    run.server.kill()
    time.sleep(draw.uniform(0, 1))
    run.server.start()


def kill_process(kind: str, run: Federation, draw: random.Random) -> None:
    """Kill one process that a party's command has started; the command starts it again."""
    party = run.server if PROGRAMS[kind][0] == "server" else run.sites[draw.choice(SITES)]
    party.find(kind).kill()


NOBODY_LEFT_OUT: dict[str, Callable[[Federation, random.Random], None]] = {
    "a site is slow; no deadline": stop_for_a_while,
    "a site is killed and comes back": kill_site,
    "the server is killed; the same command again": kill_server,
    **{f"a process is killed: {kind}": functools.partial(kill_process, kind) for kind in PROGRAMS},
}


def nobody_left_out(suite: Suite) -> list[Row]:
    """All faults after which the run waits for everybody, so often each, in one run and in a random order."""
    order = [fault for fault in NOBODY_LEFT_OUT for _ in range(suite.times)]
    suite.draw.shuffle(order)
    with suite.run("nobody left out", template=suite.template(SITES, 2 * len(order) + 4)) as run:
        for number, fault in enumerate(order):
            run.wait_for_round(2 * number + 1)
            time.sleep(suite.draw.uniform(0, 0.6))
            NOBODY_LEFT_OUT[fault](run, suite.draw)
        ended = suite.close(run, equal=True)
        return [Row(fault, suite.times, ended) for fault in NOBODY_LEFT_OUT]


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


def killed_deadline(suite: Suite) -> list[Row]:
    """The same with a quorum: rounds go on without it until it is back."""
    with suite.run("killed with a deadline", options=with_quorum()) as run:
        for _ in run.moments(suite.times, suite.draw):
            kill_site(run, suite.draw)
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


def certificates(suite: Suite) -> list[Row]:
    """A party is started with certificates that are wrong; and somebody connects who is none."""
    with suite.run("certificates") as run:
        stranger, worker = Stranger(run.template), run.sites["east"].find("worker")
        for number in run.moments(suite.times, suite.draw):
            worker.suspend()  # so that the server is there as long as the commands take
            for kind, (line, at_server) in REFUSED.items():
                folder = spoil_kit(kind, run, run.folder / f"spoiled-{number}")
                whose = "server" if at_server else "site"
                rest = ["--out", str(run.folder / "none")] if at_server else ["--data", str(run.rows("south"))]
                status, said = run.try_command("deploy", whose, str(folder), *rest)
                if status != 2 or line not in said or "Traceback" in said:
                    run.say(f"{kind}: exit code {status}, and not {line!r}: {said[-300:]}")
                shutil.rmtree(run.folder / f"spoiled-{number}")
            stranger.knock()
            if not run.wait_for_line("somebody was refused: the certificate is not of this federation", seconds=30):
                run.say("the server does not say that it has refused somebody")
            worker.resume()
        stranger.close()
        ended = suite.close(run, equal=True)
        return [Row(kind, suite.times, f"refused in one line; the run {ended}") for kind in REFUSED]


def short(suite: Suite) -> list[Row]:
    """Some of the faults, once each, in one short run: for a test."""
    with suite.run("short", template=suite.template(SITES[:2], 20)) as run:
        north = run.sites["north"]
        run.wait_for_round(1)
        north.find("worker").kill()
        run.wait_for_round(2)
        run.server.kill()
        run.server.start()
        run.wait_for_round(4)
        north.kill()
        north.start()
        run.wait_for_round(5)
        run.server.find("server job").kill()
        return [Row("worker, server, site and the engine's job are killed", 1, suite.close(run, equal=True))]


def shortest(suite: Suite) -> list[Row]:
    """A worker and the server's command are killed, in one run that is compared with none: for every change."""
    everybody = ["--quorum", "2"]
    with suite.run("shortest", template=suite.template(SITES[:2], 6), options=everybody) as run:
        run.wait_for_round(1)
        run.sites["north"].find("worker").kill()
        run.wait_for_round(2)
        run.server.kill()
        run.server.start()
        return [Row("a worker and the server are killed", 1, suite.close(run, equal=False))]


def disk(suite: Suite, place: str, what: str) -> list[Row]:
    """A disk is full for some seconds."""
    with suite.run(f"disk of {place}", disks={place: 24}) as run:
        stops = 0
        for _ in run.moments(suite.times, suite.draw):
            filler = fill_disk(run.folder / place)
            run.wait_for_round(run.round + 6, seconds=suite.draw.uniform(4, 10), server_may_end=True, may_wait=True)
            filler.unlink()
            run.wait_for_round(run.round + 2, server_may_end=True)  # it goes on, or it is ending already
            if run.server.status is not None:
                stops += 1
                if "disk" not in run.server.told()[-600:] and "log says why" not in run.server.told()[-600:]:
                    run.say(f"the server stopped and did not say why: {run.server.told()[-300:]}")
                run.server.start()
        ended = suite.close(run, equal=True)
        return [
            Row(what, suite.times, f"the server stops {stops} times and says why; with room the same command {ended}")
        ]


SHORT = {"short", "shortest"}
"""For tests, not for the table."""
SCENARIOS: dict[str, Callable[[Suite], list[Row]]] = {
    "nobody left out": nobody_left_out,
    "slow deadline": slow_deadline,
    "dead": dead,
    "removed": removed,
    "killed deadline": killed_deadline,
    "state lost": state_lost,
    "old copy": old_copy,
    "bad answers": bad_answers,
    "bad stops": bad_stops,
    "network": network,
    "certificates": certificates,
    "disk of a site": lambda suite: disk(suite, "south", "a site's disk is full"),
    "disk of the run": lambda suite: disk(suite, "out", "the disk of the server's run folder is full"),
    "disk of the server": lambda suite: disk(suite, "server", "the disk of the server's own folder is full"),
    "short": short,
    "shortest": shortest,
}
