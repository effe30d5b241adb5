"""Partial pooling: each client's B and head are a part that all clients have in common, and one of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, final

import torch
from pydantic import Field

from fedsa.algorithms.base import FROZEN, LOCAL, RECEIVED, SHARED, Algorithm, Plan, ServerState
from fedsa.errors import UserError, near
from fedsa.texts.words import counted
from fedsa.types import Factor, Key, Side, State

if TYPE_CHECKING:
    from torch import Tensor

_COMMON, _THEN, _OWN = "common", "common_then", "own"
_SHARES = Key("partial_pooling", Factor.NOTE, "own_share")
_POWER = Key("partial_pooling", Factor.NOTE, "power")
_AGREEMENT = Key("partial_pooling", Factor.NOTE, "agreement")
_SQUARE = Key("partial_pooling", Factor.NOTE, "agreement_squared")
_SLOT = "own_share"
_LARGER = 2.0**10
"""What squares are sent as a multiple of: under secure aggregation small numbers lose their last digits."""
_Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
_ROUNDED = 1e-3
"""A mean of squares is never below the square of the mean, but for this part, which rounding may take away."""


@final
@dataclass(frozen=True, kw_only=True)
class PartialPooling(Algorithm):
    """Average A and a part of B and of the head; of that, let a client keep a part of its difference.

        A ← Σ pᵢ·Aᵢ,  B ← B + Σ pᵢ·Δᵢ,  Cᵢ ← (1 - λ)·Cᵢ + λ·(Bᵢ - B),  and then Bᵢ = B + Cᵢ

    Of each B only the first columns are pooled; ``pool_columns`` says which part of them. The others stay with the
    client, as in FedSA. Below, B means the columns that are pooled. B is common to all. Cᵢ is client i's own part, zero
    at the start. Δᵢ is the movement of its Bᵢ in a round, at whose end it keeps the part λ of its difference from the
    new B: Bᵢ moves by Δ + λ·(Δᵢ - Δ) with Δ the mean movement. A client that is away goes on with B. Complete pooling
    (λ = 0, all columns) is FedIT; no pooling (λ = 1) is FedSA, without any B sent; what is in between is called partial
    pooling in statistics. With ``pool_head`` the head is treated likewise; what its warm-up changes after the first
    round is Cᵢ too. With ``class_prior`` a client's head has from the start how frequent each class is among its rows:
    a difference between clients that need not be learned, and is not in B, Δᵢ or Cᵢ.

    What a client sends of Bᵢ is B + Δᵢ + g·Cᵢ. Where all clients are drawn, the mean of all Cᵢ is zero, and g means
    nothing. Where few are, it draws B to where clients are: movements alone do not, as a client that is at its place
    moves no more.

    λ is given, or estimated from variance components. To estimate it, a client trains twice from one start in the first
    round, and in every ``estimate_every``-th after it, on two random halves of its rows, and Δᵢ is the mean of the two
    movements, Uᵢ and Vᵢ. It sends ‖Δᵢ‖², ⟨Uᵢ, Vᵢ⟩ and the latter's square with its update. Then, with q = Σ pᵢ²,

        s = Σ pᵢ·⟨Uᵢ, Vᵢ⟩,  b = (‖Σ pᵢ·Δᵢ‖² - q·Σ pᵢ·‖Δᵢ‖²) / (1 - q),  n = Σ pᵢ·‖Δᵢ‖² - s

    estimate how much of a movement does not come of the rows that a client happens to have (s), how much of that all
    clients have in common (b), and how much is noise (n). ``difference``: λ = 1 - b / s, the part of what clients learn
    that is not common. ``posterior``: λ = (s - b) / (s - b + n), with which a client's movement is shrunk to the mean
    as in James-Stein estimation. Each row of a head, which is a class, has a λ of its own then. Where s is less than
    twice its standard error there is nothing to tell: the last λ holds, and at first λ = 0. Sums over clients are
    enough, so it goes with secure aggregation. With few clients the estimate itself is uncertain.

    A client that was never drawn has B, and initial values in the other columns; so has a newcomer. The server
    remembers B after each of the last ``memory`` rounds, for clients that come back. With one client it is local
    training.

    Attributes:
        own_share: λ: a number from 0 to 1, or how it is estimated. A table gives it by layer: to parts of layers' names
            the λ of the layers that have them in their name. The longest part that fits holds; where none does, λ = 0.
        estimate_every: rounds from one estimate to the next; in such a round clients train twice.
        anchor: g, the part of the own parts of who is there that goes into what is common.
        pool_columns: the part of B's columns that is pooled: of the highest rank that a client has, rounded down, but
            one at least. It is for the B of s·B·A; vectors (VeRA's) and other factors are pooled whole.
        train_a_every: rounds from one in which A is trained and sent to the next; between them it is frozen.
        pool_head: treat the head like B; else it stays, or with share_head all of it is averaged.
        memory: rounds after which B is remembered; who was away for longer counts as if it had trained then.
        share_a: average A; false is a control, for clients with initial A's of their own.
    """

    own_share: Literal["difference", "posterior"] | _Share | dict[str, _Share] = 0.25
    estimate_every: Annotated[int, Field(gt=0)] = 5
    anchor: Annotated[float, Field(ge=0, le=1)] = 0.2
    pool_columns: Annotated[float, Field(gt=0, le=1)] = 0.375
    train_a_every: Annotated[int, Field(gt=0)] = 1
    pool_head: bool = True
    memory: Annotated[int, Field(gt=0)] = 20
    share_a: bool = True
    class_prior: bool = True

    source: ClassVar[str] = "-"
    needs_initial_values: ClassVar[bool] = True
    mixed_ranks: ClassVar[bool] = True

    def refusal(self, variant: str, *, mixed_ranks: bool = False) -> str | None:
        """Why the method cannot be used with an adapter variant; None if it can."""
        if mixed_ranks and self._estimates:
            return (
                "clients of different ranks have no variance to estimate a share from: set algorithm_options.own_share "
                "to a number, or leave adapter.ranks out"
            )
        return super().refusal(variant, mixed_ranks=mixed_ranks)

    def init(self, initial: State, scaling: Mapping[str, float] | None = None) -> ServerState:
        """The server's first state; a UserError where ``own_share`` names a layer that is not there."""
        layers = sorted({key.module for key in self._pooled(initial)})
        for part in self.own_share if isinstance(self.own_share, dict) else ():
            if not any(part in layer for layer in layers):
                about = f"no layer that is pooled has {part!r} in its name"
                raise UserError(f"algorithm_options.own_share: {about}; {near(part, layers)}")
        return super().init(initial, scaling)

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor, and those beside the model."""
        if not self.in_model(key):
            return self._plan_beside(key, round)
        if self._pools(key):
            return LOCAL
        if key.factor.side is Side.A:
            if (round - 1) % self.train_a_every:
                return RECEIVED if self.share_a else FROZEN
            return SHARED if self.share_a else LOCAL
        return self.rest_plan(key)

    def _plan_beside(self, key: Key, round: int) -> Plan:
        if key.adapter == _COMMON and self.own_share != 1:
            return Plan(trained=False, sent=True, received=True)
        if key == _SHARES or (key.adapter == _THEN and self.own_share != 1):
            return RECEIVED
        return Plan(trained=False, sent=key.factor is Factor.NOTE and self.trains_halves(round), received=False)

    def trains_halves(self, round: int) -> bool:
        """Whether λ is estimated in a round."""
        return self._estimates and (round - 1) % self.estimate_every == 0

    def renews(self, key: Key, round: int) -> bool:
        """Whether the server gives a tensor a new value: it is sent, or told to who was away."""
        told = key == _SHARES or key.adapter == _THEN
        return (told and self.plan(key, round).received) or super().renews(key, round)

    def beside(self, initial: State) -> dict[Key, Tensor]:
        """The common part of each pooled tensor, now and before; the client's own part; numbers for the estimate."""
        pooled = {key: value for key, value in initial.items() if self._pools(key)}
        for key in (each for each in pooled if each.factor is Factor.B):
            pooled[key] = pooled[key][:, : _columns(pooled[key], self.pool_columns)]
        parts = {key._replace(adapter=_COMMON): value.clone() for key, value in pooled.items()}
        for adapter in (_THEN, _OWN):
            parts |= {key._replace(adapter=adapter): torch.zeros_like(value) for key, value in pooled.items()}
        if not self._estimates:
            return parts
        numbers = torch.zeros(sum(_count(key, value) for key, value in pooled.items()))
        return {**parts, **{key: numbers.clone() for key in (_SHARES, _POWER, _AGREEMENT, _SQUARE)}}

    def broadcast(self, state: ServerState, client: str, round: int, version: int) -> State:
        """The newer tensors; λ, and what was common then, are of the end of the client's last round of training."""
        _check_share(state, self.own_share)
        for key in (each for each in self._pooled(state.tensors) if each.factor is Factor.B):
            _check_columns(state.tensors[key], state.tensors[key._replace(adapter=_COMMON)], self.pool_columns)
        newer, trained = super().broadcast(state, client, round, version), version + 1
        told: dict[Key, Tensor] = {}
        for key, value in newer.items():
            if key == _SHARES:
                told[key] = _shares(state, trained)
            elif key.adapter != _THEN:
                told[key] = value
            elif trained < round - 1:  # else it is what is common now
                told[key] = _remembered(state, key, trained)
        return told

    def absorb(self, tensors: State, received: State, initial: State) -> State:
        """A client's tensors: its own part with λ of its last difference, and the new common part beneath it."""
        taken = dict(super().absorb(tensors, received, initial))
        shares = _by_key(taken[_SHARES], self._pooled(tensors), tensors) if self._estimates else {}
        for key in self._pooled(tensors):
            common, then, own = (key._replace(adapter=adapter) for adapter in (_COMMON, _THEN, _OWN))
            if common in received:
                now, kept = taken[common].double(), tensors[own].double()
                value = _part(tensors[key], now).double()
                earlier = taken[then].double() if then in received else now
                untrained = torch.equal(value, tensors[common].double() + kept)  # it has nothing of its own yet
                share = torch.zeros((), dtype=torch.float64) if untrained else shares.get(key, self._given(key))
                # Both ends are exact: at 0 the value is the common part, at 1 it is the client's own.
                taken[own] = torch.lerp(kept, value - earlier, share).to(tensors[own].dtype)
                taken[key] = tensors[key].clone()
                _part(taken[key], now).copy_(torch.lerp(now + kept, value + (now - earlier), share))
        used = [key for key in taken if key == _SHARES or key.adapter == _THEN]
        return {**taken, **{key: initial[key] for key in used}}

    def outgoing(self, before: State, kept: State, halves: Sequence[State], round: int) -> State:
        """The common part as the client has moved it, and the numbers for the estimate."""
        sent = dict(kept)
        numbers: dict[Key, list[Tensor]] = {_POWER: [], _AGREEMENT: []}
        for key in self._pooled(kept):
            common, own = key._replace(adapter=_COMMON), key._replace(adapter=_OWN)
            start, end = (_part(tensors[key], before[common]).double() for tensors in (before, kept))
            # A head's warm-up, which came before, is a movement in the first round alone: later it is the client's own.
            apart = before[own].double() if round == 1 else start - before[common].double()
            # In a round of halves nothing draws the common part: the server takes its movement for what was learned.
            drawn = 0.0 if halves else self.anchor
            sent[common] = (end - (1 - drawn) * apart).to(kept[key].dtype)
            if halves:
                origin = before[common].double() + apart
                moved = end - origin
                one, two = (_part(half[key], origin).double() - origin for half in halves)
                numbers[_POWER].append(_summed(key, moved * moved))
                numbers[_AGREEMENT].append(_summed(key, one * two))
        if halves:
            power, agreement = (torch.cat(numbers[key]) for key in (_POWER, _AGREEMENT))
            sent |= {
                _POWER: power.float(),
                _AGREEMENT: agreement.float(),
                _SQUARE: (_LARGER * agreement.square()).float(),
            }
        return sent

    def combine_weighted(self, state: ServerState, mean: State, weights: Sequence[int], round: int) -> ServerState:
        """The state with the means, which is remembered, and with new λ where they are estimated."""
        slots = dict(state.slots)
        if self.trains_halves(round) and len(weights) > 1 and mean:
            slots[f"{_SLOT}|{round:06d}"] = self._estimated(state, mean, weights, round)
        after = self.renewed(state, mean, round)
        if self.own_share != 1:
            old = f"{_THEN}|{round - self.memory:06d}|"
            slots = {name: value for name, value in slots.items() if not name.startswith(old)}
            for key in self._pooled(state.tensors):
                common, then = key._replace(adapter=_COMMON), key._replace(adapter=_THEN)
                slots[f"{_THEN}|{round:06d}|{then}"] = after.tensors[common].clone()
        return replace(after, slots=slots)

    def own_shares(self, state: ServerState) -> dict[int, dict[Key, list[float]]]:
        """λ by the round from which it holds, of each pooled tensor; of a head one for each of its rows."""
        if not self._estimates:
            return {1: {key: [float(self._given(key))] for key in self._pooled(state.tensors)}}
        return {
            int(name.partition("|")[2]): {
                key: share.flatten().tolist()
                for key, share in _by_key(value, self._pooled(state.tensors), state.tensors).items()
            }
            for name, value in sorted(state.slots.items())
            if name.startswith(f"{_SLOT}|")
        }

    def _estimated(self, state: ServerState, mean: State, weights: Sequence[int], round: int) -> Tensor:
        """λ from the sums of a round, shape (numbers,), fp32."""
        q = sum(weight**2 for weight in weights) / sum(weights) ** 2
        moved = [
            _summed(
                key,
                (mean[key._replace(adapter=_COMMON)] - state.tensors[key._replace(adapter=_COMMON)].double()).square(),
            )
            for key in self._pooled(state.tensors)
        ]
        signal, power = mean[_AGREEMENT], mean[_POWER]
        common = (torch.cat(moved) - q * power) / (1 - q)
        differences = (signal - common).clamp(min=0)
        whole = signal if self.own_share == "difference" else differences + (power - signal).clamp(min=0)
        shares = (differences / whole).nan_to_num(0.0).clamp(0, 1)
        told = _is_told(signal, mean[_SQUARE] / _LARGER, q)
        return torch.where(told, shares, _shares(state, round).double()).float()

    def _given(self, key: Key) -> Tensor:
        """λ of a tensor where it is not estimated."""
        if isinstance(self.own_share, dict):
            fitting = [part for part in self.own_share if part in key.module]
            share = self.own_share[max(fitting, key=len)] if fitting else 0.0
        else:
            share = self.own_share if isinstance(self.own_share, float | int) else 0.0
        return torch.tensor(share, dtype=torch.float64)

    @property
    def _estimates(self) -> bool:
        return isinstance(self.own_share, str)

    def _pools(self, key: Key) -> bool:
        head = self.pool_head and not self.share_head
        return self.in_model(key) and (key.factor.side is Side.B or (head and key.factor.side is Side.HEAD))

    def _pooled(self, tensors: Mapping[Key, Any]) -> list[Key]:
        """The pooled tensors, in the order of the numbers in a vector."""
        return sorted(key for key in tensors if self._pools(key))


def _columns(b: Tensor, part: float) -> int:
    """How many columns of a B are pooled."""
    return max(1, int(part * b.shape[1] + 1e-9))


def _check_share(state: ServerState, share: object) -> None:
    """Refuse a state of a run whose share is estimated where the option gives it, and the other way round."""
    if (_SHARES in state.tensors) != isinstance(share, str):
        begun = "given" if isinstance(share, str) else "estimated"
        raise UserError(
            f"algorithm_options.own_share: {share!r} does not fit this run, whose share is {begun}: give it the value "
            "that the run was begun with"
        )


def _check_columns(b: Tensor, common: Tensor, part: float) -> None:
    """Refuse a state in which other columns of a B are pooled than the option says."""
    if common.shape[1] != _columns(b, part):
        raise UserError(
            f"algorithm_options.pool_columns: {part:g} does not fit this run, which pools "
            f"{counted(common.shape[1], 'column')} of {b.shape[1]}: give it the value that the run was begun with"
        )


def _is_told(signal: Tensor, square: Tensor, q: float) -> Tensor:
    """Whether the mean agreement of halves, given the mean of its square, is more than twice its standard error."""
    error = ((square - signal.square()).clamp(min=0) * q / (1 - q)).sqrt()
    return (square >= (1 - _ROUNDED) * signal.square()) & (signal > 2 * error)


def _part(tensor: Tensor, pooled: Tensor) -> Tensor:
    """The columns of a tensor that are pooled, as a view of it: as many as the ones that are pooled of another."""
    return tensor if tensor.shape == pooled.shape else tensor[:, : pooled.shape[1]]


def _by_key(numbers: Tensor, pooled: Sequence[Key], tensors: State) -> dict[Key, Tensor]:
    """The numbers of each pooled tensor out of a vector of all, in float64, shaped to go with the tensor's."""
    parts = numbers.double().split([_count(key, tensors[key]) for key in pooled])
    return {
        key: part.reshape(-1, *[1] * (tensors[key].dim() - 1)) if len(part) > 1 else part.reshape(())
        for key, part in zip(pooled, parts, strict=True)
    }


def _count(key: Key, value: Tensor) -> int:
    """How many λ a tensor has."""
    return value.shape[0] if key.factor.side is Side.HEAD and value.dim() else 1


def _summed(key: Key, values: Tensor) -> Tensor:
    """The sums of a tensor over what has one λ, shape (λ's,)."""
    return values.reshape(_count(key, values), -1).sum(1)


def _shares(state: ServerState, round: int) -> Tensor:
    """λ of a round: the last one that was estimated until then."""
    names = [
        name for name in sorted(state.slots) if name.startswith(f"{_SLOT}|") and int(name.partition("|")[2]) <= round
    ]
    return state.slots[names[-1]] if names else torch.zeros_like(state.tensors[_SHARES], device="cpu")


def _remembered(state: ServerState, key: Key, round: int) -> Tensor:
    """What was common after a round, or after the first one that is still remembered."""
    rounds = sorted(
        int(name.split("|")[1]) for name in state.slots if name.startswith(f"{_THEN}|") and name.endswith(f"|{key}")
    )
    kept = next(each for each in rounds if each >= round)
    return state.slots[f"{_THEN}|{kept:06d}|{key}"]
