"""``boxes/lesion-N.mrk.json``: one oriented box a lesion, for 3D Slicer (markups schema 1.0.3, type ROI)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from MTMed3DCore.exports.regions import LESION_COLOR
from MTMed3DCore.findings import RESEARCH_USE, Lesion

SCHEMA_URL = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


def write_markups(lesion: Lesion, path: Path) -> None:
    """Write the box of one lesion, handles off: many interactive boxes are slow, and none may move by accident."""
    document = {"@schema": SCHEMA_URL, "markups": [_roi(lesion)]}
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8", newline="\n")


def lesion_name(lesion: Lesion) -> str:
    """How a lesion is called wherever it is shown: ``Lesion 1 (0.97)``."""
    return f"Lesion {lesion.id} ({lesion.score:.2f})"


def right_handed_axes(lesion: Lesion) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Axes (3, 3), one a row, of the same box as a proper rotation, which is all that 3D Slicer's boxes can have.

    A box is symmetric about its centre, so turning one axis round changes none of its corners.
    """
    axes = np.array(lesion.box.axes, dtype=np.float64)
    if np.linalg.det(axes) < 0:
        axes[2] *= -1
    return axes


def _roi(lesion: Lesion) -> dict[str, Any]:
    from MTMed3DCore.volume import RAS_LPS

    # The format also allows RAS, but 3D Slicer then misplaces the axes of an oblique box. Columns are the box's axes.
    to_lps = RAS_LPS[:3, :3]
    center = (to_lps @ lesion.box.center + 0.0).tolist()
    orientation = (to_lps @ right_handed_axes(lesion).T + 0.0).ravel().tolist()
    color = [component / 255 for component in LESION_COLOR]
    volume = lesion.volumes_ml["whole_tumour"]
    origin = "found by the box head" if lesion.origin == "detection" else "drawn round a segmented region"
    measured = f"{volume:.1f} ml, {lesion.longest_diameter_mm:.0f} mm"
    description = f"{lesion_name(lesion)}: {origin}, {measured}. {RESEARCH_USE}"
    return {
        "type": "ROI",
        "name": lesion_name(lesion),
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "labelFormat": "%N",
        "roiType": "Box",
        "center": center,
        "orientation": orientation,
        "size": lesion.box.size.tolist(),
        "insideOut": False,
        "controlPoints": [
            {
                "id": "1",
                "label": lesion_name(lesion),
                "description": description,
                "position": center,
                "orientation": orientation,
                "selected": True,
                "locked": False,
                "visibility": False,
                "positionStatus": "defined",
            }
        ],
        "display": {
            "visibility": True,
            "opacity": 1.0,
            "color": color,
            "selectedColor": color,
            "propertiesLabelVisibility": True,
            "pointLabelsVisibility": False,
            "handlesInteractive": False,
        },
    }
