"""What a run came to, in sentences: for a reader who stops there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsa.accounting import privacy_in_words
from fedsa.runs.pages.engine import score, signed, size
from fedsa.server import kept_in_words, plan_of_the_run, sent_in_words
from fedsa.texts.words import counted
from fedsa.types import FRACTIONS

__all__ = ["in_words", "left_later"]

Table = Mapping[str, Any]


def in_words(summary: Table, metric: str) -> list[str]:
    """Return the result as paragraphs.

    Args:
        summary: of the run.
        metric: by which rounds are chosen.
    """
    return [_result(summary, metric), *filter(None, [_gain(summary, metric), _sent(summary), _privacy(summary)])]


def _result(summary: Table, metric: str) -> str:
    test, clients, chosen = summary["test"], summary["per_client"].values(), summary.get("chosen_round", "–")
    text = (
        f"After {counted(summary['rounds'], 'round')}, the model of round {chosen}, chosen on validation, "
        f"reaches {score(test.get('weighted_mean'), metric)} {metric.replace('_', ' ')} on the clients’ own test rows "
        f"(weighted mean) and {score(test.get('worst'), metric)} at the worst client"
    )
    text += f", {test['worst_client']}." if test.get("worst_client") else "."
    both = [(c["test"][metric], c["majority"]) for c in clients if "majority" in c and metric in c.get("test", {})]
    if both and metric == "accuracy":
        better = sum(accuracy > majority for accuracy, majority in both)
        guessing = f"{better} of {counted(len(both), 'client')}"
        text += f" Better than always guessing the client’s most frequent label: {guessing}."
    return text


def _privacy(summary: Table) -> str:
    return privacy_in_words(summary["privacy"]) if "privacy" in summary else ""


def _gain(summary: Table, metric: str) -> str:
    """Say what training has changed, by clients whose value before it is known."""
    pairs = [
        (client["before"], client["test"][metric], client.get("test_examples") or 1)
        for client in summary["per_client"].values()
        if isinstance(client.get("before"), int | float) and isinstance(client.get("test", {}).get(metric), int | float)
    ]
    if not pairs:
        return ""
    rows = sum(weight for *_, weight in pairs)
    before, after = (sum(pair[place] * pair[2] for pair in pairs) / rows for place in (0, 1))
    unit = " percentage points" if metric in FRACTIONS else ""
    better, worse = (sum(sign * (now - then) > 0 for then, now, _ in pairs) for sign in (1, -1))
    return (
        f"Before any training it was {score(before, metric)} (weighted mean): {signed(after - before, metric)}{unit}. "
        f"{better:,} of {counted(len(pairs), 'client')} gained, and {f'{worse:,}' if worse else 'none'} lost."
    )


def _sent(summary: Table) -> str:
    """Say what has left a client."""
    plan = plan_of_the_run(summary)
    total = summary.get("total_upload_bytes")
    if summary.get("pools_rows"):
        return (
            "This was no federation: the training rows of all clients were put together, as a control to compare with."
        )
    if not plan or total is None or not summary["rounds"]:
        return ""
    if not total:
        return "Nothing was sent to the server: every client trained alone."
    sent, kept = _listed(sent_in_words(plan, trained=True)), _listed(kept_in_words(plan))
    known = summary.get("class_prior")
    differs = ", not all of it in each round" if summary.get("sharing_by_round") else ""
    return (
        f"Clients sent {sent or 'nothing that they train'} to the server, {size(total)} in the whole run{differs}"
        + (f"; {kept} stayed with each client" if kept else "")
        + (f", but {later}" if kept and (later := left_later(summary)) else "")
        + "."
        + (" How frequent each class is at a client is in its own head, and was not sent." if known else "")
    )


def left_later(summary: Table) -> str:
    """Say what clients keep in the rounds and gave away afterwards, as the recipe allows; empty: nothing."""
    left = _listed((summary.get("global_model") or {}).get("left_the_clients", []))
    if left:
        return f"{left} left it afterwards for one global model"
    if (summary.get("unseen") or {}).get("start", "initial") != "initial":
        return "left it afterwards for clients outside the federation to begin with"
    return ""


def _listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them.

    >>> _listed(["A", "B", "head"]), _listed(["A"]), _listed([])
    ('A, B and head', 'A', '')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
