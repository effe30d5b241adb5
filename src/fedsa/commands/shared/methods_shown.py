"""Methods as `fedsa algorithms` shows them: a list, a matrix, one in full, or the page docs/algorithms.md."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedsa.adapters.factors import VARIANTS
from fedsa.commands.shared.methods import ROUNDS, STEPS_ON_SINGLE_UPDATES, Entry
from fedsa.commands.shared.settings import as_toml
from fedsa.texts.words import counted
from fedsa.types import Factor

__all__ = ["LEGEND", "as_markdown", "as_text", "matrix", "overview", "single_updates"]

LEGEND = (
    "* the head leaves the client unless share_head = false; + it stays unless share_head = true. ~ not in every "
    "round. ^ what is learned of it leaves, all or a part, in another tensor that is sent."
)


_GATES = {
    "token": "each layer weighs its adapters for each token, as its client has learned",
    "layer": "each layer weighs its adapters, the same for all tokens, as its client has learned",
    "free": "each layer multiplies each of its adapters by a number that its client has learned",
}
"""What the gates of a method do, by `fedsa.types.Gating`."""


def overview(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """A table with a line per method, and its header: with LoRA, or the first variant that the method accepts."""
    header = ["method", "a client sends", "and keeps", "exact", "secure", "export", "paper"]
    rows = []
    for entry in entries:
        if "broken" not in entry:
            sent, kept = ("all its rows", "nothing") if entry["pools_rows"] else _sent_and_kept(entry)
            exact = "yes" if entry["exact"] else "-"
            rows.append(
                [
                    entry["name"],
                    sent,
                    kept,
                    exact,
                    "yes" if entry["secure_aggregation"]["ok"] else "-",
                    entry["export"],
                    entry["source"].removeprefix("arXiv:").removeprefix("openreview:"),
                ]
            )
    return header, rows


def _sent_and_kept(entry: Entry) -> tuple[str, str]:
    """The tensors that leave the client and those that stay, with the marks of `LEGEND`."""
    roles = next((roles for roles in entry["variants"].values() if roles["ok"]), None)
    if roles is None:
        return "-", "-"
    now_and_then, optional = set(roles["not_in_every_round"]), entry["head"]["optional"]

    def marked(names: Sequence[str], mark: str) -> str:
        shown = []
        for name in names:
            own = mark if name == Factor.HEAD.value and optional else ""
            shown.append(name + own + ("~" if name in now_and_then else ""))
        return ", ".join(shown)

    kept = [name for name in (marked(roles["kept"], "+"), *(f"{each}^" for each in roles["leaves_by_another"])) if name]
    return marked(roles["sent"], "*") or "nothing", ", ".join(kept) or "nothing"


def matrix(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """The table method × variant, and its header: the sides of the update that are sent; "-": refused."""
    header = ["method", *VARIANTS]
    rows = [
        [
            entry["name"],
            *(
                (" ".join(roles["sides_sent"]) or "none") if roles["ok"] else "-"
                for roles in entry["variants"].values()
            ),
        ]
        for entry in entries
        if "broken" not in entry
    ]
    return header, rows


def single_updates(entries: Sequence[Entry]) -> str:
    """A paragraph on what needs each client's own update, and so cannot be used with secure aggregation."""
    methods = [entry["name"] for entry in entries if "broken" not in entry and not entry["additive"]]
    kinds: dict[str, list[str]] = {}
    for step in STEPS_ON_SINGLE_UPDATES:
        kinds.setdefault(step.setting.removesuffix(".kind"), []).append(step.name)
    steps = "; ".join(f"[{section}] {', '.join(names)}" for section, names in kinds.items())
    return (
        "The server needs single updates, and so refuses secure_aggregation, for these methods: "
        f"{', '.join(methods)}; and for these steps: {steps}."
    )


def _role_rows(entry: Entry) -> tuple[list[str], list[list[str]]]:
    """The roles of the factors; variants with the same roles are in one row. If rounds differ, a row for each kind."""
    header = ["variant", "rounds", "sent", "kept", "frozen", "received"]
    rows: dict[tuple[str, ...], list[str]] = {}
    for variant, roles in entry["variants"].items():
        for cells in _cells(roles) if roles["ok"] else ():
            rows.setdefault(cells, []).append(variant)
    return header, [[", ".join(variants), *cells] for cells, variants in rows.items()]


def _cells(roles: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    def joined(names: Sequence[str]) -> str:
        return ", ".join(names) or "-"

    everything = [*roles["sent"], *roles["kept"], *roles["leaves_by_another"], *roles["frozen"]]
    received, leaving = joined(roles["received"]), roles["leaves_by_another"]
    if not roles["rounds"]:
        kept_in_all = joined([*roles["kept"], *(f"{name}^" for name in leaving)])
        yield "all", joined(roles["sent"]), kept_in_all, joined(roles["frozen"]), received
        return
    patterns: dict[tuple[str, ...], list[int]] = {}
    for entry in roles["rounds"]:
        kept = [name + "^" * (name in leaving) for name in entry["trained"] if name not in entry["sent"]]
        frozen = [name for name in everything if name not in entry["trained"]]
        patterns.setdefault((joined(entry["sent"]), joined(kept), joined(frozen)), []).append(entry["round"])
    for (sent, kept_here, frozen_here), rounds in patterns.items():
        yield _rounds(rounds), sent, kept_here, frozen_here, received


def _rounds(rounds: Sequence[int]) -> str:
    """Round numbers in short form; "…" if they continue to the last of `ROUNDS`, and so beyond it.

    >>> _rounds([1, 3, 5, 7, 9, 11]), _rounds([1, 2])
    ('1, 3, 5, …', '1, 2')
    """
    goes_on = len(rounds) > 3 and rounds[-1] >= ROUNDS[-1] - 1
    return ", ".join(map(str, rounds[:3])) + ", …" if goes_on else ", ".join(map(str, rounds))


def _refused(entry: Entry) -> list[tuple[str, str]]:
    """The refused variants with the reason, then the variants that are refused with mixed ranks."""
    ruled_out: dict[tuple[bool, str], list[str]] = {}
    for variant, roles in entry["variants"].items():
        mixed = roles["ok"]
        reason = roles["mixed_ranks"]["reason"] if mixed else roles["reason"]
        if reason is not None:
            own = re.sub(rf"\b{variant}\b", "it", reason) if mixed else reason  # one line for all variants
            ruled_out.setdefault((mixed, own), []).append(variant)
    return [
        (", ".join(variants) + (" with adapter.ranks" if mixed else ""), reason)
        for (mixed, reason), variants in sorted(ruled_out.items(), key=lambda item: item[0][0])
    ]


def _facts(entry: Entry) -> list[tuple[str, str]]:
    """The properties of a method, in words."""
    head, optimizer, robust, overlap = (entry[name] for name in ("head", "server_optimizer", "robust_mean", "overlap"))
    secure = entry["secure_aggregation"]
    if head["sent"]:
        about_head = "leaves the client" + (" unless share_head = false" if head["optional"] else "")
    elif head["leaves"]:
        about_head = "what is learned of it leaves the client in another tensor" + (
            "; with share_head = true it leaves itself" if head["optional"] else ""
        )
    else:
        about_head = "stays at the client" + (" unless share_head = true" if head["optional"] else "")
    facts = [
        ("source", entry["source"]),
        ("class", f"{entry['class']} ({entry['package']})"),
        ("head", about_head),
        ("exact", "yes: the aggregate's update is the mean of the clients' updates" if entry["exact"] else "no"),
        (
            "server sees",
            "only sums over clients are needed" if entry["additive"] else "each client's update: sums are not enough",
        ),
        ("base", "the server adds to the frozen weights" if entry["folds"] else "is never changed"),
        ("export", entry["export"]),
        ("server optimiser", "yes" if optimizer["ok"] else f"no: {optimizer['reason']}"),
        ("median or trimmed mean", "yes" if robust["ok"] else f"no: {robust['reason']}"),
        ("rounds may overlap", "yes" if overlap["ok"] else f"no: {overlap['reason']}"),
        ("secure aggregation", "yes" if secure["ok"] else f"no: {secure['reason']}"),
    ]
    if entry["pools_rows"]:
        facts.append(("rows", "all clients' rows are put together: in a simulation only, fedsa deploy refuses it"))
    if len(entry["adapters"]) > 1:
        facts.append(("adapters", ", ".join(entry["adapters"])))
    if entry["gated"]:
        facts.append(("gates", _GATES[entry["gated"]]))
    if entry["references"]:
        similarity = f"its similarity to {counted(entry['references'], 'training row')} of its client"
        facts.append(("at inference", f"adapters are weighed for each row by {similarity}: one more forward pass"))
    return facts


def as_text(entry: Entry, width: int = 100) -> Iterator[str | tuple[list[str], list[list[str]]]]:
    """Yield a method in full: paragraphs, and tables as header and rows."""
    yield entry["name"]
    for paragraph in entry["description"].split("\n\n"):
        is_formula = paragraph.startswith("    ")  # indented, as in the docstring
        yield paragraph if is_formula else textwrap.fill(" ".join(paragraph.split()), width)
    facts = _facts(entry)
    longest = max(len(name) for name, _ in facts)
    yield "\n".join(
        textwrap.fill(f"{name:<{longest}}  {text}", width, subsequent_indent=" " * (longest + 2))
        for name, text in facts
    )
    yield (
        ["option", "type", "default", "meaning"],
        [
            [
                option["name"],
                option["type"].replace("\\|", "|").replace("`", ""),
                _default(option).strip("`"),
                option["description"],
            ]
            for option in entry["options"]
        ],
    )
    yield _role_rows(entry)
    refused = [textwrap.fill(f"- {what}: {reason}", width, subsequent_indent="  ") for what, reason in _refused(entry)]
    if refused:
        yield "\n".join(["refused:", *refused])


def _default(option: Mapping[str, Any]) -> str:
    try:
        return as_toml(option["default"])
    except TypeError:  # what TOML cannot write
        return f"`{option['default']!r}`"


def as_markdown(entries: Sequence[Entry]) -> str:
    """The text of docs/algorithms.md."""
    lines = [
        "# Methods",
        "",
        "`fedsa algorithms --markdown` prints this page. `fedsa algorithms NAME` shows one method; it can also be in",
        "an installed package or in a file of your own. [Architecture](architecture.md) says what a method is, and",
        "[add a method](add-a-method.md) how to write one.",
        "",
        "**What leaves the client**, with LoRA and the default options. No client trains the base model.",
        "*Exact* means that the aggregate's update of the weights is the mean of the clients' updates.",
        "*Secure* means that the method can be used with [secure aggregation](secure-aggregation.md).",
        "",
        *_markdown_table(*overview(entries), code=0),
        "",
        f"{LEGEND.replace('*', chr(92) + '*').replace('~', chr(92) + '~')}",
        "",
        *textwrap.wrap(single_updates(entries).replace("[", "`[").replace("]", "]`"), 118, break_long_words=False),
        "",
        "**Methods and adapter variants.** The table shows the sides of the update that a client sends: A is next to",
        "a layer's input, B is next to its output, and whole means that the adapter has no sides. – means that the two",
        "cannot be used together; the method's section says why.",
        "",
        *_markdown_table(*matrix(entries), code=0),
        "",
        "In the formulas below, Aᵢ and Bᵢ are client i's factors after its training, pᵢ is client i's part of the",
        "weights of the round (Σ pᵢ = 1), Ā = Σ pᵢ·Aᵢ and B̄ = Σ pᵢ·Bᵢ are the means, A₀ and B₀ the initial values,",
        "W is a frozen weight and s the scale of the update s·B·A.",
        "",
    ]
    for entry in entries:
        lines += [f"## {entry['name']}", "", entry["description"], ""]
        lines += [f"- {name}: {_code(name, text)}" for name, text in _facts(entry)]
        lines += ["", "| option | type | default | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{option['name']}` | {option['type']} | {_default(option)} | {option['description']} |"
            for option in entry["options"]
        ]
        lines += ["", *_markdown_table(*_role_rows(entry)), ""]
        refused = _refused(entry)
        if refused:
            lines += ["Refused:", ""]
            lines += [f"- {what}: {reason}" for what, reason in refused]
            lines += [""]
    return "\n".join(lines).rstrip("\n")


def _code(name: str, text: str) -> str:
    return f"`{text.partition(' (')[0]}`" if name == "class" else text


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], code: int | None = None) -> list[str]:
    def cell(place: int, text: str) -> str:
        text = re.sub(r"([*~|])", r"\\\1", text) if text != "-" else "–"
        return f"[`{text}`](#{text})" if place == code else text

    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(cell(place, text) for place, text in enumerate(row))} |" for row in rows]
