"""A run folder that is moved, deleted or replaced while it is written; folders in it that are links; a full disk."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import fedsa
from fedsa.errors import RunFolderError, UserError
from fedsa.federation import Federation
from fedsa.recipe import Recipe
from fedsa.runs.export import export
from fedsa.store import RunFolder


class Disturbs(fedsa.Callback):
    """Does something to the run's folder once a round is safe."""

    def __init__(self, disturb: Callable[[Path], None], after: int) -> None:
        self._disturb, self._after = disturb, after

    def on_run_begin(self, run: Path, recipe: Recipe, clients: Sequence[str], finished_rounds: int) -> None:
        self._run = run

    def on_round_end(
        self, round: int, lines: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None
    ) -> None:
        if round == self._after:
            self._disturb(self._run)


def move(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def delete(run: Path) -> None:
    shutil.rmtree(run)


def replace(run: Path) -> None:
    move(run)
    run.mkdir()


@pytest.mark.run
@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("disturb", [move, delete, replace])
def test_a_folder_that_goes_while_it_is_written_is_told_in_one_line(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, disturb: Callable[[Path], None], after: int
) -> None:
    federation = Federation.from_recipe(tiny_recipe("rounds=2"))
    with pytest.raises(RunFolderError, match="was moved, deleted or replaced while it was being written") as caught:
        fedsa.run(federation, tmp_path / "run", callbacks=[Disturbs(disturb, after)])
    assert len(str(caught.value).splitlines()) == 1
    left = tmp_path / "run"
    assert not left.exists() or not list(left.rglob("*.safetensors")), "nothing is begun anew in its place"
    if disturb is not delete:
        (tmp_path / "run").rmdir() if disturb is replace else None
        (tmp_path / "elsewhere").rename(tmp_path / "run")
        again = Federation.from_recipe(tiny_recipe("rounds=2"))
        assert fedsa.resume(again, tmp_path / "run").summary["rounds"] == 2


@pytest.mark.run
@pytest.mark.parametrize("name", ["server", "clients"])
def test_a_folder_of_a_run_that_is_a_link_is_refused_and_nothing_behind_it_changes(
    tiny_recipe: Callable[..., Recipe], finished_run: Path, tmp_path: Path, name: str
) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(finished_run, run)
    (run / name).rename(outside)
    (run / name).symlink_to(outside, target_is_directory=True)
    before = {path: path.read_bytes() for path in sorted(outside.rglob("*")) if path.is_file()}
    with pytest.raises(UserError, match=f"{name}.* link"):
        RunFolder.open(run, write=True)
    assert len(export(run, tmp_path / "to")) == 3, "what is read only is checked by its hash, wherever it lies"
    assert {path: path.read_bytes() for path in sorted(outside.rglob("*")) if path.is_file()} == before


@pytest.mark.run
def test_an_export_of_all_clients_on_a_full_disk_can_be_repeated(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    save_file, calls = safetensors.torch.save_file, []

    def full(*arguments: Any, **given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_file(*arguments, **given)

    with monkeypatch.context() as patch:
        patch.setattr("peft.peft_model.safe_save_file", full)
        with pytest.raises((UserError, OSError), match=r"[Nn]o space|full"):
            export(finished_run, tmp_path / "all")
    assert len(calls) == 2
    folders = export(finished_run, tmp_path / "all")
    assert len(folders) == 3
    others = export(finished_run, tmp_path / "others")
    for one, other in zip(folders, others, strict=True):
        weights = "adapter_model.safetensors"
        assert (one / weights).read_bytes() == (other / weights).read_bytes()
