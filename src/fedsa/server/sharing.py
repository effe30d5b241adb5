"""What clients train, send and receive, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fedsa.algorithms.base import Algorithm, Plan, ServerState
from fedsa.steps import Chain
from fedsa.types import Factor, Key, State, total_bytes, total_elements

__all__ = ["first_round", "kept_in_words", "leaves", "own_shares", "plan_of_the_run", "sent_in_words"]


def first_round(
    algorithm: Algorithm, tensors: State, steps: Chain, rounds: int = 1, *, mixed_ranks: bool = False
) -> dict[str, Any]:
    """The tensors that a client trains, sends and receives in round 1, as a run's summary shows them.

    Args:
        algorithm: the method.
        tensors: every tensor of the adapter and the head; only shapes and types are looked at.
        steps: what happens to them on their way.
        rounds: of the run.
        mixed_ranks: clients have ranks of their own: of a low one all may leave where a part of a high one does.

    Returns:
        ``trained_parameters``, ``upload_parameters``, ``upload_bytes``, ``download_bytes`` (of all that is received,
        though in round 1 nothing is newer than what the client holds), and ``sharing_plan``: for each factor
        ``factor``, ``tensors``, ``parameters``, ``trained``, ``sent``, ``received``, ``leaves`` (what a client learns
        of it leaves the client, be it by another tensor that stands for it), ``parameters_that_leave`` (fewer than
        ``parameters`` where a part stays) and ``beside`` (None, or what a tensor is that is beside the model's, such
        as ``common``); more than one entry for a factor that is not treated alike in all adapters. Where clients have
        ranks of their own, it is one of the highest.
        Where not every round is like the first, also ``sharing_by_round``: the same of each kind of round, and its
        ``rounds``; and ``sharing_plan_of_all_rounds``, of what is trained, sent or received in any.
    """
    tensors = algorithm.whole(tensors)
    kinds: dict[tuple[Plan, ...], list[int]] = {}
    for round in range(1, rounds + 1):
        kinds.setdefault(tuple(algorithm.plan(key, round) for key in tensors), []).append(round)

    def table(of_rounds: Sequence[int], plans: Sequence[Plan]) -> list[dict[str, Any]]:
        return _rows(algorithm, of_rounds, dict(zip(tensors, plans, strict=True)), tensors, mixed_ranks)

    each = [
        {
            "rounds": alike,
            **_bytes(dict(zip(tensors, plans, strict=True)), tensors, steps),
            "sharing_plan": table(alike[:1], plans),
        }
        for plans, alike in kinds.items()
    ]
    first = {name: value for name, value in each[0].items() if name != "rounds"}
    if len(each) == 1:
        return first
    ever = [Plan(*(any(role) for role in zip(*plans, strict=True))) for plans in zip(*kinds, strict=True)]
    together = table([alike[0] for alike in kinds.values()], ever)
    return first | {"sharing_by_round": each, "sharing_plan_of_all_rounds": together}


def plan_of_the_run(summary: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The rows of a summary's ``sharing_plan`` for all of its rounds together; older runs have the first's alone."""
    plan: Sequence[Mapping[str, Any]] = summary.get("sharing_plan_of_all_rounds", summary.get("sharing_plan", []))
    return plan


def own_shares(algorithm: Algorithm, state: ServerState) -> list[dict[str, Any]]:
    """The part of a movement that clients keep of their own, of each tensor and round where a method estimates it.

    Args:
        algorithm: the method.
        state: the server's, after any round.

    Returns:
        Entries with ``round`` (from which it holds), ``factor``, ``module``, ``own_share`` and ``by_row``: one number
        for each row where each row has its own, and then ``own_share`` is their mean; else None.
    """
    return [
        {
            "round": round,
            "factor": key.factor.value,
            "module": key.module if key.adapter == algorithm.adapters[0] else f"{key.module}:{key.adapter}",
            "own_share": fmean(values),
            "by_row": values if len(values) > 1 else None,
        }
        for round, shares in algorithm.own_shares(state).items()
        for key, values in shares.items()
    ]


def leaves(entry: Mapping[str, Any]) -> bool:
    """Whether what a client learns of a row of a ``sharing_plan`` leaves it; older runs do not say so by itself."""
    return bool(entry.get("leaves", entry["sent"]))


def sent_in_words(plan: Sequence[Mapping[str, Any]], *, trained: bool = False) -> list[str]:
    """The factors that leave a client, and how much of one where a part stays: ``288 of 768 numbers of B``.

    Args:
        plan: a ``sharing_plan``.
        trained: only those that a client trains, also where another tensor stands for one; else all that is sent.
    """
    factors = dict.fromkeys(
        row["factor"] for row in plan if (row["trained"] and leaves(row) if trained else row["sent"])
    )
    words = []
    for factor in factors:
        leaving, every = _parameters(plan, factor)
        words.append(f"{leaving:,} of {every:,} numbers of {factor}" if 0 < leaving < every else factor)
    return words


def kept_in_words(plan: Sequence[Mapping[str, Any]]) -> list[str]:
    """The factors that a client trains and keeps: ``the other numbers of B`` where a part of one leaves."""
    factors = dict.fromkeys(row["factor"] for row in plan if row["trained"])
    counts = {factor: _parameters(plan, factor) for factor in factors}
    words = {factor: f"the other numbers of {factor}" if left else factor for factor, (left, _) in counts.items()}
    return [words[factor] for factor, (left, every) in counts.items() if left < every]


def _parameters(plan: Sequence[Mapping[str, Any]], factor: str) -> tuple[int, int]:
    """How many of the numbers of a factor that a client trains leave it, and how many there are."""
    rows = [row for row in plan if row["factor"] == factor and row["trained"]]
    sizes = [int(row.get("parameters", 1)) for row in rows]
    left = [row.get("parameters_that_leave", size * leaves(row)) for row, size in zip(rows, sizes, strict=True)]
    return sum(left), sum(sizes)


def _rows(
    algorithm: Algorithm, rounds: Sequence[int], plans: Mapping[Key, Plan], tensors: State, mixed_ranks: bool
) -> list[dict[str, Any]]:
    sizes_sent = Counter[tuple[str, Factor]]()  # of a tensor of the model, and of those that stand for it
    for key, plan in plans.items():
        sizes_sent[key.module, key.factor] += tensors[key].numel() * plan.sent
    table: dict[tuple[Factor, str | None, Plan], dict[str, Any]] = {}
    for key, plan in plans.items():
        beside = None if algorithm.in_model(key) else key.adapter
        about = {"factor": key.factor.value, "beside": beside, "tensors": 0, "parameters": 0, **plan._asdict()}
        entry = table.setdefault((key.factor, beside, plan), about)
        if "leaves" not in entry:
            by_another = beside is None and any(algorithm.leaves(key, round) for round in rounds)
            entry["leaves"] = plan.sent or by_another
        entry["tensors"] += 1
        entry["parameters"] += (size := tensors[key].numel())
        leaving = size if mixed_ranks else sizes_sent[key.module, key.factor] or size
        entry.setdefault("parameters_that_leave", 0)
        entry["parameters_that_leave"] += min(size, leaving) if entry["leaves"] else 0
    return [entry for factor in Factor for (of, *_), entry in table.items() if of is factor]


def _bytes(plans: Mapping[Key, Plan], tensors: State, steps: Chain) -> dict[str, Any]:
    trained, sent, received = (
        {key: tensors[key] for key, plan in plans.items() if getattr(plan, role)}
        for role in ("trained", "sent", "received")
    )
    return {
        "trained_parameters": total_elements(trained),
        "upload_parameters": total_elements(sent),
        "upload_bytes": steps.upload_bytes(sent),
        "download_bytes": total_bytes({**steps.on_payload(received), **steps.notes_to_client({})}),
    }
