"""Classes that live elsewhere: by ``package.module:Class``, or under a name that an installed package declares."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from fedsa.errors import UserError

__all__ = ["declared", "load_class", "package_of"]


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
        UserError: it cannot be imported, whatever its code raises; or it is no such class.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(_imported(module), attribute)
    except Exception as error:  # it is somebody's code: anything may come
        raise UserError(f"{what} {name!r} cannot be imported: {_told(error, module)}") from error
    if not (inspect.isclass(found) and issubclass(found, base)) or inspect.isabstract(found):
        raise UserError(
            f"{name!r} is no {what}: it must be a class that derives from {base.__module__}.{base.__qualname__}"
        )
    return found


def _imported(module: str) -> Any:
    """Import a module; one that is not installed, from the current folder, which then stays on the path."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        here, top = Path.cwd(), module.partition(".")[0]
        is_here = (here / f"{top}.py").is_file() or (here / top).is_dir()
        if error.name != top or not is_here or str(here) in sys.path:
            raise
    sys.path.append(str(here))
    importlib.invalidate_caches()
    return importlib.import_module(module)


def _told(error: Exception, module: str) -> str:
    """Return what went wrong in one line, with the place in the code that is to be imported."""
    if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
        return f"{error}, neither installed nor in the current folder"
    if isinstance(error, ImportError | AttributeError | SyntaxError):
        return f"{type(error).__name__}: {error}" if isinstance(error, SyntaxError) else str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    message = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {message}" + (
        f" ({frame.filename}, line {frame.lineno})" if not frame.filename.startswith("<") else ""
    )
