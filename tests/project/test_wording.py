"""What messages say, looked for in the source: counts with their nouns, options with their names in Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedsa

SOURCE = Path(fedsa.__file__).parent
NOUNS = (
    "adapters|bytes|cells|channels|choices|classes|clients|columns|draws|entries|epochs|examples|files|groups|heads|"
    "images|keys|labels|layers|lines|modules|parameters|parts|passes|questions|rounds|rows|runs|seeds|settings|sites|"
    "steps|tensors|tests|texts|threads|tokens|values|windows"
)
BEHIND = re.compile(rf" (?:[a-z]+ )?({NOUNS})\b")
NO_COUNT = {  # what stands there is a name, a verb follows it, or it is two at least
    "LEVELS",
    "_TRIES",
    "_range(tested)",
    "_range(trained)",
    "by_split",
    "data.split",
    "folder.path / 'environment.json'",
    "limit",  # bytes of a file in a part
    "metadata[0].name",
    "most_bytes",
    "name",
    "needed[-1]",
    "path",
    "per_second",  # a rate
    "self._limit",  # tokens that a model takes
    "split",
    "type(model).__name__",
    "type(module).__name__",
    "where",
}


def counts_with_plurals(source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of f-strings in which a noun in the plural stands behind a value, with that value."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            for value, text in zip(node.values, node.values[1:], strict=False):
                if (
                    isinstance(value, ast.FormattedValue)
                    and value.conversion == -1
                    and isinstance(text, ast.Constant)
                    and BEHIND.match(str(text.value))
                ):
                    yield value.lineno, ast.unparse(value.value)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('f"{len(rows):,} rows"', ["len(rows)"]),
        ('f"of {count} " "training rows"', ["count"]),
        ("f\"{name!r} rows {counted(3, 'row')} of it\"", []),
    ],
)
def test_the_pattern_finds_what_it_should(source: str, found: list[str]) -> None:
    assert [value for _, value in counts_with_plurals(source)] == found


def test_a_count_stands_with_its_noun_by_the_helper() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}, line {line}: {{{value}}}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, value in counts_with_plurals(path.read_text(encoding="utf-8"))
        if value not in NO_COUNT and not value.startswith("counted(")
    ]
    assert wrong == []


def test_the_report_counts_by_the_helper() -> None:
    (path,) = SOURCE.rglob("report.html.jinja")
    template = path.read_text(encoding="utf-8")
    assert 'counted("client")' in template
    assert (
        re.findall(
            rf"(?:length|count) \}}\}}(?: |&nbsp;)(?:{NOUNS}|uploads)\b|\}}\}} (?:bytes|clients|rounds|rows)\b",
            re.sub(r"\}\[split\] \}\} rows|title \}\} rows", "", template),
        )
        == []
    )


NO_OPTION = r"--(set|small|no-binary)\b|pip download|^--[a-z-]+(=|$)"
"""What users write in recipes, sweeps and for pip, words of commands that are put together, and names in CSS."""


def texts_with_options(source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of texts, docstrings left out, that speak of an option and not of its name in Python."""
    tree = ast.parse(source)
    inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    inside |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if node in inside or not (isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)):
            continue
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else ast.unparse(part)[2:-1] for part in parts)
        told = re.sub(r"fedsa [a-z]+ .*--.*", "", text)  # a whole command to copy
        if re.search(r"(?<![\w-])--[a-z]", told) and "in Python" not in text and not re.search(NO_OPTION, text):
            yield node.lineno, text


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('f"give --to " "another one than {to}"', 1),
        ('raise UserError("leave --start out")', 1),
        ('f"give --to (in Python `to`) another folder"', 0),
        ('f"write it with: fedsa data RECIPE --save {path}"', 0),
        ('def f():\n    """Do what --to says."""', 0),
    ],
)
def test_the_pattern_finds_options(source: str, found: int) -> None:
    assert len(list(texts_with_options(f"told = {source}" if source[0] == "f" else source))) == found


def test_what_python_can_raise_names_options_as_python_does() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}, line {line}: {text}"
        for path in sorted(SOURCE.rglob("*.py"))
        if not path.is_relative_to(SOURCE / "commands") and path.name != "cli.py"
        for line, text in texts_with_options(path.read_text(encoding="utf-8"))
    ]
    assert wrong == []
