"""NVFlare as the engine: how its processes are started, and how a job is submitted that carries our bytes.

NVFlare's session for administrators runs in a process of its own, whose program is this file. So nothing that the
session prints, logs or imports reaches the server's process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, final

from fedsa.deploy import worker
from fedsa.deploy.preflight import Kit, read_kit
from fedsa.errors import FedsaError

__all__ = ["ASK_SECONDS", "EngineError", "NVFlareJobs", "administrator_command", "main", "party_command", "write_job"]

ASK_SECONDS = 0.1
"""Seconds between two questions of a site for its next task; NVFlare's own values are 2 and 0.5 s."""


_ENDED = ("FINISHED", "FAILED", "ABANDONED")  # how the names of such states begin


class EngineError(FedsaError):
    """NVFlare's server does not answer, or refuses a job."""


def party_command(kit: Kit) -> list[str]:
    """The command that runs NVFlare's process of a server or a site, as the kit's own `start.sh` would."""
    kind = {"server": "server", "site": "client"}[kit.kind]
    module = f"nvflare.private.fed.app.{kind}.{kind}_train"
    settings = ["secure_train=true", "org=fedsa", "config_folder=config"]
    if kit.kind == "site":
        settings.append(f"uid={kit.party}")
    folder = str(kit.path.resolve())
    program = ["fedsa.deploy.nvflare_server", module] if kit.kind == "server" else [module]  # the former says more
    return [sys.executable, "-P", "-u", "-m", *program, "-m", folder, "-s", f"fed_{kind}.json", "--set", *settings]


def write_job(folder: Path, generation: int, sites: Iterable[str], *, ask_seconds: float | None = ASK_SECONDS) -> None:
    """Write the files of a job that carries bytes. They hold settings only, no code.

    Args:
        folder: the job's; must not exist.
        generation: its number.
        sites: who takes part.
        ask_seconds: seconds between two questions of a site for its next task; None: NVFlare's own value.
    """
    from fedsa.deploy.nvflare_job import TASK, CarrierController, WorkerExecutor

    def component(kind: type[Any], **arguments: Any) -> dict[str, Any]:
        return {"path": f"{kind.__module__}.{kind.__qualname__}", "args": arguments}

    filters: dict[str, Any] = {"format_version": 2, "task_data_filters": [], "task_result_filters": []}
    workflow = {"id": "carrier", **component(CarrierController, generation=generation)}
    server: dict[str, Any] = {**filters, "server": {}, "workflows": [workflow], "components": []}
    executors = [{"tasks": [TASK], "executor": component(WorkerExecutor)}]
    client: dict[str, Any] = {**filters, "executors": executors, "components": []}
    if ask_seconds is not None:
        server["server"]["task_request_interval"] = ask_seconds
        client["default_task_fetch_interval"] = ask_seconds
    parties = ["server", *sorted(sites)]
    meta = {"name": folder.name, "resource_spec": {}, "min_clients": 1, "deploy_map": {"app": parties}}
    config = folder / "app" / "config"
    config.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    (config / "config_fed_server.json").write_text(json.dumps(server, indent=1), encoding="utf-8")
    (config / "config_fed_client.json").write_text(json.dumps(client, indent=1), encoding="utf-8")


def administrator_command(kit: Kit, ask_seconds: float | None = ASK_SECONDS) -> list[str]:
    """The command of the administrator's process, which `NVFlareJobs` asks.

    Args:
        kit: of the federation's administrator.
        ask_seconds: see `write_job`.
    """
    return [sys.executable, "-P", "-m", __name__, str(kit.path.resolve()), json.dumps(ask_seconds)]


@final
class NVFlareJobs:
    """NVFlare's server as `fedsa.deploy.carrier` uses it: who is connected, and one job at a time.

    Args:
        path: of the socket of the administrator's process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def connected(self) -> Mapping[str, str]:
        """Sites that are connected now, each with a name of its connection.

        Raises:
            FedsaError: NVFlare's server does not answer.
        """
        connections: Mapping[str, str] = self._ask("connected")
        return connections

    def begin(self, generation: int, sites: Iterable[str]) -> None:
        """Submit a job of some sites.

        Raises:
            FedsaError: NVFlare's server does not answer, or does not accept the job.
        """
        self._ask("begin", generation, sorted(sites))

    def has_ended(self) -> bool:
        """Whether the job has ended.

        Raises:
            FedsaError: NVFlare's server does not answer.
        """
        return bool(self._ask("has_ended"))

    def end(self) -> None:
        """Abort the job, if there is one, and leave it behind."""
        with contextlib.suppress(FedsaError):
            self._ask("end")

    def shut_out(self, site: str) -> None:
        """Have NVFlare's server refuse a site, also after it was started again.

        Raises:
            FedsaError: NVFlare's server does not answer.
        """
        self._ask("shut_out", site)

    def _ask(self, what: str, *arguments: Any) -> Any:
        request = json.dumps([what, *arguments]).encode()
        answer = json.loads(worker.ask(self._path, request, given_up=lambda: False, patience=30, most_deaths=1))
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer["value"]


@final
class _Session:
    """A session with NVFlare's server, begun when it is needed, and anew after a failure; and the present job."""

    def __init__(self, kit: Kit, ask_seconds: float | None) -> None:
        self._kit, self._ask_seconds = kit, ask_seconds
        self._session: Any = None
        self._job: str | None = None

    def answer(self, request: bytes) -> bytes:
        """Do what `NVFlareJobs` asks for."""
        what, *arguments = json.loads(request)
        verbs: Mapping[str, Callable[..., Any]] = {
            "connected": self.connected,
            "begin": self.begin,
            "has_ended": self.has_ended,
            "end": self.end,
            "shut_out": self.shut_out,
        }
        try:
            if self._session is None:
                from nvflare.fuel.flare_api.flare_api import new_secure_session

                self._session = new_secure_session(self._kit.party, str(self._kit.path), timeout=10)
            return json.dumps({"value": verbs[what](*arguments)}).encode()
        except Exception as error:  # of many kinds, none of which says more than its text
            session, self._session = self._session, None
            with contextlib.suppress(Exception):  # the server has gone, and so has the session
                session.close()
            return json.dumps({"error": f"NVFlare's server does not answer: {error}"}).encode()

    def connected(self) -> Mapping[str, str]:
        return _connections(self._session.do_command("check_status server"))

    def begin(self, generation: int, sites: Iterable[str]) -> None:
        with tempfile.TemporaryDirectory(prefix="fedsa-") as place:
            folder = Path(place) / f"fedsa-{generation}"
            write_job(folder, generation, sites, ask_seconds=self._ask_seconds)
            self._job = self._session.submit_job(str(folder))

    def has_ended(self) -> bool:
        return self._job is None or str(self._session.get_job_status(self._job)).startswith(_ENDED)

    def end(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            self._session.abort_job(job)

    def shut_out(self, site: str) -> None:
        self._session.disable_client(site)


def _connections(reply: Mapping[str, Any]) -> dict[str, str]:
    """Sites in NVFlare's table of clients, each with a digest of its token: a site that comes anew has a new one.

    Raises:
        EngineError: the answer has no such table.
    """
    tables = [part["rows"] for part in reply.get("data", []) if part.get("type") == "table"]
    clients = [rows for rows in tables if {"CLIENT", "TOKEN"} <= {*rows[0]}]
    if not any("JOB_ID" in rows[0] for rows in tables):  # the table of jobs, which always comes
        raise EngineError(f"an answer without tables: {reply.get('details')}")
    return {
        row[rows[0].index("CLIENT")]: hashlib.sha256(row[rows[0].index("TOKEN")].encode()).hexdigest()
        for rows in clients
        for row in rows[1:]
    }


def main(path: str, ask_seconds: str) -> None:
    """Be the administrator's process, until it is ended."""
    worker.serve(_Session(read_kit(Path(path)), json.loads(ask_seconds)).answer, Path(os.environ[worker.SOCKET]))


if __name__ == "__main__":
    main(*sys.argv[1:])
