"""What runs in NVFlare's job processes: it carries bytes between two sockets, and imports no torch.

The server's half takes requests from the carrier of its machine and hands them to sites; a site's half hands them to
the worker of its machine. NVFlare makes both classes from the installed package; no code travels with a job.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from nvflare.apis.controller_spec import Task
from nvflare.apis.executor import Executor
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable

from fedsa.deploy import carrier, frames, worker
from fedsa.texts.words import counted

__all__ = ["TASK", "CarrierController", "WorkerExecutor"]

TASK = "fedsa"
"""The one task that a job knows."""

_BODY, _FAILED, _UNUSABLE = "body", "failed", "unusable"
_LOOK_SECONDS = 0.5


@final
class CarrierController(Controller):  # type: ignore[misc] # nvflare ships no types
    """Takes requests from the carrier, gives each to its site, and brings the answers back.

    Args:
        generation: the job's number, which the carrier wants to hear first.
    """

    def __init__(self, generation: int = 0) -> None:
        super().__init__()
        self._generation = generation
        self._tasks: dict[int, Any] = {}
        self._sending = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)

    def start_controller(self, fl_ctx: Any) -> None:
        """Do nothing: the engine asks for this method."""

    def stop_controller(self, fl_ctx: Any) -> None:
        """Let the carrier know that the job ends."""
        self._socket.close()

    def process_result_of_unknown_task(self, *arguments: Any) -> None:
        """Drop an answer that nobody waits for."""

    def control_flow(self, abort_signal: Any, fl_ctx: Any) -> None:
        """Carry requests until the carrier closes the connection or the engine ends the job."""
        self._socket.connect(os.environ[carrier.SOCKET])
        self._send({"generation": self._generation})
        while not abort_signal.triggered:
            if select.select([self._socket], [], [], _LOOK_SECONDS)[0]:
                try:
                    note, body = frames.receive(self._socket)
                except OSError:
                    return
                if "forget" in note:
                    task = self._tasks.pop(note["forget"], None)
                    if task is not None:
                        self.cancel_task(task)
                else:
                    self._give(note["request"], note["site"], body, fl_ctx)

    def _give(self, number: int, site: str, body: bytes, fl_ctx: Any) -> None:
        """Have a site answer a request; what it says goes to the carrier, also that it could not answer."""
        data = Shareable()
        data[_BODY] = body

        def bring(client_task: Any, fl_ctx: Any) -> None:
            result = client_task.result
            answer = result.get(_BODY)
            if self._tasks.pop(number, None) is None:
                return  # it was forgotten
            if isinstance(answer, bytes) and len(answer) > frames.MOST_BYTES:  # a site without our limits
                self._send({"answer": number, _UNUSABLE: f"more than {counted(frames.MOST_BYTES, 'byte')}"})
            elif isinstance(answer, bytes):
                self._send({"answer": number}, answer)
            elif result.get(_UNUSABLE):
                self._send({"answer": number, _UNUSABLE: str(result[_UNUSABLE])[:1000]})
            else:
                self._send({"answer": number, _FAILED: str(result.get(_FAILED) or result.get_return_code())[:1000]})

        def miss(task: Any, fl_ctx: Any) -> None:
            if self._tasks.pop(number, None) is not None:  # nobody has answered
                self._send({"answer": number, _FAILED: str(task.completion_status)})

        # Brought as soon as it is here: the engine looks only five times a second at which tasks are done.
        task = Task(TASK, data, result_received_cb=bring, task_done_cb=miss)
        self._tasks[number] = task
        self.broadcast(task, fl_ctx, targets=[site])

    def _send(self, note: Mapping[str, Any], body: bytes = b"") -> None:
        with self._sending:
            frames.send(self._socket, note, body)


@final
class WorkerExecutor(Executor):  # type: ignore[misc] # nvflare ships no types
    """Has the worker of this machine answer requests. It never fails: that would end the job for all sites."""

    def execute(self, task_name: str, shareable: Any, fl_ctx: Any, abort_signal: Any) -> Any:
        """Return the worker's answer to a request, or why there is none."""
        answer = Shareable()
        try:
            request, path = bytes(shareable[_BODY]), Path(os.environ[worker.SOCKET])
            answer[_BODY] = worker.ask(path, request, given_up=lambda: bool(abort_signal.triggered))
        except worker.UnusableAnswerError as error:
            answer[_UNUSABLE] = str(error)
        except Exception as error:
            answer[_FAILED] = str(error) or type(error).__name__
        return answer
