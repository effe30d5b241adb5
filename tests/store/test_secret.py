"""The secret that noise is made from: drawn once, kept through a crash, readable by its owner alone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fedsa.errors import RunFolderError, UserError
from fedsa.store.secret import forget_secret, secret_in


def test_it_is_drawn_once_and_differs_from_folder_to_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = secret_in(tmp_path / "one")
    assert len(first) == 32
    assert secret_in(tmp_path / "one") == first
    assert secret_in(tmp_path / "two") != first
    assert stat.S_IMODE((tmp_path / "one" / "privacy.secret").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["privacy.secret"]


def test_half_a_write_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / ".privacy.secret.partial").write_bytes(b"half")
    assert len(secret_in(tmp_path)) == 32
    assert [path.name for path in tmp_path.iterdir()] == ["privacy.secret"]


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "privacy.secret").write_bytes(b"short")
    with pytest.raises(RunFolderError, match=r"privacy\.secret is damaged \(its content does not fit its hash\)"):
        secret_in(tmp_path)


@pytest.mark.parametrize("place", [0, 31, 32, 63])
def test_a_changed_bit_is_noticed(tmp_path: Path, place: int) -> None:
    secret_in(tmp_path)
    content = bytearray((tmp_path / "privacy.secret").read_bytes())
    content[place] ^= 4
    (tmp_path / "privacy.secret").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"privacy\.secret is damaged"):
        secret_in(tmp_path)


def test_one_of_before_there_were_hashes_is_taken(tmp_path: Path) -> None:
    (tmp_path / "privacy.secret").write_bytes(b"s" * 32)
    assert secret_in(tmp_path) == b"s" * 32


def test_it_is_gone_when_no_noise_is_needed_any_more(tmp_path: Path) -> None:
    secret_in(tmp_path)
    forget_secret(tmp_path)
    forget_secret(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_be_written_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        secret_in(tmp_path / "missing")
