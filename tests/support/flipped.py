"""Files in which one bit is flipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["flipped"]


def flipped(folder: Path) -> Iterator[Path]:
    """Yield each file of a folder with a bit flipped: first, early, in the middle, last; then it is mended."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    assert files
    for path in files:
        content = path.read_bytes()
        for place in (0, 40, len(content) // 2, len(content) - 1):
            path.write_bytes(bytes(byte ^ (place == number) for number, byte in enumerate(content)))
            yield path
        path.write_bytes(content)
