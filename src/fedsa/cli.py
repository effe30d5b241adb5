"""The command line. Each verb is a file in ``commands``; nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsa.commands import (
    adapt,
    algorithms,
    analyze,
    audit,
    check,
    compare,
    data,
    deploy,
    export,
    init,
    licences,
    plan,
    predict,
    recipes,
    report,
    resume,
    run,
    runs,
    sent,
    sweep,
)
from fedsa.commands import eval as eval_
from fedsa.commands.shared.quiet import quietly
from fedsa.errors import FedsaError
from fedsa.system.paths import is_about_files, local_path, told
from fedsa.system.permissions import allow_code
from fedsa.texts.escapes import for_terminal
from fedsa.texts.words import shortened

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedsa",
    help="Federated fine-tuning of Hugging Face models with PEFT adapters: share A, keep B.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Let code run that a recipe, a run folder or a model folder names and that is not installed.",
    ),
]

_Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Print errors and the result only; of what is written, where it is. Nothing on the way."
    ),
]


@app.callback(invoke_without_command=True)
def _before_the_verb(
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
    allow_code_: _AllowCode = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"fedsa {installed('fedsa')}")
        raise typer.Exit
    if allow_code_:
        allow_code()


def _as_verb(command: Callable[..., None]) -> Callable[..., None]:
    """Return a verb whose paths are looked at before it begins, and that takes ``--quiet`` and ``--allow-code``."""

    @functools.wraps(command)
    def verb(*, quiet_: bool, allow_code_: bool, **arguments: Any) -> None:
        if allow_code_:
            allow_code()
        paths = {name: local_path(value, name) for name, value in arguments.items() if isinstance(value, Path)}
        with quietly(quiet_):
            command(**{**arguments, **paths})

    signature = inspect.signature(command, eval_str=True)
    further = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("quiet_", _Quiet), ("allow_code_", _AllowCode))
    ]
    verb.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *further])  # type: ignore[attr-defined]
    verb.__annotations__ = {each.name: each.annotation for each in verb.__signature__.parameters.values()}  # type: ignore[attr-defined]
    return verb


for module in (
    init,
    run,
    resume,
    sweep,
    predict,
    eval_,
    export,
    adapt,
    report,
    analyze,
    compare,
    check,
    data,
    plan,
    runs,
    sent,
    audit,
    recipes,
    algorithms,
    licences,
):
    app.command(module.__name__.rpartition(".")[2])(_as_verb(module.command))

_deploy = typer.Typer(
    help=deploy.HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=app.info.context_settings,
)
for verb in deploy.COMMANDS:
    _deploy.command(verb.__name__)(_as_verb(verb))
app.add_typer(_deploy, name="deploy")


def main() -> None:
    """Run the command line: exit code 0, 2 for a user's mistake, 1 for a failure, 130 for Ctrl-C and SIGTERM."""
    # Read when torch is loaded. Threads that spin for long while they wait cost a busy machine many times the run's own
    # work; threads that sleep at once wake too slowly on an idle one.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # Where it is installed peft imports it, and it then names kernels that the package index does not have.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub.utils._http").addFilter(_OneLine())
    try:
        app(prog_name="fedsa", standalone_mode=True)
    except FedsaError as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and is_about_files(error):
            _end(told(error), 2)
        _end_in_own_code(error)
        raise


def _end_in_own_code(error: Exception) -> None:
    """End with the places in the user's own method, task or callback that an error came through, if it did."""
    from fedsa.plugins import places_in_own_code

    places = places_in_own_code(error)
    if places:
        _end(f"{type(error).__name__}: {error}, in code of your own:\n{''.join(places).rstrip()}", 1)


class _OneLine(logging.Filter):
    """Lets the first of the lines through that a hub which does not answer is worth: there are two for each retry."""

    def __init__(self) -> None:
        super().__init__()
        self._is_told = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Say once that the hub is asked again."""
        text = record.getMessage()
        if "[Retry " not in text and " thrown while requesting " not in text:
            return True
        if self._is_told:
            return False
        self._is_told, record.args = True, ()
        record.msg = "the model hub does not answer; asking again, up to a minute (HF_HUB_OFFLINE=1 does without it)"
        return True


def _end(message: str, code: int) -> None:
    print(f"error: {for_terminal(shortened(message), lines=True)}", file=sys.stderr)
    sys.exit(code)
