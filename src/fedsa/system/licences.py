"""The licences of the packages that this installation of fedsa needs, as their own metadata tell them."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["Licence", "LicenceKind", "kind_of", "licences"]

LicenceKind: TypeAlias = Literal["permissive", "copyleft", "unknown"]

_COPYLEFT = re.compile(r"\b([AL]?GPL|GNU\b|MPL|Mozilla\b|EPL-|Eclipse\b|CDDL|EUPL|CeCILL|OSL-|CC-BY-SA)", re.IGNORECASE)
_PERMISSIVE = re.compile(
    r"\b(MIT\b|0?BSD|Apache\b|ISC\b|PSF|Python Software Foundation|Zlib\b|Unlicense\b|Public Domain|CC0|HPND\b|"
    r"BSL-1\.0\b|Boost\b|CNRI\b)",
    re.IGNORECASE,
)
_TOKENS = re.compile(r"[()]|\bAND\b|\bOR\b|(?:(?!\bAND\b|\bOR\b)[^()])+")
"""Of an SPDX expression: brackets, AND, OR, and the licences between them, each with what WITH adds to it."""
_CHOSEN: tuple[LicenceKind, ...] = ("permissive", "copyleft", "unknown")
_HELD: tuple[LicenceKind, ...] = ("copyleft", "unknown", "permissive")
"""The kind of several: the first of these that is among theirs, where one is chosen, and where all of them hold."""

_LONGEST = 60  # of the field License: some packages have the whole text there
_CLASSIFIER = "License :: "


@final
@dataclass(frozen=True)
class Licence:
    """A package and its licence.

    Attributes:
        package: its name.
        version: that is installed.
        licence: as the package names it; empty: it does not.
        kind: ``copyleft``: what is made with it may have to be given away under the same terms, at least changes of
            the package itself; ``unknown``: it has to be looked up. A choice (A OR B) with a permissive part is
            permissive; both together (A AND B) are if both are.
    """

    package: str
    version: str
    licence: str
    kind: LicenceKind


def licences(package: str = "fedsa") -> list[Licence]:
    """Return the licences of all packages that a package needs here, sorted by name; nothing is fetched.

    Args:
        package: an installed one. Of its extras, those count whose packages are all installed.
    """
    return [_licence_of(importlib.metadata.distribution(name)) for name in sorted({*_needed(package)} - {package})]


def kind_of(licence: str) -> LicenceKind:
    """What a licence asks for, by its name.

    >>> kind_of("MIT"), kind_of("GPL-3.0-or-later OR Apache-2.0"), kind_of("LGPLv3+"), kind_of("see LICENSE")
    ('permissive', 'permissive', 'copyleft', 'unknown')
    """
    tokens = [token.strip() for token in _TOKENS.findall(licence) if token.strip()]
    if not {"AND", "OR"} & {*tokens}:
        return _single(licence)  # its brackets, if it has any, are those of a name
    try:
        kind: LicenceKind | None = _choice(tokens)
    except IndexError:
        kind = None
    if kind is None or tokens:  # a bracket or a name is missing, or one too many
        return "copyleft" if _COPYLEFT.search(licence) else "unknown"
    return kind


def _choice(tokens: list[str]) -> LicenceKind:
    """Take A OR B OR ... from the front of an expression's tokens: one may choose.

    Raises:
        IndexError: the expression ends too early.
    """
    return _several(tokens, "OR", lambda rest: _several(rest, "AND", _part, _HELD), _CHOSEN)


def _several(
    tokens: list[str], word: str, part: Callable[[list[str]], LicenceKind], order: Sequence[LicenceKind]
) -> LicenceKind:
    """Take parts with a word between them from the front: their kind is the one of theirs that is first in an order."""
    kinds = [part(tokens)]
    while tokens and tokens[0] == word:
        tokens.pop(0)
        kinds.append(part(tokens))
    return min(kinds, key=order.index)


def _part(tokens: list[str]) -> LicenceKind:
    """Take one licence, or what is in brackets."""
    if tokens[0] != "(":
        return _single(tokens.pop(0))
    tokens.pop(0)
    kind = _choice(tokens)
    if tokens.pop(0) != ")":
        raise IndexError("a bracket is not closed")
    return kind


def _single(licence: str) -> LicenceKind:
    """What a licence asks for that is no expression."""
    if _COPYLEFT.search(licence):
        return "copyleft"
    return "permissive" if _PERMISSIVE.search(licence) else "unknown"


def _needed(package: str) -> Iterator[str]:
    """Yield the names of the installed packages that a package needs, and its own."""
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(package), extra) for extra in ("", *_installed_extras(package))]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen or not _is_installed(name):
            continue
        seen.add((name, extra))
        yield name
        for requirement in _requirements(name):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                other = canonicalize_name(requirement.name)
                waiting += [(other, each) for each in ("", *requirement.extras)]


def _installed_extras(package: str) -> list[str]:
    extras = importlib.metadata.distribution(package).metadata.get_all("Provides-Extra") or []
    return [
        extra
        for extra in extras
        if all(
            _is_installed(requirement.name)
            for requirement in _requirements(package)
            if requirement.marker is not None
            and requirement.marker.evaluate({"extra": extra})
            and not requirement.marker.evaluate({"extra": ""})
        )
    ]


def _requirements(name: str) -> list[Requirement]:
    return [Requirement(text) for text in importlib.metadata.distribution(name).requires or []]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _licence_of(distribution: importlib.metadata.Distribution) -> Licence:
    about = distribution.metadata
    classifiers = [each for each in about.get_all("Classifier") or [] if each.startswith(_CLASSIFIER)]
    named = [each.rpartition(" :: ")[2] for each in classifiers]
    field, expression = ((about.get_all(name) or [""])[0].strip() for name in ("License", "License-Expression"))
    short = field if len(field) <= _LONGEST and "\n" not in field and field.upper() != "UNKNOWN" else ""
    licence = expression or short or ", ".join(named)
    if kind_of(licence) == "unknown" and named:  # a name of the package's own, beside a known one
        licence = ", ".join(named)
    return Licence(canonicalize_name(about["Name"]), distribution.version, licence, kind_of(licence))
