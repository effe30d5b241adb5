"""Licences of packages: which packages are needed, and what their licences ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fedsa.system.licences import kind_of, licences


@pytest.mark.parametrize(
    ("licence", "kind"),
    [
        ("Apache-2.0", "permissive"),
        ("BSD License", "permissive"),
        ("MIT OR Apache-2.0", "permissive"),
        ("GPL-2.0-only OR MIT", "permissive"),
        ("MPL-2.0 AND MIT", "copyleft"),
        ("GNU General Public License v3 (GPLv3)", "copyleft"),
        ("LGPL-2.1-or-later", "copyleft"),
        ("AGPL-3.0", "copyleft"),
        ("Proprietary", "unknown"),
        ("Example Limited Licence", "unknown"),
        ("Miscellaneous, see the disclaimer", "unknown"),
        ("LGPLv3+", "copyleft"),
        ("0BSD", "permissive"),
        ("BSD-3-Clause", "permissive"),
        ("BUSL-1.1", "unknown"),
        ("ISC License (ISCL)", "permissive"),
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", "copyleft"),
        ("(MIT OR GPL-3.0-only) AND BSD-3-Clause", "permissive"),
        ("MIT OR Apache-2.0 AND GPL-3.0-only", "permissive"),
        ("MIT AND LicenseRef-Own", "unknown"),
        ("GPL-2.0-only WITH Classpath-exception-2.0 OR LicenseRef-Own", "copyleft"),
        ("(MIT AND (Apache-2.0 OR (GPL-3.0-only AND ISC)))", "permissive"),
        ("(MIT OR Apache-2.0", "unknown"),
        ("MIT OR", "unknown"),
        ("((MIT) GPL-3.0-only OR ISC", "copyleft"),
        ("MIT OR GPL-3.0-only) AND ISC", "copyleft"),
        ("", "unknown"),
    ],
)
def test_what_a_licence_asks_for(licence: str, kind: str) -> None:
    assert kind_of(licence) == kind


def test_needed_packages_are_listed_and_no_others() -> None:
    found = {each.package: each for each in licences()}
    assert {"torch", "transformers", "peft", "safetensors", "typer", "jinja2", "markupsafe"} <= {*found}
    assert "fedsa" not in found
    assert "pip" not in found, "installed, and not needed"
    assert (found["peft"].kind, found["jinja2"].kind) == ("permissive", "permissive")
    assert found["tqdm"].kind == "copyleft"  # MPL-2.0 AND MIT


def test_the_command_lists_them(fedsa_command: Callable[..., Any]) -> None:
    listed = json.loads(fedsa_command("licences", "--json").out)
    assert {tuple(each) for each in listed} == {("package", "version", "licence", "kind")}
    shown = fedsa_command("licences").out
    assert f"{len(listed)} packages: " in shown
    assert "MPL-2.0" in shown
