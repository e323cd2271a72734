"""The qMRML widgets that the panel uses, over the live scene, with the members that it calls."""

from __future__ import annotations

from typing import Any

import qt
from PySide6.QtCore import Property, Signal


@qt.guarded
class qMRMLWidget(qt.QtWidgets.QWidget):  # noqa: N801
    """A widget that knows a scene and tells its children."""

    mrmlSceneChanged = Signal(object)
    SIGNALS = ("mrmlSceneChanged(vtkMRMLScene*)",)
    _scene: Any = None

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self) -> Any:
        return self._scene


@qt.guarded
class qMRMLNodeComboBox(qt.QtWidgets.QWidget):  # noqa: N801
    """A list of the scene's nodes of some classes."""

    currentNodeChanged = Signal(object)
    SIGNALS = ("currentNodeChanged(vtkMRMLNode*)",)
    _scene: Any = None
    _combo: Any = None
    _types: tuple = ()
    _ids: tuple = ()
    _tags: tuple = ()
    _none, _add, _remove, _rename, _edit, _children, _hidden = False, True, True, False, False, True, False
    _select_new, _none_text = True, "None"

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._combo = qt.QComboBox()
        # Long series descriptions must not widen the panel; Slicer's own combo box elides them too.
        self._combo.setSizeAdjustPolicy(qt.QtWidgets.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        layout.addWidget(self._combo)
        self._combo.currentIndexChanged.connect(lambda _index: self.currentNodeChanged.emit(self.currentNode()))

    def _flag(name: str, kind: type = bool) -> Any:  # noqa: N805
        def setter(self: Any, value: Any) -> None:
            setattr(self, name, value)
            self._refill()

        return Property(kind, lambda self: getattr(self, name), setter)

    def _set_types(self, types: Any) -> None:
        self._types = tuple(types)
        self._refill()

    nodeTypes = Property("QStringList", lambda self: list(self._types), _set_types)
    noneEnabled = _flag("_none")
    addEnabled = _flag("_add")
    removeEnabled = _flag("_remove")
    renameEnabled = _flag("_rename")
    editEnabled = _flag("_edit")
    showChildNodeTypes = _flag("_children")
    showHidden = _flag("_hidden")
    selectNodeUponCreation = _flag("_select_new")
    noneDisplay = _flag("_none_text", str)

    def setMRMLScene(self, scene: Any) -> None:
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene = scene
        events = (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent) if scene else ()
        self._tags = tuple(scene.AddObserver(event, lambda *_: self._refill()) for event in events)
        self._refill()

    def _nodes(self) -> list[Any]:
        nodes = []
        for class_name in self._types:
            found = self._scene.GetNodesByClass(class_name)
            found.UnRegister(None)
            for index in range(found.GetNumberOfItems()):
                node = found.GetItemAsObject(index)
                exact = self.showChildNodeTypes or node.GetClassName() == class_name
                if exact and (self.showHidden or not node.GetHideFromEditors()):
                    nodes.append(node)
        return nodes

    def _refill(self) -> None:
        if self._scene is None or not qt.shiboken_alive(self):
            return
        before = self._ids[self._combo.currentIndex] if 0 <= self._combo.currentIndex < len(self._ids) else ""
        self._combo.blockSignals(True)
        self._combo.clear()
        nodes = self._nodes()
        self._ids = (("",) if self._none else ()) + tuple(node.GetID() for node in nodes)
        self._combo.addItems(([self._none_text] if self._none else []) + [node.GetName() for node in nodes])
        index = self._ids.index(before) if before in self._ids else (0 if self._ids else -1)
        self._combo.setCurrentIndex(index)
        self._combo.blockSignals(False)
        if (self._ids[index] if index >= 0 else "") != before:
            self.currentNodeChanged.emit(self.currentNode())

    def currentNode(self) -> Any:
        index = self._combo.currentIndex
        known = self._scene is not None and 0 <= index < len(self._ids) and self._ids[index]
        return self._scene.GetNodeByID(self._ids[index]) if known else None

    def setCurrentNodeID(self, node_id: str) -> None:
        self._combo.setCurrentIndex(self._ids.index(node_id or "") if (node_id or "") in self._ids else -1)

    def setCurrentNode(self, node: Any) -> None:
        self.setCurrentNodeID(node.GetID() if node else "")


@qt.guarded
class qMRMLSegmentEditorWidget(qt.QtWidgets.QFrame):  # noqa: N801
    """The Segment Editor; here only what it was told to edit."""

    _scene = _editor = _segmentation = _source = _label = None

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.setFrameShape(qt.QFrame.StyledPanel)
        self._label = qt.QLabel("Segment Editor (3D Slicer's own widget appears here)")
        self._label.setAlignment(qt.Qt.AlignCenter)
        self._label.setMinimumHeight(60)
        qt.QVBoxLayout(self).addWidget(self._label)

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        self._editor = node

    def mrmlSegmentEditorNode(self) -> Any:
        return self._editor

    def setSegmentationNode(self, node: Any) -> None:
        if node is not None and self._editor is None:
            raise RuntimeError("setMRMLSegmentEditorNode comes before setSegmentationNode")
        self._segmentation = node

    def segmentationNode(self) -> Any:
        return self._segmentation

    def setSourceVolumeNode(self, node: Any) -> None:
        self._source = node

    def sourceVolumeNode(self) -> Any:
        return self._source

    def setActiveEffectByName(self, name: str) -> None:
        pass

    def installKeyboardShortcuts(self) -> None:
        pass

    def uninstallKeyboardShortcuts(self) -> None:
        pass
