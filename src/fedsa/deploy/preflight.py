"""Checks of a party's certificates and of its way to the server, before anything is started. Each error is one line.

The engine itself says nothing when a certificate is of another authority: it tries again forever. So the files of a
startup kit are read here, and the server's port is tried with a TLS handshake like the engine's.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import re
import socket
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

from pydantic import TypeAdapter, ValidationError

from fedsa.errors import MissingExtraError, UserError
from fedsa.texts.json_text import parsed_json
from fedsa.texts.words import counted

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = [
    "KIT",
    "PACKAGES",
    "Kit",
    "PreflightError",
    "UnreachableError",
    "check_kit",
    "check_server",
    "end_of",
    "missing_nvflare",
    "no_other_authority",
    "read_kit",
    "warning_of",
]

KIT = "kit"
"""The folder of a party's certificates and of NVFlare's files, in the party's folder."""

PACKAGES = ("fedsa", "nvflare")
"""All parties must have these packages in the same version; only the last number may differ."""

_NOTE = "fedsa.json"
_OWN_CERTIFICATE = {"server": "server.crt", "site": "client.crt", "admin": "client.crt"}
_SOON_DAYS = 30
_RENEW = (
    "Have whoever began the federation run `fedsa deploy renew`, put the file that it writes into this party's folder, "
    "and start the party again"
)
_EXPIRED, _NOT_YET, _OTHER_NAME = 10, 9, 62  # OpenSSL's codes of a failed verification


class PreflightError(UserError):
    """Something that keeps a party from taking part. The message says what is wrong, and who can mend it."""


class UnreachableError(PreflightError):
    """Nothing answers where the server should be."""


@final
@dataclass(frozen=True)
class Kit:
    """A party's startup kit: its folder, and the contents of `fedsa.json` in it.

    Attributes:
        path: the folder.
        party: its name.
        kind: server, site or administrator.
        project: the federation's name.
        host: of the server.
        port: of the server, as this party knows it: sites may be led to another one than it listens on.
        versions: of the packages that the kit was made with; see `PACKAGES`.
    """

    path: Path
    party: str
    kind: Literal["server", "site", "admin"]
    project: str
    host: str
    port: int
    versions: Mapping[str, str]

    def write(self) -> None:
        """Write what is known of the kit into its folder."""
        about = {name: value for name, value in vars(self).items() if name != "path"}
        (self.path / _NOTE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @property
    def authority(self) -> Path:
        """The certificate that all certificates of the federation are issued by."""
        return self.path / "startup" / "rootCA.pem"

    @property
    def certificate(self) -> Path:
        """The party's own certificate."""
        return self.path / "startup" / _OWN_CERTIFICATE[self.kind]

    @property
    def key(self) -> Path:
        """The party's private key."""
        return self.certificate.with_suffix(".key")


_KIT = TypeAdapter(Kit)


def missing_nvflare() -> MissingExtraError:
    """The error of a machine without the extra that a federation across machines needs."""
    return MissingExtraError("a federation across machines", "nvflare")


def read_kit(path: Path) -> Kit:
    """Return the startup kit in a folder.

    Raises:
        PreflightError: there is none.
    """
    try:
        about = parsed_json((path / _NOTE).read_bytes())
        return _KIT.validate_python({**about, "path": path})
    except ValidationError as error:
        first, *_ = error.errors(include_url=False, include_input=False)
        where = ".".join(str(part)[:40] for part in first["loc"])
        raise PreflightError(f"{path / _NOTE}, {where}: {first['msg']}: put it back as it was written") from None
    except (OSError, ValueError, TypeError):
        raise PreflightError(f"{path} is no startup kit: it has no {_NOTE} that can be read") from None


def check_kit(kit: Kit) -> None:
    """Check what needs no other party: the folder, certificates and key, this machine's clock, the installed packages.

    Raises:
        PreflightError: one of them is wrong.
        MissingExtraError: the engine is not installed.
    """
    try:
        from cryptography import x509
    except ImportError:
        raise missing_nvflare() from None
    _check_version(kit)
    for folder in (str(kit.path.resolve()), sys.executable):
        if re.search(r"""[\s"'\\#]""", folder):  # it puts its commands together as one text
            raise PreflightError(f"NVFlare starts no job where a path has spaces, quotes or a #: move {folder}")
    certificates = {}
    for path in (kit.authority, kit.certificate):
        try:
            certificates[path] = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError):
            raise PreflightError(f"{path} is missing or no certificate: ask for a new startup kit") from None
        _check_dates(certificates[path], path)
    _check_issued(certificates[kit.certificate], certificates[kit.authority], kit)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_cert_chain(kit.certificate, kit.key)
    except (OSError, ssl.SSLError):
        raise PreflightError(f"{kit.key} is missing, or not the key of {kit.certificate.name} beside it") from None


def end_of(kit: Kit) -> datetime.datetime:
    """The moment until which a party's certificates are valid, its own and the authority's.

    Raises:
        PreflightError: one is missing, or none.
    """
    from cryptography import x509

    try:
        files = [file.read_bytes() for file in (kit.authority, kit.certificate)]
        return min(x509.load_pem_x509_certificate(file).not_valid_after_utc for file in files)
    except (OSError, ValueError) as error:
        raise PreflightError(f"{kit.path} has a certificate that cannot be read: {error}") from None


def warning_of(kit: Kit) -> str:
    """What to tell of certificates that end in less than 30 days; empty: nothing."""
    end = end_of(kit)
    days = (end - _now()).days
    if days >= _SOON_DAYS:
        return ""
    return f"the certificate of {kit.party} ends on {end:%Y-%m-%d}, in {counted(max(days, 0), 'day')}. {_RENEW}"


def check_server(kit: Kit, *, seconds: float = 10) -> None:
    """Try the way from a site to the server: its name, its port, and a TLS handshake with both sides' certificates.

    Args:
        kit: the site's.
        seconds: for each step.

    Raises:
        UnreachableError: nothing answers.
        PreflightError: one side does not accept the other's certificate, or what answers is no server of this
            federation.
    """
    where = f"{kit.host}:{kit.port}"
    try:
        plain = socket.create_connection((kit.host, kit.port), timeout=seconds)
    except socket.gaierror:
        raise UnreachableError(f"no machine is called {kit.host!r}: check the name, and this network") from None
    except TimeoutError:
        raise UnreachableError(
            f"{where} has not answered in {seconds:.0f} s: a firewall, or the server is down"
        ) from None
    except OSError as error:
        raise UnreachableError(f"{where} cannot be reached ({error.strerror}): is the server running there?") from None
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(kit.authority))
    context.load_cert_chain(kit.certificate, kit.key)
    is_theirs = False  # whether the server's certificate is one of this federation
    with plain:
        try:
            with context.wrap_socket(plain, server_hostname=kit.host) as connection:
                is_theirs = True
                # In TLS 1.3 a server says only after the handshake that it does not accept a client's certificate. To
                # send something before it has said so could lose what it says.
                connection.settimeout(seconds / 10)
                try:
                    if not connection.recv(1):
                        raise ConnectionError
                except TimeoutError:
                    connection.settimeout(seconds)
                    connection.sendall(f"GET / HTTP/1.1\r\nHost: {kit.host}\r\nConnection: close\r\n\r\n".encode())
                    with contextlib.suppress(TimeoutError):
                        connection.recv(1)
        except ssl.SSLCertVerificationError as error:
            raise PreflightError(_refusal_here(error, kit, where)) from None
        except ssl.SSLError as error:
            raise PreflightError(_refusal_there(error, kit, where)) from None
        except OSError:
            if is_theirs:  # NVFlare's server ends the connection without a word
                raise PreflightError(_not_accepted(kit, where, "it has ended the connection")) from None
            raise PreflightError(f"{where} has ended the TLS handshake: is it a server of this federation?") from None


def no_other_authority(kit: Kit) -> dict[str, str]:
    """The environment in which Python's TLS trusts the federation's authority alone.

    NVFlare's clients also load the authorities of this machine's system, and do not look at names: a server with a
    certificate of any of those would do.
    """
    return {"SSL_CERT_FILE": str(kit.authority.resolve()), "SSL_CERT_DIR": str(kit.authority.resolve())}


def _refusal_here(error: ssl.SSLCertVerificationError, kit: Kit, where: str) -> str:
    """What is wrong with the server's certificate."""
    if error.verify_code == _EXPIRED:
        return (
            f"the certificate of the server at {where} has expired, or this machine's clock is wrong ({_now():%c} UTC)"
        )
    if error.verify_code == _NOT_YET:
        return f"the certificate of the server at {where} is not valid yet: this machine's clock says {_now():%c} UTC"
    if error.verify_code == _OTHER_NAME:
        return f"the server at {where} has a certificate for another name: {error.verify_message}"
    return (
        f"the server at {where} has a certificate of another authority than {kit.authority.name} in {kit.path}: "
        "this kit is of another federation, or what answers is not the server"
    )


def _refusal_there(error: ssl.SSLError, kit: Kit, where: str) -> str:
    """What is wrong, where the server refuses the handshake."""
    reason = (error.reason or "").lower()
    if "alert" in reason or "certificate" in reason:
        return _not_accepted(kit, where, reason.rpartition("alert_")[2].replace("_", " "))
    return f"what answers at {where} does not speak TLS as a server of this federation does ({reason})"


def _not_accepted(kit: Kit, where: str, said: str) -> str:
    return f"the server at {where} does not accept the certificate of {kit.party} ({said}): ask for a new startup kit"


def _check_version(kit: Kit) -> None:
    """Refuse packages of other versions than those that the kit was made with, if more than the last number differs."""
    for name in PACKAGES:
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise missing_nvflare() from None
        made_with = str(kit.versions.get(name))
        if installed.split(".")[:2] != made_with.split(".")[:2]:
            raise PreflightError(
                f"this machine has {name} {installed}, and the federation was made with {made_with}: "
                f"pip install '{name}=={made_with}'"
            )


def _check_dates(certificate: Certificate, path: Path) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if _now() < begin:
        raise PreflightError(
            f"{path} is valid from {begin:%Y-%m-%d %H:%M} UTC, and this machine's clock says "
            f"{_now():%Y-%m-%d %H:%M} UTC: set the clock"
        )
    if _now() > end:
        raise PreflightError(
            f"{path} has expired: it was valid until {end:%Y-%m-%d %H:%M} UTC, and this machine's clock says "
            f"{_now():%Y-%m-%d %H:%M} UTC. {_RENEW}"
        )


def _check_issued(certificate: Certificate, authority: Certificate, kit: Kit) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise PreflightError(
            f"{kit.certificate} was not issued by {kit.authority.name} beside it: the files are of two federations"
        ) from None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
