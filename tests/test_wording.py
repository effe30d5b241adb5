"""A count and its noun go together by `fedsa.words.counted`, so that nothing speaks of 1 rows."""

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
    "_LEVELS",
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
    template = (SOURCE / "report" / "report.html.jinja").read_text(encoding="utf-8")
    assert 'counted("client")' in template
    assert (
        re.findall(
            rf"(?:length|count) \}}\}}(?: |&nbsp;)(?:{NOUNS}|uploads)\b|\}}\}} (?:bytes|clients|rounds|rows)\b",
            re.sub(r"\}\[split\] \}\} rows|title \}\} rows", "", template),
        )
        == []
    )
