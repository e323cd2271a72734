"""The panel's section *Study*: four volumes, the model and the device, and why they cannot be analysed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from MTMed3DLib.dicom_series import open_database
from MTMed3DLib.inputs import SEQUENCES, reasons, same_volume
from MTMed3DLib.memory import memory_of
from MTMed3DLib.suggestion import Suggestion, suggest


class StudySection:
    """Widgets of the section.

    Args:
        ui: children of the panel by name.
        scene: vtkMRMLScene.
        changed: called after every change of a choice.
    """

    def __init__(self, ui: Any, scene: Any, changed: Callable[[], None]) -> None:
        self.ui, self.scene, self._changed = ui, scene, changed
        self.selectors = {
            "t1": ui.t1Selector,
            "t1ce": ui.t1ceSelector,
            "t2": ui.t2Selector,
            "flair": ui.flairSelector,
        }
        self._models, self._devices = ["starter"], ["auto"]
        self._filling = False
        self._suggested = Suggestion()
        for selector in self.selectors.values():
            selector.connect("currentNodeChanged(vtkMRMLNode*)", self._on_choice)
        for combo in (ui.modelCombo, ui.deviceCombo):
            combo.connect("currentIndexChanged(int)", self._on_choice)
        ui.fillButton.connect("clicked()", self.refill)

    @property
    def nodes(self) -> dict[str, Any]:
        """The chosen volume of each sequence, or None."""
        return {name: selector.currentNode() for name, selector in self.selectors.items()}

    @property
    def model(self) -> str:
        """Name of the chosen model."""
        return self._models[max(0, self.ui.modelCombo.currentIndex)]

    @property
    def device(self) -> str:
        """The chosen device, as the worker names it."""
        return self._devices[max(0, self.ui.deviceCombo.currentIndex)]

    def reasons(self) -> list[str]:
        """Every reason why the choice cannot be analysed."""
        return reasons(self.nodes)

    def choose(self, nodes: Mapping[str, Any]) -> None:
        """Put volumes into the selectors."""
        self._filling = True
        for name, node in nodes.items():
            self.selectors[name].setCurrentNode(node)
        self._filling = False
        self._on_choice()

    def fill_empty(self) -> None:
        """Choose volumes for the sequences that have none, leaving what somebody chose."""
        chosen = self.nodes
        taken = {node.GetID() for node in chosen.values() if node is not None}
        self._suggested = suggest(self.scene, open_database(), taken)
        new = {n: v for n, v in self._suggested.nodes.items() if chosen[n] is None and v is not None}
        if new:
            self.choose(new)
        self._show_hints()

    def refill(self) -> None:
        """Choose every volume again; a sequence that no volume surely is keeps its choice."""
        self._suggested = suggest(self.scene, open_database())
        self.choose({name: node for name, node in self._suggested.nodes.items() if node is not None})

    def _show_hints(self) -> None:
        """What the reader must know of a choice that was made for him, or could not be made."""
        suggested, chosen = self._suggested, self.nodes
        texts = [text for n, text in suggested.hints.items() if same_volume(chosen[n], suggested.nodes[n])]
        self.ui.hintLabel.text = "\n".join(texts)
        self.ui.hintLabel.setVisible(bool(texts))

    def offer_models(self, models: list[dict[str, str]]) -> None:
        """List the models that the worker has."""
        if models:
            names = [model["name"] for model in models]
            texts = [f"{model['name']} {model.get('version', '')}".strip() for model in models]
            self._models = self._offer(self.ui.modelCombo, names, texts, self.model)

    def offer_devices(self, devices: list[dict[str, str]]) -> None:
        """List the devices that the worker has."""
        if devices:
            names = [device["device"] for device in devices]
            texts = [device.get("text", device["device"]) for device in devices]
            self._devices = self._offer(self.ui.deviceCombo, names, texts, self.device)

    @staticmethod
    def _offer(combo: Any, names: list[str], texts: list[str], chosen: str) -> list[str]:
        combo.blockSignals(True)
        combo.clear()
        combo.addItems(texts)
        combo.setCurrentIndex(names.index(chosen) if chosen in names else 0)
        combo.blockSignals(False)
        return names

    def enable(self, enabled: bool) -> None:
        """Lock the choices while they are being analysed."""
        combos = (self.ui.modelCombo, self.ui.deviceCombo, self.ui.fillButton, self.ui.sampleButton)
        for widget in (*self.selectors.values(), *combos):
            widget.enabled = enabled

    def restore(self) -> None:
        """Take the choice that the scene remembers, for instance after it was loaded from a file."""
        node = memory_of(self.scene, create=False)
        if node is not None:
            self.choose({name: node.GetNodeReference(name) for name in SEQUENCES if node.GetNodeReference(name)})

    def _on_choice(self, *_: Any) -> None:
        if self._filling:
            return
        if any(self.nodes.values()):
            memory = memory_of(self.scene, create=True)
            for name, node in self.nodes.items():
                memory.SetNodeReferenceID(name, node.GetID() if node is not None else None)
        self._show_hints()
        self._changed()
