"""How alike two clients' matrices are: by their entries, and by the spaces that they span."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch

from fedsa.types import Side

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "clusters",
    "cosine",
    "cut_tree",
    "distances",
    "pairwise",
    "principal_angles",
    "product_cosine",
    "silhouette",
    "span_similarity",
]


def cosine(first: Tensor, second: Tensor) -> float:
    """Return the cosine of two tensors of one shape, flattened; not a number where one is zero.

    >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    0.7071067811865475
    """
    x, y = first.double().flatten(), second.double().flatten()
    return float(x @ y / (x.norm() * y.norm()))


def product_cosine(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """Return the cosine of two products B·A, each given as (B, A), which are never made.

    ⟨B₁A₁, B₂A₂⟩ is the sum of (B₁ᵀB₂) ⊙ (A₁A₂ᵀ), which are r × r. It does not depend on how a product is factored.
    Not a number where one is zero.

    Args:
        first: B of shape (out, r) and A of shape (r, in).
        second: of the same out and in; ranks may differ.

    >>> b, a = torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0, 3.0]])
    >>> product_cosine((b, a), (-b, 5 * a))
    -1.0
    """

    def inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
        (b, a), (d, c) = ([factor.double().flatten(1) for factor in pair] for pair in (one, other))
        return float(((b.T @ d) * (a @ c.T)).sum())

    norms = inner(first, first) * inner(second, second)
    return inner(first, second) / math.sqrt(norms) if norms else math.nan


def principal_angles(first: Tensor, second: Tensor, side: Side) -> Tensor:
    """Return the angles between the spaces that two matrices span, in radians, rising.

    Of A, shape (r, in), it is the space of the rows; of B, shape (out, r), that of the columns. Neither depends on the
    basis: A and Q·A span the same for any invertible Q.

    Args:
        first: a matrix.
        second: another of the same kind; ranks may differ.
        side: A or B.

    Returns:
        As many as the smaller of the two dimensions; none where one matrix is zero.
    """
    x, y = (_basis(matrix, side) for matrix in (first, second))
    cosines = torch.linalg.svdvals(x.T @ y)
    # Near zero an angle is better known by its sine: what is left of one basis beside the other space.
    sines = (
        torch.linalg.svdvals(y - x @ (x.T @ y)) if x.shape[1] >= y.shape[1] else torch.linalg.svdvals(x - y @ (y.T @ x))
    )
    number = min(x.shape[1], y.shape[1])
    by_cosine, by_sine = cosines[:number].clamp(max=1).acos(), sines.flip(0)[:number].clamp(max=1).asin()
    return torch.where(cosines[:number] > 0.7, by_sine, by_cosine)


def span_similarity(first: Tensor, second: Tensor, side: Side) -> float:
    """Return the mean squared cosine of the principal angles: 1 for one space, r/n for random ones of r in n.

    Not a number where one matrix is zero.
    """
    angles = principal_angles(first, second, side)
    return float(angles.cos().square().mean())


def pairwise(values: Sequence[Tensor], measure: str, side: Side) -> Tensor:
    """Return the similarity of each two of several clients' matrices, shape (clients, clients); the diagonal is 1.

    Args:
        values: one matrix a client.
        measure: ``cosine`` or ``span``.
        side: A or B; for the cosine it does not matter.
    """
    result = torch.eye(len(values), dtype=torch.float64)
    for i, j in combinations(range(len(values)), 2):
        likeness = cosine(values[i], values[j]) if measure == "cosine" else span_similarity(values[i], values[j], side)
        result[i, j] = result[j, i] = likeness
    return result


def clusters(rows: Tensor, number: int) -> list[int]:
    """Return the cluster of each row: rows are alike where they point in the same direction (cosine, average linkage).

    Args:
        rows: shape (rows, features); one of zeros is as far from all others as from a right angle.
        number: of clusters; as many as there are rows, where these are fewer.
    """
    directions = rows.double() / rows.double().norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return cut_tree((1 - directions @ directions.T).clamp(min=0), number)


def distances(rows: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean distance of each two of several vectors of one length, in float64: shape (rows, rows)."""
    stacked = torch.stack([row.double() for row in rows])
    return torch.cdist(stacked, stacked, compute_mode="donot_use_mm_for_euclid_dist")  # 0 of two that are equal


def cut_tree(distances: Tensor, number: int) -> list[int]:
    """Return the cluster of each item where the tree of average linkage is cut into so many.

    Cuts of one tree are nested: items that are apart stay apart where there are more clusters.

    Args:
        distances: of each two, shape (items, items).
        number: of clusters; as many as there are items, where these are fewer.
    """
    if len(distances) <= number:
        return list(range(len(distances)))
    from sklearn.cluster import AgglomerativeClustering

    tree = AgglomerativeClustering(number, metric="precomputed", linkage="average").fit(distances.numpy())
    found: list[int] = tree.labels_.tolist()
    return found


def silhouette(distances: Tensor, labels: Sequence[int]) -> float:
    """Return the mean silhouette of clusters, from -1 to 1: how much nearer items are to their own than to the next.

    It is 0 for a cluster of one item, and where all are in one place (Rousseeuw 1987).

    Args:
        distances: of each two, shape (items, items), zero on the diagonal.
        labels: of each item; at least two different ones, and fewer than items.

    >>> silhouette(distances([torch.tensor([x]) for x in (0.0, 1.0, 9.0, 10.0)]), [0, 0, 1, 1])
    0.8885448916408669
    """
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(distances.numpy(), labels, metric="precomputed"))


def _basis(matrix: Tensor, side: Side) -> Tensor:
    """Return an orthonormal basis of the space that a matrix spans, as columns."""
    columns = matrix.double().T if side is Side.A else matrix.double()
    u, sigma, _ = torch.linalg.svd(columns, full_matrices=False)
    limit = max(columns.shape) * torch.finfo(torch.float64).eps * (sigma[0] if len(sigma) else 0)
    basis: Tensor = u[:, sigma > limit]
    return basis
