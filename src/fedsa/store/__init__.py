"""The run folder: the recipe, checkpoints, personal states and metrics. Atomic, versioned, no pickle.

    recipe.toml                 the resolved recipe
    environment.json            what it ran on
    clients.json                client id -> folder, rows per split, label counts
    partition.json              client id -> row numbers
    agreement.json              what server and sites must hold alike
    adapter_config.json         PEFT's
    initial.safetensors         the tensors that every client started from (own A's: from the seed)
    server/round-000005.safetensors
    clients/00003-amazon-1/round-000005.safetensors
    under-way/                  where rounds overlap: messages of clients that still train
    metrics.jsonl               one line per round and client that took part in it
    sent.jsonl                  a simulation: one line per message of a client, with the norms of its tensors
    state.json                  the commit point, with the hashes of the small files
    summary.json, report.html   at the end

Files of a round are written whole under new names; the round exists once ``state.json`` names it. So an interruption at
any moment, inside a write too, leaves the last finished round as it was. A client's state is kept for its last round
and for the chosen one. Clients' files are written by threads behind the training; the commit waits for them.

What is read is what was written: files of tensors carry their hash and whose they are (of which run, client and round),
and ``state.json`` has the hashes of all other files, and its own. Nothing is written, cut or deleted through a link.
"""

from fedsa.store.begun import BegunRun
from fedsa.store.cleaning import clean, size_of, unneeded_bytes
from fedsa.store.client_states import ClientStateFiles, open_states_of_site
from fedsa.store.files import write_atomically, write_error
from fedsa.store.finished import FinishedRun, check_base, label_names_of
from fedsa.store.locked_folder import is_in_use
from fedsa.store.messages_under_way import MessagesUnderWay
from fedsa.store.run_folder import RunFolder, numbers_of, recipe_of, replace_clients, require_clients
from fedsa.store.states import ClientState, Progress

__all__ = [
    "BegunRun",
    "ClientState",
    "ClientStateFiles",
    "FinishedRun",
    "MessagesUnderWay",
    "Progress",
    "RunFolder",
    "check_base",
    "clean",
    "is_in_use",
    "label_names_of",
    "numbers_of",
    "open_states_of_site",
    "recipe_of",
    "replace_clients",
    "require_clients",
    "size_of",
    "unneeded_bytes",
    "write_atomically",
    "write_error",
]
