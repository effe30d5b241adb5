"""A site that is asked nothing says so, once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedsa.deploy.waiting import wait_for_messages


@pytest.mark.parametrize(("last", "lines"), [(None, 1), (-60, 1), (60, 0)], ids=["never", "before", "since"])
def test_a_site_that_is_asked_nothing_says_why_that_may_be(tmp_path: Path, last: int | None, lines: int) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if last is not None:
            (tmp_path / "sent.jsonl").touch()
            moment = (tmp_path / "sent.jsonl").stat().st_mtime + last
            os.utime(tmp_path / "sent.jsonl", (moment, moment))
        if len(slept) == 3:
            raise KeyboardInterrupt

    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        wait_for_messages(tmp_path, told.append, sleep=sleep)
    assert len(told) == lines
    assert all("not on its roster" in line for line in told)
