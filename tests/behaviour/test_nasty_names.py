"""Names of strangers (clients, labels, columns, sweep labels) in every place where they are shown."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from huggingface_hub import ModelCard

from fedsa.texts.escapes import for_csv, for_html, for_json, for_latex, for_markdown, for_markdown_code, for_terminal
from support.tiny_rows import FILLER, WORDS

pytestmark = pytest.mark.run

CLIENTS = ["\x1b[2Jred\x07", "<script>alert(1)</script>", "$\\frac{$ & 50 %"]
LABELS = ["good\n\n# Free money", "<img src=x onerror=alert(2)>", "`|\u202e[bold] \x9b31m"]


def commands(text: str) -> list[str]:
    """Return the characters of a text that command a terminal, or turn the text around."""
    return [
        each
        for each in text
        if (unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") and each not in "\n\t") or each in "\u202e\u2066"
    ]


@pytest.fixture
def nasty(tiny_data: dict[str, Any], recipe_file: Callable[..., Path], tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    words = [WORDS["good"], WORDS["bad"], FILLER[5:9]]
    with path.open("w", encoding="utf-8") as file:
        for number in range(120):
            label = number // 3 % 3
            text = f"{FILLER[number % 10]} {words[label][number // 9 % 4]} {number}"
            file.write(json.dumps({"te|xt": text, "la\x1bbel": LABELS[label], "site": CLIENTS[number % 3]}) + "\n")
    return path


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_nothing_commands_a_terminal_a_page_or_a_card(
    nasty: Path, model: Path, tmp_path: Path, fedsa_command: Callable[..., Any]
) -> None:
    recipe = tmp_path / "nasty.toml"
    recipe.write_text(f"""
rounds = 1
model = {{path = "{model}", attn_implementation = "eager"}}
adapter = {{r = 2, target_modules = ["query", "value"]}}
task = {{text_columns = ["te|xt"], label_column = "la\\u001bbel"}}
data = {{path = "{nasty}", partition = {{kind = "column", column = "site"}}}}
training = {{local_steps = 2, batch_size = 4, trainer = "sequential"}}
compute = {{device = "cpu", threads = 1, precision = "fp32"}}
""")
    run, new = tmp_path / "run", tmp_path / "new\x1b[31m.jsonl"
    lines = nasty.read_text(encoding="utf-8").splitlines(keepends=True)
    new.write_text("".join(line for line in lines if "script" in line), encoding="utf-8")
    for arguments, code in (
        (["data", recipe], 0),
        (["run", recipe, "--out", run], 0),
        (["analyze", run], 0),
        (["export", run, "--all", "--to", tmp_path / "all"], 0),
        (["export", run, "--client", "no\x1b[2Jbody", "--to", tmp_path / "none"], 2),
        (["adapt", run, "--data", new, "--to", tmp_path / "adapted", "--steps", "1"], 0),
        (["resume", run, "--json"], 0),
        (["data", recipe, "--json"], 0),
    ):
        outcome = fedsa_command(*arguments)
        assert outcome.code == code, (arguments, outcome)
        assert not commands(outcome.out + outcome.err), (arguments, outcome)
        if "--json" in arguments:
            assert CLIENTS[0] in json.dumps(json.loads(outcome.out), ensure_ascii=False) or json.loads(outcome.out)

    page = (run / "report.html").read_text(encoding="utf-8")
    assert not commands(page)
    assert page.count("<script") == 1, "its own, which sorts"
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)  # noqa: S314 (our own; it must be whole)

    for folder in [*(tmp_path / "all").glob("0*"), tmp_path / "adapted"]:
        card = (folder / "README.md").read_text(encoding="utf-8")
        prose = re.sub(r"```python\n.*?```", "", card, flags=re.DOTALL)
        assert not commands(card), card
        assert "<script>" not in prose
        assert "<img" not in prose
        assert re.findall(r"^# (.*)$", prose, re.MULTILINE) == [prose.partition("\n# ")[2].partition("\n")[0]]
        assert ModelCard(card).data.library_name == "peft"
        assert "`te|xt`" in card


def test_tables_of_sweeps(tmp_path: Path) -> None:
    from fedsa.texts.tables import Table, as_latex, as_markdown

    names = [*CLIENTS, *LABELS, "=cmd()|x", "plain"]
    table = Table("a\n\\input{/etc/passwd}", ["method", "figure"], [[name, "1.0"] for name in names], ["n\nb"])
    latex, markdown = as_latex([table]), as_markdown([table])
    assert not commands(latex + markdown)
    assert len([line for line in latex.splitlines() if line.endswith("\\\\")]) == len(names) + 1
    assert all(line.startswith("%") for line in latex.splitlines() if "passwd" in line)
    for line in latex.splitlines():
        if line.endswith("\\\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == 1, line
            assert not re.search(r"(?<!\\)[%#]", line), line
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == len(names) + 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in rows), rows
    assert "<script" not in markdown


@pytest.mark.parametrize("name", [*CLIENTS, *LABELS, "\ud800\u2028", "``` x", "", "日本 é ü", "=1", "-5", "a\tb\r"])
def test_each_medium(name: str, tmp_path: Path) -> None:
    for escape in (for_terminal, for_html, for_markdown, for_markdown_code, for_latex, for_csv, for_json):
        assert not commands(escape(name)), escape
        escape(name).encode("utf-8")
    assert for_terminal("日本 é ü-👩‍👧") == "日本 é ü-👩‍👧"
    assert json.loads(for_json(json.dumps(name, ensure_ascii=False))) == name
    assert "<" not in for_markdown(name)
    with (tmp_path / "x.csv").open("w+", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([for_csv(name), "x"])
        file.seek(0)
        ((cell, _),) = list(csv.reader(file))
    assert not cell.startswith("=")
