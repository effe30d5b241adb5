"""Which tokens an update is made of: simultaneous sparse recovery over the vocabulary.

The gradient of A is a sum over tokens, Σ u·xᵀ, where x is what the layer reads of a token and u is not known. So its
rows lie in the span of the x's of the tokens that were read. The gradient of B is Σ v·(A·x)ᵀ: its rows lie in the span
of the A·x's, which have only r numbers each. If there are no more tokens than an update has independent rows, a token
is in the text exactly where its x lies in the span (Petrov et al., arXiv:2405.15586). With more tokens:

1. Everything is whitened by what x's look like over the whole vocabulary, or tokens would be too alike.
2. For each position, the tokens are shortlisted whose x has most of the rows' energy.
3. Of these, tokens are chosen one after the other, each the one that explains most of what is left (simultaneous
   orthogonal matching pursuit; with the rows made orthonormal first it is rank-aware: Davies and Eldar,
   arXiv:1004.4529).
4. Each choice is looked at again while the others stay.

All this is done with two strengths of whitening, since an update has noise where its optimiser is not plain SGD. The
tokens count that explain the update best.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import final

import torch
from torch import Tensor

__all__ = ["Dictionary", "Found", "Sight", "matched"]

_SMALL = 1e-4  # relative: singular values and norms below it are rounding
_NOISES = (1e-6, 0.5)  # part of the mean energy that is taken for noise in every direction
_SHORT = 200  # tokens of a position that are looked at closely
_CHUNK = 2**15  # tokens whose energy is computed at once


@final
class Dictionary:
    """What each token at each position puts into an update's rows.

    Args:
        values: shape (positions, vocabulary, width); one position stands for all where they are alike.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        flat = values.flatten(0, 1)
        self._moment = (flat.T @ flat).double() / len(flat)

    @functools.cache  # noqa: B019  # it lives as long as the attack
    def whitening(self, noise: float) -> tuple[Tensor, Tensor]:
        """The matrix that whitens, shape (width, width), and each token's energy after it, (positions, vocabulary).

        Args:
            noise: part of the mean energy that is taken for noise.
        """
        values, directions = torch.linalg.eigh(self._moment)
        strengths = (values.clamp(min=0) + noise * values.mean()).rsqrt()
        matrix = ((directions * strengths) @ directions.T).float()
        energy = torch.cat([(part @ matrix).square().sum(1) for part in self.values.flatten(0, 1).split(_CHUNK)])
        return matrix, energy.view(self.values.shape[:2])


@final
@dataclass(frozen=True)
class Sight:
    """One update as an attacker sees it.

    Attributes:
        rows: shape (rows, width).
        dictionary: of that width.
        positions: how many of the dictionary's, from the first; None: all.
    """

    rows: Tensor
    dictionary: Dictionary
    positions: int | None = None

    @property
    def values(self) -> Tensor:
        """What each token at each of the positions puts into the rows, shape (positions, vocabulary, width)."""
        return self.dictionary.values[: self.positions]


@final
@dataclass(frozen=True)
class Found:
    """The tokens that were found.

    Attributes:
        tokens: (position, token), in the order found.
        left: the part of the rows' energy that they do not explain, mean over the sights.
    """

    tokens: tuple[tuple[int, int], ...]
    left: float


def matched(sights: Sequence[Sight], count: int, *, one_each: bool, sweeps: int = 3) -> Found:
    """Return so many tokens that explain the updates best.

    Args:
        sights: of the same tokens: of A's gradient, of B's, or of both.
        count: how many tokens to look for.
        one_each: each position has one token: there was one text. Positions are those of the dictionary.
        sweeps: how often each choice is looked at again.
    """
    tries = []
    for noise, orthonormal in product(_NOISES, (True, False)):
        search = _Search(sights, noise, orthonormal=orthonormal, one_each=one_each)
        search.pursue(count)
        for _ in range(sweeps if one_each else 0):
            if not search.look_again():
                break
        tries.append(search.found(sights))
    return min(tries, key=lambda found: found.left)


def _independent(rows: Tensor, *, orthonormal: bool) -> Tensor:
    """The directions of rows, as few as there are: with their strengths, or all of one strength."""
    _, strengths, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    kept = strengths > _SMALL * strengths[0]
    directions, strengths = directions[kept], strengths[kept]
    made = directions if orthonormal else strengths[:, None] * directions
    scaled: Tensor = (made / made.norm()).float()
    return scaled


class _Search:
    """A search over the tokens that are shortlisted.

    Args:
        sights: what is seen.
        noise: for the whitening.
        orthonormal: the rows' directions count alike.
        one_each: one token at most is chosen of each position.
    """

    def __init__(self, sights: Sequence[Sight], noise: float, *, orthonormal: bool, one_each: bool) -> None:
        whitened = [sight.dictionary.whitening(noise) for sight in sights]
        self._rows = [
            _independent(sight.rows.float() @ matrix, orthonormal=orthonormal)
            for sight, (matrix, _) in zip(sights, whitened, strict=True)
        ]
        scores = torch.zeros(sights[0].values.shape[:2])
        for sight, (matrix, energy), rows in zip(sights, whitened, self._rows, strict=True):
            scores += (sight.values @ (matrix @ rows.T)).square().sum(2) / energy[: len(scores)].clamp(min=1e-20)
        short = scores.topk(min(_SHORT, scores.shape[1]), dim=1).indices
        positions = torch.arange(len(short))[:, None].expand_as(short)
        self._positions, self._tokens = positions.flatten(), short.flatten()
        self._atoms = [
            sight.values[self._positions, self._tokens] @ matrix
            for sight, (matrix, _) in zip(sights, whitened, strict=True)
        ]
        self._one_each = one_each and len(short) > 1
        self._chosen: list[int] = []

    def pursue(self, count: int) -> None:
        """Choose tokens one after the other."""
        whole = [atoms.square().sum(1) for atoms in self._atoms]
        norms = [each.clone() for each in whole]
        inner = [atoms @ rows.T for atoms, rows in zip(self._atoms, self._rows, strict=True)]
        first, rows = _gains(inner, norms, whole), [each.clone() for each in self._rows]
        bases = [torch.zeros(0, atoms.shape[1]) for atoms in self._atoms]
        free = torch.ones(len(self._tokens), dtype=torch.bool)
        while len(self._chosen) < count and bool(free.any()):
            gains = torch.where(free, _gains(inner, norms, whole), -1.0)
            best = int(gains.argmax())
            if float(gains[best]) < _SMALL**2:  # all is explained: what is left to say comes from the first look
                best = int(torch.where(free, first, -1.0).argmax())
            self._chosen.append(best)
            free[self._positions == self._positions[best] if self._one_each else best] = False
            for number, atoms in enumerate(self._atoms):
                direction = _new_direction(atoms[best], bases[number])
                if direction is None:
                    continue
                bases[number] = torch.cat([bases[number], direction[None]])
                along, share = atoms @ direction, rows[number] @ direction
                inner[number] -= along[:, None] * share
                rows[number] -= share[:, None] * direction
                norms[number] -= along.square()

    def look_again(self) -> bool:
        """Look at each choice again while the others stay; say whether one has changed."""
        changed = False
        for place, now in enumerate(self._chosen):
            others = [other for other in self._chosen if other != now]
            here = torch.nonzero(self._positions == self._positions[now]).flatten()
            inner, norms, whole = [], [], []
            for rows, atoms in zip(self._rows, self._atoms, strict=True):
                basis = _basis(atoms[others])
                across = atoms[here] - (atoms[here] @ basis.T) @ basis
                inner.append(across @ rows.T)
                norms.append(across.square().sum(1))
                whole.append(atoms[here].square().sum(1))
            gains = _gains(inner, norms, whole)
            gains[torch.isin(here, torch.tensor(others))] = -1.0
            best = int(gains.argmax())
            if float(gains[best]) > float(gains[here == now]) + _SMALL**2:
                self._chosen[place], changed = int(here[best]), True
        return changed

    def found(self, sights: Sequence[Sight]) -> Found:
        """What was chosen, and what it does not explain."""
        tokens = [(int(self._positions[each]), int(self._tokens[each])) for each in self._chosen]
        left = []
        for sight in sights:
            rows = _independent(sight.rows, orthonormal=False)
            basis = _basis(torch.stack([sight.values[each] for each in tokens]))
            left.append(float((rows - (rows @ basis.T) @ basis).square().sum()))
        return Found(tuple(tokens), sum(left) / len(left))


def _gains(inner: Sequence[Tensor], norms: Sequence[Tensor], whole: Sequence[Tensor]) -> Tensor:
    """How much of what is left each token would explain, over all sights, shape (tokens,)."""
    total = torch.zeros_like(norms[0])
    for products, rest, norm in zip(inner, norms, whole, strict=True):
        counts = rest > _SMALL * norm
        total += torch.where(counts, products.square().sum(1) / rest.clamp(min=1e-20), 0.0)
    return total


def _new_direction(value: Tensor, basis: Tensor) -> Tensor | None:
    """The direction of a value across those that there are, shape (directions, width); None if it has none."""
    if len(basis) == len(value):
        return None
    rest = value
    for _ in range(2):  # twice: rounding
        rest = rest - (basis @ rest) @ basis
    norm = rest.norm()
    return None if float(norm) <= _SMALL**0.5 * float(value.norm()) else rest / norm


def _basis(values: Tensor) -> Tensor:
    """Orthonormal directions that span values, shape (directions, width)."""
    _, strengths, directions = torch.linalg.svd(values.double(), full_matrices=False)
    basis: Tensor = directions[strengths > _SMALL * strengths[0]].float()
    return basis
