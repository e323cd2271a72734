"""One analysis at a time: from four volumes over the worker process to nodes in the scene. No Qt, no widgets.

The panel calls `Analysis.start`, `Analysis.cancel` and, from a timer, `Analysis.poll`; it reads the state from the
attributes. Nothing here waits.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from MTMed3DLib.attributes import MASK
from MTMed3DLib.background import Report, Stopped, Task
from MTMed3DLib.naming import study_name

CANCEL_GRACE_S = 0.75
"""A worker that has not stopped after this long is ended by force, so that a cancel takes less than a second."""
OUT_OF_MEMORY = frozenset({"memory", "out-of-memory"})
STAGES: Mapping[str, tuple[float, float, str]] = {
    "read": (0.03, 0.06, "Reading"),
    "prepare": (0.06, 0.2, "Preparing"),
    "infer": (0.2, 0.92, "Analysing"),
    "write": (0.92, 1.0, "Writing"),
}
"""Where each stage of the worker lies in the whole, and what it is called."""


HANDED_OVER = STAGES["read"][0]
"""How much of the whole is done when the volumes have been written for the worker."""


class Copies(Protocol):
    """What is needed of `MTMed3DLib.inputs.Inputs`."""

    def write(self, folder: Path, report: Report) -> Mapping[str, Path]: ...


class Worker(Protocol):
    """What is needed of `MTMed3DLib.worker_client.WorkerClient`."""

    @property
    def running(self) -> bool: ...
    @property
    def log(self) -> str: ...
    def request(self, command: str, **fields: Any) -> str: ...
    def cancel(self, request_id: str) -> str: ...
    def poll(self) -> list[dict[str, Any]]: ...
    def stop(self, timeout_s: float = 2.0) -> None: ...


class State(Enum):
    """What the analysis is doing."""

    IDLE = "idle"
    RUNNING = "running"
    CANCELLING = "cancelling"


@dataclass(frozen=True)
class Failure:
    """Why an analysis gave no result: a stable code, the reason, and what to do about it."""

    code: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.remedy}".strip()


@dataclass(frozen=True)
class _Run:
    """What was asked for."""

    nodes: Mapping[str, Any]
    t1ce_id: str
    study_id: str
    model: str
    device: str
    folder: Path
    inputs: Mapping[str, Path]
    prior: Path | None = None
    request_id: str = ""


class Analysis:
    """The state machine idle - running - cancelling.

    Args:
        scene: where the volumes are and the result goes.
        worker: the process that computes; started and ended through here only.
        take_inputs: copies the four volumes and the brain mask, which may be None, out of the scene, to be written on
            another thread; `inputs.take_inputs`.
        study_scene: makes the result's nodes; the class `scene.StudyScene`.
        clock: seconds, for the patience with a cancelled worker.

    Attributes:
        state: see `State`.
        fraction: how much of the run is done, 0 to 1.
        text: the stage in words.
        notices: what the reader must know about the last run, in order.
        failure: why the last run gave no result, or None.
        study: the nodes of the last result, or None.
        devices: what the worker offers: dictionaries with `device` and `text`.
        models: what the worker offers: dictionaries with `name`, `version` and `trained_on`.
    """

    def __init__(
        self,
        scene: Any,
        worker: Worker,
        take_inputs: Callable[[Mapping[str, Any], Any], Copies],
        study_scene: Callable[[Any, str], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scene, self.worker = scene, worker
        self._take_inputs, self._study_scene, self._clock = take_inputs, study_scene, clock
        self.state = State.IDLE
        self.fraction, self.text = 0.0, ""
        self.notices: list[str] = []
        self.failure: Failure | None = None
        self.study: Any = None
        self.devices: list[dict[str, str]] = []
        self.models: list[dict[str, str]] = []
        self._run: _Run | None = None
        self._task: Task | None = None
        self._cancelled_at = self._started_at = 0.0
        self._questions: dict[str, str] = {}

    @property
    def busy(self) -> bool:
        """Whether a run is under way."""
        return self.state is not State.IDLE

    @property
    def waits_for_worker(self) -> bool:
        """Whether the worker has been asked and nothing else is to be done here."""
        return self.busy and self._task is None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run was started."""
        return self._clock() - self._started_at

    def start(
        self,
        nodes: Mapping[str, Any],
        model: str = "starter",
        device: str = "auto",
        mask: Any = None,
        prior: Path | None = None,
    ) -> None:
        """Begin to analyse; a refusal ends up in `failure`, as every later one does.

        Args:
            nodes: the volume nodes, keys t1, t1ce, t2, flair.
            model: a bundle's name or folder.
            device: as the worker names it.
            mask: node of the user's brain mask, or None.
            prior: folder of an earlier result to compare with, or None.

        Raises:
            RuntimeError: a run is under way.
        """
        if self.busy:
            raise RuntimeError("An analysis is running; cancel it first.")
        self.notices, self.failure = [], None
        self._started_at = self._clock()
        self.fraction, self.text = 0.0, "Handing over the volumes"
        try:
            copies = self._take_inputs(nodes, mask)
            folder = Path(tempfile.mkdtemp(prefix="mtmed3d-"))
        except (ValueError, OSError, MemoryError) as error:
            self._fail(Failure("inputs", f"The volumes cannot be handed over: {error}"))
            return
        t1ce = nodes["t1ce"]
        self._run = _Run(dict(nodes), t1ce.GetID(), study_name(self.scene, t1ce), model, device, folder, {}, prior)
        self.state = State.RUNNING
        self._task = Task(partial(copies.write, folder))

    def cancel(self) -> None:
        """Stop the run; the worker is ended by force if it does not stop by itself, see `CANCEL_GRACE_S`."""
        if self.state is not State.RUNNING or self._run is None:
            return
        self.state, self.text = State.CANCELLING, "Cancelling"
        self._cancelled_at = self._clock()
        if self._task is not None:
            self._task.cancel()
            return
        try:
            self.worker.cancel(self._run.request_id)
        except OSError:
            self._end_by_force()

    def ask(self, command: str) -> None:
        """Ask the worker for its ``models`` or ``devices``; the answer is in the attribute after some `poll`."""
        with suppress(OSError):  # a worker that does not start says so when an analysis is wanted
            self._questions[self.worker.request(command)] = command

    def poll(self) -> bool:
        """Take what the worker has sent; returns whether anything changed."""
        before = (self.state, self.fraction, self.text, len(self.notices), len(self.models), len(self.devices))
        self._hand_over()
        for event in self.worker.poll():
            self._take(event)
        if self.state is State.CANCELLING and self._clock() - self._cancelled_at > CANCEL_GRACE_S:
            self._give_up_waiting()
        now = (self.state, self.fraction, self.text, len(self.notices), len(self.models), len(self.devices))
        return now != before

    def forget_scene(self) -> None:
        """The scene was closed: stop what runs and let go of every node."""
        self.study = None
        self.cancel()

    def close(self) -> None:
        """End the worker and clean up; nothing of a run is left behind."""
        self.worker.stop(1.0)
        self._questions.clear()
        if self._task is not None:
            self._task.cancel()
            self._task.wait(CANCEL_GRACE_S)
        self._finish()

    def _hand_over(self) -> None:
        """Ask the worker as soon as the volumes are written."""
        run, task = self._run, self._task
        if run is None or task is None:
            return
        task.give_way()
        if not task.finished:
            if self.state is State.RUNNING:
                self.fraction, self.text = HANDED_OVER * task.fraction, task.text
            return
        self._task = None
        try:
            inputs = task.result()
            if task.cancelled:
                raise Stopped
        except Stopped:
            self._fail(Failure("cancelled", "Cancelled."))
        except Exception as error:  # a full disk, no memory, a file system's own complaints
            self._fail(Failure("inputs", f"The volumes cannot be handed over: {error}"))
        else:
            self.fraction = HANDED_OVER
            self._run = replace(run, inputs=dict(inputs))
            self._ask_for(run.device)

    def _ask_for(self, device: str) -> None:
        run = self._run
        assert run is not None
        more = {"mask": run.inputs.get(MASK), "prior": run.prior}
        try:
            request_id = self.worker.request(
                "analyze",
                inputs={name: str(path) for name, path in run.inputs.items() if name != MASK},
                output=str(run.folder / "result"),
                model=run.model,
                device=device,
                study=run.study_id,
                overwrite=True,
                **{name: str(path) for name, path in more.items() if path is not None},
            )
        except OSError as error:
            text = f"The analysis process cannot be started: {error}."
            self._fail(Failure("worker-missing", text, "Install the Python packages again, then restart 3D Slicer."))
            return
        self._run = replace(run, device=device, request_id=request_id)
        self.state = State.RUNNING

    def _take(self, event: Mapping[str, Any]) -> None:
        request_id, kind = str(event.get("id")), event.get("event")
        question = self._questions.pop(request_id, None)
        if question is not None:
            if kind == "result":
                setattr(self, question, list(event.get(question, [])))
            return
        if self._run is None or request_id != self._run.request_id:
            return  # an answer to a cancel, or of a run that is over
        if kind == "progress" and self.state is State.RUNNING:
            start, end, word = STAGES.get(str(event.get("stage")), (self.fraction, self.fraction, ""))
            self.fraction = max(self.fraction, start + (end - start) * float(event.get("fraction", 0.0)))
            self.text = ": ".join(part for part in (word, str(event.get("text", ""))) if part)
        elif kind == "result":
            self._take_result(event)
        elif kind == "error":
            self._take_error(event)

    def _take_result(self, event: Mapping[str, Any]) -> None:
        run, cancelled = self._run, self.state is State.CANCELLING
        assert run is not None
        t1ce = self.scene.GetNodeByID(run.t1ce_id)
        if cancelled:
            self._fail(Failure("cancelled", "Cancelled."))
            return
        if t1ce is None or t1ce is not run.nodes["t1ce"]:
            text = "The T1ce volume was removed from the scene during the analysis; the result was dropped."
            self._fail(Failure("volume-removed", text, "Load the study and analyse it again."))
            return
        try:
            study = self._study_scene(self.scene, study_name(self.scene, t1ce))  # it may have been renamed since
            left = {name: node for name, node in run.nodes.items() if self.scene.IsNodePresent(node)}
            kept = study.show(Path(event["findings"]).parent, t1ce, left, event.get("score_threshold"))
        except Exception as error:  # whatever the files hold, the panel must come back to life and say so
            self._fail(Failure("result-unreadable", f"The result cannot be shown: {type(error).__name__}: {error}."))
            return
        self.study = study
        self.notices += kept or []  # the warnings of the model stand in the findings
        self.fraction, self.text = 1.0, "Done"
        self._finish()

    def _take_error(self, event: Mapping[str, Any]) -> None:
        run = self._run
        assert run is not None
        failure = Failure(str(event.get("code")), str(event.get("text")), str(event.get("remedy") or ""))
        if self.state is State.CANCELLING:
            self._fail(Failure("cancelled", "Cancelled."))
        elif failure.code in OUT_OF_MEMORY and self._may_be_gpu(run.device):
            self.notices.append("The memory of the GPU did not suffice; the analysis goes on with the CPU.")
            self.fraction, self.text = 0.0, "Starting again with the CPU"
            self._ask_for("cpu")
        else:
            self._fail(failure)

    def _may_be_gpu(self, device: str) -> bool:
        """Whether a run on `device` may have been on a GPU; unknown devices may."""
        return device != "cpu" and not (
            device == "auto" and self.devices and all(d.get("device") in ("auto", "cpu") for d in self.devices)
        )

    def _give_up_waiting(self) -> None:
        """End what does not stop: the worker, or the wait for a disk, which ends by itself some time."""
        if self._task is None:
            self._end_by_force()
        else:
            self._fail(Failure("cancelled", "Cancelled."))

    def _end_by_force(self) -> None:
        self.worker.stop(0.0)  # closes its input first, which also ends a worker behind a launcher
        self._questions.clear()
        self.notices.append("The analysis process did not stop in time and was ended; it starts again when needed.")
        self._fail(Failure("cancelled", "Cancelled."))

    def _fail(self, failure: Failure) -> None:
        self.failure, self.fraction, self.text = failure, 0.0, str(failure)
        self._finish()

    def _finish(self) -> None:
        if self._run is not None:
            clean = partial(shutil.rmtree, self._run.folder, ignore_errors=True)
            if self._task is None:
                clean()
            else:
                self._task.afterwards(clean)
        self._run, self._task, self.state = None, None, State.IDLE
