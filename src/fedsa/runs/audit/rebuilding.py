"""Text, rebuilt from one round's update: which tokens were read, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from fedsa.errors import UserError
from fedsa.runs.audit.finding import Finding
from fedsa.runs.audit.guessing import overlap
from fedsa.runs.audit.inputs import Inputs, inputs_of, most_positions
from fedsa.runs.audit.matching import Dictionary, Sight, matched
from fedsa.runs.audit.rows import items_of
from fedsa.runs.audit.subject import Part, Subject
from fedsa.runs.audit.training import (
    OneStep,
    Training,
    change,
    in_sum,
    mean_change,
    privacy_in_words,
    run_training,
    train_again,
    weights_of,
)
from fedsa.tasks.base import IntArray
from fedsa.texts.words import counted
from fedsa.types import Factor, Key, State

__all__ = ["Rebuilder", "Score", "rebuilding"]

_METHOD = (
    "which tokens' inputs span the update (DAGER, Petrov et al., arXiv:2405.15586), with sparse recovery where there "
    "are more tokens than the rank"
)
_TOKENS = 32
"""The longest text that is attacked: the inputs of the whole vocabulary at so many positions are in memory."""


def rebuilding(subject: Subject, *, texts: int = 4) -> Iterator[Finding]:
    """Yield how much of the texts of an update can be rebuilt from it: of one row and one step, and of a whole round.

    Args:
        subject: the run.
        texts: attacks for each finding, each on an update of its own.

    Raises:
        UserError: the model reads no tokens, no adapted layer reads single ones, or no text is short enough.
    """
    rebuilder = Rebuilder.of(subject)
    own = run_training(subject)
    updates = (replace(OneStep, privacy=own.privacy, bare=False), replace(own, steps=1, batch_size=1), own)
    parts = [part for part in subject.parts() if part.name in ("A", "B", "A and B")]
    alone = rebuilder.alone()
    controls = {part.name: alone.score(part, OneStep, texts=1).score for part in parts}
    for how in updates:
        for part in parts:
            yield rebuilder.finding(part, how, texts=texts, control=controls[part.name])


class Score(NamedTuple):
    """How much of some texts was rebuilt.

    Attributes:
        score: ROUGE-1, mean over the updates.
        chance: of as many of the most frequent tokens.
        each: of every update.
        ordered: ROUGE-L, mean over the updates; None: an update was of several texts.
        tokens: of an update, on average.
    """

    score: float
    chance: float
    each: tuple[float, ...]
    ordered: float | None
    tokens: float


@final
@dataclass(frozen=True)
class Rebuilder:
    """Rebuilds texts of a run's clients.

    Attributes:
        subject: the run.
        inputs: what the layers that read single tokens get.
        dictionary: of these inputs.
        short: client id to its training rows that are short enough, in random order; of all that may be in a sum.
        frequent: tokens, the most frequent first, by the rows that are not attacked.
        special: tokens that are in every text, and tell nothing.
    """

    subject: Subject
    inputs: Inputs
    dictionary: Dictionary
    short: Mapping[str, IntArray]
    frequent: tuple[int, ...]
    special: frozenset[int]

    @classmethod
    def of(cls, subject: Subject) -> Rebuilder:
        """Compute what the attack needs of the base model.

        Raises:
            UserError: it cannot be used with this run.
        """
        federation = subject.federation
        if federation.task.takes_images:
            raise UserError("rebuilding is of texts, and this run's rows are images: leave this attack out")
        lengths, most = federation.encoded.lengths, min(_TOKENS, most_positions(federation.model))
        clients = federation.rows.partition.clients
        items_of(subject, clients[subject.clients[0]].train)
        short = {
            client: subject.random("texts", client).permutation(
                clients[client].train[lengths[clients[client].train] <= most]
            )
            for client in subject.together
        }
        if not any(len(rows) for rows in short.values()):
            raise UserError(f"no training row has at most {counted(most, 'token')}: leave the attack `rebuilding` out")
        longest = int(max(lengths[rows].max() for rows in short.values() if len(rows)))
        first = next(rows for rows in short.values() if len(rows))
        inputs = inputs_of(federation.model, federation.encoded.batch(first[:1]), longest)
        special = frozenset(int(token) for token in getattr(federation.tokenizer, "all_special_ids", ()))
        counts: Counter[int] = Counter()
        for client in subject.clients:
            for row in np.concatenate([clients[client].validation, clients[client].test]):
                counts.update(_tokens(subject, int(row)))
        frequent = tuple(token for token, _ in counts.most_common() if token not in special)
        return cls(subject, inputs, Dictionary(inputs.values), short, frequent, special)

    def alone(self) -> Rebuilder:
        """The same, where the server sees each client's own update."""
        return replace(self, subject=replace(self.subject, summed=False))

    def finding(self, part: Part, how: Training, *, texts: int, control: float | None = None) -> Finding:
        """Attack updates, and say what it came to.

        Args:
            part: the tensors that are seen.
            how: the training.
            texts: updates that are attacked.
            control: the same part's score where the attack must succeed.
        """
        found = self.score(part, how, texts=texts)
        return Finding(
            attack="rebuilding",
            shared=part.name,
            leaves=part.leaves,
            metric="ROUGE-1",
            score=found.score,
            chance=found.chance,
            control=control,
            control_is=f"{OneStep.in_words}, without privacy",
            interval=_interval(found.each),
            count=len(found.each),
            update=in_sum(self.subject, how) if self.subject.summed else how.in_words,
            steps=how.steps,
            privacy=privacy_in_words(self.subject, how),
            method=_METHOD,
            note="The attacker is told how many tokens there are.",
            more={
                "rouge_l": found.ordered,
                "tokens": found.tokens,
                "best": max(found.each),
                "rank": self.subject.federation.recipe.adapter.rank,
            },
        )

    def score(self, part: Part, how: Training, *, texts: int) -> Score:
        """Attack updates; the arguments are those of `finding`."""
        each: list[float] = []
        chances: list[float] = []
        ordered: list[float] = []
        sizes: list[int] = []
        for number in range(texts):
            clients = self._clients() if self.subject.summed else [self._client(number)]
            rows = {client: self._rows(client, how.rows, number) for client in clients}
            right = [_tokens(self.subject, int(row)) for own in rows.values() for row in own]
            found = self._rebuilt(part, how, rows, right, number)
            words = [token for text in right for token in text if token not in self.special]
            said = [token for _, token in sorted(found) if token not in self.special]
            each.append(overlap(said, words))
            chances.append(overlap(self.frequent[: len(words)], words))
            ordered.append(_in_order(said, words))
            sizes.append(len(words))
        alone = how.rows == 1 and not self.subject.summed
        return Score(
            float(np.mean(each)),
            float(np.mean(chances)),
            tuple(each),
            float(np.mean(ordered)) if alone else None,
            float(np.mean(sizes)),
        )

    def _client(self, number: int) -> str:
        clients = self._clients()
        return clients[number % len(clients)]

    def _clients(self) -> list[str]:
        whose = self.subject.together if self.subject.summed else self.subject.clients
        return [client for client in whose if len(self.short[client])]

    def _rows(self, client: str, count: int, number: int) -> IntArray:
        """Some texts of a client, others for each number."""
        short = self.short[client]
        start = number * count % max(1, len(short) - count + 1)
        return short[start : start + count]

    def _rebuilt(
        self, part: Part, how: Training, rows: Mapping[str, IntArray], right: Sequence[Sequence[int]], number: int
    ) -> tuple[tuple[int, int], ...]:
        subject, changes = self.subject, {}
        before: State = {}
        for client, own in rows.items():
            before = subject.beginning(client)
            batch = replace(how, batch_size=min(how.batch_size, len(own)))
            after = train_again(subject, client, before, own, batch, "rebuilding", client, number)
            changes[client] = change(before, after, part.keys)
        seen = mean_change(changes, weights_of(subject))
        distinct = {(place, token) for text in right for place, token in enumerate(text)}
        positions = max(len(text) for text in right)
        sights = self._sights(seen, before, part.keys, positions)
        alone = len(right) == 1
        return matched(sights, len(distinct), one_each=alone).tokens if sights else ()

    def _sights(self, seen: Mapping[Key, Tensor], before: State, keys: Sequence[Key], positions: int) -> list[Sight]:
        """The update of the layers that read single tokens: A's together, each B by itself."""
        own = [key for key in keys if key.module in self.inputs.modules]
        of_a = [seen[key] for key in own if key.factor is Factor.A and bool(seen[key].any())]
        sights = [Sight(torch.cat(of_a), self.dictionary, positions)] if of_a else []
        for key in own:
            if key.factor is Factor.B and bool(seen[key].any()):
                a = before[Key(key.module, Factor.A, key.adapter)].float()
                sights.append(Sight(seen[key], Dictionary(self.inputs.values[:positions] @ a.T)))
        return sights


def _tokens(subject: Subject, row: int) -> list[int]:
    """The tokens of a row."""
    batch = subject.federation.encoded.batch([row])
    ids: list[int] = batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist()
    return ids


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean of values between 0 and 1; None of a single one.

    >>> [round(end, 3) for end in _interval([0.4, 0.5, 0.6])]
    [0.252, 0.748]
    """
    if len(values) < 2:
        return None
    from scipy import stats

    middle = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return max(0.0, middle - half), min(1.0, middle + half)


def _in_order(said: Sequence[int], right: Sequence[int]) -> float:
    """ROUGE-L: the F-measure of the longest common subsequence of two texts.

    >>> _in_order([1, 2, 3, 4], [1, 3, 4, 9])
    0.75
    """
    if not said or not right:
        return 0.0
    before = [0] * (len(right) + 1)
    for token in said:
        now = [0]
        for place, other in enumerate(right):
            now.append(before[place] + 1 if token == other else max(before[place + 1], now[-1]))
        before = now
    return 2 * before[-1] / (len(said) + len(right))
