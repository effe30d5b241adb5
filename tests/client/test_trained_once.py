"""With differential privacy no client trains a round twice from different tensors, also after a crash."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fedsa.client.trained_once import TrainedOnce
from fedsa.errors import ProtocolError, RunFolderError
from fedsa.types import Factor, Key, Payload, Payloads

A = Key("layer", Factor.A)


def payloads(round: int, values: Mapping[str, float]) -> Payloads:
    return Payloads(
        round, values, lambda client: Payload(client, round, round - 1, {A: torch.full((3,), values[client])})
    )


def test_the_same_again_is_no_second_training(tmp_path: Path) -> None:
    for _ in range(2):
        TrainedOnce(tmp_path).begin(payloads(1, {"a": 1.0, "b": 1.0}))
    TrainedOnce(tmp_path).begin(payloads(2, {"a": 5.0}))


@pytest.mark.parametrize(("round", "value"), [(2, 7.0), (1, 1.0), (1, 7.0)])
def test_other_tensors_and_earlier_rounds_are_refused_and_nobody_trains(
    tmp_path: Path, round: int, value: float
) -> None:
    once = TrainedOnce(tmp_path)
    once.begin(payloads(1, {"a": 1.0, "b": 1.0}))
    once.begin(payloads(2, {"a": 2.0}))
    for asked in (once, TrainedOnce(tmp_path)):
        with pytest.raises(ProtocolError, match=r"client 'a' has begun round 2 from other tensors"):
            asked.begin(payloads(round, {"a": value}))
    with pytest.raises(ProtocolError, match="client 'a'"):
        once.begin(payloads(round, {"a": value, "b": 3.0}))
    once.begin(payloads(2, {"b": 9.0}))  # it had not begun: the message was refused as a whole


@pytest.mark.parametrize("others", [{}, {"c": 1.0}, {"b": 1.0, "c": 1.0}], ids=str)
def test_nobody_trains_a_round_again_beside_other_clients(tmp_path: Path, others: Mapping[str, float]) -> None:
    """Who else is asked changes the result a little, where clients share a pass: it would be a second one."""
    once = TrainedOnce(tmp_path)
    once.begin(payloads(1, {"a": 1.0, "b": 1.0}))
    for asked in (once, TrainedOnce(tmp_path)):
        with pytest.raises(ProtocolError, match=r"client 'a' has begun round 1 .* beside other clients"):
            asked.begin(payloads(1, {"a": 1.0, **others}))
    once.begin(payloads(1, {"c": 1.0}))
    once.begin(payloads(2, {"a": 1.0, "c": 1.0}))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    TrainedOnce(tmp_path).begin(payloads(3, {"a": 1.0}))
    whole = (tmp_path / "trained.json").read_bytes()
    earlier = whole.replace(b"3,", b"1,")
    assert earlier != whole
    for damaged in (b"[1", b"[]", b'{"a": 3}', b'{"begun": {"a": [3, "x"]}}', earlier):
        (tmp_path / "trained.json").write_bytes(damaged)
        with pytest.raises(RunFolderError, match=r"trained\.json cannot be read"):
            TrainedOnce(tmp_path).begin(payloads(1, {"a": 1.0}))
