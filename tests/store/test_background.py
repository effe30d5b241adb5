"""Files written behind and read ahead: bounded, in order, and no error is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedsa.errors import UserError
from fedsa.store import background
from fedsa.store.background import ReadAhead, WriteBehind
from support.moments import WhenAskedFor


@pytest.fixture
def writes():
    made = WriteBehind()
    yield made
    made.close()


@pytest.fixture
def reads():
    made: ReadAhead = ReadAhead()
    yield made
    made.close()


def test_what_is_written_is_there_when_it_is_settled(writes: WriteBehind, tmp_path: Path) -> None:
    for number in range(20):
        writes.write(tmp_path / str(number), partial(bytes, [number]))
    writes.settle()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {str(n): bytes([n]) for n in range(20)}


def test_of_several_writes_to_one_path_the_last_one_stands(writes: WriteBehind, tmp_path: Path) -> None:
    for number in range(50):
        writes.write(tmp_path / "one", partial(bytes, [number]))
    writes.settle()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"one": bytes([49])}


def test_a_file_is_as_the_last_thing_that_was_asked_for_it(writes: WriteBehind, tmp_path: Path) -> None:
    path = tmp_path / "one"
    for number in range(25):
        writes.write(path, partial(bytes, [number]))
        writes.remove(path)
        writes.write(path, partial(bytes, [100 + number]))
    writes.settle()
    assert path.read_bytes() == bytes([124])
    writes.remove(path)
    writes.settle()
    assert not path.exists()


def test_what_is_removed_is_gone_when_it_is_settled_or_the_end_comes(tmp_path: Path) -> None:
    for end in ("settle", "close"):
        writes = WriteBehind()
        for number in range(20):
            (tmp_path / str(number)).touch()
        for number in range(25):
            writes.remove(tmp_path / str(number))
        getattr(writes, end)()
        assert not list(tmp_path.iterdir())
        writes.close()


def test_a_file_that_cannot_be_removed_is_told(writes: WriteBehind, tmp_path: Path) -> None:
    writes.remove(tmp_path)  # a folder
    with pytest.raises(UserError, match=f"cannot write {tmp_path}"):
        writes.settle()


class AtOnce(WhenAskedFor):
    """A pool of threads that are infinitely fast: a thing is done when it is begun."""

    def submit(self, do: Callable[..., Any], *arguments: Any) -> Any:
        result = do(*arguments)
        return SimpleNamespace(done=lambda: True, cancel=lambda: False, result=lambda: result)


def test_the_one_thread_waits_for_slow_disks_only_when_much_is_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[str] = []
    monkeypatch.setattr(background, "ThreadPoolExecutor", WhenAskedFor)
    monkeypatch.setattr(background, "write_atomically", lambda path, content: finished.append(path.name))
    writes, waiting = WriteBehind(), []
    for number in range(40):
        writes.write(tmp_path / str(number), bytes)
        waiting.append(number + 1 - len(finished))
    assert waiting == [min(number + 1, 8) for number in range(40)]
    writes.settle()
    assert finished == [str(number) for number in range(40)], "the oldest is waited for"


def test_what_is_written_already_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "ThreadPoolExecutor", AtOnce)
    writes = WriteBehind()
    for number in range(20):
        writes.write(tmp_path / str(number), bytes)
        assert len(writes._writing) == 1


def test_an_error_comes_with_a_later_write_or_at_the_latest_when_all_is_settled(
    writes: WriteBehind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(background, "write_atomically", full)
    writes.write(tmp_path / "only", bytes)
    with pytest.raises(UserError, match="the disk is full"):
        writes.wait(tmp_path / "only")
    with pytest.raises(UserError, match="the disk is full"):
        writes.settle()
    many = (writes.write(tmp_path / str(number), bytes) for number in range(9))
    with pytest.raises(UserError, match="the disk is full"):
        list(many)


def test_after_the_end_no_thread_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, one_has_begun, begun, finished = threading.Event(), threading.Semaphore(0), [], []

    def slow(path: Path, content: bytes) -> None:
        begun.append(path)
        one_has_begun.release()
        may_go_on.wait()
        finished.append(path)

    class Slow(ThreadPoolExecutor):
        def shutdown(self, *arguments: Any, **options: Any) -> None:
            may_go_on.set()  # what is to be given up must be given up by now
            super().shutdown(*arguments, **options)

    monkeypatch.setattr(background, "ThreadPoolExecutor", Slow)
    monkeypatch.setattr(background, "write_atomically", slow)
    writes = WriteBehind()
    for number in range(8):
        writes.write(tmp_path / str(number), bytes)
    assert all(one_has_begun.acquire(timeout=60) for _ in range(4))
    writes.close()
    assert sorted(finished) == sorted(begun)
    assert len(finished) == 4, "what had not begun is given up"


def test_what_is_expected_is_read_before_it_is_asked_for_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "ThreadPoolExecutor", AtOnce)
    reads: ReadAhead = ReadAhead()
    begun: list[int] = []

    def read(key: int) -> int:
        begun.append(key)
        return key * key

    reads.expect(range(100), read)
    assert begun == [0, 1, 2, 3], "a few at a time"
    for key in range(100):
        assert reads.get(key, read) == key * key
        assert begun == list(range(min(key + 5, 100))), "one more for each that is taken, and nothing twice"


def test_threads_read_what_is_expected(reads: ReadAhead) -> None:
    begun: list[int] = []

    def read(key: int) -> int:
        begun.append(key)
        return key * key

    reads.expect(range(100), read)
    assert [reads.get(key, read) for key in range(100)] == [key * key for key in range(100)]
    assert sorted(begun) == list(range(100)), "nothing is read twice"


def test_what_nobody_expected_is_read_all_the_same(reads: ReadAhead) -> None:
    reads.expect([1, 2, 3], str)
    assert [reads.get(key, str) for key in (7, 2, 1, 3, 1)] == ["7", "2", "1", "3", "1"]
    reads.expect([4, 5], str)
    reads.forget()
    assert reads.get(5, str) == "5"


def test_an_error_in_reading_comes_to_whoever_asks(reads: ReadAhead) -> None:
    def fail(key: int) -> int:
        raise UserError(f"{key} is damaged")

    reads.expect([1, 2], fail)
    with pytest.raises(UserError, match="1 is damaged"):
        reads.get(1, fail)
    with pytest.raises(UserError, match="2 is damaged"):
        reads.get(2, fail)
