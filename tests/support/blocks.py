"""The code blocks of the docs: where they are, and what is said above them for tests.

A block is checked by its language, unless a comment in the line above it, which readers do not see, says otherwise::

    <!-- not run: it needs a cluster -->
    <!-- run by: tests/project/test_docs.py::test_method_of_the_tutorial_works -->
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.repository import ROOT

__all__ = ["Block", "Command", "blocks_of", "commands_of", "pages"]

_FENCE = re.compile(r"^ *(?P<fence>`{3,}|~{3,}) *(?P<language>[\w+-]*).*$")
_NOTE = re.compile(r"^ *<!-- (?P<kind>not run|run by): (?P<what>\S.*\S) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its file, below the repository.
        line: of its fence, from 1.
        language: what stands behind the fence; empty where nothing does.
        text: what is in it.
        reason: why it is not run.
        test: the test that runs it, as pytest names it.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str = ""
    test: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a shell: its words, and the variables that are set for it alone."""

    words: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)


def pages() -> list[Path]:
    """Every page that readers are given."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(text: str, page: str = "page.md") -> Iterator[Block]:
    """Yield a page's blocks in their order. An unfinished one ends with the page."""
    lines = text.splitlines()
    fence, start, language, body, note = "", 0, "", [], None
    for number, line in enumerate([*lines, ""], start=1):
        found = _FENCE.match(line)
        if not fence and found:
            fence, language, start, body = found["fence"], found["language"], number, []
            note = _NOTE.match(lines[number - 2]) if number > 1 else None
        elif fence and ((found and line.strip().startswith(fence) and not found["language"]) or number > len(lines)):
            said = {"reason" if note["kind"] == "not run" else "test": note["what"]} if note else {}
            yield Block(page, start, language, textwrap.dedent("\n".join(body)) + "\n", **said)
            fence = ""
        elif fence:
            body.append(line)


def commands_of(text: str, known: dict[str, str] | None = None) -> Iterator[Command]:
    """Yield the commands of a shell's block, one by one; variables that it sets are filled in and added to ``known``.

    It knows what the docs use: comments, quotes, lines that go on, ``&&``, ``|``, ``NAME=VALUE`` and ``$NAME``.
    """
    known = {} if known is None else known
    for line in text.replace("\\\n", " ").splitlines():
        reader = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        reader.whitespace_split = True
        words: list[str] = []
        for word in [*reader, "&&"]:
            if word not in ("&&", "|", ";"):
                whole = word.removeprefix("$")
                words += shlex.split(known[whole]) if word != whole and whole in known else [word]
                continue
            variables: dict[str, str] = {}
            while words and re.match(r"^[A-Z_]+=", words[0]):
                name, _, value = words.pop(0).partition("=")
                variables[name] = value
            if words:
                yield Command(tuple(words), variables)
            else:
                known |= variables
            words = []
