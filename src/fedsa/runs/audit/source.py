"""Which client, or which group of clients, an update came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from fedsa.data.sources import load_rows
from fedsa.errors import UserError
from fedsa.runs.audit.finding import Finding
from fedsa.runs.audit.subject import Part, Subject
from fedsa.runs.audit.training import Training, change, privacy_in_words, run_training, train_again, unprotected
from fedsa.statistics import interval
from fedsa.types import Key

__all__ = ["named_right", "source"]

Matrix = npt.NDArray[np.float64]

_METHOD = "nearest centroid by cosine, over other rounds' updates (source inference: Hu et al., arXiv:2109.05659)"


def source(subject: Subject, updates: Sequence[Training] = (), *, rounds: int = 4) -> Iterator[Finding]:
    """Yield what updates tell of where they came from.

    Each client trains several times from the state that the run left, each time on other rows of its own. The attacker
    knows of all rounds but one whose each update was, and names those of that one.

    Args:
        subject: the run.
        updates: how the clients train; none: the run's own round.
        rounds: that are made.

    Raises:
        UserError: there is one client only.
    """
    if len(subject.clients) < 2:
        raise UserError("source inference needs at least two clients: leave the attack `source` out")
    groups = _groups(subject)
    for how in updates or (run_training(subject),):
        yield from _of(subject, how, groups, rounds)


def _of(subject: Subject, how: Training, groups: Mapping[str, str] | None, rounds: int) -> Iterator[Finding]:
    parts = list(subject.parts())
    seen = [_updates(subject, parts, how, number) for number in range(rounds)]
    control_of = unprotected(how)
    same = _updates(subject, parts, control_of, 0)
    again = _updates(subject, parts, control_of, 0, again=True)
    owners = list(subject.clients)
    for place, part in enumerate(parts):
        by_round = [updates[place] for updates in seen]
        control = named_right([same[place], again[place]], owners)
        yield _finding(subject, part, how, named_right(by_round, owners), control, owners, "client", rounds)
        if groups:
            named = [groups[client] for client in owners]
            control = named_right([same[place], again[place]], named)
            yield _finding(subject, part, how, named_right(by_round, named), control, named, "domain", rounds)


def _finding(
    subject: Subject,
    part: Part,
    how: Training,
    right: float,
    control: float,
    owners: Sequence[str],
    what: str,
    rounds: int,
) -> Finding:
    count, chance = rounds * len(owners), max(Counter(owners).values()) / len(owners)
    summed = subject.summed
    return Finding(
        attack="source",
        shared=part.name,
        leaves=part.leaves,
        metric=f"accuracy ({what})",
        score=chance if summed else right,
        chance=chance,
        control=control,
        control_is="a round on the same rows, with other dropout, without privacy",
        interval=None if summed else interval(right, count, "accuracy"),
        count=count,
        update=how.in_words,
        steps=how.steps,
        privacy=privacy_in_words(subject, how),
        method=_METHOD,
        note="The server sees the sum over sites only: there is no single update to name. "
        f"Without secure aggregation the score would be {right:.2f}."
        if summed
        else "",
    )


def _updates(
    subject: Subject, parts: Sequence[Part], how: Training, number: int, *, again: bool = False
) -> list[Matrix]:
    """Each client's change in one round, for each part: shape (clients, numbers)."""
    found: list[list[Matrix]] = [[] for _ in parts]
    for client in subject.clients:
        rows = subject.federation.rows.partition.clients[client].train
        chosen = subject.random("source", client, number).permutation(rows)[: how.rows]
        before = subject.beginning(client)
        after = train_again(subject, client, before, chosen, how, "source", client, number, int(again))
        changed = change(before, after, subject.keys)
        for into, part in zip(found, parts, strict=True):
            into.append(_flat(changed, part.keys))
    return [np.stack(each) for each in found]


def _flat(changed: Mapping[Key, torch.Tensor], keys: Sequence[Key]) -> Matrix:
    flat: Matrix = torch.cat([changed[key].flatten() for key in keys]).double().numpy()
    return flat


def named_right(by_round: Sequence[Matrix], owners: Sequence[str]) -> float:
    """The part of all updates that are named right, each from the updates of the other rounds.

    What the updates of a round have in common says nothing of who made them: it is taken out.

    Args:
        by_round: each round's updates, shape (clients, numbers).
        owners: whose each is; a group of clients has one name.
    """
    names = sorted(set(owners))
    rounds = [_directions(updates - updates.mean(axis=0)) for updates in by_round]
    places = np.array([names.index(owner) for owner in owners])
    right = 0
    for number, updates in enumerate(rounds):
        known = np.concatenate([other for place, other in enumerate(rounds) if place != number])
        whose = np.tile(places, len(rounds) - 1)
        centroids = _directions(np.stack([known[whose == place].mean(axis=0) for place in range(len(names))]))
        right += int((np.argmax(updates @ centroids.T, axis=1) == places).sum())
    return right / (len(rounds) * len(owners))


def _directions(values: Matrix) -> Matrix:
    made: Matrix = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-30)
    return made


def _groups(subject: Subject) -> dict[str, str] | None:
    """The domain of each client, where the recipe deals each domain's rows out by itself; None if it does not."""
    column = getattr(subject.federation.recipe.data.partition, "within", None)
    if not column:
        return None
    from fedsa.data.rows import wanted_columns

    recipe = subject.federation.recipe
    table = load_rows(recipe.data, wanted_columns(recipe.task, recipe.data.partition)).table
    rows = subject.federation.rows.partition.clients
    values = {client: [str(each) for each in table.select(rows[client].train)[column]] for client in subject.clients}
    return {client: Counter(each).most_common(1)[0][0] for client, each in values.items()}
