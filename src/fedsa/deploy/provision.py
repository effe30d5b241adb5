"""Startup kits: certificates of the federation's own authority, and settings; one folder for each party."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from fedsa.deploy.certificates import certify
from fedsa.deploy.preflight import PACKAGES, Kit, missing_nvflare, read_kit
from fedsa.errors import UserError
from fedsa.store.files import write_atomically

__all__ = ["ADMINISTRATOR", "provision", "shut_out", "write_policy"]

ADMINISTRATOR = "admin@fedsa.org"
"""The name of the administrator, who submits jobs. The administrator's kit is on the server's machine too."""

_ORGANISATION = "fedsa"


def provision(
    folder: Path,
    project: str,
    host: str,
    port: int,
    sites: Iterable[str],
    *,
    listen: int | None = None,
    requests: Mapping[str, Path] | None = None,
) -> dict[str, Kit]:
    """Make the startup kits of a federation: the server's, the administrator's and one for each site.

    What was made before in the same folder is kept: the authority and the certificates of the parties that are there.
    So a site is added by calling this again with its name among the sites.

    Args:
        folder: for the kits, and in `authority/` the keys of the authority, which stay here.
        project: the federation's name.
        host: the name by which sites reach the server; it stands in the server's certificate.
        port: by which sites reach the server; NVFlare's own traffic and its administration use one port.
        listen: the port on which the server listens, where something in between leads from `port` to it; None: `port`.
        sites: their names: letters, digits, hyphens and underscores.
        requests: site to the request that it has made with `make_request`. Its kit is then made without a key: the
            site has it already, and puts it in with `add_key`.

    Returns:
        Folder's name to kit: ``server``, `ADMINISTRATOR`, and each site's name.

    Raises:
        MissingExtraError: NVFlare is not installed.
        UserError: a name is not one that certificates and NVFlare take, a request is not one, or the folder has kits
            for another server.
    """
    try:
        from nvflare.lighter.entity import Project
        from nvflare.lighter.impl.cert import CertBuilder
        from nvflare.lighter.impl.signature import SignatureBuilder
        from nvflare.lighter.impl.static_file import StaticFileBuilder
        from nvflare.lighter.impl.workspace import WorkspaceBuilder
        from nvflare.lighter.provisioner import Provisioner
    except ImportError:
        raise missing_nvflare() from None
    sites, notes = sorted(sites), _Notes()
    try:
        plan = Project(project, "made by fedsa", props={"api_version": 4})
        own = port if listen is None else listen
        plan.set_server(host, _ORGANISATION, {"fed_learn_port": own, "admin_port": own, "default_host": host})
        for site in sites:
            plan.add_client(site, _ORGANISATION, {"connect_to": {"host": host, "port": port}})
        here = {"host": "localhost", "port": own}  # it is on the server's machine, where sites' way may not lead
        plan.add_admin(ADMINISTRATOR, _ORGANISATION, {"role": "project_admin", "connect_to": here})
    except ValueError as error:
        raise UserError(f"the federation cannot be named so: {error}") from None
    authority = folder / "authority"
    authority.mkdir(parents=True, exist_ok=True, mode=0o700)
    builders = [WorkspaceBuilder(), StaticFileBuilder("config", scheme="http"), CertBuilder(), SignatureBuilder()]
    made = Provisioner(str(authority), builders).provision(plan, logger=notes).get("current_prod_dir")
    if made is None:
        raise UserError(f"the startup kits could not be made: {'; '.join(notes.errors)}")
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    kits = {}
    parties: list[tuple[str, Any]] = [(host, "server"), (ADMINISTRATOR, "admin"), *((site, "site") for site in sites)]
    for party, kind in parties:
        place, reached = folder / ("server" if kind == "server" else party), port if kind == "site" else own
        kit = Kit(place, party, kind, project, host, reached, versions)
        if not kit.path.exists():
            shutil.move(Path(made) / party, kit.path)
            write_policy(kit)
            kit.write()
            if requests and party in requests:
                certify(kit, requests[party], authority / project)
        elif (made_before := read_kit(kit.path)) != kit:
            raise UserError(
                f"{kit.path} is a kit for {made_before.host}:{made_before.port} of {made_before.project!r}, made with "
                f"{made_before.versions}: make the kits of another federation in another folder"
            )
        kits[kit.path.name] = kit
    shutil.rmtree(made)
    return kits


class _Notes:
    """A log for NVFlare's provisioner; it keeps the errors only."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def debug(self, text: str) -> None:
        """Drop a line."""

    info = warning = debug

    def error(self, text: str) -> None:
        """Keep an error."""
        self.errors.append(text)


def shut_out(kit: Kit, sites: Collection[str]) -> None:
    """Have a server's kit refuse sites, whatever certificate they have: NVFlare reads the list when it starts.

    Args:
        kit: the server's.
        sites: all that have left.
    """
    content = json.dumps({"disabled_clients": sorted(sites)}).encode()
    write_atomically(kit.path / "disabled_clients.json", content)


def write_policy(kit: Kit) -> None:
    """Write NVFlare's settings of a server or site, in place of its defaults: what is allowed, and what is kept.

    A server's settings have the path of its kit in them, so they are written again where the kit has been moved.
    """
    if kit.kind != "admin":
        local = kit.path / "local"
        resources = _server_resources(kit.path) if kit.kind == "server" else _site_resources()
        (local / "resources.json").write_text(json.dumps(resources, indent=2), encoding="utf-8")
        (local / "authorization.json").write_text(json.dumps(_RIGHTS, indent=2), encoding="utf-8")


_RIGHTS = {
    "format_version": "1.0",
    "permissions": {
        # Jobs can be submitted and ended. Nobody reads a party's files from elsewhere, and no job brings code along.
        "project_admin": {
            "submit_job": "any",
            "manage_job": "any",
            "view": "any",
            "operate": "any",
            "clone_job": "none",
            "download_job": "none",
            "shell_commands": "none",
            "byoc": "none",
        }
    },
}


def _component(name: str, path: str, **arguments: Any) -> dict[str, Any]:
    return {"id": name, "path": f"nvflare.{path}", "args": arguments}


def _site_resources() -> dict[str, Any]:
    """What NVFlare's process of a site has: nothing of NVFlare's own defaults that sends the site's logs elsewhere."""
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": ["fedsa.deploy.nvflare_job.WorkerExecutor"],
        "allow_log_streaming": False,
        "client": {"retry_timeout": 30, "compression": "Gzip"},
        "components": [
            _component(
                "resource_manager",
                "app_common.resource_managers.gpu_resource_manager.GPUResourceManager",
                num_of_gpus=0,
                mem_per_gpu_in_GiB=0,
            ),
            _component("resource_consumer", "app_common.resource_consumers.gpu_resource_consumer.GPUResourceConsumer"),
            _component("process_launcher", "app_common.job_launcher.client_process_launcher.ClientProcessJobLauncher"),
        ],
    }


def _server_resources(folder: Path) -> dict[str, Any]:
    """What NVFlare's server has: its jobs lie in the kit's folder, and are looked at every second."""
    storage = "app_common.storages.filesystem_storage.FilesystemStorage"
    snapshots = {"root_dir": str(folder.resolve() / "snapshots"), "uri_root": "/"}
    persistor = {"uri_root": "/", "storage": {"path": f"nvflare.{storage}", "args": snapshots}}
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": ["fedsa.deploy.nvflare_job.CarrierController"],
        "servers": [{"admin_storage": "transfer", "max_num_clients": 100_000, "heart_beat_timeout": 60}],
        "snapshot_persistor": {
            "path": "nvflare.app_common.state_persistors.storage_state_persistor.StorageStatePersistor",
            "args": persistor,
        },
        "components": [
            _component(
                "job_scheduler",
                "app_common.job_schedulers.job_scheduler.DefaultJobScheduler",
                max_jobs=4,
                min_schedule_interval=1.0,
            ),
            _component(
                "job_manager",
                "apis.impl.job_def_manager.SimpleJobDefManager",
                uri_root=str(folder.resolve() / "jobs"),
                job_store_id="job_store",
            ),
            _component("job_store", storage),
            _component("process_launcher", "app_common.job_launcher.server_process_launcher.ServerProcessJobLauncher"),
        ],
    }
