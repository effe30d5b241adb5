"""A federation, wired: model, data, clients, method. Made from a recipe or from Python objects."""

from fedsa.federation.agreeing import adapter_config, spec_of
from fedsa.federation.base_models import fresh_base, load_named_base, load_processor, own_copy
from fedsa.federation.building import adapt_base, shapes_of
from fedsa.federation.checks import check_early, check_layers
from fedsa.federation.encoding import encode_table, notes_on_texts
from fedsa.federation.examining import Examination, Fault, examine
from fedsa.federation.federation import Federation
from fedsa.federation.newcomer import newcomer
from fedsa.federation.resolving import client_ranks, on_this_machine
from fedsa.federation.without_rows import agree

__all__ = [
    "Examination",
    "Fault",
    "Federation",
    "adapt_base",
    "adapter_config",
    "agree",
    "check_early",
    "check_layers",
    "client_ranks",
    "encode_table",
    "examine",
    "fresh_base",
    "load_named_base",
    "load_processor",
    "newcomer",
    "notes_on_texts",
    "on_this_machine",
    "own_copy",
    "shapes_of",
    "spec_of",
]
