"""``fedsa analyze``: how alike the clients' tensors are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsa.texts.escapes import say
from fedsa.texts.words import counted

if TYPE_CHECKING:
    from fedsa.runs.analysis import Analysis

__all__ = ["command"]


def command(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    to: Annotated[Path | None, typer.Option(help="Where to write; default: RUN/analysis.")] = None,
    round: Annotated[
        list[int] | None, typer.Option(help="A round; may be repeated; default: every round that is kept.")
    ] = None,
    formats: Annotated[
        str, typer.Option(help="Formats of the pictures, with commas between: pdf, svg, png.")
    ] = "pdf,svg,png",
    json: Annotated[bool, typer.Option("--json", help="Print the means as JSON.")] = False,
) -> None:
    """Compare the clients' A's, B's and heads pair by pair: numbers and pictures, from the run folder alone."""
    from fedsa.errors import UserError

    kinds = formats.split(",")
    unknown = sorted(set(kinds) - {"pdf", "svg", "png"})
    if unknown:
        raise UserError(f"--formats {unknown[0]}: known are pdf, svg and png")
    from fedsa.system.paths import refuse_unwritable

    folder = to or run / "analysis"
    if to or run.is_dir():
        refuse_unwritable(folder, "--to")
    from fedsa.commands.shared.display import is_quiet, print_json, print_table
    from fedsa.runs.analysis import MEASURES, analyze

    found = analyze(run, round)
    files = _write(found, folder, kinds)
    means = list(found.means())
    if json:
        scores = [
            {"round": round, "client": client, "score": each.score, "cosine": each.cosine, "norm_ratio": each.ratio}
            for (round, client), each in found.scores.items()
        ]
        paths = [str(file) for file in files]
        about = {"clients": list(found.clients), "means": means, "poison": scores, "own_shares": list(found.own_shares)}
        print_json({**about, "files": paths})
        return
    if is_quiet():
        say(str(folder))
        return
    last = found.rounds[-1]
    print_table(
        ["factor", "measure", "mean", "lowest", "highest"],
        [
            [row["factor"], row["measure"], *(f"{row[name]:.3f}" for name in ("mean", "lowest", "highest"))]
            for row in means
            if row["round"] == last
        ],
    )
    say(f"\nRound {last}, as the clients ended their training; over pairs of {counted(len(found.clients), 'client')}.")
    for name, text in MEASURES.items():
        say(f"  {name:7s} {text}")
    last_scores = {client: each for (number, client), each in found.scores.items() if number == last}
    if last_scores:
        say()
        print_table(
            ["client", "poison score", "cosine with the median change", "norm over the median norm"],
            [
                [client, f"{each.score:.2f}", f"{each.cosine:.2f}", f"{each.ratio:.2f}"]
                for client, each in sorted(last_scores.items(), key=lambda item: -item[1].score)
            ],
        )
        say("\nHow far each client's change of A in that round is from the others'. Above 1: look at it.")
    _say_shares(found)
    say()
    for file in files:
        say(str(file))


def _say_shares(found: Analysis) -> None:
    """Say what part of a movement clients keep of their own, where the method has one: the newest of each tensor."""
    shares = found.own_shares
    if not shares:
        return
    from fedsa.commands.shared.display import print_table

    newest = shares[-1]["round"]
    say()
    print_table(
        ["factor", "module", "own share"],
        [[row["factor"], row["module"], f"{row['own_share']:.2f}"] for row in shares if row["round"] == newest],
    )
    say(
        f"\nThe part of a movement that clients keep of their own, from round {newest} on. 0: all is averaged. For B "
        "it is about the columns that are pooled; the others are each client's own in any case."
    )


def _write(found: Analysis, folder: Path, formats: list[str]) -> list[Path]:
    """Write tables and pictures, and return the files."""
    import json

    import numpy as np
    from datasets import Dataset, disable_progress_bars

    from fedsa.runs.report.similarity import draw_dendrogram, draw_heat_maps, draw_layers, draw_trend, save
    from fedsa.system.sums import SUMS, write_sums

    disable_progress_bars()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMS).unlink(missing_ok=True)
    table = Dataset.from_list(list(found.rows()))
    table.to_parquet(folder / "pairs.parquet")
    table.to_csv(folder / "pairs.csv", index=False)
    distances = [
        {"round": round, "factor": factor, "module": module, "client": client, "distance": float(value)}
        for (round, factor, module), values in found.distances.items()
        for client, value in zip(found.clients, values, strict=True)
    ]
    Dataset.from_list(distances).to_csv(folder / "distances.csv", index=False)
    (folder / "means.json").write_text(json.dumps(list(found.means()), indent=1) + "\n", encoding="utf-8")
    files = [folder / name for name in ("pairs.parquet", "pairs.csv", "distances.csv", "means.json")]

    last, above = found.rounds[-1], np.triu_indices(len(found.clients), 1)
    here = {key[1:]: matrix for key, matrix in found.matrices.items() if key[0] == last}
    measures = list(dict.fromkeys(measure for measure, *_ in here))
    maps = {
        measure: {
            factor: matrix
            for factor in dict.fromkeys(factor for m, factor, _ in here if m == measure)
            if (matrix := found.mean_matrix(last, measure, factor)) is not None
        }
        for measure in measures
    }
    profile: dict[tuple[str, str], dict[str, float]] = {}
    for (measure, factor, module), matrix in here.items():
        if factor != "head":
            profile.setdefault((measure, factor), {})[module] = float(np.nanmean(matrix[above]))
    files += save(draw_heat_maps(maps, found.labels, found.clients), folder / "clients", formats)
    files += save(draw_layers(profile), folder / "layers", formats)
    if len(found.rounds) > 1:
        files += save(draw_trend(found.means()), folder / "rounds", formats)
    side = next((factor for factor in ("B", "lambda_b") if factor in maps.get("moved", {})), None)
    if side and len(found.clients) > 2:
        tree = draw_dendrogram(maps["moved"][side], found.labels, found.clients, side)
        files += save(tree, folder / "clusters", formats)
    write_sums(folder)
    return files
