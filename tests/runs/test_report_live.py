"""The report of a run that goes on: what its page says in each state, and that the server has nothing else."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedsa.errors import UserError
from fedsa.runs.report.live import LiveReport
from fedsa.runs.report.serving import ReportServer
from fedsa.store import BegunRun, RunFolder
from support.made_runs import make_run, metrics_of
from support.run_folders import resealed, unfinish

pytestmark = pytest.mark.run


def words(html: str) -> str:
    assert html.count("<script>") == 2
    text = html[html.index("<main>") : html.index("</main>")]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


class Clock:
    """Seconds that rise when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_page_follows_a_run_from_before_its_beginning_to_its_report(
    tiny_run: Callable[..., Any], tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """Each state is one that the run itself has written."""
    finished, run, clock = tiny_run().folder.path, tmp_path / "my run", Clock()
    live = LiveReport(run, clock=clock)
    said = words(live.page().html)
    assert "There is no folder my run yet. This page waits for the run" in said
    assert live.page() is live.page()
    run.mkdir()
    clock.now += 10
    assert "There is no folder" in words(live.page().html)  # nothing in it: nothing that would tell
    recipe = RunFolder.open(finished).recipe_text()
    seen = {live.page().version}
    with RunFolder.create(run, recipe).locked():
        page = live.page()  # at once: it was not in use a moment ago
        assert "The run has begun: rows and model are loaded." in words(page.html)
        assert "round 0 of 2" in page.html
        seen.add(page.version)
    shutil.rmtree(run)
    shutil.copytree(finished, run)
    unfinish(run)
    clock.now += 10
    page = live.page()
    said = words(page.html)
    assert "Nobody works on this run: it was interrupted after 1 of 2 rounds. `fedsa resume my run` goes on" in said
    assert "Best so far on validation: round 1" in said
    seen.add(page.version)
    with RunFolder.open(run, write=True).locked():
        clock.now += 10
        page = live.page()
        assert re.search(r"Round 2 of 2 is under way\. About \d+ s are left", words(page.html))
        seen.add(page.version)
    shutil.rmtree(run)
    shutil.copytree(finished, run)
    clock.now += 10
    page = live.page()
    assert "After 2 rounds, the model of round" in words(page.html)
    assert 'http-equiv="refresh"' not in page.html
    assert page.version not in seen
    assert len(seen) == 4


def test_a_running_page_has_each_clients_last_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["a", "b"], metrics=metrics_of(["a", "b"])[:6])

    def take_back(folder: RunFolder, progress: Any) -> None:
        progress.round, progress.chosen_round, progress.chosen_score = 2, 1, 0.6005
        folder._files.pop("summary.json")

    resealed(run, take_back)
    html = LiveReport(run).page().html
    said = words(html)
    assert "Best so far on validation: round 1, with 60.1 % accuracy" in said
    assert "a – 2 0.5 50.0 % 70.0 % +20.0" in said
    assert "b – 2 0.5 50.1 % 70.1 % +20.0" in said
    assert '<noscript><meta http-equiv="refresh"' in html
    assert "round 1: best so far" in said


def test_a_damaged_run_is_told_on_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["a", "b"])
    (run / "metrics.jsonl").write_text("{}")
    assert "run cannot be shown" in words(LiveReport(run).page().html)
    assert "metrics.jsonl" in words(LiveReport(run).page().html)


def test_a_round_that_ends_while_its_files_are_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit point is read, then a round is committed, then the files are read that it was to name."""
    from fedsa.store import begun

    run, calls = make_run(tmp_path / "run", ["a", "b"]), []
    read = begun.read_commit

    def read_and_go_on(path: Path) -> Any:
        commit = read(path)
        if not calls:
            calls.append(path)
            resealed(run, lambda folder, progress: folder.write_json("environment.json", {"python": "4"}))
        return commit

    monkeypatch.setattr(begun, "read_commit", read_and_go_on)
    assert BegunRun.read(run).environment == {"python": "4"}
    assert calls == [run]


@contextmanager
def served(run: Path, **options: Any) -> Iterator[ReportServer]:
    with ReportServer(run, port=0, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: ReportServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), dict(answer.getheaders())
    connection.close()
    return found


def test_the_server_has_the_report_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["a", "b"])
    with served(run) as server:
        assert server.url == f"http://127.0.0.1:{server.server_port}/"
        status, html, headers = ask(server, "/")
        assert status == 200
        assert "After 3 rounds" in words(html)
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        (version,) = re.findall(r'data-version="(\w+)"', html)
        assert ask(server, f"/?after={version}")[:2] == (204, "")
        assert ask(server, "/?after=another")[0] == 200
        assert ask(server, "/", "HEAD")[:2] == (200, "")
        assert ask(server, "/favicon.ico")[0] == 204
        for path in (
            "/recipe.toml",
            "/../recipe.toml",
            "/%2e%2e/recipe.toml",
            "//recipe.toml",
            "/state.json",
            "/index.html",
        ):
            assert ask(server, path)[0] == 404, path
        assert ask(server, "/", "POST")[0] == 501
        assert not (run / "report.html").exists()


def test_a_page_of_another_site_cannot_read_the_report_through_the_browser(tmp_path: Path) -> None:
    """Its name may be made to lead to this machine, but the browser tells the name that it asked for."""
    with served(make_run(tmp_path / "run", ["a", "b"])) as server:
        status, text, headers = ask(server, "/", Host="evil.example:8103")
        assert (status, text) == (421, "This server is for its own machine only.\n")
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        for host in ("localhost:9000", "127.0.0.1", "[::1]:8103"):
            assert ask(server, "/", Host=host)[0] == 200
        assert ask(server, "/", Host="[")[0] == 421  # that is no host at all


def test_the_address_that_is_printed_is_answered_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many systems give a machine's own name the address 127.0.1.1."""
    known = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **named: known("127.0.0.1", *more, **named))
    with served(make_run(tmp_path / "run", ["a", "b"]), host="My-Laptop") as server:
        assert server.url == f"http://My-Laptop:{server.server_port}/"
        assert ask(server, "/", Host=f"my-laptop:{server.server_port}")[0] == 200


def test_a_taken_port_is_named_or_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsa.runs.report import serving

    with ReportServer(tmp_path, port=0) as first:
        taken = first.server_port
        with pytest.raises(UserError, match=f"port {taken} is taken by another program.* port 0"):
            ReportServer(tmp_path, port=taken)
        with ReportServer(tmp_path, port=0) as second:
            free = second.server_port
        monkeypatch.setattr(serving, "PORTS", [taken, free])
        with ReportServer(tmp_path) as third:
            assert third.server_port == free
    with pytest.raises(UserError, match="no such name: this machine knows no such address"):
        ReportServer(tmp_path, host="no such name", port=0)


def test_a_browser_that_goes_away_is_no_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with served(make_run(tmp_path / "run", ["a", "b"])) as server:
        gone = socket.create_connection(("127.0.0.1", server.server_port))
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # no farewell
        gone.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        gone.close()
        assert ask(server, "/")[0] == 200
    assert capfd.readouterr().err == ""


def test_the_command_writes_serves_and_tells_in_json(
    fedsa_command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", ["a", "b"])
    done = fedsa_command("report", run)
    assert (done.code, done.out) == (0, f"{run / 'report.html'}\n")
    told = json.loads(fedsa_command("report", run, "--to", tmp_path / "x.html", "--json").out)
    size = (tmp_path / "x.html").stat().st_size
    assert told == {"run": str(run), "report": str(tmp_path / "x.html"), "against": None, "bytes": size}
    for words in (["--port", "1"], ["--host", "localhost"]):
        assert f"{words[0]} goes with --serve" in fedsa_command("report", run, *words).err
    assert "--to goes without --serve" in fedsa_command("report", run, "--serve", "--to", tmp_path / "x.html").err
    assert "is a file: give the run folder" in fedsa_command("report", run / "recipe.toml", "--serve").err

    def press_ctrl_c(server: ReportServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ReportServer, "serve_forever", press_ctrl_c)
    done = fedsa_command("report", tmp_path / "later", "--serve", "--port", "0")
    assert done.code == 0
    assert re.match(rf"http://127\.0\.0\.1:\d+/  shows {tmp_path / 'later'}; Ctrl-C ends this\n", done.out)
    assert "there is no run in" in done.out
    assert "stopped serving" in done.out
    done = fedsa_command("report", run, "--serve", "--json", "--port", "0")
    assert json.loads(done.out)["url"].startswith("http://127.0.0.1:")
    done = fedsa_command("report", run, "--serve", "--host", "0.0.0.0", "--port", "0")  # noqa: S104
    assert "other machines can read the page" in done.out
