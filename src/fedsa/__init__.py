"""Federated fine-tuning of Hugging Face models with PEFT adapters.

>>> import fedsa
>>> fedsa.Federation, fedsa.run, fedsa.resume  # doctest: +ELLIPSIS
(<class ...>, <function ...>, <function ...>)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsa.api import RunResult, resume, run
    from fedsa.callbacks import Callback
    from fedsa.federation import Federation
    from fedsa.newcomers import AdaptResult, adapt

__all__ = ["AdaptResult", "Callback", "Federation", "RunResult", "adapt", "resume", "run"]

_HOMES = {
    "AdaptResult": "fedsa.newcomers",
    "Callback": "fedsa.callbacks",
    "Federation": "fedsa.federation",
    "RunResult": "fedsa.api",
    "adapt": "fedsa.newcomers",
    "resume": "fedsa.api",
    "run": "fedsa.api",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: torch and transformers take seconds, and `fedsa --help` needs neither.
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsa' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
