"""Runs beside each other: groups, curves, paired differences, and what is honestly not compared."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsa.errors import RunFolderError, UserError
from fedsa.runs.compare import Comparison, as_csv, as_json, compare, table_of
from fedsa.runs.compare.page import as_html
from fedsa.runs.scores import shown
from fedsa.statistics import paired_difference
from fedsa.store import FinishedRun, Progress, RunFolder
from support.run_folders import resealed, rewrite_recipe, unfinish
from support.tiny_runs import TinyRun

pytestmark = pytest.mark.run

EVIL = '<script>alert("x")</script>'


@pytest.fixture
def paths(tiny_run: Callable[..., TinyRun], tmp_path: Path) -> Callable[..., list[Path]]:
    """Finished runs of the tiny recipe, one for each list of settings, in folders named a, b, c, ..."""

    def make(*settings: list[str]) -> list[Path]:
        return [
            Path(shutil.copytree(tiny_run(*each).folder.path, tmp_path / "abcdef"[number]))
            for number, each in enumerate(settings)
        ]

    return make


FEDSA, LOCAL = [], ["algorithm=local"]


def names(found: Comparison) -> list[str]:
    return [group.name for group in found.groups]


def test_differences_are_those_of_the_same_clients_and_seeds(paths: Callable[..., list[Path]]) -> None:
    runs = paths(FEDSA, ["seed=1"], LOCAL, [*LOCAL, "seed=1"])
    found = compare(runs)
    assert names(found) == ["fedsa", "local"]
    assert [group.seeds for group in found.groups] == [[0, 1], [0, 1]]
    (beside,) = found.beside
    values = [
        {client: entry["test"]["accuracy"] for client, entry in FinishedRun.open(run).summary["per_client"].items()}
        for run in runs
    ]
    assert beside.difference == paired_difference(dict(enumerate(values[2:])), dict(enumerate(values[:2])))
    for pair in beside.clients:
        assert pair.seeds == 2
        assert pair.own == pytest.approx(np.mean([each[pair.client] for each in values[2:]]))
        assert pair.difference == pytest.approx(pair.own - np.mean([each[pair.client] for each in values[:2]]))
    assert sum(beside.counts.values()) == len(beside.clients) == 3
    assert beside.reasons == []
    assert any("2 seeds only" in note for note in found.notes)
    assert names(compare(runs, against=runs[2])) == ["fedsa", "local"]
    assert compare(runs, against=runs[2]).reference.name == "local"


def test_a_run_compared_with_its_copy_differs_in_nothing(paths: Callable[..., list[Path]]) -> None:
    found = compare(paths(FEDSA, FEDSA))
    assert names(found) == ["fedsa (a)", "fedsa (b)"]
    (beside,) = found.beside
    assert beside.difference is not None
    assert (beside.difference.mean, beside.difference.low, beside.difference.high) == (0, 0, 0)
    assert beside.counts == {"better": 0, "worse": 0, "same": 3}


def test_where_rows_were_put_together_no_bytes_are_shown(paths: Callable[..., list[Path]]) -> None:
    table = table_of(compare(paths(FEDSA, ["algorithm=pooled"])))
    sent = {row[0]: row[table.header.index("sent")] for row in table.rows}
    assert sent["pooled"] == "all rows"
    assert sent["fedsa"].endswith("kB")


def test_clients_that_never_trained_have_a_column(paths: Callable[..., list[Path]]) -> None:
    """Of three clients one is drawn in each of two rounds; where all train there is a dash, or no such column."""
    runs = paths(FEDSA, LOCAL, ["fraction_train=0.34"])
    assert "never trained" not in table_of(compare(runs[:2])).header
    table = table_of(found := compare(runs[::2]))
    column = {row[0]: row[table.header.index("never trained")] for row in table.rows}
    test = FinishedRun.open(runs[2]).summary["test"]
    assert test["untrained_clients"] > 0
    every, drawn = as_json(found)["groups"]
    assert column == {every["name"]: "–", drawn["name"]: shown(test["untrained_mean"], "accuracy")}
    assert (every["test"]["untrained_mean"], drawn["test"]["untrained_mean"]) == (None, test["untrained_mean"])
    assert any(note.startswith("Never trained: ") for note in table.notes)


def test_curves_count_what_was_sent_and_end_at_the_runs_totals(paths: Callable[..., list[Path]]) -> None:
    found = compare(paths(FEDSA, LOCAL))
    for group in found.groups:
        (run,) = group.runs
        assert [point.round for point in run.curve] == [0, 1, 2]
        last = run.curve[-1]
        assert (last.upload_bytes, last.download_bytes) == (
            run.summary["total_upload_bytes"],
            run.summary["total_download_bytes"],
        )
        assert last.train_seconds == pytest.approx(run.summary["train_seconds"])
        assert max(point.value for point in run.curve[1:]) == pytest.approx(run.summary["chosen_score"])
    assert found.groups[1].runs[0].curve[-1].upload_bytes == 0  # local sends nothing
    assert found.groups[0].runs[0].curve[-1].upload_bytes > 0


def test_groups_are_named_by_what_differs(paths: Callable[..., list[Path]]) -> None:
    found = compare(paths(FEDSA, ["training.learning_rate=0.005"], ["adapter.variant=rslora"]))
    assert names(found) == ["lora, learning_rate = 0.01", "lora, learning_rate = 0.005", "rslora, learning_rate = 0.01"]
    assert set(found.groups[0].settings) == {"training.learning_rate", "adapter.variant"}


def test_where_only_the_machine_differs_that_is_compared(paths: Callable[..., list[Path]]) -> None:
    found = compare(paths(["training.trainer=sequential"], ["training.trainer=cohort"]))
    assert len(found.groups) == 2
    assert found.beside[0].difference is not None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        pytest.param(["seed=1"], "The seeds are not the same", id="seed"),
        pytest.param(
            ["data.partition.test_fraction=0.3"], "3 clients not compared, whose test rows are others", id="split"
        ),
        pytest.param(
            ['data.partition={kind="iid", clients=4}'], "Not compared: there is no client in both", id="clients"
        ),
    ],
)
def test_other_rows_are_not_compared(paths: Callable[..., list[Path]], settings: list[str], reason: str) -> None:
    found = compare(paths(FEDSA, [*LOCAL, *settings]))
    (beside,) = found.beside
    assert beside.difference is None
    assert beside.clients == []
    assert any(reason in text for text in beside.reasons), beside.reasons
    assert "cannot be compared" in as_html(found)


def test_another_data_file_is_not_compared(paths: Callable[..., list[Path]], tiny_rows: Path, tmp_path: Path) -> None:
    copy = shutil.copy(tiny_rows, tmp_path / "other.csv")
    with Path(copy).open("a", encoding="utf-8") as file:
        file.write("the film was fine,good,site 0\n")
    (beside,) = compare(paths(FEDSA, [*LOCAL, f"data.path={Path(copy).as_posix()}"])).beside
    assert beside.difference is None
    assert any("other.csv" in reason for reason in beside.reasons)


def test_rows_at_sites_are_taken_to_be_the_same_by_their_numbers(paths: Callable[..., list[Path]]) -> None:
    runs = paths(FEDSA, LOCAL, [*LOCAL, "seed=1"])

    def like_a_server(folder: RunFolder, progress: Progress) -> None:
        (folder.path / "partition.json").unlink()
        del folder._files["partition.json"]
        progress.data = ""

    for run in runs:
        resealed(run, like_a_server)
    (beside,) = compare(runs[:2]).beside
    assert beside.difference is not None
    assert len(beside.clients) == 3
    assert "cannot be looked at here" in beside.reasons[0]
    (beside,) = compare([runs[0], runs[2]]).beside  # another seed cuts in another way
    assert beside.difference is None
    assert "cut in another way" in beside.reasons[-1]


def test_a_client_of_one_run_alone_is_named(paths: Callable[..., list[Path]]) -> None:
    (beside,) = compare(paths(FEDSA, [*LOCAL, "holdout_clients=0.34"])).beside
    assert len(beside.clients) == 2
    assert any("1 client of a not in b" in reason for reason in beside.reasons)


def test_another_metric_is_not_compared(paths: Callable[..., list[Path]]) -> None:
    runs = paths(FEDSA, LOCAL)

    def rename(folder: RunFolder, progress: Progress) -> None:
        text = json.dumps(folder.read_json("summary.json")).replace('"accuracy"', '"f1"')
        folder.write_json("summary.json", json.loads(text))

    resealed(runs[1], rename)
    (beside,) = compare(runs).beside
    assert beside.difference is None
    assert "its metric is f1" in beside.reasons[0]


def test_other_moments_are_compared_after_the_aggregate(paths: Callable[..., list[Path]]) -> None:
    runs = paths(FEDSA, ["evaluation.evaluate_after=training"])
    found = compare(runs)
    assert found.moment == "aggregate"
    assert "different moments" in found.notes[0]
    summary = FinishedRun.open(runs[1]).summary
    own = {pair.client: pair.own for pair in found.beside[0].clients}
    assert own == {client: entry["test_after_aggregate"]["accuracy"] for client, entry in summary["per_client"].items()}


def test_mistakes(paths: Callable[..., list[Path]], tmp_path: Path, fedsa_command: Callable[..., Any]) -> None:
    runs = paths(FEDSA, LOCAL)
    with pytest.raises(UserError, match="one run alone"):
        compare(runs[:1])
    with pytest.raises(UserError, match="given twice"):
        compare([runs[0], runs[0]])
    outcome = fedsa_command("compare", *runs, "--to", tmp_path / "table.pdf")
    assert (outcome.code, ".html, .md, .tex, .csv" in outcome.error) == (2, True)
    unfinish(runs[1])
    with pytest.raises(RunFolderError, match="not finished"):
        compare(runs)


class _Page(HTMLParser):
    """What is on a page: its tags, the addresses in it, and the cells of its tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.cells: list[str] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & {*self._open} and self.cells:
            self.cells[-1] += data


def test_the_page_holds_the_numbers_and_fetches_nothing(paths: Callable[..., list[Path]]) -> None:
    runs = paths(FEDSA, LOCAL)
    found = compare(runs)
    html = as_html(found)
    page = _Page(html)
    assert page.tags.count("script") == 1  # the one that sorts; its hash is in the policy
    assert all(address.startswith("#") for address in page.addresses)
    assert page.tags.count("svg") == 4  # three curves, and the differences of one group
    cells = [cell.strip().replace("\u00a0", " ") for cell in page.cells]
    for pair in found.beside[0].clients:
        place = cells.index(pair.client)
        assert cells[place + 1 : place + 3] == [f"{100 * pair.against:.1f} %", f"{100 * pair.own:.1f} %"]
        assert float(cells[place + 3].replace("−", "-")) == pytest.approx(100 * pair.difference, abs=0.051)
    for row in table_of(found).rows:
        assert all(cell in cells for cell in row[1:] if cell)
    assert html == as_html(compare(runs))  # the same runs give the same page


def test_names_of_strangers_stay_text(paths: Callable[..., list[Path]]) -> None:
    runs = paths(FEDSA, LOCAL)
    for run in runs:
        rewrite_recipe(run, 'description = ""', f"description = {EVIL!r}")
    evil = runs[0].rename(runs[0].with_name("<img src=x onerror=y>"))
    html = as_html(compare([evil, runs[1]]))
    assert "<img" not in html
    assert EVIL not in html


def test_the_command_writes_what_it_is_asked_for(
    paths: Callable[..., list[Path]], tmp_path: Path, fedsa_command: Callable[..., Any]
) -> None:
    runs = paths(FEDSA, LOCAL)
    files = [tmp_path / f"table{ending}" for ending in (".html", ".md", ".tex", ".csv")]
    outcome = fedsa_command("compare", *runs, "--json", *(word for file in files for word in ("--to", file)))
    assert (outcome.code, outcome.error) == (0, "")
    data, found = json.loads(outcome.out), compare(runs)
    assert data == {**json.loads(json.dumps(as_json(found))), "files": [str(file) for file in files]}
    assert set(data) == {"metric", "measured_after", "against", "groups", "notes", "files"}
    html, markdown, latex, table = (file.read_text(encoding="utf-8") for file in files)
    assert html.startswith("<!doctype html>")
    assert markdown.startswith("| run | seeds |")
    assert latex.count(r"\\") == 3
    assert table == as_csv(found)
    lines = list(csv.DictReader(table.splitlines()))
    assert [line["name"] for line in lines] == ["fedsa", "local"]
    assert float(lines[1]["difference_mean"]) == found.beside[0].difference.mean
    shown = fedsa_command("compare", *runs)
    assert shown.code == 0
    assert "less fedsa" in shown.out
