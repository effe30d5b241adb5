"""Files written behind, and read ahead of, the one thread that trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Generic, TypeVar, final

from fedsa.store.files import remove, write_atomically

__all__ = ["ReadAhead", "WriteBehind"]

_WRITERS = 4
_MOST_WRITING = 8  # files that are not written yet: their content is in memory
_READERS = 2
_AHEAD = 4  # reads that nobody has asked for yet

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@final
class WriteBehind:
    """Writes and removes files in threads. Whoever needs it to have happened calls `settle`.

    Several at once, because a disk that is asked to keep many files safe at the same time does it in one go.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_WRITERS, "fedsa-write")
        self._writing: dict[Path, Future[None]] = {}
        self._removing: dict[Path, Future[None]] = {}

    def write(self, path: Path, content: Callable[[], bytes]) -> None:
        """Write a file, whole or not at all, some time before `settle` returns.

        It begins when an earlier write to the path, or its removal, has ended: the later one stands.

        Args:
            path: where to.
            content: called in the thread that writes.

        Raises:
            UserError: an earlier write failed.
        """
        self._finish(path)
        while self._writing:
            oldest = next(iter(self._writing))
            if len(self._writing) < _MOST_WRITING and not self._writing[oldest].done():
                break
            self._writing.pop(oldest).result()
        self._writing[path] = self._threads.submit(lambda: write_atomically(path, content()))

    def remove(self, path: Path) -> None:
        """Remove a file some time before `settle` returns; after it is written, where it still is to be.

        Raises:
            UserError: it could not be written.
        """
        self._finish(path)
        self._removing[path] = self._threads.submit(remove, path)

    def wait(self, path: Path) -> None:
        """Return when a file can be read, if it was being written; any thread may ask.

        Raises:
            UserError: it could not be written.
        """
        future = self._writing.get(path)
        if future is not None:
            future.result()

    def settle(self) -> None:
        """Return when every file is safe on the disk, or gone.

        Raises:
            UserError: one could not be written or removed.
        """
        while self._writing:
            self._writing.pop(next(iter(self._writing))).result()
        while self._removing:
            self._removing.pop(next(iter(self._removing))).result()

    def _finish(self, path: Path) -> None:
        """Return when what was asked for a path before has been done."""
        for pending in (self._writing, self._removing):
            if path in pending:
                pending.pop(path).result()

    def close(self) -> None:
        """Give up what has not begun to be written, and return when no thread is at work any more."""
        for future in self._writing.values():
            future.cancel()
        self._threads.shutdown()


@final
class ReadAhead(Generic[K, T]):
    """Reads in threads what will be asked for, a few things at a time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_READERS, "fedsa-read")
        self._coming: deque[K] = deque()
        self._begun: dict[K, Future[T]] = {}

    def expect(self, keys: Iterable[K], read: Callable[[K], T]) -> None:
        """Begin to read things, in the order in which they will be asked for; forget what was expected before."""
        self.forget()
        self._coming.extend(keys)
        self._go_on(read)

    def get(self, key: K, read: Callable[[K], T]) -> T:
        """Return a thing: read already, being read, or read now if nobody expected it."""
        future = self._begun.pop(key, None)
        self._go_on(read)
        return read(key) if future is None else future.result()

    def forget(self) -> None:
        """Expect nothing more, and return when nothing is being read."""
        self._coming.clear()
        wait([future for future in self._begun.values() if not future.cancel()])
        self._begun.clear()

    def close(self) -> None:
        """Expect nothing more, and return when no thread reads any more."""
        self.forget()
        self._threads.shutdown()

    def _go_on(self, read: Callable[[K], T]) -> None:
        while self._coming and len(self._begun) < _AHEAD:
            key = self._coming.popleft()
            self._begun[key] = self._threads.submit(read, key)
