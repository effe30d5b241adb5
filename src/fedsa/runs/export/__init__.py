"""A client's adapter as a folder that PEFT and transformers load by themselves."""

from fedsa.runs.export.about import ABOUT, About, about_of, read_about
from fedsa.runs.export.base import Base, base_of
from fedsa.runs.export.card import card_of, weights_note
from fedsa.runs.export.clients import export, personal_state, refuse_adapter
from fedsa.runs.export.folders import config_of, write_model
from fedsa.runs.export.loading import LoadedAdapter, load_adapter, task_of
from fedsa.runs.export.targets import require_empty

__all__ = [
    "ABOUT",
    "About",
    "Base",
    "LoadedAdapter",
    "about_of",
    "base_of",
    "card_of",
    "config_of",
    "export",
    "load_adapter",
    "personal_state",
    "read_about",
    "refuse_adapter",
    "require_empty",
    "task_of",
    "weights_note",
    "write_model",
]
