"""A federation in processes of their own: a server and its sites, with nothing between them but bytes in pipes.

Imported by the processes too: so nothing heavy is imported here before a function needs it.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

HEAVY = ("transformers", "peft", "datasets")


def run_site(agreement_file: Path, own: Mapping[str, Any], folder: Path, pipe: Connection) -> None:
    """Answer messages until the pipe is closed, from the agreement and the site's own rows; keep states in a folder."""
    import torch

    from fedsa.agreement import Agreement
    from fedsa.client.answers import Answers
    from fedsa.client.sent import SentAnswers
    from fedsa.federation import Federation
    from fedsa.recipe import dump_recipe
    from fedsa.store import Progress, RunFolder

    torch.set_num_threads(1)
    agreement = Agreement.read(agreement_file)
    federation = Federation.of_site(agreement, own)
    with RunFolder.create(folder, dump_recipe(federation.recipe)).locked() as states:
        states.register_clients({client: {} for client in federation.clients})
        sent = SentAnswers(folder, folder.name)
        answers = Answers(federation.site(states.client_states), "a-run", agreement.fingerprint(), sent)
        while True:
            try:
                pipe.send_bytes(answers.handle(pipe.recv_bytes()))
            except EOFError:
                states.keeps_all_rounds = True
                states.commit(Progress())  # all files are on the disk then
                return


class Memory:
    """A run's store that keeps nothing but what the test looks at."""

    def __init__(self) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self.server_states = self

    def append_metrics(self, lines: Iterable[Mapping[str, Any]]) -> int:
        self.lines += lines
        return len(self.lines)

    def commit(self, progress: object) -> None:
        pass

    def save_server(self, *state: object) -> None:
        pass

    def load_server(self, round: int) -> Any:
        raise NotImplementedError


def run_server(agreement_file: Path, pipes: Mapping[str, Connection], answer: Connection) -> None:
    """Run all rounds from the agreement alone; say what the server ends with and which heavy libraries it imported."""
    from fedsa.agreement import Agreement
    from fedsa.engines.remote import RemoteFleet
    from fedsa.engines.rounds import RoundSettings, run_rounds
    from fedsa.server import server_of
    from fedsa.store import Progress

    def exchange(requests: Mapping[str, bytes], deadline: float | None) -> Iterable[tuple[str, bytes]]:
        sites = {pipes[site]: site for site in requests}
        for pipe, site in sites.items():
            pipe.send_bytes(requests[site])
        while sites:
            ready = wait(list(sites), deadline)
            if not ready:
                return
            for pipe in ready:
                yield sites.pop(pipe), pipe.recv_bytes()

    agreement, fleet = Agreement.read(agreement_file), RemoteFleet(exchange, pipes, "a-run")
    first = agreement.first_state(fleet.set_up(agreement))
    server, store, progress = server_of(agreement, fleet.clients, first), Memory(), Progress()
    fleet.progress = progress
    run_rounds(server, fleet, store, progress, RoundSettings.of(agreement))
    tensors = {str(key): tensor.numpy() for key, tensor in server.state.tensors.items() if not tensor.is_meta}
    validation = [(line["round"], line["client"], line["validation"]) for line in store.lines]
    heavy = [name for name in HEAVY if name in sys.modules]
    answer.send({"tensors": tensors, "validation": validation, "heavy": heavy, "chosen": progress.chosen_round})


def run_federation(agreement_file: Path, sites: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Run a server and its sites, each in a process of its own, and return what the server says at the end.

    Args:
        agreement_file: given to all of them.
        sites: site to its own settings.
        folder: each site keeps its states in one of its own in here.
    """
    spawn = multiprocessing.get_context("spawn")
    processes, ends = [], {}
    for site, own in sites.items():
        ends[site], theirs = spawn.Pipe()
        processes.append(spawn.Process(target=run_site, args=(agreement_file, own, folder / site, theirs)))
        processes[-1].start()
        theirs.close()
    answer, theirs = spawn.Pipe()
    processes.append(spawn.Process(target=run_server, args=(agreement_file, ends, theirs)))
    processes[-1].start()
    theirs.close()
    for end in ends.values():
        end.close()
    outcome: dict[str, Any] = {}
    try:
        outcome = answer.recv()
    finally:
        for process in processes:
            process.join(60 if outcome else 0)
            process.kill()
            process.join()
    return outcome
