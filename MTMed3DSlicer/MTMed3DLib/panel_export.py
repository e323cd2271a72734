"""The panel's section *Export*: what the reader leaves, as files, and such files back into the scene."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctk
import qt
import slicer

from MTMed3DLib.attributes import PROPOSED
from MTMed3DLib.export import export_review, open_reviewed

FORMATS = {
    "training_case": "trainingCheck",
    "seg_nrrd": "segCheck",
    "nifti": "niftiCheck",
    "markups": "markupsCheck",
    "csv": "csvCheck",
    "report": "reportCheck",
}
"""Check box of each format of `MTMed3DCore.exports.review`."""


class ExportSection:
    """Widgets of the section.

    Args:
        ui: children of the panel by name.
        scene: vtkMRMLScene.
        review: gives the `Review` that is shown, or None.
        opened: told of the study that was brought back.
        ask: asks a yes-or-no question.
    """

    def __init__(
        self,
        ui: Any,
        scene: Any,
        review: Callable[[], Any],
        opened: Callable[[Any], None],
        ask: Callable[[str], bool] | None = None,
    ) -> None:
        self.ui, self.scene, self._review, self._opened = ui, scene, review, opened
        self._ask = ask or slicer.util.confirmYesNoDisplay
        ui.exportFolder.filters = ctk.ctkPathLineEdit.Dirs
        ui.exportFolder.connect("currentPathChanged(QString)", self.refresh)
        for name in FORMATS.values():
            getattr(ui, name).connect("toggled(bool)", self.refresh)
        ui.exportButton.connect("clicked()", self._on_export)
        ui.openButton.connect("clicked()", self._on_open)
        self.refresh()

    @property
    def formats(self) -> list[str]:
        """The chosen formats."""
        return [name for name, check in FORMATS.items() if getattr(self.ui, check).checked]

    @property
    def target(self) -> Path | None:
        """The folder that an export would write, or None while none is chosen."""
        chosen, review = self.ui.exportFolder.currentPath.strip(), self._review()
        return Path(chosen) / folder_name(review.study.study_id) if chosen and review is not None else None

    def refresh(self, *_: Any) -> None:
        """Let the button say what is still missing."""
        missing = []
        if self._review() is None:
            missing.append("Analyse a study first.")
        if not self.ui.exportFolder.currentPath.strip():
            missing.append("Choose a folder.")
        if not self.formats:
            missing.append("Choose what to write.")
        self.ui.exportButton.enabled = not missing
        self.ui.exportButton.toolTip = "\n".join(missing) or f"Write {self.target}"

    def say(self, text: str) -> None:
        """Show how an export ended."""
        self.ui.exportLabel.text = text

    def export(self) -> bool:
        """Write the study; asks before it replaces an earlier export. Returns whether it was written."""
        review, target = self._review(), self.target
        if review is None or target is None:
            return False
        self._settle_hidden(review)
        full = target.is_dir() and any(target.iterdir())
        if full and not self._ask(f"{target} holds an earlier export. Replace it?"):
            self.say("Nothing was written.")
            return False
        try:
            with slicer.util.WaitCursor():
                export_review(review, target, self.formats, overwrite=full)
        except Exception as error:  # a disk, a missing volume, a reader's own file in the folder: say which
            self.say(f"Nothing was written: {error}")
            return False
        self.say(f"Written: {target}")
        return True

    def _settle_hidden(self, review: Any) -> None:
        """Let the reader say what becomes of boxes that the confidence hides: files know no confidence."""
        boxes = review.study.boxes()
        hidden = [box for box in boxes if review.state(box) == PROPOSED and not box.GetDisplayVisibility()]
        question = "The confidence slider hides {}. Reject what is hidden? If not, it is exported as proposed."
        if hidden and self._ask(question.format("1 box" if len(hidden) == 1 else f"{len(hidden)} boxes")):
            for box in hidden:
                review.reject(box)

    def open(self, folder: Path) -> bool:
        """Bring an exported case back into the scene; returns whether there was one."""
        try:
            with slicer.util.WaitCursor():
                study = open_reviewed(self.scene, folder)
        except Exception as error:  # no case, a damaged one, no memory: the scene stays as it was
            self.say(f"{folder} cannot be opened: {error}")
            return False
        self.say(f"Opened: {folder}")
        self._opened(study)
        return True

    def _on_export(self) -> None:
        self.export()

    def _on_open(self) -> None:
        start = self.ui.exportFolder.currentPath
        chosen = qt.QFileDialog.getExistingDirectory(None, "Open a reviewed case", start)
        if chosen:
            self.open(Path(chosen))


def folder_name(study_id: str) -> str:
    """A study's name as a folder's name that every file system takes."""
    return re.sub(r"[^\w.\- ]+", "_", study_id).strip(" .") or "study"
