"""`fedsa algorithms`, and methods that live elsewhere: in an installed package, or in a file beside the recipe."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms import algorithm_names, built_in_names, check_algorithm, find_algorithm, make_algorithm, origin
from fedsa.callbacks import check_callbacks
from fedsa.commands.shared.methods import describe
from fedsa.commands.shared.methods_shown import matrix, overview
from fedsa.errors import UserError

METHOD = '''
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal
from pydantic import Field
from fedsa.algorithms.base import LOCAL, SHARED, Algorithm, Plan
from fedsa.types import Key, Side

@dataclass(frozen=True, kw_only=True)
class Sometimes(Algorithm):
    """Send A in every third round.

    More about it.

    Attributes:
        strength: how strongly,
            over two lines.
        mode: one of two.
    """

    strength: Annotated[float, Field(gt=0, le=9)] = 0.5
    mode: Literal["x", "y"] = "x"

    source: ClassVar[str] = "a test"
    mixed_ranks: ClassVar[bool] = True

    def refusal(self, variant, *, mixed_ranks=False):
        return "I do not like it" if variant == "vera" else super().refusal(variant, mixed_ranks=mixed_ranks)

    def plan(self, key: Key, round: int) -> Plan:
        """Return who trains, sends and receives a tensor."""
        if key.factor.side is Side.A:
            return Plan(trained=True, sent=round % 3 == 0, received=True)
        return LOCAL if key.factor.side is Side.B else self.rest_plan(key)

class Other:
    pass

@dataclass(frozen=True, kw_only=True)
class NoSource(Algorithm):
    def plan(self, key, round):
        return SHARED

@dataclass(frozen=True, kw_only=True)
class Needy(Algorithm):
    needed: int
    source: ClassVar[str] = "-"
    def plan(self, key, round):
        return SHARED

@dataclass(frozen=True, kw_only=True)
class Wrong(Algorithm):
    source: ClassVar[str] = "-"
    def plan(self, key, round):
        return {}[key]
'''


@pytest.fixture
def clean_imports() -> Iterator[None]:
    """Forget afterwards what was imported, and from where."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith(("plugged_", "mine_"))]:
        del sys.modules[name]


@pytest.fixture
def plugged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_imports: None) -> Callable[..., None]:
    """Install packages that declare methods: package name to entry points."""

    def install(**packages: str) -> None:
        site = tmp_path / "site"
        site.mkdir(exist_ok=True)
        (site / "plugged_methods.py").write_text(METHOD, encoding="utf-8")
        (site / "plugged_broken.py").write_text("import fedsa\n1 / 0\n", encoding="utf-8")
        (site / "plugged_typo.py").write_text("def f(:\n", encoding="utf-8")
        for package, lines in packages.items():
            about = site / f"{package}-1.0.dist-info"
            about.mkdir()
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
            (about / "entry_points.txt").write_text("[fedsa.algorithms]\n" + lines.replace("; ", "\n") + "\n")
        monkeypatch.syspath_prepend(str(site))

    return install


# -- plug-ins ---------------------------------------------------------------------------------------------------------


def test_an_installed_package_declares_a_method(
    plugged_in: Callable[..., None], fedsa_command: Callable[..., Any]
) -> None:
    plugged_in(outside="sometimes = plugged_methods:Sometimes")
    assert "sometimes" in algorithm_names()
    assert "sometimes" not in built_in_names()
    assert "plugged_methods" not in sys.modules, "names are listed without importing anything"
    assert origin("sometimes") == "outside"
    assert origin("fedsa") == "fedsa"
    assert find_algorithm("sometimes").__name__ == "Sometimes"
    assert make_algorithm("sometimes", {"strength": 2}).strength == 2.0  # type: ignore[attr-defined]
    assert check_algorithm({"algorithm": "sometimes", "adapter": {"variant": "vera"}})[0].what.endswith(
        "sometimes does not go with adapter.variant = 'vera': I do not like it"
    )
    with pytest.raises(UserError, match="unknown algorithm 'sometime'; did you mean 'sometimes'"):
        find_algorithm("sometime")
    assert re.search(r"^sometimes +A~ +B, head\+", fedsa_command("algorithms").out, re.MULTILINE)
    assert "sometimes" not in fedsa_command("algorithms", "--markdown").out


@pytest.mark.run
@pytest.mark.parametrize(
    ("target", "text"),
    [
        (
            "plugged_broken:X",
            r"'plugged_broken:X' cannot be imported: ZeroDivisionError: .*plugged_broken.py, line 2, in <module>\)$",
        ),
        ("plugged_typo:X", r"cannot be imported: SyntaxError: .*plugged_typo.py, line 1\)$"),
        ("plugged_nowhere:X", "No module named 'plugged_nowhere', neither installed nor in the current folder$"),
        ("plugged_methods:Missing", "module 'plugged_methods' has no attribute 'Missing'$"),
        ("plugged_methods:Other", "is no algorithm: it must be a class that derives from"),
        ("plugged_methods:NoSource", "does not name its paper"),
        ("plugged_methods:Needy", "has options without a default: needed"),
        ("plugged_methods:Wrong", "cannot be described: KeyError"),
    ],
)
def test_a_broken_plug_in_is_told_and_breaks_nothing_else(
    plugged_in: Callable[..., None], fedsa_command: Callable[..., Any], target: str, text: str
) -> None:
    plugged_in(outside=f"crooked = {target}; sometimes = plugged_methods:Sometimes")
    listed = fedsa_command("algorithms")
    assert listed.code == 0
    assert "fedsa " in listed.out
    assert "sometimes " in listed.out
    (line,) = listed.err.strip().splitlines()
    assert line.startswith("crooked: cannot be used: algorithm 'crooked' ")
    assert re.search(text, line) or target.endswith("Wrong")
    shown = fedsa_command("algorithms", "crooked")
    assert shown.code == 2
    assert "Traceback" not in shown.err
    assert re.search(text, shown.error.strip())
    by_name = {entry["name"]: entry for entry in json.loads(fedsa_command("algorithms", "--json").out)}
    assert set(by_name["crooked"]) == {"name", "broken"}
    assert by_name["sometimes"]["package"] == "outside"


def test_two_packages_with_one_name(plugged_in: Callable[..., None], fedsa_command: Callable[..., Any]) -> None:
    plugged_in(one="twice = plugged_methods:Sometimes", two="twice = plugged_methods:Other; fedsa = plugged_broken:X")
    with pytest.raises(UserError) as caught:
        find_algorithm("twice")
    assert str(caught.value) == (
        "several packages declare an algorithm 'twice': one (plugged_methods:Sometimes), two (plugged_methods:Other); "
        "use one as package.module:Class"
    )
    assert find_algorithm("fedsa").__module__ == "fedsa.algorithms.fedsa", "fedsa's own names are not taken"
    assert fedsa_command("algorithms").code == 0


@pytest.mark.run
def test_a_file_beside_the_recipe_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clean_imports: None,
    fedsa_command: Callable[..., Any],
    recipe_file: Callable[..., Path],
) -> None:
    (tmp_path / "mine_here.py").write_text(METHOD, encoding="utf-8")
    with pytest.raises(UserError, match="neither installed nor in the current folder"):
        find_algorithm("mine_here:Sometimes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSA_ALLOW_CODE", "1")
    assert find_algorithm("mine_here:Sometimes").__name__ == "Sometimes"
    assert fedsa_command("algorithms", "mine_here:Sometimes").code == 0
    (tmp_path / "mine_callback.py").write_text("from fedsa import Callback\nclass Mine(Callback): pass\n")
    assert check_callbacks({"callbacks": ["mine_callback:Mine"]}) == []
    recipe = recipe_file("rounds=1")
    outcome = fedsa_command("run", recipe, "--out", tmp_path / "run", "--set", "algorithm=mine_here:Sometimes")
    assert outcome.code == 0, outcome
    assert "Sent by each client and round" in outcome.out


def test_what_is_installed_comes_before_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_imports: None
) -> None:
    (tmp_path / "fedsa").mkdir()
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert find_algorithm("fedsa.algorithms.ffa:FFA")
    assert sys.path == before


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_one_method_in_full(plugged_in: Callable[..., None], fedsa_command: Callable[..., Any]) -> None:
    plugged_in(outside="sometimes = plugged_methods:Sometimes")
    out = fedsa_command("algorithms", "sometimes").out
    assert "Send A in every third round." in out
    assert "More about it." in out
    assert "Attributes:" not in out
    assert re.search(r"strength +number, > 0, <= 9 +0.5 +how strongly, over two lines\.", out)
    assert re.search(r"mode +x \| y +\"x\" +one of two", out)
    assert re.search(r"share_head +true \| false +false +send and average", out)
    assert re.search(r"lora, rslora.* 1, 2, 4, … +- +A, B, head +- +A *\n", out)
    assert re.search(r"lora, rslora.* 3, 6, 9, … +A +B, head +- +A *\n", out)
    assert re.search(r"^- vera: I do not like it$", out, re.MULTILINE)
    assert re.search(r"^source +a test$", out, re.MULTILINE)
    entry = json.loads(fedsa_command("algorithms", "sometimes", "--json").out)
    assert entry["variants"]["vera"] == {"ok": False, "reason": "I do not like it"}
    assert entry["variants"]["lora"]["not_in_every_round"] == ["A"]
    assert entry["variants"]["lora"]["mixed_ranks"] == {"ok": True, "reason": None}
    assert [option["name"] for option in entry["options"]] == ["share_head", "class_prior", "strength", "mode"]


def test_roles_of_our_methods() -> None:
    fedsa = describe("fedsa")["variants"]
    assert {role: fedsa["lora"][role] for role in ("sent", "kept", "frozen", "received")} == {
        "sent": ["A"],
        "kept": ["B", "head"],
        "frozen": [],
        "received": ["A"],
    }
    assert fedsa["vera"]["sent"] == ["lambda_d"]
    assert describe("ffa")["variants"]["lora"]["frozen"] == ["A"]
    assert describe("local")["variants"]["lora"]["sent"] == []
    assert describe("local")["server_optimizer"] == {"ok": False, "reason": "it sends nothing"}
    assert describe("local")["overlap"] == {"ok": False, "reason": "it sends nothing"}
    assert describe("fedsa")["overlap"] == {"ok": True, "reason": None}
    assert describe("feddpa")["variants"]["lora"]["kept"] == ["local/A", "local/B", "head"]
    assert describe("fedex")["variants"]["lora"]["received"] == ["A", "B", "head", "delta"]
    assert describe("fedex")["variants"]["vera"]["reason"]
    assert [entry["sent"] for entry in describe("rolora")["variants"]["lora"]["rounds"]][:2] == [
        ["B", "head"],
        ["A", "head"],
    ]


def test_flags() -> None:
    _, rows = overview([describe(name) for name in ("fedit", "fedsa", "local", "rolora")])
    assert [row[1:4] for row in rows] == [
        ["A, B, head*", "nothing", "-"],
        ["A", "B, head+", "-"],
        ["nothing", "A, B, head", "-"],
        ["A~, B~, head*", "nothing", "yes"],
    ]
    header, rows = matrix([describe(name) for name in ("fedit", "rolora", "local", "sfed")])
    assert header == ["method", *VARIANTS]
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert cells["fedit"]["lora"] == "A B"
    assert cells["rolora"]["vera"] == "A~ B~"
    assert cells["local"]["lora"] == "none"
    assert cells["sfed"]["rslora"] == "-"


def test_the_list_fits_a_hundred_columns(fedsa_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = fedsa_command("algorithms").out.splitlines()
    for name in built_in_names():
        assert sum(line.startswith(f"{name} ") for line in lines) == 2, "one line in the list, one in the matrix"
    tables = [line.rstrip() for line in lines if "  " in line]
    assert max(map(len, tables)) <= 100


def test_json_is_complete(fedsa_command: Callable[..., Any]) -> None:
    entries = json.loads(fedsa_command("algorithms", "--json").out)
    assert {entry["name"] for entry in entries} == set(algorithm_names())
    for entry in entries:
        assert set(entry["variants"]) == set(VARIANTS)
        assert entry["description"]
        assert all(option["description"] for option in entry["options"]), entry["name"]
        for roles in entry["variants"].values():
            assert roles["ok"] is (roles["reason"] is None)


def test_an_unknown_method(fedsa_command: Callable[..., Any]) -> None:
    outcome = fedsa_command("algorithms", "fedsaa")
    assert outcome.code == 2
    assert outcome.error == "error: unknown algorithm 'fedsaa'; did you mean 'fedsa'?"
