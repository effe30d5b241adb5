"""``fedsa licences``: the licences of all packages that this installation needs."""

from __future__ import annotations

from typing import Annotated

import typer

from fedsa.texts.escapes import for_terminal, say

__all__ = ["command"]


def command(
    json: Annotated[bool, typer.Option("--json", help="Print a list of objects, one for each package.")] = False,
) -> None:
    """List the licences of all packages that fedsa and its installed extras need, as the packages name them."""
    from collections import Counter
    from dataclasses import asdict

    from fedsa.commands.shared.display import print_json, print_table
    from fedsa.system.licences import licences
    from fedsa.texts.words import counted

    found = licences()
    if json:
        print_json([asdict(each) for each in found])
        return
    rows = [[each.package, each.version, for_terminal(each.licence) or "-", each.kind] for each in found]
    print_table(["package", "version", "licence", "kind"], rows)
    kinds = Counter(each.kind for each in found)
    say(f"\n{counted(len(found), 'package')}: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}.")
    say("As the packages name them; unknown: look it up in the package. This is no legal advice.")
