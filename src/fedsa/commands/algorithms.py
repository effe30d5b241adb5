"""``fedsa algorithms``: the methods, and what each shares."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = ["command"]


def command(json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False) -> None:
    """List the methods: what is shared, kept at the client and frozen, for each adapter variant that they go with."""
    from fedsa.algorithms import algorithm_names
    from fedsa.commands._display import print_json, print_table

    entries = [_entry(name) for name in algorithm_names()]
    if json:
        print_json(entries)
        return
    print_table(
        ["method", "variant", "sent and averaged", "kept at the client", "frozen", "source"],
        [
            [
                "" if row else entry["name"],
                variant,
                *(", ".join(roles[role]) or "-" for role in ("shared", "local", "frozen")),
                "" if row else entry["source"],
            ]
            for entry in entries
            for row, (variant, roles) in enumerate(entry["variants"].items())
        ],
    )
    print("\nThe head follows share_head; shown is each method's default. The base model is frozen everywhere.")


def _entry(name: str) -> dict[str, Any]:
    import dataclasses
    import inspect

    from fedsa.adapters.factors import VARIANTS
    from fedsa.algorithms import find_algorithm
    from fedsa.types import Key

    cls = find_algorithm(name)
    algorithm = cls()
    variants = {}
    for variant, about in VARIANTS.items():
        if algorithm.refusal(variant) is not None:
            continue
        roles: dict[str, list[str]] = {"shared": [], "local": [], "frozen": []}
        for factor in about.factors:
            plan = algorithm.plan(Key("layer", factor), 1)
            roles["shared" if plan.sent else "local" if plan.trained else "frozen"].append(factor.value)
        variants[variant] = roles
    return {
        "name": name,
        "summary": (inspect.getdoc(cls) or "").partition("\n")[0],
        "source": cls.source,
        "options": {field.name: field.default for field in dataclasses.fields(cls)},
        "export": cls.export,
        "variants": variants,
    }
