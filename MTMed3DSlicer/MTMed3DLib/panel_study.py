"""The panel's section *Study*: four volumes, the model and the device, and why they cannot be analysed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from MTMed3DLib.inputs import SEQUENCES, reasons, suggest

MODULE = "MTMed3D"


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
        """Choose volumes by name for the sequences that have none, leaving what somebody chose."""
        chosen = self.nodes
        taken = {node.GetID() for node in chosen.values() if node is not None}
        found = suggest(self.scene)
        new = {n: v for n, v in found.items() if chosen[n] is None and v is not None and v.GetID() not in taken}
        if new:
            self.choose(new)

    def refill(self) -> None:
        """Choose every volume by name again; a sequence that no name fits keeps its choice."""
        self.choose({name: node for name, node in suggest(self.scene).items() if node is not None})

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
        node = self._memory(create=False)
        if node is not None:
            self.choose({name: node.GetNodeReference(name) for name in SEQUENCES if node.GetNodeReference(name)})

    def _on_choice(self, *_: Any) -> None:
        if self._filling:
            return
        if any(self.nodes.values()):
            memory = self._memory(create=True)
            for name, node in self.nodes.items():
                memory.SetNodeReferenceID(name, node.GetID() if node is not None else None)
        self._changed()

    def _memory(self, create: bool) -> Any:
        """The module's parameter node, which is saved with the scene."""
        node = self.scene.GetSingletonNode(MODULE, "vtkMRMLScriptedModuleNode")
        if node is None and create and not self.scene.IsClosing():
            node = self.scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.UnRegister(None)
            node.SetSingletonTag(MODULE)
            node.SetModuleName(MODULE)
            node.SetName(MODULE)
            node = self.scene.AddNode(node)
        return node
