"""Certificates and keys: a key that is made where it stays, a certificate for it, and certificates that are renewed.

A renewed certificate is for the same key, and so is that of the authority. So what travels is no secret, and parties
with old and new certificates understand each other for as long as the old ones are valid.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fedsa.deploy.preflight import Kit, PreflightError, check_kit, missing_nvflare
from fedsa.errors import UserError, near
from fedsa.store.files import write_atomically

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, CertificateSigningRequest, Extension, ExtensionType, Name

__all__ = ["add_key", "certify", "has_expired", "make_request", "name_in", "renew", "take_renewed"]

_DAYS = 360
_STATE = Path("state", "cert.json")  # NVFlare's: the authority's key, and the certificates that it has issued


def make_request(folder: Path, site: str) -> Path:
    """Make a site's private key where it stays, and the request for a certificate that is sent to the authority.

    Args:
        folder: for both; must not have a key yet.
        site: its name.

    Returns:
        The request: a file that may be read by anybody.

    Raises:
        UserError: there is a key already.
        MissingExtraError: the extra is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    except ImportError:
        raise missing_nvflare() from None
    folder.mkdir(parents=True, exist_ok=True)
    asked = folder / f"{site}.csr"  # its key may be in the kit by now
    if asked.exists():
        raise UserError(f"{asked} is there already: a new key would make the certificate for it worthless")
    key, path = rsa.generate_private_key(public_exponent=65537, key_size=3072), folder / f"{site}.key"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UserError(f"{path} is there already: a new key would make the certificate for it worthless") from None
    with os.fdopen(handle, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, site)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    asked.write_bytes(request.public_bytes(Encoding.PEM))
    return asked


def name_in(request: Path) -> str:
    """The name of the site that has made a request.

    Raises:
        UserError: it is none.
    """
    return _read_request(request)[1]


def add_key(kit: Kit, key: Path) -> None:
    """Move the private key that a site has made into the kit that it was given; where it does not fit, it stays.

    Raises:
        PreflightError: the kit's certificate is for another key.
    """
    key.replace(kit.key)  # as a whole, with its mode: there is one copy at any time
    try:
        check_kit(kit)
    except UserError:
        kit.key.replace(key)
        raise


def certify(kit: Kit, request: Path, authority: Path) -> None:
    """Replace a kit's certificate by one for the key that a request was made with, and take the kit's own key away.

    Args:
        kit: a site's, just made.
        request: the site's.
        authority: the folder of NVFlare's project.

    Raises:
        UserError: it is not a request, or not that site's.
    """
    kit.key.unlink()
    try:
        asked, name = _read_request(request)
        if name != kit.party:
            raise UserError(f"{request} is not a request for a certificate of {kit.party}")
    except UserError:
        shutil.rmtree(kit.path)  # so that it is made again, with a better request
        raise
    issuer = _Issuer(authority)
    made = issuer.issue(issuer.issued(kit.party), asked.public_key())
    issuer.write()
    kit.certificate.write_bytes(_pem(made))


def renew(authority: Path, parties: Mapping[str, Iterable[str]], to: Path) -> dict[str, Path]:
    """Make new certificates for the keys that parties have already, and a new one of the authority.

    Args:
        authority: the folder of NVFlare's project.
        parties: party to the names in its certificates: the server has two, its own and the administrator's.
        to: folder for a file for each party; it has nothing secret in it.

    Returns:
        Party to its file.

    Raises:
        UserError: a party has no certificate yet.
    """
    issuer = _Issuer(authority)
    issuer.renew_itself()
    files = {}
    to.mkdir(exist_ok=True)
    for party, names in parties.items():
        old = [issuer.issued(name) for name in names]
        made = [issuer.issue(each, each.public_key()) for each in old]
        files[party] = to / f"{party}.crt"
        issuer.write()  # first: what is given away can be renewed again
        write_atomically(files[party], b"".join(map(_pem, [*made, issuer.certificate])))
    return files


def has_expired(authority: Path) -> bool:
    """Say whether the authority's own certificate has expired, so that it cannot issue others.

    Args:
        authority: the folder of NVFlare's project.
    """
    return _Issuer(authority).certificate.not_valid_after_utc < _now()


def take_renewed(folder: Path, party: str, kits: Iterable[Kit]) -> bool:
    """Put renewed certificates into a party's kits, if their file lies in the party's folder; it then goes.

    Args:
        folder: the party's.
        party: its name, which the file has.
        kits: the party's.

    Returns:
        Whether there were any.

    Raises:
        PreflightError: the file is none, or of another authority or another key.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    path = folder / f"{party}.crt"
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise PreflightError(f"{path} holds no certificates ({error}): take the file that was sent") from None
    *own, authority = found
    for kit in kits:
        before = [x509.load_pem_x509_certificate(file.read_bytes()) for file in (kit.certificate, kit.authority)]
        fitting = [each for each in own if each.public_key() == before[0].public_key()]
        if not fitting or authority.public_key() != before[1].public_key():
            raise PreflightError(f"{path} is not for the key of {kit.party}, or of another federation: remove it")
        try:
            fitting[0].verify_directly_issued_by(authority)
            authority.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            raise PreflightError(f"{path} was changed on the way: have it sent again") from None
        write_atomically(kit.authority, _pem(authority))
        write_atomically(kit.certificate, _pem(fitting[0]))
        check_kit(kit)
    path.unlink()
    return True


@final
class _Issuer:
    """The authority, as NVFlare keeps it.

    Args:
        folder: of NVFlare's project.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        self._path = folder / _STATE
        try:
            self._state: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            self._key: Any = load_pem_private_key(self._state["root_pri_key"].encode(), None)
            self.certificate = x509.load_pem_x509_certificate(self._state["root_cert"].encode())
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"the authority's file {self._path} cannot be read ({error}): put it back") from None

    def issued(self, name: str) -> Certificate:
        """The certificate that was issued last for a name.

        Raises:
            UserError: there is none.
        """
        from cryptography import x509

        entry = self._state.get(name)
        if not isinstance(entry, dict):
            known = [each for each, value in self._state.items() if isinstance(value, dict)]
            raise UserError(f"no certificate was ever made for {name!r}; {near(name, known)}")
        return x509.load_pem_x509_certificate(entry["cert"].encode())

    def renew_itself(self) -> None:
        """Take a new certificate for the authority's own key."""
        old = self.certificate
        self.certificate = self._signed(old.subject, old.public_key(), old.extensions)
        self._state["root_cert"] = _pem(self.certificate).decode()

    def issue(self, model: Certificate, key: Any) -> Certificate:
        """A certificate like another one, for a public key, valid from now on; it takes the place of the other one."""
        from cryptography import x509

        identifier = x509.SubjectKeyIdentifier.from_public_key(key)
        others = [extension for extension in model.extensions if extension.oid != identifier.oid]
        made = self._signed(model.subject, key, [*others, x509.Extension(identifier.oid, False, identifier)])
        self._state[_common_name(model.subject)]["cert"] = _pem(made).decode()
        return made

    def write(self) -> None:
        """Write what was issued, so that it can be renewed again."""
        write_atomically(self._path, json.dumps(self._state).encode())
        self._path.chmod(0o600)

    def _signed(self, subject: Name, key: Any, extensions: Iterable[Extension[ExtensionType]]) -> Certificate:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        begin = _now().replace(microsecond=0)
        end = begin + datetime.timedelta(days=_DAYS)  # NVFlare wants exactly as many of its authority
        if subject != self.certificate.subject:
            end = min(end, self.certificate.not_valid_after_utc)
        builder = (
            x509.CertificateBuilder(extensions=list(extensions))
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
        )
        return builder.sign(self._key, hashes.SHA256())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _pem(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _common_name(name: Name) -> str:
    from cryptography.x509 import NameOID

    return str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _read_request(path: Path) -> tuple[CertificateSigningRequest, str]:
    """A request for a certificate, and the name in it.

    Raises:
        UserError: it is none.
    """
    from cryptography import x509

    try:
        asked = x509.load_pem_x509_csr(path.read_bytes())
        if asked.is_signature_valid:
            return asked, _common_name(asked.subject)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path} is no request for a certificate ({error}): `fedsa deploy request` makes one") from None
    raise UserError(f"{path} is a request that was changed: `fedsa deploy request` makes one")
