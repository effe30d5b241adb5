"""The report of a run: what it shows, what it must never do, and what it says about damaged run folders."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fedsa.errors import RunFolderError, UserError
from fedsa.runs.report import write_report
from fedsa.store import Progress, RunFolder
from support.browser import CHROMIUM, Browser
from support.made_runs import PLAN, make_run, metrics_of, summary_of
from support.run_folders import resealed, rewrite_recipe

pytestmark = pytest.mark.run

EVIL = '<script>alert("x")</script>'
CELLS = {"td", "th", "dt", "dd"}
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """The page as a browser reads it: its tags with their attributes, its visible text, and what stays open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += " " if tag in CELLS else ""

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def read(report: Path) -> Page:
    page = Page(report.read_text(encoding="utf-8"))
    assert page.open == []
    page.text = re.sub(r"\s+", " ", page.text)
    return page


def scripts(html: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)


def svgs(html: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "my run", ["amazon-1", "nyt-1", "nyt-2"])


def test_the_report_says_what_was_run_and_what_came_out(run: Path) -> None:
    report = write_report(run)
    assert report == run / "report.html"
    text = read(report).text
    for words in (
        "fedsa with lora on all-minilm-l6-v2",
        "After 3 rounds, the model of round 2, chosen on validation, reaches 86.1 % accuracy",
        "78.0 % at the worst client, nyt-2.",
        "Better than always guessing the client’s most frequent label: 2 of 3 clients.",
        "Chosen round (round 2) 86.1 % weighted mean",
        "Final round (round 3) 84.0 %",
        "3.1 points",
        "Measured on each client’s own test split. The round was chosen on validation "
        "(weighted mean of validation accuracy), one round for all clients; nothing was chosen on test. "
        "Each client was evaluated after it received the aggregate",
        "Sent to the server: A. Trained and kept at the client: B, head.",
        "lora, rank 8",
        "Training rows 900 Validation rows 210 Test rows 300",
        "3 min 20 s",
        "900.0 MB",
        "1 time",
        "2.6.0",
    ):
        assert words in text
    assert not [path.name for path in run.iterdir() if path.suffix == ".tmp"]


def test_bytes_are_compared_with_sending_everything_that_is_trained(run: Path) -> None:
    # 3,500 parameters × 4 bytes = 14 kB an upload; 3 clients × 3 rounds = 9 uploads = 126 kB; 4,000 / 14,000 = 29 %.
    text = read(write_report(run)).text
    assert "upload of everything that is trained 14.0 kB 42.0 kB 126.0 kB" in text
    assert "exactly 4,000 bytes, 29 % of sending all of them" in text
    assert "(computed)" in text


def test_the_same_run_folder_gives_the_same_bytes(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_nothing_is_fetched_and_no_script_is_run_but_the_one_that_sorts(run: Path) -> None:
    report = write_report(run)
    page = read(report)
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed"}
    (script,) = scripts(report.read_text(encoding="utf-8"))
    (policy,) = [
        attributes["content"] for _, attributes in page.tags if "Policy" in (attributes.get("http-equiv") or "")
    ]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "sortable" in script
    assert "fetch" not in script
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("src", "xmlns") for name in attributes), tag
        assert (attributes.get("href") or "#").startswith("#")
    html = report.read_text(encoding="utf-8")
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}


def test_no_path_of_the_machine_is_shown(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    assert str(run.parent) not in html
    assert "secret-ward" not in html
    assert "…/patients.csv" in html


def test_commands_to_go_on_are_quoted_for_the_shell(run: Path) -> None:
    text = read(write_report(run)).text
    assert "fedsa export 'my run' --all --to adapters" in text
    assert "fedsa analyze 'my run'" in text
    assert "fedsa run 'my run/recipe.toml'" in text


@pytest.mark.parametrize("client", [EVIL, "$\\broken$", "a & b", "x" * 300, "病院-1", "two\nlines", "_hidden", ""])
def test_any_client_name_is_only_text(tmp_path: Path, client: str) -> None:
    report = write_report(make_run(tmp_path / "run", ["amazon-1", client]))
    page = read(report)
    assert len(scripts(report.read_text(encoding="utf-8"))) == 1  # ours
    assert re.sub(r"\s+", " ", client) in page.text
    for svg in svgs(report.read_text(encoding="utf-8")):
        ElementTree.fromstring(svg)  # noqa: S314  our own text


def test_a_hostile_name_is_escaped_inside_the_figures_too(tmp_path: Path) -> None:
    drawn = svgs(write_report(make_run(tmp_path / "run", ["amazon-1", EVIL])).read_text(encoding="utf-8"))
    assert len(drawn) == 4
    for svg in drawn[:2]:
        assert "&lt;script&gt;alert" in svg
        assert "<script" not in svg


def test_ids_are_used_once_and_references_point_at_them(run: Path) -> None:
    page = read(write_report(run))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for value in attributes.values():
            for target in re.findall(r"url\(#([^)]+)\)|^#([\w-]+)$", value or ""):
                assert "".join(target) in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids


def test_every_colour_of_a_figure_is_named_in_the_style_sheet(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    for svg in svgs(html):
        assert not re.search(r"(fill|stroke): #", svg)
        for name in re.findall(r"var\((--\w+)\)", svg):
            assert html.count(f"{name}: #") == 2  # light and dark


def test_tables_and_figures_can_be_read_aloud(run: Path) -> None:
    tags = read(write_report(run)).tags
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in tags if tag == "th")
    told = [
        (attributes.get("aria-label") or "").replace("\u00a0", " ")
        for _, attributes in tags
        if attributes.get("role") == "img"
    ]
    assert len(told) == 4
    assert told[0].endswith("The mean is 50.1 % in round 0 and 80.1 % in round 3; in round 2 (chosen) it is 70.1 %.")
    assert told[2].endswith(
        "Sent to the server: 12.0 kB in each of 3 rounds. Received from it: 12.0 kB in each of 3 rounds."
    )
    assert told[3].endswith("3.6 s in each of 3 rounds.")


def test_few_clients_are_drawn_one_by_one_and_many_as_bands(tmp_path: Path) -> None:
    few = [f"few-{number}" for number in range(12)]
    many = [f"many-{number}" for number in range(200)]
    html = write_report(make_run(tmp_path / "few", few)).read_text(encoding="utf-8")
    assert all(client in svg for client in few for svg in svgs(html)[:2])
    html = write_report(make_run(tmp_path / "many", many)).read_text(encoding="utf-8")
    assert not any("many-" in svg for svg in svgs(html))
    assert "Bands: half of the clients" in html
    assert all(f">{client}<" in html for client in many)


def test_only_what_every_run_has_is_needed(tmp_path: Path) -> None:
    summary = {
        "algorithm": "local",
        "rounds": 0,
        "test": {},
        "test_final": {},
        "per_client": {"a": {}, "b": {"test": {"accuracy": float("nan")}}},
    }
    run = make_run(tmp_path / "run", ["a"], summary, metrics=[], recipe="")
    page = read(write_report(run))
    assert "local with an adapter on –" in page.text
    assert "nan" not in page.text.lower()
    assert "None" not in page.text


def test_clients_that_were_not_sampled_or_not_evaluated_leave_gaps(tmp_path: Path) -> None:
    metrics = metrics_of(["a", "b"])
    del metrics[2]["validation"]
    metrics[3]["train"] = None
    metrics[5]["train"]["loss"] = float("nan")
    text = read(write_report(make_run(tmp_path / "run", ["a", "b"], metrics=metrics))).text
    assert "× 4 bytes × 5 uploads" in text


def test_a_metric_that_is_no_fraction_is_a_plain_number(tmp_path: Path) -> None:
    clients = ["a", "b"]
    summary = summary_of(clients, metric="perplexity")
    summary["test"]["weighted_mean"] = 12.3456
    text = read(write_report(make_run(tmp_path / "run", clients, summary, metrics_of(clients, "perplexity")))).text
    assert "reaches 12.35 perplexity on" in text
    assert "perplexity on validation" in text


def test_results_after_local_training_are_shown_beside_the_others(tmp_path: Path) -> None:
    summary = summary_of(["a", "b"])
    summary["test_after_training"] = {**summary["test"], "weighted_mean": 0.9123}
    text = read(write_report(make_run(tmp_path / "run", ["a", "b"], summary))).text
    assert "Chosen, after local training (round 2) 91.2 %" in text
    assert "except in the columns that say “after local training”" in text
    summary["evaluated_after"] = "training"
    assert "right after its local training" in read(write_report(make_run(tmp_path / "2", ["a", "b"], summary))).text


def test_rare_labels_are_counted_together(tmp_path: Path) -> None:
    summary = summary_of(["a"])
    summary["per_client"]["a"]["labels"] = {f"label-{number}": 10 + number for number in range(20)}
    text = read(write_report(make_run(tmp_path / "run", ["a"], summary))).text
    # labels 13 to 19 have their own colour; 0 to 12 are Σ(10 + n) = 130 + 78 rows together
    assert "label-19 29, other labels 208" in text
    assert "label-12" not in text


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("recipe.toml", "is not a run folder"),
        ("environment.json", "environment.json is missing: put it back"),
        ("metrics.jsonl", "metrics.jsonl is missing: put it back"),
        ("summary.json", r"summary.json is missing: `fedsa resume '.*my run'` measures"),
    ],
)
def test_a_missing_file_is_named_with_what_to_do(run: Path, name: str, mend: str) -> None:
    (run / name).unlink()
    with pytest.raises(RunFolderError, match=mend):
        write_report(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("environment.json", "[1]", r"environment\.json has not the form .*valid dictionary"),
        ("metrics.jsonl", '{"round": 0, "client": "a"}\n{"rou', r"metrics\.jsonl, line 2 has not the form"),
        ("metrics.jsonl", '{"round": 0}\n', r"metrics\.jsonl, line 1 has not the form .*client: Field required"),
        ("metrics.jsonl", '{"round": 0, "client": "a", "train": 3}\n', r"line 1 has not the form .*train"),
        ("summary.json", '{"algorithm": "fedsa"}', r"summary\.json has not the form .*rounds: Field required"),
        ("summary.json", "[" * 100_000, r"summary\.json is damaged \(it is nested too deeply\)"),
    ],
)
@pytest.mark.parametrize("sealed", [False, True])
def test_a_damaged_file_is_named_with_what_to_do(
    run: Path, name: str, content: str, message: str, *, sealed: bool
) -> None:
    """With its hash made right, or not."""
    if sealed:

        def change(folder: RunFolder, progress: Progress) -> None:
            folder.write_text(name, content)
            if name == "metrics.jsonl":
                progress.metrics_bytes = len(content)
                folder.roll_back(progress)

        resealed(run, change)
    else:
        (run / name).write_text(content + " ")
        message = rf"{name} (is damaged|was changed after it was written)"
    with pytest.raises(RunFolderError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_report_that_cannot_be_written_leaves_nothing_behind(run: Path) -> None:
    (run / "report.html").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report\.html: "):
        write_report(run)
    assert not list(run.glob(".report*"))


def test_clients_outside_the_federation_and_a_global_model_stand_beside_the_clients(tmp_path: Path) -> None:
    figures = {"weighted_mean": 0.7, "mean": 0.69, "std": 0.01, "worst": 0.65, "worst_client": EVIL}
    entry = {"train_examples": 31, "test_examples": 12, "majority": 0.55}
    unseen = {
        "clients": 1,
        "round": 2,
        "start": "mean",
        "freeze_shared": True,
        "epochs": 5,
        "before": {**figures, "weighted_mean": 0.512},
        "after": figures,
        "per_client": {EVIL: {**entry, "before": {"accuracy": 0.512}, "after": {"accuracy": 0.7}}},
    }
    model = {"how": "average", "round": 2, "left_the_clients": ["B", "head"], **figures, "union": {"accuracy": 0.7011}}
    summary = {**summary_of(["a", "b"]), "unseen": unseen, "global_model": model}
    report = write_report(make_run(tmp_path / "run", ["a", "b"], summary))
    assert EVIL not in report.read_text(encoding="utf-8")
    text = read(report).text
    for words in (
        "Clients that were never in the federation",
        "In the federation, chosen round 2 86.1 % 85.0 % 78.0 % (b)",
        f"Outside, before any training of their own 1 51.2 % 69.0 % 65.0 % ({EVIL})",
        "Outside, with an adapter of their own 1 70.0 %",
        f"{EVIL} 31 12 55.0 % 51.2 % 70.0 %",
        "5 passes over its own training rows, with what is shared frozen",
        "the mean of the federation’s clients: for that it left those clients, as the recipe allows",
        "B, head left the clients for this model",
        "Weighted mean over clients 70.0 % 86.1 %",
        "All clients’ test rows together 70.1 %",
    ):
        assert words in text, words
    assert "never in the federation" not in read(write_report(make_run(tmp_path / "plain", ["a"]))).text


@pytest.mark.parametrize(
    "setting",
    ["holdout_clients=0.34", "evaluation.global_model=fit", "adaptation={start='nearest', share_personal=true}"],
)
def test_what_a_run_writes_is_what_the_report_reads(tiny_run: Callable[..., Any], tmp_path: Path, setting: str) -> None:
    run = tiny_run("holdout_clients=0.34", "adaptation.share_personal=true", setting)
    write_report(shutil.copytree(run.folder.path, tmp_path / "run"))


# -- what fits and what is said ----------------------------------------------------------------------------------------

LONG = [f"University Hospital, Department of Internal Medicine, Ward {number}" for number in range(30)]
PHONE = 390
"""Pixels of a narrow screen's width."""


def kinds_of_runs() -> dict[str, tuple[list[str], dict, list[dict]]]:
    """Return clients, summary and metrics of runs whose reports have different sections."""
    alternating = {
        **summary_of(["a", "b"]),
        "sharing_by_round": [
            {
                "rounds": [1, 3],
                "trained_parameters": 100,
                "upload_parameters": 100,
                "sharing_plan": PLAN[:1],
            },
            {"rounds": [2], "trained_parameters": 200, "upload_parameters": 200, "sharing_plan": PLAN[1:]},
        ],
    }
    for kind, sent in zip(alternating["sharing_by_round"], (400, 800), strict=True):
        kind |= {"upload_bytes": sent, "download_bytes": sent}
    likelihood = summary_of(["a", "b"], "log_likelihood")
    likelihood["test"] |= {"weighted_mean": -1.5, "mean": -1.6, "worst": -1.7}
    for entry in likelihood["per_client"].values():
        del entry["majority"]
        entry |= {"labels": {"rows": 470}, "test": {"log_likelihood": -1.5, "perplexity": 4.4817, "examples": 100}}
    everything = summary_of(LONG)
    everything |= {f"test_{name}": everything["test"] for name in ("after_training", "final_after_training")}
    for entry in everything["per_client"].values():
        entry |= {"labels": {f"label number {n}": 9 for n in range(20)}, "test": {"accuracy": 0.86, "examples": 98}}
        entry |= {"test_after_training": entry["test"], "test_final_after_training": entry["test"]}
    return {
        "30 clients with long names": (LONG, everything, metrics_of(LONG)),
        "few": (["a", "b"], summary_of(["a", "b"]), metrics_of(["a", "b"])),
        "no classes": (["a", "b"], likelihood, metrics_of(["a", "b"], "log_likelihood")),
        "alternating": (["a", "b"], alternating, metrics_of(["a", "b"])),
    }


@pytest.fixture(params=list(kinds_of_runs()))
def any_report(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return any_kind(request.param, tmp_path / "run")


def any_kind(kind: str, folder: Path) -> Path:
    """Write the report of one of the kinds of runs, with long samples in it."""
    clients, summary, metrics = kinds_of_runs()[kind]
    run = make_run(folder, clients, summary, metrics)
    long = "what " * 60 + "x" * 300
    sample = {"client": clients[0], "prompt": long, "written": EVIL, "right": [long, "b"]}
    resealed(run, lambda folder, _: folder.write_json("samples.json", [sample]))
    return write_report(run)


def test_nothing_is_wider_than_a_narrow_screen_by_its_style(any_report: Path) -> None:
    html = any_report.read_text(encoding="utf-8")
    style = html[html.index("<style>") : html.index("</style>")]
    narrow = style[: style.index("@media print")]
    pixels = {"rem": 16, "em": 16, "px": 1}
    for value, unit in re.findall(r"(?<![-\w])(?:min-)?width: *([\d.]+)(rem|em|px)", narrow):
        assert float(value) * pixels[unit] <= PHONE - 32, (value, unit)
    for svg in svgs(html):
        head = svg[: svg.index(">")]
        assert "viewBox=" in head
        assert not re.search(r"\s(width|height)=", head)  # it scales
    page = read(any_report)
    for _, attributes in page.tags:
        for value, unit in re.findall(r"width: *([\d.]+)(rem|em|px)", attributes.get("style") or ""):
            assert float(value) * pixels[unit] <= PHONE - 32


def test_every_cell_of_a_table_that_becomes_cards_names_its_column(any_report: Path) -> None:
    html = any_report.read_text(encoding="utf-8")
    tables = re.findall(r'<table class="stack.*?</table>', html, flags=re.DOTALL)
    assert len(tables) >= 3
    for table in tables:
        names = [re.sub(r"<[^>]*>", "", name) for name in re.findall(r"<th scope=\"col\".*?</th>", table)][1:]
        for row in re.findall(r"<tr.*?</tr>", table[table.index("<tbody>") :], flags=re.DOTALL):
            assert re.findall(r'<td[^>]*data-label="([^"]*)"', row) == names
            assert row.count("<td") == len(names)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to look at the report with")
def test_a_browser_finds_nothing_off_the_edge(tmp_path: Path) -> None:
    """On a telephone and on a desk, with scripts and without."""
    reports = [any_kind(kind, tmp_path / f"run {number}") for number, kind in enumerate(kinds_of_runs())]
    with Browser(tmp_path) as browser:
        for width, scripts in ((PHONE, True), (PHONE, False), (1280, True)):
            browser.look(width, scripts=scripts)
            for report in reports:
                browser.open(report.as_uri())
                scroll_width, *wide = browser.value(
                    """(() => {
                      const wide = [document.scrollingElement.scrollWidth];
                      for (const box of document.querySelectorAll(".scroll, pre, td, th, dd, blockquote, svg, select"))
                        if (box.getBoundingClientRect().right > WIDTH || box.scrollWidth > box.clientWidth + 1)
                          if (getComputedStyle(box).overflow != "hidden") wide.push(box.className || box.tagName);
                      return wide;
                    })()""".replace("WIDTH", str(width))
                )
                assert scroll_width <= width
                if width == PHONE:
                    assert wide == []
        assert browser.console == []


def test_an_accuracy_stands_with_its_interval(tmp_path: Path) -> None:
    summary = summary_of(["a", "b"])
    for entry in summary["per_client"].values():
        entry["test"] = {"accuracy": 84 / 98, "examples": 98}
    text = read(write_report(make_run(tmp_path / "run", ["a", "b"], summary))).text
    assert "95 % interval 80.7 to 90.2 %" in text  # of the weighted mean, 86.13 % of 200 rows
    assert text.count("77.4 to 91.3 %") == 2
    f1 = write_report(make_run(tmp_path / "f1", ["a"], summary_of(["a"], "f1"), metrics_of(["a"], "f1")))
    assert "interval" not in read(f1).text.lower()


def test_nothing_is_said_twice_where_the_chosen_round_is_the_last(tmp_path: Path) -> None:
    summary = summary_of(["a", "b"])
    summary |= {"chosen_round": 3, "test": {**summary["test_final"]}}
    text = read(write_report(make_run(tmp_path / "run", ["a", "b"], summary))).text
    assert "Chosen and final round (round 3) 84.0 %" in text
    for words in ("Final round", "Chosen round", "(round 2)"):
        assert words not in text
    result = text[text.index("Result:") : text.index("Over the rounds")]
    assert result.count("84.0 %") == 1


def test_a_task_without_classes_has_no_label_mix_but_perplexity(tmp_path: Path) -> None:
    clients, summary, metrics = kinds_of_runs()["no classes"]
    text = read(write_report(make_run(tmp_path / "run", clients, summary, metrics))).text
    for words in ("Label mix", "Rows and labels", "Always guessing", "interval"):
        assert words not in text
    assert "-1.5 weighted mean over clients; perplexity 4.482" in text
    assert text.count("4.482") == 3


def test_written_texts_are_shown_as_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["a", "b"])
    assert "What it wrote" not in read(write_report(run)).text
    samples = [
        {"client": EVIL, "prompt": "2 + 2?\n<b>", "written": EVIL, "right": ["4", "four"]},
        {"client": "b", "prompt": "1 + 1?", "written": "", "right": ["2"]},
    ]
    resealed(run, lambda folder, _: folder.write_json("samples.json", samples))
    page = read(write_report(run))
    assert not [tag for tag, _ in page.tags if tag == "b"]
    assert len(scripts(write_report(run).read_text(encoding="utf-8"))) == 1  # ours
    assert f"Prompt, as the model got it 2 + 2? <b> Written {EVIL} Right answers 4 four" in page.text
    assert "Written (nothing) Right answer 2" in page.text
    rewrite_recipe(run, "[data]", '[task]\nkind = "language_modeling"\n[data]')
    text = read(write_report(run)).text
    assert f"The beginning of the text 2 + 2? <b> Written {EVIL} What stands there 4 four" in text
    for damage in ("{", '[{"client": "a"}]', "[3]", '{"a": 1}'):
        (run / "samples.json").write_text(damage)
        with pytest.raises(RunFolderError, match=r"samples\.json was changed .* `fedsa resume .*` measures"):
            write_report(run)
    for number, damage in enumerate(("{", '[{"client": "a"}]', "[3]", '{"a": 1}')):
        other = make_run(tmp_path / f"run-{number}", ["a", "b"])
        resealed(other, lambda folder, _, damage=damage: folder.write_text("samples.json", damage))
        with pytest.raises(RunFolderError, match=r"samples\.json (is damaged|has not the form)"):
            write_report(other)


def test_rounds_that_share_other_things_are_told_apart(tmp_path: Path) -> None:
    clients, summary, metrics = kinds_of_runs()["alternating"]
    text = read(write_report(make_run(tmp_path / "run", clients, summary, metrics))).text
    for words in (
        "What is trained and sent differs from round to round.",
        "2 rounds (1, 3):",
        "1 round (2):",
        "parameters in each of the rounds 1, 3: exactly 400 bytes, 100 %",
        "parameters in each of the rounds 2: exactly 800 bytes, 100 %",
    ):
        assert words in text, words
    assert "For comparison" not in text
