"""``fedsa algorithms``: the methods, what each shares, and with which adapters each goes."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["command"]


def command(
    name: Annotated[
        str | None, typer.Argument(help="Show one method in full: its name, or package.module:Class.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON: a list, or one object.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/algorithms.md: fedsa's own methods.")
    ] = False,
) -> None:
    """List the methods: what a client sends and keeps, and which adapter variants each goes with."""
    import sys
    import textwrap

    from fedsa.commands.shared.display import print_json, print_table
    from fedsa.commands.shared.methods import describe, describe_all
    from fedsa.commands.shared.methods_shown import LEGEND, as_markdown, as_text, matrix, overview, single_updates

    if name is not None:
        entry = describe(name)
        if json:
            print_json(entry)
            return
        for number, part in enumerate(as_text(entry)):
            print(end="\n" if number else "")
            if isinstance(part, str):
                print(part)
            else:
                print_table(*part)
        return
    entries = describe_all(only_built_in=markdown)
    if json:
        print_json(entries)
        return
    if markdown:
        print(as_markdown(entries))
        return
    print_table(*overview(entries))
    print(
        f"\n{LEGEND}\nexact: the aggregate's update is the mean of the clients' updates. secure: the method can be "
        "used with secure_aggregation. No client trains the base.\n"
    )
    print(textwrap.fill(single_updates(entries), 100) + "\n")
    print_table(*matrix(entries))
    print(
        "\nIn the matrix: the sides of the update that are sent; -: refused. fedsa algorithms NAME says why, and all "
        "else."
    )
    for entry in entries:
        if "broken" in entry:
            print(f"\n{entry['name']}: cannot be used: {entry['broken']}", file=sys.stderr)
