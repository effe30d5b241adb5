"""The rows of a site, read where they lie: those of its one client, or of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsa.errors import DataError, UserError
from fedsa.store.files import write_atomically
from fedsa.store.seals import read_sealed, sealed_table
from fedsa.texts.json_text import parsed_json

if TYPE_CHECKING:
    from fedsa.data.rows import DealtRows
    from fedsa.recipe import Recipe

__all__ = ["AS_WRITTEN", "NAMES", "Names", "own_rows", "read_note"]

NAMES = "site.json"
"""The file in a site's folder that has its name and its clients' ids."""

AS_WRITTEN = "put it back as `fedsa deploy init` wrote it"


def read_note(path: Path, mend: str, *needed: str, optional: Sequence[str] | None = None) -> dict[str, Any]:
    """What one of the small files of a party holds.

    Args:
        path: the file.
        mend: what to do where it cannot be read.
        needed: names that must be in it.
        optional: names that may be in it too; None: it is a file for users to edit, and has no hash.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        about = parsed_json(path.read_bytes()) if optional is None else read_sealed(path, older=(*needed, *optional))
        if not isinstance(about, dict) or not {*needed} <= {*about}:
            raise ValueError("it lacks what must be in it")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {mend}") from None
    return about


class Names(NamedTuple):
    """What a site is called.

    Attributes:
        site: its name.
        clients: ids of its clients.
        trains: they train; else they are measured only, and the site refuses to train them.
    """

    site: str
    clients: tuple[str, ...]
    trains: bool = True

    def write(self, folder: Path) -> None:
        """Write them into the site's folder.

        Raises:
            UserError: they cannot be written.
        """
        write_atomically(folder / NAMES, sealed_table(self._asdict()).encode())

    @classmethod
    def read(cls, folder: Path) -> Names:
        """Those in a site's folder.

        Raises:
            UserError: they are missing or damaged.
        """
        about = read_note(folder / NAMES, AS_WRITTEN, "site", "clients", optional=["trains"])
        site, clients = about["site"], about["clients"]
        if not isinstance(clients, list) or not all(isinstance(name, str) and name for name in (site, *clients)):
            raise UserError(f"{folder / NAMES} does not name the site and its clients: {AS_WRITTEN}")
        return cls(site, tuple(clients), about.get("trains") is not False)


def own_rows(names: Names, recipe: Recipe, labels: Sequence[str]) -> tuple[DealtRows, list[str]]:
    """A site's own rows. Each client's are cut as they would be among all clients' of a simulation.

    Args:
        names: of the site and its clients. The rows of several are a folder with a file or folder of each client's
            name, or a file with a column that names the client. Those of a single client may be a file of any name.
        recipe: agreed settings with the site's own ones: ``data.path``, and ``data.partition.kind`` (``files`` or
            ``column``).
        labels: the federation's classes.

    Returns:
        The rows, and what is to be known of how they were cut.

    Raises:
        DataError: they cannot be read, do not fit, or are of other clients.
    """
    from fedsa.data.rows import deal_client, deal_rows

    settings, path = recipe.data.partition, recipe.data.path
    if settings.kind not in ("files", "column"):
        raise DataError(
            f"data.partition.kind = {settings.kind!r} is of a simulation: a site's clients have a file each (files), "
            "or a column names them (column)"
        )
    if not Path(path).exists():
        raise DataError(f"no file or folder {path}: give one that is here, in a format that a data.path may have")
    if len(names.clients) == 1 and settings.kind == "files":
        rows, notes = deal_client(names.clients[0], path, recipe, labels, newcomer=False)
        return rows, [*rows.notes, *notes]
    if settings.kind == "files" and not Path(path).is_dir():
        raise DataError(
            f"{path} is one file, and site {names.site!r} has the clients {', '.join(names.clients)}: give a folder "
            "with a file of each name, or name the column that tells them apart (data.partition.column)"
        )
    rows = deal_rows(recipe, label_names=labels)
    found = rows.partition.clients
    missing, others = sorted({*names.clients} - {*found}), sorted({*found} - {*names.clients})
    if missing or others:
        told = [f"no rows of {name!r}" + _why(rows, name) for name in missing]
        told += [f"rows of {name!r}, which is none of the site's clients" for name in others]
        raise DataError(
            f"{path} has {'; '.join(told[:5])}. The clients of site {names.site!r} are {', '.join(names.clients)}: "
            "rename or leave out rows, or have whoever began the federation name others"
        )
    return rows, list(rows.notes)


def _why(rows: DealtRows, client: str) -> str:
    """What a client that was left out lacks."""
    why = rows.as_saved[0].left_out.get(client)
    return f" ({why})" if why else ""
