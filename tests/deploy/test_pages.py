"""The pages on deployment: their recipe and their commands, run as they stand there, with a server and sites apart."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from fedsa.cli import app
from fedsa.deploy.preflight import UnreachableError, check_server, read_kit
from support.extras import NEEDS_NVFLARE
from support.repository import ROOT
from support.tiny_rows import write_rows

PAGES = ("across-machines", "for-a-site")
SECONDS = 300  # a run takes half a minute, and more on a busy machine


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The arguments of each fedsa command in a page's blocks."""
    lines = [shlex.split(line, comments=True) for block in blocks(page, "bash") for line in block.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["fedsa"]]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_looked_at(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert set(re.findall(r"```([a-z]+)\n", text)) <= {"bash", "toml", "text"}  # text: drawings
    words = {line.split()[0] for block in blocks(page, "bash") for line in block.splitlines()}
    assert words <= {"fedsa", "pip"}  # pip: what it would install is here already


@pytest.mark.parametrize("words", [words for page in PAGES for words in commands(page)], ids=" ".join)
def test_the_command_line_takes_every_command(words: Sequence[str]) -> None:
    """The ones that download models are not run here; `test_local.py` runs `deploy local` on a tiny one."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    command.make_context("fedsa", rest)


@contextlib.contextmanager
def started(words: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process of its own, which is interrupted as by Ctrl-C at the end of the context."""
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "fedsa", *words], stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def wait_for_server(kit: Path) -> None:
    """Return when a server answers."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            return check_server(read_kit(kit))
        except UnreachableError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@pytest.mark.slow  # each of six processes loads the libraries; `test_faults.py` runs the same commands by default
@NEEDS_NVFLARE
@pytest.mark.skipif(sys.platform != "linux", reason="a deployment is tested on Linux")
def test_the_steps_of_the_page_lead_to_an_adapter_at_each_site(
    fedsa_command: Callable[..., Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (recipe,) = blocks("across-machines", "toml")
    (tmp_path / "federation.toml").write_text(
        recipe.replace("FacebookAI/roberta-base", str(tiny_model)).replace("rounds = 20", "rounds = 2")
    )
    (tmp_path / "srv" / "models").mkdir(parents=True)
    (tmp_path / "srv" / "models" / "roberta-base").symlink_to(tiny_model)
    for number, name in enumerate(("rows.csv", "south.csv")):
        write_rows(tmp_path / name, 60, seed=number)
        text = (tmp_path / name).read_text().replace(",bad,", ",negative,").replace(",good,", ",positive,")
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
    # Of each command, the one that the page shows first: the later ones are variants.
    words = {command[1]: command for command in reversed(commands("across-machines")) if command[0] == "deploy"}
    init = [word.replace("server.example.org", "localhost") for word in words["init"]]
    made = fedsa_command(*init, "--port", port, "--set", "compute.device=cpu", "--set", "compute.threads=1")
    assert made.code == 0, made.err
    for name in ("north", "south"):
        (tmp_path / "federation" / name).rename(tmp_path / name)  # to its own machine
    north = [word.replace("/srv", str(tmp_path / "srv")) for word in words["site"]]
    south = ["south" if word == "north" else word.replace("rows.csv", "south.csv") for word in north]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(started(words["server"], tmp_path / "server.log"))
        wait_for_server(tmp_path / "north" / "kit")
        sites = [stack.enter_context(started(site, tmp_path / f"{site[2]}.log")) for site in (north, south)]
        assert server.wait(SECONDS) == 0, (tmp_path / "server.log").read_text()
        assert [site.poll() for site in sites] == [None, None], "a site takes part until Ctrl-C"
    assert [site.returncode for site in sites] == [130, 130]
    summary = json.loads((tmp_path / "runs" / "federation" / "summary.json").read_text())
    assert (summary["engine"], sorted(summary["per_client"])) == ("nvflare", ["north", "south"])
    assert "finished" in fedsa_command(*words["status"]).out
    for command in commands("for-a-site"):
        if command[1] == "request":
            continue  # it comes before all else; `test_project.py` runs it
        assert fedsa_command(*command).code == 0
    entries = json.loads(fedsa_command("deploy", "sent", "north", "--json").out)
    assert {tensor["name"].rsplit(":", 2)[1] for entry in entries for tensor in entry["tensors"]} == {"A"}
    (export,) = [command for command in commands("across-machines") if command[0] == "export"]
    assert fedsa_command(*export).code == 0
    assert len(list((tmp_path / "adapters").glob("*/adapter_model.safetensors"))) == 1
    page = (ROOT / "docs" / "for-a-site.md").read_text(encoding="utf-8")
    told = {name.strip("/") for name in re.findall(r"`([a-z.]+/?)`", page.partition("## Where things lie")[2])}
    assert {path.name for path in (tmp_path / "north").iterdir()} <= told, "the page says what each is"
