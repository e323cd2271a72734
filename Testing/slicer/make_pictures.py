"""Every picture of the documentation in one command, from one synthetic study; no patient's image is used.

    python Testing/slicer/make_pictures.py [--seed 14] [--model starter]

Makes the study, tilts it against the scanner's axes so that oriented boxes can be told from straight ones, lets the
module's own panel analyse it with a real worker process, and writes the panel in three states into
``MTMed3DSlicer/Resources/Screenshots`` and the views into ``Resources/Screenshots/scene.png``. Needs what
`render_scene` needs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT / "MTMed3DSlicer"), str(ROOT)]
PANEL, SCENE = ROOT / "MTMed3DSlicer" / "Resources" / "Screenshots", ROOT / "Resources" / "Screenshots" / "scene.png"
WIDTH = 520
TILT_DEGREES = (8.0, -6.0, 12.0)
SEQUENCES = ("t1", "t1ce", "t2", "flair")
OPACITY = {"necrotic_core": 1.0, "oedema": 0.2, "enhancing": 1.0}
"""Of the surfaces: the outer region lets the inner ones be seen."""


def tilted_study(folder: Path, seed: int) -> dict[str, Path]:
    """The files of a synthetic study that lies tilted in space."""
    import nibabel
    import numpy as np

    from MTMed3DCore.synthetic import make_study, write_study
    from Testing.example_findings import rotation

    write_study(make_study(seed), folder)
    turn = np.eye(4)
    turn[:3, :3] = rotation(*TILT_DEGREES)
    files = {}
    for name in SEQUENCES:
        path = next(folder.glob(f"{name}.nii*"))
        image = nibabel.load(path)
        files[name] = folder / f"{name}.tilted.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine), files[name])
    return files


def grab(widget: Any, name: str) -> None:
    """Keep what the panel looks like."""
    widget.parent.adjustSize()
    widget.parent.resize(WIDTH, widget.parent.height)
    widget.parent.grab().save(str(PANEL / f"{name}.png"))


def review(panel: Any) -> None:
    """What a reader might do: keep one box, widen another, set the grade, and say so."""
    ui, boxes = panel.ui, panel.findings.study.boxes()
    if boxes:
        panel.findings.select(boxes[0])
        ui.keepButton.click()
    if len(boxes) > 1:
        panel.findings.select(boxes[1])
        ui.editButton.click()
        size = boxes[1].GetSize()
        boxes[1].SetSize(size[0] + 4, size[1], size[2])
        ui.editButton.click()
    ui.gradeCombo.setCurrentIndex(1)
    ui.verdictCombo.setCurrentIndex(2)
    ui.difficultyCombo.setCurrentIndex(1)
    ui.commentEdit.setPlainText("Synthetic study; one box widened.")
    ui.caseNameEdit.text = "synthetic 1"
    ui.caseNameEdit.editingFinished.emit()
    ui.prepareSection.collapsed = ui.exportSection.collapsed = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=14, help="another number makes another study")
    parser.add_argument("--model", default="starter")
    given = parser.parse_args()
    import render_scene
    import standin

    application = standin.install()
    import MTMed3D
    from panel_driver import wait_until

    from MTMed3DLib.sample_data import load_volumes

    widget = application.open_module(application.register(MTMed3D.MTMed3D, ROOT / "MTMed3DSlicer" / "MTMed3D.py"))
    widget.parent.resize(WIDTH, 900)
    widget.parent.show()
    panel, ui = widget.panel, widget.panel.ui
    try:
        with tempfile.TemporaryDirectory() as folder:
            nodes = load_volumes(application.scene, tilted_study(Path(folder), given.seed))
        wait_until(lambda: ui.analyzeButton.enabled and ui.deviceCombo.count > 1, application)
        models = [ui.modelCombo.itemText(index).split()[0] for index in range(ui.modelCombo.count)]
        ui.modelCombo.setCurrentIndex(models.index(given.model))
        grab(widget, "ready")
        ui.analyzeButton.click()
        wait_until(lambda: "Window" in ui.stageLabel.text or not panel.analysis.busy, application, 600.0)
        grab(widget, "running")
        wait_until(lambda: not panel.analysis.busy, application, 1800.0)
        if panel.analysis.failure is not None:
            raise SystemExit(str(panel.analysis.failure))
        review(panel)
        wait_until(lambda: panel._changed_at is None, application)
        grab(widget, "reviewed")
        study = panel.findings.study
        study.segmentation.CreateClosedSurfaceRepresentation()
        for key, opacity in OPACITY.items():
            study.segmentation.GetDisplayNode().SetSegmentOpacity3D(key, opacity)
        boxes = study.boxes()
        centre = study.centre_on(boxes[0]) if boxes else render_scene.middle_of(nodes["flair"])
        shown = types.SimpleNamespace(scene=application.scene, app=application.logic)
        render_scene.show_grey(nodes["flair"])
        render_scene.picture_of(shown, nodes["flair"], [float(value) for value in centre], SCENE)
    finally:
        application.unload("MTMed3D")
    print(f"Pictures: {PANEL} and {SCENE}")


if __name__ == "__main__":
    main()
