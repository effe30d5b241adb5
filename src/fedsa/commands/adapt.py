"""``fedsa adapt``: an adapter for a client that was not in a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsa.texts.escapes import say

if TYPE_CHECKING:
    from fedsa.runs.adapt import AdaptResult

__all__ = ["command"]


def command(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    data: Annotated[Path, typer.Option(help="The client's rows: a file or folder with the columns of the recipe.")],
    to: Annotated[
        Path | None, typer.Option(help="Where to write the adapter; without it, it is only measured.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Where the tensors that stay at clients start: initial, mean or nearest; default: the recipe's."
        ),
    ] = None,
    freeze_shared: Annotated[
        bool | None,
        typer.Option(
            "--freeze-shared/--no-freeze-shared",
            help="Train only the tensors that stay at clients; default: the recipe's.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; default: as the recipe says.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the client's training rows, in place of steps.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate of its training; default: the recipe's, else that of the run.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Try every start, frozen or not; take the best on validation.")
    ] = False,
    with_base: Annotated[bool, typer.Option("--with-base/--without-base", help="As for `fedsa export`.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False,
) -> None:
    """Take a client that was not in a run to an adapter of its own, and tell what it gained."""
    from dataclasses import asdict
    from typing import Any, cast

    from fedsa.commands.shared.display import is_quiet, print_json, status
    from fedsa.system.paths import refuse_unwritable

    if to:
        refuse_unwritable(to, "--to")
    with status("loading libraries") as tell:
        tell("loading libraries")
        from fedsa.runs.adapt import adapt

        result = adapt(
            run,
            data,
            to=to,
            start=cast(Any, start),
            freeze_shared=freeze_shared,
            steps=steps,
            epochs=epochs,
            learning_rate=learning_rate,
            compare=compare,
            with_base=with_base,
            on_progress=tell,
        )
    if json:
        told = asdict(result)
        print_json({**told, "run": str(result.run), "path": None if result.path is None else str(result.path)})
    elif is_quiet() and result.path is not None:
        say(str(result.path))
    else:
        _show(result, compare=compare)


def _show(result: AdaptResult, *, compare: bool) -> None:
    from fedsa.commands.shared.display import print_table, score
    from fedsa.texts.words import counted
    from fedsa.types import FRACTIONS

    by_split = ", ".join(f"{count} {split}" for split, count in result.examples.items())
    length = ", ".join(counted(count, name.removesuffix("s")) for name, count in result.length.items())
    say(f"client {result.client}: {by_split} rows; from round {result.round} of {result.run}, {length}\n")
    moments = ("validation before", "after", "test before", "after")
    print_table(
        ["start", "shared tensors", *moments, ""],
        [
            [
                each.start,
                "frozen" if each.freeze_shared else "trained",
                *(
                    score(moment[split][result.metric], result.metric, unit="")
                    for split in ("validation", "test")
                    for moment in (each.before, each.after)
                ),
                "chosen" if compare and each is result.chosen else "",
            ]
            for each in result.tried
        ],
        right_from=2,
    )
    unit = " in %" if result.metric in FRACTIONS else ""
    say(
        f"\n{result.metric}{unit}, on rows of this client that it did not train on"
        + (". Chosen on validation; test had no part in it." if compare else "")
    )
    if compare and not any(each.start == "mean" for each in result.tried):
        say(
            "The starts mean and nearest need adaptation.share_personal = true in the run's recipe, and a method that "
            "keeps something at clients."
        )
    for note in result.notes:
        say(note)
    if result.path is not None:
        say(f"adapter  {result.path}")
