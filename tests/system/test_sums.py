"""Lists of hashes in folders: as `sha256sum` has them, and not a way out of the folder."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fedsa.system.sums import SUMS, changed_file, file_hash, write_sums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "folder"
    (place / "inner").mkdir(parents=True)
    (place / "a file").write_text("one")
    (place / "inner" / "b").write_bytes(bytes(1000))
    write_sums(place)
    return place


def test_what_was_listed_fits(folder: Path) -> None:
    assert changed_file(folder) is None
    assert changed_file(folder, ["inner/b"]) is None


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_it_is_what_common_tools_read(folder: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, check=True, capture_output=True)


def test_what_was_changed_added_or_lost_is_named(folder: Path) -> None:
    (folder / "new").write_text("x")
    assert changed_file(folder, ["new"]) == folder / SUMS, "it is not in the list"
    (folder / "inner" / "b").write_bytes(bytes(999))
    assert changed_file(folder) == folder / "inner" / "b"
    (folder / "inner" / "b").unlink()
    assert changed_file(folder) == folder / "inner" / "b"


@pytest.mark.parametrize("name", ["../outside", "inner/../../outside", "/etc/hostname"])
def test_no_name_leads_out_of_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_text("secret")
    digest = file_hash(folder.parent / "outside")
    (folder / SUMS).write_text(f"{digest}  {name}\n")
    assert changed_file(folder) == folder / SUMS


def test_a_folder_without_a_list_is_taken_as_it_is(folder: Path) -> None:
    (folder / SUMS).unlink()
    assert changed_file(folder) is None
