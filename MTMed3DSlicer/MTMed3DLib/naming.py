"""The name of a study: neutral until a reader gives another one. It stands in every exported file."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from MTMed3DLib.attributes import STUDY, STUDY_ATTRIBUTE

if TYPE_CHECKING:
    from MTMed3DLib.scene import StudyScene


def study_name(scene: Any, t1ce: Any, now: Callable[[], datetime] = datetime.now) -> str:
    """The name of the study that a T1ce volume belongs to; given once, unique in the scene, and kept with the node.

    It is made of the time, and not of any volume's name, which is often a patient's: it goes into exported files. A
    reader may give another one, see `rename`.
    """
    known = t1ce.GetAttribute(STUDY_ATTRIBUTE)
    if known:
        return str(known)
    taken = {
        scene.GetNthNodeByClass(index, "vtkMRMLVolumeNode").GetAttribute(STUDY_ATTRIBUTE)
        for index in range(scene.GetNumberOfNodesByClass("vtkMRMLVolumeNode"))
    }
    base = f"case-{now():%Y%m%d-%H%M%S}"
    name, number = base, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    t1ce.SetAttribute(STUDY_ATTRIBUTE, name)
    return name


def rename(study: StudyScene, name: str) -> None:
    """Give a study another name, everywhere in the scene.

    Raises:
        ValueError: no name, or that of another study of the scene.
    """
    from MTMed3DLib.hierarchy import folder_of, name_folder
    from MTMed3DLib.nodes import tagged

    name = " ".join(name.split())
    if not name:
        raise ValueError("A case needs a name.")
    if name == study.study_id:
        return
    if any(tagged(study.scene, name)):
        raise ValueError(f"Another case of the scene is called “{name}”.")
    nodes, old, t1ce = list(tagged(study.scene, study.study_id)), study.study_id, study.t1ce
    document = study.findings_document
    hierarchy, folder = folder_of(study.scene, old)
    with study.batch():
        for node in nodes:
            node.SetAttribute(STUDY, name)
            if node.GetName().startswith(old):
                node.SetName(name + node.GetName()[len(old) :])
        if folder:
            name_folder(hierarchy, folder, name)
        if t1ce is not None:
            t1ce.SetAttribute(STUDY_ATTRIBUTE, name)
        study.study_id = name
        if document is not None:
            study.keep_findings({**document, "study": {**document["study"], "id": name}})
