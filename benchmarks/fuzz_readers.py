"""What reads each kind of input of `fuzz.py`, as fedsa's own commands and processes do; and the valid inputs."""

from __future__ import annotations

import copy
import gzip
import json
import random
import shutil
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import fedsa
from fedsa.agreement import Agreement
from fedsa.algorithms import check_algorithm
from fedsa.callbacks import check_callbacks
from fedsa.client.sent import SentAnswers, sent_messages
from fedsa.cost.hours import time_like
from fedsa.data.asked import asked_of_lines, read_asked
from fedsa.data.partition.saved import load_partition, save_partition
from fedsa.data.rows import deal_rows
from fedsa.deploy import frames
from fedsa.deploy.own_rows import Names
from fedsa.deploy.preflight import read_kit
from fedsa.deploy.status import status_of
from fedsa.drafting.draft import draft_recipe
from fedsa.engines.roster import Roster
from fedsa.messages import Message, decode, digest_of, encode
from fedsa.recipe import parse_recipe, read_recipe
from fedsa.runs.analysis import analyze
from fedsa.runs.compare import compare, table_of
from fedsa.runs.export.loading import load_adapter
from fedsa.runs.listing import list_runs
from fedsa.runs.report import write_report
from fedsa.runs.sent import sent_in_run
from fedsa.steps import check_steps
from fedsa.store import BegunRun, FinishedRun, RunFolder
from fedsa.store.files import load_tensors
from fedsa.sweep.files import read_sweep
from fedsa.types import Key

RUN = "run"
KIT = json.dumps(
    {
        "party": "north",
        "kind": "site",
        "project": "fedsa",
        "host": "localhost",
        "port": 8002,
        "versions": {"fedsa": "0.1.0", "nvflare": "2.9.0"},
    }
).encode()
_CHECKS = (check_algorithm, check_steps, check_callbacks)


# -- the valid inputs --------------------------------------------------------------------------------------------------


def make_world(place: Path) -> None:
    """Write a valid input of each kind into a folder: a tiny run, what it was made of, and what parties keep."""
    import tomli_w
    from datasets import load_dataset
    from golden import recipe, write_model, write_rows

    torch.set_num_threads(1)
    write_model(place / "model")
    write_rows(place / "rows.csv")
    settings = recipe(place, "fedsa", "lora")
    settings |= {"training": {**settings["training"], "optimizer_state": "keep"}}  # type: ignore[dict-item]
    (place / "recipe.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    sweep = Path(fedsa.__file__).parent / "sweeps" / "privacy.toml"
    shutil.copy(sweep, place / "sweep.toml")
    federation = fedsa.Federation.from_recipe(parse_recipe(settings))
    result = fedsa.run(federation, place / RUN, progress=False)
    result.export(place / "adapter", client="site 0")
    (place / "agreement.json").write_text(federation.agreement.text(), encoding="utf-8")
    state = next((place / RUN / "clients").rglob("round-*.safetensors"))
    shutil.copy(state, place / "state.safetensors")
    Roster.begun("a-run", ["north", "south"], {"south": ["one", "two"]}).write(place)
    Names("north", ("one", "two")).write(place)
    tensors = {Key.parse("layer:A:default"): torch.ones(2, 3), Key.parse("layer:B:default"): torch.ones(3)}
    message = Message("update", "a-run", 1, {"num_examples": {"one": 3}, "seconds": 1.5}, {"one": tensors})
    content = encode(message)
    (place / "message").write_bytes(content)
    sent = SentAnswers(place, "north")
    for number in range(3):
        sent.keep(b"%d" % number, message, content)
    one, two = socket.socketpair()
    with one, two:
        frames.send(one, {"site": "north", "job": 3}, b"body")
        (place / "frame").write_bytes(two.recv(10_000))
    partition, fingerprint = deal_rows(federation.recipe).as_saved
    save_partition(partition, place / "partition.json", fingerprint)
    table = load_dataset("csv", data_files=str(place / "rows.csv"), split="train", cache_dir=str(place / "cache"))
    table.to_parquet(place / "rows.parquet")
    table.to_json(place / "rows.jsonl")
    (place / "rows.json").write_text(json.dumps(table.to_list()), encoding="utf-8")
    with (place / "rows.csv.gz").open("wb") as file:
        file.write(gzip.compress((place / "rows.csv").read_bytes(), mtime=0))
    table.save_to_disk(place / "saved")
    shutil.copy(next((place / "saved").glob("*.arrow")), place / "rows.arrow")
    _write_workbook(place / "rows.xlsx", table.to_list())


def _write_workbook(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the smallest workbook that holds texts."""
    import zipfile

    cells = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
    lines = "".join(
        "<row>" + "".join(f'<c t="inlineStr"><is><t>{cell}</t></is></c>' for cell in line) + "</row>" for line in cells
    )
    main, package = "http://schemas.openxmlformats.org/spreadsheetml/2006/main", "http://schemas.openxmlformats.org"
    relations = f"{package}/package/2006/relationships"
    office = f"{package}/officeDocument/2006/relationships"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/package/2006/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{relations}"><Relationship Id="r" Type="{office}/officeDocument" '
        'Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="a" sheetId="1" r:id="r"/>'
        "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{relations}"><Relationship Id="r" '
        f'Type="{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{lines}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in parts.items():
            file.writestr(name, text)


def message_with(content: bytes, change: Callable[[Any], Any]) -> bytes:
    """A message whose entry is another one, with the right digest."""
    from safetensors.torch import load, save

    size = int.from_bytes(content[:8], "little")
    text = json.loads(content[8 : 8 + size])["__metadata__"]["fedsa"][64:]
    tensors = load(content)
    entry = json.dumps(change(json.loads(text)), sort_keys=True)
    return save(tensors, {"fedsa": digest_of(entry, tensors) + entry})


# -- what reads them ---------------------------------------------------------------------------------------------------


def read_a_recipe(folder: Path, coins: random.Random) -> Any:
    """As `fedsa check` begins."""
    return parse_recipe(read_recipe(str(folder / "recipe.toml"))[0], checks=_CHECKS)


def read_a_sweep(folder: Path, coins: random.Random) -> Any:
    """As `fedsa sweep` begins."""
    return read_sweep(str(folder / "sweep.toml"))


def read_message(folder: Path, coins: random.Random) -> Any:
    """As a server or a site takes a message."""
    return decode((folder / "message").read_bytes(), run=coins.choice([None, "a-run"]))


def read_frame(folder: Path, coins: random.Random) -> Any:
    """As the processes of one machine talk."""
    one, two = socket.socketpair()
    with one, two:
        one.sendall((folder / "frame").read_bytes()[:100_000])
        one.shutdown(socket.SHUT_WR)
        try:
            return frames.receive(two)
        except ConnectionError:  # what it says it raises
            return None


def read_tensors(folder: Path, coins: random.Random) -> Any:
    """As states are read."""
    return load_tensors(folder / "state.safetensors")


def read_agreement(folder: Path, coins: random.Random) -> Any:
    """As a site or a server begins; the recipe in it is checked too."""
    agreement = Agreement.read(folder / "agreement.json")
    return agreement.recipe, agreement.fingerprint(), agreement.adapter.empty()


def read_roster(folder: Path, coins: random.Random) -> Any:
    """As a server begins."""
    roster = Roster.read(folder)
    return roster.clients, roster.left, roster.only_measured


def read_names(folder: Path, coins: random.Random) -> Any:
    """As a site begins."""
    return Names.read(folder)


def read_a_kit(folder: Path, coins: random.Random) -> Any:
    """As a party begins."""
    return read_kit(folder)


def read_sent(folder: Path, coins: random.Random) -> Any:
    """As `fedsa deploy sent` does, or a site that goes on."""
    return list(sent_messages(folder)) if coins.random() < 0.5 else SentAnswers(folder, "north")


def read_partition(folder: Path, coins: random.Random) -> Any:
    """As a run with a saved partition begins."""
    path = folder / "partition.json"
    try:
        wanted = json.loads(path.read_bytes())["data"]
    except (ValueError, KeyError, TypeError, RecursionError):
        wanted = "other data"
    return load_partition(path, wanted if isinstance(wanted, str) else "other data", (120, None, None))


def read_rows(folder: Path, coins: random.Random) -> Any:
    """As `fedsa data`, `fedsa predict` or `fedsa init` reads a stranger's rows."""
    (path,) = folder.glob("rows*")
    recipe, verb = _recipe_of_rows(str(path)), coins.randrange(4)
    if verb == 0:
        return read_asked(str(path), recipe.task)
    if verb == 1:
        return draft_recipe(str(path))
    if verb == 2 and path.suffix == ".jsonl":
        return asked_of_lines(path.read_text(encoding="utf-8", errors="replace").splitlines(), recipe.task)
    return deal_rows(recipe)


def _recipe_of_rows(path: str) -> Any:
    return parse_recipe(
        {
            "rounds": 1,
            "model": {"path": "none"},
            "task": {"text_columns": ["text"], "label_column": "label"},
            "data": {"path": path, "partition": {"kind": "column", "column": "site"}},
        }
    )


def read_adapter(folder: Path, coins: random.Random) -> Any:
    """As `fedsa predict ADAPTER` does."""
    return load_adapter(folder, base=copy.deepcopy(_base()))


@cache
def _base() -> Any:
    """The base model, loaded once in each process."""
    from fedsa.models import load_base, resolve_compute
    from fedsa.recipe import ComputeSettings, ModelSettings
    from fedsa.tasks import make_task

    recipe = parse_recipe(read_recipe(str(WORLD.place / "recipe.toml"))[0])
    task = make_task(recipe.task, ["bad", "good"])
    place = ModelSettings(path=str(WORLD.place / "model"))
    options = task.model_options()
    compute = resolve_compute(ComputeSettings(precision="fp32"))
    model, _ = load_base(
        place, auto_model=task.auto_model, options=options, seed=0, compute=compute, on_progress=lambda text: None
    )
    return model


WORLD = SimpleNamespace(place=Path())
"""Where the valid inputs lie."""


def read_run(folder: Path, coins: random.Random) -> Any:
    """As one of the verbs that need no model."""
    recipe = parse_recipe(read_recipe(str(WORLD.place / "recipe.toml"))[0])
    verbs: list[Callable[[], Any]] = [
        lambda: RunFolder.open(folder, write=True).close(),
        lambda: list(FinishedRun.open(folder).lines()),
        lambda: BegunRun.read(folder),
        lambda: list_runs(folder),
        lambda: table_of(compare([folder, WORLD.place / RUN])),
        lambda: list(sent_in_run(folder)),
        lambda: status_of(folder),
        lambda: time_like(recipe, 3, folder),
        lambda: list(analyze(folder).means()),
    ]
    if coins.random() < 0.05:
        return write_report(folder)
    return coins.choice(verbs)()
