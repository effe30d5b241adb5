"""What the server does: it has neither rows nor a model."""

from fedsa.server.sampling import held_out, most_rounds, sample_clients, sample_size, updates_in_round
from fedsa.server.server import OpenSum, Server, received_by
from fedsa.server.sharing import first_round, kept_in_words, leaves, own_shares, plan_of_the_run, sent_in_words
from fedsa.server.starting import server_of
from fedsa.server.state import ServerStore, load_state, save_state

__all__ = [
    "OpenSum",
    "Server",
    "ServerStore",
    "first_round",
    "held_out",
    "kept_in_words",
    "leaves",
    "load_state",
    "most_rounds",
    "own_shares",
    "plan_of_the_run",
    "received_by",
    "sample_clients",
    "sample_size",
    "save_state",
    "sent_in_words",
    "server_of",
    "updates_in_round",
]
