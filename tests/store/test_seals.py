"""Tables that carry their own hash: whatever bit is changed, they are not read."""

from __future__ import annotations

import json

import pytest

from fedsa.store.seals import sealed_table, unsealed_table

TABLE = {"run": "a" * 64, "opened": 12, "sites": {"nörd": {"clients": ["a", "b"]}}}
NAMES = tuple(TABLE)


def test_what_is_sealed_is_read_back() -> None:
    assert unsealed_table(sealed_table(TABLE)) == TABLE
    assert unsealed_table(sealed_table(TABLE), older=NAMES) == TABLE


def test_one_without_a_hash_is_read_where_there_are_older_ones() -> None:
    assert unsealed_table(json.dumps(TABLE), older=NAMES) == TABLE
    with pytest.raises(ValueError, match="does not fit the hash"):
        unsealed_table(json.dumps(TABLE))


def test_every_flipped_bit_is_noticed() -> None:
    """Those in the name of the hash too, which would make it an older table of one more name."""
    content = sealed_table(TABLE).encode()
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            with pytest.raises(ValueError, match=r"\w"):
                unsealed_table(changed.decode(), older=NAMES)
