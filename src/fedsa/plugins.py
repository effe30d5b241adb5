"""Classes that live elsewhere: by ``package.module:Class``, or under a name that an installed package declares.

What is installed, and what is imported already, is used as it is. A module of the current folder runs only where the
user allows that (`fedsa.system.permissions`): the recipe that names it may have come with the folder, from somebody
else.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import traceback
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, distributions, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsa.errors import UserError
from fedsa.system.permissions import HOW_TO_ALLOW, code_allowed

__all__ = ["declared", "load_class", "package_of", "places_in_own_code", "raised"]


_NOT_OWN = (str(Path(__file__).parent), str(Path(importlib.__file__).parent))
_loaded: set[str] = set()
"""The top packages of the classes that were loaded and are not fedsa's."""


def declared(group: str) -> dict[str, list[EntryPoint]]:
    """Return the entry points of a group that installed packages declare, by name; nothing is imported."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: (entry.name, package_of(entry), entry.value)):
        if entry not in found.setdefault(entry.name, []):
            found[entry.name].append(entry)
    return found


def package_of(entry: EntryPoint) -> str:
    """Return the name of the package that declares an entry point."""
    return entry.dist.name if entry.dist else "an unknown package"


def load_class(what: str, name: str, base: type[Any]) -> type[Any]:
    """Return a class by ``package.module:Class``; the current folder is searched after what is installed.

    Args:
        what: what it is to be, for messages: ``algorithm``, ``callback``.
        name: the module and the class.
        base: what it has to derive from.

    Raises:
        UserError: it is in the current folder, whose code the user has not allowed; it cannot be imported, whatever its
            code raises; or it is no such class.
    """
    module, _, attribute = name.partition(":")
    if module.partition(".")[0] != "fedsa":
        _loaded.add(module.partition(".")[0])
    try:
        place = _place_here(module.partition(".")[0])
        if place is not None and not code_allowed():
            raise UserError(
                f"{what} {name!r} is code of the current folder ({place}), which does not run unasked: {HOW_TO_ALLOW}"
            )
        if place is not None and not _is_current(*sys.path):
            sys.path.append(str(Path.cwd()))  # it stays there: the module may import its neighbours later
            importlib.invalidate_caches()
        found = getattr(importlib.import_module(module), attribute)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # it is somebody's code: anything may come
        raise UserError(f"{what} {name!r} cannot be imported: {_told(error, module)}") from error
    if not (inspect.isclass(found) and issubclass(found, base)) or inspect.isabstract(found):
        raise UserError(
            f"{name!r} is no {what}: it must be a class that derives from {base.__module__}.{base.__qualname__}"
        )
    return found


def _place_here(module: str) -> Path | None:
    """Return the file or folder in the current folder that a module would be imported from; None: another place.

    Args:
        module: a name without dots. Nothing is imported to find it.
    """
    if module in sys.modules:
        return None
    importlib.invalidate_caches()
    spec = find_spec(module) or PathFinder.find_spec(module, [str(Path.cwd())])
    here = [place for place in _places(spec) if _is_current(place.parent)] if spec else []
    return here[0] if here and not _is_current(*_editable_folders()) else None


def _places(spec: ModuleSpec) -> list[Path]:
    """The place of a module: its file, or the folders of a package."""
    if spec.submodule_search_locations is not None:
        return [Path(place) for place in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.has_location and spec.origin else []


def _is_current(*folders: str | Path) -> bool:
    """Whether the current folder is among folders, however its path is written."""
    here = Path.cwd().resolve()
    return any(Path(folder or ".").resolve() == here for folder in folders)


def _editable_folders() -> Iterator[Path]:
    """Yield the folders whose packages are installed where they stand (``pip install -e``)."""
    from urllib.parse import urlparse
    from urllib.request import url2pathname  # it takes 20 ms, and is seldom needed

    elsewhere = [entry for entry in sys.path if not _is_current(entry)]  # a folder does not vouch for itself
    for distribution in distributions(path=elsewhere):
        try:
            about = json.loads(distribution.read_text("direct_url.json") or "{}")
            if about["dir_info"]["editable"]:
                folder = Path(url2pathname(urlparse(about["url"]).path))
                yield from (folder, folder / "src")
        except (ValueError, KeyError, TypeError):
            continue  # installed from an index, as most are


def _told(error: BaseException, module: str) -> str:
    """A failed import in one line, with the place in the code that was imported."""
    if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
        return f"{error}, neither installed nor in the current folder"
    return f"SyntaxError: {error}" if isinstance(error, SyntaxError) else raised(error)


def raised(error: BaseException) -> str:
    """Return in one line what somebody's code raised, and where: the last place in it, or else outside fedsa."""
    frames = traceback.extract_tb(error.__traceback__)
    places = _in_own_code(error) or [frame for frame in frames if not frame.filename.startswith((*_NOT_OWN, "<"))]
    where = f" ({places[-1].filename}, line {places[-1].lineno}, in {places[-1].name})" if places else ""
    message = str(error).partition("\n")[0]
    return f"{message if isinstance(error, ImportError) else f'{type(error).__name__}: {message}'}{where}"


def places_in_own_code(error: BaseException) -> list[str]:
    """Return file, line and code of each call on an error's way in packages that `load_class` imported from."""
    return traceback.format_list(_in_own_code(error))


def _in_own_code(error: BaseException) -> traceback.StackSummary:
    frames = traceback.walk_tb(error.__traceback__)
    own = [(frame, line) for frame, line in frames if frame.f_globals.get("__name__", "").partition(".")[0] in _loaded]
    return traceback.StackSummary.extract(iter(own))
