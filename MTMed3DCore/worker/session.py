"""Who is answered when: one long request at a time, and everything else at once, also meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from MTMed3DCore import __version__
from MTMed3DCore.allocator import give_back_freed_memory
from MTMed3DCore.errors import Cancelled, WrongUse
from MTMed3DCore.worker.cancelling import Stop
from MTMed3DCore.worker.failures import as_refusal
from MTMed3DCore.worker.protocol import BadRequest, Channel, Request, parse_request, refusal
from MTMed3DCore.worker.work import Answer, Work

CANCEL_PATIENCE_S = 0.5
"""How long cancelled work may take to stop before its request is answered without it."""
LAST_WAIT_S = 2.0
"""How long the process waits for its work to stop before it ends without it."""
PROTOCOL = 1


@dataclass(frozen=True, eq=False)
class _Job:
    request: Request
    stop: Stop = field(default_factory=Stop)


class Session:
    """The state of a worker between requests.

    Reading a file, importing torch and a single large layer cannot be interrupted. A cancelled request is therefore
    answered after `CANCEL_PATIENCE_S` at the latest; what is left of its work ends unheard, and the next long request
    waits for that before it begins. All long requests have one thread: libraries that keep something open for each, as
    matplotlib does its fonts, keep it once.

    Args:
        channel: where the events go.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._work = Work()
        self._lock = threading.Lock()
        self._open: dict[str, Request] = {}
        self._job: _Job | None = None
        self._long = ThreadPoolExecutor(1, "request")
        self._latest: Future[None] | None = None

    def answer(self, line: str) -> bool:
        """Answer one line, or begin to; returns whether the process goes on."""
        try:
            request = parse_request(line)
            self._accept(request)
        except BadRequest as error:
            self._channel.send(refusal(error.request_id, error))
            return True
        if request.command in ("analyze", "load"):
            self._begin(request)
        elif request.command == "models":
            self._aside(request, self._work.models)
        elif request.command == "devices":
            self._aside(request, self._work.devices)
        else:
            self._finish(request, {"event": "result", **self._short(request)})
        return request.command != "shutdown"

    def close(self) -> None:
        """Stop what runs, and wait for it a moment."""
        if self._job is not None:
            self._job.stop.wish()
        if self._latest is not None:
            wait([self._latest], LAST_WAIT_S)

    def _accept(self, request: Request) -> None:
        """Remember a request until it is answered.

        Raises:
            BadRequest: its id is that of an unanswered one; the refusal has no id, because an error of that id would
                seem to end the other request.
        """
        with self._lock:
            if request.id in self._open:
                raise BadRequest(None, "id-twice", f"The request {request.id!r} is still unanswered.")
            self._open[request.id] = request

    def _finish(self, request: Request, answer: Answer) -> None:
        """Send the one result or error of a request, unless it has been sent."""
        with self._lock:
            if self._open.get(request.id) is not request:
                return
            del self._open[request.id]
            if self._job is not None and self._job.request is request:
                self._job = None  # before the answer, so that whoever has it may ask again at once
        self._channel.send({"id": request.id, **answer})

    def _fail(self, request: Request, error: BaseException) -> None:
        self._finish(request, refusal(request.id, as_refusal(error, request.fields.get("device", "auto"))))

    def _short(self, request: Request) -> Answer:
        """The commands that are answered at once."""
        job = self._job
        if request.command == "cancel":
            cancelled = job is not None and job.request.id == request.fields["target"] and job.stop.wish()
            if job is not None and cancelled:
                late = threading.Timer(CANCEL_PATIENCE_S, self._fail, (job.request, Cancelled()))
                late.daemon = True
                late.start()
            return {"cancelled": cancelled}
        return {"busy": None if job is None else job.request.id} if request.command == "ping" else {}

    def _aside(self, request: Request, work: Callable[[], Answer]) -> None:
        """Answer from a thread of its own: the first time, torch is imported for it."""

        def run() -> None:
            try:
                self._finish(request, {"event": "result", **work()})
            except BaseException as error:  # a fault must not leave the asker without an answer
                self._fail(request, error)

        threading.Thread(target=run, name=f"request-{request.id}", daemon=True).start()

    def _begin(self, request: Request) -> None:
        """Start a long request, or refuse it while another one runs."""
        running = self._job
        if running is not None:
            text = f"The request {running.request.id!r} is still running."
            self._fail(request, WrongUse("busy", text, "Wait for it, or cancel it."))
            return
        job = self._job = _Job(request)
        try:
            self._latest = self._long.submit(self._run, job)
        except RuntimeError as error:  # no memory for the thread
            job.stop.wish()  # it stays in the queue, and must not be done unheard by the next request's thread
            self._fail(request, error)

    def _run(self, job: _Job) -> None:
        """Do the work of a long request."""
        request, stop = job.request, job.stop

        def progress(stage: str, fraction: float, text: str) -> None:
            event: dict[str, Any] = {"stage": stage, "fraction": round(fraction, 4), "text": text}
            self._channel.send({"id": request.id, "event": "progress", **event})

        work = self._work.analyze if request.command == "analyze" else self._work.load
        try:
            stop.check()
            self._finish(request, {"event": "result", **work(request.fields, stop, progress)})
        except BaseException as error:  # a fault must not leave the asker without an answer
            self._fail(request, error)
        give_back_freed_memory()


def ready_event() -> dict[str, Any]:
    """The first line."""
    return {"event": "ready", "version": __version__, "protocol": PROTOCOL}
