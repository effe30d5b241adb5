"""The primitives: an extra that is missing, and known values of what the libraries do."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from fedsa.errors import MissingExtraError, ProtocolError
from fedsa.secure import require_secure
from fedsa.secure.primitives import agreed_key, combine, derived, new_secret, public_key, split, stream
from support.extras import NEEDS_SECURE


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsa.secure.primitives.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedsa\[secure\]'"):
        require_secure()


def test_an_extra_that_is_there_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsa.secure.primitives.find_spec", lambda name: sys)
    require_secure()


@NEEDS_SECURE
def test_two_owners_of_keys_have_one_key_for_each_purpose() -> None:
    one, two = (derived(new_secret(), "a test") for _ in range(2))
    key = agreed_key(one, public_key(two), "masks")
    assert key == agreed_key(two, public_key(one), "masks")
    assert key != agreed_key(one, public_key(two), "shares")
    for wrong in (b"", bytes(31), bytes(32)):  # the last one is a point of low order: everybody would know the key
        with pytest.raises(ProtocolError, match="a public key that is none"):
            agreed_key(one, wrong, "masks")


@NEEDS_SECURE
def test_the_stream_is_aes_in_counter_mode() -> None:
    """The first block of AES-256 with a key of zeros, from the standard's vectors (dc95c078...)."""
    assert stream(bytes(32), 2).tobytes().hex() == "dc95c078a2408989ad48a21492842087"


@NEEDS_SECURE
@pytest.mark.parametrize("which", [(0, 1, 2), (0, 2, 4), (2, 3, 4)])
def test_so_many_shares_give_a_secret_back_and_fewer_do_not(which: Any) -> None:
    secret = new_secret()
    shares = split(secret, 3, 5)
    assert combine({place: shares[place] for place in which}) == secret
    assert combine({place: shares[place] for place in which[:2]}) != secret
