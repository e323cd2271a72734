"""How long the panel keeps the application waiting, and what stays behind after many runs, on a study from files.

    python Testing/slicer/measure_panel.py CASE_FOLDER [--runs 20] [--model starter]

Drives the module's own widget with a real worker process, on the stand-in for Slicer's widget layer. For every action
it prints how long it took in all, and for how long the application could not draw or take another click: in the click
itself, and in the longest round of events after it. These two are CPU time, so that other programs do not count.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "MTMed3DSlicer"), str(HERE.parent.parent)]
SEQUENCES = ("t1", "t1ce", "t2", "flair")
BOXES = 50


class Measurement:
    """The panel on one study.

    Args:
        case: folder with a file of each sequence.
        model: name of a bundle, as the panel lists it.
    """

    def __init__(self, case: Path, model: str) -> None:
        import standin

        self.application = standin.install()
        import MTMed3D

        from MTMed3DLib.sample_data import load_volumes

        module = self.application.register(MTMed3D.MTMed3D, HERE.parent.parent / "MTMed3DSlicer" / "MTMed3D.py")
        self.panel = self.application.open_module(module).panel
        self.ui = self.panel.ui
        load_volumes(self.application.scene, {name: next(case.glob(f"{name}.*")) for name in SEQUENCES})
        self.until(lambda: self.ui.analyzeButton.enabled and self.ui.deviceCombo.count > 1)
        texts = [self.ui.modelCombo.itemText(index) for index in range(self.ui.modelCombo.count)]
        self.ui.modelCombo.setCurrentIndex(next(n for n, text in enumerate(texts) if text.split()[0] == model))

    def until(self, done: Callable[[], bool]) -> tuple[float, float]:
        """Let the application work; seconds in all, and seconds of CPU time of the longest round of events."""
        began, longest = time.perf_counter(), 0.0
        while not done():
            start = time.thread_time()
            self.application.processEvents()
            longest = max(longest, time.thread_time() - start)
            time.sleep(0.002)
        return time.perf_counter() - began, longest

    def act(self, name: str, action: Callable[[], Any], done: Callable[[], bool] = lambda: True) -> float:
        """Measure a click and what follows; returns the seconds in all."""
        began, cpu = time.perf_counter(), time.thread_time()
        action()
        clicked, busy = time.perf_counter() - began, time.thread_time() - cpu
        waited, longest = self.until(done)
        print(f"{name:32} {clicked + waited:7.2f} s   click {busy:6.3f} s   longest after {longest:6.3f} s", flush=True)
        return clicked + waited

    def analyse(self, name: str) -> None:
        """One run of the analysis, with nodes and memory after it."""
        self.act(name, self.ui.analyzeButton.click, lambda: not self.panel.analysis.busy)
        if self.panel.analysis.failure is not None:
            raise SystemExit(str(self.panel.analysis.failure))
        nodes = self.application.scene.GetNumberOfNodes()
        memory = [resident_mib(os.getpid()), resident_mib(self.panel.worker.pid)]
        print(f"    nodes {nodes}, MiB resident: application {memory[0]:.0f}, worker {memory[1]:.0f}", flush=True)

    def cancel(self) -> None:
        """A cancel in the middle of the network's work."""
        self.ui.analyzeButton.click()
        self.until(lambda: "Window" in self.ui.stageLabel.text)
        self.act("cancel", self.ui.analyzeButton.click, lambda: not self.panel.analysis.busy)
        print(f"    worker still there: {self.panel.worker.running}")

    def review(self) -> None:
        """A reader's corrections, each as a click."""
        panel, ui = self.panel, self.ui
        boxes = panel.findings.study.boxes()
        if boxes:
            panel.findings.select(boxes[0])
            self.act("keep a box", ui.keepButton.click)
            self.act("fit box to region", ui.fitBoxButton.click)
            self.act("region from box", ui.regionFromBoxButton.click)
            self.act("reject a box", ui.rejectButton.click)
            self.act("keep it again", ui.keepButton.click)
        labels = panel.findings.study.labels()
        labels[:4, :4, :4] = 4
        panel.review.review.write_labels(labels)
        self.act("measure edited regions again", lambda: None, lambda: panel._changed_at is None)
        self.act("show in 3D", ui.show3DButton.click)

    def export(self) -> None:
        """Every format, and the case back into the scene."""
        ui, export = self.ui, self.panel.export
        with tempfile.TemporaryDirectory() as folder:
            ui.exportFolder.setCurrentPath(folder)
            for check in ("trainingCheck", "segCheck", "niftiCheck", "markupsCheck", "csvCheck", "reportCheck"):
                getattr(ui, check).checked = True
            self.act("export, every format", ui.exportButton.click, lambda: not export.busy)
            print(f"    {ui.exportLabel.text}")
            target = export.target
            self._compare(target)
            self.act("open the case again", lambda: export.open(target), lambda: not export.busy)
            print(f"    {ui.exportLabel.text}")

    def _compare(self, folder: Path) -> None:
        """The exported case, read by the core, against the scene."""
        import numpy as np

        from MTMed3DCore.reviewed import read_reviewed_case

        case, study = read_reviewed_case(folder), self.panel.findings.study
        same = bool((case.labels == study.labels()).all())
        pairs = list(zip(case.boxes, study.boxes(), strict=True))
        apart = max((float(np.abs(a.box.corners() - study.box(b).corners()).max()) for a, b in pairs), default=0.0)
        states = [a.state for a, _ in pairs] == [study.state(b) for _, b in pairs]
        print(f"    read back: labels equal {same}, states equal {states}, box corners {apart:.1e} mm apart")

    def slide(self) -> None:
        """The confidence slider over many boxes."""
        study = self.panel.findings.study
        from MTMed3DCore.geometry import VoxelBox

        for number in range(len(study.boxes()), BOXES):
            box = VoxelBox((number, number, 10), (number + 20, number + 20, 30)).to_world(study.grid)
            study.add_box(box, number + 1, 0.01 + number / BOXES / 1.1, "proposed")
        self.panel.show(study)
        times = []
        for value in (0.3, 0.6, 0.9, 0.5, 0.2, 0.05):
            began = time.perf_counter()
            self.ui.confidenceSlider.value = value
            self.application.processEvents()
            times.append(time.perf_counter() - began)
        print(f"slider over {len(study.boxes())} boxes: {', '.join(f'{1000 * t:.0f}' for t in times)} ms")

    def close(self) -> None:
        """End the worker."""
        self.application.unload("MTMed3D")


def resident_mib(pid: int) -> float:
    """Resident memory of a process (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=Path, help="folder with t1, t1ce, t2 and flair")
    parser.add_argument("--runs", type=int, default=2, help="analyses in a row")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--runs-only", action="store_true", help="no review, export and slider")
    given = parser.parse_args()
    measurement = Measurement(given.case, given.model)
    try:
        for number in range(1, given.runs + 1):
            measurement.analyse(f"analysis {number}")
        measurement.cancel()
        measurement.analyse("analysis after the cancel")
        if given.runs_only:
            return
        measurement.review()
        measurement.export()
        measurement.slide()
    finally:
        measurement.close()


if __name__ == "__main__":
    main()
