"""The command line. Each verb is a file in ``commands``; nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Annotated

import typer

from fedsa.commands import adapt, algorithms, analyze, data, export, plan, recipes, resume, run, sweep
from fedsa.errors import FedsaError

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedsa",
    help="Federated fine-tuning of Hugging Face models with PEFT adapters: share A, keep B.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"fedsa {installed('fedsa')}")
        raise typer.Exit


for module in (run, resume, sweep, export, adapt, analyze, data, plan, recipes, algorithms):
    app.command(module.__name__.rpartition(".")[2])(module.command)


def main() -> None:
    """Run the command line: exit code 0, 2 for a user's mistake, 1 for a failure, 130 for Ctrl-C and SIGTERM."""
    # Read when torch is loaded. Threads that spin for long while they wait cost a busy machine many times the run's own
    # work; threads that sleep at once wake too slowly on an idle one.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # Where it is installed peft imports it, and it then names kernels that the package index does not have.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        app(standalone_mode=True)
    except FedsaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f": {error.filename}" if error.filename else ""
        print(f"error: the disk is full{where}; free some space, then repeat the command", file=sys.stderr)
        sys.exit(2)
