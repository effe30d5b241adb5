"""What a run has spent of its privacy, client by client, from the rounds as they were."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fedsa.accounting import epsilon_of, noise_of, noise_of_updates, sampling_of, steps_of
from fedsa.recipe import ClientPrivacySettings, ExamplePrivacySettings, Recipe
from fedsa.steps.adaptive_clipping import norms_in

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["privacy_of"]


def privacy_of(
    recipe: Recipe,
    metrics: Iterable[str],
    about: Mapping[str, Mapping[str, Any]],
    slots: Callable[[], Mapping[str, Tensor]] = dict,
) -> dict[str, Any]:
    """What ``summary.json`` says of a run's privacy: an entry ``privacy``, or nothing where it has none.

    Args:
        recipe: the run's.
        metrics: the lines of ``metrics.jsonl``.
        about: what ``clients.json`` says of each client.
        slots: what the server keeps after the last round, which is read only if it is needed.
    """
    privacy = recipe.privacy
    if not isinstance(privacy, ClientPrivacySettings | ExamplePrivacySettings):
        return {}
    asked = _rounds(metrics)
    inside = {client: entry for client, entry in about.items() if "held_out" not in entry}
    if isinstance(privacy, ClientPrivacySettings):
        each = {client: _of_client(privacy, asked[client]) for client in sorted(inside)}
        more = {"noise_at": privacy.noise_at, **_adapted(privacy, recipe.rounds, slots)}
    else:
        each = {
            client: _of_rows(privacy, recipe, int(entry["train_examples"]), asked[client])
            for client, entry in sorted(inside.items())
        }
        more = dict[str, Any]()
    return {
        "privacy": {
            "kind": privacy.kind,
            "epsilon": _largest(entry["epsilon"] for entry in each.values()),
            "delta": privacy.target_delta,
            "noise_multiplier": max(entry["noise_multiplier"] for entry in each.values()),
            "clipping_norm": privacy.clipping_norm,
            **more,
            "target_epsilon": privacy.target_epsilon,
            "accountant": f"dp-accounting {version('dp-accounting')}",
            "per_client": each,
        }
    }


def _adapted(privacy: ClientPrivacySettings, rounds: int, slots: Callable[[], Mapping[str, Tensor]]) -> dict[str, Any]:
    """How the clipping norm has adapted itself, as ``adaptive_clipping``; nothing where it has not."""
    if privacy.clipping == "fixed":
        return {}
    noise, count_noise = privacy.noise_multiplier or 0.0, privacy.count_noise or 0.0
    return {
        "adaptive_clipping": {
            "target_quantile": privacy.target_quantile,
            "clipping_rate": privacy.clipping_rate,
            "count_noise": count_noise,
            "noise_multiplier_of_updates": noise_of_updates(noise, count_noise),
            "norms": norms_in(slots(), rounds),
        }
    }


def _rounds(metrics: Iterable[str]) -> Counter[str]:
    """The rounds that each client was asked to train in, whether or when its update has come to the server."""
    found: Counter[str] = Counter()
    for line in map(json.loads, metrics):
        # Where rounds do not overlap, a client that was asked has trained in that round, or is lost.
        if line.get("asked", line["train"] is not None or line.get("lost", False)):
            found[line["client"]] += 1
    return found


def _of_client(privacy: ClientPrivacySettings, rounds: int) -> dict[str, Any]:
    noise = privacy.noise_multiplier or 0.0
    return {
        "epsilon": _finite(epsilon_of(noise, rounds, privacy.target_delta)),
        "noise_multiplier": noise,
        "rounds": rounds,
    }


def _of_rows(privacy: ExamplePrivacySettings, recipe: Recipe, rows: int, rounds: int) -> dict[str, Any]:
    noise = noise_of(privacy, recipe.training, rows, recipe.rounds)
    steps, sampling = rounds * steps_of(recipe.training, rows), sampling_of(recipe.training, rows)
    return {
        "epsilon": _finite(epsilon_of(noise, steps, privacy.target_delta, sampling)),
        "noise_multiplier": noise,
        "rounds": rounds,
        "steps": steps,
        "sampling": sampling,
    }


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _largest(epsilons: Iterable[float | None]) -> float | None:
    """The largest ε; None if one is infinite."""
    known = [math.inf if epsilon is None else epsilon for epsilon in epsilons]
    return _finite(max(known))
