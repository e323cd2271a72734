"""PySide6 with the manners of PythonQt, as the module `qt` of 3D Slicer.

A Qt property is an attribute (``button.text``, not ``button.text()``); setters, slots and plain getters are methods.
Setting what is neither a property nor a member of the class is refused, and so is connecting to a signal that the
class does not have (PythonQt only prints that one; a test must not overlook it).
"""

from __future__ import annotations

import ctypes
import inspect
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

CLASSES: dict[str, type] = {}
"""Every widget class that a .ui file may name."""
_OVERRIDABLE = {"QWidget.sizeHint", "QWidget.minimumSizeHint", "QProgressBar.text"}
"""Properties whose getter Qt itself calls as a virtual method; the attribute would be taken for an override of it."""
_ABSTRACT = {"QObject", "QWidget", "QLayout", "QBoxLayout", "QCoreApplication", "QGuiApplication", "QApplication"}
"""Left as they are, since ``isinstance`` must hold for every subclass."""


class UnknownSignal(ValueError):
    """The class has no such signal."""


class _Property:
    """A Qt property as a Python attribute; on the class it is what PySide6 has under that name."""

    def __init__(self, name: str, on_class: Any) -> None:
        self.name, self.on_class = name, on_class

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self.on_class if instance is None else instance.property(self.name)

    def __set__(self, instance: Any, value: Any) -> None:
        if not instance.setProperty(self.name, value):
            raise AttributeError(f"{type(instance).__name__}.{self.name} cannot be set to {value!r}")


def _with_property_attributes(cls: type) -> None:
    meta = cls.staticMetaObject  # type: ignore[attr-defined]
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        name = meta.property(index).name()
        if f"{cls.__name__}.{name}" not in _OVERRIDABLE:
            setattr(cls, name, _Property(name, getattr(cls, name, None)))


def _known_signals(widget: QtCore.QObject) -> dict[str, str]:
    """Signature as Slicer knows it -> attribute name, of every signal of the object."""
    meta = widget.metaObject()
    methods = (meta.method(index) for index in range(meta.methodCount()))
    signatures = [m.methodSignature().toStdString() for m in methods if m.methodType() == QtCore.QMetaMethod.Signal]
    known = {signature: signature.partition("(")[0] for signature in signatures}
    stated = {s: s.partition("(")[0] for s in getattr(type(widget), "SIGNALS", ())}  # as the real class spells them
    return {s: name for s, name in known.items() if name not in stated.values()} | stated


def _signal(widget: Any, signature: str) -> Any:
    known = _known_signals(widget)
    normal = QtCore.QMetaObject.normalizedSignature(signature)
    normal = normal.toStdString() if hasattr(normal, "toStdString") else str(normal)
    if normal not in known:
        name = type(widget).__name__
        raise UnknownSignal(f"{name} has no signal {signature}; it has {', '.join(sorted(known))}")
    signal = getattr(widget, known[normal])
    overloads = [s for s in known if known[s] == known[normal]]
    types = normal.partition("(")[2].rstrip(")")
    if len(overloads) > 1 and types and not getattr(type(widget), "SIGNALS", ()):
        return signal[types]
    return signal


def _accepting(slot: Callable[..., Any], signature: str) -> Callable[..., Any]:
    """The slot with surplus arguments cut off, as PythonQt does."""
    if signature.endswith("()"):
        return lambda *_values: slot()
    try:
        parameters = inspect.signature(slot).parameters.values()
    except (TypeError, ValueError):
        return slot
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return slot
    count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return lambda *values: slot(*values[:count])


_loading: list[str] = []
"""Names of .ui files being loaded; PySide6 itself sets children as attributes of the root widget meanwhile."""
_connections: dict[tuple[int, str, Any], Any] = {}


def connect(self: Any, signature: str, slot: Callable[..., Any]) -> bool:
    """PythonQt's ``object.connect("signal(type)", slot)``."""
    accepting = _accepting(slot, signature)
    _signal(self, signature).connect(accepting)
    _connections[id(self), signature, slot] = accepting
    return True


def disconnect(self: Any, signature: str, slot: Callable[..., Any]) -> bool:
    """The opposite of `connect`; False where there is no such connection."""
    accepting = _connections.pop((id(self), signature, slot), None)
    if accepting is None:
        return False
    _signal(self, signature).disconnect(accepting)
    return True


def guarded(cls: type) -> type:
    """Class decorator: PythonQt's connect, disconnect and refusal, and the name known to .ui files."""

    def set_attribute(self: Any, name: str, value: Any) -> None:
        internal = _loading or name.startswith("__")
        if not hasattr(type(self), name) and not internal:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        super(cls, self).__setattr__(name, value)

    cls.connect = connect  # type: ignore[attr-defined]
    cls.disconnect = disconnect  # type: ignore[attr-defined]
    cls.__setattr__ = set_attribute  # type: ignore[method-assign, assignment]
    CLASSES[cls.__name__] = cls
    return cls


def _fill() -> None:
    names = globals()
    for module in (QtCore, QtGui, QtWidgets):
        names.update({name: getattr(module, name) for name in dir(module) if not name.startswith("_")})
    own = {n: c for n, c in list(names.items()) if isinstance(c, type) and issubclass(c, QtCore.QObject)}
    own = {n: c for n, c in own.items() if c.__module__.startswith("PySide6") and hasattr(c, "staticMetaObject")}
    for cls in own.values():
        _with_property_attributes(cls)
    QtCore.QObject.name = _Property("objectName", None)  # type: ignore[attr-defined]
    QtCore.QObject.className = lambda self: self.metaObject().className()  # type: ignore[attr-defined]
    for name, cls in own.items():
        if name.startswith("QAbstract"):
            continue
        try:
            leaf = guarded(type(name, (cls,), {"__module__": "qt"}))
        except TypeError:
            continue  # a class that Shiboken does not let anyone derive from
        if name not in _ABSTRACT:
            names[name] = leaf


class QUiLoader(QtUiTools.QUiLoader):
    """Loads a .ui file with the classes of `CLASSES` and none else."""

    def createWidget(self, name: str, parent: Any = None, object_name: str = "") -> Any:
        if name == "Line":
            return super().createWidget(name, parent, object_name)
        if name not in CLASSES:
            raise LookupError(f"unknown widget class {name} of {object_name}")
        widget = CLASSES[name](parent)
        widget.setObjectName(object_name)
        return widget

    def load(self, file: Any, parent: Any = None) -> Any:
        tree = ElementTree.parse(file.fileName()).getroot()
        without_connections = ElementTree.parse(file.fileName()).getroot()
        without_connections.find("connections").clear()  # Qt would look for signals with C++ types
        for element in tree.iter("widget"):
            if element.get("class") not in {*CLASSES, "Line"}:
                raise LookupError(f"unknown widget class {element.get('class')} of {element.get('name')}")
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(without_connections))
        buffer.open(QtCore.QIODevice.ReadOnly)
        _loading.append(file.fileName())
        try:
            widget = super().load(buffer, parent)
        finally:
            _loading.pop()
        _refuse_unknown_properties(tree, widget)
        children = {child.objectName: child for child in [widget, *widget.findChildren(QtCore.QObject)]}
        for connection in tree.iter("connection"):
            sender, receiver = (children[connection.findtext(end)] for end in ("sender", "receiver"))
            if connection.findtext("signal") != "mrmlSceneChanged(vtkMRMLScene*)":
                raise UnknownSignal(f"{connection.findtext('signal')} in {file.fileName()}")
            sender.mrmlSceneChanged.connect(receiver.setMRMLScene)
        return widget


def _refuse_unknown_properties(tree: Any, root: Any) -> None:
    """A property of the .ui file that the class lacks becomes a dynamic one and does nothing: refuse it."""
    for widget in [root, *root.findChildren(QtWidgets.QWidget)]:
        names = [bytes(name.data()).decode() for name in widget.dynamicPropertyNames()]
        unknown = [name for name in names if not name.startswith("_") and name != "SlicerParameterName"]
        if unknown:
            raise AttributeError(f"{type(widget).__name__} {widget.objectName} has no property {', '.join(unknown)}")


def shiboken_alive(widget: Any) -> bool:
    """Whether the C++ object behind `widget` still exists."""
    from shiboken6 import isValid

    return isValid(widget)


def _keep_constants_alive() -> None:
    """Give None, True and False more references than PySide6 can lose.

    PySide6 6.12 takes a reference to None away with every call that returns nothing. Python 3.12, which 3D Slicer has,
    does not count these references; Python 3.11 does, and ends the process when none is left.
    """
    if sys.version_info < (3, 12):
        for constant in (None, True, False):
            ctypes.c_ssize_t.from_address(id(constant)).value += 1 << 40


_keep_constants_alive()
_fill()
