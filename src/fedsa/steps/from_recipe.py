"""Which steps a recipe asks for, in which order, and whether they go with its method: the one list of all steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fedsa.algorithms import algorithm_in
from fedsa.errors import Mistake, UserError
from fedsa.recipe import ServerSettings
from fedsa.steps.base import Chain, Step
from fedsa.steps.cast import Cast, WireDtype
from fedsa.steps.server_optimizer import ServerOptimizer

__all__ = ["PLAIN", "chain", "check_steps"]


def chain(wire_dtype: WireDtype = "fp32", server: ServerSettings | None = None) -> Chain:
    """Return the steps that a recipe's sections ask for, in the order in which a client takes them.

    Args:
        wire_dtype: in what tensors travel.
        server: ``[server]``; None: its defaults.
    """
    steps: list[Step] = []
    if server is not None and server.optimizer != "none":
        steps.append(ServerOptimizer(server))
    steps.append(Cast(wire_dtype))
    return Chain(tuple(steps))


PLAIN = chain()
"""The steps of a recipe that asks for none: the mean of what clients send, in fp32."""


def check_steps(data: Mapping[str, Any]) -> list[Mistake]:
    """Return the mistakes in a recipe's raw data about steps that do not go with its method."""
    adapter = data.get("adapter", {})
    try:
        algorithm = algorithm_in(data)
        steps = chain(server=ServerSettings.model_validate(data.get("server", {})))
    except (UserError, ValidationError):
        return []  # for `check_algorithm` and the recipe itself to report
    if algorithm is None or not isinstance(adapter, Mapping):
        return []
    name, mixed_ranks = data.get("algorithm", "fedsa"), bool(adapter.get("ranks"))
    reasons = [(step, step.refusal(algorithm, mixed_ranks=mixed_ranks)) for step in steps.steps]
    return [
        Mistake(step.setting, f"{step.name} does not go with {name}: {reason}") for step, reason in reasons if reason
    ]
