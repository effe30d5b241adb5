"""A federation, wired: model, data, clients, method. Made from a recipe or from Python objects."""

from fedsa.federation.base_models import fresh_base, load_processor
from fedsa.federation.checks import check_early, check_layers, check_personal
from fedsa.federation.encoding import notes_on_texts
from fedsa.federation.federation import Federation
from fedsa.federation.resolving import client_ranks
from fedsa.federation.sharing import first_round

__all__ = [
    "Federation",
    "check_early",
    "check_layers",
    "check_personal",
    "client_ranks",
    "first_round",
    "fresh_base",
    "load_processor",
    "notes_on_texts",
]
