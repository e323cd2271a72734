"""The third entrance: the panel of the extension, on a scene of 3D Slicer's own libraries.

A case's files are read by 3D Slicer's reader, as a person's drop onto the window does, and the panel's own classes take
it from there: inputs, analysis, client, worker process, and the result's nodes. A process of its own reads each file
first, because nothing that a reader of somebody else's does with a bad file may end the table.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from Testing.corpus.case import SEQUENCES, Given
from Testing.corpus.runner import PATIENCE_S, ROOT, Got, analysed

sys.path[:0] = [str(ROOT / "Testing" / "slicer"), str(ROOT / "MTMed3DSlicer")]
READER = "reader"
"""Code of a refusal by 3D Slicer's reader, which is before the panel."""
_READER_S, _READER_BYTES = 20, 4 << 30
_NOT_HERE = {"precision": "has no field for it"}


def missing() -> str:
    """Why the panel cannot be driven here; empty where it can."""
    from surroundings import missing_piece

    return str(missing_piece())


class Panel:
    """One scene and one worker process for any number of cases."""

    def __init__(self, model: Path) -> None:
        import standin

        from MTMed3DLib.analysis import Analysis
        from MTMed3DLib.inputs import take_inputs
        from MTMed3DLib.scene import StudyScene
        from MTMed3DLib.worker_client import WorkerClient

        self.model = model
        self.scene = standin.install().scene
        self._results: list[Path] = []
        worker = WorkerClient([sys.executable, "-m", "MTMed3DCore.worker"], {"PYTHONPATH": str(ROOT)})
        self._got: Got | None = None

        def study_scene(scene: Any, name: str) -> Any:
            made = StudyScene(scene, name)
            show = made.show

            def shown(folder: Path, *rest: Any) -> Any:
                kept = show(folder, *rest)
                self._got = analysed(folder)  # while the files are there
                return kept

            made.show = shown
            return made

        self._analysis = Analysis(self.scene, worker, take_inputs, study_scene)

    def __call__(self, given: Given) -> Got | str:
        """Analyse a case, or say why it cannot come this way."""
        if given.place is not None:
            return "takes volumes of the scene"
        for name, reason in _NOT_HERE.items():
            if name in given.options:
                return reason
        self.scene.Clear(0)
        nodes = {}
        for name in SEQUENCES:
            refused = _read_elsewhere(given.files[name])
            if refused:
                return Got("refused", (READER,), refused, "3D Slicer shows its own message.")
            nodes[name] = _volume(self.scene, name, given.files[name])
        mask = (
            _volume(self.scene, "mask", Path(given.options["mask"]), labels=True) if "mask" in given.options else None
        )
        return self._analyse(nodes, given, mask)

    def _analyse(self, nodes: dict[str, Any], given: Given, mask: Any) -> Got:
        analysis, self._got = self._analysis, None
        model, device = given.options.get("model", str(self.model)), given.options.get("device", "cpu")
        prior = Path(given.options["prior"]) if "prior" in given.options else None
        analysis.start(nodes, model=model, device=device, mask=mask, prior=prior)
        end = time.monotonic() + PATIENCE_S
        while analysis.busy:
            if time.monotonic() > end:
                analysis.close()
                return Got("crashed", ("no-answer",), analysis.worker.log)
            analysis.poll()
            time.sleep(0.01)
        failure = analysis.failure
        if failure is None:
            assert self._got is not None
            return self._got
        kind = "crashed" if failure.code in ("internal-error", "worker-died", "result-unreadable") else "refused"
        return Got(kind, (failure.code,), failure.text, failure.remedy)

    def close(self) -> None:
        """End the worker."""
        self._analysis.close()


def _volume(scene: Any, name: str, file: Path, *, labels: bool = False) -> Any:
    """A file as a node of the scene; None where the reader does not take it."""
    import slicer

    kind = "vtkMRMLLabelMapVolumeNode" if labels else "vtkMRMLScalarVolumeNode"
    node = scene.AddNewNodeByClass(kind, name)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(file))
    return node if storage.ReadData(node) else None


def _read_elsewhere(file: Path) -> str:
    """What becomes of a file in 3D Slicer's reader; empty where it is read."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            import slicer

            signal.alarm(_READER_S)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + _READER_BYTES,) * 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            code = int(_volume(slicer.vtkMRMLScene(), "volume", file) is None)
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 0:
        return ""
    if status == -signal.SIGALRM:
        return f"3D Slicer's reader waits for {file} without end."
    return f"3D Slicer's reader {'refuses' if status > 0 else 'ends the process on'} {file}."
