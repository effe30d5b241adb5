"""Tables with notes below them, as Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsa.texts.escapes import for_latex, for_markdown_cell, for_terminal

__all__ = ["Table", "as_latex", "as_markdown"]


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: above it.
        header: names of columns.
        rows: cells as text.
        notes: below it: what was measured, and how.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


def as_markdown(tables: Sequence[Table]) -> str:
    """Return tables as Markdown."""
    parts = []
    for table in tables:
        lines = [f"## {table.title}", ""] if table.title else []
        if table.rows:
            lines += [
                _markdown_row(table.header),
                f"|{'---|' * len(table.header)}",
                *map(_markdown_row, table.rows),
                "",
            ]
        parts.append("\n".join([*lines, *(f"- {note}" for note in table.notes)]))
    return "\n\n".join(parts) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(for_markdown_cell(cell) for cell in cells)} |"


def as_latex(tables: Sequence[Table]) -> str:
    """Return tables as LaTeX, without packages."""
    parts = []
    for table in tables:
        lines = [f"% {for_terminal(table.title)}"] if table.title else []
        if table.rows:
            body = [f"{' & '.join(map(for_latex, row))} \\\\" for row in (table.header, *table.rows)]
            columns = "l" + "r" * (len(table.header) - 1)
            lines += [f"\\begin{{tabular}}{{{columns}}}", "\\hline", body[0], "\\hline", *body[1:], "\\hline"]
            lines += ["\\end{tabular}"]
        parts.append("\n".join([*lines, *(f"% {for_terminal(note)}" for note in table.notes)]))
    return "\n\n".join(parts) + "\n"
