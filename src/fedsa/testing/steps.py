"""The laws that every step on an update obeys, as functions: a step's own test is one call of `check_step`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fedsa.adapters.means import weighted_mean
from fedsa.algorithms.base import ServerState
from fedsa.seeds import derive_seed
from fedsa.steps.base import Slots, Step
from fedsa.steps.chain import Chain
from fedsa.testing.comparing import are_equal, hold
from fedsa.types import Factor, Key, State, Update, total_bytes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "STEP_LAWS",
    "a_step_repeats",
    "an_additive_step_needs_sums_alone",
    "check_step",
    "the_order_of_updates_only_rounds",
    "the_server_gets_the_tensors_that_a_client_trained",
    "what_is_given_is_not_changed",
    "what_travels_is_what_is_planned",
]

SHAPES = {
    Key("layer.0", Factor.A): (2, 3),
    Key("layer.0", Factor.B): (4, 2),
    Key("classifier.weight", Factor.HEAD): (2, 4),
}
LEARNED = {"c0": 0.1, "c1": 10.0, "c2": 1.0, "c3": 3.0}
"""How far each client's values are from the server's: so far apart that a step which looks at single updates shows."""
WEIGHTS = {"c0": 1, "c1": 3, "c2": 2, "c3": 1}
TOLERANCE = 1e-6


def _normal(seed: int, *purpose: str) -> dict[Key, Tensor]:
    random = torch.Generator().manual_seed(derive_seed(seed, *purpose))
    return {key: torch.randn(shape, generator=random) for key, shape in SHAPES.items()}


def _server(seed: int) -> ServerState:
    return ServerState(_normal(seed, "server"), dict.fromkeys(SHAPES, 0))


def _learned(seed: int, client: str) -> dict[Key, Tensor]:
    change = _normal(seed, client)
    return {key: value + LEARNED[client] * change[key] for key, value in _server(seed).tensors.items()}


def _sent(step: Step, seed: int, client: str) -> tuple[State, Slots]:
    """The tensors that a client sends in its first round, and the slots that it keeps."""
    before = {**_server(seed).tensors, **step.notes_to_client({})}
    return Chain((step,)).on_client(_learned(seed, client), {}, client=client, round=1, before=before, seed=seed)


def _mean(step: Step, seed: int, sent: Mapping[str, State], *, order: Sequence[str] = tuple(LEARNED)) -> State:
    """The mean of the updates, as a method gets it."""
    chain, state = Chain((step,)), _server(seed)

    def arriving() -> Iterator[tuple[Update, int]]:
        for client in order:
            yield chain.on_server(Update(client, 1, WEIGHTS[client], sent[client]), WEIGHTS[client], state.tensors)

    return chain.mean(chain.screened(arriving(), state.tensors), state, 1, seed)[0]


def _close(one: State, two: State) -> bool:
    if one.keys() != two.keys():
        return False
    return all(
        float((one[key].double() - two[key].double()).norm()) <= TOLERANCE * (1 + float(two[key].double().norm()))
        for key in one
    )


def what_travels_is_what_is_planned(step: Step, seed: int) -> None:
    """Shapes, types and bytes of an update on its way are those that the forms say, before anything is computed."""
    chain = Chain((step,))
    for client in LEARNED:
        sent, _ = _sent(step, seed, client)
        forms = chain.forms(_learned(seed, client))
        measured = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in sent.items()}
        hold(measured == forms, f"{client} sends {measured}, and planned is {forms}")
        hold(total_bytes(sent) == chain.upload_bytes(_learned(seed, client)), "bytes sent are not bytes planned")


def the_server_gets_the_tensors_that_a_client_trained(step: Step, seed: int) -> None:
    """After both halves an update has its names and shapes again, finite values of a float type, and a weight."""
    for client in LEARNED:
        update = Update(client, 1, 1, _sent(step, seed, client)[0])
        taken, weight = Chain((step,)).on_server(update, 1, _server(seed).tensors)
        shapes = {key: tuple(each.shape) for key, each in taken.tensors.items() if key.factor is not Factor.NOTE}
        hold(shapes == SHAPES, f"the server's half makes tensors of shapes {shapes}")
        for key, tensor in taken.tensors.items():
            hold(tensor.is_floating_point() and bool(tensor.isfinite().all()), f"{key} is not finite, or no float")
        hold(weight > 0, f"the weight is {weight}")
        hold(replace(taken, tensors=update.tensors) == update, "the server's half changes more than tensors")


def an_additive_step_needs_sums_alone(step: Step, seed: int) -> None:
    """Clients that all send the mean give what clients that send their own give, if it is additive, and only then."""
    sent = {client: _sent(step, seed, client)[0] for client in LEARNED}
    if not all(tensor.is_floating_point() for tensors in sent.values() for tensor in tensors.values()):
        hold(not step.additive, "what travels cannot be added up, so it is not additive")
        return
    mean = weighted_mean((tensors, WEIGHTS[client]) for client, tensors in sent.items())
    alike = _close(_mean(step, seed, sent), _mean(step, seed, dict.fromkeys(LEARNED, mean)))
    if step.additive:
        hold(alike, "it is not additive: it makes something else of the mean than of single updates")
    else:
        hold(not alike, "it says that it is not additive, and the mean of the updates is all that it needs")


def what_is_given_is_not_changed(step: Step, seed: int) -> None:
    """A step is pure: it changes neither a client's tensors nor an update nor the server's state."""
    chain, state = Chain((step,)), _server(seed)
    updates = []
    for client in LEARNED:
        tensors = _learned(seed, client)
        before = {**state.tensors, **step.notes_to_client({})}
        sent, _ = chain.on_client(tensors, {}, client=client, round=1, before=before, seed=seed)
        hold(are_equal(tensors, _learned(seed, client)), "the client's half changed the client's tensors")
        copy = {key: tensor.clone() for key, tensor in sent.items()}
        updates.append(chain.on_server(Update(client, 1, 1, sent), 1, state.tensors))
        hold(are_equal(sent, copy), "the server's half changed the update")
    copies = [{key: tensor.clone() for key, tensor in update.tensors.items()} for update, _ in updates]
    chain.mean(iter(updates), state, 1, seed)
    untouched = all(are_equal(update.tensors, copy) for (update, _), copy in zip(updates, copies, strict=True))
    hold(untouched, "the mean changed the updates")
    hold(are_equal(state.tensors, _server(seed).tensors) and not state.slots, "the server's state was changed")


def a_step_repeats(step: Step, seed: int) -> None:
    """The same seed, client and round give the same bits, both on their way and in the mean."""
    for client in LEARNED:
        one, two = (_sent(step, seed, client) for _ in range(2))
        hold(are_equal(one[0], two[0]) and are_equal(one[1], two[1]), f"{client} sends something else the second time")
    sent = {client: _sent(step, seed, client)[0] for client in LEARNED}
    hold(are_equal(_mean(step, seed, sent), _mean(step, seed, sent)), "the mean is another one the second time")


def the_order_of_updates_only_rounds(step: Step, seed: int) -> None:
    """Updates in another order give the same mean, but for rounding."""
    sent = {client: _sent(step, seed, client)[0] for client in LEARNED}
    turned = _mean(step, seed, sent, order=tuple(LEARNED)[::-1])
    hold(_close(_mean(step, seed, sent), turned), "the mean depends on the order of the updates")


STEP_LAWS: dict[str, Callable[[Step, int], None]] = {
    law.__name__.replace("_", " "): law
    for law in (
        what_travels_is_what_is_planned,
        the_server_gets_the_tensors_that_a_client_trained,
        an_additive_step_needs_sums_alone,
        what_is_given_is_not_changed,
        a_step_repeats,
        the_order_of_updates_only_rounds,
    )
}
"""Every law by its name."""


def check_step(step: Step, *, examples: int = 3) -> None:
    """Try every law on a step.

    Args:
        step: with settings that show: a bound so wide that it bounds nothing is found to be additive.
        examples: random federations for each law; the same in every call.

    Raises:
        AssertionError: a law does not hold; which, and what is wrong.
    """
    for name, law in STEP_LAWS.items():
        for seed in range(examples):
            try:
                law(step, seed)
            except AssertionError as error:
                raise AssertionError(f"{step} breaks the law '{name}' (seed {seed}): {error}") from error
