"""The primitives, from libraries: X25519, HKDF, AES-CTR, ChaCha20-Poly1305 (cryptography), Shamir (pycryptodome)."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from fedsa.errors import MissingExtraError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = [
    "SECRET_BYTES",
    "agreed_key",
    "combine",
    "derived",
    "new_secret",
    "open_sealed",
    "public_key",
    "require_secure",
    "seal",
    "split",
    "stream",
]

SECRET_BYTES = 16
"""Of the secrets that are shared: what the library's field holds."""

_NONCE_BYTES = 12
_KEY_BYTES = 32


def require_secure() -> None:
    """Say which extra is missing, before anything begins.

    Raises:
        MissingExtraError: a library is not installed.
    """
    if any(find_spec(name) is None for name in ("Crypto", "cryptography")):
        raise MissingExtraError("secure aggregation across machines", "secure")


def new_secret() -> bytes:
    """A secret from the operating system's source of randomness. No seed of a recipe goes into it."""
    return os.urandom(SECRET_BYTES)


def derived(secret: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose (HKDF with SHA-256)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = b"fedsa secure aggregation 1|" + purpose.encode()
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(secret)


def public_key(private: bytes) -> bytes:
    """The public key (X25519) of a private one of 32 bytes."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def agreed_key(private: bytes, public: bytes, purpose: str) -> bytes:
    """The key of 32 bytes that the owners of two private keys (X25519) both have, for one purpose.

    Raises:
        ProtocolError: the public key is none.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise ProtocolError("a public key that is none") from None
    return derived(shared, purpose)


def stream(key: bytes, count: int) -> NDArray[np.uint64]:
    """Pseudo-random integers of 64 bits (AES-256 in counter mode). A key is used for one stream only."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CTR

    encryptor = Cipher(AES(key), CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * count)), dtype="<u8")


def seal(key: bytes, content: bytes, about: str) -> bytes:
    """Encrypt a content; whoever opens it must know what it is about (ChaCha20-Poly1305)."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    nonce = os.urandom(_NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, content, about.encode())


def open_sealed(key: bytes, sealed: bytes, about: str) -> bytes:
    """The content of what `seal` encrypted.

    Raises:
        ProtocolError: it was encrypted with another key, is about something else, or was changed.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about.encode())
    except (InvalidTag, ValueError):
        raise ProtocolError("a share that cannot be opened") from None


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares of a secret: so many of them give it back, and fewer tell nothing about it (Shamir).

    Args:
        secret: of `SECRET_BYTES`.
        threshold: how many are needed, at least 2.
        count: how many there are.
    """
    from Crypto.Protocol.SecretSharing import Shamir

    return [share for _, share in Shamir.split(threshold, count, secret)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of which these are shares.

    Args:
        shares: exactly as many as are needed, by their place in what `split` returned, counted from 0.
    """
    from Crypto.Protocol.SecretSharing import Shamir

    return bytes(Shamir.combine([(place + 1, share) for place, share in shares.items()]))
