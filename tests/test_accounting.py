"""ε and σ against dp-accounting itself, used in another way, and against figures that others have published."""

from __future__ import annotations

import math

import pytest

from fedsa.accounting import epsilon_of, noise_multiplier_for, noise_of, sampling_of, steps_of
from fedsa.recipe import ExamplePrivacySettings, TrainingSettings
from support.extras import NEEDS_PRIVACY

pytestmark = [pytest.mark.run, NEEDS_PRIVACY]


def renyi(noise: float, steps: int, sampling: float, delta: float) -> tuple[float, float]:
    """Return ε by dp-accounting's Rényi accountant: as it gives it, and by the conversion of Mironov, 1702.07476."""
    import dp_accounting
    from dp_accounting import rdp

    orders = [1 + x / 10 for x in range(3, 100)] + list(range(11, 64)) + [128, 256, 512]
    accountant = rdp.RdpAccountant(orders)
    step = dp_accounting.PoissonSampledDpEvent(sampling, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(step, steps)
    older = min(
        spent + math.log(1 / delta) / (order - 1)
        for order, spent in zip(accountant._orders, accountant._rdp, strict=True)
        if math.isfinite(spent)
    )
    return float(accountant.get_epsilon(delta)), older


@pytest.mark.parametrize(
    ("noise", "steps", "sampling", "published"),
    [
        pytest.param(4.0, 10_000, 0.01, 1.26, id="Abadi et al., 1607.00133, section 5.1, E = 100"),
        pytest.param(1.12, 60 * (60_000 // 256), 256 / 60_000, 2.92, id="TensorFlow Privacy, tutorials/README, 60"),
        pytest.param(0.6, 30 * (60_000 // 256), 256 / 60_000, 9.74, id="TensorFlow Privacy, tutorials/README, 30"),
        pytest.param(1.2, 10 * (60_000 // 256), 256 / 60_000, 1.20, id="TensorFlow Privacy, tutorials/README, 10"),
    ],
)
def test_published_figures_are_found_again(noise: float, steps: int, sampling: float, published: float) -> None:
    """They were computed with Rényi differential privacy and a conversion to ε that has been improved since.

    So with that conversion they must be found again, and what fedsa tells must be a little less.
    """
    by_renyi, as_then = renyi(noise, steps, sampling, 1e-5)
    assert as_then == pytest.approx(published, rel=0.01)
    assert 0.6 * published < epsilon_of(noise, steps, 1e-5, sampling) < by_renyi < published


@pytest.mark.parametrize(("noise", "steps", "sampling"), [(1.0, 30, 0.1), (2.0, 100, 0.3), (0.7, 10, 0.02)])
def test_epsilon_is_that_of_the_library(noise: float, steps: int, sampling: float) -> None:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, pld

    accountant = pld.PLDAccountant()
    accountant.compose(PoissonSampledDpEvent(sampling, GaussianDpEvent(noise)), steps)
    expected = accountant.get_epsilon(1e-5)
    assert epsilon_of(noise, steps, 1e-5, sampling) == pytest.approx(expected, rel=1e-3)
    assert epsilon_of(noise, steps, 1e-5, sampling) >= expected * (1 - 1e-9), "rounded to the safe side"


def test_without_sampling_it_is_the_exact_one_of_a_gaussian() -> None:
    """Balle and Wang, 1805.06530, theorem 8: δ(ε) of one Gaussian mechanism."""
    from scipy.stats import norm

    noise, steps, delta = 3.0, 9, 1e-5
    epsilon, one = epsilon_of(noise, steps, delta), noise / math.sqrt(steps)
    lost = norm.cdf(1 / (2 * one) - epsilon * one) - math.exp(epsilon) * norm.cdf(-1 / (2 * one) - epsilon * one)
    assert lost == pytest.approx(delta, rel=1e-6)


def test_no_noise_and_no_step() -> None:
    assert epsilon_of(0.0, 3, 1e-5) == math.inf
    assert epsilon_of(0.0, 0, 1e-5) == 0.0


@pytest.mark.parametrize(("epsilon", "steps", "sampling"), [(1.0, 20, 1.0), (8.0, 20, 1.0), (3.0, 40, 0.1)])
def test_the_noise_for_an_epsilon_is_the_least(epsilon: float, steps: int, sampling: float) -> None:
    found = noise_multiplier_for(epsilon, 1e-5, steps, sampling)
    assert epsilon_of(found, steps, 1e-5, sampling) <= epsilon
    assert epsilon_of(found - 0.005, steps, 1e-5, sampling) > epsilon


def test_what_a_recipe_says_of_steps_and_sampling() -> None:
    training = TrainingSettings(local_steps=5, batch_size=4, gradient_accumulation_steps=2)
    assert (sampling_of(training, 80), steps_of(training, 80)) == (0.1, 5)
    assert sampling_of(training, 3) == 1.0
    by_epochs = TrainingSettings(local_epochs=2, batch_size=4)
    assert steps_of(by_epochs, 10) == 2 * 3
    given = ExamplePrivacySettings(noise_multiplier=0.7)
    assert noise_of(given, training, 80, 10) == 0.7
    wanted = ExamplePrivacySettings(target_epsilon=8.0)
    assert noise_of(wanted, training, 80, 10) == noise_multiplier_for(8.0, 1e-5, 50, 0.1)
