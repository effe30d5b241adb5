"""Put clients' tables together, or say what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedsa.errors import DataError

if TYPE_CHECKING:
    import datasets

__all__ = ["merge_tables"]

_SHOWN = 5


def merge_tables(
    tables: Mapping[str, datasets.Dataset], names: Mapping[str, str], column: str, where: str
) -> datasets.Dataset:
    """Return the rows of all clients in one table, with a column that names the client.

    A column that is empty in one file takes the type of the others; whole numbers join floats. Nothing else is
    converted: a label that is a number here and a word there is a mistake.

    Args:
        tables: client id to its rows.
        names: client id to the file's name, for the messages.
        column: the name of the column to add.
        where: the folder, for the messages.

    Raises:
        DataError: columns missing from some files, or types that differ; all of them are listed.
    """
    import datasets

    columns = list(dict.fromkeys(name for table in tables.values() for name in table.column_names))
    problems = [_missing(name, tables, names) for name in columns]
    features: dict[str, object] = {}
    for name in columns:
        kinds = {client: table.features[name] for client, table in tables.items() if name in table.column_names}
        common = _common(list(kinds.values()))
        if common is None:
            problems.append(_mixed(name, kinds, names))
        else:
            features[name] = datasets.Value(common) if isinstance(common, str) else common
    if any(problems):
        listed = "".join(f"\n  {problem}" for problem in problems if problem)
        raise DataError(f"{where}: the clients' files must have the same columns:{listed}")
    schema = datasets.Features(features)
    parts = []
    for client, table in tables.items():
        part = table.select_columns(columns)
        part = part if part.features == schema else part.cast(schema, load_from_cache_file=False)
        parts.append(part.add_column(column, [client] * len(part)))
    return datasets.concatenate_datasets(parts)


def _missing(column: str, tables: Mapping[str, datasets.Dataset], names: Mapping[str, str]) -> str:
    without = [names[client] for client, table in tables.items() if column not in table.column_names]
    having = [names[client] for client, table in tables.items() if column in table.column_names]
    if not without:
        return ""
    if len(having) < len(without):
        return f"column {column!r} is only in {_some(having)}: remove or rename it there, or add it to the others"
    return f"column {column!r} is missing from {_some(without)}"


def _mixed(column: str, kinds: Mapping[str, object], names: Mapping[str, str]) -> str:
    files: dict[str, list[str]] = {}
    for client, kind in kinds.items():
        name = _name(kind)
        files.setdefault(_family(name) or name, []).append(names[client])
    listed = "; ".join(f"{kind} in {_some(members)}" for kind, members in files.items())
    return f"column {column!r} has several types: {listed}"


def _common(kinds: list[object]) -> object | None:
    """Return the type that all types can be kept in (one of them, or a name); None if there is none."""
    present = [kind for kind in kinds if _name(kind) != "null"]
    if not present:
        return kinds[0]
    if all(kind == present[0] for kind in present):
        return present[0]
    families = {_family(_name(kind)) if type(kind).__name__ == "Value" else None for kind in present}
    if families == {"int64", "float64"}:
        return "float64"
    return families.pop() if len(families) == 1 else None


def _family(name: str) -> str | None:
    if name.startswith(("int", "uint")):
        return "int64"
    if name.startswith("float"):
        return "float64"
    return "string" if name in ("string", "large_string", "string_view") else None


def _name(kind: object) -> str:
    return str(getattr(kind, "dtype", kind))


def _some(files: list[str]) -> str:
    rest = len(files) - _SHOWN
    return ", ".join(files[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
