"""Sweeps: mistakes are told together, rates are chosen and extended, finished runs are read, differences are paired."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from filelock import FileLock

from fedsa.errors import ConfigError, UserError
from fedsa.statistics import paired_difference
from fedsa.sweep.files import SweepFile, read_sweep, sweep_names
from fedsa.sweep.grid import Cell, Grid, Group, make_grid
from fedsa.sweep.running import Result, missing_runs, next_cells, run_sweep
from fedsa.sweep.tables import tables_of
from fedsa.texts.tables import Table, as_latex
from support.moments import Moment
from support.tiny_decoder import write_decoder, write_sums

pytestmark = pytest.mark.run

GROUP = Group("", "", "fedsa")


def test_all_mistakes_are_told_together(
    tmp_path: Path, recipe_file: Callable[..., Path], fedsa_command: Callable[..., Any]
) -> None:
    sweep = tmp_path / "wrong.toml"
    sweep.write_text(
        f'recipe = "{recipe_file().as_posix()}"\n'
        'methods = ["fedsa", "fedsa", "fedit"]\nreference = "fedsaa"\nrates = [1e-2]\nset = ["seed=3", "round=2"]\n',
        encoding="utf-8",
    )
    outcome = fedsa_command("sweep", sweep, "--out", tmp_path / "out")
    assert outcome.code == 2
    for told in (
        "'fedsa' is there twice",
        "no method 'fedsaa'",
        "seed=3: remove it, because `rates` and `seeds` set this",
        "round",
    ):
        assert told in outcome.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sweep_names())
def test_every_setting_of_a_sweep_that_ships_goes_with_one_of_its_methods(name: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("FEDSA_DATA", "somewhere")
    file, source = read_sweep(name)
    grid = make_grid(file, source)
    groups = {(group.setting, group.variant) for group in grid.groups}
    assert groups == {(group.setting, group.variant) for group in [*grid.groups, *grid.refused]}, grid.refused


@pytest.mark.parametrize(
    ("best", "tried", "chosen"),
    [
        (0.02, [0.01, 0.02, 0.04], 0.02),  # inside: no more
        (0.08, [0.01, 0.02, 0.04, 0.08, 0.16], 0.08),  # up, until one is worse
        (0.005, [0.0025, 0.005, 0.01, 0.02, 0.04], 0.005),  # down
        (1e9, [0.01, 0.02, 0.04, 0.08, 0.16], 0.16),  # twice at most, as the file says
    ],
)
def test_rates_are_extended_while_the_best_is_at_the_edge(best: float, tried: list[float], chosen: float) -> None:
    file = SweepFile(recipe="r", methods=["fedsa"], rates=[0.04, 0.01, 0.02], seeds=[5, 6], max_extensions=2)
    grid = Grid(file, {GROUP: ("r", ())}, {})
    results: dict[Cell, Result] = {}
    while cells := next_cells(GROUP, grid, results)[0]:
        for cell in cells:
            results[cell] = Result(Path(), {"chosen_score": -abs(np.log2(cell.rate / best))})
    assert next_cells(GROUP, grid, results) == ([], chosen)
    assert sorted(cell.rate for cell in results if cell.seed == 5) == tried
    assert [cell.rate for cell in results if cell.seed == 6] == [chosen]


def test_a_setting_may_have_seeds_and_rates_of_its_own(tmp_path: Path) -> None:
    text = 'recipe="r"\nmethods=["fedsa"]\nrates=[0.01]\nseeds=[0, 1, 2]\n'
    text += '[[settings]]\nlabel="a"\n[[settings]]\nlabel="b"\n'
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(text + "seeds=[5, 6]\nrates=[0.2, 0.1]\n", encoding="utf-8")
    groups = {name: Group(name, "", "fedsa") for name in "ab"}
    grid = Grid(read_sweep(str(sweep))[0], dict.fromkeys(groups.values(), ("r", ())), {})
    asked = {name: [cell.seed for cell in next_cells(group, grid, {})[0]] for name, group in groups.items()}
    assert asked == {"a": [0, 1, 2], "b": [5, 5]}, "rates are tried on the first seed"
    assert {name: grid.rates(group) for name, group in groups.items()} == {"a": [0.01], "b": [0.1, 0.2]}
    assert grid.tuning_seeds(groups["b"]) == [5]
    given = read_sweep(str(sweep), seeds=[7], rates=[0.3])[0]
    assert [entry.seeds for entry in given.settings] == [[], []], "seeds on the command line are of all"
    assert [entry.rates for entry in given.settings] == [[], []]
    sweep.write_text(text + "seeds=[5, 5]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="seeds must differ"):
        read_sweep(str(sweep))
    sweep.write_text(text + "rates=[0.1, 0.1]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="rates must differ"):
        read_sweep(str(sweep))


def test_settings_may_be_picked_by_their_labels() -> None:
    file = SweepFile(
        recipe="quickstart",
        methods=["fedsa", "local"],
        rates=[0.01],
        settings=[{"label": "two", "set": ["rounds=2"]}, {"label": "three", "set": ["rounds=3"]}],
    )
    grid = make_grid(file, "sweep s", methods=["local"], settings=["three"])
    assert list(grid.groups) == [Group("three", "", "local")]
    assert "three" in grid.folder(Cell(Group("three", "", "local"), 0.01, 0), Path()).name, "as in the whole sweep"
    with pytest.raises(UserError, match="sweep s has no setting 'tree'; did you mean 'three'"):
        make_grid(file, "sweep s", settings=["tree"])
    with pytest.raises(UserError, match="it has no settings"):
        make_grid(SweepFile(recipe="quickstart", methods=["fedsa"], rates=[0.01]), "sweep s", settings=["three"])


def test_a_setting_with_which_no_method_goes_has_a_table_that_says_so() -> None:
    grid = Grid(SweepFile(recipe="r", methods=["fedsa"], rates=[0.01]), {}, {GROUP: "it has no sides"})
    (table,) = tables_of(grid, {}, "fedsa sweep")
    assert table.rows == []
    assert table.notes == ["Not run: fedsa: it has no sides.", "Made by: fedsa sweep"]


def test_paired_difference_is_the_mean_over_seeds_of_the_mean_over_clients() -> None:
    rng = np.random.default_rng(3)
    method = {seed: {f"c{i}": float(rng.uniform()) for i in range(4 + seed)} for seed in range(3)}
    reference = {seed: {client: float(rng.uniform()) for client in own} for seed, own in method.items()}
    found = paired_difference(method, reference)
    assert found is not None
    by_seed = [np.mean([own[client] - reference[seed][client] for client in own]) for seed, own in method.items()]
    assert found.mean == pytest.approx(np.mean(by_seed), abs=1e-12)
    assert found.low < found.mean < found.high
    assert (found.seeds, found.pairs) == (3, 4 + 5 + 6)
    # a slow bootstrap of the same kind comes to the same interval, up to its own noise
    means = []
    for _ in range(2000):
        drawn = []
        for seed in rng.integers(0, 3, 3):
            values = [method[seed][client] - reference[seed][client] for client in method[seed]]
            drawn.append(np.mean(rng.choice(values, len(values))))
        means.append(np.mean(drawn))
    assert [found.low, found.high] == pytest.approx(list(np.percentile(means, [2.5, 97.5])), abs=0.04)


def test_runs_alike_differ_by_nothing_and_shifted_ones_clearly() -> None:
    runs = {0: {"a": 0.5, "b": 0.75}, 1: {"a": 0.25, "b": 1.0}}
    same = paired_difference(runs, runs)
    assert same is not None
    assert (same.mean, same.low, same.high, same.is_clear) == (0, 0, 0, False)
    less = {seed: {client: value - 0.125 for client, value in own.items()} for seed, own in runs.items()}
    shifted = paired_difference(runs, less)
    assert shifted is not None
    assert (shifted.mean, shifted.low, shifted.high, shifted.is_clear) == (0.125, 0.125, 0.125, True)
    assert paired_difference(runs, {7: runs[0]}) is None


def test_latex_is_escaped() -> None:
    text = as_latex([Table("", ["method", "test"], [["a_b & 50% \\x #1", "80.0 ± 1.0"]], [])])
    assert r"a\_b \& 50\% \textbackslash{}x \#1 & 80.0 $\pm$ 1.0 \\" in text


@pytest.mark.slow
def test_a_sweep_of_a_task_without_classes(tmp_path: Path, fedsa_command: Callable[..., Any]) -> None:
    model, rows = write_decoder(tmp_path / "model"), write_sums(tmp_path / "rows.jsonl")
    recipe = {
        "rounds": 1,
        "model": {"path": str(model)},
        "adapter": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
        "task": {"kind": "generation", "prompt": "{question}", "answer": "{answer}"},
        "data": {"path": str(rows), "partition": {"kind": "column", "column": "site"}},
        "training": {"local_steps": 1, "batch_size": 4},
        "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
    }
    (tmp_path / "sums.toml").write_text(tomli_w.dumps(recipe), encoding="utf-8")
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(
        f'recipe = "{(tmp_path / "sums.toml").as_posix()}"\nmethods = ["fedsa", "local"]\nreference = "fedsa"\n'
        "rates = [1e-2]\n",
        encoding="utf-8",
    )
    outcome = fedsa_command("sweep", sweep, "--out", tmp_path / "out", "--jobs", 1)
    assert outcome.code == 0, outcome.err
    with (tmp_path / "out" / "clients.csv").open(encoding="utf-8") as file:
        clients = list(csv.DictReader(file))
    assert {row["majority"] for row in clients} == {""}
    assert all(float(row["before"]) < 0 and float(row["test"]) < 0 for row in clients)  # log-likelihoods


def test_clients_that_never_trained_have_figures_of_their_own(
    tmp_path: Path, recipe_file: Callable[..., Path], fedsa_command: Callable[..., Any]
) -> None:
    recipe, sweep, out = recipe_file("rounds=1"), tmp_path / "sampled.toml", tmp_path / "out"
    sweep.write_text(
        f'recipe = "{recipe.as_posix()}"\nmethods = ["fedsa"]\nrates = [5e-2]\n'
        'settings = [{label = "all"}, {label = "one", set = ["fraction_train=0.1", "evaluation.fit_head_epochs=1"]}]\n',
        encoding="utf-8",
    )
    outcome = fedsa_command("sweep", sweep, "--out", out, "--jobs", 1)
    assert outcome.code == 0, outcome.err
    with (out / "results.csv").open(encoding="utf-8") as file:
        rows = {row["setting"]: row for row in csv.DictReader(file)}
    assert (rows["all"]["test_final_untrained_clients"], rows["all"]["test_final_untrained_mean"]) == ("0", "")
    assert rows["one"]["test_final_untrained_clients"] == "2"
    with (out / "clients.csv").open(encoding="utf-8") as file:
        clients = [row for row in csv.DictReader(file) if row["setting"] == "one"]
    away = [float(row["test_final"]) for row in clients if row["rounds_trained"] == "0"]
    assert float(rows["one"]["test_final_untrained_mean"]) == pytest.approx(sum(away) / 2)
    assert sorted(row["rounds_trained"] for row in clients) == ["0", "0", "1"]
    headers = [line for line in outcome.out.splitlines() if line.startswith("| method ")]
    has_untrained = [bool(rows[name]["test_untrained_mean"]) for name in ("all", "one")]
    assert has_untrained[1]
    assert ["never trained" in line for line in headers] == has_untrained
    assert "Never trained: mean over the clients that had not trained by the chosen round" in outcome.out


def test_a_finished_sweep_is_read_not_repeated(
    tmp_path: Path,
    recipe_file: Callable[..., Path],
    fedsa_command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep, out = tmp_path / "two.toml", tmp_path / "out"
    sweep.write_text(
        f'recipe = "{recipe_file().as_posix()}"\nmethods = ["fedsa", "local", "pooled"]\nreference = "fedsa"\n'
        "rates = [1e-2]\n",
        encoding="utf-8",
    )
    first = fedsa_command("sweep", sweep, "--out", out, "--jobs", 2)
    assert first.code == 0, first.err
    with (out / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"], row["run_folder"]) for row in rows] == [
        ("fedsa", "0", "fedsa_lr0.01_seed0"),
        ("local", "0", "local_lr0.01_seed0"),
        ("pooled", "0", "pooled_lr0.01_seed0"),
    ]
    (pooled,) = [line for line in first.out.splitlines() if line.startswith("| pooled ")]
    assert "| all rows |" in pooled
    assert int(rows[1]["upload_bytes"]) == 0 < int(rows[0]["upload_bytes"])
    assert all(float(row["processor_seconds"]) > 0 for row in rows)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert fedsa_command("sweep", sweep, "--out", out, "--jobs", 2).out == first.out
    (out / "table.md").unlink()
    assert fedsa_command("sweep", sweep, "--out", out, "--tables-only").out == first.out
    assert (out / "table.md").read_text(encoding="utf-8") in first.out

    wrong = fedsa_command("sweep", sweep, "--out", out, "--set", "rounds=3")
    assert "is another run than the sweep asks for (rounds: 3 is asked for, 2 was run)" in wrong.error


def test_the_whole_reason_of_a_failure_is_told(
    tmp_path: Path, recipe_file: Callable[..., Path], fedsa_command: Callable[..., Any]
) -> None:
    sweep = tmp_path / "one.toml"
    sweep.write_text(
        f'recipe = "{recipe_file("data.partition.min_examples=1000000").as_posix()}"\nmethods = ["fedsa"]\n'
        'reference = "fedsa"\nrates = [1e-2]\n',
        encoding="utf-8",
    )
    outcome = fedsa_command("sweep", sweep, "--out", tmp_path / "out", "--jobs", "1")
    (told,) = [line for line in outcome.out.splitlines() if line.startswith("- Failed: ")]
    log = next((tmp_path / "out").glob("*.log")).read_text(encoding="utf-8")
    reason = log.partition("error: ")[2].partition("\n\nexit code")[0]
    assert len(reason.splitlines()) > 1
    assert all(line.strip() in told for line in reason.splitlines())


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_background_sweep_that_is_stopped_takes_its_runs_along(
    tmp_path: Path, recipe_file: Callable[..., Path]
) -> None:
    sweep, out = tmp_path / "one.toml", tmp_path / "out"
    sweep.write_text(
        f'recipe = "{recipe_file("rounds=5000").as_posix()}"\nmethods = ["fedsa"]\n'
        'reference = "fedsa"\nrates = [1e-2]\n',
        encoding="utf-8",
    )
    moment = Moment("os.rename", "*/server/round-000002.safetensors", tmp_path / "moment")
    process = subprocess.Popen(
        [sys.executable, "-m", "fedsa", "sweep", str(sweep), "--out", str(out), "--jobs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=moment.environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell's background job has it
    )
    with process:
        moment.wait(process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    log = next(out.glob("*.log")).read_text(encoding="utf-8")
    assert "finished rounds are saved" in log
    assert "exit code: 130" in log


# -- runs that another process works on --------------------------------------------------------------------------------

WAITING = """
import os, pathlib, sys
from fedsa import Callback
def wait():
    pipe = pathlib.Path(os.environ["PIPE"])
    if pipe.exists():
        pipe.read_text()  # until somebody has opened it for writing, and closed it
if os.environ["WHEN"] == "before the run folder is there" and sys.argv[1] == "run":  # not in the sweep
    wait()
class Waiting(Callback):
    def on_round_end(self, round, lines, validation):
        if round == 1 and os.environ["WHEN"] == "after round 1":
            wait()
"""


@pytest.fixture
def waiting_sweep(tmp_path: Path, recipe_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of one run, which waits for somebody to open and close the pipe ``PIPE``."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "waiting_callback.py").write_text(WAITING, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PIPE", str(tmp_path / "pipe"))
    os.mkfifo(tmp_path / "pipe")
    recipe = recipe_file("callbacks=['waiting_callback:Waiting']")
    sweep = tmp_path / "one.toml"
    sweep.write_text(f'recipe = "{recipe.as_posix()}"\nmethods = ["fedsa"]\nrates = [1e-2]\n', encoding="utf-8")
    return sweep


@pytest.mark.skipif(os.name != "posix", reason="pipes and signals")
@pytest.mark.parametrize(
    "when", [pytest.param(when, marks=pytest.mark.slow) for when in ("before the run folder is there", "after round 1")]
)
def test_a_sweep_that_was_killed_is_gone_on_with_while_its_run_works(
    tmp_path: Path,
    waiting_sweep: Path,
    fedsa_command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    when: str,
) -> None:
    """SIGKILL leaves the run working; the sweep that is begun again waits for it, and starts no second one."""
    out = tmp_path / "out"
    monkeypatch.setenv("WHEN", when)
    with subprocess.Popen([sys.executable, "-c", SWEEP_OF_ONE, str(waiting_sweep), str(out)]) as killed:
        pipe = (tmp_path / "pipe").open("wb")  # opens when the run has come to where it waits
        killed.kill()
    request.addfinalizer(pipe.close)
    assert killed.returncode == -signal.SIGKILL

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the run was started twice")

    def go_on(seconds: float) -> None:
        if not pipe.closed:
            (tmp_path / "pipe").unlink()
            pipe.close()
        sleep(seconds)

    sleep = time.sleep
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr("fedsa.sweep.running.time.sleep", go_on)
    outcome = fedsa_command("sweep", waiting_sweep, "--out", out, "--jobs", "1")
    assert pipe.closed
    assert "fedsa, rate 0.01, seed 0: another process works on it" in outcome.err
    assert outcome.code == 0, outcome
    assert "Failed" not in outcome.out
    assert (out / "fedsa_lr0.01_seed0" / "summary.json").exists()


SWEEP_OF_ONE = """
import sys
from pathlib import Path
from fedsa.sweep.files import read_sweep
from fedsa.sweep.grid import make_grid
from fedsa.sweep.running import run_sweep
file, _ = read_sweep(sys.argv[1])
run_sweep(make_grid(file, "sweep"), Path(sys.argv[2]))
"""


def test_a_run_that_somebody_goes_on_with_by_hand_is_waited_for(
    tmp_path: Path, recipe_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, finished_run: Path
) -> None:
    file = SweepFile(recipe=str(recipe_file()), methods=["fedsa"], rates=[1e-2])
    grid, cell = Grid(file, {GROUP: (str(recipe_file()), ())}, {}), Cell(GROUP, 1e-2, 0)
    folder = grid.folder(cell, tmp_path)
    shutil.copytree(finished_run, folder)
    summary = (folder / "summary.json").read_bytes()
    (folder / "summary.json").unlink()
    by_hand = FileLock(folder / ".lock")
    waited: list[Cell] = []

    def tell(results: object, children: object, waiting: list[Cell]) -> None:
        waited.extend(waiting)
        if waiting:  # it ends
            (folder / "summary.json").write_bytes(summary)
            by_hand.release()

    monkeypatch.setattr(subprocess, "Popen", None)
    with by_hand:
        results = run_sweep(grid, tmp_path, tell=tell)
    assert waited == [cell]
    assert results[cell].summary is not None


def test_a_row_without_a_run_is_an_error_at_the_end(
    tmp_path: Path, recipe_file: Callable[..., Path], fedsa_command: Callable[..., Any]
) -> None:
    sweep = tmp_path / "one.toml"
    sweep.write_text(f'recipe = "{recipe_file().as_posix()}"\nmethods = ["fedsa"]\nrates = [1e-2]\n', encoding="utf-8")
    outcome = fedsa_command("sweep", sweep, "--out", tmp_path / "out", "--tables-only")
    assert outcome.code == 1
    assert "missing: fedsa: rate 0.01, seed 0" in outcome.err


@pytest.mark.parametrize(
    ("scores", "missing"),
    [
        ({(0.01, 5): 1.0, (0.02, 5): 0.5, (0.01, 6): 1.0}, None),
        ({(0.01, 5): 1.0, (0.02, 5): None, (0.01, 6): 1.0}, None),  # a rate that fails is worse than the others
        ({(0.01, 5): 1.0, (0.02, 5): 0.5, (0.01, 6): None}, "rate 0.01, seed 6"),
        ({(0.01, 5): 1.0, (0.02, 5): 0.5}, "rate 0.01, seed 6"),
        ({(0.01, 5): None, (0.02, 5): None}, "every rate failed"),
        ({(0.01, 5): 1.0}, "not all rates are run"),
        ({}, "not all rates are run"),
    ],
)
def test_what_a_row_lacks(scores: dict[tuple[float, int], float | None], missing: str | None) -> None:
    file = SweepFile(recipe="r", methods=["fedsa"], rates=[0.01, 0.02], seeds=[5, 6], max_extensions=0)
    results = {
        Cell(GROUP, *key): Result(Path(), None if score is None else {"chosen_score": score})
        for key, score in scores.items()
    }
    assert missing_runs(Grid(file, {GROUP: ("r", ())}, {}), results).get(GROUP) == missing
