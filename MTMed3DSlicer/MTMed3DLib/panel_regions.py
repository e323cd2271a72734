"""The panel's rows of regions: visibility, opacity, volume now, and the 3D view."""

from __future__ import annotations

from typing import Any

import qt

WIDGETS = {"necrotic_core": "necroticCore", "oedema": "oedema", "enhancing": "enhancing"}
"""Start of the widget names of each region."""
SWATCH = 12


class RegionRows:
    """Widgets of the regions.

    Args:
        ui: children of the panel by name.
    """

    def __init__(self, ui: Any) -> None:
        self.ui, self._showing = ui, False
        self._segmentation: Any = None
        self.visible = {key: getattr(ui, f"{start}Visible") for key, start in WIDGETS.items()}
        self.opacity = {key: getattr(ui, f"{start}Opacity") for key, start in WIDGETS.items()}
        self.volume = {key: getattr(ui, f"{start}Volume") for key, start in WIDGETS.items()}
        self.volume |= {"tumour_core": ui.tumourCoreVolume, "whole_tumour": ui.wholeTumourVolume}
        for key in WIDGETS:
            self.visible[key].connect("toggled(bool)", lambda _on, key=key: self._on_visible(key))
            self.opacity[key].connect("valueChanged(double)", lambda _value, key=key: self._on_opacity(key))
        ui.show3DButton.connect("toggled(bool)", self._on_3d)

    def show(self, segmentation: Any) -> None:
        """Let the widgets follow a segmentation node, or none."""
        self._segmentation = segmentation
        display = None if segmentation is None else segmentation.GetDisplayNode()
        self._showing = True
        for key in WIDGETS:
            segment = None if segmentation is None else segmentation.GetSegmentation().GetSegment(key)
            self.visible[key].enabled = self.opacity[key].enabled = segment is not None
            self.visible[key].setIcon(qt.QIcon() if segment is None else swatch(segment.GetColor()))
            if segment is not None and display is not None:
                self.visible[key].checked = bool(display.GetSegmentVisibility(key))
                self.opacity[key].value = display.GetSegmentOpacity2DFill(key)
        self.ui.show3DButton.enabled = display is not None
        self.ui.show3DButton.checked = display is not None and self._has_surface() and bool(display.GetVisibility3D())
        self._showing = False

    def show_volumes(self, volumes_ml: dict[str, float]) -> None:
        """Write millilitres beside the regions; an empty dictionary clears them."""
        for key, label in self.volume.items():
            label.text = f"{volumes_ml[key]:.1f} ml" if key in volumes_ml else ""

    def _has_surface(self) -> bool:
        return bool(self._segmentation.GetSegmentation().ContainsRepresentation("Closed surface"))

    def _on_visible(self, key: str) -> None:
        if self._segmentation is not None and not self._showing:
            self._segmentation.GetDisplayNode().SetSegmentVisibility(key, self.visible[key].checked)

    def _on_opacity(self, key: str) -> None:
        if self._segmentation is not None and not self._showing:
            display, value = self._segmentation.GetDisplayNode(), self.opacity[key].value
            display.SetSegmentOpacity2DFill(key, value)  # the outline stays, or nothing would say where it is
            display.SetSegmentOpacity3D(key, value)

    def _on_3d(self, shown: bool) -> None:
        if self._segmentation is None or self._showing:
            return
        if shown and not self._has_surface():
            self._segmentation.CreateClosedSurfaceRepresentation()
        self._segmentation.GetDisplayNode().SetVisibility3D(shown)


def swatch(color: tuple[float, float, float]) -> Any:
    """A small square of a segment's colour, as an icon."""
    pixmap = qt.QPixmap(SWATCH, SWATCH)
    pixmap.fill(qt.QColor(*(round(255 * part) for part in color)))
    return qt.QIcon(pixmap)
