"""Tables in memory: those of several files in one, or as a data set."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsa.data.reading.base import some
from fedsa.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

__all__ = ["Table", "as_dataset", "merge_tables"]


class Table(NamedTuple):
    """Columns in memory, and their types as ``datasets`` has them."""

    arrow: pa.Table
    features: dict[str, Any]


def as_dataset(table: Table) -> datasets.Dataset:
    """A table as a data set in memory."""
    import datasets
    from datasets.fingerprint import generate_random_fingerprint

    features = datasets.Features(table.features)
    arrow = table.arrow.select(list(features)).cast(features.arrow_schema.remove_metadata())
    # a fingerprint of its own, else datasets hashes every byte to make one
    return datasets.Dataset(
        arrow, info=datasets.DatasetInfo(features=features), fingerprint=generate_random_fingerprint()
    )


def merge_tables(
    tables: Mapping[str, Table],
    names: Mapping[str, str],
    where: str,
    *,
    column: str | None = None,
    unread: Collection[str] = (),
) -> Table:
    """Return the rows of all files in one table, with a column that names the client if asked for.

    A column that is empty in one file takes the type of the others; whole numbers join floats. Nothing else is
    converted: a score that is a number here and a word there is a mistake.

    Args:
        tables: client id (or file) to its rows.
        names: the same to the file's name, for the messages.
        where: the folder, for the messages.
        column: the name of the column to add, with the key of ``tables`` as its value.
        unread: columns that the files have beside these, for the message.

    Raises:
        DataError: columns missing from some files, or types that differ; all of them are listed.
    """
    import datasets
    import pyarrow as pa

    columns = list(dict.fromkeys(name for table in tables.values() for name in table.features))
    problems = [_missing(name, tables, names) for name in columns]
    features: dict[str, Any] = {}
    for name in columns:
        kinds = {client: table.features[name] for client, table in tables.items() if name in table.features}
        common = _common(list(kinds.values()))
        if common is None:
            problems.append(_mixed(name, kinds, names))
        else:
            features[name] = common
    if any(problems):
        listed = "".join(f"\n  {problem}" for problem in problems if problem)
        others = f"\nother columns there: {some(unread)}" if unread else ""
        raise DataError(f"{where}: the files must have the same columns of those that are read:{listed}{others}")
    schema = datasets.Features(features).arrow_schema.remove_metadata()
    parts = []
    for client, table in tables.items():
        part = table.arrow.select(columns).cast(schema)
        if column is not None:
            part = part.append_column(column, pa.array([client] * len(part), pa.string()))
        parts.append(part)
    if column is not None:
        features[column] = datasets.Value("string")
    return Table(pa.concat_tables(parts), features)


def _missing(column: str, tables: Mapping[str, Table], names: Mapping[str, str]) -> str:
    without = [names[client] for client, table in tables.items() if column not in table.features]
    return f"column {column!r} is missing from {some(without)}" if without else ""


def _mixed(column: str, kinds: Mapping[str, object], names: Mapping[str, str]) -> str:
    files: dict[str, list[str]] = {}
    for client, kind in kinds.items():
        name = _name(kind)
        files.setdefault(_family(name) or name, []).append(names[client])
    listed = "; ".join(f"{kind} in {some(members)}" for kind, members in files.items())
    return f"column {column!r} has several types: {listed}"


def _common(kinds: list[Any]) -> Any | None:
    """Return the type that all types can be kept in; None if there is none."""
    import datasets
    import pyarrow as pa

    if all(kind == kinds[0] for kind in kinds):
        return kinds[0]
    if any(isinstance(kind, datasets.ClassLabel | datasets.Image) for kind in kinds):
        present = [kind for kind in kinds if _name(kind) != "null"]
        return present[0] if all(kind == present[0] for kind in present) else None
    schemas = [datasets.Features({"one": kind}).arrow_schema.remove_metadata() for kind in kinds]
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException:
        return None
    return datasets.Features.from_arrow_schema(schema)["one"]


def _family(name: str) -> str | None:
    if name.startswith(("int", "uint")):
        return "int64"
    if name.startswith("float"):
        return "float64"
    return "string" if name in ("string", "large_string", "string_view") else None


def _name(kind: object) -> str:
    return str(getattr(kind, "dtype", kind))
