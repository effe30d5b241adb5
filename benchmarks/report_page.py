"""How large the report of many clients and rounds is, and how long it takes: to write, and to open in Chromium.

    python benchmarks/report_page.py --clients 200 --rounds 100

A run folder with made-up figures is written (every client trains and is evaluated in every round), and its report with
fedsa's own command for it. Chromium without a window then opens the file several times. Printed are the bytes of
the report, the seconds of writing it, and for each opening the seconds from asking for it until all of it is loaded,
laid out and drawn (a picture of the window is taken); with scripts, which prepare the table for sorting, and without.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fedsa.runs.report import write_report
from support.browser import CHROMIUM, Browser
from support.made_runs import PLAN, make_run

DRAWN = "document.documentElement.getBoundingClientRect().height"
"""The browser has laid out the whole page when it can tell its height."""


def lines_of(clients: list[str], rounds: int) -> list[dict[str, Any]]:
    """Return lines of metrics as long as real ones are."""
    chance = random.Random(0)
    return [
        {
            "round": number,
            "client": client,
            "train": {"loss": 2 / (number + 2) + 0.1 * chance.random(), "steps": 10, "seconds": 0.2 + chance.random()}
            if number
            else None,
            "upload_bytes": 147_456 if number else 0,
            "download_bytes": 147_456 if number else 0,
            "validation": {
                "after": "aggregate",
                "examples": 40 + chance.randrange(60),
                "accuracy": 0.5 + 0.4 * number / rounds * chance.random(),
                "loss": chance.random(),
            },
        }
        for number in range(rounds + 1)
        for client in clients
    ]


def summary_of(clients: list[str], rounds: int) -> dict[str, Any]:
    """Return a summary of as many clients."""
    chance = random.Random(1)
    figures = {"weighted_mean": 0.8, "mean": 0.79, "std": 0.05, "worst": 0.6, "worst_client": clients[0]}
    return {
        "algorithm": "fedsa",
        "variant": "lora",
        "rounds": rounds,
        "clients": len(clients),
        "metric": "accuracy",
        "chosen_round": rounds - 1,
        "test": {"round": rounds - 1, **figures},
        "test_final": {"round": rounds, **figures},
        "sharing_plan": PLAN,
        "total_upload_bytes": 147_456 * rounds * len(clients),
        "total_download_bytes": 147_456 * rounds * len(clients),
        "per_client": {
            client: {
                "train_examples": 300 + chance.randrange(100),
                "validation_examples": 70,
                "test_examples": 100,
                "labels": {f"class {label}": chance.randrange(90) for label in range(10)},
                "majority": 0.61,
                "before": 0.5,
                "test": {"accuracy": chance.random(), "loss": 0.3, "examples": 100},
                "test_final": {"accuracy": chance.random(), "loss": 0.3, "examples": 100},
            }
            for client in clients
        },
    }


def main() -> None:
    """Write, open, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5, help="how often it is opened")
    options = parser.parse_args()
    clients = [f"hospital {number:05d}" for number in range(options.clients)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = make_run(folder / "run", clients, summary_of(clients, options.rounds), lines_of(clients, options.rounds))
        started = time.perf_counter()
        report = write_report(run)
        found: dict[str, Any] = {
            "clients": options.clients,
            "rounds": options.rounds,
            "report_bytes": report.stat().st_size,
            "write_seconds": round(time.perf_counter() - started, 2),
        }
        if CHROMIUM is None:
            print("no chromium on PATH: the report is not opened", file=sys.stderr)
        else:
            with Browser(folder) as browser:
                for name, scripts in (("with_scripts", True), ("without_scripts", False)):
                    seconds = []
                    for _ in range(options.repeat):
                        browser.look(1280, scripts=scripts)
                        started = time.perf_counter()
                        browser.open(report.as_uri())
                        browser.value(DRAWN)
                        browser.picture(folder / "window.png", whole=False)
                        seconds.append(time.perf_counter() - started)
                    found[f"open_seconds_{name}"] = {
                        "first": round(seconds[0], 2),
                        "median": round(statistics.median(seconds), 2),
                    }
                found["console"] = browser.console
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
