"""What comes in a round: each update is checked, and what came is counted until the round ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import final

from fedsa.adapters.algebra import fits
from fedsa.errors import ProtocolError
from fedsa.steps.base import Form, Verdict
from fedsa.texts.words import counted
from fedsa.types import Key, RoundRecord, Update, total_bytes

__all__ = ["Arrivals", "TooLateError", "check_finite", "check_place", "check_tensors", "name_of"]


class TooLateError(ProtocolError):
    """An update comes more rounds late than count: that is nobody's fault."""


@final
@dataclass(frozen=True)
class Arrivals:
    """What has come in a round so far, by the clients' ids.

    Attributes:
        round: its number.
        quorum: so many updates must count; None: any number.
        upload_bytes: of each update that fitted, in the order in which they came.
        train_metrics: what its client tells of its training.
        base_versions: the version that its client trained from.
        rejected: why an update does not count.
        verdicts: what a step says of an update.
    """

    round: int
    quorum: int | None
    upload_bytes: dict[str, int] = field(default_factory=dict)
    train_metrics: dict[str, Mapping[str, float]] = field(default_factory=dict)
    base_versions: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def clients(self) -> Collection[str]:
        """Those whose update came, whether it counts or not."""
        return {*self.upload_bytes, *self.rejected}

    def add(self, update: Update) -> None:
        """Count an update that fits the round."""
        self.upload_bytes[update.client] = total_bytes(update.tensors)
        self.train_metrics[update.client] = update.metrics
        base = update.base_version
        self.base_versions[update.client] = update.round - 1 if base is None else base

    def note(self, update: Update, verdict: Verdict) -> None:
        """Keep what a step says of an update; with a reason it does not count."""
        if verdict.values:
            self.verdicts[update.client] = verdict.values
        if verdict.reason is not None:
            self.rejected[update.client] = f"{name_of(update)} does not count: {verdict.reason}"

    def check_quorum(self) -> None:
        """Refuse the round if fewer updates count than must.

        Raises:
            ProtocolError: with the reasons.
        """
        count = len(self.upload_bytes.keys() - self.rejected.keys())
        if count < (self.quorum or 0):
            reasons = "; ".join(self.rejected.values()) or "the others did not come"
            good = counted(count, "good update")
            raise ProtocolError(f"round {self.round}: {good}, the quorum is {self.quorum} ({reasons})")

    def record(self, download_bytes: Mapping[str, int], asked: Mapping[str, int] | None) -> RoundRecord:
        """The record of the round.

        Args:
            download_bytes: of each client that was asked in this round.
            asked: where rounds overlap, the round that each client was asked in.
        """
        return RoundRecord(
            round=self.round,
            clients=tuple(download_bytes),
            finished=tuple(client for client in self.upload_bytes if client not in self.rejected),
            download_bytes=download_bytes,
            upload_bytes=self.upload_bytes,
            train_metrics=self.train_metrics,
            rejected=self.rejected,
            verdicts=self.verdicts,
            staleness={} if asked is None else {client: self.round - asked[client] for client in self.upload_bytes},
        )


def check_place(update: Update, round: int, asked: Mapping[str, int], seen: dict[str, int]) -> None:
    """Refuse an update that was not asked for, or that comes out of order.

    Args:
        update: as it arrived.
        round: the open one.
        asked: clients that were asked, each with the round.
        seen: clients whose updates have come, in order.

    Raises:
        ProtocolError: with the reason.
    """
    last, whose = next(reversed(seen), ""), name_of(update)
    if update.round != asked.get(update.client, round):
        raise ProtocolError(f"{whose}: it is for another round than the open one, {round}")
    if update.client not in asked:
        raise ProtocolError(f"{whose}: this client was not asked to train in round {round}")
    if update.client in seen:
        raise ProtocolError(f"{whose}: it came twice")
    if update.client < last:
        raise ProtocolError(f"{whose}: came after that of {last!r}; bring updates in the order of client ids")
    if update.num_examples < 1:
        raise ProtocolError(f"{whose}: num_examples is {update.num_examples}, must be at least 1")


def check_tensors(update: Update, forms: Mapping[Key, Form], *, cut_ranks: bool = False) -> None:
    """Refuse an update whose tensors are not those that are sent, or not in the form that they travel in.

    A row of A that few clients send is a mean over few: one client would then change it by more than its share, which
    is what a bound and a noise count on.

    Args:
        update: as it arrived.
        forms: of what its client is to send.
        cut_ranks: the method may cut a client's rank: fewer rows of A and columns of B are right too.

    Raises:
        ProtocolError: with the tensor's name.
    """
    whose = name_of(update)
    if forms.keys() != update.tensors.keys():
        wrong = ", ".join(str(key) for key in sorted(forms.keys() ^ update.tensors.keys())[:3])
        raise ProtocolError(f"{whose}: its tensors are not exactly those that the plan declares sent ({wrong}, ...)")
    for key, tensor in update.tensors.items():
        shape, dtype = forms[key]
        if not (fits(key, tensor.shape, shape) if cut_ranks else tuple(tensor.shape) == shape):
            raise ProtocolError(f"{whose}: {key} has shape {tuple(tensor.shape)}, not {shape}")
        if tensor.dtype != dtype:
            raise ProtocolError(f"{whose}: {key} is of {tensor.dtype}, not {dtype}, the wire's")


def check_finite(update: Update) -> None:
    """Refuse an update with values that are no numbers.

    Raises:
        ProtocolError: with the tensor's name.
    """
    for key, tensor in update.tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ProtocolError(f"{name_of(update)}: {key} is not finite")


def name_of(update: Update) -> str:
    """An update's name in messages."""
    return f"update of client {update.client!r} for round {update.round}"
