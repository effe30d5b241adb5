"""``fedsa predict``: what clients' adapters say of new rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedsa.data.asked import AskedRows
    from fedsa.runs.predict import Predicted, Predictor

__all__ = ["command"]

_SHOWN = 60  # characters of a row in a table


def command(
    run: Annotated[Path, typer.Argument(help="A run folder, or the folder of an exported adapter.")],
    file: Annotated[
        str, typer.Argument(help="The rows: a file, a folder, or whatever else data.path may be; -: standard input.")
    ] = "-",
    client: Annotated[
        list[str] | None, typer.Option(help="A client's id (may be given several times), or all.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Write them into this file, .jsonl or .csv.")] = None,
    round: Annotated[str, typer.Option(help="chosen (best on validation) or final.")] = "chosen",
    split: Annotated[str, typer.Option(help="Whose rows, where FILE has several splits.")] = "train",
    base: Annotated[
        str | None, typer.Option(help="Of an exported adapter: its base model, where it is not found by itself.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows that go through the model at once.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line and nothing else.")] = False,
) -> None:
    """Tell what clients' adapters say of new rows; a line of standard input is a text, or a JSON object of columns."""
    import sys

    from fedsa.commands.shared.display import is_quiet, status
    from fedsa.errors import UserError
    from fedsa.system.paths import refuse_unwritable
    from fedsa.texts.escapes import for_terminal, say
    from fedsa.texts.words import counted

    if to is not None:
        if to.suffix.lower() not in (".jsonl", ".csv"):
            raise UserError(f"--to {to}: must end in .jsonl or .csv")
        refuse_unwritable(to, "--to", folder=False)
        if file != "-" and to.exists() and Path(file).exists() and to.samefile(file):
            raise UserError(f"--to {to} is the file of the rows: give another one")

    def note(text: str) -> None:
        if not is_quiet():
            print(for_terminal(text), file=sys.stderr, flush=True)

    with status("loading libraries") as tell:
        tell("loading libraries")
        from fedsa.data.asked import asked_of_lines
        from fedsa.runs.predict import Predictor

        predictor = Predictor.open(run, round=round, base=base, on_progress=tell)
        clients = predictor.chosen(client)
        if file == "-" and sys.stdin.isatty():
            note("rows from here: a text or a JSON object a line, then Ctrl-D (on Windows Ctrl-Z)")
        asked = asked_of_lines(sys.stdin, predictor.settings) if file == "-" else predictor.read(file, split=split)
        notes = [*predictor.notes]
        said = predictor.predict(asked, client=clients, batch_size=batch_size, on_note=notes.append)
        for text in notes:
            note(text)
        if to is not None or not json:
            said = iter(list(said))
    if to is not None:
        _write(to, said)
        if is_quiet():
            say(str(to))
        note(f"{counted(len(asked.table), 'row')}, {counted(len(clients), 'client')}: {to}")
    elif json:
        for each in said:
            print(_line(each), flush=True)
    else:
        _show(predictor, asked, said)


def _line(said: Predicted) -> str:
    import json

    from fedsa.texts.escapes import for_json

    return for_json(json.dumps(said.as_dict(), ensure_ascii=False))


def _write(path: Path, said: Iterable[Predicted]) -> None:
    """Write predictions into a file, whole or not at all."""
    from fedsa.store import write_atomically

    lines = (f"{_line(each)}\n" for each in said) if path.suffix.lower() == ".jsonl" else _csv_lines(said)
    write_atomically(path, "".join(lines).encode())


def _csv_lines(said: Iterable[Predicted]) -> Iterator[str]:
    """Yield a CSV file's lines: a column for each class's probability, and one for all else that has a name."""
    import csv
    import io
    import json

    from fedsa.texts.escapes import for_csv

    def cell(value: Any) -> str:
        if isinstance(value, list | dict):
            return json.dumps(value, ensure_ascii=False)
        return for_csv(str(value)) if isinstance(value, str) else "" if value is None else str(value)

    rows = [
        (each, {f"probability of {name}": own for name, own in (each.probabilities or {}).items()}) for each in said
    ]
    chances = list(dict.fromkeys(name for _, own in rows for name in own))
    if any(list(own) != chances for _, own in rows):  # choices that differ from row to row
        chances = []
    more = list(dict.fromkeys(name for each, _ in rows for name in each.about))
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["client", "row", "prediction", *map(cell, chances), *more])
    for each, own in rows:
        told = [each.client, each.row, each.prediction, *(own[name] for name in chances)]
        table.writerow([cell(value) for value in (*told, *(each.about.get(name) for name in more))])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _show(predictor: Predictor, asked: AskedRows, said: Iterable[Predicted]) -> None:
    """Print predictions as a table for people."""
    from fedsa.commands.shared.display import print_table
    from fedsa.texts.escapes import say
    from fedsa.texts.words import cut

    columns = predictor.settings.asked_columns
    rows: list[list[str]] = []
    last = -1
    for each in said:
        row = asked.table[each.row] if each.row != last else {}
        shown = " | ".join(_brief(row[name]) for name in columns) if row else ""
        rows.append([str(each.row) if row else "", cut(shown, _SHOWN), each.client, _told(each), _chance(each)])
        last = each.row
    header = ["row", "text", "client", "prediction", "probability"]
    kept = [place for place in range(len(header)) if place != 4 or any(row[4] for row in rows)]
    print_table([header[place] for place in kept], [[row[place] for place in kept] for row in rows], right_from=4)
    say(f"\nround {predictor.round} of {predictor.path}")


def _brief(value: Any) -> str:
    """Return a cell of a row in one line."""
    import json

    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, str) and value.startswith('[{"role":'):  # turns, as they are read
        value = " | ".join(turn["content"] for turn in json.loads(value))
    return value.replace("\n", " ") if isinstance(value, str) else "" if value is None else _name(value)


def _name(value: Any) -> str:
    """Return what is to be seen of a picture."""
    return str(getattr(value, "filename", "") or f"<{type(value).__name__}>").rpartition("/")[2]


def _told(said: Predicted) -> str:
    """Return a prediction in one line."""
    value = said.prediction
    if isinstance(value, list):
        return " ".join(tag or "-" for tag in value)
    return f"{value:.4g}" if isinstance(value, float) else value


def _chance(said: Predicted) -> str:
    """Return the probability of what is said, where it is known."""
    return "" if not said.probabilities else f"{said.probabilities[str(said.prediction)]:.2f}"
