"""Do to a federation across machines what goes wrong in life, at random moments, and check what must hold all the same.

    python benchmarks/deploy_faults.py --times 5 --seed 1 --out runs/faults
    python benchmarks/deploy_faults.py --only network --only "bad answers" --times 5 --out runs/faults

Real processes: `fedsa deploy server` and `fedsa deploy site` with a tiny model, NVFlare between them, TLS on both
sides. Each fault is done so many times in one run, each time at a random moment of its own part of the run. Then is
checked:

- the run ends: by itself, or with the same command where the server had to stop and said why;
- a round that was finished is never lost, and no line of metrics.jsonl changes;
- each round's A is the mean of the updates that counted, computed again here from what was seen to leave the sites: so
  no update counts twice, in another round, or not at all;
- each update that counted is in its site's list of what has left;
- with a deadline, no round takes longer than its two deadlines and a few seconds, unless the quorum is missing and the
  server has said for whom it waits;
- where nobody was left out, all states of the server, the last of each site, and the adapters are, byte for byte, those
  of a run that nothing happened to.

The table says how each fault ended. What does not hold is printed with the seed, the run's folder is kept, and the exit
code is 1. Linux only; ``disk`` needs root, for it mounts small file systems.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
import traceback
from pathlib import Path

from fault_federation import ViolationError
from fault_helpers import play_site, play_worker
from fault_scenarios import SCENARIOS, SHORT
from fault_suite import Row, Suite


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
    failed, suite = 0, Suite(options.out.resolve(), options.seed, options.times)
    for name in options.only or [name for name in SCENARIOS if name not in SHORT]:
        suite.draw.seed(f"{options.seed} {name}")  # the same moments, whatever else is done
        rows, wrong = [Row(name, options.times, "")], []
        try:
            rows = SCENARIOS[name](suite)
        except ViolationError as error:
            wrong.append(str(error))
        except Exception:  # a mistake of this program must not hide the other scenarios' rows
            wrong.append(traceback.format_exc())
        runs, suite.runs[:] = list(suite.runs), []
        wrong += [text for run in runs for text in run.violations]
        for row in rows:
            print(f"| {row.fault} | {row.times} | {row.ended} | {'VIOLATED' if wrong else 'held'} |", flush=True)
        for text in wrong:
            print(f"\nVIOLATION, {name}, seed {options.seed}, {', '.join(str(run.folder) for run in runs)}: {text}\n")
        failed += bool(wrong)
        for run in runs if not wrong else ():
            shutil.rmtree(run.folder)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
