"""The command line as a person and a script meet it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsa.api
from fedsa.__main__ import main as entry_point
from fedsa.commands.shared import display
from fedsa.system.process import MALLOC_TUNABLES

pytestmark = pytest.mark.run

FEDSA = str(Path(sys.executable).with_name("fedsa"))

SUMMARY_KEYS = {
    "algorithm": str,
    "variant": str,
    "rounds": int,
    "clients": int,
    "seed": int,
    "chosen_round": int,
    "test": dict,
    "test_final": dict,
    "trained_parameters": int,
    "upload_parameters": int,
    "upload_bytes": int,
    "train_seconds": float,
    "peak_rss_bytes": int,
}


def test_help_and_version_answer_without_torch() -> None:
    code = (
        "import sys\nfrom fedsa.cli import main\nsys.argv = ['fedsa', sys.argv[1]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for option, text in (("--help", "Usage: fedsa"), ("--version", "fedsa 0.")):
        out = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=True).stdout
        assert text in out
    done = subprocess.run([FEDSA, "--help"], capture_output=True, text=True, check=True)
    assert "Usage: fedsa" in done.stdout


@pytest.mark.run
def test_a_party_and_its_owners_commands_load_no_models_libraries() -> None:
    """The server has no model; a site's command only starts the worker that has one."""
    modules = ("fedsa.deploy.project", "fedsa.deploy.waiting", "fedsa.deploy.status", "fedsa.deploy.submitted_jobs")
    code = (
        f"import sys, {', '.join(modules)}\n"
        "heavy = {'transformers', 'peft', 'datasets'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the tunables")


@needs_glibc
def test_the_command_starts_anew_with_its_allocators_settings() -> None:
    code = (
        "import os, sys\nfrom fedsa.system.process import restart_with_tunables\nprint(os.getpid(), flush=True)\n"
        "if sys.argv[1] == 'strip':\n    os.environ.pop('GLIBC_TUNABLES', None)\n"
        "restart_with_tunables()\nprint(os.environ.get('GLIBC_TUNABLES'), *sys.argv[1:], sep='|')\n"
    )
    bare = {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "FEDSA_RESTARTED")}

    def lines(environment: dict[str, str], *words: str) -> list[str]:
        command = [sys.executable, "-W", "error", "-c", code, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()

    before, after, said = lines(bare, "a b", "--set")
    assert before == after
    assert said == f"{MALLOC_TUNABLES}|a b|--set"
    assert lines({**bare, "GLIBC_TUNABLES": ""}, "a b")[1:] == ["|a b"]
    assert lines(bare, "strip")[2:] == ["None|strip"]  # once, though the setting did not stay


@needs_glibc
@pytest.mark.parametrize("fails", [False, True])
def test_the_entry_point_starts_anew_or_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    asked: list[Any] = []

    def start(*what: Any) -> None:
        asked.append(what)
        if fails:
            raise FileNotFoundError
        raise SystemExit(77)

    for name in ("GLIBC_TUNABLES", "FEDSA_RESTARTED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "execve", start)
    monkeypatch.setattr(signal, "signal", lambda *what: None)
    monkeypatch.setattr(sys, "argv", ["fedsa", "--version"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "fedsa", "--version"])
    with pytest.raises(SystemExit) as end:
        entry_point()
    assert end.value.code == (0 if fails else 77)
    assert capsys.readouterr().out.startswith("fedsa 0." if fails else "")
    ((program, words, environment),) = asked
    assert (program, words) == (sys.executable, [sys.executable, "-X", "dev", "fedsa", "--version"])
    assert environment["GLIBC_TUNABLES"] == MALLOC_TUNABLES


def test_help_of_every_verb(fedsa_command: Callable[..., Any]) -> None:
    verbs = re.findall(r"^  (\w+)  ", fedsa_command("--help").out.partition("Commands:")[2], re.MULTILINE)
    assert set(verbs) >= {"run", "resume", "export", "data", "plan", "recipes", "algorithms"}
    for verb in verbs:
        assert f"Usage: fedsa {verb}" in fedsa_command(verb, "-h").out


def test_recipes(fedsa_command: Callable[..., Any], tmp_path: Path) -> None:
    assert "quickstart" in fedsa_command("recipes").out
    entries = json.loads(fedsa_command("recipes", "--json").out)
    assert "quickstart" in [entry["name"] for entry in entries]
    assert all(entry["description"] for entry in entries)
    text = fedsa_command("recipes", "quickstart").out
    assert 'algorithm = "fedsa"' in text
    assert re.search(r"^rounds = \d+$", text, re.MULTILINE)
    assert re.search(r"^seed = \d+$", text, re.MULTILINE)


def test_data_shows_draws_and_saves_a_partition(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = recipe_file("data.partition={kind='dirichlet', clients=4, dirichlet_alpha=1.0}")
    saved, plots = tmp_path / "mine.json", [tmp_path / f"mix.{ending}" for ending in ("png", "svg", "pdf")]
    counts = json.loads(fedsa_command("data", recipe, "--json", "--save", saved).out)
    assert sum(count for splits in counts.values() for labels in splits.values() for count in labels.values()) == 180
    for plot, start in zip(plots, (b"\x89PNG", b"<?xml", b"%PDF"), strict=True):
        out = fedsa_command("data", recipe, "--plot", plot).out
        assert plot.read_bytes().startswith(start)
        assert str(plot) in out
    assert all(client in out for client in counts)
    assert "4 clients, 180 rows, 2 classes" in out
    again = recipe_file(f"data.partition={{kind='saved', file='{saved}'}}", name="again")
    assert json.loads(fedsa_command("data", again, "--json").out) == counts


def test_run_prints_json_and_nothing_else(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    outcome = fedsa_command("run", recipe_file(), "--json", "--out", out, "--set", "rounds=1", "--set", "seed=7")
    assert outcome.code == 0
    summary = json.loads(outcome.out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert (summary["rounds"], summary["seed"]) == (1, 7)
    assert "before training" in outcome.err


def test_figures_of_what_is_exported_are_shown_where_rounds_are_chosen_by_others(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], finished_run: Path, tmp_path: Path
) -> None:
    recipe = recipe_file("rounds=1", "evaluation.evaluate_after=training")
    out = fedsa_command("run", recipe, "--out", tmp_path / "run").out
    assert "after its local training" in out
    assert re.search(r"as exported, (final round|round) 1: weighted mean", out)
    assert "after the aggregate" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "as exported" not in fedsa_command("resume", finished_run).out


def test_a_run_leaves_all_that_the_documentation_promises(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    for key, kind in SUMMARY_KEYS.items():
        assert isinstance(summary[key], kind), key
    for which in ("test", "test_final"):
        assert summary[which].keys() >= {"weighted_mean", "mean", "std", "worst"}
    assert summary["upload_bytes"] == 4 * summary["upload_parameters"]
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert {(line["round"], line["client"]) for line in lines} == {
        (round, f"site {site}") for round in range(3) for site in range(3)
    }
    environment = json.loads((finished_run / "environment.json").read_text())
    assert environment.keys() >= {"python", "torch", "transformers", "peft", "fedsa"}
    html = (finished_run / "report.html").read_text(encoding="utf-8")
    assert "site 1" in html
    assert not re.search(r"""(src|href)=["']?https?://|@import|url\(["']?https?:""", html)


def test_what_has_left_the_clients_of_a_simulation_is_listed(
    fedsa_command: Callable[..., Any], finished_run: Path
) -> None:
    entries = json.loads(fedsa_command("sent", finished_run, "--json").out)
    assert [(entry["round"], entry["site"]) for entry in entries] == [
        (round, f"site {site}") for round in (1, 2) for site in range(3)
    ]
    assert entries[0].keys() >= {"round", "site", "bytes", "tensors"}
    assert entries[0]["tensors"][0].keys() >= {"name", "shape", "dtype", "bytes", "norm"}
    shown = fedsa_command("sent", finished_run).out
    assert "4 of A" in shown
    assert f"{entries[0]['bytes']:,}" in shown


def test_runs_without_out_are_numbered(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_file("rounds=1")
    for _ in range(2):
        assert fedsa_command("run", recipe).code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny", "tiny-2"]
    assert fedsa_command("run", recipe, "--set", "data.split=no").code == 2
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny", "tiny-2"]


def test_a_finished_run_says_so_and_writes_its_report_anew(
    fedsa_command: Callable[..., Any], finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (run / "report.html").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr(fedsa.api, "simulate", None)  # nothing is computed
    outcome = fedsa_command("resume", run)
    assert outcome.code == 0
    assert f"{run} is complete (2 rounds)" in outcome.out
    assert "loading" not in outcome.err
    assert (run / "report.html").exists()
    assert {path: path.read_bytes() for path in before} == before
    assert json.loads(fedsa_command("resume", run, "--json").out) == json.loads((run / "summary.json").read_text())


class _Interrupting:
    """The live display of a person who presses Ctrl-C when round 1 has ended, or at the very start."""

    at = "on_round_end"

    def __init__(self, console: Any) -> None: ...

    def close(self) -> None: ...

    def __getattr__(self, event: str) -> Callable[..., None]:
        def tell(*what: Any) -> None:
            if event == self.at and (event != "on_round_end" or what[0] == 1):
                raise KeyboardInterrupt

        return tell


@pytest.mark.parametrize(
    ("at", "text"),
    [
        ("on_run_begin", "nothing was trained yet"),
        ("on_client_trained", "finished rounds are saved (0)"),
        ("on_round_end", "finished rounds are saved (1)"),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    fedsa_command: Callable[..., Any],
    recipe_file: Callable[..., Path],
    finished_run: Path,
    tmp_path: Path,
    at: str,
    text: str,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Interrupting, "at", at)
        patch.setattr(display, "ProgressDisplay", _Interrupting)
        outcome = fedsa_command("run", recipe_file(), "--out", tmp_path / "run")
    assert outcome.code == 130
    assert text in outcome.out
    assert f"go on with: fedsa resume {tmp_path / 'run'}" in outcome.out
    assert "Traceback" not in outcome.err
    assert fedsa_command("resume", tmp_path / "run").code == 0
    for path in (finished_run / "clients").rglob("*.safetensors"):
        assert (tmp_path / "run" / path.relative_to(finished_run)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"COLUMNS": "40"}, {"TERM": "dumb"}], ids=str)
def test_a_narrow_or_plain_terminal(
    fedsa_command: Callable[..., Any],
    recipe_file: Callable[..., Path],
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for arguments in (
        ["resume", finished_run],
        ["data", recipe_file()],
        ["plan", recipe_file()],
        ["algorithms"],
        ["recipes"],
    ):
        outcome = fedsa_command(*arguments)
        assert outcome.code == 0
        assert "\x1b" not in outcome.out
    out = fedsa_command("resume", finished_run).out
    assert len(re.findall(r"^site \d +39 ", out, re.MULTILINE)) == 3  # every client keeps its line


def test_names_are_shown_as_they_are(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tiny_rows: Path, tmp_path: Path
) -> None:
    names = ["[red]", "\\[bold]:smile:", "Zürich/[/] ü"]
    text = tiny_rows.read_text(encoding="utf-8")
    for number, name in enumerate(names):
        text = text.replace(f"site {number}", name)
    rows = tmp_path / "rows.csv"
    rows.write_text(text, encoding="utf-8")
    recipe = recipe_file(f"data.path={rows}", "rounds=1")
    outcome = fedsa_command("run", recipe, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome
    shown = fedsa_command("data", recipe).out
    for name in names:
        assert name in outcome.out
        assert name in shown
        assert fedsa_command("export", tmp_path / "run", "--client", name, "--to", tmp_path / str(hash(name))).code == 0
    assert {path.parent.parent for path in (tmp_path / "run").rglob("clients/*/*")} == {tmp_path / "run" / "clients"}


def test_output_to_a_reader_that_has_gone() -> None:
    process = subprocess.Popen([FEDSA, "algorithms"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_what_is_sent_is_told_for_each_kind_of_round(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe, run = recipe_file("algorithm=rolora", "rounds=3", "share_head=false"), tmp_path / "run"
    out = fedsa_command("run", recipe, "--out", run).out
    assert "Sent by each client in 2 rounds (1, 3): B (" in out
    assert "Sent by each client in 1 round (2): A (" in out
    assert "and round" not in out
    kinds = json.loads((run / "summary.json").read_text())["sharing_by_round"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for kind in kinds:
        sent = {line["upload_bytes"] for line in lines if line["round"] in kind["rounds"]}
        assert sent == {kind["upload_bytes"]}
    planned = fedsa_command("plan", recipe).out
    assert "2 rounds (1, 3):" in planned
    assert "1 round (2):" in planned
    assert json.loads(fedsa_command("plan", recipe, "--json").out)["sharing_by_round"] == kinds


@pytest.mark.parametrize(("columns", "fits"), [("120", True), ("50", False)])
def test_an_accuracy_has_its_interval_where_it_fits(
    fedsa_command: Callable[..., Any],
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
    fits: bool,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out = fedsa_command("resume", finished_run).out
    assert (", 95 %" in out.partition("\n\nTest")[0]) == fits
    assert re.search(r"round \d: weighted mean [\d.]+ \(95 % interval [\d.]+ to [\d.]+, 36 rows\)", out)


def test_nothing_is_told_twice_where_the_chosen_round_is_the_last(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    out = fedsa_command("run", recipe_file("rounds=1"), "--out", tmp_path / "run").out
    chosen = json.loads((tmp_path / "run" / "summary.json").read_text())["chosen_round"]
    assert "1 rounds" not in out
    assert "3 clients, 1 round, " in out
    assert out.count("weighted mean ") == 1 + (chosen != 1) + 1  # one line each, and by what the round was chosen
    assert ("chosen and final round 1: " in out) == (chosen == 1)
