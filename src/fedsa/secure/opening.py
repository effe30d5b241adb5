"""The server's half of secure aggregation: from the shares that sites give it, the masks that a sum still has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from fedsa.errors import ProtocolError
from fedsa.secure.party import PAIR, SELF, as_bytes, as_text, mask_key, pair_mask, threshold
from fedsa.secure.primitives import SECRET_BYTES, combine, derived, public_key, stream
from fedsa.texts.words import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Opening"]


@final
@dataclass(frozen=True)
class Opening:
    """What the server knows of one attempt at a sum.

    Attributes:
        context: names the run, the round and the attempt.
        roster: every party's public keys, by name.
        shared: the parties whose shares the others have: masks are between these.
    """

    context: str
    roster: Mapping[str, Mapping[str, str]]
    shared: Collection[str]

    @property
    def needed(self) -> int:
        """How many parties must help."""
        return threshold(len(self.roster))

    def masks(
        self, survivors: Collection[str], answers: Mapping[str, Mapping[str, Any]], count: int
    ) -> NDArray[np.uint64]:
        """All masks together that are in the sum of what the survivors sent.

        Args:
            survivors: the parties that are in the sum.
            answers: party to what it gave to open this sum; at least `needed`.
            count: the number of integers.

        Raises:
            ProtocolError: too few helped, or what they gave is not what was shared out.
        """
        if len(answers) < self.needed:
            raise ProtocolError(
                f"the sum has the help of {counted(len(answers), 'site')}, and {self.needed} of {len(self.roster)} "
                "are needed"
            )
        places = {name: place for place, name in enumerate(sorted(self.roster))}
        helpers = sorted(answers)[: self.needed]

        def recovered(kind: str, whose: str) -> bytes:
            return combine({places[helper]: _share_in(answers[helper], kind, whose) for helper in helpers})

        total = np.zeros(count, dtype=np.uint64)
        for name in survivors:
            total += stream(derived(recovered(SELF, name), f"{self.context}|{SELF}"), count)
        for lost in sorted({*self.shared} - {*survivors}):
            private = mask_key(recovered(PAIR, lost), self.context)
            if as_text(public_key(private)) != self.roster[lost]["pair"]:
                raise ProtocolError(f"the shares of {lost!r}, which is not in the sum, do not give its key")
            for name in survivors:  # the survivor's mask with the lost one is the lost one's with the other sign
                total -= pair_mask(private, self.roster[name], self.context, lost, name, count)
        return total


def _share_in(answer: Mapping[str, Any], kind: str, whose: str) -> bytes:
    """A share that a party gave.

    Raises:
        ProtocolError: it gave none, or what is none.
    """
    shares = answer.get(kind)
    share = as_bytes(shares.get(whose)) if isinstance(shares, Mapping) else b""
    if len(share) != SECRET_BYTES:
        raise ProtocolError(f"a site has not given its share for {whose!r}")
    return share
