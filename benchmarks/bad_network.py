"""Three sites, each in a network namespace of its own, behind a proxy that delays everything and cuts connections.

    sudo python benchmarks/bad_network.py [--recipe quickstart] [--delay 0.05] [--life 40] [--seed 0] [--set rounds=4]

Linux only, and it needs root, for the namespaces: each site sees no network but a cable to a bridge on which the proxy
listens. The proxy passes everything on after `--delay` seconds, in both directions, and cuts each connection after a
time from an exponential distribution with a mean of `--life` seconds. The same recipe also runs as a simulation, one
client after the other on one thread. The server's tensors and all clients' states after the last round must be equal,
byte for byte; else the exit code is 1. The namespaces and the bridge are removed at the end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from proxy import Proxy, free_port
from safetensors.torch import load_file

from fedsa.agreement import AGREEMENT, Agreement
from fedsa.commands.shared.recipe import recipe_of_command
from fedsa.deploy.parties import run_server, run_site
from fedsa.deploy.preflight import read_kit
from fedsa.deploy.provision import ADMINISTRATOR, provision
from fedsa.engines.deployed import open_server_folder, run_id_of, serve
from fedsa.engines.remote import RemoteFleet
from fedsa.recipe import Recipe, dump_recipe
from fedsa.system.children import Child, stop_all

SITES = ("north", "south", "west")
HOST, NETWORK = "server.fedsa.example", "10.253.77"
BRIDGE = "fedsa-br"
PATIENCE = 120


def call(*command: str) -> None:
    """Run a command of the system, and stop here if it fails."""
    subprocess.run(command, check=True)


@contextmanager
def namespaces(names: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """Network namespaces with a cable each to a bridge, where the address `NETWORK`.1 is; gives name to namespace."""
    spaces = {name: f"fedsa-{name}" for name in names}
    with ExitStack() as stack:
        call("ip", "link", "add", BRIDGE, "type", "bridge")
        stack.callback(call, "ip", "link", "del", BRIDGE)
        call("ip", "address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        call("ip", "link", "set", BRIDGE, "up")
        for number, space in enumerate(spaces.values(), 2):
            inside = ("ip", "-n", space)
            call("ip", "netns", "add", space)
            stack.callback(call, "ip", "netns", "del", space)
            call("ip", "link", "add", f"fedsa-{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
            call("ip", "link", "set", f"fedsa-{number}", "master", BRIDGE, "up")
            call(*inside, "address", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            call(*inside, "link", "set", "eth0", "up")
            call(*inside, "link", "set", "lo", "up")
            hosts = Path("/etc/netns") / space / "hosts"  # takes the place of /etc/hosts in the namespace
            hosts.parent.mkdir(parents=True)
            hosts.write_text(f"127.0.0.1 localhost\n{NETWORK}.1 {HOST}\n", encoding="utf-8")
            stack.callback(hosts.parent.rmdir)
            stack.callback(hosts.unlink)
        yield spaces


def run_disturbed(recipe: Recipe, folder: Path, *, delay: float, life: float, seed: int) -> Proxy:
    """Run a recipe over the sites behind the proxy, and return the proxy.

    Args:
        recipe: what is run.
        folder: is there, and empty; the server's run folder will be ``run`` in it, the sites' ones in ``sites``.
        delay: seconds, in each direction.
        life: mean seconds of a connection.
        seed: of the cuts.
    """
    (folder / "sites").mkdir()
    (folder / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    places = {site: folder / "sites" / site for site in SITES}
    preparing = ("-m", "fedsa.deploy.preparing", str(folder / "recipe.toml"), str(folder / "sites"), *SITES)
    call(sys.executable, *preparing)
    agreement, listen = Agreement.read(places[SITES[0]] / AGREEMENT), free_port()
    with (
        namespaces(SITES) as spaces,
        Proxy(listen, host=f"{NETWORK}.1", delay=delay, life=life, seed=seed) as proxy,
        open_server_folder(folder / "run", recipe).locked() as run,
    ):
        kits = provision(folder / "kits", "fedsa", HOST, proxy.port, SITES, listen=listen)
        children: list[Child] = []
        with run_server(
            kits["server"], kits[ADMINISTRATOR], SITES, logs=folder / "logs", patience=PATIENCE, tell=tell
        ) as carrier:
            try:
                for site, place in places.items():
                    mine = [sys.executable, __file__, "--site", str(kits[site].path), str(place)]
                    command = ["ip", "netns", "exec", spaces[site], *mine]
                    children.append(Child(command, folder / "logs" / f"{site}.log"))
                fleet = RemoteFleet(carrier, SITES, run_id_of(agreement, SITES), tell=tell)
                serve(agreement, run, fleet, engine="nvflare")
            finally:
                stop_all(children)
    return proxy


def be_site(kit: Path, place: Path) -> None:
    """Be a site, until the process is ended."""
    command = [sys.executable, "-m", "fedsa.deploy.site", str(place)]
    with run_site(read_kit(kit), command, logs=place / "logs", patience=PATIENCE):
        while True:
            time.sleep(3600)


def differences(simulated: Path, folder: Path, last: int) -> tuple[int, list[str]]:
    """Compare the server's tensors and the clients' states after the last round.

    Returns:
        How many tensors were compared, and the files that are not equal.
    """
    name, sites = f"round-{last:06}.safetensors", {}
    for path in (folder / "sites").glob(f"*/states/*/{name}"):
        sites[path.parent.name.rpartition("-")[0]] = path  # a client's folder is named by its id and a hash
    pairs = [(simulated / "server" / name, folder / "run" / "server" / name)]
    for path in sorted((simulated / "clients").glob(f"*/{name}")):
        pairs.append((path, sites[path.parent.name.partition("-")[2]]))  # by its number and id
    count, other = 0, []
    for here, there in pairs:
        first, second = load_file(here), load_file(there)
        count += len(second)
        # Of what stays at clients a simulation's server has the initial values; a server of a deployment has not.
        all_there = second.keys() == first.keys() or (here == pairs[0][0] and second.keys() < first.keys())
        if not all_there or any(first[name].numpy().tobytes() != second[name].numpy().tobytes() for name in second):
            other.append(f"{here} and {there}")
    return count, other


def tell(line: str) -> None:
    """Print a line about the parties at once, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def main() -> int:
    """Run both, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--life", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="an empty folder for both runs")
    parser.add_argument("--site", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.site:
        be_site(*arguments.site)
    settings = [*arguments.set, "training.trainer=sequential", "compute.threads=1"]
    recipe, _ = recipe_of_command(arguments.recipe, settings)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        command = [word for setting in settings for word in ("--set", setting)]
        call(sys.executable, "-m", "fedsa", "run", arguments.recipe, *command, "--out", str(folder / "simulated"))
        began = time.monotonic()
        proxy = run_disturbed(recipe, folder, delay=arguments.delay, life=arguments.life, seed=arguments.seed)
        seconds = time.monotonic() - began
        count, other = differences(folder / "simulated", folder, recipe.rounds)
    ends = Counter(each.end or "closed" for each in proxy.passed)
    up, down = proxy.total()
    print(
        f"{recipe.rounds} rounds in {seconds:.0f} s; {len(proxy.passed)} connections, {ends['cut']} cut; {up:,} bytes "
        f"up, {down:,} down; {count} tensors compared, {len(other)} files are others"
    )
    for pair in other:
        print(pair)
    return 1 if other or not count else 0


if __name__ == "__main__":
    sys.exit(main())
