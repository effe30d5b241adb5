"""What `fuzz.py` gives to fedsa: valid inputs of each kind, and how they are made wrong.

A kind has the files of a valid input, a way to make them wrong, and what reads them. The same seed makes the same input
of the same files.
"""

from __future__ import annotations

import copy
import json
import random
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_readers as readers
import tomli_w
from fuzz_readers import RUN
from safetensors import SafetensorError

from fedsa.store.files import hash_of
from fedsa.store.seals import sealed_table, unsealed_table

Files = dict[str, bytes]
Change = Callable[[Files, random.Random], None]

WRONG: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**63, 10**30, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "x", "auto", "none", "..", "../../x", "/etc/passwd", "~", "a\0b", "\ud800", "\x1b[31m", "x" * 5000),
    *("part:nothing", "objects:", "os:system", "json:JSONDecoder", "{a.b[0]!r:>9}", "%s%n", "NaN", "1e999"),
    *([], {}, [[]], [{}], [None], ["x"] * 2000, {"": ""}, {"a": {"b": []}}, {str(each): each for each in range(500)}),
)
"""What is put where something else belongs."""

TOKENS = (
    *(
        b"\0",
        b"\xff",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b'"',
        b"'",
        b",",
        b";",
        b"\t",
        b"\r",
        b"\n",
        b"{",
        b"}",
        b"[",
        b"]",
    ),
    *(b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"-1", b"null", b"[" * 3000, b'{"a":' * 3000, b"\\u0000", b"\\ud800"),
    *(b"PAR1", b"ARROW1", b"PK\x03\x04", b"\x1f\x8b\x08", b"\x80\x04\x95", b"../../x", b"%00", b"=cmd|' /C calc'!A0"),
)
"""Pieces that are put into bytes."""


NOT_SO = (ValueError, TypeError, KeyError, AttributeError, RecursionError, SafetensorError)
"""The errors of a change that cannot be made to these files: their bytes are changed then."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        files: of a valid input, by their names in its folder.
        change: makes them wrong.
        read: what fedsa does with them; given the folder, and coins to choose a verb.
        share: of all inputs, beside the other kinds.
    """

    files: Mapping[str, bytes]
    change: Change
    read: Callable[[Path, random.Random], Any]
    share: int

    def made(self, seed: int) -> Files:
        """The files of the input of a seed."""
        coins, files = random.Random(seed), dict(self.files)
        for _ in range(coins.choice([1, 1, 1, 2, 4])):
            try:
                if coins.random() < 0.25:
                    raise ValueError("bytes this time")
                self.change(files, coins)
            except NOT_SO:  # also what was damaged before, or what the format does not have
                change_bytes(files, coins)
        return files


# -- how bytes are made wrong ------------------------------------------------------------------------------------------


def changed_bytes(content: bytes, coins: random.Random) -> bytes:
    """Bytes with one thing done to them."""
    size = len(content)
    place, other = coins.randrange(size + 1), coins.randrange(size + 1)
    first, last = min(place, other), min(max(place, other), min(place, other) + coins.choice([1, 8, 100, size]))
    what = coins.randrange(9)
    if what == 0 and place < size:
        return content[:place] + bytes([content[place] ^ (1 << coins.randrange(8))]) + content[place + 1 :]
    if what == 1:
        return content[:place]
    if what == 2:
        return content[:first] + content[last:]
    if what == 3:
        return content[:place] + content[first:last] * coins.choice([1, 1, 2, 50]) + content[place:]
    if what == 4:
        return content[:first] + bytes(last - first) + content[last:]
    if what == 5:
        return content[:first] + coins.randbytes(min(last - first, 64)) + content[last:]
    if what == 6 and size >= 8:  # a length, often
        start = coins.choice([0, max(0, size - 8), place])
        return (
            content[:start]
            + coins.choice([0, 1, 2**31, 2**40, 2**63, 2**64 - 1]).to_bytes(8, "little")
            + content[start + 8 :]
        )
    token = coins.choice(TOKENS)
    return content[:place] + token + content[place + (len(token) if what == 7 else 0) :]


def change_bytes(files: Files, coins: random.Random) -> None:
    """Change the bytes of one file."""
    name = coins.choice(sorted(files))
    files[name] = changed_bytes(files[name], coins)


# -- how values are made wrong -----------------------------------------------------------------------------------------


def places_of(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in keys:
        yield data, key
        yield from places_of(data[key])


def changed_value(data: Any, coins: random.Random) -> Any:
    """A copy of JSON or TOML data with a value of another kind somewhere, an entry more, or one less."""
    data = copy.deepcopy(data)
    places = list(places_of(data))
    if not places:
        return coins.choice(WRONG)
    container, key = coins.choice(places)
    what = coins.randrange(10)
    if what == 0:
        del container[key]
    elif what == 1 and isinstance(container, dict):
        container[coins.choice(["x", "", "__class__", "path", "kind", "\ud800", "x" * 3000])] = container[key]
    elif what == 2:
        container[key] = copy.deepcopy(coins.choice(places)[0])
    elif what == 3 and isinstance(container[key], int) and not isinstance(container[key], bool):
        container[key] = container[key] * coins.choice([-1, 0, 2, 10**9])
    elif what == 4:
        for _ in range(coins.choice([3, 60, 500])):
            container[key] = [container[key]]
    else:
        container[key] = copy.deepcopy(coins.choice(WRONG))
    return data


def as_json(data: Any) -> bytes:
    """JSON, also of what JSON does not have; half characters are escapes."""
    return json.dumps(data).encode()


def sealed(data: Any) -> bytes:
    """A table with its hash made right again; what is no table has none."""
    return sealed_table(data).encode(errors="surrogatepass") if isinstance(data, dict) else as_json(data)


def change_toml(files: Files, coins: random.Random) -> None:
    """Change a value of a recipe or a sweep."""
    (name,) = files
    data = tomllib.loads(files[name].decode())
    files[name] = tomli_w.dumps(changed_value(data, coins)).encode(errors="surrogatepass")


def change_json(files: Files, coins: random.Random) -> None:
    """Change a value of a JSON file."""
    (name,) = files
    files[name] = as_json(changed_value(json.loads(files[name]), coins))


def change_lines(files: Files, coins: random.Random) -> None:
    """Change a value in a line of JSON."""
    (name,) = files
    lines = files[name].split(b"\n")
    number = coins.randrange(len(lines))
    lines[number] = as_json(changed_value(json.loads(lines[number]), coins))
    files[name] = b"\n".join(lines)


def change_sealed(files: Files, coins: random.Random) -> None:
    """Change a value in a table, and make its hash right again."""
    (name,) = files
    files[name] = sealed(changed_value(unsealed_table(files[name].decode()), coins))


def change_message(files: Files, coins: random.Random) -> None:
    """Change what a message says, and make its digest right again."""
    (name,) = files
    files[name] = readers.message_with(files[name], lambda entry: changed_value(entry, coins))


def change_tensors(files: Files, coins: random.Random) -> None:
    """Change the header of a file of tensors, and make its hash right again."""
    (name,) = files
    size = int.from_bytes(files[name][:8], "little")
    header, data = json.loads(files[name][8 : 8 + size]), files[name][8 + size :]
    about = header.get("__metadata__", {})
    if coins.random() < 0.5 and "fedsa" in about:
        said = as_json(changed_value(json.loads(about["fedsa"][64:]), coins)).decode()
        header["__metadata__"] = {"fedsa": "0" * 64 + said}
    else:
        header = changed_value(header, coins)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    files[name] = resealed_tensors(len(text).to_bytes(8, "little") + text + data)


def resealed_tensors(content: bytes) -> bytes:
    """A file of tensors with the right hash, where it has a place for one."""
    head = b'{"__metadata__":{"fedsa":"'
    if content[8 : 8 + len(head)] != head:
        return content
    start = 8 + len(head)
    content = content[:start] + b"0" * 64 + content[start + 64 :]
    return content[:start] + hash_of(content).encode() + content[start + 64 :]


def change_run(files: Files, coins: random.Random) -> None:
    """Change a file of a run folder; hashes are made right again, more often than not."""
    name = coins.choice(sorted(files))
    own, old = {name: files[name]}, files[name]
    if name.endswith(".safetensors"):
        change_tensors(own, coins)
    elif name == "state.json":
        change_sealed(own, coins)
    else:
        (change_lines if name.endswith(".jsonl") else change_json if name.endswith(".json") else change_bytes)(
            own, coins
        )
    files |= own
    if name not in ("state.json", "recipe.toml") and name.endswith((".json", ".jsonl")) and coins.random() < 0.8:
        state = json.dumps(unsealed_table(files["state.json"].decode()))
        state = json.loads(state.replace(hash_of(old), hash_of(files[name])))
        if name.endswith(".jsonl"):
            state[f"{name.removesuffix('.jsonl')}_bytes"] = len(files[name])
        files["state.json"] = sealed(state)


def change_adapter(files: Files, coins: random.Random) -> None:
    """Change the tensors, the config or what is said of an exported adapter."""
    name = coins.choice(["adapter_model.safetensors", "adapter_config.json", "fedsa.json", "tokenizer.json"])
    own = {name: files[name]}
    (change_tensors if name.endswith(".safetensors") else change_json)(own, coins)
    files |= own


def kinds_of(world: Path) -> dict[str, Kind]:
    """Every kind of input, made of what `fuzz_readers.make_world` has left in a folder."""

    def of(*names: str) -> dict[str, bytes]:
        return {name.rpartition("/")[2]: (world / name).read_bytes() for name in names}

    run = {
        path.relative_to(world / RUN).as_posix(): path.read_bytes()
        for path in sorted((world / RUN).rglob("*"))
        if path.is_file() and path.name not in (".lock", "report.html")
    }
    adapter = {path.name: path.read_bytes() for path in sorted((world / "adapter").iterdir()) if path.is_file()}
    del adapter["SHA256SUMS"]  # else nothing gets past it
    rows = readers.read_rows
    return {
        "recipe": Kind(of("recipe.toml"), change_toml, readers.read_a_recipe, 13),
        "sweep": Kind(of("sweep.toml"), change_toml, readers.read_a_sweep, 5),
        "message": Kind(of("message"), change_message, readers.read_message, 20),
        "frame": Kind(of("frame"), change_bytes, readers.read_frame, 8),
        "tensors": Kind(of("state.safetensors"), change_tensors, readers.read_tensors, 14),
        "agreement": Kind(of("agreement.json"), change_sealed, readers.read_agreement, 5),
        "roster": Kind(of("roster.json"), change_sealed, readers.read_roster, 3),
        "site's name": Kind(of("site.json"), change_sealed, readers.read_names, 2),
        "kit": Kind({"fedsa.json": readers.KIT}, change_lines, readers.read_a_kit, 2),
        "sent list": Kind(of("sent.jsonl"), change_bytes, readers.read_sent, 3),
        "partition": Kind(of("partition.json"), change_lines, readers.read_partition, 3),
        "CSV": Kind(of("rows.csv"), change_bytes, rows, 6),
        "JSONL": Kind(of("rows.jsonl"), change_lines, rows, 6),
        "JSON": Kind(of("rows.json"), change_lines, rows, 3),
        "Parquet": Kind(of("rows.parquet"), change_bytes, rows, 6),
        "Arrow": Kind(of("rows.arrow"), change_bytes, rows, 3),
        "Excel": Kind(of("rows.xlsx"), change_bytes, rows, 1),
        "packed": Kind(of("rows.csv.gz"), change_bytes, rows, 1),
        "adapter": Kind(adapter, change_adapter, readers.read_adapter, 1),
        "run folder": Kind(run, change_run, readers.read_run, 4),
    }
