"""What the run folder takes: the files of a round, and what a resume reads, for few and for many registered clients.

    python benchmarks/run_folders.py --clients 100 10000 --trained 100

No model and no training: clients' files of about 300 kB each are written and committed, round after round, then the
folder is opened to go on. Beside it is what a plain loop takes that reads and hashes the files of one round.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from pathlib import Path

import torch

from fedsa.store import ClientState, Progress, RunFolder
from fedsa.types import Factor, Key


def measure(clients: int, trained: int, rounds: int) -> None:
    """Print a line on a run folder of so many clients."""
    tensors = {Key(f"layer.{number}", Factor.A): torch.randn(8, 384) for number in range(24)}
    state, names = ClientState(tensors, {}, version=0), [f"client {number:06d}" for number in range(clients)]
    seconds, held = [], {}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "run"
        with RunFolder.create(path, "").locked() as folder:
            folder.register_clients({name: {} for name in names})
            folder.save_initial(tensors)
            for round in range(1, rounds + 1):
                started = time.perf_counter()
                for name in (names[(round * trained + number) % clients] for number in range(trained)):
                    folder.client_states.save_client(name, round, state)
                    held[name] = round - 1
                folder.server_states.save_server(round, tensors, {}, held)
                folder.commit(Progress(round=round, chosen_round=round))
                seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        RunFolder.open(path, write=True).close()
        opened = time.perf_counter() - started
        files = list(path.glob("clients/*/*.safetensors"))
        size = (path / "state.json").stat().st_size
        started = time.perf_counter()
        for file in files[:trained]:
            hashlib.sha256(file.read_bytes())
        hashed = time.perf_counter() - started
    median = statistics.median(seconds)
    print(f"| {clients} | {trained} | {median:.3f} | {hashed:.3f} | {size} | {len(files)} | {opened:.2f} |")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 10_000], help="registered clients")
    parser.add_argument("--trained", type=int, default=100, help="clients that train in a round")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each")
    options = parser.parse_args()
    print(
        "| registered | trained a round | a round's files, s | reading and hashing them alone, s | state.json, bytes | "
        "files of clients | opened to go on, s |\n|---|---|---|---|---|---|---|"
    )
    for clients in options.clients:
        measure(clients, options.trained, options.rounds)


if __name__ == "__main__":
    main()
