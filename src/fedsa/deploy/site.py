"""A site's program: it holds the model, its own rows and its clients' states, and answers the server's messages.

    python -m fedsa.deploy.site FOLDER

FOLDER is the site's own: `agreement.json` (what server and sites hold alike), `settings.json` (this machine's own
settings: where model and rows lie, what it computes with) and, where the rows were dealt out on one machine, `rows/`.
What the site keeps goes there too: its clients' states, its last answers, the list of what has left, and at the end a
run folder of its own clients, which `fedsa export` and `fedsa adapt` read like any other.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fedsa.agreement import Agreement
from fedsa.client.answers import Answers, refusal
from fedsa.client.sent import SentAnswers
from fedsa.deploy.worker import SOCKET, serve
from fedsa.errors import FedsaError, ProtocolError, RunFolderError, UserError
from fedsa.messages import Message, decode
from fedsa.store.client_states import open_states_of_site
from fedsa.store.files import write_atomically
from fedsa.texts.json_text import parsed_json

if TYPE_CHECKING:
    from fedsa.data.rows import DealtRows
    from fedsa.federation import Federation
    from fedsa.recipe import Recipe

__all__ = [
    "ADAPTERS",
    "AGREEMENT",
    "DATA",
    "FINISHED_RUN",
    "ROWS",
    "SETTINGS",
    "STATES",
    "SiteProgram",
    "main",
    "open_site",
    "run_of",
]

AGREEMENT, SETTINGS, ROWS, STATES = "agreement.json", "settings.json", "rows", "states"
DATA, FINISHED_RUN, ADAPTERS = "data.json", "run", "adapters"
"""Files and folders in a site's folder."""

_RUN = "run.json"


def run_of(folder: Path) -> dict[str, str] | None:
    """The id of the run that a site takes part in, and the fingerprint of the rows it began with; None: of none yet.

    Raises:
        RunFolderError: the file that tells it is damaged.
    """
    path = folder / _RUN
    if not path.exists():
        return None
    try:
        about = parsed_json(path.read_bytes())
        return {name: str(about[name]) for name in ("run", "rows")}
    except (OSError, ValueError, KeyError, TypeError):
        raise RunFolderError(f"{path} is damaged: put it back from a copy, or give the site an empty folder") from None


def open_site(folder: Path) -> SiteProgram:
    """Load the model and the site's own rows.

    Raises:
        UserError: the agreement, the settings, the rows or the model do not fit.
    """
    agreement = Agreement.read(folder / AGREEMENT)
    try:
        own: Mapping[str, Any] = parsed_json((folder / SETTINGS).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / SETTINGS} cannot be read ({error}): run `fedsa deploy site` again") from None
    import torch

    from fedsa.federation import Federation

    federation = Federation.of_site(agreement, own, rows=_rows(folder, agreement.recipe_with(own), agreement.labels))
    torch.set_num_threads(federation.recipe.compute.threads)
    return SiteProgram(folder, agreement, federation)


def _rows(folder: Path, recipe: Recipe, labels: Sequence[str]) -> DealtRows:
    """A site's own rows: those that were dealt to it, or those of its one client.

    Raises:
        UserError: they cannot be read.
    """
    from fedsa.data.portions import read_portion
    from fedsa.data.rows import deal_newcomer

    if (folder / ROWS).exists():
        return read_portion(folder / ROWS)
    try:
        about = parsed_json((folder / DATA).read_bytes())
        path, client = str(about["path"]), str(about["client"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / DATA} cannot be read ({error}): run `fedsa deploy site` again") from None
    return deal_newcomer(client, path, recipe, labels)[0]


@final
class SiteProgram:
    """A site that has loaded its model and rows, and waits for messages.

    Args:
        folder: the site's own; its name is the site's.
        agreement: what server and sites hold alike.
        federation: the site's part of it.
    """

    def __init__(self, folder: Path, agreement: Agreement, federation: Federation) -> None:
        self.folder, self.agreement, self.federation = folder, agreement, federation
        self._answers: Answers | None = None

    def handle(self, data: bytes) -> bytes:
        """Return the answer to a message. The first one says which run this is; those of another run are refused."""
        run = ""
        try:
            if self._answers is None:
                first = decode(data)
                run = first.run
                self._answers = self._begin(first)
        except ProtocolError as error:
            return _refusal(self.folder, run, str(error))
        except FedsaError as error:
            print(error, file=sys.stderr, flush=True)
            return _refusal(self.folder, run, _OWN_LOG)
        return self._answers.handle(data)

    def close(self) -> None:
        """Release the lock of what the site keeps."""
        if self._answers is not None:
            self.states.close()

    def _begin(self, first: Message) -> Answers:
        """Open what the site keeps of a run, from its first message.

        Raises:
            ProtocolError: the site takes part in another run, or the server has another agreement.
            RunFolderError: its files are damaged or in use, or its rows are others than when the run began.
        """
        from fedsa.engines.beginning import data_fingerprint  # it loads models

        run, rows = first.run, data_fingerprint(self.federation)
        known = run_of(self.folder)
        if known is None:
            if first.kind != "setup" or first.about.get("fingerprint") != self.agreement.fingerprint():
                raise ProtocolError("the server's agreement is not this site's: both must be given the same one")
            write_atomically(self.folder / _RUN, json.dumps({"run": run, "rows": rows}).encode())
        elif known["run"] != run:
            raise ProtocolError("this site takes part in another run: its owner gives a new run a folder of its own")
        elif known["rows"] != rows:
            raise RunFolderError(f"{self.folder}: the rows are not those that the run began with: put them back")
        sent = SentAnswers(self.folder, self.folder.name)
        self.states = states = open_states_of_site(self.folder / STATES, run, self.federation.clients)
        site = replace(self.federation.site(states), keeps_tested=True)

        def finish(about: Mapping[str, Any]) -> None:
            from fedsa.deploy.finishing import finish_site

            finish_site(self.folder, self.federation, states, about)

        return Answers(site, run, self.agreement.fingerprint(), sent, on_finish=finish)


_OWN_LOG = "it cannot take part: its own log says why"  # the reason may have something of its rows or paths


def _refusal(folder: Path, run: str, why: str) -> bytes:
    """The refusal of a site that takes no part in a run."""
    return refusal(lambda: SentAnswers(folder, folder.name), run, 0, why)


def main() -> None:
    """Answer messages until the process is ended. A mistake of the user's is told to the server too, in a word."""
    folder = Path(sys.argv[1])
    try:
        handle = open_site(folder).handle
    except FedsaError as error:
        print(error, file=sys.stderr, flush=True)

        def handle(data: bytes) -> bytes:
            return _refusal(folder, decode(data).run, _OWN_LOG)

    serve(handle, Path(os.environ[SOCKET]))


if __name__ == "__main__":
    main()
