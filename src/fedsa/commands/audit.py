"""``fedsa audit``: what a run's updates and adapters tell about its rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsa.texts.escapes import say, say_aside

if TYPE_CHECKING:
    from fedsa.runs.audit import Finding

__all__ = ["command"]


def command(
    run: Annotated[Path, typer.Argument(help="The run folder of a simulation; its model and rows must be here.")],
    attack: Annotated[
        list[str] | None,
        typer.Option(help="source, membership, rebuilding or canaries; may be repeated; default: all."),
    ] = None,
    clients: Annotated[int, typer.Option(help="The most clients that are attacked, evenly from all.")] = 8,
    rows: Annotated[int, typer.Option(help="The most rows of a client that are looked at.")] = 100,
    texts: Annotated[int, typer.Option(help="How many updates are rebuilt to texts, for each finding.")] = 4,
    json: Annotated[bool, typer.Option("--json", help="Print a list of objects, one for each finding.")] = False,
) -> None:
    """Attack your own finished run, to see what may leave: whose, which rows, which texts, and what is proved of ε."""
    from fedsa.commands.shared.display import print_json, status
    from fedsa.runs.audit import audit

    with status("loading libraries") as tell:
        notes: list[str] = []
        found = list(
            audit(run, attack or (), clients=clients, rows=rows, texts=texts, on_progress=tell, on_note=notes.append)
        )
    for note in notes:
        say_aside(f"note: {note}")
    if json:
        print_json([each.as_dict() for each in found])
        return
    _show(found)


def _show(found: list[Finding]) -> None:
    from fedsa.commands.shared.display import is_quiet, print_table

    header = ["attack", "shared", "leaves", "update", "metric", "score", "chance", "control", "95 %"]
    print_table(
        header,
        [
            [
                each.attack,
                each.shared,
                "yes" if each.leaves else "no",
                each.update,
                each.metric,
                f"{each.score:.3f}",
                f"{each.chance:.3f}",
                "-" if each.control is None else f"{each.control:.3f}",
                "-" if each.interval is None else "{:.3f} to {:.3f}".format(*each.interval),
            ]
            for each in found
        ],
        right_from=5,
    )
    if is_quiet():
        return
    for each in found:
        if each.attack == "canaries":
            bound = "none" if each.more["epsilon"] is None else f"{each.more['epsilon']:.3g}"
            say(f"\nThe accountant's ε of the training with canaries: {bound}, with δ = {each.more['delta']:g}.")
            break
    say("\nThe control is the same attack where it must succeed; docs/audit.md says what each attacker knows.")
