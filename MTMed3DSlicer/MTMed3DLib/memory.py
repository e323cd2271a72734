"""What the panel remembers in the scene: the chosen volumes, in a node that is saved with it."""

from __future__ import annotations

from typing import Any

MODULE = "MTMed3D"


def memory_of(scene: Any, *, create: bool) -> Any:
    """The module's parameter node; None where there is none and none is to be made."""
    node = scene.GetSingletonNode(MODULE, "vtkMRMLScriptedModuleNode")
    if node is None and create and not scene.IsClosing():
        node = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        node.SetSingletonTag(MODULE)
        node.SetModuleName(MODULE)
        node.SetName(MODULE)
        node = scene.AddNode(node)
    return node
