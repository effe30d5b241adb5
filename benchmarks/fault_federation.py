"""A small federation of real processes on this machine, for `deploy_faults.py`: started, looked at, killed, compared.

The parties are the commands `fedsa deploy server` and `fedsa deploy site`, each with a folder of its own that
`fedsa deploy init` has written. A thread looks at the server's run folder and at what the sites send, so that the
invariants can be checked at the end.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from fault_template import FEDSA, Template

SECONDS = 300.0  # for anything that must come by itself: a round, the end; a busy machine is slow
PROGRAMS = {
    "server parent": ("server", ("server.server_train",)),
    "server job": ("server", ("server.runner_process",)),
    "administrator": ("server", ("fedsa.deploy.nvflare",)),
    "site parent": ("site", ("client.client_train",)),
    "site job": ("site", ("client.worker_process",)),
    "worker": ("site", ()),
}
"""Kinds of processes below a party's command: whose, and words of their command lines."""


class ViolationError(Exception):
    """An invariant does not hold."""


class Party:
    """A command of a party in a process of its own, with a log that is kept over restarts."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name, self.command, self.log = name, tuple(command), log
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        """Start the command, or start it again."""
        self.starts += 1
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def status(self) -> int | None:
        """The exit status; None: it runs, or was never started."""
        return None if self.process is None else self.process.poll()

    def kill(self) -> None:
        """Kill the command with -9; what it has started ends by itself, and is waited for."""
        if self.process is None:
            return
        below = self.below()
        self.process.kill()
        self.process.wait()
        _, left = psutil.wait_procs(below, timeout=60)
        if left:
            raise ViolationError(f"{self.name}: {[one.pid for one in left]} outlive the command")

    def stop(self) -> None:
        """Interrupt the command as by Ctrl-C, and wait for its end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        self.kill()

    def below(self) -> list[psutil.Process]:
        """All processes that the command has started."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True) if self.process else []
        except psutil.NoSuchProcess:
            return []

    def find(self, kind: str, seconds: float = 60) -> psutil.Process:
        """Return the process of a kind below the command; wait until there is one."""
        words, end = PROGRAMS[kind][1], time.monotonic() + seconds
        while time.monotonic() < end:
            for one in self.below():
                with suppress(psutil.Error):
                    text = " ".join(one.cmdline())
                    if "guard.py" not in text and all(word in text for word in words) and _is_worker(text, kind):
                        return one
            time.sleep(0.05)
        raise ViolationError(f"{self.name} has had no process {kind!r} for {seconds:.0f} s")

    def told(self) -> str:
        """All that the command has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


def _is_worker(text: str, kind: str) -> bool:
    """Tell a site's own worker from the engine's processes, one of which is called a worker too."""
    return kind != "worker" or ("nvflare" not in text and ("fedsa.deploy.site" in text or "--play-worker" in text))


@dataclass
class Federation:
    """A run of a template's federation in a new folder.

    Attributes:
        template: what it is made from.
        folder: a new one.
        options: of the server's command.
        bad: sites whose worker answers badly when a file asks it to (`deploy_faults.py --play-site`).
        ports: where some sites look for the server, if not at its own port.
        disks: folders in it that are file systems of their own.
    """

    template: Template
    folder: Path
    options: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    ports: Mapping[str, int] = field(default_factory=dict)
    disks: tuple[str, ...] = ()
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out, self.server_folder = self.folder / "out", self.folder / "server"
        shutil.copytree(self.template.folder / "federation" / "server", self.server_folder, dirs_exist_ok=True)
        for site in self.template.sites:
            shutil.copytree(self.template.folder / "federation" / site, self.folder / site, dirs_exist_ok=True)
            if site in self.ports:
                _move_port(self.folder / site / "kit", self.template.port, self.ports[site])
        self.server = Party(
            "server",
            [*FEDSA, "deploy", "server", str(self.server_folder), "--out", str(self.out), *self.options],
            self.folder / "server.log",
        )
        self.sites = {
            site: Party(site, self._site_command(site), self.folder / f"{site}.log") for site in self.template.sites
        }
        self.commits: list[tuple[float, int]] = []  # moments at which a round was seen to be finished
        self.updates: dict[tuple[str, int], dict[str, bytes]] = {}  # site and round to digest to answer
        self.states: dict[int, Path] = {}  # round to a copy of the server's file of it: it keeps the last ones only
        self._metrics, self._ends = b"", threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _site_command(self, site: str) -> list[str]:
        rows = self.rows(site)
        if site in self.bad:
            program = str(Path(__file__).with_name("deploy_faults.py"))
            return [sys.executable, program, "--play-site", str(self.folder / site), str(rows)]
        return [*FEDSA, "deploy", "site", str(self.folder / site), "--data", str(rows)]

    def __enter__(self) -> Federation:
        self._thread.start()
        self.server.start()
        self.wait_for_port()
        for party in self.sites.values():
            party.start()
        return self

    def __exit__(self, *error: object) -> None:
        with ExitStack() as stack:  # each is stopped, whatever comes of the others
            for party in (self.server, *self.sites.values()):
                stack.callback(party.stop)
        self._ends.set()
        self._thread.join()
        for place in self.disks:
            shutil.copytree(self.folder / place, self.folder / f"{place}-kept", symlinks=True)
            subprocess.run(["umount", "-l", str(self.folder / place)], check=False)

    def rows(self, site: str) -> Path:
        """A site's own rows."""
        return self.template.folder / f"{site}.csv"

    def try_command(self, *words: str) -> tuple[int, str]:
        """Run a command that should end by itself; return its exit code and all that it says."""
        done = subprocess.run(
            [*FEDSA, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )
        return done.returncode, done.stdout.decode(errors="replace")

    def wait_for_port(self) -> None:
        """Return when the server's port is open."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with suppress(OSError), socket.create_connection(("localhost", self.template.port), timeout=1):
                return
            if self.server.status is not None:
                raise ViolationError(f"the server has ended: {self.server.told()[-500:]}")
            time.sleep(0.2)
        raise ViolationError("the server's port has not been opened")

    @property
    def round(self) -> int:
        """The last finished round; -1: the run has not begun."""
        with suppress(OSError, ValueError):
            return int(json.loads((self.out / "state.json").read_text(encoding="utf-8"))["round"])
        return -1

    def wait_for_round(
        self, round: int, *, seconds: float = SECONDS, server_may_end: bool = False, may_wait: bool = False
    ) -> bool:
        """Wait until a round is finished; False: the server's command has ended before, or it waits, if it may.

        Raises:
            ViolationError: the server has ended and may not, or the round does not come.
        """
        end = time.monotonic() + seconds
        while self.round < round:
            if self.server.status is not None:
                if server_may_end:
                    return False
                raise ViolationError(f"the server has ended before round {round}: {self.server.told()[-800:]}")
            if time.monotonic() > end:
                if may_wait:
                    return False
                raise ViolationError(f"round {round} has not come in {seconds:.0f} s, after {self.round}")
            time.sleep(0.02)
        return True

    def wait_for_line(self, text: str, party: Party | None = None, *, since: int = 0, seconds: float = SECONDS) -> bool:
        """Wait until a party (the server) has printed a text; False: it has not."""
        end = time.monotonic() + seconds
        while text not in (party or self.server).told()[since:]:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def wait_for_end(self, *, seconds: float = SECONDS) -> None:
        """Wait until the server's command has ended well.

        Raises:
            ViolationError: it has not.
        """
        assert self.server.process is not None  # noqa: S101
        try:
            status = self.server.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ViolationError(
                f"the server has not ended in {seconds:.0f} s, after round {self.round}: {self.server.told()[-500:]}"
            ) from None
        if status:
            raise ViolationError(f"the server has ended with {status}: {self.server.told()[-800:]}")

    def moments(self, times: int, draw: random.Random, *, first: int = 1) -> Iterator[int]:
        """Yield so many times, each time after a random round of its own part of the run and a random while in it."""
        last = self.template.rounds - 2
        for number in range(times):
            low, high = (first + (last - first) * part // times for part in (number, number + 1))
            self.wait_for_round(draw.randint(low, max(low, high - 2)))
            time.sleep(draw.uniform(0, 0.6))
            yield number

    def say(self, text: str) -> None:
        """Keep a violation."""
        self.violations.append(text)

    def _look(self) -> None:
        """Note every round that is finished and every update that is about to leave a site, until the end."""
        seen: set[tuple[Path, int]] = set()
        copies = self.folder / "seen"
        copies.mkdir()
        while not self._ends.wait(0.03):
            for site in self.template.sites:
                for path in (self.folder / site / "answers").glob("[0-9a-f]*"):
                    with suppress(OSError):
                        if (path, 0) not in seen:
                            self._take_answer(site, path.read_bytes()[32:])
                            seen.add((path, 0))
            for path in (self.out / "server").glob("round-*.safetensors"):
                with suppress(OSError):
                    version = (path, path.stat().st_mtime_ns)
                    if version not in seen:
                        shutil.copy(path, copies / path.name)
                        self.states[int(path.stem[6:])] = copies / path.name
                        seen.add(version)
            try:
                state = json.loads((self.out / "state.json").read_text(encoding="utf-8"))
                metrics = (self.out / "metrics.jsonl").read_bytes()[: state["metrics_bytes"]]
            except (OSError, ValueError):
                continue
            last = self.commits[-1][1] if self.commits else -1
            if state["round"] < last or not metrics.startswith(self._metrics):
                self.say(f"round {last} was finished, and is gone: the run is at round {state['round']}")
            if state["round"] != last:
                self.commits.append((time.monotonic(), state["round"]))
            self._metrics = metrics

    def _take_answer(self, site: str, answer: bytes) -> None:
        from fedsa.messages import decode

        message = decode(answer)
        if message.kind == "update" and "updates" in message.about:
            digest = hashlib.sha256(answer).hexdigest()
            self.updates.setdefault((site, message.round), {})[digest] = answer

    def round_seconds(self) -> dict[int, float]:
        """Round to the seconds between the one before and its own end, of all that were seen to end by themselves."""
        pairs = zip(self.commits, self.commits[1:], strict=False)
        return {round: moment - before for (before, last), (moment, round) in pairs if round == last + 1}

    def counted(self) -> dict[int, set[str]]:
        """Round to the clients whose updates were taken, as the server's metrics say."""
        found: dict[int, set[str]] = {}
        for line in (self.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["train"] is not None:
                found.setdefault(entry["round"], set()).add(entry["client"])
        return found

    def check_means(self) -> None:
        """Compute each round's mean again from what the sites have sent, and compare it with what the server has.

        So an update that counts twice, in another round, or not at all although it was taken, is found.
        """
        import torch

        from fedsa.messages import decode
        from fedsa.store.files import load_tensors

        counted = self.counted()
        for round in range(1, self.round + 1):
            tensors = load_tensors(self.states[round])[0] if round in self.states else {}
            sums: dict[Any, Any] = {}
            weight = 0
            for site in sorted(counted.get(round, ())):
                answers = self.updates.get((site, round), {})
                if len(answers) != 1:
                    self.say(f"round {round}: {site} counted, and was seen to send {len(answers)} different updates")
                    return
                message = decode(*answers.values())
                examples = message.about["updates"][site]["num_examples"]
                weight += examples
                for key, tensor in message.states[site].items():
                    sums[key] = sums.get(key, 0) + examples * tensor.double()
            for key, total in sums.items():
                if str(key) not in tensors:
                    self.say(f"round {round}: the server's file was not seen, or has no {key}")
                    return
                if not torch.allclose(tensors[str(key)].double(), total / weight, rtol=1e-5, atol=1e-7):
                    self.say(f"round {round}: the server's {key} is not the mean of the updates that counted")
                    return

    def check_sent(self) -> None:
        """Check that every update that counted is in the site's list of what has left, where the list is there."""
        for round, clients in self.counted().items():
            for site in clients:
                path = self.folder / site / "sent.jsonl"
                if not path.exists():
                    continue
                lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                if not any(line.get("round") == round and line.get("tensors") for line in lines):
                    self.say(f"round {round}: the update of {site} counted, and is not in its list of what has left")
                    return

    def files(self) -> dict[str, bytes]:
        """What must not differ from an undisturbed run: states of server and sites, and the adapters."""
        last = f"round-{self.template.rounds:06d}.safetensors"
        found = {f"server/{path.name}": path.read_bytes() for path in (self.out / "server").glob("round-*")}
        for site in self.template.sites:
            for path in [
                *(self.folder / site / "states").rglob(last),
                *(self.folder / site / "adapters").rglob("adapter_model.safetensors"),
            ]:
                found[f"{site}/{path.relative_to(self.folder / site)}"] = path.read_bytes()
        return found


def below_with_itself(party: Party) -> list[psutil.Process]:
    """A party's command and all that it has started."""
    return [psutil.Process(party.process.pid), *party.below()] if party.process else []


def signal_all(processes: Sequence[psutil.Process], what: Callable[[psutil.Process], None]) -> None:
    """Stop or continue processes, those that have ended meanwhile left out."""
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            what(one)


def _move_port(kit: Path, old: int, new: int) -> None:
    """Have a site's kit look for the server at another port."""
    for path in (kit / "fedsa.json", kit / "startup" / "fed_client.json"):
        path.write_text(path.read_text(encoding="utf-8").replace(str(old), str(new)), encoding="utf-8")
