"""``fedsa plan``: what a recipe will train, send, compute and hold in memory, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file (TOML), or a name from `fedsa recipes`.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="How many clients there are, where the data decides it.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A finished run of the same kind, to estimate the hours from.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Tell what a run will train, send, compute and hold in memory; no weights are loaded."""
    from fedsa.commands.shared.display import print_json, status
    from fedsa.commands.shared.recipe import recipe_of_command
    from fedsa.errors import UserError

    parsed, _ = recipe_of_command(recipe, set_)
    with status("loading libraries") as tell:
        tell("loading libraries")
        from fedsa.cost.plan import plan_run

        plan = plan_run(parsed, clients=clients, on_progress=tell)
        if like is not None:
            from fedsa.cost.hours import time_like

            if plan["clients"] is None:
                raise UserError("--like: how many clients there are is not known here; give --clients N")
            plan["time"] = time_like(parsed, plan["clients"], like)
    if json:
        print_json(plan)
    else:
        _show(plan)


def _show(plan: Mapping[str, Any]) -> None:
    from fedsa.commands.shared.display import print_table
    from fedsa.texts.words import counted, some

    print(
        f"{plan['algorithm']} on {plan['variant']}, {plan['model']} "
        f"({counted(plan['frozen_parameters'], 'frozen parameter')}"
        + (f", {counted(plan['classes'], 'class', 'classes')})\n" if plan["classes"] else ")\n")
    )
    roles = ("trained", "sent", "received")
    kinds = plan.get("sharing_by_round", [plan])
    for kind in kinds:
        if "sharing_by_round" in plan:
            print(f"{counted(len(kind['rounds']), 'round')} ({some(kind['rounds'])}):")
        print_table(
            ["factor", "parameters", *roles],
            [
                [
                    f"{entry['factor']}, {entry['beside']}" if entry["beside"] else entry["factor"],
                    f"{entry['parameters']:,}",
                    *(f"{entry['parameters']:,}" if entry[role] else "-" for role in roles),
                ]
                for entry in kind["sharing_plan"]
            ],
            right_from=1,
        )
        print()
    clients, each_round = plan["clients"], plan["clients_per_round"]
    together = "one client" if clients is None else f"{each_round} of {counted(clients, 'client')}"
    print_table(
        ["", "client and round", f"{counted(plan['rounds'], 'round')}, {together} in each"],
        [
            ["sent, bytes", _range(kinds, "upload_bytes"), f"{plan['total_upload_bytes']:,}"],
            ["received, bytes", _range(kinds, "download_bytes"), f"{plan['total_download_bytes']:,}"],
            ["training, FLOPs", _flops(plan["flops_per_client"]), _flops(plan["total_flops"])],
        ],
        right_from=1,
    )
    if plan["memory"]:
        parts = ", ".join(f"{name} {_mebibytes(size)}" for name, size in plan["memory"].items())
        total = _mebibytes(plan["memory_bytes"])
        print(f"\npeak memory, {plan['device']}, {plan['precision']}: {total} MiB ({parts})")
    if "time" in plan:
        time = plan["time"]
        parts = ", ".join(f"{name} {_duration(time[name])}" for name in ("training", "evaluation", "other"))
        print(f"\ntime: {_duration(time['seconds'])} ({parts}),")
        threads = counted(time["threads"], "thread")
        print(f"if all takes what it took in {time['run']}: {time['platform']}, {time['device']}, {threads}")
    print()
    for note in plan["notes"]:
        print(f"- {note}")


def _range(kinds: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return a number of each kind of round: one, or the least and the most."""
    least, most = (choice(kind[name] for kind in kinds) for choice in (min, max))
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _duration(seconds: float) -> str:
    """Return a time as text, in the unit that fits.

    >>> _duration(4.2), _duration(400), _duration(20000)
    ('4 s', '6.7 min', '5.6 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _flops(count: int | None) -> str:
    return "-" if count is None else f"{count:.3g}"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f}"
