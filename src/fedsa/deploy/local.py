"""A whole federation on this machine, in processes of its own: for a first look, or to spread a simulation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsa.agreement import AGREEMENT, Agreement
from fedsa.callbacks import Callback
from fedsa.deploy.carrier import Carrier
from fedsa.deploy.parties import run_local
from fedsa.engines.deployed import open_server_folder, run_id_of, serve
from fedsa.engines.remote import RemoteFleet
from fedsa.errors import MissingExtraError, UserError, near
from fedsa.recipe import Recipe, dump_recipe

__all__ = ["ENGINES", "SITES", "deploy_local"]

ENGINES = {"nvflare": ("nvflare",), "flower": ("flwr", "trustme")}
"""What can carry the messages, and the packages that each needs."""

SITES, _ENGINE = "sites", "engine"
"""Folders of a deployment on this machine, in the server's run folder: the sites' own, and the engine's."""


def deploy_local(
    recipe: Recipe,
    out: Path,
    sites: Sequence[str],
    *,
    quorum: int | None = None,
    deadline: float | None = None,
    port: int | None = None,
    listen: int | None = None,
    engine: str = "nvflare",
    callbacks: Sequence[Callback] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run a recipe with a server and sites in processes of their own, connected by TLS, and return the summary.

    What is in the folder already goes on from its last finished round.

    Args:
        recipe: any that can be deployed.
        out: the server's run folder; the sites' folders go into ``sites``, the engine's files into ``engine``.
        sites: their names; the recipe's clients are dealt out over them in turn.
        quorum: good updates that a round needs; None: of every client.
        deadline: seconds that sites have for an answer; None: as long as it takes.
        port: by which sites reach the server; None: a free one.
        listen: the port on which the server listens, where something in between leads from `port` to it; None: `port`.
        engine: what carries the messages; ``"flower"`` is experimental.
        callbacks: told of every step.
        tell: is called with each line about the processes.

    Raises:
        UserError: the engine is not known or not installed.
        FedsaError: the sites cannot be prepared, or the run failed.
    """
    _check_engine(engine)
    if engine != "nvflare" and (port, listen) != (None, None):
        raise UserError("a port can be chosen with the engine nvflare only")
    places = {site: out / SITES / site for site in sites}
    commands = {site: [sys.executable, "-m", "fedsa.deploy.site", str(place)] for site, place in places.items()}
    with open_server_folder(out, recipe).locked() as folder:
        _prepare(recipe, out, places)
        agreement = Agreement.read(places[sites[0]] / AGREEMENT)
        changed = agreement.settings_changed_in(recipe)
        if changed:
            raise UserError(
                f"{out} was begun with other settings ({', '.join(changed)}): give those that its recipe.toml has, or "
                "a new folder"
            )
        with _carrying(engine, out / _ENGINE, commands, port, listen, tell) as carrier:
            run = run_id_of(agreement, sites)
            fleet = RemoteFleet(carrier, sites, run, deadline=deadline, quorum=quorum, tell=tell)
            keeps_all = recipe.keep_rounds == "all"  # the server's own business: not agreed
            return serve(agreement, folder, fleet, engine=engine, keeps_all_rounds=keeps_all, callbacks=callbacks)


def _check_engine(engine: str) -> None:
    """Say at once that an engine is not known or not installed.

    Raises:
        UserError: it is not.
    """
    if engine not in ENGINES:
        raise UserError(f"no engine is called {engine!r}; {near(engine, ENGINES)}")
    if any(find_spec(package) is None for package in ENGINES[engine]):
        raise MissingExtraError(f"the engine {engine}", engine)


def _carrying(
    engine: str,
    folder: Path,
    commands: Mapping[str, Sequence[str]],
    port: int | None,
    listen: int | None,
    tell: Callable[[str], None],
) -> AbstractContextManager[Carrier]:
    """Run a federation's processes with an engine, which is imported only now."""
    if engine == "nvflare":
        return run_local(folder, commands, port=port, listen=listen, tell=tell)
    from fedsa.deploy.flower import run_local_flower

    return run_local_flower(folder, commands, tell=tell)


def _prepare(recipe: Recipe, out: Path, places: dict[str, Path]) -> None:
    """Have the sites' folders written, once, by a process that ends.

    Raises:
        UserError: the recipe cannot be deployed; the process has said why.
    """
    root = out / SITES
    if root.exists():
        missing = [site for site, place in places.items() if not place.is_dir()]
        if missing or len(list(root.iterdir())) != len(places):
            raise UserError(f"{root} has other sites than {', '.join(places)}: give as many as before, or a new folder")
        return
    staging = out / ".sites.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    path = staging / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "fedsa.deploy.preparing", str(path), str(staging), *places]
    done = subprocess.run(command, check=False)  # noqa: S603 - our own program
    path.unlink()
    if done.returncode:
        shutil.rmtree(staging)
        raise UserError("the sites could not be prepared; the lines above say why")
    staging.replace(root)
