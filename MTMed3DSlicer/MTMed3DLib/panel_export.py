"""The panel's section *Export*: what the reader leaves, as files, and such files back into the scene."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ctk
import qt
import slicer

from MTMed3DLib.attributes import PROPOSED
from MTMed3DLib.background import Stopped, Task
from MTMed3DLib.dicom_series import files_of, open_database, reason_against
from MTMed3DLib.export import reviewed_case, show_reviewed, write_case
from MTMed3DLib.naming import rename
from MTMed3DLib.packages import PackagesMissing

if TYPE_CHECKING:
    from MTMed3DLib.scene import StudyScene

DICOM = "dicom"
FILED = "Segmentation, measurements and report, filed with the patient's study"
PERSONAL = f"{FILED}: they hold the patient's name"
NAMELESS = f"{FILED}, but with the case name in place of the patient and with new identifiers"
FORMATS = {
    "training_case": "trainingCheck",
    "seg_nrrd": "segCheck",
    "nifti": "niftiCheck",
    "markups": "markupsCheck",
    "csv": "csvCheck",
    "report": "reportCheck",
    DICOM: "dicomCheck",
}
"""Check box of each format of `MTMed3DCore.exports.review`."""


class ExportSection:
    """Widgets of the section. Files are written and read on another thread; see `poll`.

    Args:
        ui: children of the panel by name.
        scene: vtkMRMLScene.
        review: gives the `Review` that is shown, or None.
        opened: told of the study that was brought back.
        changed: told that the study was renamed or corrected here.
        ready: whether the Python packages are there; says what is missing, or installs it, where they are not.
        ensure_dicom: installs what writing DICOM needs; raises `PackagesMissing`.
        ask: asks a yes-or-no question.
    """

    def __init__(
        self,
        ui: Any,
        scene: Any,
        review: Callable[[], Any],
        opened: Callable[[Any], None],
        changed: Callable[[], None],
        ready: Callable[[], bool],
        ensure_dicom: Callable[[], None],
        ask: Callable[[str], bool] | None = None,
    ) -> None:
        self.ui, self.scene, self._review, self._opened, self._changed = ui, scene, review, opened, changed
        self._ready, self._ask = ready, ask or slicer.util.confirmYesNoDisplay
        self._ensure_dicom = ensure_dicom
        self._task: Task | None = None
        self._steps: Generator[StudyScene] | None = None
        self._shown: StudyScene | None = None
        self._path, self._writing, self._named = Path(), False, ""
        ui.exportFolder.filters = ctk.ctkPathLineEdit.Dirs
        ui.exportFolder.connect("currentPathChanged(QString)", self.refresh)
        for name in FORMATS.values():
            getattr(ui, name).connect("toggled(bool)", self.refresh)
        ui.deidentifyCheck.connect("toggled(bool)", self.refresh)
        ui.caseNameEdit.connect("editingFinished()", self.rename)
        ui.exportButton.connect("clicked()", self._on_export)
        ui.openButton.connect("clicked()", self._on_open)
        self.refresh()

    @property
    def formats(self) -> list[str]:
        """The chosen formats."""
        checks = {name: getattr(self.ui, check) for name, check in FORMATS.items()}
        return [name for name, check in checks.items() if check.checked and check.enabled]

    @property
    def target(self) -> Path | None:
        """The folder that an export would write, or None while none is chosen."""
        chosen, review = self.ui.exportFolder.currentPath.strip(), self._review()
        return Path(chosen) / folder_name(review.study.study_id) if chosen and review is not None else None

    @property
    def busy(self) -> bool:
        """Whether a case is being written or read."""
        return self._task is not None or self._steps is not None

    def refresh(self, *_: Any) -> None:
        """Let the buttons say what is going on, or what is still missing."""
        review = self._review()
        name = "" if review is None else review.study.study_id
        if name != self._named:
            self._named = self.ui.caseNameEdit.text = name
        self.ui.caseNameEdit.enabled = review is not None and not self.busy
        self.ui.openButton.enabled = not self.busy
        self.ui.exportBar.setVisible(self.busy)
        self.ui.exportButton.text = "Cancel" if self.busy else "Export"
        first = "Analyse a study first."
        against = first if review is None else reason_against(review.study.volumes(), open_database())
        self.ui.dicomCheck.enabled = not against
        self.ui.dicomCheck.toolTip = against or (NAMELESS if self.ui.deidentifyCheck.checked else PERSONAL)
        self.ui.observerEdit.enabled = DICOM in self.formats
        missing = []
        if review is None:
            missing.append(first)
        if not self.ui.exportFolder.currentPath.strip():
            missing.append("Choose a folder.")
        if not self.formats:
            missing.append("Choose what to write.")
        self.ui.exportButton.enabled = self.busy or not missing
        stop = "Stop; nothing of it is kept"
        self.ui.exportButton.toolTip = stop if self.busy else "\n".join(missing) or f"Write {self.target}"

    def say(self, text: str) -> None:
        """Show how an export ended."""
        self.ui.exportLabel.text = text

    def rename(self) -> bool:
        """Take over the case name that was typed; returns whether it could be."""
        review = self._review()
        if review is None or self.ui.caseNameEdit.text == self._named:
            return True
        try:
            rename(review.study, self.ui.caseNameEdit.text)
        except ValueError as error:
            self.ui.caseNameEdit.text = self._named
            self.say(str(error))
            return False
        self._named = ""
        self.refresh()
        self._changed()
        return True

    def export(self) -> bool:
        """Begin to write the study as it is now; asks before it replaces an earlier export. Returns whether it began.

        The reader may go on meanwhile: what is written was copied here.
        """
        if self.busy or not self.rename():
            return False
        review, target = self._review(), self.target
        if review is None or target is None:
            return False
        if DICOM in self.formats:
            try:
                self._ensure_dicom()
            except PackagesMissing as error:
                self.say(str(error))
                return False
        self._settle_hidden(review)
        self._settle_rejected(review)
        full = target.is_dir() and any(target.iterdir())
        if full and not self._ask(f"{target} holds an earlier export. Replace it?"):
            self.say("Nothing was written.")
            return False
        try:
            with slicer.util.WaitCursor():
                case = reviewed_case(review)
        except Exception as error:  # a missing volume, no memory: say which
            self.say(f"Nothing was written: {error}")
            return False
        formats, self._path, self._writing = self.formats, target, True
        options: dict[str, Any] = {"overwrite": full, "deidentify": self.ui.deidentifyCheck.checked}
        if DICOM in formats:
            # The database answers on this thread alone; the files are read on the other.
            volumes, database = review.study.volumes(), open_database()
            options["series"] = {name: files_of(node, database) for name, node in volumes.items()}
            options["observer"] = self.ui.observerEdit.text.strip()
        self._task = Task(lambda report: write_case(case, target, formats, report, **options))
        self.refresh()
        return True

    def open(self, folder: Path) -> bool:
        """Begin to bring an exported case back into the scene; returns whether it began."""
        if self.busy or not self._ready():
            return False
        from MTMed3DCore.reviewed import read_reviewed_case

        self._path, self._writing = folder, False
        self._task = Task(lambda report: read_reviewed_case(folder, report))
        self.refresh()
        return True

    def poll(self) -> None:
        """Take what the other thread has done; called from a timer."""
        if self._steps is not None:
            self._show_step(self._steps)
        elif self._task is not None:
            self._task.give_way()
            if self._task.finished:
                task, self._task = self._task, None
                self._end(task)
            else:
                self.ui.exportBar.setValue(round(100 * self._task.fraction))
                self.say("Cancelling" if self._task.cancelled else self._task.text)
        else:
            return
        if not self.busy:
            self.refresh()

    def cancel(self) -> None:
        """Stop what is being written or read."""
        if self._task is not None:
            self._task.cancel()
        elif self._steps is not None:
            self._drop_steps()
            self.say("Cancelled.")
            self.refresh()

    def forget_scene(self) -> None:
        """The scene was closed: nothing is brought into it any more; an export goes on, since it has copies."""
        self._drop_steps()

    def close(self, patience_s: float = 1.0) -> None:
        """The panel is unloaded: nothing goes on."""
        self._drop_steps()
        if self._task is not None:
            self._task.cancel()
            self._task.wait(patience_s)
            self._task = None

    def _drop_steps(self) -> None:
        if self._steps is not None:
            self._steps.close()  # takes out of the scene what it has brought so far
            self._steps = None

    def _end(self, task: Task) -> None:
        """Say how the task ended; a case that was read goes into the scene from now on, step by step."""
        try:
            result = task.result()
        except Stopped:
            self.say("Cancelled; nothing was written." if self._writing else "Cancelled.")
        except Exception as error:  # a disk, a reader's own file in the folder, a damaged case: say which
            self.say(f"Nothing was written: {error}" if self._writing else f"{self._path} cannot be opened: {error}")
        else:
            if self._writing:
                self.say(f"Written: {self._path}")
            elif task.cancelled:
                self.say("Cancelled.")
            else:
                self._steps = show_reviewed(self.scene, result)

    def _show_step(self, steps: Generator[StudyScene]) -> None:
        try:
            self._shown = next(steps)
        except StopIteration:
            self._steps = None
            self.say(f"Opened: {self._path}")
            self._opened(self._shown)
        except Exception as error:  # too little memory, mostly
            self._steps = None
            self.say(f"{self._path} cannot be opened: {error}")

    def _settle_hidden(self, review: Any) -> None:
        """Let the reader say what becomes of boxes that the confidence hides: files know no confidence."""
        boxes = review.study.boxes()
        hidden = [box for box in boxes if review.state(box) == PROPOSED and not box.GetDisplayVisibility()]
        question = "The confidence slider hides {}. Reject what is hidden? If not, it is exported as proposed."
        if hidden and self._ask(question.format("1 box" if len(hidden) == 1 else f"{len(hidden)} boxes")):
            for box in hidden:
                review.reject(box)
            self._changed()

    def _settle_rejected(self, review: Any) -> None:
        """Let the reader say what becomes of regions in rejected boxes: labels know no boxes."""
        volume = review.rejected_ml()
        if not volume:
            return
        question = f"{volume:.1f} ml of the regions lie in rejected boxes alone. Erase them?"
        if self._ask(f"{question} If not, they stay in the labels."):
            review.erase_rejected()
            self._changed()

    def _on_export(self) -> None:
        if self.busy:
            self.cancel()
        else:
            self.export()

    def _on_open(self) -> None:
        start = self.ui.exportFolder.currentPath
        chosen = qt.QFileDialog.getExistingDirectory(None, "Open a reviewed case", start)
        if chosen:
            self.open(Path(chosen))


def folder_name(study_id: str) -> str:
    """A study's name as a folder's name that every file system takes."""
    return re.sub(r"[^\w.\- ]+", "_", study_id).strip(" .") or "study"
