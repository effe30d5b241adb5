"""Methods as `fedsa algorithms` shows them, from what they declare: a list, a matrix, one in full, or Markdown."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms import algorithm_names, built_in_names, find_algorithm, origin
from fedsa.algorithms.base import Algorithm
from fedsa.commands._settings import as_toml, type_name
from fedsa.errors import UserError
from fedsa.plugins import raised
from fedsa.steps.median import Median
from fedsa.texts.words import counted
from fedsa.types import Factor, Key, Side

__all__ = ["LEGEND", "as_markdown", "as_text", "describe", "describe_all", "matrix", "overview"]

ROUNDS = range(1, 13)
"""The rounds whose plans are looked at."""

LEGEND = (
    "* the head leaves the client unless share_head = false; + it stays unless share_head = true. ~ not in every round."
)

Entry = Mapping[str, Any]


def describe_all(*, only_built_in: bool = False) -> list[dict[str, Any]]:
    """The description of every method, as `describe` gives it; for one that cannot be used, its name and ``broken``."""
    entries = []
    for name in built_in_names() if only_built_in else algorithm_names():
        try:
            entries.append(describe(name))
        except UserError as error:
            entries.append({"name": name, "broken": str(error)})
    return entries


def describe(name: str) -> dict[str, Any]:
    """The declarations of a method, as values that JSON can hold.

    Raises:
        UserError: there is none of that name, or it cannot be used.
    """
    cls = find_algorithm(name)
    try:
        algorithm = cls()
        return {
            "name": name,
            "class": f"{cls.__module__}:{cls.__qualname__}",
            "package": cls.__module__.partition(".")[0] if ":" in name else origin(name),
            "summary": _summary(cls),
            "description": _sections(inspect.getdoc(cls) or "")[0],
            "source": cls.source,
            "exact": cls.exact,
            "additive": cls.is_additive(),
            "export": cls.export,
            "folds": cls.folds,
            "adapters": list(cls.adapters),
            "gated": cls.gated,
            "references": algorithm.references,
            "server_optimizer": _answer(algorithm.optimizer_refusal()),
            "robust_mean": _answer(Median().refusal(algorithm)),
            "head": _head(cls),
            "options": _options(cls, algorithm),
            "variants": {variant: _variant(algorithm, variant) for variant in VARIANTS},
        }
    except Exception as error:  # a plug-in's code: anything may come
        raise UserError(f"algorithm {name!r} cannot be described: {raised(error)}") from error


def _answer(refusal: str | None) -> dict[str, Any]:
    return {"ok": refusal is None, "reason": refusal}


def _head(cls: type[Algorithm]) -> dict[str, Any]:
    """Whether the head is sent by default, and whether ``share_head`` can change this."""
    sent = cls().share_head
    try:
        cls(share_head=not sent)
    except ValueError:
        return {"sent": sent, "optional": False}
    return {"sent": sent, "optional": True}


# -- roles ------------------------------------------------------------------------------------------------------------


def _variant(algorithm: Algorithm, variant: str) -> dict[str, Any]:
    """Why a variant is refused, with one rank and with mixed ranks; and the roles of its tensors."""
    refusal = algorithm.refusal(variant)
    if refusal is not None:
        return {"ok": False, "reason": refusal}
    keys = list(_keys(algorithm, variant))
    plans = {key: [algorithm.plan(key, round) for round in ROUNDS] for key in keys}

    def named(which: Any) -> list[str]:
        return [_name(algorithm, key) for key in keys if which(key)]

    roles = {
        "sent": named(lambda key: any(plan.sent for plan in plans[key])),
        "kept": named(lambda key: any(p.trained for p in plans[key]) and not any(p.sent for p in plans[key])),
        "frozen": named(lambda key: not any(plan.trained for plan in plans[key]) and key.factor.side is not Side.BASE),
        "received": named(lambda key: any(plan.received for plan in plans[key])),
    }
    by_round = [
        {
            "round": round,
            "trained": named(lambda key, at=place: plans[key][at].trained),
            "sent": named(lambda key, at=place: plans[key][at].sent),
        }
        for place, round in enumerate(ROUNDS)
    ]
    changes = any({**entry, "round": 1} != by_round[0] for entry in by_round)
    return {
        "ok": True,
        "reason": None,
        **roles,
        "not_in_every_round": named(lambda key: len(set(plans[key])) > 1),
        "rounds": by_round if changes else [],
        "sides_sent": _sides(algorithm, plans),
        "mixed_ranks": _answer(algorithm.refusal(variant, mixed_ranks=True)),
    }


def _keys(algorithm: Algorithm, variant: str) -> Iterator[Key]:
    factors = VARIANTS[variant].factors
    for adapter in algorithm.adapters:
        yield from (Key("layer", factor, adapter) for factor in factors if factor is not Factor.HEAD)
    yield from (Key("head", factor) for factor in factors if factor is Factor.HEAD)
    if algorithm.gated:
        yield Key("layer", Factor.GATE)
    if algorithm.folds:
        yield Key("layer", Factor.DELTA)


def _name(algorithm: Algorithm, key: Key) -> str:
    return key.factor.value if key.adapter == algorithm.adapters[0] else f"{key.adapter}/{key.factor.value}"


def _sides(algorithm: Algorithm, plans: Mapping[Key, Sequence[Any]]) -> list[str]:
    """The sides of the update that leave the client; with ~ if not in every round."""
    sides = []
    for side in (Side.A, Side.B, Side.WHOLE):
        sent = [[plan.sent for plan in own] for key, own in plans.items() if key.factor.side is side]
        if any(any(own) for own in sent):
            sides.append(side.value + ("" if any(all(own) for own in sent) else "~"))
    return sides


# -- options ----------------------------------------------------------------------------------------------------------


def _sections(text: str) -> tuple[str, dict[str, str]]:
    """A docstring without its section Attributes, and the text of that section for each attribute."""
    before, _, rest = text.partition("\nAttributes:\n")
    body, _, after = rest.partition("\n\n")
    attributes: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(body).splitlines():
        match = re.fullmatch(r"(\w+): (.*)", line)
        if match:
            name = match[1]
            attributes[name] = match[2]
        elif name:
            attributes[name] += f" {line.strip()}"
    return "\n\n".join(part.strip() for part in (before, after) if part.strip()), attributes


def _summary(cls: type[Algorithm]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _options(cls: type[Algorithm], algorithm: Algorithm) -> list[dict[str, Any]]:
    about: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        about |= _sections(inspect.cleandoc(each.__doc__ or ""))[1]
    hints = get_type_hints(cls, include_extras=True)
    return [
        {
            "name": field.name,
            "type": _type(hints[field.name]),
            "default": getattr(algorithm, field.name),
            "description": about.get(field.name, ""),
        }
        for field in dataclasses.fields(cls)
    ]


def _type(hint: Any) -> str:
    """A type in words; for an annotated type with its bounds."""
    if get_origin(hint) is not Annotated:
        return type_name(hint)
    plain, *constraints = get_args(hint)
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    inner = [each for one in constraints for each in getattr(one, "metadata", [one])]
    bounds = [f"{sign} {getattr(one, name)}" for one in inner for name, sign in signs.items() if hasattr(one, name)]
    return ", ".join([type_name(plain), *bounds])


# -- tables -----------------------------------------------------------------------------------------------------------


def overview(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """A table with a line per method, and its header: with LoRA, or the first variant that the method accepts."""
    header = ["method", "a client sends", "and keeps", "exact", "export", "paper"]
    rows = []
    for entry in entries:
        if "broken" not in entry:
            sent, kept = _sent_and_kept(entry)
            exact = "yes" if entry["exact"] else "-"
            rows.append(
                [
                    entry["name"],
                    sent,
                    kept,
                    exact,
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
        return ", ".join(shown) or "nothing"

    return marked(roles["sent"], "*"), marked(roles["kept"], "+")


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

    everything = [*roles["sent"], *roles["kept"], *roles["frozen"]]
    received = joined(roles["received"])
    if not roles["rounds"]:
        yield "all", joined(roles["sent"]), joined(roles["kept"]), joined(roles["frozen"]), received
        return
    patterns: dict[tuple[str, ...], list[int]] = {}
    for entry in roles["rounds"]:
        kept = [name for name in entry["trained"] if name not in entry["sent"]]
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
    head, optimizer, robust = entry["head"], entry["server_optimizer"], entry["robust_mean"]
    if head["sent"]:
        about_head = "leaves the client" + (" unless share_head = false" if head["optional"] else "")
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
    ]
    if len(entry["adapters"]) > 1:
        facts.append(("adapters", ", ".join(entry["adapters"])))
    if entry["gated"]:
        facts.append(("gates", "each layer weighs its adapters for each token, as its client has learned"))
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
        "",
        *_markdown_table(*overview(entries), code=0),
        "",
        f"{LEGEND.replace('*', chr(92) + '*').replace('~', chr(92) + '~')}",
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
