"""Record all that passes between the sites and the server in a whole run, and search it for what must not leave a site.

    python benchmarks/capture.py [--recipe quickstart] [--sites 3] [--set rounds=4] [--keep DIR]

The parties run as they always do, with TLS; the proxy between them has the startup kits of this federation alone and
opens it. What the engine wraps messages in is taken off: HTTP's upgrade to a WebSocket, and its frames, whose bytes are
masked on their way to the server. Then every position of what is left is compared to

- the tensors that each client keeps after each round, and is tested with at the end: B, head, the optimiser's state,
  32 bytes at a time (8 numbers), the last 32 too; windows with fewer than 4 different numbers say nothing and are left
  out, and so are tensors that are shorter;
- the text of each row, if it has 8 characters, and each word of at least 12 in it.

None may be found. The control is A, which must be found: every window of every client's A after every round. The exit
code is 1 if either fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from proxy import Proxy, free_port
from safetensors.numpy import load_file

from fedsa.callbacks import Callback
from fedsa.commands.shared.recipe import recipe_of_command
from fedsa.data.portions import read_portion
from fedsa.deploy.local import SITES, deploy_local
from fedsa.recipe import Recipe

WINDOW, FEWEST, LONG_WORD, SHORTEST_TEXT = 32, 4, 12, 8
_HEAD = 8  # bytes by which windows are looked up


@dataclass
class Found:
    """What came of the search for one kind of thing.

    Attributes:
        of: how many windows or texts were searched for.
        trivial: how many were not, since they say nothing.
        found: those that were found.
    """

    of: int = 0
    trivial: int = 0
    found: set[bytes] = field(default_factory=set)


class _Keep(Callback):
    """Keeps the files of all clients' states of every round; a site itself soon needs only some of them."""

    def __init__(self, sites: Path, place: Path) -> None:
        self._sites, self._place = sites, place

    def on_round_end(
        self, round: int, lines: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None
    ) -> None:
        """Give each file a second name."""
        self.keep()

    def keep(self) -> None:
        """Give each file a second name."""
        for path in self._sites.rglob("states/**/*.safetensors"):
            place = self._place / path.relative_to(self._sites)
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.hardlink_to(path)


def record(recipe: Recipe, sites: Sequence[str], folder: Path) -> None:
    """Run a federation, and leave in a folder its ``run``, what has passed (``wire``) and all states (``states``).

    Args:
        recipe: what it runs.
        sites: their names.
        folder: is there, and empty.
    """
    listen, out = free_port(), folder / "run"
    keep = _Keep(out / SITES, folder / "states")
    with Proxy(listen, kits=out / "engine" / "kits", record=folder / "wire") as proxy:
        deploy_local(recipe, out, sites, port=proxy.port, listen=listen, callbacks=[keep])
    keep.keep()  # what the clients were tested with


def unwrapped(folder: Path) -> bytes:
    """All that was recorded, without HTTP and WebSocket; a line break between two connections.

    Raises:
        ValueError: something else than that was recorded.
    """
    return b"\n".join(b"".join(_payloads(path.read_bytes(), path)) for path in sorted(folder.iterdir()))


def _payloads(content: bytes, path: Path) -> Iterator[bytes]:
    """The payloads of the frames of one direction of a WebSocket (RFC 6455)."""
    head, _, rest = content.partition(b"\r\n\r\n")
    if not head.startswith((b"GET /f3 ", b"HTTP/1.1 101 ")) or b"permessage-deflate" in head:
        raise ValueError(f"{path} begins with {content[:40]!r}")
    view, place = memoryview(rest), 0
    while place + 2 <= len(view):
        masked, length, place = view[place + 1] & 0x80, view[place + 1] & 0x7F, place + 2
        if length > 125:
            size = 2 if length == 126 else 8
            length, place = int.from_bytes(view[place : place + size], "big"), place + size
        mask = bytes(view[place : place + 4]) if masked else b""
        place += len(mask)
        payload = np.frombuffer(view[place : place + length], dtype=np.uint8)  # the last one may be cut off
        place += length
        if mask:
            payload = payload ^ np.resize(np.frombuffer(mask, dtype=np.uint8), len(payload))
        yield payload.tobytes()


def windows_of(tensors: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
    """The windows of tensors that are searched for, each once: shape (windows, 32); and how many say nothing."""
    found, trivial = [np.empty((0, WINDOW), dtype=np.uint8)], 0
    for tensor in tensors:
        content = np.frombuffer(np.ascontiguousarray(tensor).tobytes(), dtype=np.uint8)
        if len(content) < WINDOW:
            trivial += 1
            continue
        whole = content[: len(content) // WINDOW * WINDOW].reshape(-1, WINDOW)
        windows = np.concatenate([whole, content[None, -WINDOW:]])
        numbers = np.sort(windows.view(np.uint32), axis=1)
        says = 1 + np.count_nonzero(np.diff(numbers, axis=1), axis=1) >= FEWEST
        trivial += int(np.count_nonzero(~says))
        found.append(windows[says])
    return np.unique(np.concatenate(found), axis=0), trivial


def search_windows(windows: np.ndarray, content: bytes) -> np.ndarray:
    """Which of the windows are somewhere in the content, at any byte of it: their numbers."""
    heads = np.ascontiguousarray(windows[:, :_HEAD]).view(np.uint64).ravel()
    order = np.argsort(heads, kind="stable")
    heads, windows = heads[order], windows[order]
    array, found = np.frombuffer(content, dtype=np.uint8), np.zeros(len(windows), dtype=bool)
    for shift in range(_HEAD) if len(heads) else ():
        words = np.frombuffer(content, dtype=np.uint64, offset=shift, count=max(0, len(content) - shift) // _HEAD)
        places = np.searchsorted(heads, words)
        at, starts = places, shift + _HEAD * np.arange(len(words))
        while len(at):  # once for each window that begins with the same 8 bytes
            same = (at < len(heads)) & (starts + WINDOW <= len(array))
            same[same] = heads[at[same]] == words[(starts[same] - shift) // _HEAD]
            at, starts = at[same], starts[same]
            equal = (array[starts[:, None] + np.arange(WINDOW)] == windows[at]).all(axis=1)
            found[at[equal]] = True
            at = at + 1
    return order[found]


def examine(folder: Path) -> dict[str, Found]:
    """Search what `record` left.

    Returns:
        Of each kind of thing what was searched for and found; of A, which must be found, under ``A``.
    """
    content, by_kind, kinds = unwrapped(folder / "wire"), dict[str, list[np.ndarray]](), dict[str, Found]()
    for path in sorted((folder / "states").rglob("*.safetensors")):
        for name, tensor in load_file(path).items():
            kind = "optimiser's state" if name.startswith("optimizer|") else name.rsplit(":", 2)[1]
            # What a client is tested with has the mean of all A's, in a file of its own: it is no client's.
            if kind != "A" or path.name.startswith("round-"):
                by_kind.setdefault(kind, []).append(tensor)
    for kind, tensors in by_kind.items():
        windows, trivial = windows_of(tensors)
        found = {windows[number].tobytes() for number in search_windows(windows, content)}
        kinds[kind] = Found(len(windows), trivial, found)
    texts = {text for site in (folder / "run" / SITES).iterdir() for text in _texts(site / "rows")}
    words = {word for text in texts for word in text.split() if len(word) >= LONG_WORD}
    for kind, wanted in (("texts of rows", texts), ("long words", words)):
        needles = {text.encode() for text in wanted if len(text) >= SHORTEST_TEXT}
        found = {needle for needle in needles if needle in content}
        kinds[kind] = Found(len(needles), len(wanted) - len(needles), found)
    return kinds


def _texts(folder: Path) -> Iterator[str]:
    """All that is text in the rows of a site."""
    for row in read_portion(folder).table:
        yield from (value for value in row.values() if isinstance(value, str))


def is_as_it_must_be(kinds: Mapping[str, Found]) -> bool:
    """Whether all of A was found, and nothing else."""
    control = kinds["A"]
    return 0 < control.of == len(control.found) and not any(each.found for kind, each in kinds.items() if kind != "A")


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--keep", type=Path, help="an empty folder; what it then has includes the sites' rows and keys")
    arguments = parser.parse_args()
    recipe, _ = recipe_of_command(arguments.recipe, arguments.set)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        record(recipe, [f"site-{number}" for number in range(1, arguments.sites + 1)], folder)
        files = list((folder / "wire").iterdir())
        kinds = examine(folder)
        print(f"{len(files) // 2} connections, {sum(path.stat().st_size for path in files):,} bytes in both directions")
    print("\n| what | searched for | found | say nothing |\n|---|---|---|---|")
    for kind, each in sorted(kinds.items()):
        print(f"| {kind} | {each.of:,} | {len(each.found):,} | {each.trivial:,} |")
    for kind, each in kinds.items():
        if kind != "A" and each.found:
            print(f"{kind}: {sorted(each.found)[:5]}", file=sys.stderr)
    return 0 if is_as_it_must_be(kinds) else 1


if __name__ == "__main__":
    sys.exit(main())
