"""``slicer.app``, ``slicer.modules`` and the scene, on the libraries of the ``slicer-core`` wheel."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LOGICS = {
    "Markups": "vtkSlicerMarkupsLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
}
PYTHON_FILES = ("ScriptedLoadableModule", "i18n", "packaging")
"""Slicer's Python files that the wheel lacks; ``SLICER_PYTHON`` names a folder of the real ones."""


class Application:
    """The one scene, its logics, and what the panel asks of ``slicer.app``.

    Args:
        slicer: the module of the wheel.
    """

    def __init__(self, slicer: Any) -> None:
        import qt

        self.qapplication = qt.QApplication.instance() or qt.QApplication(["slicer-standin"])
        self.slicer = slicer
        self.logics: dict[str, Any] = {}
        self.temporaryPath = tempfile.mkdtemp(prefix="slicer-standin-")
        atexit.register(shutil.rmtree, self.temporaryPath, ignore_errors=True)
        self._make_scene()
        self._let_the_scene_read_and_write_files()
        self._manager = _module_manager(qt)
        self.messages: list[tuple[str, str]] = []
        self.answers: list[bool] = []
        slicer.app, slicer.mrmlScene = self, self.scene
        self._make_modules()

    def _make_scene(self) -> None:
        from vtkmodules.vtkCommonCore import vtkCollection

        slicer = self.slicer
        self.scene = slicer.vtkMRMLScene()
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self.scene.AddNode(crosshair)
        self.logic = slicer.vtkSlicerApplicationLogic()
        self.logic.SetMRMLScene(self.scene)
        self.logic.GetColorLogic().SetMRMLScene(self.scene)
        self.logic.GetColorLogic().AddDefaultColorNodes()
        self.logic.SetSliceLogics(vtkCollection())
        self.logic.SetViewLogics(vtkCollection())
        for name, class_name in LOGICS.items():
            logic = getattr(slicer, class_name)()
            logic.SetMRMLScene(self.scene)
            logic.SetMRMLApplicationLogic(self.logic)
            self.logic.SetModuleLogic(name, logic)
            self.logics[name] = logic
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)

    def _let_the_scene_read_and_write_files(self) -> None:
        """Without these a scene can neither read nor write an .mrb file."""
        remote, files = self.slicer.vtkMRMLRemoteIOLogic(), self.slicer.vtkDataIOManagerLogic()
        for logic in (remote, files):
            logic.SetMRMLScene(self.scene)
            logic.SetMRMLApplicationLogic(self.logic)
        remote.GetCacheManager().SetRemoteCacheDirectory(self.temporaryPath)
        files.SetAndObserveDataIOManager(remote.GetDataIOManager())
        remote.AddDataIOToScene()
        self._file_logics = (remote, files)

    def _make_modules(self) -> None:
        modules = types.ModuleType("slicer.modules")
        for name, logic in self.logics.items():
            setattr(modules, name.lower(), types.SimpleNamespace(name=name, logic=lambda logic=logic: logic))
        self.slicer.modules = sys.modules["slicer.modules"] = modules

    def register(self, module_class: type, path: Path) -> Any:
        """Make a scripted module known as the application does at its start; returns its parent object."""
        parent = types.SimpleNamespace(path=str(path), name=module_class.__name__)
        parent.module = module_class(parent)
        setattr(self.slicer.modules, module_class.__name__.lower(), parent)
        return parent

    def open_module(self, parent: Any) -> Any:
        """Make the panel of a registered module, as the application does when it is first chosen, and enter it."""
        import qt

        widget_class = getattr(sys.modules[type(parent.module).__module__], f"{parent.name}Widget")
        place = self.slicer.qMRMLWidget()
        qt.QVBoxLayout(place).setContentsMargins(9, 9, 9, 9)
        place.setMRMLScene(self.scene)
        widget = widget_class(place)
        widget.setup()
        parent.widgetRepresentation = lambda: types.SimpleNamespace(self=lambda: widget)
        widget.enter()
        return widget

    def connect(self, signature: str, slot: Any) -> bool:
        """The application's own signals."""
        return self._manager.connect(signature, slot)

    def moduleManager(self) -> Any:
        return self._manager

    def applicationLogic(self) -> Any:
        return self.logic

    def layoutManager(self) -> None:
        return None

    def settings(self) -> Any:
        import qt

        return qt.QSettings(str(Path(self.temporaryPath) / "settings.ini"), qt.QSettings.IniFormat)

    userSettings = settings

    def processEvents(self, *_: Any) -> None:
        self.qapplication.processEvents()

    def clipboard(self) -> Any:
        return self.qapplication.clipboard()

    def testingEnabled(self) -> bool:
        return True

    def translate(self, _context: str, text: str) -> str:
        return text

    def setOverrideCursor(self, _cursor: Any) -> None:
        pass

    def restoreOverrideCursor(self) -> None:
        pass

    def moduleDocumentationUrl(self, name: str) -> str:
        return f"https://example.invalid/{name}"

    def unload(self, name: str) -> None:
        """What the application does before it unloads or reloads a module."""
        self._manager.moduleAboutToBeUnloaded.emit(name)


def _module_manager(qt: Any) -> Any:
    from PySide6.QtCore import Signal

    @qt.guarded
    class qSlicerModuleManager(qt.QtCore.QObject):  # noqa: N801
        moduleAboutToBeUnloaded = Signal(str)
        startupCompleted = Signal()
        aboutToQuit = Signal()

    return qSlicerModuleManager()


class DicomDatabase:
    """As much of ``slicer.dicomDatabase`` as the panel asks for: the file of every object that was imported."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}

    def fileForInstance(self, uid: str) -> str:
        return self._files.get(uid, "")

    def import_folder(self, folder: Path) -> None:
        """What the DICOM browser's *Import* does."""
        import pydicom

        for path in (path for path in folder.rglob("*") if path.is_file()):
            if path.read_bytes()[128:132] == b"DICM":
                self._files[str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)] = str(path)


def install() -> Application:
    """Put the stand-ins into ``sys.modules`` and on top of the ``slicer`` module; once a process."""
    import slicer

    if isinstance(getattr(slicer, "app", None), Application):
        return slicer.app
    for name in ("qt", "ctk", "mrml_widgets"):
        module = importlib.import_module(f"standin.{name}") if name == "mrml_widgets" else _load_top_level(name)
        if name != "qt":
            for class_name in dir(module):
                if class_name.startswith("qMRML"):
                    setattr(slicer, class_name, getattr(module, class_name))
    application = Application(slicer)
    # Behind the wheel's own files: whatever lies in the package's path when `slicer` is imported replaces its members.
    folders = [os.environ["SLICER_PYTHON"]] if "SLICER_PYTHON" in os.environ else []
    slicer.__path__ = [*slicer.__path__, *folders, str(HERE / "slicer_python")]
    _answer_dialogs(application)
    return application


def _load_top_level(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _answer_dialogs(application: Application) -> None:
    """Message boxes are recorded in `Application.messages`; questions are answered from `Application.answers`."""
    from slicer import util

    def told(kind: str) -> Any:
        def tell(text: str, *_: Any, **__: Any) -> None:
            application.messages.append((kind, text))

        return tell

    def asked(text: str, *_: Any, **__: Any) -> bool:
        application.messages.append(("question", text))
        return application.answers.pop(0) if application.answers else False

    util.errorDisplay, util.warningDisplay, util.infoDisplay = told("error"), told("warning"), told("info")
    util.confirmYesNoDisplay = util.confirmOkCancelDisplay = asked
