"""What the scenarios of `deploy_faults.py` share: templates with their undisturbed runs, runs, and their checks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fault_federation import Federation, ViolationError
from fault_helpers import small_disk
from fault_template import Template

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

    Attributes:
        runs: of the present scenario.
    """

    def __init__(self, out: Path, seed: int, times: int) -> None:
        self.out, self.seed, self.times = out, seed, times
        self.draw = random.Random(seed)
        self._templates: dict[tuple[int, int], Template] = {}
        self._undisturbed: dict[tuple[int, int], dict[str, bytes]] = {}
        self.runs: list[Federation] = []
        self._count = 0

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
        template = template or self.template()
        if not options:
            self.undisturbed(template)  # first: it takes the same port
        self._count += 1
        folder = self.out / f"{self._count:02d}-{name.replace(' ', '-')}"
        folder.mkdir(parents=True)
        for place, size in (disks or {}).items():
            small_disk(folder / place, size)
        self.runs.append(Federation(template, folder, tuple(options), tuple(bad), ports or {}, tuple(disks or ())))
        return self.runs[-1]

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
    """Check that no round took longer than its deadlines, unless it was said for whom it waits; return the longest.

    It waits where the quorum has not answered: while the engine's job is followed by another one, nobody can.
    """
    seconds, told = run.round_seconds(), run.server.told()
    long = {round for round, took in seconds.items() if took > 2 * DEADLINE + _SLACK}
    for round in sorted(long):
        # A round's second message, to measure the clients, is one of the next round.
        if not any(f"round {number}: waiting for" in told for number in (round, round + 1)):
            run.say(f"round {round} took {seconds[round]:.1f} s, and the server did not say for whom it waits")
    rest = max((took for round, took in seconds.items() if round not in long), default=0.0)
    waited = f"; {len(long)} that waited for the quorum, and said so, {max(seconds.values()):.1f} s" if long else ""
    return f"longest round {rest:.1f} s{waited}"
