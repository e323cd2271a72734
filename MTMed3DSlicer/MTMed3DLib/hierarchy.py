"""The folder of a study in the subject hierarchy."""

from __future__ import annotations

from typing import Any

import slicer
import vtk

from MTMed3DLib.attributes import FINDINGS, ROLE, STUDY
from MTMed3DLib.nodes import tagged


def folder_of(scene: Any, study_id: str) -> tuple[Any, int]:
    """The subject hierarchy and the item of a study's folder; 0 where there is none."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    items = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
    for index in range(items.GetNumberOfIds()):
        item = items.GetId(index)
        if hierarchy.HasItemAttribute(item, STUDY) and hierarchy.GetItemAttribute(item, STUDY) == study_id:
            return hierarchy, item
    return hierarchy, 0


def name_folder(hierarchy: Any, item: int, study_id: str) -> None:
    """Let a folder be that of a study."""
    hierarchy.SetItemAttribute(item, STUDY, study_id)
    hierarchy.SetItemName(item, f"MTMed3D {study_id}")


def file_under_folder(scene: Any, study_id: str) -> None:
    """Put every node of a study into its folder, which is made where there is none."""
    hierarchy, folder = folder_of(scene, study_id)
    if not folder:
        folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "MTMed3D")
        name_folder(hierarchy, folder, study_id)
    for node in tagged(scene, study_id):
        if node.GetAttribute(ROLE) == FINDINGS:
            continue
        item = hierarchy.GetItemByDataNode(node)
        if not item:
            hierarchy.CreateItem(folder, node)
        elif hierarchy.GetItemParent(item) != folder:
            hierarchy.SetItemParent(item, folder)
