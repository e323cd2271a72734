"""The ctk widgets that the panel uses, with the members that it calls."""

from __future__ import annotations

from typing import Any

import qt
from PySide6.QtCore import Property, Signal

HEADER_HEIGHT = 26


@qt.guarded
class ctkCollapsibleButton(qt.QtWidgets.QWidget):  # noqa: N801
    """A titled section that folds when its title is clicked."""

    contentsCollapsed = Signal(bool)
    _collapsed, _text = False, ""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.setContentsMargins(0, HEADER_HEIGHT, 0, 0)

    def _get_collapsed(self) -> bool:
        return self._collapsed

    def _set_collapsed(self, collapsed: bool) -> None:
        changed = collapsed != self._collapsed
        self._collapsed = bool(collapsed)
        self._apply()
        if changed:
            self.contentsCollapsed.emit(self._collapsed)

    def _apply(self) -> None:
        self.setMaximumHeight(HEADER_HEIGHT if self._collapsed else 16777215)
        for child in self.children():
            if isinstance(child, qt.QtWidgets.QWidget) and self._collapsed:
                child.hide()
            elif isinstance(child, qt.QtWidgets.QWidget) and not child.testAttribute(qt.Qt.WA_WState_ExplicitShowHide):
                child.show()
        self.update()

    def _get_text(self) -> str:
        return self._text

    def _set_text(self, text: str) -> None:
        self._text = text
        self.update()

    collapsed = Property(bool, _get_collapsed, _set_collapsed)
    text = Property(str, _get_text, _set_text)

    def mousePressEvent(self, event: Any) -> None:
        if event.position().y() <= HEADER_HEIGHT:
            self.collapsed = not self._collapsed

    def paintEvent(self, _event: Any) -> None:
        painter = qt.QPainter(self)
        palette = self.palette
        painter.fillRect(0, 0, self.width, HEADER_HEIGHT - 4, palette.color(qt.QPalette.Button).darker(110))
        painter.setPen(palette.color(qt.QPalette.ButtonText))
        arrow = "\u25b8" if self._collapsed else "\u25be"
        painter.drawText(8, HEADER_HEIGHT - 10, f"{arrow}  {self._text}")
        painter.end()


@qt.guarded
class ctkSliderWidget(qt.QtWidgets.QWidget):  # noqa: N801
    """A slider with a number box beside it."""

    valueChanged = Signal(float)
    _slider = _box = None

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._slider, self._box = qt.QSlider(qt.Qt.Horizontal), qt.QDoubleSpinBox()
        self._slider.setRange(0, 1000)
        layout.addWidget(self._slider)
        layout.addWidget(self._box)
        self._box.valueChanged.connect(self._on_box)
        self._slider.valueChanged.connect(self._on_slider)

    def _span(self) -> float:
        return (self._box.maximum - self._box.minimum) or 1.0

    def _on_box(self, value: float) -> None:
        self._slider.blockSignals(True)
        self._slider.setValue(round((value - self._box.minimum) / self._span() * 1000))
        self._slider.blockSignals(False)
        self.valueChanged.emit(value)

    def _on_slider(self, position: int) -> None:
        self._box.setValue(self._box.minimum + position / 1000 * self._span())

    def setValue(self, value: float) -> None:
        self._box.setValue(value)

    value = Property(float, lambda self: self._box.value, setValue)
    minimum = Property(float, lambda self: self._box.minimum, lambda self, v: self._box.setMinimum(v))
    maximum = Property(float, lambda self: self._box.maximum, lambda self, v: self._box.setMaximum(v))
    singleStep = Property(float, lambda self: self._box.singleStep, lambda self, v: self._box.setSingleStep(v))
    decimals = Property(int, lambda self: self._box.decimals, lambda self, v: self._box.setDecimals(v))


@qt.guarded
class ctkPathLineEdit(qt.QtWidgets.QWidget):  # noqa: N801
    """A path with a button that browses for it."""

    currentPathChanged = Signal(str)
    Files, Dirs = 2, 1
    _edit, _filters, _settings = None, 0, ""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._edit = qt.QLineEdit()
        browse = qt.QToolButton()
        browse.text = "..."
        layout.addWidget(self._edit)
        layout.addWidget(browse)
        self._edit.textChanged.connect(self.currentPathChanged.emit)

    def setCurrentPath(self, path: str) -> None:
        self._edit.setText(path)

    def _set_filters(self, filters: int) -> None:
        self._filters = filters

    def _set_settings(self, key: str) -> None:
        self._settings = key

    currentPath = Property(str, lambda self: self._edit.text, setCurrentPath)
    filters = Property(int, lambda self: self._filters, _set_filters)
    settingKey = Property(str, lambda self: self._settings, _set_settings)
