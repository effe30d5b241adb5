"""Rows of five clients that go through one model together, each through its own adapter, and each alone."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsa.models import AdaptedModel
from fedsa.types import Key, Side
from support.tiny_models import TASK, begin, client_tensors, rows_of

ENCODED = rows_of([5, 11, 3, 20, 4, 4, 9, 3, 17, 3, 6])
ROWS = [[0, 1, 2], [], [3, 4, 5, 6], [7], [8, 9, 10]]  # of five clients; the second has none now


def alone(model: AdaptedModel, tensors: dict[Key, Tensor], rows: list[int]) -> Tensor:
    """Return the logits with a client's tensors in the model's own adapter, from the rows of that client alone."""
    model.write(tensors)
    batch = begin(model, ENCODED, [rows])
    with torch.no_grad():
        return TASK.outputs(model.model, batch)


def together(model: AdaptedModel, clients: list[dict[Key, Tensor]], *, pack: bool = False) -> list[Tensor]:
    """Return each client's logits through a stack."""
    with model.stack(len(clients)) as stack:
        for place, tensors in enumerate(clients):
            stack.load(place, tensors)
        batch = begin(model, ENCODED, ROWS, pack=pack)
        with torch.no_grad():
            return list(TASK.outputs(model.model, batch).split([len(rows) for rows in ROWS]))


def check(model: AdaptedModel, *, pack: bool) -> None:
    """Assert that every client's logits through a stack are those of its own tensors, and of no other client's."""
    clients = client_tensors(model, len(ROWS))
    outputs = together(model, clients, pack=pack)
    assert (model.streams.layout.packed is not None) is pack
    for tensors, rows, output in zip(clients, ROWS, outputs, strict=True):
        if rows:
            expected = alone(model, tensors, rows)
            tolerance = 1e-6 * float(expected.abs().max())  # LLaMA has softmax in fp32
            torch.testing.assert_close(output, expected, rtol=0, atol=tolerance)
            others = [alone(model, other, rows) for other in clients if other is not tensors]
            assert all((output - other).abs().max() > 1e3 * tolerance for other in others)
            adapter = {key: value for key, value in clients[1].items() if key.factor.side is not Side.HEAD}
            wrong = alone(model, {**tensors, **adapter}, rows)
            assert (output - wrong).abs().max() > 1e3 * tolerance, "it is not the head alone that matters"
