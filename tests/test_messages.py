"""Messages as bytes: tensors that share memory, as those of clients of different ranks do."""

from __future__ import annotations

import torch

from fedsa.messages import Message, decode, encode
from fedsa.types import Key

A, B = Key.parse("layer:A:default"), Key.parse("layer:B:default")


def test_clients_may_be_sent_parts_of_one_tensor_and_the_same_tensor_in_different_company() -> None:
    whole, other = torch.arange(12.0).reshape(4, 3), torch.ones(3, 2)
    states = {"a": {A: whole}, "b": {A: whole[:2]}, "c": {A: whole, B: other}, "d": {B: other}, "e": {A: whole}}
    back = decode(encode(Message("step", "run", 1, {}, states))).states
    assert back.keys() == states.keys()
    for client, state in states.items():
        assert back[client].keys() == state.keys()
        assert all(torch.equal(back[client][key], value) for key, value in state.items())
    apart = {
        client: {key: value.clone() for key, value in state.items()} for client, state in states.items()
    }  # equal messages give equal bytes, whatever shares memory
    assert encode(Message("step", "run", 1, {}, apart)) == encode(Message("step", "run", 1, {}, states))
