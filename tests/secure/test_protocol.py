"""Secure aggregation among parties in one process: sums, drop-outs, what a party refuses, what a message shows."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from fedsa.errors import ProtocolError
from fedsa.secure import Party, fixed_point_for, threshold
from fedsa.secure.fixed_point import added
from fedsa.secure.party import PAIR, SELF, as_bytes, as_text
from fedsa.secure.vectors import as_state, as_vector
from fedsa.types import Factor, Key, State
from support.extras import NEEDS_SECURE
from support.sums import CONTEXT, prepared, summed

pytestmark = NEEDS_SECURE

NAMES = ("a", "b", "c", "d", "e")
KEY, HEAD = Key("layer", Factor.A), Key("head", Factor.HEAD)


def values_of(name: str, largest: float = 1e4) -> State:
    random = torch.Generator().manual_seed(ord(name))
    return {
        KEY: (2 * torch.rand(3, 50, generator=random) - 1) * largest,
        HEAD: torch.randn(7, generator=random) * 1e-3,
    }


@pytest.mark.parametrize(
    ("before_sharing", "before_sending"), [("", ""), ("", "b"), ("c", ""), ("", "ae"), ("a", "c"), ("de", "")]
)
@pytest.mark.parametrize("largest", [1e-4, 1.0, 1e4, 1e6])
def test_the_mean_is_the_plain_one_within_the_bound(before_sharing: str, before_sending: str, largest: float) -> None:
    """With 0, 1 and 2 of 5 dropped out, for small and large values."""
    weights = {name: 100 + 37 * place for place, name in enumerate(NAMES)}
    point = fixed_point_for(sum(weights.values()))
    vectors = {
        name: as_vector(point.encode(values_of(name, largest), weights[name], name), weights[name]) for name in NAMES
    }
    shapes = {key: tuple(tensor.shape) for key, tensor in values_of("a").items()}
    tensors, weight = as_state(summed(vectors, before_sharing, before_sending), shapes)
    there = [name for name in NAMES if name not in before_sharing + before_sending]
    assert weight == sum(weights[name] for name in there)
    mean = point.decode_mean(tensors, weight)
    for key in shapes:
        exact = sum(values_of(name, largest)[key].double() * weights[name] for name in there) / weight
        rounding = 2.0**-50 * float(exact.abs().max())  # of the float64 numbers that both are given as
        assert float((mean[key] - exact).abs().max()) <= point.largest_error + rounding
    assert point.largest_error < 1e-9


def test_the_masks_leave_no_trace() -> None:
    """To the last bit: a simulation may leave them out."""
    point = fixed_point_for(5)
    encoded = {name: point.encode(values_of(name), 1, name) for name in NAMES}
    shapes = {key: tuple(tensor.shape) for key, tensor in values_of("a").items()}
    tensors, _ = as_state(summed({name: as_vector(each, 1) for name, each in encoded.items()}), shapes)
    plain = added(encoded.values())
    assert all(torch.equal(tensors[key], plain[key]) for key in shapes)


def test_one_partys_message_is_uniform() -> None:
    """All bytes of what a party sends are equally likely, though its values are all alike."""
    parties, inbox, _ = prepared(NAMES)
    masked = parties["a"].mask(np.full(8000, 7, dtype=np.uint64), inbox["a"])
    for place in range(8):
        counts = np.bincount(masked.view(np.uint8)[place::8], minlength=256)
        assert chisquare(counts).pvalue > 1e-6, "a good generator fails about once in a million"


def test_without_masks_it_would_not_be() -> None:
    """The test above can fail."""
    point = fixed_point_for(5)
    vector = as_vector(point.encode({KEY: torch.randn(8000, generator=torch.Generator().manual_seed(0))}, 1, "a"), 1)
    assert chisquare(np.bincount(vector.view(np.uint8)[7::8], minlength=256)).pvalue < 1e-6


def sent(parties: dict[str, Any], inbox: dict[str, Any], names: Collection[str]) -> None:
    for name in names:
        parties[name].mask(np.zeros(3, dtype=np.uint64), inbox[name])


def test_a_party_helps_to_open_one_sum_only() -> None:
    """Of no party does a server get both secrets, nor two sums that differ in one party."""
    parties, inbox, _ = prepared(NAMES)
    sent(parties, inbox, NAMES)
    first = parties["a"].help_open(["a", "b", "c", "d"])
    assert {*first[SELF]} == {"a", "b", "c", "d"}
    assert {*first[PAIR]} == {"e"}
    assert parties["a"].help_open(["d", "c", "b", "a"]) == first, "the same question has the same answer"
    for others in (NAMES, ["a", "b", "c"], ["a", "b", "c", "e"]):
        with pytest.raises(ProtocolError, match="another sum of this round"):
            parties["a"].help_open(others)


@pytest.mark.parametrize(
    ("survivors", "text"),
    [
        (["a", "b"], "a sum of 2 of 5 sites is not opened: 3 are needed"),
        (["b", "c", "d"], "other sites than those that have taken part"),
        (["a", "b", "c", "z"], "other sites than those that have taken part"),
    ],
)
def test_a_party_does_not_open_the_sum_of_a_few_or_of_strangers(survivors: list[str], text: str) -> None:
    parties, inbox, _ = prepared(NAMES)
    sent(parties, inbox, "a")
    with pytest.raises(ProtocolError, match=text):
        parties["a"].help_open(survivors)


def test_a_party_that_has_sent_nothing_helps_nobody() -> None:
    parties, _, _ = prepared(NAMES)
    with pytest.raises(ProtocolError, match="has sent nothing"):
        parties["a"].help_open(NAMES)


def test_below_the_threshold_the_server_learns_nothing() -> None:
    parties, inbox, opening = prepared(NAMES)
    sent(parties, inbox, NAMES)
    answers = {name: parties[name].help_open(NAMES) for name in "ab"}
    with pytest.raises(ProtocolError, match="the sum has the help of 2 sites, and 3 of 5 are needed"):
        opening.masks(NAMES, answers, 3)


def test_more_than_half_is_needed() -> None:
    """Else one half could be asked for one secret of a party, and the other half for the other one."""
    assert all(2 * threshold(count) > count for count in range(3, 200))


def roster_of(parties: Collection[Party]) -> dict[str, dict[str, str]]:
    return {party.name: party.public for party in parties}


def test_a_party_knows_whose_keys_it_shares_its_secrets_for() -> None:
    one, two, three, four = (Party.new(name, CONTEXT) for name in "abcd")
    with pytest.raises(ProtocolError, match="a sum of 2 sites would show single ones"):
        one.share(roster_of([one, two]))
    with pytest.raises(ProtocolError, match="do not have this site's own"):
        one.share(roster_of([two, three, four]))
    with pytest.raises(ProtocolError, match="two sites with one key"):
        one.share({**roster_of([one, two, three]), "d": two.public})
    answer = one.share(roster_of([one, two, three]))
    assert one.share(roster_of([one, two, three])) == answer
    with pytest.raises(ProtocolError, match="other keys than those"):
        one.share(roster_of([one, two, three, four]))


def test_shares_are_for_one_receiver_and_one_attempt() -> None:
    parties, inbox, _ = prepared(NAMES)
    good = inbox["a"]
    for_b = inbox["b"]
    for wrong in (
        {**good, "c": for_b["c"]},
        {**good, "c": good["d"]},
        {**good, "c": "AAAA"},
        {**good, "c": as_text(bytes([as_bytes(good["c"])[0] ^ 1]) + as_bytes(good["c"])[1:])},
    ):
        with pytest.raises(ProtocolError, match="cannot be opened"):
            parties["a"].mask(np.zeros(3, dtype=np.uint64), wrong)
    with pytest.raises(ProtocolError, match="whose keys are not known"):
        parties["a"].mask(np.zeros(3, dtype=np.uint64), {**good, "z": good["c"]})
    with pytest.raises(ProtocolError, match="too few for a sum"):
        parties["a"].mask(np.zeros(3, dtype=np.uint64), {"c": good["c"]})


def test_a_party_makes_its_masks_for_one_set_of_others() -> None:
    """Two messages with other masks would show how these differ."""
    parties, inbox, _ = prepared(NAMES)
    good = inbox["a"]
    first = parties["a"].mask(np.zeros(3, dtype=np.uint64), good)
    assert np.array_equal(parties["a"].mask(np.zeros(3, dtype=np.uint64), good), first)
    with pytest.raises(ProtocolError, match="other sites than those that this site has made its masks for"):
        parties["a"].mask(np.zeros(3, dtype=np.uint64), {name: good[name] for name in "bcd"})


def test_a_party_masks_one_row_of_values() -> None:
    """Other values behind the same masks would show the difference of the two."""
    parties, inbox, _ = prepared(NAMES)
    sent(parties, inbox, NAMES)
    with pytest.raises(ProtocolError, match="other values than those that this site has masked before"):
        parties["a"].mask(np.ones(3, dtype=np.uint64), inbox["a"])


def test_a_party_goes_on_from_what_it_wrote_down() -> None:
    parties, inbox, _opening = prepared(NAMES)
    sent(parties, inbox, NAMES)
    again = Party.parse(json.loads(parties["a"].text()))
    none = np.zeros(3, dtype=np.uint64)
    assert np.array_equal(again.mask(none, inbox["a"]), parties["a"].mask(none, inbox["a"]))
    assert again.help_open(NAMES) == parties["a"].help_open(NAMES)
    with pytest.raises(ProtocolError, match="another sum"):
        Party.parse(json.loads(again.text())).help_open(["a", "b", "c"])


def test_secrets_are_new_each_time() -> None:
    one, two = Party.new("a", CONTEXT), Party.new("a", CONTEXT)
    assert not {*one.secrets.values()} & {*two.secrets.values()}
    assert one.public != two.public


def test_wrong_shares_of_a_lost_party_are_seen() -> None:
    parties, inbox, opening = prepared(NAMES)
    there = ["a", "b", "c", "d"]
    sent(parties, inbox, there)
    answers = {name: parties[name].help_open(there) for name in there}
    answers["a"] = {**answers["a"], PAIR: {"e": as_text(bytes(16))}}
    with pytest.raises(ProtocolError, match="the shares of 'e', which is not in the sum, do not give its key"):
        opening.masks(there, answers, 3)
    for bad in ({}, {SELF: {"a": "AAAA"}}, {SELF: None}):
        with pytest.raises(ProtocolError, match="has not given its share"):
            opening.masks(there, {**answers, "a": bad}, 3)
