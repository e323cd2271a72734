"""What the panel's tests use to drive it as a person would: a small study, a worker that obeys, and patience."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

WAIT_S = 60.0
"""Far more than anything takes that does not compute."""
SHAPE = (40, 44, 36)
THRESHOLD = 0.05
"""From which score on the obedient model reports a box."""
SEQUENCES = ("t1", "t1ce", "t2", "flair")


class ObedientWorker:
    """A worker that does at once what a test tells it, in place of a process.

    Attributes:
        sent: every request: id, command and fields.
    """

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.stopped = 0
        self.running = False
        self.log = "a line of the log"
        self._events: list[dict[str, Any]] = []
        self._unanswered: str | None = None
        self._waiting: list[Callable[[], None]] = []

    def request(self, command: str, **fields: Any) -> str:
        self.running = True
        self.sent.append({"id": str(len(self.sent) + 1), "command": command, **fields})
        if command == "analyze":
            self._unanswered = self.sent[-1]["id"]
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each()
        return self.sent[-1]["id"]

    def cancel(self, request_id: str) -> str:
        return self.request("cancel", target=request_id)

    def poll(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    def stop(self, timeout_s: float = 2.0) -> None:
        self.running, self._unanswered = False, None
        self.stopped += 1

    def analyses(self) -> list[dict[str, Any]]:
        """Every analysis that was asked for."""
        return [request for request in self.sent if request["command"] == "analyze"]

    def progress(self, stage: str, fraction: float, text: str) -> None:
        """Tell of the latest analysis."""
        self._when_asked(lambda: self._send(event="progress", stage=stage, fraction=fraction, text=text))

    def fail(self, code: str, text: str, remedy: str = "") -> None:
        """Let the latest analysis fail."""
        self._when_asked(lambda: self._answer(event="error", code=code, text=text, remedy=remedy))

    def answer(self, command: str, **fields: Any) -> None:
        """Answer the latest request of a command."""
        asked = next(request for request in reversed(self.sent) if request["command"] == command)
        self._events.append({"id": asked["id"], "event": "result", **fields})

    def finish(
        self, lesions: int = 2, warnings: tuple[str, ...] = (), verdicts: tuple[str, str, str] | None = None
    ) -> None:
        """Let the latest analysis end with findings on the grid of the T1ce that was handed over.

        Args:
            lesions: how many boxes.
            warnings: of the result.
            verdicts: of the registrations of T1, T2 and FLAIR; None for a result that says nothing of its preparation.
        """
        self._when_asked(lambda: self._give(lesions, warnings, verdicts))

    def _give(self, lesions: int, warnings: tuple[str, ...], verdicts: tuple[str, str, str] | None) -> None:
        request = self.analyses()[-1]
        t1ce, output = Path(request["inputs"]["t1ce"]), Path(request["output"])
        more = {"mask": request.get("mask"), "compared": "prior" in request}
        folder = write_findings_for(t1ce, output, request["study"], lesions, verdicts, **more)
        found = str(folder / "findings.json")
        self._answer(event="result", findings=found, warnings=list(warnings), score_threshold=THRESHOLD)

    def _when_asked(self, tell: Callable[[], None]) -> None:
        """Now, or when the volumes have been handed over and the analysis is asked for."""
        if self._unanswered is None:
            self._waiting.append(tell)
        else:
            tell()

    def _answer(self, **event: Any) -> None:
        self._send(**event)
        self._unanswered = None

    def _send(self, **event: Any) -> None:
        self._events.append({"id": self.analyses()[-1]["id"], **event})


def write_findings_for(
    t1ce: Path,
    output: Path,
    study_id: str,
    lesions: int,
    verdicts: tuple[str, str, str] | None = None,
    mask: str | None = None,
    compared: bool = False,
) -> Path:
    """A result as the core writes it: one tumour of three regions in the middle, and as many boxes as asked for.

    Compared with an earlier result, it is compared with itself.
    """
    from MTMed3DCore.exports.json_file import write_json
    from MTMed3DCore.exports.seg_nrrd import write_seg_nrrd
    from MTMed3DCore.findings import Findings, Grade, Lesion, ModelIdentity, volumes_ml
    from MTMed3DCore.geometry import VoxelBox
    from MTMed3DCore.measurements.comparison import compare
    from MTMed3DCore.volume import read_volume

    grid = read_volume(t1ce).grid
    labels = np.zeros(grid.shape, np.uint8)
    labels[10:24, 12:26, 8:20] = 2
    labels[12:20, 14:22, 10:18] = 4
    labels[14:18, 16:20, 12:16] = 1
    boxes = [VoxelBox((10 + n % 5, 12 + n // 5 % 5, 8), (24 + n % 5, 26 + n // 5 % 5, 20)) for n in range(lesions)]
    found = tuple(
        Lesion(n + 1, round(0.95 - 0.9 * n / max(lesions, 2), 3), box.to_world(grid), volumes_ml(labels, grid), 20.0)
        for n, box in enumerate(boxes)
    )
    model = ModelIdentity("obedient", "1.0", "0" * 64, "nothing")
    sources = {name: f"{name}.nrrd" for name in SEQUENCES}
    seconds = dict.fromkeys(("read", "prepare", "infer", "write", "total"), 0.1)
    software = dict.fromkeys(("mtmed3d", "torch", "monai", "python", "device", "precision"), "-")
    grade = Grade("HGG", 0.93)
    record = None if verdicts is None else preparation_of(grid, verdicts, mask)
    findings = Findings(
        study_id, sources, grid, labels, found, grade, model, timing_s=seconds, software=software, preparation=record
    )
    if compared:
        findings = replace(findings, comparison=compare(findings, replace(findings, study_id="last year")))
    output.mkdir(parents=True, exist_ok=True)
    if record is not None:
        from MTMed3DCore.preparation.record import write_preparation

        write_preparation(record, output / "preparation")
    write_seg_nrrd(findings, output / "segmentation.seg.nrrd")
    write_json(findings, output / "findings.json")
    return output


def preparation_of(grid: Any, verdicts: tuple[str, str, str], mask: str | None) -> Any:
    """A preparation with these verdicts on T1, T2 and FLAIR, and the user's mask or a block in the middle."""
    from MTMed3DCore.preparation.record import PreparationRecord, Registration, read_mask

    brain = np.zeros(grid.shape, bool)
    brain[4:-4, 5:-5, 6:-6] = True
    figures = {"good": 0.4, "doubtful": 2.5, "failed": 9.0, "not-needed": None}
    registrations = tuple(
        Registration(name, np.eye(4), "header" if verdict in ("failed", "not-needed") else "mutual-information",
                     verdict, figures[verdict], rotation_deg=3.2, translation_mm=5.1)
        for name, verdict in zip(("t1", "t2", "flair"), verdicts, strict=True)
    )  # fmt: skip
    if mask is not None:
        return PreparationRecord(grid, grid, read_mask(mask, grid), "given", registrations)
    return PreparationRecord(grid, grid, brain, "built-in", registrations)


def add_volume(scene: Any, name: str, shape: tuple[int, int, int] = SHAPE, origin: float = 0.0) -> Any:
    """A scalar volume of noise with 2 mm voxels."""
    import slicer

    array = np.random.default_rng(len(name)).integers(0, 500, shape[::-1]).astype(np.int16)
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = origin
    node = slicer.util.addVolumeFromArray(array, ijkToRAS=matrix, name=name)
    node.CreateDefaultDisplayNodes()
    return node


def add_study(scene: Any, prefix: str = "MR") -> dict[str, Any]:
    """Four volumes whose names say which sequence they are."""
    return {name: add_volume(scene, f"{prefix} {name}") for name in SEQUENCES}


def wait_until(done: Callable[[], bool], application: Any, limit_s: float = 120.0) -> float:
    """Let Qt work until something is so; returns the seconds it took."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < limit_s, f"nothing after {limit_s} s"
        application.processEvents()
        time.sleep(0.005)
    return time.monotonic() - began


def texts_of(table: Any) -> list[list[str]]:
    """What a table shows, hidden rows left out."""
    rows = [row for row in range(table.rowCount) if not table.isRowHidden(row)]
    return [[table.item(row, column).text() for column in range(table.columnCount)] for row in rows]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def choose(panel: Any, row: int) -> Any:
    """A click on a row of the lesions; returns its box."""
    panel.ui.lesionTable.selectRow(row)
    panel.ui.lesionTable.cellClicked.emit(row, 0)
    return panel.findings.selected


def export(panel: Any, let: Any) -> None:
    """A click on *Export*, until it has ended."""
    panel.ui.exportButton.click()
    let(lambda: not panel.export.busy)


def exported(panel: Any) -> Path:
    """The folder of the shown study's export."""
    return Path(panel.export.target)


def states(panel: Any) -> list[str]:
    return [row[-1] for row in texts_of(panel.ui.lesionTable)]
