"""The report as a browser shows it: its numbers, its scripts, and the page that follows a run. Needs Chromium."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedsa.runs.report import write_report
from fedsa.runs.report.serving import ReportServer
from support.browser import CHROMIUM, Browser
from support.run_folders import unfinish

pytestmark = [
    pytest.mark.run,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to look at the report with"),
]

ROWS = """(() => {
  const table = document.querySelector("table.clients"), head = [...table.tHead.rows[0].cells];
  return [...table.tBodies[0].rows].map(row => [...row.cells].map(cell => cell.innerText.trim()));
})()"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as found:
        found.look(1280)
        yield found


@pytest.fixture
def pair(tiny_run: Callable[..., Any], tmp_path: Path) -> tuple[Path, Path]:
    """A run, and one of the same recipe in which every client trained alone."""
    run = shutil.copytree(tiny_run().folder.path, tmp_path / "together")
    return run, shutil.copytree(tiny_run("algorithm=local").folder.path, tmp_path / "alone")


def percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def test_the_tables_and_curves_hold_the_runs_numbers(browser: Browser, pair: tuple[Path, Path]) -> None:
    run, other = pair
    browser.open(write_report(run, against=other).as_uri())
    summary, local = (json.loads((each / "summary.json").read_text()) for each in pair)
    rows = {row[0].split("\n")[0].removesuffix(" worst"): row for row in browser.value(ROWS)}
    assert {*rows} == {*summary["per_client"]}
    for client, entry in summary["per_client"].items():
        row = rows[client]
        now, before = entry["test"]["accuracy"], local["per_client"][client]["test"]["accuracy"]
        assert row[1:3] == [percent(entry["before"]), percent(now)]
        assert row[4] == percent(before)
        assert float(row[5].replace("−", "-")) == pytest.approx(100 * (now - before), abs=0.051)
        assert row[-3:] == [str(entry[f"{split}_examples"]) for split in ("train", "validation", "test")]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    drawn = browser.value("document.querySelector('#validation-mean path').getAttribute('d')")
    points = [tuple(map(float, place)) for place in re.findall(r"[ML] ([\d.]+) ([\d.]+)", drawn)]
    means = []
    for number in range(summary["rounds"] + 1):
        found = [line["validation"] for line in lines if line["round"] == number]
        weights = [each["examples"] for each in found]
        means.append(sum(each["accuracy"] * weight for each, weight in zip(found, weights, strict=True)) / sum(weights))
    assert len(points) == len(means)
    low, high = means.index(min(means)), means.index(max(means))
    assert min(means) < max(means)
    scale = (points[high][1] - points[low][1]) / (means[high] - means[low])
    assert scale < 0  # up is better
    for (across, down), number, mean in zip(points, range(len(means)), means, strict=True):
        assert down - points[low][1] == pytest.approx(scale * (mean - means[low]), abs=0.01)
        assert across - points[0][0] == pytest.approx(number * (points[1][0] - points[0][0]), abs=0.01)
    assert (
        browser.value("document.querySelector('#curves ~ div').innerText").count(
            f"round {summary['chosen_round']}: chosen"
        )
        == 1
    )
    assert browser.requests == [(run / "report.html").as_uri()]
    assert browser.console == []


def test_a_table_is_sorted_by_its_heads_and_is_whole_without_scripts(browser: Browser, pair: tuple[Path, Path]) -> None:
    page = write_report(pair[0]).as_uri()
    browser.look(1280, scripts=False)
    browser.open(page)
    plain = browser.value(ROWS)
    browser.look(1280)
    browser.open(page)
    assert browser.value(ROWS) == plain
    press = """(() => {
      const head = [...document.querySelectorAll("table.clients thead th")].find(each => each.innerText.includes(NAME));
      head.querySelector("button").click();
      return head.getAttribute("aria-sort");
    })()"""
    for name, place in (("Chosen", 2), ("Before", 1), ("Training rows", -3)):
        for direction in ("descending", "ascending"):
            assert browser.value(press.replace("NAME", json.dumps(name))) == direction
            values = [float(row[place].split("\u00a0")[0]) for row in browser.value(ROWS)]
            assert values == sorted(values, reverse=direction == "descending")
    assert browser.value(press.replace("NAME", '"Client"')) == "ascending"
    assert [row[0] for row in browser.value(ROWS)] == sorted(row[0] for row in plain)
    assert sorted(browser.value(ROWS)) == sorted(plain)
    assert browser.value("[...document.querySelectorAll('[aria-sort]')].length") == 1
    assert browser.console == []


def test_dark_and_light_are_the_readers_own_choice(browser: Browser, pair: tuple[Path, Path]) -> None:
    page, seen = write_report(pair[0]).as_uri(), []
    for dark in (False, True):
        browser.look(1280, dark=dark)
        browser.open(page)
        seen.append(browser.value("['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"))
    assert seen[0][0] != seen[0][1] != seen[1][1]


@contextmanager
def served(run: Path, port: int = 0) -> Iterator[ReportServer]:
    with ReportServer(run, port=port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


NEXT_PAGE = """new Promise(done =>
  document.addEventListener("fedsa:replaced", () => done(document.querySelector("main").innerText), {once: true}))"""
LOST = """new Promise(done => {
  const lost = document.getElementById("lost"), look = () => { if (lost.hidden === WANTED) done(true); };
  new MutationObserver(look).observe(lost, {attributes: true});
  look();
})"""


def test_a_served_page_follows_its_run_and_outlives_the_server(
    browser: Browser, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The events of the page are waited for, not the time."""
    run = tmp_path / "run"
    with served(run) as server:
        browser.open(server.url)
        assert "There is no folder run yet." in browser.value("document.body.innerText")
        half = shutil.copytree(pair[0], tmp_path / "half")
        unfinish(half)
        half.rename(run)
        assert "it was interrupted after 1 of 2 rounds" in browser.value(NEXT_PAGE)
        browser.open(server.url)  # a reload
        assert "it was interrupted after 1 of 2 rounds" in browser.value("document.body.innerText")
        run.rename(tmp_path / "half")
        shutil.copytree(pair[0], run)
        while "After 2 rounds, the model of round" not in browser.value(NEXT_PAGE):
            pass  # the moment at which there was no folder
        assert browser.value("document.querySelectorAll('th button').length") > 3
        assert {*browser.requests} == {
            server.url,
            *(each for each in browser.requests if each.startswith(f"{server.url}?after=")),
        }
        assert browser.console == []
        port = server.server_port
    assert browser.value(LOST.replace("WANTED", "false"))
    assert "After 2 rounds" in browser.value("document.body.innerText")  # what was there stays
    with served(run, port):
        assert browser.value(LOST.replace("WANTED", "true"))
