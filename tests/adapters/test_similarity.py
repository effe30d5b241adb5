"""Similarities of hand-made matrices, whose values are known."""

import itertools
import math

import pytest
import torch

from fedsa.adapters.similarity import (
    clusters,
    cosine,
    cut_tree,
    distances,
    pairwise,
    principal_angles,
    product_cosine,
    silhouette,
    span_similarity,
)
from fedsa.types import Side

E = torch.eye(6, dtype=torch.float64)


def turned(matrix: torch.Tensor, angle: float) -> torch.Tensor:
    """Return the matrix turned by an angle in the plane of the first and the fourth axis."""
    turn = torch.eye(6, dtype=torch.float64)
    turn[0, 0] = turn[3, 3] = math.cos(angle)
    turn[0, 3], turn[3, 0] = -math.sin(angle), math.sin(angle)
    return matrix @ turn.T


def test_the_cosine_of_flattened_matrices():
    first, second = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert cosine(first, second) == pytest.approx((2 + 4) / math.sqrt(30 * 5), rel=1e-15)
    assert cosine(first, 3 * first) == pytest.approx(1, abs=1e-15)
    assert cosine(first, -first) == pytest.approx(-1, abs=1e-15)
    assert math.isnan(cosine(first, torch.zeros(2, 2)))


def test_the_cosine_of_products_is_that_of_their_entries():
    generator = torch.Generator().manual_seed(0)
    b, d = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    a, c = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    mix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    expected = cosine(b @ a, d @ c)
    assert product_cosine((b, a), (d, c)) == pytest.approx(expected, abs=1e-12)
    assert product_cosine((b @ mix, mix.inverse() @ a), (d, c)) == pytest.approx(expected, abs=1e-10)
    assert product_cosine((b, a), (d[:, :1], c[:1])) == pytest.approx(cosine(b @ a, d[:, :1] @ c[:1]), abs=1e-12)
    assert product_cosine((b, a), (b, a)) == pytest.approx(1, abs=1e-12)
    assert math.isnan(product_cosine((b, a), (0 * d, c)))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 0.3, 1.0, math.pi / 2])
def test_the_angle_that_one_space_was_turned_by(angle):
    first = E[:2]  # rows: the first and the second axis
    angles = principal_angles(first, turned(first, angle), Side.A)
    assert angles.tolist() == pytest.approx([0.0, angle], abs=1e-12)
    assert span_similarity(first, turned(first, angle), Side.A) == pytest.approx((1 + math.cos(angle) ** 2) / 2)


def test_angles_do_not_depend_on_the_basis():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    mix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    expected = principal_angles(first, second, Side.A)
    assert torch.allclose(principal_angles(mix @ first, second, Side.A), expected, atol=1e-10)
    assert torch.allclose(principal_angles(first.T @ mix, second.T, Side.B), expected, atol=1e-10)
    assert cosine(mix @ first, second) != pytest.approx(cosine(first, second), abs=1e-3)


def test_ranks_may_differ():
    assert principal_angles(E[:1], E[:3], Side.A).tolist() == pytest.approx([0.0], abs=1e-12)
    assert principal_angles(E[:3], E[2:4], Side.A).tolist() == pytest.approx([0.0, math.pi / 2], abs=1e-12)
    twice = torch.cat([E[:1], 2 * E[:1]])  # of rank 1
    assert principal_angles(twice, E[:3], Side.A).tolist() == pytest.approx([0.0], abs=1e-12)


def test_a_zero_matrix_spans_nothing():
    assert principal_angles(torch.zeros(2, 6), E[:2], Side.A).numel() == 0
    assert math.isnan(span_similarity(torch.zeros(2, 6), E[:2], Side.A))


def test_random_spaces_are_as_alike_as_their_share_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(200, 2, 4, 40, generator=generator, dtype=torch.float64)
    mean = sum(span_similarity(first, second, Side.A) for first, second in pairs) / len(pairs)
    assert mean == pytest.approx(4 / 40, abs=0.01)


@pytest.mark.parametrize("measure", ["cosine", "span"])
def test_identical_clients_give_one(measure):
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    matrix = pairwise([one, one.clone(), other], measure, Side.A)
    assert matrix[0, 1].item() == pytest.approx(1, abs=1e-12)
    assert torch.equal(matrix, matrix.T)
    assert matrix[0, 2].item() < 0.99
    assert matrix.diagonal().tolist() == [1, 1, 1]


def test_clusters_are_of_one_direction():
    rows = torch.tensor([[1.0, 0.1], [-1.0, 0.0], [9.0, 0.0], [-0.1, 0.01]])
    first, second, third, fourth = clusters(rows, 2)
    assert first == third != second == fourth
    assert clusters(rows, 4) == [0, 1, 2, 3]
    assert len(set(clusters(torch.cat([rows, torch.zeros(1, 2)]), 3))) == 3


def test_cuts_of_a_tree_are_nested():
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    apart = distances(list(rows))
    cuts = [cut_tree(apart, number) for number in (1, 2, 5, 9, 40)]
    assert [len(set(cut)) for cut in cuts] == [1, 2, 5, 9, 40]
    for wide, fine in itertools.pairwise(cuts):
        assert len(set(zip(wide, fine, strict=True))) == len(set(fine)), "each small cluster is in one large one"


def test_distances_of_equal_rows_are_zero():
    row = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    apart = distances([row] * 30 + [row + 3 * torch.eye(5000)[0]])
    assert not apart[:30, :30].any()
    assert apart[30, :30].tolist() == pytest.approx([3] * 30, rel=1e-6)


def test_the_silhouette_of_clusters_that_are_apart_and_of_exchanged_ones():
    apart = distances([torch.tensor([x]) for x in (0.0, 1.0, 9.0, 10.0)])
    assert silhouette(apart, [0, 0, 1, 1]) == pytest.approx(1 - (1 / 9.5 + 1 / 8.5) / 2)
    assert silhouette(apart, [0, 1, 0, 1]) < 0
    assert silhouette(apart, [0, 0, 1, 2]) == pytest.approx((1 - 1 / 9 + 1 - 1 / 8) / 4)
    assert silhouette(torch.zeros(4, 4), [0, 0, 1, 1]) == 0
