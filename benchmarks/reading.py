"""Time and memory of reading tables: one big file, a folder of a thousand clients, a workbook.

    python benchmarks/reading.py csv       # 1,000,000 rows in one CSV; every reading anew, none from a cache
    python benchmarks/reading.py datasets  # the same file by the CSV reader of datasets, first time
    python benchmarks/reading.py clients   # 1,000 CSV files of 100 rows, one for each client
    python benchmarks/reading.py notes     # labels that look alike and rows that stand there twice, in 1,000,000 rows
    python benchmarks/reading.py excel     # 20,000 rows in a workbook, by python-calamine and, where it is, openpyxl

Prints seconds of the processor and the peak of the process's memory in MiB. Needs no model.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROWS = 1_000_000
WORDS = [f"word{number}" for number in range(1000)]


def write(path: Path, rows: int, seed: int = 0) -> None:
    """Write texts of 5 to 30 words, a label and a site."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "site"])
        for number in range(rows):
            words = rng.integers(0, len(WORDS), rng.integers(5, 30))
            writer.writerow([" ".join(WORDS[word] for word in words), "yes" if number % 2 else "no", number % 10])


def measured(what: str, action: Callable[[], object]) -> None:
    """Print what an action costs."""
    import psutil

    process = psutil.Process()
    before, start, clock = process.memory_info().rss, time.process_time(), time.perf_counter()
    result = action()
    seconds, wall = time.process_time() - start, time.perf_counter() - clock
    grown = (process.memory_info().rss - before) / 2**20
    cost = f"{seconds:.2f} s of processor ({wall:.2f} s by the clock), memory grew by {grown:.0f} MiB"
    print(f"{what}: {cost}, {len(result)} rows")  # type: ignore[arg-type]


def warm_up() -> None:
    """Import what a reading needs."""
    import datasets  # noqa: F401
    import pyarrow.csv  # noqa: F401


def main(what: str, folder: Path) -> None:
    """Run one of the measurements."""
    warm_up()
    from fedsa.data.reading.base import Wanted
    from fedsa.data.reading.client_files import load_client_files
    from fedsa.data.reading.local import load_local

    wanted = Wanted(frozenset({"text", "label"}), frozenset({"text", "label"}))
    big = folder / "rows.csv"
    if what in ("csv", "datasets"):
        write(big, ROWS)
        print(f"{big.stat().st_size / 2**20:.0f} MiB")
    match what:
        case "csv":
            measured("fedsa", lambda: load_local(big, ["train"], wanted=wanted)["train"].arrow)
        case "datasets":
            import datasets

            measured("datasets", lambda: datasets.load_dataset("csv", data_files=[str(big)], cache_dir=folder)["train"])
        case "clients":
            for client in range(1000):
                write(folder / f"{client}.csv", 100, client)
            measured("1,000 clients", lambda: load_client_files(folder, ["train"], wanted=wanted)["train"].arrow)
        case "notes":
            notes(folder)
        case "excel":
            workbook(folder, wanted)
        case _:
            raise SystemExit(__doc__)


def notes(folder: Path) -> None:
    """Measure what is looked for in a million rows."""
    import datasets

    from fedsa.data.partition import ClientRows, Partition
    from fedsa.data.quality import label_notes, repeat_notes

    rng = np.random.default_rng(0)
    texts = [" ".join(WORDS[word] for word in each) for each in rng.integers(0, len(WORDS), (ROWS, 12))]
    texts[ROWS // 2 :: 50] = texts[: len(texts[ROWS // 2 :: 50])]
    table = datasets.Dataset.from_dict({"text": texts})
    labels = rng.integers(0, 2, ROWS)
    parts = [np.sort(part) for part in np.array_split(rng.permutation(ROWS), 3000)]
    clients = {f"{n}": ClientRows(*parts[3 * n : 3 * n + 3]) for n in range(1000)}

    def look() -> list[str]:
        return [
            *label_notes(["yes", "no"], labels),
            *repeat_notes(table, labels, Partition(clients), ["text"], [], group=None, own_test=False, drawn=False),
        ]

    measured("1,000,000 rows of 1,000 clients", look)


def workbook(folder: Path, wanted: object) -> None:
    """Measure a workbook, where openpyxl is there to write it."""
    from typing import Any, cast

    import openpyxl

    from fedsa.data.reading.stored import read_excel

    book = openpyxl.Workbook()
    book.active.append(["text", "label"])
    for number in range(20_000):
        book.active.append([" ".join(WORDS[number % 900 : number % 900 + 15]), number % 2])
    book.save(folder / "rows.xlsx")
    measured("python-calamine", lambda: read_excel(folder / "rows.xlsx", cast(Any, wanted)).table)
    measured(
        "openpyxl",
        lambda: list(openpyxl.load_workbook(folder / "rows.xlsx", read_only=True).active.iter_rows(values_only=True)),
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(sys.argv[1] if len(sys.argv) > 1 else "", Path(place))
