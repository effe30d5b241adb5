"""The licences of the packages that this installation of fedsa needs, as their own metadata tell them."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["Licence", "LicenceKind", "kind_of", "licences"]

LicenceKind: TypeAlias = Literal["permissive", "copyleft", "unknown"]

_COPYLEFT = re.compile(r"GPL|GNU |MPL|Mozilla|EPL-|Eclipse|CDDL|EUPL|CeCILL|OSL-|CC-BY-SA", re.IGNORECASE)
_PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Zlib|Unlicense|Public Domain|CC0|HPND|BSL-1|Boost|CNRI",
    re.IGNORECASE,
)
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
            permissive.
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
    choices = re.split(r"\bOR\b", licence)
    if any(_PERMISSIVE.search(each) and not _COPYLEFT.search(each) for each in choices):
        return "permissive"
    return "copyleft" if _COPYLEFT.search(licence) else "unknown"


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
