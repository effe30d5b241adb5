"""A federation in processes of their own: a server and its sites, with nothing between them but bytes in pipes.

Imported by the processes too: so nothing heavy is imported here before a function needs it.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

HEAVY = ("transformers", "peft", "datasets")
FINGERPRINT = "the recipe's"


def run_site(recipe: Mapping[str, Any], clients: Sequence[str], folder: Path, pipe: Connection) -> None:
    """Answer messages for some clients until the pipe is closed; keep their states in a folder of the site's own."""
    import torch

    from fedsa.client.answers import Answers
    from fedsa.client.sent import SentAnswers
    from fedsa.federation import Federation
    from fedsa.recipe import dump_recipe, parse_recipe
    from fedsa.store import Progress, RunFolder

    torch.set_num_threads(1)
    federation = Federation.from_recipe(parse_recipe(recipe))
    with RunFolder.create(folder, dump_recipe(federation.recipe)).locked() as states:
        states.register_clients({client: {} for client in clients})
        whole = federation.site(states)
        rows = {client: whole.rows[client] for client in clients}
        answers = Answers(
            type(whole)(**{**vars(whole), "rows": rows}), "a-run", FINGERPRINT, SentAnswers(folder, folder.name)
        )
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

    def append_metrics(self, lines: Iterable[Mapping[str, Any]]) -> int:
        self.lines += lines
        return len(self.lines)

    def commit(self, progress: object) -> None:
        pass

    def save_server(self, *state: object) -> None:
        pass

    def load_server(self, round: int) -> Any:
        raise NotImplementedError


def run_server(settings: Mapping[str, Any], pipes: Mapping[str, Connection], answer: Connection) -> None:
    """Run all rounds, and say what the server ends with and which heavy libraries this process has imported."""
    from fedsa.algorithms import make_algorithm
    from fedsa.engines.remote import RemoteFleet
    from fedsa.engines.rounds import RoundSettings, run_rounds
    from fedsa.recipe import EvaluationSettings
    from fedsa.server import Server
    from fedsa.store import Progress

    def exchange(requests: Mapping[str, bytes], deadline: float | None) -> Iterable[tuple[str, bytes]]:
        sites = {pipes[site]: site for site in requests}
        for pipe, site in sites.items():
            pipe.send_bytes(requests[site])
        while sites:
            for pipe in wait(list(sites), deadline):
                yield sites.pop(pipe), pipe.recv_bytes()

    fleet = RemoteFleet(exchange, pipes, "a-run")
    initial, scaling = fleet.set_up(FINGERPRINT)
    algorithm = make_algorithm(settings["algorithm"], {})
    server = Server(algorithm, algorithm.init(initial, scaling), fleet.clients, seed=settings["seed"])
    rounds, store = RoundSettings(settings["rounds"], settings["seed"], "accuracy", EvaluationSettings()), Memory()
    progress = Progress()
    run_rounds(server, fleet, store, progress, rounds)
    tensors = {str(key): tensor.numpy() for key, tensor in server.state.tensors.items()}
    validation = [(line["round"], line["client"], line["validation"]) for line in store.lines]
    heavy = [name for name in HEAVY if name in sys.modules]
    answer.send({"tensors": tensors, "validation": validation, "heavy": heavy, "chosen": progress.chosen_round})


def run_federation(recipe: Mapping[str, Any], sites: Mapping[str, Sequence[str]], folder: Path) -> dict[str, Any]:
    """Run a server and its sites, each in a process of its own, and return what the server says at the end."""
    spawn = multiprocessing.get_context("spawn")
    processes, ends = [], {}
    for site, clients in sites.items():
        ends[site], theirs = spawn.Pipe()
        processes.append(spawn.Process(target=run_site, args=(recipe, clients, folder / site, theirs)))
        processes[-1].start()
        theirs.close()
    answer, theirs = spawn.Pipe()
    processes.append(spawn.Process(target=run_server, args=(recipe, ends, theirs)))
    processes[-1].start()
    theirs.close()
    for end in ends.values():
        end.close()
    try:
        outcome: dict[str, Any] = answer.recv()
    finally:
        for process in processes:
            process.join(60)
            process.kill()
    return outcome
