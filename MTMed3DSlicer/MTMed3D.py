"""MTMed3D in 3D Slicer: brain tumour boxes, regions and grade from four MR sequences. For research use only.

Wiring only: what the module does is in MTMed3DLib, what it computes is in MTMed3DCore.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)


class MTMed3D(ScriptedLoadableModule):
    """What the application knows of the module."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("MTMed3D")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = []
        parent.contributors = ["The MTMed3D contributors"]
        parent.helpText = _(
            "Finds brain tumours in four MR sequences (T1, T1ce, T2, FLAIR): boxes, regions and an imaging-based "
            "grade. Review, correct and export them. <b>For research use only</b>, not for diagnosis or treatment."
        )
        parent.acknowledgementText = _(
            "The network follows the multi-task method of the MTMed3D paper; see the README."
        )
        slicer.app.connect("startupCompleted()", register_sample_study)


def register_sample_study() -> None:
    """Offer the synthetic study in the module *Sample Data* too."""
    try:
        import SampleData
    except ImportError:  # an application without that module
        return
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="MTMed3D",
        sampleName="Synthetic brain tumour study",
        uris=[],  # nothing is downloaded
        fileNames=[],
        nodeNames=[],
        thumbnailFileName=str(Path(__file__).resolve().parent / "Resources" / "Icons" / "MTMed3D.png"),
        customDownloader=load_sample_study,
    )


def load_sample_study(_source: Any = None) -> None:
    """Open the panel and let it make, load and analyse the synthetic study."""
    slicer.util.selectModule("MTMed3D")
    slicer.modules.mtmed3d.widgetRepresentation().self().panel.load_sample()


class MTMed3DWidget(ScriptedLoadableModuleWidget):
    """The panel's place in the application."""

    def __init__(self, parent: Any = None) -> None:
        self.panel: Any = None
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self) -> None:
        """Build the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        from MTMed3DLib import packages
        from MTMed3DLib.sample_data import SampleStudy

        folder = packages.core_folder(slicer.util.modulePath(self.moduleName))
        packages.make_core_importable(folder)
        environment = packages.worker_environment(folder)

        from MTMed3DLib.panel import Panel
        from MTMed3DLib.worker_client import WorkerClient, worker_command

        content = slicer.util.loadUI(self.resourcePath("UI/MTMed3D.ui"))
        self.layout.addWidget(content)
        content.setMRMLScene(slicer.mrmlScene)
        self.panel = Panel(
            slicer.util.childWidgetVariables(content),
            slicer.mrmlScene,
            WorkerClient(environment=environment),
            packages_missing=packages.missing,
            ensure_packages=lambda: packages.ensure(self.resourcePath("requirements.txt")),
            make_sample=lambda: SampleStudy(worker_command()[:1], environment),
            ensure_dicom=lambda: packages.ensure_dicom(self.resourcePath("requirements-dicom.txt")),
        )
        slicer.app.connect("aboutToQuit()", self.cleanup)

    def enter(self) -> None:
        """The module is looked at."""
        if self.panel is not None:
            self.panel.enter()

    def exit(self) -> None:
        """Another module is looked at."""
        if self.panel is not None:
            self.panel.leave()

    def cleanup(self) -> None:
        """The module is unloaded or reloaded."""
        if self.panel is not None:
            self.panel.close()
            self.panel = None

    def onReload(self) -> None:
        """Reload the pieces too, not only this file."""
        for name in [name for name in sys.modules if name.partition(".")[0] == "MTMed3DLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class MTMed3DTest(ScriptedLoadableModuleTest):
    """The whole flow on a synthetic study, for people with 3D Slicer."""

    TIMEOUT_S = 600

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Run every test."""
        self.setUp()
        self.test_sample_study_from_analysis_to_exported_case()

    def test_sample_study_from_analysis_to_exported_case(self) -> None:
        """Load the sample, analyse, correct, export, and read the case back."""
        import tempfile

        from MTMed3DLib.packages import missing

        if missing():
            self.delayDisplay(f"Skipped: Python packages are missing ({', '.join(missing())}); click Analyze once.")
            return
        slicer.util.selectModule("MTMed3D")
        panel = slicer.modules.mtmed3d.widgetRepresentation().self().panel
        ui = panel.ui
        ui.sampleButton.click()
        self.wait_until(lambda: panel.findings.study is not None or panel.analysis.failure is not None)
        assert panel.analysis.failure is None, str(panel.analysis.failure)
        self.delayDisplay("Analysed")
        boxes = panel.findings.study.boxes()
        assert boxes, "no box was found in the sample study"
        panel.findings.select(boxes[0])
        ui.editButton.click()
        size = list(boxes[0].GetSize())
        boxes[0].SetSize(size[0] + 4, size[1], size[2])
        ui.editButton.click()
        assert panel.findings.study.state(boxes[0]) == "edited"
        ui.gradeCombo.setCurrentIndex(2)
        ui.verdictCombo.setCurrentIndex(1)
        with tempfile.TemporaryDirectory() as folder:
            ui.exportFolder.setCurrentPath(folder)
            ui.exportButton.click()
            self.wait_until(lambda: not panel.export.busy)
            case = panel.export.target
            assert case is not None
            assert (Path(case) / "case.json").is_file(), ui.exportLabel.text
            from MTMed3DCore.reviewed import read_reviewed_case

            assert read_reviewed_case(case).grade == "LGG"
        self.delayDisplay("Test passed")

    def wait_until(self, done: Any) -> None:
        """Let the application work until something is so."""
        import time

        end = time.monotonic() + self.TIMEOUT_S
        while not done():
            assert time.monotonic() < end, f"nothing after {self.TIMEOUT_S} s"
            slicer.app.processEvents()
            time.sleep(0.02)
