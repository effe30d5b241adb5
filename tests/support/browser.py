"""A page in Chromium without a window, asked and watched through a pipe, by the browser's own protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium")

_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--remote-debugging-pipe",
]


class Browser:
    """Chromium with one page. All that the page asks the network for and all that its console says is kept.

    Args:
        folder: for the browser's own files.

    Attributes:
        requests: the addresses that pages asked for.
        console: what stood in the console: errors, warnings, and all that scripts wrote.
    """

    def __init__(self, folder: Path) -> None:
        import fcntl  # there is none on Windows

        assert CHROMIUM is not None
        self.requests: list[str] = []
        self.console: list[str] = []
        self._number, self._loaded, self._read = 0, False, b""
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 100) for end in (theirs_in, theirs_out)]  # neither 3 nor 4 themselves
        self._process = os.posix_spawn(
            CHROMIUM,
            [CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, high[0], 3),
                (os.POSIX_SPAWN_DUP2, high[1], 4),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, str(folder / "chromium.log"), os.O_WRONLY | os.O_CREAT, 0o644),
            ],
            setpgroup=0,
        )
        for end in (theirs_in, theirs_out, *high):
            os.close(end)
        page = self._ask("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
        self._session = self._ask("Target.attachToTarget", {"targetId": page, "flatten": True}, session=None)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._ask(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._to)
        os.close(self._from)

    def open(self, address: str) -> None:
        """Load a page, until all of it is there."""
        self._loaded = False
        self._ask("Page.navigate", {"url": address})
        while not self._loaded:
            self._hear(self._next())

    def look(self, width: int, height: int = 900, *, dark: bool = False, scripts: bool = True) -> None:
        """Have the next page shown on a screen of this size, in this scheme, with scripts or without."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._ask("Emulation.setScriptExecutionDisabled", {"value": not scripts})

    def value(self, script: str) -> Any:
        """Return what an expression comes to in the page; a promise's value, when it is there."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True}
        found = self._ask("Runtime.evaluate", asked)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, file: Path, *, whole: bool = True) -> None:
        """Write the whole page, or what is seen of it, as a PNG file."""
        taken = self._ask("Page.captureScreenshot", {"captureBeyondViewport": whole, "fromSurface": True})
        file.write_bytes(base64.b64decode(taken["data"]))

    def _ask(
        self, method: str, parameters: dict[str, Any] | None = None, session: str | None = "ours"
    ) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters or {}}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._hear(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            more = os.read(self._from, 1 << 20)
            assert more, "the browser has ended: see chromium.log"
            self._read += more
        message, _, self._read = self._read.partition(b"\0")
        heard: dict[str, Any] = json.loads(message)
        return heard

    def _hear(self, message: dict[str, Any]) -> None:
        about = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"])
            case "Log.entryAdded":
                self.console.append(about["entry"]["text"])
            case "Runtime.consoleAPICalled":
                self.console.append(f"{about['type']}: {about['args']}")
            case "Runtime.exceptionThrown":
                self.console.append(json.dumps(about["exceptionDetails"]))
