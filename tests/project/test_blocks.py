"""Every code block of README and docs is run, or parsed by what would run it, or says why not."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.main import get_command

import fedsa
from fedsa.algorithms import algorithm_names
from fedsa.cli import app
from fedsa.recipe import Recipe, apply_overrides, parse_recipe, read_recipe, recipe_names
from fedsa.runs.predict import Predicted
from fedsa.sweep.files import read_sweep, sweep_names
from support.blocks import Block, blocks_of, commands_of, pages
from support.every_task import every_federation
from support.repository import ROOT, program
from support.tiny_decoder import write_decoder
from support.tiny_rows import write_rows

BLOCKS = [block for page in pages() for block in blocks_of(page.read_text("utf-8"), page.relative_to(ROOT).as_posix())]
CHECKED = ("bash", "console", "json", "python", "toml")
"""The languages that tests below know."""


def of(language: str) -> list[Any]:
    found = [block for block in BLOCKS if block.language == language and not block.reason and not block.test]
    return [pytest.param(block, id=str(block)) for block in found]


def test_the_finder_finds_them() -> None:
    page = "\n".join([
        "a ``` b", "", "<!-- not run: it is slow -->", "```bash", "ls", "```", "", "1. more:", "",
        "   ~~~~text", "   ```", "   x", "   ~~~~", "<!-- run by: a.py::test_b -->", "", "```", "never ends",
    ])  # fmt: skip
    first, second, third = blocks_of(page)
    assert (first.line, first.language, first.text, first.reason) == (4, "bash", "ls\n", "it is slow")
    assert (second.line, second.language, second.text) == (10, "text", "```\nx\n")
    assert (third.line, third.text, third.reason, third.test) == (16, "never ends\n", "", "")


def test_the_reader_of_commands_reads_what_the_docs_use() -> None:
    text = "O=\"--set a='b c'\"\nA=1 fedsa run $O x \\\n  --set 'k=[\"v\"]'  # more\necho it | fedsa predict && ls\n"
    assert [(each.words, each.variables) for each in commands_of(text)] == [
        (("fedsa", "run", "--set", "a=b c", "x", "--set", 'k=["v"]'), {"A": "1"}),
        (("echo", "it"), {}),
        (("fedsa", "predict"), {}),
        (("ls",), {}),
    ]


def test_no_block_is_passed_over() -> None:
    gaps = [str(block) for block in BLOCKS if block.language not in CHECKED and not block.reason and not block.test]
    assert gaps == [], "write `<!-- not run: WHY -->` into the line above, or a language that a test knows"
    short = [str(block) for block in BLOCKS if block.reason and len(block.reason.split()) < 3]
    assert short == [], "say why, in a few words"
    said = sum(len(re.findall(r"^ *<!--.*\brun\b", page.read_text("utf-8"), re.MULTILINE)) for page in pages())
    assert said == sum(bool(block.reason or block.test) for block in BLOCKS), "a comment stands above no block"


def test_a_named_test_is_there() -> None:
    for block in BLOCKS:
        if block.test:
            path, _, name = block.test.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text("utf-8"), block


# -- commands ----------------------------------------------------------------------------------------------------------


def variables_before(block: Block) -> dict[str, str]:
    """Return the variables that blocks above it in its page have set."""
    known: dict[str, str] = {}
    for other in BLOCKS:
        if other.page == block.page and other.line < block.line and other.language == "bash":
            list(commands_of(other.text, known))
    return known


@pytest.mark.parametrize("block", of("bash"))
def test_commands_are_ones_that_there_are(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = list(commands_of(block.text, variables_before(block)))
    assert commands or "=" in block.text
    for command in commands:
        name, *arguments = command.words
        place = name.removeprefix(".venv/bin/")
        if place == "fedsa":
            check_fedsa(arguments)
        elif place in ("python", "python3") and arguments[:1] != ["-m"]:
            check_program(arguments, monkeypatch)
        elif place == "pip":
            check_pip(arguments)
        elif place == "pytest":
            marks = [arguments[number + 1] for number, word in enumerate(arguments) if word == "-m"]
            assert all(f'"{mark}: ' in (ROOT / "pyproject.toml").read_text("utf-8") for mark in marks)
        elif name.startswith(".ci/"):
            assert (ROOT / name).is_file()
        else:
            assert command.words[:3] == ("python3", "-m", "venv") or name in ("cd", "echo", "export", "git"), (
                f"{name} is not known here: say above the block why it is not run"
            )


@functools.cache
def parsed_only() -> Any:
    """Return the command line with verbs that do nothing but tell what they were given."""
    command = get_command(app)

    def put(group: Any, path: tuple[str, ...]) -> None:
        for name, verb in group.commands.items():
            if hasattr(verb, "commands"):
                put(verb, (*path, name))
            else:
                verb.callback = lambda told=(*path, name), **given: (told, given)

    put(command, ())
    return command


def given_to(arguments: list[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the verb and what it is given, as the command line itself reads it."""
    found: Any = parsed_only().main(arguments, prog_name="fedsa", standalone_mode=False)
    return found


def check_fedsa(arguments: list[str]) -> None:
    """Parse a command as fedsa does; recipes, sweeps, methods and settings that it names must be there."""
    verb, given = given_to(arguments)
    overrides = given.get("set_") or []
    if verb == ("sweep",) and given["sweep"]:
        own = given["sweep"] if given["sweep"] in sweep_names() else "quickstart"
        assert own == given["sweep"] or is_a_file(given["sweep"])
        sweep, _ = read_sweep(own)
        labels = {method.label for method in sweep.methods}
        assert {*(given["method"] or ())} <= labels | ({*algorithm_names()} if "all" in labels else set())
        recipe_with(given["recipe"] or sweep.recipe, overrides)
    elif given.get("recipe"):
        recipe_with(given["recipe"], overrides)
    elif verb == ("algorithms",) and given["name"]:
        assert ":" in given["name"] or given["name"] in algorithm_names()


def test_commands_in_the_table_of_what_is_asked_are_ones_that_there_are() -> None:
    text = (ROOT / "docs" / "asked-most.md").read_text("utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 12
    commands = [found for row in rows for found in re.findall(r"`(fedsa [^`]+)`", row[1])]
    assert len(commands) == 12
    for command in [*commands, *re.findall(r"`(fedsa [^`]+)`", text)]:
        (asked,) = commands_of(command)
        check_fedsa([*asked.words[1:]])


def is_a_file(name: str) -> bool:
    return name.endswith(".toml")


def recipe_with(name: str, overrides: list[str]) -> Recipe:
    """Return a recipe that the docs name, with settings changed; of a reader's own file, one that is like it."""
    if name == "federation.toml":
        (data,) = (tomllib.loads(block.text) for block in BLOCKS if "rows.csv" in block.text and is_recipe(block))
    else:
        assert name in recipe_names() or is_a_file(name), f"there is no recipe {name}"
        data, _ = read_recipe(name if name in recipe_names() else "quickstart")
    if "adapter.variant=vera" in overrides:  # it has other settings than the recipe's own variant
        data = {**data, "adapter": {"target_modules": data["adapter"]["target_modules"]}}
    return parse_recipe(apply_overrides(data, overrides))


def is_recipe(block: Block) -> bool:
    return block.language == "toml" and "[model]" in block.text


def readers_data() -> dict[str, Any]:
    """Return the README's recipe."""
    (block,) = [block for block in BLOCKS if block.page == "README.md" and is_recipe(block)]
    return tomllib.loads(block.text)


class Parsed(Exception):  # noqa: N818  # it is none
    """The options of a program are read."""


def check_program(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a program of benchmarks read its options, and go no further."""
    path, *options = arguments
    assert (ROOT / path).is_file()
    read = argparse.ArgumentParser.parse_args

    def stop(self: Any, *given: Any, **named: Any) -> None:
        read(self, *given, **named)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr("sys.argv", [path, *options])
        with pytest.raises(Parsed):
            program(Path(path).stem).main()


def check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for before, word in itertools.pairwise(arguments):
        if before == "-c":
            assert (ROOT / word).is_file()
        found = re.search(r"\[(.+)\]$", word)
        if found:
            assert {*found[1].split(",")} <= {*project["optional-dependencies"]}


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", of("toml"))
def test_settings_are_ones_that_there_are(block: Block, tmp_path: Path) -> None:
    data = tomllib.loads(block.text)
    if "project" in data:
        assert {*data["project"]["entry-points"]} <= {"fedsa.algorithms"}
    elif "methods" in data:
        (tmp_path / "own.toml").write_text(block.text, encoding="utf-8")
        read_sweep(str(tmp_path / "own.toml"))
    elif "model" in data:
        parse_recipe(data)
    else:  # a part of a recipe
        like = read_recipe("pacs-small")[0] if "image" in block.text or "pictures" in block.text else readers_data()
        parse_recipe({**like, **data})


@pytest.mark.parametrize("block", of("json"))
def test_json_is_what_is_printed(block: Block) -> None:
    for line in block.text.splitlines():
        said = json.loads(line)
        assert Predicted(**said).as_dict() == said


# -- what is run -------------------------------------------------------------------------------------------------------

NAMES = {"FacebookAI/roberta-base": "encoder", "HuggingFaceTB/SmolLM2-135M": "decoder"}
"""Models of the docs, and the tiny ones that stand for them."""


QUICK = {
    "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
    "training": {"local_steps": 3, "trainer": "sequential"},
}
"""Settings with which nothing is chosen by measuring."""


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("models")
    encoder = AutoModel.from_pretrained(tiny_model)
    encoder.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}  # as of a model of the hub that has no classes of its own
    encoder.save_pretrained(folder / "encoder")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder / "encoder")
    return {"encoder": folder / "encoder", "decoder": write_decoder(folder / "decoder")}


@pytest.fixture(scope="module")
def as_tiny(models: dict[str, Path]) -> Callable[[str], str]:
    """Put tiny models in the place of those that a text names, and few rounds in the place of many."""

    def put(text: str) -> str:
        for name, tiny in NAMES.items():
            text = text.replace(f'"{name}"', json.dumps(str(models[tiny])))
        text = re.sub(r"^rounds = \d+", "rounds = 2", text, flags=re.MULTILINE)
        return re.sub(r"\brounds=\d+,", f"rounds=2, **{QUICK},", text)

    return put


@pytest.fixture(scope="module")
def reader(
    models: dict[str, Path], as_tiny: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """What a reader has made before: a folder with his files and an encoder's adapters, and one with a decoder's."""
    folders = {name: tmp_path_factory.mktemp(f"reader-{name}") for name in models}
    encoder, decoder = folders["encoder"], folders["decoder"]
    for name, seed in (("north", 0), ("south", 1)):
        (encoder / "sites").mkdir(exist_ok=True)
        write_rows(encoder / "sites" / f"{name}.csv", 60, seed=seed)
    with contextlib.chdir(encoder):
        Path("mine.toml").write_text(as_tiny(tomli_w.dumps({**readers_data(), **QUICK})), encoding="utf-8")
        shutil.copy("sites/north.csv", "new.csv")
        result = fedsa.run(fedsa.Federation.from_recipe(parse_recipe(read_recipe("mine.toml")[0])), "runs/mine")
        result.export("adapters")
    with contextlib.chdir(decoder):
        federation = every_federation("generation", models["decoder"])
        fedsa.run(federation, "runs/chat", progress=False).export("adapters")
    return folders


@pytest.mark.run
@pytest.mark.parametrize("block", of("python"))
def test_python_runs(
    block: Block, reader: dict[str, Path], as_tiny: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reader["decoder" if "CausalLM" in block.text else "encoder"])
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(as_tiny(block.text), str(block), "exec"), {})  # noqa: S102  # it is what a reader does


@pytest.mark.slow
@pytest.mark.parametrize("block", of("console"))
def test_output_is_what_is_shown(block: Block, fedsa_command: Callable[..., Any]) -> None:
    """What is shown ends with ``...`` where there is more."""
    command, *shown = block.text.splitlines()
    (asked,) = commands_of(command.removeprefix("$ "))
    outcome = fedsa_command(*asked.words[1:])
    assert outcome.code == 0, outcome.err
    wanted = shown[: shown.index("...")] if "..." in shown else shown
    assert [line.rstrip() for line in outcome.out.splitlines()[: len(wanted)]] == wanted


def listed_in(page: str) -> Iterator[str]:
    """Yield the names in the first drawing of a folder that a page has."""
    block = next(block for block in BLOCKS if block.page == page and block.language == "text")
    for line in block.text.splitlines()[1:]:
        named = re.split(r"  +", line.strip())[0]
        yield from (name for name in re.split(r", ", named) if name != "...")


@pytest.mark.run
def test_folders_have_the_files_that_are_listed(reader: dict[str, Path]) -> None:
    run, adapter = reader["encoder"] / "runs/mine", reader["encoder"] / "adapters"
    sometimes = {"clients/00004-movie-3/personal-000008.safetensors", "under-way/", "samples.json", "analysis/"}
    sometimes |= {"privacy.secret"}
    for name in {*listed_in("docs/run-folder.md")} - sometimes:
        pattern = re.sub(r"\d{6}", "*", re.sub(r"/\d{5}-[^/]+/", "/*/", name))
        assert any(run.glob(pattern.rstrip("/"))), name
    for name in listed_in("docs/use-an-adapter.md"):
        assert (adapter / name).exists() or (adapter / "00000-north" / name).exists(), name


RUN_AS_THEY_STAND = ("README.md", "docs/use-an-adapter.md", "docs/predict.md", "docs/unseen-clients.md")
ELSEWHERE = ("quickstart", "site-a/run", "runs/qa", "runs/chat")
"""What a reader of these pages has and the folder of these tests has not."""


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_AS_THEY_STAND)
def test_commands_of_a_page_work_one_after_the_other(
    page: str,
    reader: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fedsa_command: Callable[..., Any],
) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(reader["encoder"], folder)
    shutil.copy(folder / "new.csv", folder / "new-site.csv")
    monkeypatch.chdir(folder)
    if page != "docs/predict.md":  # they make it
        shutil.rmtree("adapters")
    worked = 0
    for block in BLOCKS:
        if block.page != page or block.language != "bash" or block.reason:
            continue
        commands = [command.words for command in commands_of(block.text)]
        for before, words in itertools.pairwise([(), *commands]):
            if words[0].removeprefix(".venv/bin/") != "fedsa" or {*ELSEWHERE} & {*words}:
                continue
            monkeypatch.setattr("sys.stdin", io.StringIO(before[1] if before[:1] == ("echo",) else ""))
            outcome = fedsa_command(*words[1:])
            assert outcome.code == 0, (words, outcome.err)
            worked += 1
    assert worked
