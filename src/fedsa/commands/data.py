"""``fedsa data``: which client gets which rows of a recipe, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsa.texts.escapes import say

__all__ = ["command"]


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file (TOML), or a name from `fedsa recipes`.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the label mix into this file (.png, .svg, .pdf).")] = None,
    save: Annotated[Path | None, typer.Option(help="Save the partition, for data.partition.kind = 'saved'.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print counts as JSON; notes go to standard error.")] = False,
) -> None:
    """Show how a recipe's rows are dealt to clients and splits, and what the model would not see of them."""
    from rich.console import Console

    from fedsa.commands.shared.display import is_quiet, print_json, print_notes, print_table, status
    from fedsa.commands.shared.recipe import recipe_of_command
    from fedsa.data.partition import label_counts, label_totals, save_partition
    from fedsa.data.rows import deal_rows
    from fedsa.errors import UserError
    from fedsa.texts.words import counted
    from fedsa.types import SPLITS

    parsed, _ = recipe_of_command(recipe, set_)
    with status("reading rows") as tell:
        rows = deal_rows(parsed, on_progress=tell)
        from fedsa.federation import notes_on_texts  # it loads torch

        notes = (*rows.notes, *notes_on_texts(parsed.model, parsed.task, rows, on_progress=tell))
    names = rows.label_names
    splits = {split: label_counts(rows.partition, rows.labels, len(names), split) for split in SPLITS}
    clients = sorted(rows.partition.clients)
    totals = label_totals(splits)
    if save:
        save_partition(rows.as_saved[0], save, rows.as_saved[1])
    if plot:
        from fedsa.data.partition.plotting import draw_partition

        try:
            draw_partition(totals, list(names)).savefig(plot, bbox_inches="tight")
        except (OSError, ValueError) as error:
            raise UserError(f"--plot {plot}: {error}") from None
    if json:
        print_notes(notes, Console(stderr=True, quiet=is_quiet()))  # standard output has the counts alone
        print_json(
            {
                client: {
                    split: dict(zip(names, map(int, counts[client]), strict=True)) for split, counts in splits.items()
                }
                for client in clients
            }
        )
        return
    shown = names if len(names) <= 8 else ()
    print_table(
        ["client", *splits, *(f"{name} %" for name in shown)],
        [
            [
                client,
                *(str(sum(counts[client])) for counts in splits.values()),
                *(f"{100 * count / sum(totals[client]):.0f}" for count in (totals[client] if shown else ())),
            ]
            for client in clients
        ],
        right_from=1,
    )
    rows_in_all = sum(sum(counts) for counts in totals.values())
    say(
        f"\n{counted(len(clients), 'client')}, {counted(rows_in_all, 'row')}, "
        f"{counted(len(names), 'class', 'classes')}; "
        "percentages are of a client's rows in all splits"
    )
    if parsed.holdout_clients:
        from fedsa.server import held_out  # it loads torch

        outside = held_out(clients, parsed.holdout_clients, parsed.seed)
        say(f"held out of the federation: {', '.join(outside)}")
    print_notes(notes, Console())
    for what, path in (("partition", save), ("drawing", plot)):
        if path:
            say(f"{what}: {path}")
