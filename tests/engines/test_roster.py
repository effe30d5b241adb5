"""The list of who takes part: what it refuses, and that it is read as it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from fedsa.engines.roster import ROSTER, Roster
from fedsa.errors import UserError

WRONG: list[tuple[Sequence[str], Mapping[str, Sequence[str]], str]] = [
    ([], {}, "name at least one"),
    (["a", "a"], {}, "each once"),
    (["a", "server"], {}, "none server"),
    (["a"], {"b": ["x"]}, "clients of 'b', which is no site"),
    (["a"], {"a": []}, "site 'a' has no client"),
    (["a", "b"], {"a": ["ward", "ward"]}, "client 'ward' is named twice"),
    (["a", "b"], {"a": ["ward"], "b": ["ward"]}, "'ward' is named twice.*as in a-ward"),
    (["a", "b"], {"a": ["b"]}, "client 'b' is named twice"),
]


@pytest.mark.parametrize(("sites", "clients", "text"), WRONG)
def test_names_with_which_a_federation_cannot_begin(
    sites: Sequence[str], clients: Mapping[str, Sequence[str]], text: str
) -> None:
    with pytest.raises(UserError, match=text):
        Roster.begun("run", sites, clients)


def test_a_site_is_one_client_of_its_name_unless_it_has_others(tmp_path: Path) -> None:
    roster = Roster.begun("run", ["south", "north"], {"north": ["ward-a", "ward-b"]})
    assert roster.clients == {"north": ("ward-a", "ward-b"), "south": ("south",)}
    roster.write(tmp_path)
    assert Roster.read(tmp_path) == roster


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": "x", "sites": {"a": {"clients": []}}}'])
def test_a_damaged_roster_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / ROSTER).write_text(text)
    with pytest.raises(UserError, match=r"roster\.json"):
        Roster.read(tmp_path)
