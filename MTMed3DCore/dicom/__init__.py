"""DICOM in: folders of mixed series to volumes, each with its grid and a short header record.

`scan` walks folders and groups frames into series, `stack` gives a series its geometry, `pixels` reads its voxels, and
`choose` picks the four sequences. pydicom and its decoders come with the extra ``mtmed3d[dicom]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from MTMed3DCore.dicom.choosing import Choice, choose
    from MTMed3DCore.dicom.scanning import looks_like_dicom, scan
    from MTMed3DCore.dicom.series import Frame, Series
    from MTMed3DCore.dicom.stacking import Stack, stack

__all__ = ["Choice", "Frame", "Series", "Stack", "choose", "looks_like_dicom", "scan", "stack"]

_HOMES = {
    "Choice": "choosing",
    "Frame": "series",
    "Series": "series",
    "Stack": "stacking",
    "choose": "choosing",
    "looks_like_dicom": "scanning",
    "scan": "scanning",
    "stack": "stacking",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
