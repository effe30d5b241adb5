"""Tokens, found in what an update's rows are made of."""

from __future__ import annotations

import torch

from fedsa.runs.audit.matching import Dictionary, Sight, matched


def made(count: int, rows: int, *, noise: float = 0.0) -> tuple[list[tuple[int, int]], Sight]:
    """A text of so many tokens, one at each position, and an update of so many rows that is made of them."""
    generator = torch.Generator().manual_seed(count)
    words, places = torch.randn(90, 48, generator=generator), 2 * torch.randn(count, 1, 48, generator=generator)
    values = torch.nn.functional.layer_norm(words + places, (48,))  # alike at one position, as embeddings are
    tokens = torch.randint(90, (count,), generator=generator)
    update = torch.randn(rows, count, generator=generator) @ values[torch.arange(count), tokens]
    update += noise * update.std() * torch.randn(update.shape, generator=generator)
    return list(enumerate(tokens.tolist())), Sight(update, Dictionary(values))


def test_tokens_are_found_where_the_rows_are_as_many() -> None:
    text, sight = made(6, 8)
    found = matched([sight], 6, one_each=True)
    assert sorted(found.tokens) == text
    assert found.left < 1e-9


def test_more_tokens_than_rows_are_found_too() -> None:
    text, sight = made(12, 6)
    assert sorted(matched([sight], 12, one_each=True).tokens) == text


def test_signs_alone_show_most_tokens() -> None:
    text, sight = made(8, 16)
    found = matched([Sight(sight.rows.sign(), sight.dictionary)], 8, one_each=True)
    assert len({*found.tokens} & {*text}) >= 6


def test_rows_of_few_numbers_show_nothing() -> None:
    text, sight = made(12, 48)
    a = torch.randn(4, 48, generator=torch.Generator().manual_seed(1))
    seen_through_a = Sight(sight.rows[:, :12] @ torch.randn(12, 4), Dictionary(sight.values @ a.T))
    assert len({*matched([seen_through_a], 12, one_each=True).tokens} & {*text}) <= 3


def test_b_shows_the_tokens_where_its_rank_is_larger_than_their_number() -> None:
    generator = torch.Generator().manual_seed(3)
    text, sight = made(6, 8)
    a = torch.randn(12, 48, generator=generator)
    seen = Sight(sight.rows @ a.T, Dictionary(sight.values @ a.T))
    assert sorted(matched([seen], 6, one_each=True).tokens) == text


def test_noise_hides_them() -> None:
    text, sight = made(8, 8, noise=50.0)
    assert len({*matched([sight], 8, one_each=True).tokens} & {*text}) <= 2


def test_several_texts_may_have_several_tokens_at_a_position() -> None:
    text, sight = made(6, 16)
    other = torch.full((1, 1), 7)
    rows = torch.cat([sight.rows, torch.randn(4, 1) @ (sight.values[2, int(other)][None])])
    found = matched([Sight(rows, sight.dictionary)], 7, one_each=False)
    assert sorted(found.tokens) == sorted({*text, (2, 7)})


def test_more_sights_than_one_are_joined() -> None:
    text, sight = made(12, 2)
    more = Sight(torch.randn(6, 12, generator=torch.Generator().manual_seed(9)) @ torch.stack(
        [sight.values[place] for place in text]
    ), sight.dictionary)  # fmt: skip
    assert sorted(matched([sight, more], 12, one_each=True).tokens) == text
