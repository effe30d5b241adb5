"""Deal a recipe's clients out over sites on this machine: each site's folder gets only the rows of its own clients.

    python -m fedsa.deploy.preparing RECIPE.toml SITES_FOLDER NAME...

It is a program by itself, so that the process that plays the server never has a model or rows.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedsa.agreement import AGREEMENT
from fedsa.data.portions import portion_of, write_portion
from fedsa.deploy.site_folder import ROWS, SETTINGS
from fedsa.engines.deployed import check_deployable, check_drawn
from fedsa.errors import FedsaError, UserError
from fedsa.federation import Federation
from fedsa.federation.resolving import with_noise
from fedsa.recipe import Recipe, Scope, parse_recipe, read_toml
from fedsa.steps import CHECKS
from fedsa.store.files import write_atomically
from fedsa.texts.words import counted

__all__ = ["main", "prepare"]


def prepare(recipe: Recipe, folder: Path, sites: Sequence[str]) -> None:
    """Write the folders of sites that together have a recipe's clients, dealt out in turn.

    Args:
        recipe: any that can be deployed. Where it does not say the number of processor threads, the sites divide them.
        folder: the sites' folders go there; a site's must not be there yet.
        sites: their names.

    Raises:
        UserError: the recipe cannot be deployed, or there are more sites than clients.
    """
    check_deployable(recipe, len(sites))
    if not recipe.compute.threads:
        threads = max(1, (os.cpu_count() or 1) // len(sites))
        recipe = recipe.model_copy(update={"compute": recipe.compute.model_copy(update={"threads": threads})})
    recipe = with_noise(recipe, recipe.rounds)  # as sites of their own agree upon it: enough for every round
    federation = Federation.from_recipe(recipe, on_progress=lambda text: print(f"{text} ...", file=sys.stderr))
    clients = federation.clients
    if len(sites) > len(clients):
        raise UserError(
            f"{counted(len(sites), 'site')} for {counted(len(clients), 'client')}: each needs one; give fewer sites"
        )
    check_drawn(recipe, len(clients))
    own = json.dumps(federation.recipe.of_scope(Scope.MACHINE), indent=2, ensure_ascii=False)
    for number, site in enumerate(sites):
        place = folder / site
        place.mkdir(parents=True)
        write_portion(portion_of(federation.rows, clients[number :: len(sites)]), place / ROWS)
        write_atomically(place / SETTINGS, own.encode())
        write_atomically(place / AGREEMENT, federation.agreement.text().encode())


def main() -> int:
    """Prepare the sites that the arguments name; return the exit code."""
    path, folder, *sites = sys.argv[1:]
    try:
        data = read_toml(Path(path), "recipe")
        prepare(parse_recipe(data, source=path, checks=CHECKS), Path(folder), sites)
    except FedsaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
