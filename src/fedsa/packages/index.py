"""Fetch one file of a distribution, from wherever pip on this machine would fetch it."""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsa.errors import FetchError, UserError
from fedsa.packages.archives import CHUNK_BYTES, DISK_FULL, TooLongError, copy_hashed
from fedsa.packages.catalogue import Part
from fedsa.packages.pip_settings import pip_settings

if TYPE_CHECKING:  # imported when something is fetched: it takes 0.1 s
    from unearth import PackageFinder, Source
    from unearth.fetchers import PyPIClient

__all__ = ["fetch"]

_ATTEMPTS = 3

_RETRY_SECONDS = 0.5


def fetch(part: Part, target: Path, note: str = "") -> None:
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
        except TooLongError as error:
            problem = str(error)
        except Exception as error:  # whatever goes wrong with a source, the next one is asked
            if getattr(error, "errno", None) in DISK_FULL:
                raise
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
    return problem or "; ".join(lines) or "does not have the file"


def _download(session: PyPIClient, url: str, target: Path, size: int) -> str:
    """Save what is at the URL; return its sha256. A transfer that breaks is begun anew.

    Raises:
        TooLongError: it has more than ``size`` bytes; the rest is not read.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            # identity and raw: nobody may unpack the .tar.gz on the way
            with session.get_stream(url, headers={"Accept-Encoding": "identity"}) as response, target.open("wb") as out:
                response.raise_for_status()
                return copy_hashed(response.iter_raw(CHUNK_BYTES), out, size)[0]
        except TooLongError:
            raise
        except Exception as error:
            if attempt == _ATTEMPTS or getattr(error, "errno", None) in DISK_FULL:
                raise
            time.sleep(attempt * _RETRY_SECONDS)


def _sources(settings: Mapping[str, str]) -> list[Source]:
    """The sources that pip would ask. Local folders come first: they are fast and need no network."""
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
