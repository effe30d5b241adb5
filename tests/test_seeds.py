"""Seeds: another purpose, another seed; the same in every process and on every machine."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa.seeds import derive_seed

# \x1f stands between the parts
PURPOSE = st.lists(
    st.integers(-(2**40), 2**40) | st.text(st.characters(exclude_characters="\x1f"), max_size=8), max_size=4
)


@given(one=st.tuples(st.integers(0, 99), PURPOSE), other=st.tuples(st.integers(0, 99), PURPOSE))
@settings(max_examples=200, deadline=None, database=None, derandomize=True)
def test_another_purpose_gives_another_seed(one, other):
    first, second = (derive_seed(seed, *purpose) for seed, purpose in (one, other))
    assert (first == second) is (one == other)
    assert 0 <= first < 2**63


def test_a_number_is_not_its_text():
    """A client may be called "1": what is drawn for it must not be what is drawn for number 1."""
    purposes = [*itertools.product(("a", 1, "1"), repeat=2), (11,), ("11",), ("1", "", "1")]
    assert len({derive_seed(0, *purpose) for purpose in purposes}) == len(purposes)


def test_seeds_never_change():
    """A run goes on, and is repeated, in another version of fedsa: these are part of what it writes."""
    assert derive_seed(0, "rows", "site 0", 1) == 7793058455168520814
