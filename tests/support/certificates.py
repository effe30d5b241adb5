"""Certificates and startup kits, made without NVFlare."""

from __future__ import annotations

import datetime
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsa.deploy.preflight import PACKAGES, Kit

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
Signed = tuple["x509.Certificate", "RSAPrivateKey"]


def make_certificate(name: str, issuer: Signed | None, *, begin: int = -1, end: int = 9) -> Signed:
    """Make a certificate that is valid from and until so many days from now; without an issuer, an authority's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + begin * DAY)
        .not_valid_after(NOW + end * DAY)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    return certificate, key


def write_kit(folder: Path, kind: Any, authority: Signed, own: Signed, port: int = 1) -> Kit:
    """Write the certificates and the note of a startup kit."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    kit = Kit(folder, "north", kind, "a project", "localhost", port, versions)
    kit.certificate.parent.mkdir(parents=True)
    kit.authority.write_bytes(authority[0].public_bytes(Encoding.PEM))
    kit.certificate.write_bytes(own[0].public_bytes(Encoding.PEM))
    kit.key.write_bytes(own[1].private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    kit.write()
    return kit
