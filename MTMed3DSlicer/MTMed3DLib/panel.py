"""The panel as a whole: sections, the timer that asks the worker, and what the scene does meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import qt
import slicer
from slicer.util import VTKObservationMixin

from MTMed3DLib.analysis import Analysis, State
from MTMed3DLib.inputs import take_inputs
from MTMed3DLib.packages import PackagesMissing
from MTMed3DLib.panel_export import ExportSection
from MTMed3DLib.panel_findings import FindingsSection
from MTMed3DLib.panel_prepare import PrepareSection
from MTMed3DLib.panel_review import ReviewSection
from MTMed3DLib.panel_run import RunSection
from MTMed3DLib.panel_study import StudySection
from MTMed3DLib.sample_data import load_volumes
from MTMed3DLib.scene import StudyScene

TICK_MS, BUSY_TICK_MS = 100, 25
"""How often worker and threads are asked; more often while one works, since threads get their time there."""
RECHECK_S = 0.5
"""How often the choice is checked again, for changes that no event tells of, such as a moved transform."""
LIBRARIES = ("jsonschema", "scipy.ndimage", "scipy.spatial", "nibabel", "matplotlib", "MTMed3DCore.exports.review")
STUDY_WAITS = "The scene holds an analysed study; to show it here, Python packages are missing"
QUIET_S = 0.6
"""How long the scene must have been quiet before regions are measured again."""


class Panel(VTKObservationMixin):
    """Everything between the widgets and the logic.

    Args:
        ui: children of the panel by name.
        scene: vtkMRMLScene.
        worker: see `analysis.Worker`.
        packages_missing: names Python packages that are not there.
        ensure_packages: installs them; raises `PackagesMissing`.
        make_sample: starts to make a sample study; see `sample_data.SampleStudy`.
        ensure_dicom: installs what writing DICOM needs; raises `PackagesMissing`.
    """

    def __init__(
        self,
        ui: Any,
        scene: Any,
        worker: Any,
        packages_missing: Callable[[], list[str]],
        ensure_packages: Callable[[], None],
        make_sample: Callable[[], Any],
        ensure_dicom: Callable[[], None] = lambda: None,
    ) -> None:
        VTKObservationMixin.__init__(self)
        self.ui, self.scene, self.worker = ui, scene, worker
        self._packages_missing, self._ensure_packages, self._make_sample = (
            packages_missing,
            ensure_packages,
            make_sample,
        )
        self._sample: Any = None
        self._entered = self._closed = False
        self._unloaded = list(LIBRARIES)
        self._message = ""
        self._changed_at: float | None = None
        self._checked_at = 0.0
        self._want_fill = self._want_find = self._study_waits = False
        self.analysis = Analysis(scene, worker, take_inputs, StudyScene)
        self.findings = FindingsSection(ui, scene)
        self.review = ReviewSection(ui, scene, self.findings, self.say)
        self.study = StudySection(ui, scene, self._on_study)
        self.prepare = PrepareSection(ui, scene, self.refresh)
        self.run = RunSection(ui, self.press, lambda: worker.log)
        self.export = ExportSection(
            ui, scene, lambda: self.review.review, self.show, self._on_change, self._packages_ready, ensure_dicom
        )
        ui.sampleButton.connect("clicked()", self.load_sample)
        for event, callback in (
            (scene.NodeAddedEvent, self._on_node_added),
            (scene.NodeRemovedEvent, self._on_node_removed),
            (scene.StartCloseEvent, self._on_start_close),
            (scene.EndCloseEvent, self._on_end_close),
            (scene.EndImportEvent, self._on_end_import),
        ):
            self.addObserver(scene, event, callback)
        self._timer = qt.QTimer()
        self._timer.setInterval(TICK_MS)
        self._timer.connect("timeout()", self.tick)
        self.refresh()

    # What the application does

    def enter(self) -> None:
        """The panel is looked at."""
        self._entered = self._want_fill = True
        if self.findings.study is None:
            self._want_find = True
        if not self._packages_missing():
            self.analysis.ask("models")
            self.analysis.ask("devices")
        self._timer.start()
        self.tick()

    def leave(self) -> None:
        """Another module is looked at; a run goes on."""
        self._entered = False
        self.review.leave()

    def close(self) -> None:
        """The module is unloaded: no timer, no observer and no process stays."""
        if self._closed:
            return
        self._closed = True
        self._timer.stop()
        self.removeObservers()
        if self._sample is not None:
            self._sample.close()
            self._sample = None
        self.export.close()
        self.analysis.close()

    # What the reader does

    def press(self) -> None:
        """The button: analyse, or cancel what runs."""
        if self._sample is not None:
            self._sample.close()
            self._sample = None
            self.say("Cancelled.")
        elif self.analysis.busy:
            self.analysis.cancel()
        else:
            self.analyze()
        self.refresh()

    def analyze(self) -> None:
        """Start to analyse the chosen study."""
        self._message = ""
        if self._reasons() or not self._packages_ready():
            self.refresh()
            return
        with slicer.util.WaitCursor():  # copies the volumes; they are written on another thread
            prepare = self.prepare
            self.analysis.start(self.study.nodes, self.study.model, self.study.device, prepare.mask, prepare.prior)
        self._timer.start()
        self.refresh()

    def load_sample(self) -> None:
        """Make a synthetic study, load it and analyse it."""
        if self.analysis.busy or self._sample is not None or not self._packages_ready():
            self.refresh()
            return
        try:
            self._sample = self._make_sample()
        except OSError as error:
            self.say(f"The sample study could not be made: {error}")
        self._timer.start()
        self.refresh()

    def say(self, text: str) -> None:
        """Show a sentence under the button until the next run."""
        self._message = text
        self.refresh()

    def show(self, study: StudyScene | None) -> None:
        """Show a study of the scene in the lower sections, and its volumes in the upper one."""
        if study is not None:
            volumes = {name: node for name, node in study.volumes().items() if node is not None}
            self.study.choose(volumes)
        self._show_findings(study)

    # From the timer

    def tick(self) -> None:
        """What is due: events of the worker, a sample that is ready, changes in the scene."""
        if self._closed:
            return
        before = self.analysis.study
        self._take_sample()
        self.export.poll()
        changed = self.analysis.poll()
        self._load_a_library()
        if changed:
            self.study.offer_models(self.analysis.models)
            self.study.offer_devices(self.analysis.devices)
        if self.analysis.study is not before or (changed and self.analysis.fraction == 1.0):
            self._on_result()
        self._serve_scene()
        now = time.monotonic()
        if changed or now - self._checked_at > RECHECK_S:
            self._checked_at = now
            self.refresh()
        self.run.refresh_log()
        waiting = self.analysis.busy or self.export.busy or self._sample is not None
        self._timer.setInterval(BUSY_TICK_MS if waiting else TICK_MS)
        if not (self._entered or waiting):
            self._timer.stop()

    def _load_a_library(self) -> None:
        """Load one of those that the first result, review or export would wait for, while the worker is busy anyway."""
        if self._unloaded and self.analysis.waits_for_worker:
            with suppress(ImportError):  # whoever needs it says so
                import_module(self._unloaded.pop(0))

    def refresh(self) -> None:
        """Let the button and the words under it say what is going on."""
        if self._closed:
            return
        analysis, making = self.analysis, self._sample is not None
        self.study.enable(not (analysis.busy or making))
        self.prepare.enable(not (analysis.busy or making))
        if making:
            self.run.show_running("Making a sample study", None)
        elif analysis.state is State.CANCELLING:
            self.run.show_cancelling()
        elif analysis.busy:
            self.run.show_running(" ".join([*analysis.notices, analysis.text]), analysis.fraction, analysis.elapsed_s)
        else:
            self.run.show_ready(self._reasons(), self._last_words())
        self.export.refresh()

    def _reasons(self) -> list[str]:
        """Every reason why the choice cannot be analysed."""
        return [*self.study.reasons(), *self.prepare.reasons()]

    def _last_words(self) -> str:
        analysis = self.analysis
        if self._message:
            return self._message
        return "\n".join([*analysis.notices, *([str(analysis.failure)] if analysis.failure is not None else [])])

    def _packages_ready(self) -> bool:
        try:
            self._ensure_packages()
        except PackagesMissing as error:
            self.say(str(error))
            return False
        if self._study_waits:
            self._study_waits, self._want_find = False, True
        return True

    def _take_sample(self) -> None:
        sample = self._sample
        if sample is None or not sample.finished:
            return
        self._sample = None
        try:
            nodes = load_volumes(self.scene, sample.files())
        except RuntimeError as error:
            self.say(str(error))
            return
        finally:
            sample.close()
        self.study.choose(nodes)
        show_in_views(nodes["t1ce"])
        self.analyze()

    def _on_result(self) -> None:
        self._show_findings(self.analysis.study)
        boxes = [] if self.analysis.study is None else self.analysis.study.boxes()
        if boxes:
            self.findings.select(boxes[0])
            self.findings.centre_on(boxes[0])

    # What happens in the scene

    def _show_findings(self, study: StudyScene | None) -> None:
        if study is not None and (missing := self._packages_missing()):
            self._message = f"{STUDY_WAITS} ({', '.join(missing)}); click Analyze to install them."
            study, self._study_waits = None, True
        self.findings.show(study)
        self.review.show(study)
        self.prepare.show(study)
        self._watch(study)
        self._changed_at = None
        self.refresh()

    def _watch(self, study: StudyScene | None) -> None:
        """Observe the nodes that a reader may edit, and no others."""
        self.removeObservers(self._on_edit)
        if study is None:
            return
        if study.segmentation is not None:
            self.addObserver(study.segmentation, slicer.vtkSegmentation.SourceRepresentationModified, self._on_edit)
        for roi in study.boxes():
            self.addObserver(roi, slicer.vtkMRMLMarkupsNode.PointModifiedEvent, self._on_edit)

    def _on_change(self) -> None:
        self.findings.refresh()
        self.refresh()

    def _on_edit(self, *_: Any) -> None:
        self._changed_at = time.monotonic()

    def _on_node_added(self, *_: Any) -> None:
        self._want_fill = True

    def _on_node_removed(self, *_: Any) -> None:
        if self.findings.study is not None and not self.scene.IsClosing():
            self._changed_at = time.monotonic()

    def _on_start_close(self, *_: Any) -> None:
        self.analysis.forget_scene()
        self.export.forget_scene()
        self._show_findings(None)
        self._message = ""

    def _on_end_close(self, *_: Any) -> None:
        self._want_find = self._want_fill = False
        self._show_findings(None)

    def _on_end_import(self, *_: Any) -> None:
        self._want_find = True

    def _on_study(self) -> None:
        """Another volume was chosen: show what was found in it before."""
        if self.scene.IsClosing():
            return  # the selectors empty themselves one by one, while the results are still there
        t1ce = self.study.nodes["t1ce"]
        self.prepare.follow(t1ce)
        shown = self.findings.study
        if t1ce is not None and (shown is None or shown.t1ce is not t1ce) and not self.analysis.busy:
            known = [study for study in StudyScene.find(self.scene) if study.t1ce is t1ce]
            if known or (shown is not None and shown.t1ce is not None):
                self._show_findings(known[0] if known else None)
        self.refresh()

    def _serve_scene(self) -> None:
        """Follow the scene once it is quiet, and not in the middle of a batch of events."""
        if self.scene.IsClosing() or self.scene.IsBatchProcessing():
            return
        if self._want_find:
            self._want_find = False
            self.study.restore()
            self.prepare.restore()
            known = StudyScene.find(self.scene)
            if known and self.findings.study is None:
                self.show(known[-1])
        if self._want_fill and not self.analysis.busy:
            self._want_fill = False
            self.study.fill_empty()
        if self._changed_at is not None and time.monotonic() - self._changed_at > QUIET_S:
            self._changed_at = None
            study = self.findings.study
            if study is not None and (study.segmentation is None or study.grade_text is None):
                study = None  # the reader deleted the result
            if study is not self.findings.study or self._nodes_changed():
                self._show_findings(study)
            else:
                self.findings.refresh()

    def _nodes_changed(self) -> bool:
        study = self.findings.study
        return study is not None and self.findings.shown_ids != [roi.GetID() for roi in study.boxes()]


def show_in_views(volume: Any) -> None:
    """Put a volume into the background of every slice view."""
    logic = slicer.app.applicationLogic()
    selection = logic.GetSelectionNode()
    if selection is not None:
        selection.SetActiveVolumeID(volume.GetID())
        logic.PropagateVolumeSelection()
