"""Startup kits: what each party is given, and what it is not."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from fedsa.deploy.preflight import check_kit, read_kit
from fedsa.deploy.provision import ADMINISTRATOR, provision
from fedsa.errors import UserError
from support.extras import NEEDS_NVFLARE

pytestmark = [pytest.mark.run, NEEDS_NVFLARE]


def test_a_site_is_added_and_the_others_keep_their_kits(tmp_path: Path) -> None:
    kits = provision(tmp_path, "a_project", "server.example.org", 8002, ["north"])
    assert set(kits) == {"server", ADMINISTRATOR, "north"}
    before = {name: kit.certificate.read_bytes() for name, kit in kits.items()}
    more = provision(tmp_path, "a_project", "server.example.org", 8002, ["north", "south"])
    for name, kit in more.items():
        assert read_kit(tmp_path / name) == kit
        assert (kit.host, kit.port) == ("server.example.org", 8002)
        check_kit(kit)
        assert stat.S_IMODE(kit.key.stat().st_mode) == 0o600
        assert name == "south" or kit.certificate.read_bytes() == before[name]
    assert more["south"].authority.read_bytes() == kits["server"].authority.read_bytes()
    assert stat.S_IMODE((tmp_path / "authority").stat().st_mode) == 0o700


def test_kits_for_another_server_are_left_alone(tmp_path: Path) -> None:
    provision(tmp_path, "a_project", "localhost", 8002, ["north"])
    with pytest.raises(UserError, match=r"a kit for localhost:8002 of 'a_project'.*in another folder"):
        provision(tmp_path, "a_project", "localhost", 8003, ["north"])


def test_sites_may_be_led_to_another_port_than_the_server_listens_on(tmp_path: Path) -> None:
    kits = provision(tmp_path, "a_project", "server.example.org", 443, ["north"], listen=8102)
    assert {name: kit.port for name, kit in kits.items()} == {"server": 8102, ADMINISTRATOR: 8102, "north": 443}
    told = {name: (kit.path / "startup").glob("fed_*.json") for name, kit in kits.items()}
    server, administrator, site = (
        json.loads(next(told[name]).read_text("utf-8")) for name in ("server", ADMINISTRATOR, "north")
    )
    assert server["servers"][0]["service"]["target"] == "server.example.org:8102"
    assert site["servers"][0]["service"]["target"] == "server.example.org:443"
    assert (administrator["admin"]["host"], administrator["admin"]["port"]) == ("localhost", 8102)


def test_a_site_allows_nothing_but_carrying(tmp_path: Path) -> None:
    kits = provision(tmp_path, "a_project", "localhost", 8002, ["north"])
    local = kits["north"].path / "local"
    resources = json.loads((local / "resources.json").read_text("utf-8"))
    assert resources["class_allow_list"] == ["fedsa.deploy.nvflare_job.WorkerExecutor"]
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert resources["allow_log_streaming"] is False
    assert "log" not in json.dumps([part["path"] for part in resources["components"]])
    rights = json.loads((local / "authorization.json").read_text("utf-8"))["permissions"]
    assert rights.keys() == {"project_admin"}
    assert {rights["project_admin"][name] for name in ("byoc", "shell_commands", "download_job")} == {"none"}


@pytest.mark.parametrize("site", ["two words", "a/b", "", "ä"])
def test_a_name_that_no_certificate_takes_is_refused(tmp_path: Path, site: str) -> None:
    with pytest.raises(UserError, match="the federation cannot be named so"):
        provision(tmp_path, "a_project", "localhost", 8002, [site])
    assert not (tmp_path / "authority").exists()
