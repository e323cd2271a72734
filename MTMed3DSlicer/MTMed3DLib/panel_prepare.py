"""The panel's section *Prepare*: how well the sequences were registered, the brain mask, and what to compare with."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import ctk

from MTMed3DLib.attributes import MASK, RESULT
from MTMed3DLib.brain import problem_of_mask
from MTMed3DLib.inputs import same_volume
from MTMed3DLib.memory import memory_of

TITLE = "Prepare"
COLORS = {"calm": "", "doubt": "#c8641e", "alarm": "#d03030"}
"""Of words, by the attention that they need; legible on light and dark grounds."""
BEFORE = "not analysed yet"
UNKNOWN = "not recorded"
REFERENCE = "t1ce"


class PrepareSection:
    """Widgets of the section.

    Args:
        ui: children of the panel by name.
        scene: vtkMRMLScene.
        changed: called after every change of the mask or the earlier result that is chosen.
    """

    def __init__(self, ui: Any, scene: Any, changed: Callable[[], None]) -> None:
        self.ui, self.scene, self._changed = ui, scene, changed
        self._study: Any = None
        self._t1ce: Any = None
        self._showing, self._prior_problem = False, ""
        self.quality = {"t1": ui.t1Quality, "t2": ui.t2Quality, "flair": ui.flairQuality}
        ui.maskSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._on_mask)
        ui.maskVisible.connect("toggled(bool)", self._on_visible)
        ui.priorFolder.filters = ctk.ctkPathLineEdit.Dirs
        ui.priorFolder.connect("currentPathChanged(QString)", self._on_prior)
        self.show(None)

    @property
    def mask(self) -> Any:
        """The node of the user's brain mask, or None where one is to be found."""
        return self.ui.maskSelector.currentNode()

    @property
    def prior(self) -> Path | None:
        """The folder of an earlier result to compare with, or None."""
        folder = self.ui.priorFolder.currentPath.strip()
        return Path(folder) if folder else None

    def reasons(self) -> list[str]:
        """Why the study cannot be analysed with this mask and this earlier result."""
        return [problem for problem in (problem_of_mask(self.mask), self._prior_problem) if problem]

    def enable(self, enabled: bool) -> None:
        """Lock the choices while they are used."""
        self.ui.maskSelector.enabled = self.ui.priorFolder.enabled = enabled

    def restore(self) -> None:
        """Take the mask that the scene remembers, for instance after it was loaded from a file."""
        node = memory_of(self.scene, create=False)
        if node is not None and node.GetNodeReference(MASK) is not None:
            self.ui.maskSelector.setCurrentNode(node.GetNodeReference(MASK))

    def follow(self, t1ce: Any) -> None:
        """Another T1ce was chosen: mask and earlier result that were meant for the one before are let go."""
        if self._t1ce is not None and not same_volume(self._t1ce, t1ce):
            self.ui.maskSelector.setCurrentNode(None)
            self.ui.priorFolder.currentPath = ""
        self._t1ce = t1ce

    def show(self, study: Any) -> None:
        """Show how a study was prepared, or nothing."""
        self._study = study
        findings = None if study is None else study.findings
        record = None if findings is None else findings.preparation
        empty = BEFORE if findings is None else UNKNOWN
        attentions = []
        if record is None:
            for label in (self.ui.maskQuality, *self.quality.values()):
                label.text = empty
        else:
            from MTMed3DCore.preparation import words

            registrations = {each.sequence: each for each in record.registrations}
            for name, label in self.quality.items():
                if name in registrations:
                    attentions.append(words.registration_attention(registrations[name]))
                    label.text = colored(words.registration_in_words(registrations[name]), attentions[-1])
                else:
                    label.text = UNKNOWN
            attentions.append(words.mask_attention(record))
            self.ui.maskQuality.text = colored(words.mask_in_words(record), attentions[-1])
        self.ui.prepareSection.text = _title(attentions)
        brain = None if study is None else study.brain
        self._showing = True
        self.ui.maskVisible.enabled = brain is not None
        self.ui.maskVisible.checked = brain is not None and bool(brain.GetDisplayVisibility())
        self._showing = False

    def _on_visible(self, shown: bool) -> None:
        brain = None if self._study is None or self._showing else self._study.brain
        if brain is not None:
            brain.SetDisplayVisibility(shown)

    def _on_mask(self, *_: Any) -> None:
        memory = memory_of(self.scene, create=self.mask is not None)
        if memory is not None:
            memory.SetNodeReferenceID(MASK, None if self.mask is None else self.mask.GetID())
        self._changed()

    def _on_prior(self, *_: Any) -> None:
        prior = self.prior
        known = prior is None or (prior / RESULT).is_file()
        self._prior_problem = "" if known else f"{prior} holds no result to compare with: there is no {RESULT} in it."
        self._changed()


def colored(text: str, attention: str) -> str:
    """Words as rich text, in a colour where they need attention."""
    color = COLORS[attention]
    return f'<span style="color:{color}">\u26a0 {escape(text)}</span>' if color else escape(text)


def _title(attentions: list[str]) -> str:
    """The title of the section, which says that something in it needs a look while it is folded."""
    if "alarm" in attentions:
        return f"{TITLE} \u2013 needs a correction"
    return f"{TITLE} \u2013 needs a look" if "doubt" in attentions else TITLE
