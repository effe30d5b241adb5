"""What a report tells of another run beside it, and of an analysis: only where there is one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsa.errors import RunFolderError, UserError
from fedsa.runs.report import write_report
from support.made_runs import make_run

pytestmark = pytest.mark.run


@pytest.fixture
def pair(tiny_run: Callable[..., Any], tmp_path: Path) -> tuple[Path, Path]:
    """A run, and one of the same recipe in which every client trained alone."""
    run = shutil.copytree(tiny_run().folder.path, tmp_path / "together")
    return run, shutil.copytree(tiny_run("algorithm=local").folder.path, tmp_path / "alone")


def words_of(report: Path) -> str:
    html = report.read_text(encoding="utf-8")
    main = re.sub(r"<style.*?</style>", "", html[html.index("<main>") : html.index("</main>")], flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", main))


def test_each_clients_change_against_local_training_is_in_its_row(pair: tuple[Path, Path]) -> None:
    run, other = pair
    html = write_report(run, against=other).read_text(encoding="utf-8")
    own, local = (json.loads((each / "summary.json").read_text())["per_client"] for each in pair)
    table = html[html.index('<table class="stack clients sortable">') :]
    rows = dict(re.findall(r'<tr[^>]*><th scope="row">([^<]+?) ?<(.*?)</tr>', table, re.DOTALL))
    assert {*own} <= {*rows}
    for client, row in ((client, rows[client]) for client in own):
        before, now = local[client]["test"]["accuracy"], own[client]["test"]["accuracy"]
        assert f'<td data-sort="{before!r}" data-label="Local training">{100 * before:.1f}' in row
        (change,) = re.findall(r'data-sort="([^"]*)" data-label="Change"', row)
        assert float(change) == pytest.approx(now - before, abs=1e-12)
    words = words_of(run / "report.html")
    assert "Against local training" in words
    assert "Against local training (run alone): " in words
    assert str(other.parent) not in html


def test_without_another_run_there_is_no_change(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert "Change" not in words_of(write_report(pair[0]))
    elsewhere = tmp_path / "elsewhere.html"
    assert write_report(pair[0], against=pair[1], to=elsewhere) == elsewhere
    assert "Change" in words_of(elsewhere)
    assert "Change" not in words_of(pair[0] / "report.html")


def test_a_run_that_is_no_other_is_refused(pair: tuple[Path, Path], tiny_run: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="is given twice"):
        write_report(pair[0], against=pair[0])
    with pytest.raises(UserError, match=r"has the recipe of .* with another seed, .* fedsa compare"):
        write_report(pair[0], against=tiny_run("seed=1").folder.path)
    with pytest.raises(RunFolderError, match="does not exist"):
        write_report(pair[0], against=pair[0].with_name("nowhere"))


MEANS = [
    {"round": 1, "measure": "moved", "factor": "A", "mean": 0.1, "std": 0.0, "lowest": 0.0, "highest": 0.2},
    *(
        {"round": 3, "measure": measure, "factor": factor, "mean": mean, "std": 0.1, "lowest": -0.25, "highest": 0.99}
        for measure, factor, mean in (
            ("raw", "A", 0.77),
            ("within", "A", 0.3),
            ("moved", "B", 0.21),
            ("moved", "A", 0.83),
        )
    ),
]


def test_what_an_analysis_found_is_shown_at_its_last_round(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["a", "b"])
    assert "What A and B have in common" not in words_of(write_report(run))
    assert "fedsa analyze run" in words_of(run / "report.html")
    (run / "analysis").mkdir()
    (run / "analysis" / "means.json").write_text(json.dumps(MEANS))
    words = words_of(write_report(run))
    assert "A’s of different clients are more alike than their B’s" in words
    assert "0.83 for A and 0.21 for B (movement since the start of the run)" in words
    assert "A Movement since the start of the run 0.83 -0.25 0.99" in words
    assert "A Movement within the round 0.30" in words
    assert "after round 3" in words
    assert "0.77" not in words  # raw: what is averaged is alike, whatever was learned
    assert "fedsa analyze run" not in words


def test_a_damaged_analysis_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["a", "b"])
    (run / "analysis").mkdir()
    (run / "analysis" / "means.json").write_text('[{"round": "x"}]')
    with pytest.raises(RunFolderError, match=r"means\.json is not what `fedsa analyze` wrote: run `fedsa analyze"):
        write_report(run)
