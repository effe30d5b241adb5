"""Try every law on a method."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms.base import Algorithm
from fedsa.plugins import raised
from fedsa.seeds import derive_seed
from fedsa.testing import laws
from fedsa.testing.comparing import hold
from fedsa.testing.world import ROUNDS, Case

__all__ = ["LAWS", "cases", "check_laws"]

LAWS: dict[str, Callable[[Case], None]] = {
    law.__name__.replace("_", " "): law
    for law in (
        laws.plan_is_a_function,
        laws.combine_after_partition_is_the_identity,
        laws.uploads_are_what_the_plan_declares,
        laws.the_server_refuses_what_is_not_declared,
        laws.order_and_scale_of_weights_do_not_matter,
        laws.one_client_keeps_its_own,
        laws.an_exact_method_is_exact,
        laws.a_saved_state_goes_on_as_if_never_saved,
        laws.who_skips_rounds_catches_up,
        laws.without_updates_nothing_changes,
        laws.aggregate_is_pure,
        laws.an_additive_method_needs_sums_alone,
        laws.the_server_computes_with_initial_values_only_where_it_says,
    )
}
"""Every law by its name."""


def cases(algorithm: Algorithm) -> list[Case]:
    """Return a case for each adapter variant that the method goes with, and for mixed ranks where it goes with them."""
    return [
        Case(algorithm, variant, mixed)
        for variant in VARIANTS
        for mixed in (False, True)
        if algorithm.refusal(variant, mixed_ranks=mixed) is None
    ]


def check_laws(algorithm: Algorithm, *, examples: int = 3) -> None:
    """Try every law on a method, with every adapter variant that it does not refuse.

    Args:
        algorithm: the method with the options to try.
        examples: random federations for each law and variant; the same in every call.

    Raises:
        AssertionError: a law does not hold; which, with what, and what is wrong.
    """
    tried = cases(algorithm)
    hold(bool(tried), f"{type(algorithm).__name__} refuses every adapter variant: there is nothing to check")
    for case, (name, law), seed in itertools.product(tried, LAWS.items(), range(examples)):
        random = np.random.default_rng(derive_seed(seed, "laws"))
        clients = int(random.integers(2, 5))
        drawn = replace(
            case,
            seed=seed,
            weights=tuple(map(int, random.integers(1, 100, clients))),
            present=tuple(frozenset(np.flatnonzero(random.random(clients) < 0.6).tolist()) for _ in range(ROUNDS)),
        )
        try:
            law(drawn)
        except Exception as error:
            ranks = " with mixed ranks" if case.mixed_ranks else ""
            what = str(error) if isinstance(error, AssertionError) else raised(error)
            raise AssertionError(f"{type(algorithm).__name__} on {case.variant}{ranks}: {name}: {what}") from error
