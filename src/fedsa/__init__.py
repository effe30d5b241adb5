"""Federated fine-tuning of Hugging Face models with PEFT adapters.

>>> import fedsa
>>> fedsa.Federation, fedsa.run, fedsa.resume  # doctest: +ELLIPSIS
(<class ...>, <function ...>, <function ...>)
"""

import sys

if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)].removeprefix("-m") == "fedsa" and not sys.flags.safe_path:
    # `python -m fedsa` has put the current folder first, where a json.py beside a recipe would run: like the command
    # `fedsa`, it does without. So nothing but sys is imported before this line.
    del sys.path[0]

TYPE_CHECKING = False  # as type checkers know it
if TYPE_CHECKING:
    from typing import Any

    from fedsa.api import RunResult, resume, run
    from fedsa.callbacks import Callback
    from fedsa.federation import Federation
    from fedsa.runs.adapt import AdaptResult, adapt
    from fedsa.runs.export import export
    from fedsa.runs.harness import HarnessFigure, evaluate
    from fedsa.runs.predict import Predicted, Predictor, predict

__all__ = [
    "AdaptResult",
    "Callback",
    "Federation",
    "HarnessFigure",
    "Predicted",
    "Predictor",
    "RunResult",
    "adapt",
    "evaluate",
    "export",
    "predict",
    "resume",
    "run",
]

_HOMES = {
    "AdaptResult": "fedsa.runs.adapt",
    "Callback": "fedsa.callbacks",
    "Federation": "fedsa.federation",
    "HarnessFigure": "fedsa.runs.harness",
    "Predicted": "fedsa.runs.predict",
    "Predictor": "fedsa.runs.predict",
    "RunResult": "fedsa.api",
    "adapt": "fedsa.runs.adapt",
    "evaluate": "fedsa.runs.harness",
    "export": "fedsa.runs.export",
    "predict": "fedsa.runs.predict",
    "resume": "fedsa.api",
    "run": "fedsa.api",
}


def __getattr__(name: str) -> "Any":
    # Imported when asked for: torch and transformers take seconds, and `fedsa --help` needs neither.
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsa' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
