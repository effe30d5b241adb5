"""Parties that add up their values by secure aggregation, in one process, some of which drop out on the way."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from fedsa.secure import Opening, Party

__all__ = ["CONTEXT", "prepared", "summed"]

CONTEXT = "a-run|1|an-attempt"


def prepared(names: Collection[str], without: Collection[str] = ()) -> tuple[dict[str, Party], dict[str, Any], Opening]:
    """Parties that have shared their secrets out, the shares that came to each, and what the server knows then.

    Args:
        names: of all.
        without: those that drop out before they have shared anything.
    """
    parties = {name: Party.new(name, CONTEXT) for name in names}
    roster = {name: party.public for name, party in parties.items()}
    sealed = {name: party.share(roster) for name, party in parties.items() if name not in without}
    there = {name: party for name, party in parties.items() if name in sealed}
    inbox = {name: shares_for(name, sealed) for name in there}
    return there, inbox, Opening(CONTEXT, roster, sorted(there))


def shares_for(name: str, sealed: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {other: shares[name] for other, shares in sealed.items() if other != name}


def summed(
    values: Mapping[str, Any], before_sharing: Collection[str] = (), before_sending: Collection[str] = ()
) -> Any:
    """The sum of parties' values, modulo 2^64, as a server works it out.

    Args:
        values: party to integers of 64 bits.
        before_sharing: parties that drop out before they share their secrets.
        before_sending: parties that drop out after that, before they send.
    """
    parties, inbox, opening = prepared([*values], before_sharing)
    sent = {
        name: party.mask(values[name], inbox[name]) for name, party in parties.items() if name not in before_sending
    }
    answers = {name: parties[name].help_open(sent) for name in sent}
    total = np.sum(list(sent.values()), axis=0, dtype=np.uint64)
    return total - opening.masks(sent, answers, len(total))
