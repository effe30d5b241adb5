"""A site's program: it holds the model, its own rows and its clients' states, and answers the server's messages.

    python -m fedsa.deploy.site FOLDER

FOLDER is the site's own: `agreement.json` (what server and sites hold alike), `settings.json` (this machine's own
settings: where model and rows lie, what it computes with), and `site.json` (what it and its clients are called) or,
where the rows were dealt out on one machine, `rows/`. What the site keeps goes there too: which run it takes part in
(`run.json`), its clients' states, its last answers, the list of what has left, and at the end a run folder of its own
clients, which `fedsa export` and `fedsa adapt` read like any other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fedsa.agreement import AGREEMENT, Agreement
from fedsa.client.answers import Answers, log, refusal
from fedsa.client.masking import Masking
from fedsa.client.sent import KEPT_OF_SUMS, SentAnswers
from fedsa.client.site import with_secret
from fedsa.client.trained_once import TrainedOnce
from fedsa.deploy.own_rows import NAMES, Names, own_rows, read_note
from fedsa.deploy.site_folder import ROWS, SETTINGS
from fedsa.deploy.worker import SOCKET, serve
from fedsa.errors import DisagreementError, FedsaError, ProtocolError, RunFolderError
from fedsa.messages import Message, decode
from fedsa.store.client_states import open_states_of_site
from fedsa.store.files import write_atomically
from fedsa.store.seals import sealed_table
from fedsa.store.secret import secret_in

if TYPE_CHECKING:
    from fedsa.data.rows import DealtRows
    from fedsa.federation import Federation
    from fedsa.recipe import Recipe

__all__ = [
    "SiteProgram",
    "handler_of",
    "main",
    "name_of",
    "open_site",
]

_RUN, _STATES, _SECURE = "run.json", "states", "secure"


def name_of(folder: Path) -> str:
    """The name of the site whose folder it is: the one it was given; where there is none, the folder's."""
    return Names.read(folder).site if (folder / NAMES).exists() else folder.resolve().name


def open_site(folder: Path) -> SiteProgram:
    """Load the model and the site's own rows.

    Raises:
        UserError: the agreement, the settings, the rows or the model cannot be used.
    """
    agreement = Agreement.read(folder / AGREEMENT)
    own = read_note(folder / SETTINGS, "put it back as it was written")
    import torch

    from fedsa.federation import Federation

    federation = Federation.of_site(agreement, own, rows=_rows(folder, agreement.recipe_with(own), agreement.labels))
    torch.set_num_threads(federation.recipe.compute.threads)
    return SiteProgram(folder, agreement, federation)


def _rows(folder: Path, recipe: Recipe, labels: Sequence[str]) -> DealtRows:
    """A site's own rows: those that were dealt to it, or those that its settings name.

    Raises:
        UserError: they cannot be read.
    """
    from fedsa.data.portions import read_portion

    return read_portion(folder / ROWS) if (folder / ROWS).exists() else own_rows(Names.read(folder), recipe, labels)[0]


@final
class SiteProgram:
    """A site that has loaded its model and rows, and waits for messages.

    Args:
        folder: the site's own.
        agreement: what server and sites hold alike.
        federation: the site's part of it.
    """

    def __init__(self, folder: Path, agreement: Agreement, federation: Federation) -> None:
        self.folder, self.agreement, self.federation = folder, agreement, federation
        kept = {"kept": KEPT_OF_SUMS} if agreement.recipe.secure_aggregation else {}
        self._sent = SentAnswers(folder, name_of(folder), **kept)
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
            log(f"refused: {error}")
            return _refusal(self.folder, run, str(error))
        except FedsaError as error:
            log(str(error))
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
        run, rows = first.run, self.federation.data_fingerprint
        path, mend = self.folder / _RUN, "put it back from a copy, or give the site an empty folder"
        known = read_note(path, mend, "run", "rows", optional=[]) if path.exists() else None
        if known is None:
            if first.kind != "setup":
                raise ProtocolError(
                    f"the run has begun, and this site does not know of it ({_RUN} is gone): its folder is new or an "
                    "old copy; put the newest back"
                )
            if first.about.get("fingerprint") != self.agreement.fingerprint():
                raise ProtocolError("the server's agreement is not this site's: both must be given the same one")
            write_atomically(path, sealed_table({"run": run, "rows": rows}).encode())
        elif known["run"] != run:
            raise ProtocolError("this site takes part in another run: its owner gives a new run a folder of its own")
        elif known["rows"] != rows:
            raise RunFolderError(f"{self.folder}: the rows are not those that the run began with: put them back")
        self.states = states = open_states_of_site(self.folder / _STATES, run, self.federation.clients)
        site, trained_once = replace(self.federation.site(states), keeps_tested=True), None
        if self.agreement.recipe.privacy.kind != "none":
            site, trained_once = with_secret(site, secret_in(self.folder)), TrainedOnce(self.folder)

        def finish(about: Mapping[str, Any]) -> None:
            from fedsa.deploy.finishing import finish_site

            finish_site(self.folder, self.federation, states, about)

        trains = Names.read(self.folder).trains if (self.folder / NAMES).exists() else True
        recipe, masking = self.agreement.recipe, None
        if recipe.secure_aggregation:
            masking = Masking(self.folder / _SECURE, name_of(self.folder), run, recipe.weighting)
        fingerprint = self.agreement.fingerprint()
        return Answers(
            site,
            run,
            fingerprint,
            self._sent,
            trains=trains,
            on_finish=finish,
            masking=masking,
            trained_once=trained_once,
        )


_OWN_LOG = "it cannot take part: its own log says why"  # the reason may have something of its rows or paths


def _refusal(folder: Path, run: str, why: str) -> bytes:
    """The refusal of a site that takes no part in a run."""
    return refusal(lambda: SentAnswers(folder, name_of(folder)), run, 0, why)


def handler_of(folder: Path) -> Callable[[bytes], bytes]:
    """What answers a site's messages; where a mistake of its user's keeps it from taking part, it refuses them all."""
    try:
        return open_site(folder).handle
    except FedsaError as error:
        log(str(error))
        why = str(error) if isinstance(error, DisagreementError) else _OWN_LOG  # it names nothing of the site's

    def refuse(data: bytes) -> bytes:
        return _refusal(folder, decode(data).run, why)

    return refuse


def main() -> None:
    """Answer messages until the process is ended."""
    serve(handler_of(Path(sys.argv[1])), Path(os.environ[SOCKET]))


if __name__ == "__main__":
    main()
