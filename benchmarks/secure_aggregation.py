"""What secure aggregation costs in one round, training left out: processor seconds at a site and the server, and bytes.

Sites with their own folders answer the server's real messages, in one process: no network, one site after the other.
Two lines a number of sites: with all of them, and with a part that is lost after its keys are shared out.

    python benchmarks/secure_aggregation.py [--sites 3 10 100] [--bytes 150000] [--lost 0.2]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fedsa.agreement import AdapterSpec, Agreement, TensorSpec
from fedsa.algorithms.fedit import FedIT
from fedsa.client.masking import STAGES, Masking
from fedsa.engines.remote import RemoteFleet
from fedsa.engines.secure_fleet import SecureFleet
from fedsa.messages import Message, decode, encode
from fedsa.recipe import StepSettings
from fedsa.server import Server
from fedsa.steps import make_chain
from fedsa.store import MessagesUnderWay
from fedsa.types import SPLITS, Factor, Key, Update

KEY, ROWS = Key("layer", Factor.A), 300


@dataclass
class Cost:
    """What one round costs.

    Attributes:
        site_seconds: of the processor, for all sites together.
        up: bytes from all sites, training left out.
        down: bytes to all sites, training left out.
        sent: the sites that have sent something to the sum.
        error: the largest difference between the mean and that of the values.
        bound: what is promised of it.
        server_seconds: of the processor, for the server.
    """

    site_seconds: float = 0.0
    up: int = 0
    down: int = 0
    sent: set[str] = field(default_factory=set)
    error: float = 0.0
    bound: float = 0.0
    server_seconds: float = 0.0


def one_round(names: Collection[str], lost: Collection[str], size: int, place: Path) -> Cost:
    """Run one round over sites, some of which do not send their part.

    Args:
        names: of the sites, each with a client of that name.
        lost: those that are lost after they have shared their keys out.
        size: bytes of an update in fp32.
        place: for the sites' folders and the server's.
    """
    random, cost = torch.Generator().manual_seed(0), Cost()
    values = {name: torch.randn(size // 4, generator=random) for name in names}
    parts: dict[str, Masking] = {}

    def answer(site: str, message: Message) -> Message:
        if message.kind == "setup":
            parts[site] = Masking(place / site, site, "a-run", "num_examples")
            return Message("ready", "a-run", 0, {"examples": {site: dict.fromkeys(SPLITS, ROWS)}})
        if message.about["do"] == "train":
            parts[site].keep([Update(site, 1, ROWS, {KEY: values[site]})], 1, message.about["bits"])
            about = {"updates": {site: {"base_version": 0, "metrics": {"seconds": 1.0}}}}
            return Message("update", "a-run", 1, about)
        return parts[site].answer(message)

    def exchange(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in requests.items():
            began, message = time.process_time(), decode(data)
            if site in lost and message.about.get("do") in ("mask", "open"):
                continue
            said = encode(answer(site, message))
            cost.site_seconds += time.process_time() - began
            if message.about.get("do") in STAGES:
                cost.up, cost.down = cost.up + len(said), cost.down + len(data)
                cost.sent |= {site} if message.about["do"] == "mask" else set()
            yield site, said

    spec = AdapterSpec(tensors={str(KEY): TensorSpec(shape=(size // 4,))}, scaling={}, config={}, base="", initial="")
    settings = {"rounds": 1, "algorithm": "fedit", "secure_aggregation": True}
    agreement = Agreement(settings=settings, labels=(), metric="accuracy", adapter=spec, ranks={})
    remote = RemoteFleet(exchange, names, "a-run", quorum=len(names) - len(lost), deadline=1)
    remote.set_up(agreement)
    fleet = SecureFleet(remote, MessagesUnderWay(place), "num_examples")
    first = FedIT().init({KEY: torch.zeros(size // 4)})
    steps = make_chain(StepSettings(secure_aggregation=True))
    server = Server(FedIT(), first, remote.clients, seed=0, steps=steps, open_sum=fleet.open_sum)
    cost.site_seconds, began = 0.0, time.process_time()
    server.end_round(1, fleet.train(server.begin_round(1)))
    cost.server_seconds = time.process_time() - began - cost.site_seconds
    there = [name for name in names if name not in lost]
    exact = torch.stack([values[name].double() for name in there]).mean(0)
    cost.error = float((server.state.tensors[KEY].double() - exact).abs().max())
    cost.bound = fleet.point.largest_error + 2.0**-24 * float(exact.abs().max())  # the server keeps fp32
    return cost


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 10, 100])
    parser.add_argument("--bytes", type=int, default=150_000)
    parser.add_argument("--lost", type=float, default=0.2)
    settings = parser.parse_args()
    print("| sites | lost | a site, s | server, s | a site sends, kB | a site gets, kB | largest error | bound |")
    print("|---|---|---|---|---|---|---|---|")
    for count in settings.sites:
        names = [f"site-{number:03d}" for number in range(count)]
        for lost in sorted({0, int(settings.lost * count)}):
            with tempfile.TemporaryDirectory() as place:
                cost = one_round(names, names[:lost], settings.bytes, Path(place))
            if cost.error > cost.bound:
                raise RuntimeError(f"the mean is off by {cost.error}, more than {cost.bound}")
            shown = (cost.site_seconds / count, cost.server_seconds, cost.up / count / 1000, cost.down / count / 1000)
            print(
                f"| {count} | {lost} | {shown[0]:.3f} | {shown[1]:.2f} | {shown[2]:.0f} | {shown[3]:.0f} | "
                f"{cost.error:.1e} | {cost.bound:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
