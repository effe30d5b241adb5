"""A site's part in secure aggregation, from message to message: what it has trained leaves it only behind masks.

What it must not forget between two messages is on its disk before an answer goes, so that a site that was restarted
goes on, gives the same bytes again, and never helps to open two sums of one round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from fedsa.errors import ProtocolError, RunFolderError
from fedsa.messages import Message
from fedsa.secure import FixedPoint, Party, require_secure
from fedsa.secure.fixed_point import added
from fedsa.secure.vectors import as_state, as_vector
from fedsa.store.files import by_key, by_name, load_tensors, save_tensors, write_atomically, write_error
from fedsa.store.seals import read_sealed, sealed_table
from fedsa.types import Key, Update

__all__ = ["STAGES", "Masking"]

STAGES = ("keys", "share", "mask", "open")
"""What the server asks for after training, in this order."""

_SUM, _PARTY = "sum.safetensors", "party.json"


@final
class Masking:
    """The sum of a site's clients, which only masked integers of leave it.

    A site with several clients adds them up before it sends: it knows each of them anyway, and the server learns less.

    Args:
        folder: the site's own for this; made, and closed to other users.
        site: the site's name.
        run: the run's id.
        weighting: how clients count in the mean.

    Raises:
        MissingExtraError: a library is not installed.
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, site: str, run: str, weighting: str) -> None:
        require_secure()
        self._folder, self._site, self._run, self._weighting = folder, site, run, weighting
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error

    def keep(self, updates: Sequence[Update], round: int, bits: Any) -> None:
        """Keep the sum of what the site's clients have trained, until it is asked for.

        Args:
            updates: of one round.
            round: the round.
            bits: after the point, as the server says.

        Raises:
            ProtocolError: the server has not said a number of bits.
            TrainingError: a value does not fit.
            UserError: the disk is full, or the folder cannot be written.
        """
        if type(bits) is not int or not 0 <= bits <= 62:
            raise ProtocolError("secure aggregation without a number of bits")
        point = FixedPoint(bits)
        weights = {each.client: each.num_examples if self._weighting == "num_examples" else 1 for each in updates}
        sums = added(
            point.encode(each.tensors, weights[each.client], f"client {each.client!r}, round {round}")
            for each in updates
        )
        about = {"run": self._run, "round": round, "client": min(weights), "weight": sum(weights.values())}
        save_tensors(self._folder / _SUM, by_name(sums), about)

    def answer(self, message: Message) -> Message:
        """The answer to a question of one of `STAGES`.

        Raises:
            ProtocolError: it does not fit what came before.
            RunFolderError: what the site has kept is damaged.
            UserError: the folder cannot be written.
        """
        about, stage = message.about, message.about["do"]
        context = f"{self._run}|{message.round}|{_text(about, 'attempt')}"
        if stage == "keys":
            party = self._begin(context, message.round)
            said: dict[str, Any] = {"keys": party.public}
            states: dict[str, dict[Key, Any]] = {}
        else:
            party, said, states = self._party(context), {}, {}
            if stage == "share":
                said = {"sealed": party.share(_tables(about, "roster"))}
            elif stage == "mask":
                client, tensors, weight = self._masked(party, message.round, _texts(about, "sealed"))
                said, states = {"client": client, "weight": weight}, {client: tensors}
            else:
                said = party.help_open(_names(about, "survivors"))
        self._write(party, message.round)
        return Message("update", self._run, message.round, said, states)

    def _begin(self, context: str, round: int) -> Party:
        """A party with new keys.

        Raises:
            ProtocolError: this site has helped to open the sum of this round or of a later one.
        """
        before = self._read()
        if before is not None and before["party"]["context"] == context:
            return Party.parse(before["party"])
        if before is not None and before["opened"] >= round:
            raise ProtocolError(
                f"this site has helped to open the sum of round {before['opened']}: it sends nothing more to a sum of "
                f"round {round}, since two sums of one round can show a single site"
            )
        return Party.new(self._site, context)

    def _masked(self, party: Party, round: int, sealed: Mapping[str, Any]) -> tuple[str, dict[Key, Any], int]:
        """The site's sum behind its masks: under which client's name it goes, the tensors and the weight."""
        path = self._folder / _SUM
        if not path.exists():
            raise ProtocolError("this site has trained nothing that could be summed up")
        tensors, about = load_tensors(path, {"run": self._run})
        if about["round"] != round:
            raise ProtocolError(f"this site has trained round {about['round']} last, not round {round}")
        state = by_key(tensors)
        masked = party.mask(as_vector(state, about["weight"]), sealed)
        return (about["client"], *as_state(masked, {key: tuple(tensor.shape) for key, tensor in state.items()}))

    def _party(self, context: str) -> Party:
        """The party of the attempt that was begun last.

        Raises:
            ProtocolError: that was another one.
        """
        before = self._read()
        if before is None or before["party"]["context"] != context:
            raise ProtocolError("this site has begun no such attempt at a sum, or another one since")
        return Party.parse(before["party"])

    def _read(self) -> dict[str, Any] | None:
        path = self._folder / _PARTY
        if not path.exists():
            return None
        try:
            values = read_sealed(path, older=("opened", "party"))
            if type(values["opened"]) is not int:
                raise TypeError("opened is no round")
            Party.parse(values["party"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{path} is damaged ({error}): put the site's folder back from a copy") from None
        return values

    def _write(self, party: Party, round: int) -> None:
        before = self._read()
        opened = round if party.opened else (before or {}).get("opened", 0)
        content = sealed_table({"opened": opened, "party": json.loads(party.text())})
        write_atomically(self._folder / _PARTY, content.encode())


def _text(about: Mapping[str, Any], name: str) -> str:
    value = about.get(name)
    if not isinstance(value, str):
        raise ProtocolError(f"a question about a sum that does not say its {name}")
    return value


def _texts(about: Mapping[str, Any], name: str) -> dict[str, str]:
    value = about.get(name)
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ProtocolError(f"a question about a sum that does not say its {name}")
    return value


def _tables(about: Mapping[str, Any], name: str) -> dict[str, dict[str, str]]:
    value = about.get(name)
    if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
        raise ProtocolError(f"a question about a sum that does not say its {name}")
    return {each: _texts(value, each) for each in value}


def _names(about: Mapping[str, Any], name: str) -> list[str]:
    value = about.get(name)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ProtocolError(f"a question about a sum that does not say its {name}")
    return value
