"""The whole flow through the module's own widget, with a real worker process and the starter model."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from panel_driver import texts_of

ROOT = Path(__file__).resolve().parent.parent.parent
CASE = Path(os.environ.get("MTMED3D_DATA", ROOT.parent / "shared" / "data")) / "cases" / "BraTS2021_00003"
PYTHON = os.environ.get("MTMED3D_WORKER_PYTHON", sys.executable)
ANALYSIS_S = 580.0
LONGER = np.array([6.0, 0.0, 0.0])
"""Millimetres by which the reader makes a box longer."""


def worker_runs() -> bool:
    """Whether the interpreter of the worker has torch."""
    if sys.executable == PYTHON:
        return importlib.util.find_spec("torch") is not None
    return subprocess.run([PYTHON, "-c", "import torch, monai"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not worker_runs(), reason=f"{PYTHON} has no torch (see MTMED3D_WORKER_PYTHON)")


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def widget(application: Any, module: Any, scene: Any) -> Iterator[Any]:
    opened = application.open_module(module)
    opened.parent.resize(520, 900)
    opened.parent.show()
    panel = opened.panel
    yield opened
    pid = panel.worker.pid
    application.unload("MTMed3D")
    assert not panel.worker.running
    assert pid is None or not is_alive(pid)
    opened.parent.deleteLater()
    application.processEvents()


@pytest.fixture
def let(let: Any) -> Any:
    """Wait until something is so, for as long as an analysis may take; returns the seconds."""
    return lambda done, limit_s=ANALYSIS_S: let(done, limit_s)


@pytest.fixture
def case(scene: Any) -> dict[str, Any]:
    """A real study in the scene."""
    if not CASE.is_dir():
        pytest.skip(f"no real study: {CASE} does not exist (MTMED3D_DATA)")
    from MTMed3DLib.sample_data import load_volumes

    return load_volumes(scene, {name: CASE / f"{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair")})


def test_from_a_real_study_to_an_exported_case_and_back(
    widget: Any, scene: Any, case: dict[str, Any], let: Any, tmp_path: Path
) -> None:
    panel, ui = widget.panel, widget.panel.ui
    let(lambda: ui.analyzeButton.enabled and ui.deviceCombo.count > 1)
    assert panel.study.nodes == case

    ui.analyzeButton.click()
    let(lambda: "Window" in ui.stageLabel.text)
    let(lambda: not panel.analysis.busy)
    assert panel.analysis.failure is None, str(panel.analysis.failure)
    study = panel.findings.study
    assert study.findings.model.name == "starter"
    boxes = study.boxes()
    assert len(texts_of(ui.lesionTable)) == len(boxes) > 0

    panel.findings.select(boxes[0])
    ui.editButton.click()
    assert [bool(box.GetDisplayNode().GetHandlesInteractive()) for box in boxes] == [
        index == 0 for index in range(len(boxes))
    ]
    size = np.array(boxes[0].GetSize())
    boxes[0].SetSize(*(size + LONGER))
    ui.editButton.click()
    assert study.state(boxes[0]) == "edited"

    labels = study.labels()
    core = np.argwhere(labels == 2)[0]
    labels[tuple(core)] = 4
    panel.review.review.write_labels(labels)
    ui.gradeCombo.setCurrentIndex(2)
    ui.verdictCombo.setCurrentIndex(2)
    ui.difficultyCombo.setCurrentIndex(1)
    ui.commentEdit.setPlainText("One voxel and one box corrected.")
    let(lambda: panel.findings.study.regions_edited)
    ui.exportSection.collapsed = False

    ui.analyzeButton.click()
    let(lambda: not panel.analysis.busy)
    kept = [box for box in study.boxes() if study.state(box) == "edited"]
    assert len(kept) == 1
    np.testing.assert_allclose(kept[0].GetSize(), size + LONGER)
    assert study.labels()[tuple(core)] == 4
    assert ui.gradeCombo.currentIndex == 2

    ui.exportFolder.setCurrentPath(str(tmp_path))
    for check in ("reportCheck", "niftiCheck", "segCheck"):
        getattr(ui, check).checked = True
    ui.exportButton.click()
    let(lambda: not panel.export.busy)
    assert ui.exportLabel.text.startswith("Written"), ui.exportLabel.text

    from MTMed3DCore.reviewed import read_reviewed_case

    read = read_reviewed_case(panel.export.target)
    np.testing.assert_array_equal(read.labels, study.labels())
    assert (read.grade, read.grade_by, read.verdict) == ("LGG", "reader", panel.review.review.verdict)
    assert read.comment == "One voxel and one box corrected."
    assert len(read.boxes) == len(study.boxes())


def test_a_cancel_and_a_killed_worker_are_survived(widget: Any, scene: Any, case: dict[str, Any], let: Any) -> None:
    panel, ui = widget.panel, widget.panel.ui
    let(lambda: ui.analyzeButton.enabled and ui.deviceCombo.count > 1)
    ui.analyzeButton.click()
    let(lambda: "Window" in ui.stageLabel.text)
    ui.analyzeButton.click()
    let(lambda: not panel.analysis.busy)
    assert ui.stageLabel.text.endswith("Cancelled.")

    ui.analyzeButton.click()
    let(lambda: "Window" in ui.stageLabel.text)
    os.kill(panel.worker.pid, 9)
    let(lambda: not panel.analysis.busy)
    assert panel.analysis.failure.code == "worker-died"
    assert "ended unexpectedly" in ui.stageLabel.text

    ui.analyzeButton.click()
    let(lambda: not panel.analysis.busy)
    assert panel.analysis.failure is None, str(panel.analysis.failure)
    assert panel.findings.study.segmentation is not None


def test_the_module_s_own_test_passes_on_its_sample_study(
    widget: Any, scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import MTMed3D
    import slicer

    selected: list[str] = []
    monkeypatch.setattr(slicer.util, "selectModule", selected.append)
    MTMed3D.MTMed3DTest().test_sample_study_from_analysis_to_exported_case()
    assert selected == ["MTMed3D"]
    assert all(node is not None for node in widget.panel.study.nodes.values())


def test_the_sample_study_is_offered_in_the_module_sample_data_too(
    widget: Any, application: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import slicer

    offered: list[dict[str, Any]] = []
    register = lambda **source: offered.append(source)  # noqa: E731
    logic = types.SimpleNamespace(registerCustomSampleDataSource=register)
    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=logic))
    application.moduleManager().startupCompleted.emit()
    (source,) = offered
    # Every list of a source must be as long as the list of its addresses, or Slicer refuses it.
    assert source["uris"] == source["fileNames"] == source["nodeNames"] == []
    assert Path(source["thumbnailFileName"]).is_file()
    monkeypatch.setattr(slicer.util, "selectModule", lambda _name: None)
    begun: list[bool] = []
    monkeypatch.setattr(widget.panel, "load_sample", lambda: begun.append(True))
    source["customDownloader"](None)
    assert begun == [True]


def test_unloading_the_module_during_a_run_leaves_no_process(
    widget: Any, application: Any, case: dict[str, Any], let: Any
) -> None:
    panel = widget.panel
    let(lambda: panel.ui.analyzeButton.enabled)
    panel.ui.analyzeButton.click()
    let(lambda: panel.analysis.text.startswith(("Reading", "Preparing", "Analysing")))
    pid = panel.worker.pid
    application.unload("MTMed3D")
    let(lambda: not is_alive(pid), 5.0)
    assert widget.panel is None
