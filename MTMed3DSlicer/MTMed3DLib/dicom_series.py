"""Where a volume of the scene comes from, when it was loaded from DICOM: its files and what their header says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import slicer

if TYPE_CHECKING:
    from MTMed3DCore.recognition.header import SeriesHeader

INSTANCES = "DICOM.instanceUIDs"
"""Attribute in which Slicer keeps the identifiers of the files that a volume was loaded from, separated by blanks."""


class Database(Protocol):
    """What is needed of ``slicer.dicomDatabase``."""

    def fileForInstance(self, uid: str) -> str: ...  # noqa: N802


def open_database() -> Database | None:
    """Slicer's, or None where it is not open."""
    database: Database | None = getattr(slicer, "dicomDatabase", None)
    return database


def instances_of(node: Any) -> list[str]:
    """Identifiers of the objects that a volume was loaded from; empty where it does not come from DICOM."""
    return (node.GetAttribute(INSTANCES) or "").split()


def files_of(node: Any, database: Database | None) -> list[Path]:
    """The files that a volume was loaded from, each once; empty where one of them is not known or has gone."""
    found = [_file(uid, database) for uid in instances_of(node)]
    return [] if None in found else list(dict.fromkeys(path for path in found if path is not None))


def header_of(node: Any, database: Database | None) -> SeriesHeader | None:
    """The header of the series that a volume was loaded from, as the core reads it from a folder.

    None where the volume does not come from DICOM, or its first file is not there, or is no image.
    """
    instances = instances_of(node)
    path = _file(instances[0], database) if instances else None
    return None if path is None else _header(str(path))


def reason_against(nodes: Mapping[str, Any], database: Database | None) -> str:
    """Why DICOM objects cannot be written for a study, as a sentence; empty where they can.

    Looks at one file alone, so that it may be asked often; what it overlooks, the writing itself refuses.

    Args:
        nodes: the volumes by sequence, None for one that was deleted.
        database: Slicer's, or None where it is not open.
    """
    t1ce = nodes.get("t1ce")
    if t1ce is None:
        return "The T1ce is no longer in the scene."
    instances = instances_of(t1ce)
    if not instances:
        return f"The T1ce ({t1ce.GetName()}) was not loaded from DICOM, so there is no series to refer to."
    if database is None:
        return "3D Slicer's DICOM database is not open. Open it in the DICOM module."
    if _file(instances[0], database) is None:
        return f"The DICOM files of the T1ce ({t1ce.GetName()}) are not in 3D Slicer's database. Import them again."
    return ""


def _file(uid: str, database: Database | None) -> Path | None:
    name = database.fileForInstance(uid) if database is not None else ""
    return Path(name) if name and Path(name).is_file() else None


@lru_cache(maxsize=256)
def _header(path: str) -> SeriesHeader | None:
    from MTMed3DCore.dicom.datasets import frames_of, is_image

    try:
        import pydicom
    except ImportError:  # an application without it has the volumes' names
        return None
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
    except (OSError, pydicom.errors.InvalidDicomError):
        return None
    return next(frames_of(dataset, Path(path)))[2] if is_image(dataset) else None
