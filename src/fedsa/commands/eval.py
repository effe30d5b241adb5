"""``fedsa eval``: clients' adapters in tasks of the language model evaluation harness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsa.texts.escapes import say

__all__ = ["command"]


def command(
    run: Annotated[Path, typer.Argument(help="A run folder, or the folder of an exported adapter.")],
    tasks: Annotated[
        list[str],
        typer.Option(help="Names of lm-eval's tasks, separated by commas, or task files (.yaml, with --allow-code)."),
    ],
    client: Annotated[
        list[str] | None, typer.Option(help="A client's id (may be given several times), or all.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Rows of each task, the first ones: for a first look, not for a paper.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question; default: as the task says.")
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask in the tokenizer's chat template.")
    ] = False,
    round: Annotated[str, typer.Option(help="chosen (best on validation) or final.")] = "chosen",
    base: Annotated[
        str | None, typer.Option(help="Of an exported adapter: its base model, where it is not found by itself.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that go through the model at once.")] = 8,
    json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Evaluate clients' adapters by the field's standard: tasks of EleutherAI's lm-eval (extra [eval])."""
    import sys

    from fedsa.commands.shared.display import is_quiet, print_json, print_table, status
    from fedsa.texts.escapes import for_terminal

    notes: list[str] = []
    with status("loading libraries") as tell:
        tell("loading libraries")
        from fedsa.runs.harness import evaluate, harness_version

        found = evaluate(
            run,
            [name.strip() for each in tasks for name in each.split(",") if name.strip()],
            client=client,
            round=round,
            base=base,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            limit=limit,
            batch_size=batch_size,
            on_progress=tell,
            on_note=notes.append,
        )
    for text in () if is_quiet() else dict.fromkeys(notes):
        print(for_terminal(text), file=sys.stderr)
    if json:
        print_json({
            "path": str(run),
            "lm_eval": harness_version(),
            "limit": limit,
            "apply_chat_template": apply_chat_template,
            "results": [each.as_dict() for each in found],
        })  # fmt: skip
        return
    rows = [
        [
            each.task,
            each.client,
            each.metric + ("" if each.filter == "none" else f" ({each.filter})"),
            "-" if each.value is None else f"{each.value:.4f}",
            "-" if each.stderr is None else f"{each.stderr:.4f}",
            str(each.num_fewshot),
            f"{each.rows:,}" + (f" of {each.rows_of_task:,}" if (each.rows_of_task or 0) > each.rows else ""),
        ]
        for each in found
    ]
    print_table(["task", "client", "metric", "value", "± stderr", "shots", "rows"], rows, right_from=3, whole=3)
    say(f"\nlm-eval {harness_version()}" + (f"; only {limit:,} rows of each task" if limit else ""))
