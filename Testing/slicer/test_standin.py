"""The stand-in refuses what PythonQt would refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("application")
UI = """<ui version="4.0"><class>W</class><widget class="QWidget" name="W"><layout class="QVBoxLayout" name="l">
<item><widget class="{kind}" name="child">{properties}</widget></item></layout></widget><connections/></ui>"""


def load(tmp_path: Path, kind: str, properties: str = "") -> Any:
    import slicer

    path = tmp_path / "w.ui"
    path.write_text(UI.format(kind=kind, properties=properties), encoding="utf-8")
    return slicer.util.loadUI(str(path))


def test_properties_are_attributes_and_no_methods() -> None:
    import qt

    button = qt.QPushButton("press")
    button.toolTip = "why"
    assert (button.text, button.toolTip) == ("press", "why")
    with pytest.raises(TypeError):
        button.text()


def test_an_unknown_attribute_is_refused() -> None:
    import ctk
    import qt

    for widget in (qt.QPushButton(), qt.QLabel(), ctk.ctkSliderWidget()):
        with pytest.raises(AttributeError, match="tooltip"):
            widget.tooltip = "a spelling mistake"


def test_an_unknown_signal_is_refused() -> None:
    import qt
    import slicer

    with pytest.raises(ValueError, match="no signal clickd"):
        qt.QPushButton().connect("clickd()", print)
    with pytest.raises(ValueError, match="no signal valueChanged"):
        qt.QComboBox().connect("valueChanged(int)", print)
    with pytest.raises(ValueError, match="currentNodeChanged"):
        slicer.qMRMLNodeComboBox().connect("currentNodeChanged()", print)


def test_an_unknown_method_of_a_slicer_widget_is_refused() -> None:
    import slicer

    with pytest.raises(AttributeError):
        slicer.qMRMLSegmentEditorWidget().setMasterVolume(None)


def test_an_unknown_widget_class_in_a_ui_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="qMRMLMagicWidget"):
        load(tmp_path, "qMRMLMagicWidget")


def test_an_unknown_property_in_a_ui_file_is_refused(tmp_path: Path) -> None:
    wrong = '<property name="nodeTypez"><stringlist><string>a</string></stringlist></property>'
    with pytest.raises(AttributeError, match="nodeTypez"):
        load(tmp_path, "qMRMLNodeComboBox", wrong)


def test_a_slot_gets_as_many_arguments_as_the_signature_names() -> None:
    import qt

    got: list[tuple[Any, ...]] = []
    button = qt.QPushButton()
    button.connect("clicked()", lambda *values: got.append(values))
    button.click()
    assert got == [()]


def test_a_node_selector_follows_the_scene(scene: Any) -> None:
    import slicer

    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.noneEnabled = True
    selector.setMRMLScene(scene)
    seen: list[Any] = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", seen.append)
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "a")
    assert selector.currentNode() is None
    selector.setCurrentNode(node)
    scene.RemoveNode(node)
    assert selector.currentNode() is None
    assert seen == [node, None]


def test_a_progress_bar_draws_its_own_text() -> None:
    import qt

    bar = qt.QProgressBar()
    bar.setRange(0, 200)
    bar.setValue(50)
    assert bar.text() == "25%"
