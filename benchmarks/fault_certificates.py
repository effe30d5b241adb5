"""Certificates that are wrong, for `deploy_faults.py`: each of a kind that a party is refused with."""

from __future__ import annotations

import datetime
import json
import shutil
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

from fault_federation import Federation
from fault_template import Template

REFUSED = {
    "a site's certificate has expired": ("has expired", False),
    "a site's certificate is of another authority": ("was not issued by rootCA.pem beside it", False),
    "a site has the kit of another federation": ("a certificate of another authority", False),
    "a site has another key": ("not the key of client.crt", False),
    "the server's certificate has expired": ("has expired", True),
}
"""What is wrong, with what the command must say, and whether it is the server's."""

_DAY = datetime.timedelta(days=1)


def spoil_kit(kind: str, run: Federation, folder: Path) -> Path:
    """Copy a party's folder, as `fedsa deploy init` wrote it, and make its certificates wrong; return the copy."""
    party = "server" if REFUSED[kind][1] else "south"
    place = folder / party
    shutil.copytree(run.template.folder / "federation" / party, place)
    startup = place / "kit" / "startup"
    name = "server" if party == "server" else "client"
    ours, theirs = _authority(run.template), _new_authority()
    if "expired" in kind:
        _issue(startup, name, ours, days=(-30, -1))
    elif "federation" in kind:
        _issue(startup, name, theirs, days=(-1, 30))
        (startup / "rootCA.pem").write_bytes(_pem(theirs[0]))
    elif "authority" in kind:
        _issue(startup, name, theirs, days=(-1, 30))
    else:
        kept = (startup / f"{name}.crt").read_bytes()
        _issue(startup, name, ours, days=(-1, 30))
        (startup / f"{name}.crt").write_bytes(kept)
    return place


class Stranger:
    """Somebody with a certificate of another authority, who connects to the server's port."""

    def __init__(self, template: Template) -> None:
        self._port, self._folder = template.port, template.folder / "stranger"
        self._folder.mkdir(exist_ok=True)
        shutil.copy(template.folder / "federation" / "south" / "kit" / "startup" / "client.crt", self._folder)
        _issue(self._folder, "client", _new_authority(), days=(-1, 30))

    def knock(self) -> None:
        """Try a handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(self._folder / "client.crt", self._folder / "client.key")
        with (
            suppress(OSError),
            socket.create_connection(("localhost", self._port), timeout=10) as plain,
            context.wrap_socket(plain) as connection,
        ):
            connection.recv(1)

    def close(self) -> None:
        """Delete what was made."""
        shutil.rmtree(self._folder)


def _authority(template: Template) -> tuple[Any, Any]:
    """The federation's own authority: certificate and key."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    (path,) = (template.folder / "federation" / "authority").rglob("state/cert.json")
    about = json.loads(path.read_text(encoding="utf-8"))
    key = load_pem_private_key(about["root_pri_key"].encode(), None)
    return x509.load_pem_x509_certificate(about["root_cert"].encode()), key


def _new_authority() -> tuple[Any, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "others")]), datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256()), key


def _issue(folder: Path, name: str, authority: tuple[Any, Any], *, days: tuple[int, int]) -> None:
    """Replace a certificate and its key by new ones for the same name, valid from and until so many days from now."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    model = x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())
    key, now = rsa.generate_private_key(public_exponent=65537, key_size=2048), datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(model.subject)
        .issuer_name(authority[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * _DAY)
        .not_valid_after(now + days[1] * _DAY)
    )
    (folder / f"{name}.crt").write_bytes(_pem(builder.sign(authority[1], hashes.SHA256())))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))
