"""Interruptions: whatever moment they come at, inside a write too, a resumed run ends in the same bytes."""

from __future__ import annotations

import builtins
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import pytest
import torch
from safetensors.torch import load

import fedsa
from fedsa.callbacks import Callback
from fedsa.engines.beginning import begin
from fedsa.engines.simulator import simulate
from fedsa.errors import RunFolderError
from fedsa.federation import Federation
from fedsa.recipe import dump_recipe, parse_recipe
from fedsa.store import Progress, RunFolder, background
from fedsa.store.files import load_tensors, save_tensors
from support.moments import Moment, WhenAskedFor
from support.tiers import one_of_each

pytestmark = pytest.mark.run

VARIANTS = {
    "plain": ["rounds=2"],
    "optimizer state kept": ["rounds=2", "training.optimizer_state=keep"],
    "clients sampled": ["rounds=4", "fraction_train=0.4"],
    "clients sampled for both, half the bytes": [
        "rounds=4",
        "fraction_train=0.67",
        "evaluation.fraction_evaluate=0.34",
        "evaluation.fit_head_epochs=2",
        "wire_dtype=bf16",
    ],
    "class priors, a part of B pooled": ["rounds=3", "fraction_train=0.67", "algorithm=partial_pooling"],
    "every second round evaluated": ["rounds=4", "evaluation.evaluate_every=2"],
    "fedit, vera, evaluated twice": [
        "rounds=2",
        "algorithm=fedit",
        "adapter={variant='vera', r=4, target_modules=['query']}",
        "evaluation.evaluate_after=both",
    ],
    "lora_xs, frozen at the base's directions": [
        "rounds=2",
        "algorithm=fedit",
        "adapter={variant='lora_xs', r=2, target_modules=['query', 'output.dense']}",
    ],
    "pissa, whose base has changed": [
        "rounds=2",
        "adapter={variant='pissa', r=2, target_modules=['query', 'output.dense']}",
    ],
    "an initial A of each client's own": [
        "rounds=2",
        "algorithm=local",
        "adapter={r=2, target_modules=['query'], own_initial_a=true}",
    ],
    "nothing kept at clients, one held out, a global model": [
        "rounds=2",
        "personal_state=reconstruct",
        "reconstruction.steps=2",
        "holdout_clients=0.34",
        "adaptation={steps=2, start='mean', share_personal=true}",
        "evaluation.global_model=average",
    ],
}


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@final
class _File:
    """A file open for writing, whose every write may be the last, with half of the bytes written."""

    def __init__(self, file: Any, step: Callable[[], bool]) -> None:
        self._file, self._step = file, step

    def write(self, content: Any) -> int:
        if self._step():
            self._file.write(content[: len(content) // 2])
            raise Killed
        return int(self._file.write(content))

    def truncate(self, size: int) -> int:
        if self._step():
            raise Killed
        return int(self._file.truncate(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def killed_at(number: int | None, folder: Path) -> Iterator[list[str]]:
    """Kill whoever makes the ``number``-th change (from 0) below a folder; give the list of the changes made."""
    changes: list[str] = []

    def step(what: str) -> bool:
        changes.append(what)
        return number is not None and len(changes) > number

    def below(path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and Path(os.fspath(path)).is_relative_to(folder)

    def opening(original: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not below(path) or Path(path).name == ".lock" or not set(mode) & set("wax+"):
                return original(path, mode, *args, **kwargs)
            if step(f"open {path}"):
                raise Killed
            return _File(original(path, mode, *args, **kwargs), lambda: step(f"write {path}"))

        return opened

    def changing(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def changed(path: Any, *args: Any, **kwargs: Any) -> Any:
            if below(path) and Path(path).name != ".lock" and step(f"{name} {path}"):
                raise Killed
            return original(path, *args, **kwargs)

        return changed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", opening(builtins.open))
        patch.setattr(io, "open", opening(io.open))
        for name in ("replace", "rename", "unlink", "mkdir"):
            patch.setattr(os, name, changing(name))
        yield changes


def start_or_continue(federation: Federation, path: Path) -> None:
    """Do what a user does: resume, or run again where there is nothing to resume yet."""
    (fedsa.resume if (path / "recipe.toml").exists() else fedsa.run)(federation, path)


TIMES = {"seconds", "train_seconds", "evaluation_seconds", "wall_seconds", "peak_rss_bytes", "interruptions"}
TIMES |= {"metrics_bytes", "metrics_sha256", "sha256"}  # lines with times in them


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def results(path: Path) -> dict[str, Any]:
    """Return every file of a run: tensors and settings byte for byte, numbers without what a clock measured."""
    files: dict[str, Any] = {}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if name == "metrics.jsonl":
            files[name] = [without_times(json.loads(line)) for line in file.read_text().splitlines()]
        elif name in ("state.json", "summary.json"):
            files[name] = without_times(json.loads(file.read_text()))
            files[name].get("files", {}).pop("summary.json", None)  # it has times in it
        elif name == "adapter_config.json":
            config = json.loads(file.read_text())
            files[name] = {**config, "target_modules": sorted(config["target_modules"])}
        elif name == "report.html":
            files[name] = file.stat().st_size > 0
        elif file.is_file() and name != ".lock":
            files[name] = file.read_bytes()
    return files


@pytest.fixture(scope="module")
def federation_of(tiny_recipe: Callable[..., Any]) -> Callable[..., Federation]:
    def make(variant: str) -> Federation:
        return Federation.from_recipe(tiny_recipe("training.local_steps=2", *VARIANTS[variant]))

    return make


def whole_run(federation: Federation, path: Path) -> tuple[dict[str, Any], int]:
    """Run without interruption; return the results and the number of changes made on the disk."""
    with killed_at(None, path) as changes:
        fedsa.run(federation, path)
    return results(path), len(changes)


# What a run keeps differs in these: nothing but tensors, moments too, versions and bf16, a changed base, further files.
KINDS = ("plain", "optimizer state kept", "clients sampled for both, half the bytes")
KINDS += ("pissa, whose base has changed", "nothing kept at clients, one held out, a global model")


@pytest.mark.parametrize(
    ("variant", "stride"),
    [
        *one_of_each(
            [(variant, 3 if variant == "plain" else 17) for variant in VARIANTS],
            lambda variant, _: variant if variant in KINDS else None,
        ),
        pytest.param("plain", 1, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_write_it_resumes_to_the_same_bytes(
    federation_of: Callable[..., Federation], tmp_path: Path, variant: str, stride: int
) -> None:
    federation = federation_of(variant)
    expected, count = whole_run(federation, tmp_path / "whole")
    assert count > 50
    for number in range(0, count, stride):
        path = tmp_path / f"killed-at-{number}"
        with killed_at(number, path) as changes, pytest.raises(Killed):
            fedsa.run(federation, path)
        start_or_continue(federation, path)
        assert results(path) == expected, changes[-1]


def test_the_order_in_which_a_files_tensors_are_read_does_not_matter(
    federation_of: Callable[..., Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors gives another order at each call. A client that was held out is trained on what was read."""
    federation = federation_of("nothing kept at clients, one held out, a global model")
    found = []
    for reverse in (False, True):

        def in_order(content: bytes, reverse: bool = reverse) -> dict[str, torch.Tensor]:
            return dict(sorted(load(content).items(), reverse=reverse))

        monkeypatch.setattr("fedsa.store.files.load", in_order)
        fedsa.run(federation, tmp_path / f"reversed {reverse}")
        found.append(results(tmp_path / f"reversed {reverse}"))
    assert found[0] == found[1]


def test_tensors_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = [f"layer {number:02d}" for number in range(20)]
    save_tensors(tmp_path / "file", {name: torch.zeros(1) for name in reversed(names)}, {})
    assert list(load_tensors(tmp_path / "file")[0]) == names


def test_a_finished_run_has_no_file_that_nobody_needs(
    federation_of: Callable[..., Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files go behind the training; here they go only when somebody waits for it."""
    federation = federation_of("clients sampled for both, half the bytes")  # its last round makes files needless
    fedsa.run(federation, tmp_path / "whole")
    monkeypatch.setattr(background, "ThreadPoolExecutor", WhenAskedFor)
    fedsa.run(federation, tmp_path / "late")
    assert results(tmp_path / "late") == results(tmp_path / "whole")


def test_killed_again_and_again(federation_of: Callable[..., Federation], tmp_path: Path) -> None:
    federation = federation_of("plain")
    expected, _ = whole_run(federation, tmp_path / "whole")
    rng = random.Random(0)
    for attempt in range(4):
        path, kills = tmp_path / f"attempt-{attempt}", 0
        while True:
            try:
                with killed_at(rng.randrange(40), path):
                    start_or_continue(federation, path)
                break
            except Killed:
                kills += 1
        assert kills > 1
        assert results(path) == expected


def test_a_resumed_run_counts_its_interruptions_and_keeps_its_clocks(
    federation_of: Callable[..., Federation], tmp_path: Path
) -> None:
    federation, path = federation_of("plain"), tmp_path / "run"
    _, count = whole_run(federation, tmp_path / "whole")
    with killed_at(count * 3 // 4, path), pytest.raises(Killed):
        fedsa.run(federation, path)
    before = RunFolder.open(path).progress()
    result = fedsa.resume(federation, path)
    assert before is not None
    assert before.round >= 1
    assert result.summary["interruptions"] == 1
    assert result.summary["train_seconds"] > before.train_seconds
    assert result.summary["wall_seconds"] > before.wall_seconds


def test_a_complete_run_is_not_measured_again(federation_of: Callable[..., Federation], tmp_path: Path) -> None:
    federation, path = federation_of("plain"), tmp_path / "run"
    first = fedsa.run(federation, path)
    first.report.unlink()
    again = fedsa.resume(federation, path)
    assert again.summary == first.summary
    assert again.report.exists()


def test_other_settings_are_refused(
    federation_of: Callable[..., Federation], tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    fedsa.run(federation_of("plain"), path)
    other = Federation.from_recipe(tiny_recipe("training.local_steps=2", "rounds=2", "seed=1"))
    with pytest.raises(RunFolderError, match="other settings"):
        fedsa.resume(other, path)


def test_an_interruption_is_counted_before_the_next_round(
    federation_of: Callable[..., Federation], tmp_path: Path
) -> None:
    federation, path = federation_of("plain"), tmp_path / "run"
    stop_after(federation, path, 1)
    for _ in range(2):
        stop_after(federation, path, 1, again=True)
    assert fedsa.resume(federation, path).summary["interruptions"] == 3


# -- another federation ----------------------------------------------------------------------------------------------


class Stop(Callback):
    """A listener that ends the run after a round, or before it trains anyone."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_round_end(self, round: int, lines: Any, validation: Any) -> None:
        if round == self.after:
            raise Killed

    def on_run_begin(self, run: Path, recipe: Any, clients: Any, finished_rounds: int) -> None:
        if finished_rounds >= self.after:
            raise Killed


def stop_after(federation: Federation, path: Path, round: int, *, again: bool = False) -> None:
    with pytest.raises(Killed):
        (fedsa.resume if again else fedsa.run)(federation, path, callbacks=[Stop(round)])


@pytest.fixture
def stopped(federation_of: Callable[..., Federation], tmp_path: Path) -> Path:
    """A run of two rounds that ended after its first."""
    stop_after(federation_of("plain"), tmp_path / "stopped", 1)
    return tmp_path / "stopped"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('algorithm = "fedsa"', 'algorithm = "fedit"'),
        ("learning_rate = 0.01", "learning_rate = 0.02"),
        ("rounds = 2", "rounds = 5"),
        ('column = "site"', 'column = "site"\nmax_examples = 40'),
    ],
)
def test_a_recipe_that_was_edited_is_refused(
    fedsa_command: Callable[..., Any], stopped: Path, old: str, new: str
) -> None:
    recipe = stopped / "recipe.toml"
    text = recipe.read_text(encoding="utf-8")
    assert old in text
    recipe.write_text(text.replace(old, new), encoding="utf-8")
    before = results(stopped)
    outcome = fedsa_command("resume", stopped)
    assert outcome.code == 2
    assert f"{recipe} was changed after it was written, or is of another run: put it back" in outcome.error
    assert results(stopped) == before
    recipe.write_text(text, encoding="utf-8")
    assert fedsa_command("resume", stopped).code == 0


def test_a_federation_of_other_settings_is_told_which(stopped: Path, tiny_recipe: Callable[..., Any]) -> None:
    other = Federation.from_recipe(tiny_recipe("training.local_steps=3", "rounds=2", "share_head=true"))
    with (
        RunFolder.open(stopped, write=True).locked() as folder,
        pytest.raises(RunFolderError, match=r"begun with other settings \(share_head, training.local_steps; see"),
    ):
        simulate(other, folder)


def test_a_run_that_is_older_than_a_setting_goes_on(
    federation_of: Callable[..., Federation], stopped: Path, tmp_path: Path
) -> None:
    """Its recipe has no [robust]: that is the same as the default."""
    federation = federation_of("plain")
    with RunFolder.open(stopped, write=True).locked() as folder:
        text, progress = folder.recipe_text(), folder.progress()
        older = text.replace('[robust]\nkind = "none"\n\n', "")
        assert len(older) < len(text)
        assert progress is not None
        folder.write_recipe(older)
        progress.fingerprints["recipe"] = hashlib.sha256(older.encode()).hexdigest()
        folder.commit(progress)
    resumed, whole = fedsa.resume(federation, stopped), fedsa.run(federation, tmp_path / "whole")
    assert resumed.summary["test"] == whole.summary["test"]


@pytest.mark.parametrize(("trainer", "most"), [("auto", 0.0), ("sequential", 1e-6)])
def test_another_machines_own_settings_are_no_obstacle(
    tiny_recipe: Callable[..., Any], tiny_model_without_dropout: Path, tmp_path: Path, trainer: str, most: float
) -> None:
    """Each trainer draws the base model's dropout in its own way, and AdamW makes a whole step of a mere rounding."""
    common = ("algorithm=fedit", "rounds=2", "training.local_steps=2", "training.optimizer=sgd")
    common += ("training.learning_rate=0.5", f"model.path='{tiny_model_without_dropout.as_posix()}'")
    own = ("evaluation.batch_size=5", "compute.memory_budget=1", f"training.trainer={trainer}")
    federation, other = (Federation.from_recipe(tiny_recipe(*common, *settings)) for settings in ((), own))
    stop_after(federation, tmp_path / "stopped", 1)
    assert fedsa.resume(other, tmp_path / "stopped").summary["interruptions"] == 1
    fedsa.run(federation, tmp_path / "whole")
    tensors, expected = (
        RunFolder.open(tmp_path / name).server_states.load_server(2)[0] for name in ("stopped", "whole")
    )
    for key, tensor in tensors.items():
        assert float((tensor - expected[key]).abs().max()) <= most, key
        assert float((expected[key] - federation.model.initial[key]).abs().max()) > 1e-3


def test_a_run_of_before_there_were_agreements_goes_on_and_is_checked(
    federation_of: Callable[..., Federation],
    tiny_recipe: Callable[..., Any],
    stopped: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has = RunFolder.has
    monkeypatch.setattr(RunFolder, "has", lambda folder, name: name != "agreement.json" and has(folder, name))
    other = Federation.from_recipe(tiny_recipe("training.local_steps=3", *VARIANTS["plain"]))
    with pytest.raises(RunFolderError, match=r"begun with other settings \(training.local_steps; see"):
        fedsa.resume(other, stopped)
    assert fedsa.resume(federation_of("plain"), stopped).summary["interruptions"] == 1


def test_another_base_model_is_refused(federation_of: Callable[..., Federation], stopped: Path) -> None:
    other = federation_of("plain")
    with torch.no_grad():
        next(tensor for name, tensor in other.model.model.named_parameters() if "word_embeddings" in name)[3, 3] += 1e-6
    with pytest.raises(RunFolderError, match="the base model's weights are not those that the run began with"):
        fedsa.resume(other, stopped)


def test_another_adapter_config_is_refused(federation_of: Callable[..., Federation], stopped: Path) -> None:
    other = federation_of("plain")
    other.model.config.lora_alpha += 1
    with pytest.raises(RunFolderError, match="the adapter's PEFT config is not the one that the run began with"):
        fedsa.resume(other, stopped)


def test_other_tensors_are_refused(federation_of: Callable[..., Federation], stopped: Path) -> None:
    lost = federation_of("plain")
    key = max(lost.model.initial)
    lost.model.initial = {k: tensor for k, tensor in lost.model.initial.items() if k != key}
    with pytest.raises(RunFolderError, match=f"the adapter's tensors are not those .*{re.escape(str(key))}"):
        fedsa.resume(lost, stopped)
    other = federation_of("plain")
    other.model.initial = {k: tensor + 1 for k, tensor in other.model.initial.items()}
    with pytest.raises(RunFolderError, match="the initial tensors are not those"):
        fedsa.resume(other, stopped)


def test_training_leaves_the_fingerprints_as_they_are(federation_of: Callable[..., Federation], tmp_path: Path) -> None:
    federation = federation_of("plain")
    fresh = begin(federation, RunFolder.create(tmp_path / "fresh", "")).fingerprints
    fedsa.run(federation, tmp_path / "run")
    assert begin(federation, RunFolder.create(tmp_path / "again", "")).fingerprints == fresh


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["adapter={variant='vera'}"],
        ["adapter={variant='olora'}"],
        ["adapter={variant='ia3'}", "algorithm=fedit"],
        ["adapter.target_modules=all-linear"],
        ["adapter.target_modules=.*query"],
        ["adapter={r=2}", "training={local_epochs=1, max_grad_norm='none'}"],
        ["task.max_length=500", "share_head=true", "callbacks=['tensorboard']"],
        ["compute={}", "algorithm_options={}", "evaluation.evaluate_after=both"],
    ],
    ids=str,
)
def test_a_resolved_recipe_resolves_to_itself(tiny_recipe: Callable[..., Any], settings: list[str]) -> None:
    resolved = dump_recipe(Federation.from_recipe(tiny_recipe(*settings)).recipe)
    again = Federation.from_recipe(parse_recipe(tomllib.loads(resolved)))
    assert dump_recipe(again.recipe) == resolved


# -- missing files ---------------------------------------------------------------------------------------------------


def last_trained(path: Path, round: int) -> dict[str, int]:
    """Return the round of each client's last training up to a round, as ``metrics.jsonl`` tells it."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {line["client"]: line["round"] for line in lines if line["train"] and line["round"] <= round}


SAMPLED = ("rounds=4", "fraction_train=0.4", "training.learning_rate=0.03")


@pytest.mark.parametrize("which", ["last", "chosen"])
def test_a_client_file_that_a_kept_round_needs_is_missed(
    tiny_run: Callable[..., Any], tmp_path: Path, which: str
) -> None:
    run = tiny_run(*SAMPLED)
    path = Path(shutil.copytree(run.folder.path, tmp_path / "run"))
    state = json.loads((path / "state.json").read_text())
    chosen = state["chosen_round"]
    assert 0 < chosen < 4
    needed, other = last_trained(path, 4), last_trained(path, chosen)
    if which == "chosen":
        needed, other = other, needed
    alone = {client: round for client, round in needed.items() if other.get(client) != round}
    assert alone, "a file that the other round does not need"
    for client, round in alone.items():
        about = json.loads((path / "clients.json").read_text())[client]
        file = path / "clients" / about["folder"] / f"round-{round:06d}.safetensors"
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(RunFolderError, match=f"{re.escape(str(file))} is missing"):
            RunFolder.open(path)
        file.write_bytes(content)
        RunFolder.open(path)


def test_a_later_file_will_do_where_an_update_was_lost(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    """The server knows of a training in round 1, the client's file is that of round 2, whose update never came."""
    run = tiny_run()
    path = Path(shutil.copytree(run.folder.path, tmp_path / "run"))

    def server_knows(held: dict[str, int]) -> None:
        with RunFolder.open(path).locked() as folder:
            tensors, versions, slots, about = folder.server_states.load_server(2)
            folder.server_states.save_server(2, tensors, versions, held, slots, about)
            folder.commit(Progress(round=2, chosen_round=2))

    server_knows({"site 0": 1, "site 1": 0, "site 2": 1})
    assert RunFolder.open(path).server_states.client_versions(2) == {"site 0": 1, "site 1": 0, "site 2": 1}
    server_knows({"site 0": 1, "site 1": 2, "site 2": 1})  # but an earlier one will not
    with pytest.raises(RunFolderError, match=r"round-000003.safetensors is missing"):
        RunFolder.open(path)


def test_the_servers_file_says_when_each_client_trained_last(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*SAMPLED)
    chosen = run.summary["chosen_round"]
    for round in (chosen, 4):
        expected = {client: last - 1 for client, last in last_trained(run.folder.path, round).items()}
        assert run.folder.server_states.client_versions(round) == expected
    assert len(run.folder.server_states.client_versions(chosen)) < 3, "a client that had not trained is not in it"


def test_a_folder_that_cannot_be_opened_is_not_kept_locked(stopped: Path) -> None:
    state = (stopped / "state.json").read_bytes()
    (stopped / "state.json").write_text("{}")
    with pytest.raises(RunFolderError) as kept:  # with its traceback, so that nothing is collected
        RunFolder.open(stopped, write=True)
    (stopped / "state.json").write_bytes(state)
    RunFolder.open(stopped, write=True).close()
    assert kept.value


# -- real processes --------------------------------------------------------------------------------------------------

LONG = ["rounds=16", "training.local_steps=10"]


@pytest.fixture(scope="module")
def long_run(tiny_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted run of a second or two comes to."""
    path = tmp_path_factory.mktemp("long") / "run"
    fedsa.run(Federation.from_recipe(tiny_recipe(*LONG)), path)
    return results(path)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("signal_", "event", "name"),
    [
        (signal.SIGKILL, "os.rename", "*/clients/*/round-000002.safetensors"),
        pytest.param(signal.SIGKILL, "open", "*/server/.round-000002.safetensors.partial", marks=pytest.mark.slow),
        (signal.SIGINT, "os.rename", "*/server/round-000002.safetensors"),
        pytest.param(signal.SIGTERM, "os.rename", "*/server/round-000002.safetensors", marks=pytest.mark.slow),
    ],
    ids=["killed while clients train", "killed inside a write", "Ctrl-C", "a service that is stopped"],
)
def test_a_process_that_is_stopped(
    fedsa_command: Callable[..., Any],
    recipe_file: Callable[..., Path],
    long_run: dict[str, Any],
    tmp_path: Path,
    signal_: signal.Signals,
    event: str,
    name: str,
) -> None:
    path, moment = tmp_path / "run", Moment(event, name, tmp_path / "moment")
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("fedsa")), "run", str(recipe_file(*LONG)), "--out", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=moment.environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's job ignores it
    )
    with process:
        moment.wait(process)
        process.send_signal(signal_)
        out, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    if signal_ is not signal.SIGKILL:
        assert process.returncode == 130, err
        assert f"go on with: fedsa resume {path}" in out
        assert "finished rounds are saved" in out
    else:
        assert process.returncode == -signal.SIGKILL
    assert not (path / "summary.json").exists()
    outcome = fedsa_command("resume", path)
    assert outcome.code == 0, outcome
    assert results(path) == long_run


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="timers")
@pytest.mark.filterwarnings("ignore")  # a file that was being opened when the signal came
def test_ctrl_c_while_a_checkpoint_is_read_is_no_damage(tmp_path: Path) -> None:
    path, rng, came = tmp_path / "state.safetensors", random.Random(0), 0
    save_tensors(path, {f"tensor {number}": torch.ones(4) for number in range(10)}, {})
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.001 * rng.random())
                while True:
                    load_tensors(path)
            except KeyboardInterrupt:
                came += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert came == 200


def test_the_adapter_config_has_one_order(tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    names = ["query", "key", "value", "attention.output.dense", "intermediate.dense"]
    fedsa.run(Federation.from_recipe(tiny_recipe("rounds=1", f"adapter.target_modules={names}")), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == sorted(names)


def test_the_recipe_in_the_folder_is_the_one_that_resume_reads(
    federation_of: Callable[..., Federation], tmp_path: Path
) -> None:
    federation = federation_of("plain")
    fedsa.run(federation, tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").recipe_text() == dump_recipe(federation.recipe)
