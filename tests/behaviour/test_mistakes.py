"""A user's mistakes: each ends with exit code 2 and one clear message, and leaves nothing half-made behind."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fedsa.store.files
from fedsa.errors import UserError
from fedsa.store import RunFolder, write_atomically
from support.run_folders import unfinish

pytestmark = pytest.mark.run

ROWS = "text,label,site\n" + "".join(
    f"the film was {word},{label},site {site}\n"
    for site in range(2)
    for word, label in [("dull", "bad"), ("fine", "good")] * 10
)


@pytest.fixture
def refuses(fedsa_command: Callable[..., Any]) -> Callable[..., str]:
    """Run a command that a user's mistake stops, and return its one message."""

    def run(*arguments: object) -> str:
        outcome = fedsa_command(*arguments)
        assert outcome.code == 2, outcome
        assert "Traceback" not in outcome.err
        assert outcome.error.startswith("error: ")
        assert not any(line.startswith("error: ") for line in outcome.error.splitlines()[1:])
        return outcome.error.removeprefix("error: ")

    return run


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run that may be damaged."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


# -- the recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        pytest.param(["roundz=3"], ["1 mistake", "roundz", "did you mean 'rounds'?"], id="unknown key"),
        pytest.param(
            ["training.learningrate=1"], ["training.learningrate", "'learning_rate'?"], id="unknown key, nested"
        ),
        pytest.param(["rounds=many"], ["rounds", "valid integer", "'many'"], id="bad type"),
        pytest.param(["rounds=0"], ["rounds", "greater than 0", "got 0"], id="out of range"),
        pytest.param(["fraction_train=1.5"], ["fraction_train", "less than or equal to 1", "1.5"], id="above range"),
        pytest.param(["wire_dtype=fp16"], ["wire_dtype", "'fp32' or 'bf16'", "'fp16'"], id="wire"),
        pytest.param(
            ["evaluation.fraction_evaluate=0"], ["fraction_evaluate", "greater than 0"], id="nobody evaluated"
        ),
        pytest.param(["rounds=x", "seed=-1"], ["2 mistakes", "\n  rounds:", "\n  seed:"], id="two at once"),
        pytest.param(
            ["rounds=x", "algorithm=fedsaa", "callbacks=['tensorbord']"],
            ["3 mistakes", "\n  rounds:", "\n  algorithm:", "\n  callbacks:"],
            id="three of three layers at once",
        ),
        pytest.param(["rounds"], ["--set rounds", "expected key=value"], id="--set without ="),
        pytest.param(["rounds.x=1"], ["--set rounds.x=1", "rounds is not a table"], id="--set below a value"),
        pytest.param(["algorithm=fedsaa"], ["unknown algorithm 'fedsaa'", "did you mean 'fedsa'?"], id="algorithm"),
        pytest.param(["algorithm=no.such:Method"], ["'no.such:Method' cannot be imported"], id="algorithm of a module"),
        pytest.param(["algorithm_options={mu=1}"], ["algorithm_options.mu", "no such option"], id="algorithm option"),
        pytest.param(["algorithm=local", "share_head=true"], ["share_head", "local"], id="local shares no head"),
        pytest.param(
            ["report_to=['tensorbord']"], ["unknown tracker", "did you mean 'tensorboard'?"], id="unknown tracker"
        ),
        pytest.param(["adapter.variant=lokr"], ["adapter.variant", "'ia3' or 'lora_xs'"], id="variant"),
        pytest.param(
            ["adapter={variant='ia3'}"],
            ["algorithm: fedsa does not go with adapter.variant = 'ia3': it treats the sides", "no A side and B side"],
            id="a method of sides with a variant of none",
        ),
        pytest.param(
            ["adapter.variant=loha", "algorithm=ffa"],
            ["algorithm: ffa does not go with adapter.variant = 'loha': it freezes the A side, which in loha is zero"],
            id="a method that freezes what is zero",
        ),
        pytest.param(
            ["training.local_steps=1", "training.local_epochs=1"], ["local_steps or local_epochs"], id="both lengths"
        ),
        pytest.param(["data.partition={kind='iid'}"], ["data.partition", "needs `clients`"], id="partition in part"),
        pytest.param(["model={}"], ["model.path", "is missing"], id="missing key"),
    ],
)
def test_a_mistake_in_a_recipe_is_told_before_anything_is_made(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], tmp_path: Path, settings: list[str], parts: list[str]
) -> None:
    recipe, out = recipe_file(), tmp_path / "run"
    message = refuses("run", recipe, "--out", out, *(word for setting in settings for word in ("--set", setting)))
    assert all(part in message for part in parts), message
    assert not out.exists()


@pytest.mark.parametrize("verb", ["run", "data"])
def test_a_recipe_that_is_not_there(refuses: Callable[..., str], tmp_path: Path, verb: str) -> None:
    assert "no recipe 'quikstart': did you mean 'quickstart'?" in refuses(verb, "quikstart")
    assert f"no recipe file {tmp_path / 'mine.toml'}" in refuses(verb, tmp_path / "mine.toml")


def test_the_text_of_a_recipe_that_is_not_there(refuses: Callable[..., str]) -> None:
    assert "did you mean 'quickstart'?" in refuses("recipes", "quikstart")


def test_a_recipe_that_is_not_toml(refuses: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("rounds = = 3\n")
    assert re.match(rf"{re.escape(str(path))} is not valid TOML: .*line 1", refuses("run", path))
    path.write_bytes(b"rounds = '\xff'\n")
    assert f"cannot read recipe {path}" in refuses("run", path)


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["run", "quickstart", "--outt", "x"], ["rum"], ["export", "x"], ["resume", "x", "y"], ["data", "--nope"]],
    ids=" ".join,
)
def test_a_wrong_command_line_shows_how_it_is_used(fedsa_command: Callable[..., Any], arguments: list[str]) -> None:
    outcome = fedsa_command(*arguments)
    assert outcome.code == 2
    assert "Usage: fedsa" in outcome.err
    assert "Error: " in outcome.err


# -- the data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        pytest.param(["data.partition.column=sitee"], ["'sitee': did you mean 'site'?"], id="missing column"),
        pytest.param(
            ["task.text_columns=['txt']", "task.label_column=lable"],
            ["2 columns are missing", "'txt': did you mean 'text'?", "'lable': did you mean 'label'?"],
            id="two missing columns",
        ),
        pytest.param(["data.partition.min_examples=500"], ["3 of 3 clients", "60 rows, fewer than"], id="too few rows"),
        pytest.param(
            ["data.partition={kind='iid', clients=179, min_examples=3}"], ["rows", "clients"], id="too many clients"
        ),
        pytest.param(["task.labels=['bad', 'ugly']"], ["label outside task.labels", "'good'"], id="unknown label"),
        pytest.param(["data.split=trian"], ["no split 'trian'", "the splits are: train"], id="unknown split"),
        pytest.param(
            ["data.partition={kind='saved', file='none.json'}"], ["no partition file", "none.json"], id="no partition"
        ),
    ],
)
def test_data_that_does_not_fit_leaves_no_run_folder(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], tmp_path: Path, settings: list[str], parts: list[str]
) -> None:
    recipe, out = recipe_file(), tmp_path / "new" / "run"
    message = refuses("run", recipe, "--out", out, *(word for setting in settings for word in ("--set", setting)))
    assert all(part in message for part in parts), message
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        pytest.param("none.csv", None, ["no file or folder", "none.csv"], id="missing file"),
        pytest.param("rows.csv", "", ["rows.csv is empty"], id="empty file"),
        pytest.param("rows.csv", "text,label,site\n", ["no rows"], id="header only"),
        pytest.param("rows.csv", ROWS + 'a,b,c,d,e,"f\n', ["rows.csv, line 42", "quotation mark"], id="malformed CSV"),
        pytest.param(
            "rows.jsonl", '{"text": "a", "label": \n', ["rows.jsonl, line 1 is not JSON"], id="malformed JSON"
        ),
        pytest.param("rows.xlsx", "x", ["rows.xlsx cannot be read"], id="no workbook"),
        pytest.param("rows.ods", "x", ["files of this kind are not read", ".csv"], id="unknown kind of file"),
        pytest.param(
            "rows.csv", ROWS + "fine,,site 0\n", ["'label' is empty in 1 row (rows.csv, line 42)"], id="no label"
        ),
        pytest.param(
            "rows.csv",
            ROWS.replace("good", "1").replace("bad", "-1"),
            ["20 of 40 rows have a negative label (rows.csv, line 2: -1, rows.csv, line 4: -1"],
            id="negative label",
        ),
        pytest.param("rows.csv", ROWS + "fine,good,site 2\n", ["client 'site 2': 1 row,"], id="nearly empty client"),
        pytest.param("rows.csv", ROWS.replace("good", "bad"), ["1 class in 40 rows"], id="one class"),
    ],
)
def test_rows_that_cannot_be_used(
    refuses: Callable[..., str],
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    name: str,
    content: str | None,
    parts: list[str],
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    recipe, out = recipe_file(f"data.path={tmp_path / name}"), tmp_path / "run"
    for command in (["run", recipe, "--out", out], ["data", recipe]):
        message = refuses(*command)
        assert all(part in message for part in parts), message
    assert not out.exists()


def test_columns_and_texts_that_are_no_mistake(
    fedsa_command: Callable[..., Any], refuses: Callable[..., str], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    lines = [dict(zip(("text", "label", "site"), line.split(","), strict=True)) for line in ROWS.splitlines()[1:]]
    rows = [{"class_number": "seven", "labels": 1, **line} for line in lines]
    rows[0]["text"], rows[1]["text"] = "", "  "
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = recipe_file(f"data.path={path}", "rounds=1")
    assert fedsa_command("run", recipe, "--out", tmp_path / "run").code == 0
    path.write_text("\n".join(map(json.dumps, [{**rows[0], "text": None}, *rows[1:]])), encoding="utf-8")
    assert "column 'text' is empty in 1 row (rows.jsonl, line 1)" in refuses("data", recipe)


def test_a_label_outside_the_range(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(ROWS.replace("good", "2").replace("bad", "0"), encoding="utf-8")
    message = refuses("data", recipe_file(f"data.path={rows}", "task.labels=['no', 'yes']"))
    assert "label out of range" in message
    assert "labels run from 0 to 1" in message


def test_a_drawing_that_cannot_be_written(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    assert "mix.docx" in refuses("data", recipe_file(), "--plot", tmp_path / "mix.docx")
    assert "No such file or directory" in refuses("data", recipe_file(), "--plot", tmp_path / "no" / "mix.png")
    assert "cannot write partition" in refuses("data", recipe_file(), "--save", tmp_path / "no" / "mix.json")


# -- the model and the machine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        pytest.param(["adapter.target_modules=['querry', 'value']"], ["no layer 'querry'; did you mean 'query'?"]),
        pytest.param(["adapter.target_modules=nothing.*"], ["target_modules"]),
        pytest.param(["model.path=someone/no-such-model"], ["model.path = 'someone/no-such-model'", "no such local"]),
        pytest.param(["model.path=part:minilm"], ["no packaged part 'minilm'"]),
        pytest.param(["compute.device=cuda:9"], ["compute.device = 'cuda:9' cannot be used here"]),
        pytest.param(["compute.device=gpu"], ["compute.device = 'gpu' cannot be used here"]),
    ],
    ids=["module", "pattern", "hub name", "part", "device", "no device"],
)
def test_a_model_that_cannot_be_used_leaves_no_run_folder(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], tmp_path: Path, settings: list[str], parts: list[str]
) -> None:
    message = refuses("run", recipe_file(*settings), "--out", tmp_path / "run")
    assert all(part in message for part in parts), message
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_model(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "run"
    assert "holds no model" in refuses("run", recipe_file(f"model.path={tmp_path / 'empty'}"), "--out", out)
    assert not out.exists()


def test_a_model_whose_file_is_cut_off(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    half = Path(shutil.copytree(tiny_model, tmp_path / "half"))
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:1000])
    assert "holds no model" in refuses("run", recipe_file(f"model.path={half}"), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pattern_that_is_no_pattern(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    assert "target_modules" in refuses("run", recipe_file("adapter.target_modules=*query"), "--out", tmp_path / "run")


def test_modules_to_save_that_the_model_has_not(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    message = refuses("run", recipe_file("adapter.modules_to_save=['clasifier']"), "--out", tmp_path / "run")
    assert "did you mean 'classifier'?" in message


def test_texts_that_are_too_long_for_the_model(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(ROWS.replace("dull", "dull " * 40), encoding="utf-8")
    outcome = fedsa_command("run", recipe_file(f"data.path={rows}", "rounds=1"), "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    recipe = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text(encoding="utf-8"))
    assert recipe["task"]["max_length"] == 32, "texts are cut to what the model takes"


def test_a_missing_extra_names_what_to_install(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    message = refuses("run", recipe_file("report_to=['tensorboard']"), "--out", tmp_path / "run")
    assert "tracker 'tensorboard'" in message
    assert "pip install 'fedsa[track]'" in message
    assert not (tmp_path / "run").exists()


def test_after_the_mend_the_same_command_works(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert fedsa_command("run", recipe_file("data.partition.column=sitee"), "--out", out).code == 2
    out.mkdir()  # killed before the recipe was written: this is left
    (out / ".lock").touch()
    assert fedsa_command("run", recipe_file("rounds=1"), "--out", out).code == 0


def test_a_folder_that_the_user_made_stays(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    refuses("run", recipe_file("data.partition.column=sitee"), "--out", tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


# -- the run folder --------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_folder_is_never_overwritten(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], run_copy: Path, tmp_path: Path
) -> None:
    before = contents(run_copy)
    message = refuses("run", recipe_file(), "--out", run_copy)
    assert "holds a run already" in message
    assert f"fedsa resume {run_copy}" in message
    assert contents(run_copy) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert "is not an empty folder" in refuses("run", recipe_file(), "--out", tmp_path / "mine")
    assert "is not an empty folder" in refuses("run", recipe_file(), "--out", recipe_file())
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_run_folder_that_another_process_writes(refuses: Callable[..., str], run_copy: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom filelock import FileLock\n"
            "with FileLock(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()",
            str(run_copy / ".lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert f"{run_copy} is in use" in refuses("resume", run_copy)
        holder.kill()
    unfinish(run_copy)  # the lock of a dead process holds nobody up
    with RunFolder.open(run_copy, write=True).locked() as folder:
        assert folder.progress() is not None


@pytest.mark.parametrize("verb", ["resume", "export"])
def test_a_folder_that_is_no_run(refuses: Callable[..., str], tmp_path: Path, verb: str) -> None:
    more = ["--all", "--to", tmp_path / "to"] if verb == "export" else []
    assert f"{tmp_path} is not a run folder" in refuses(verb, tmp_path, *more)
    assert f"{tmp_path / 'none'} does not exist" in refuses(verb, tmp_path / "none", *more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["resume", "export"])
def test_another_format_version(refuses: Callable[..., str], run_copy: Path, tmp_path: Path, verb: str) -> None:
    state = json.loads((run_copy / "state.json").read_text())
    (run_copy / "state.json").write_text(json.dumps({**state, "format": 99}))
    message = refuses(verb, run_copy, *(["--all", "--to", tmp_path / "to"] if verb == "export" else []))
    assert "run-folder format 99" in message
    assert "environment.json" in message


@pytest.mark.parametrize("damage", ["truncated", "nonsense", "missing"])
@pytest.mark.parametrize("which", ["server", "client", "initial", "state", "clients", "recipe", "metrics"])
def test_a_damaged_file_stops_a_resume(refuses: Callable[..., str], run_copy: Path, which: str, damage: str) -> None:
    unfinish(run_copy)
    path = {
        "server": run_copy / "server" / "round-000001.safetensors",
        "client": run_copy / "clients" / "00001-site 1" / "round-000001.safetensors",
        "initial": run_copy / "initial.safetensors",
        "state": run_copy / "state.json",
        "clients": run_copy / "clients.json",
        "recipe": run_copy / "recipe.toml",
        "metrics": run_copy / "metrics.jsonl",
    }[which]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:10] if damage == "truncated" else b"\0nonsense")
    before = contents(run_copy)
    if which != "state":
        before.pop("state.json")  # an interruption more is counted
    message = refuses("resume", run_copy)
    assert before.items() <= contents(run_copy).items()
    assert str(path.parent if which == "recipe" and damage == "missing" else path) in message
    assert "damaged" in message or "unreadable" in message or "missing" in message or "not a run folder" in message


@pytest.mark.parametrize("damage", ["truncated", "nonsense", "missing"])
@pytest.mark.parametrize("which", ["server", "client", "initial", "summary", "clients", "recipe", "adapter_config"])
def test_a_damaged_file_stops_an_export(
    refuses: Callable[..., str], run_copy: Path, tmp_path: Path, which: str, damage: str
) -> None:
    final = json.loads((run_copy / "summary.json").read_text())["rounds"]
    path = {
        "server": run_copy / "server" / f"round-{final:06d}.safetensors",
        "client": run_copy / "clients" / "00001-site 1" / f"round-{final:06d}.safetensors",
        "initial": run_copy / "initial.safetensors",
        "summary": run_copy / "summary.json",
        "clients": run_copy / "clients.json",
        "recipe": run_copy / "recipe.toml",
        "adapter_config": run_copy / "adapter_config.json",
    }[which]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:10] if damage == "truncated" else b"\0nonsense")
    to = tmp_path / "to"
    message = refuses("export", run_copy, "--client", "site 1", "--round", "final", "--to", to)
    assert str(path.parent if which == "recipe" and damage == "missing" else path) in message
    assert not to.exists()


def test_a_stray_folder_among_the_clients(refuses: Callable[..., str], run_copy: Path) -> None:
    shutil.copytree(run_copy / "clients" / "00001-site 1", run_copy / "clients" / "copy")
    assert "move it out of the run folder" in refuses("resume", run_copy)


@pytest.mark.run
def test_rows_that_have_changed_stop_a_resume(
    fedsa_command: Callable[..., Any],
    refuses: Callable[..., str],
    recipe_file: Callable[..., Path],
    tiny_rows: Path,
    tmp_path: Path,
) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "run"
    shutil.copy(tiny_rows, rows)
    assert fedsa_command("run", recipe_file(f"data.path={rows}"), "--out", out).code == 0
    unfinish(out)
    before = contents(out)
    rows.write_text(tiny_rows.read_text().replace("good", "bad", 1), encoding="utf-8")
    assert "the clients' rows are not those that the run began with" in refuses("resume", out)
    rows.unlink()
    assert "no file or folder" in refuses("resume", out)
    assert contents(out) == before
    shutil.copy(tiny_rows, rows)
    assert fedsa_command("resume", out).code == 0


# -- export ----------------------------------------------------------------------------------------------------------


def test_an_export_that_is_asked_for_wrongly(refuses: Callable[..., str], finished_run: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    assert "give --client ID, or --all" in refuses("export", finished_run, "--to", to)
    assert "give --client ID, or --all" in refuses("export", finished_run, "--to", to, "--all", "--client", "site 1")
    assert "no client 'sit 1'; did you mean 'site 1'?" in refuses(
        "export", finished_run, "--to", to, "--client", "sit 1"
    )
    assert "--round best: must be chosen or final" in refuses(
        "export", finished_run, "--to", to, "--all", "--round", "best"
    )
    assert not to.exists()
    to.mkdir()
    (to / "mine").touch()
    assert "is not an empty folder" in refuses("export", finished_run, "--to", to, "--client", "site 1")
    assert [path.name for path in to.iterdir()] == ["mine"]


def test_an_export_before_the_run_is_finished(refuses: Callable[..., str], run_copy: Path, tmp_path: Path) -> None:
    unfinish(run_copy)
    message = refuses("export", run_copy, "--all", "--to", tmp_path / "to")
    assert f"{run_copy} is not finished" in message
    assert f"fedsa resume {run_copy}" in message


# -- the disk --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real file system of 400 kB."""
    path = tmp_path_factory.mktemp("small-disk")
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(path)] if mount else ["false"]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs can be mounted by root on Linux only")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def small_disk(mounted: Path) -> Path:
    """The small file system, empty."""
    for entry in mounted.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return mounted


def fill(disk: Path, *, leave: int) -> Path:
    """Fill a disk up to ``leave`` bytes."""
    path = disk / "filling"
    path.unlink(missing_ok=True)
    free = os.statvfs(disk)
    path.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - leave)))
    return path


@pytest.mark.parametrize("leave", [0, 8, 24, 40, 56, 80], ids=lambda kilobytes: f"{kilobytes} kB left")
def test_a_full_disk(
    fedsa_command: Callable[..., Any],
    refuses: Callable[..., str],
    recipe_file: Callable[..., Path],
    small_disk: Path,
    finished_run: Path,
    leave: int,
) -> None:
    recipe, out = recipe_file(), small_disk / "run"
    filling = fill(small_disk, leave=leave * 1024)
    message = refuses("run", recipe, "--out", out)
    assert "the disk is full" in message or "No space left on device; free some space" in message
    filling.unlink()
    assert not list(small_disk.rglob(".*.partial"))
    outcome = fedsa_command("resume", out) if out.exists() else fedsa_command("run", recipe, "--out", out)
    assert outcome.code == 0, outcome
    for kind in ("server", "clients"):
        assert contents(out / kind) == contents(finished_run / kind)
    shutil.rmtree(out)


def test_a_full_disk_at_export(refuses: Callable[..., str], small_disk: Path, finished_run: Path) -> None:
    for leave in (0, 4096, 12288):
        filling = fill(small_disk, leave=leave)
        message = refuses("export", finished_run, "--client", "site 1", "--merge", "--to", small_disk / "to")
        assert "the disk is full" in message or "No space left" in message
        assert [path.name for path in small_disk.iterdir()] == ["filling"]
        filling.unlink()


@pytest.mark.parametrize(
    ("code", "text"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EIO, "cannot")]
)
def test_a_write_that_fails_leaves_the_old_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, text: str
) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fedsa.store.files.os, "fsync", fail)
    with pytest.raises(UserError, match=text):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_without_permission_to_write(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], run_copy: Path, tmp_path: Path
) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "cannot write" in refuses("run", recipe_file(), "--out", tmp_path / "closed" / "run")
    run_copy.chmod(0o500)
    assert "cannot write" in refuses("resume", run_copy)
    run_copy.chmod(0o700)


def test_a_lock_that_may_not_be_taken(
    refuses: Callable[..., str], run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(run_copy / ".lock"))

    monkeypatch.setattr("fedsa.store.locked_folder.FileLock.acquire", deny)
    assert f"cannot write {run_copy}: Permission denied" in refuses("resume", run_copy)


# -- rates that are too high -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blamed", "settings"),
    [
        ("training.learning_rate", []),
        ("training.head_learning_rate", []),
        ("training.b_learning_rate_ratio", []),
        ("server.learning_rate", ["server.optimizer=fedavgm"]),
        ("server.learning_rate", ["server.optimizer=fedyogi"]),
        ("reconstruction.learning_rate", ["personal_state=reconstruct"]),
    ],
)
def test_the_rate_that_is_too_high_is_the_one_that_is_blamed(
    fedsa_command: Callable[..., Any],
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    blamed: str,
    settings: list[str],
) -> None:
    outcome = fedsa_command("run", recipe_file(f"{blamed}=1e38", *settings), "--out", tmp_path / "run")
    assert outcome.code == 1, outcome
    assert f"lower {blamed} (now 1e+38)" in outcome.error


# -- files and paths that are none -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["~nobodyhere/x", "x" * 5000, "a/" * 3000], ids=["nobody", "long name", "long path"])
@pytest.mark.parametrize(
    "words",
    [
        ["run", "PATH"],
        ["run", "RECIPE", "--out", "PATH"],
        ["run", "RECIPE", "--set", "model.path=PATH"],
        ["plan", "PATH.toml"],
        ["data", "RECIPE", "--save", "PATH"],
        ["data", "RECIPE", "--plot", "PATH"],
        ["data", "RECIPE", "--set", "data.partition={kind='saved', file=\"PATH\"}"],
        ["data", "RECIPE", "--set", "data.path=PATH"],
        ["resume", "PATH"],
        ["export", "PATH", "--all", "--to", "x"],
        ["export", "RUN", "--all", "--to", "PATH"],
        ["analyze", "PATH"],
        ["analyze", "RUN", "--to", "PATH"],
        ["adapt", "RUN", "--data", "PATH"],
        ["adapt", "RUN", "--data", "ROWS", "--to", "PATH"],
        ["sweep", "PATH"],
        ["sweep", "quickstart", "--out", "PATH"],
    ],
    ids=" ".join,
)
def test_paths_that_no_file_can_have(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], finished_run: Path, words: list[str], path: str
) -> None:
    places = {"RECIPE": str(recipe_file()), "RUN": str(finished_run), "ROWS": "rows.csv"}
    message = refuses(*(places.get(word, word).replace("PATH", path) for word in words))
    assert len(message) < 3000


@pytest.mark.parametrize("setting", ["model.path", "data.path"])
def test_paths_with_a_nul_in_them(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path, setting: str
) -> None:
    outcome = fedsa_command("run", recipe_file(f'{setting}="a\\u0000b"'), "--out", tmp_path / "run")
    assert outcome.code == 2, outcome
    assert "\0" not in outcome.err


@pytest.mark.parametrize(
    "words",
    [
        ["run", "RECIPE", "--out"],
        ["export", "RUN", "--all", "--to"],
        ["analyze", "RUN", "--to"],
        ["adapt", "RUN", "--data", "rows.csv", "--to"],
        ["sweep", "quickstart", "--out"],
        ["data", "RECIPE", "--save"],
        ["data", "RECIPE", "--plot"],
    ],
    ids=" ".join,
)
def test_a_target_below_a_file(
    refuses: Callable[..., str],
    recipe_file: Callable[..., Path],
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    monkeypatch.setattr("fedsa.runs.analysis.analyze", None)  # it is told before anything is computed
    (tmp_path / "file.png").write_text("mine")
    places = {"RECIPE": recipe_file(), "RUN": finished_run}
    for target in ("file.png/x.png",) if words[0] == "data" else ("file.png", "file.png/x/y"):
        assert "file.png" in refuses(*(places.get(word, word) for word in words), tmp_path / target)
    assert (tmp_path / "file.png").read_text() == "mine"


@pytest.mark.parametrize("verb", ["plan", "sweep"])
@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"\xff\xfer\x00o\x00u\x00n\x00d\x00s\x00", "it is not text in UTF-8"),
        (bytes(range(256)) * 40, "it is not text in UTF-8"),
        (b"rounds = 'caf\xe9'", "it is not text in UTF-8"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, "more than 32 deep"),
        (b".".join([b"a"] * 5000) + b" = 1", "more than 32 deep"),
        (b"rounds = " + b"9" * 5000, "is not valid TOML"),
        (b"rounds = " + b"9" * 400, "too large"),
        (b"rounds = 1\0", "is not valid TOML"),
        (b"x" * 100_000, "is not valid TOML"),
        (b"".join(b"key%d = 1\n" % number for number in range(20_000)), "more"),
        (b"'\\u001b[31m" + b"k" * 100_000 + b"' = 1", "unknown key"),
    ],
    ids=range(11),
)
def test_files_that_are_no_recipe(
    refuses: Callable[..., str], tmp_path: Path, verb: str, content: bytes, part: str
) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    message = refuses(verb, tmp_path / "mine.toml")
    assert part in message or (verb == "sweep" and "mistake" in message)
    assert "\x1b" not in message
    assert len(message) < 8000  # twenty mistakes, each with all settings that there are


def test_a_folder_is_no_recipe_and_a_mark_of_the_byte_order_is_none(
    refuses: Callable[..., str], recipe_file: Callable[..., Path], fedsa_command: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "folder.toml").mkdir()
    assert "it is a folder" in refuses("plan", tmp_path)
    assert "it is a folder" in refuses("plan", tmp_path / "folder.toml")
    recipe = recipe_file()
    recipe.write_bytes(b"\xef\xbb\xbf" + recipe.read_bytes())
    assert fedsa_command("data", recipe).code == 0


def test_names_of_other_libraries_lead_to_ours(refuses: Callable[..., str], recipe_file: Callable[..., Path]) -> None:
    message = refuses("plan", recipe_file("adapter.rank=8", "adapter.alpha=8", "training.lr=0.1"))
    for name in ("r", "lora_alpha", "learning_rate"):
        assert f"did you mean {name!r}?" in message


@pytest.mark.parametrize("value", [10**6, 1025, -1])
def test_threads_that_no_machine_has(refuses: Callable[..., str], recipe_file: Callable[..., Path], value: int) -> None:
    assert "compute.threads" in refuses("plan", recipe_file(f"compute.threads={value}"))


def test_an_interruption_while_fedsa_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedsa.__main__ import main as start

    def interrupt() -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("fedsa.system.process.restart_with_tunables", interrupt)
    with pytest.raises(SystemExit) as end:
        start()
    signal.signal(signal.SIGTERM, before)
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_hub_that_does_not_answer_is_one_line() -> None:
    from fedsa.cli import _OneLine

    log, lines = _OneLine(), []
    for number in range(1, 6):
        for text in ("'timed out' thrown while requesting HEAD https://x", f"Retrying in 1s [Retry {number}/5]."):
            record = logging.LogRecord("hub", logging.WARNING, __file__, 1, text, (), None)
            lines += [record.getMessage()] if log.filter(record) else []
    assert len(lines) == 1
    assert "does not answer" in lines[0]
    assert log.filter(logging.LogRecord("hub", logging.WARNING, __file__, 1, "something else", (), None))
