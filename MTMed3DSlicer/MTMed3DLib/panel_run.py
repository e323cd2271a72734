"""The panel's button, progress and log: what the analysis is doing, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt

ANALYZE, CANCEL, CANCELLING = "Analyze", "Cancel", "Cancelling..."


class RunSection:
    """Widgets between the study and the findings.

    Args:
        ui: children of the panel by name.
        pressed: called when the button is pressed, whatever it says.
        log: gives the worker's messages.
    """

    def __init__(self, ui: Any, pressed: Callable[[], None], log: Callable[[], str]) -> None:
        self.ui, self._log = ui, log
        ui.logFrame.setVisible(False)
        ui.analyzeButton.connect("clicked()", pressed)
        ui.logButton.connect("toggled(bool)", self._on_log)
        ui.copyLogButton.connect("clicked()", self._on_copy)

    def show_ready(self, reasons: list[str], text: str) -> None:
        """Nothing runs: the button starts an analysis, or says every reason why it cannot.

        Args:
            reasons: empty where the study can be analysed.
            text: how the last run ended.
        """
        self._button(ANALYZE, enabled=not reasons)
        self.ui.analyzeButton.toolTip = "\n".join(reasons) or "Find tumour boxes, regions and the grade"
        self.ui.reasonsLabel.text = "\n".join(f"\u2022 {reason}" for reason in reasons)
        self.ui.reasonsLabel.setVisible(bool(reasons))
        self.ui.progressBar.setVisible(False)
        self._stage(text)

    def show_running(self, text: str, fraction: float | None, elapsed_s: float | None = None) -> None:
        """Something runs: the button cancels it.

        Args:
            text: the stage in words.
            fraction: 0 to 1, or None where nobody knows.
            elapsed_s: seconds since the start; they show that something happens while the bar stands still.
        """
        self._button(CANCEL, enabled=True)
        self.ui.analyzeButton.toolTip = "Stop the analysis; nothing of it is kept"
        self._bar(fraction)
        numbers = [] if fraction is None else [f"{fraction:.0%}"]
        numbers += [] if elapsed_s is None else [f"{elapsed_s:.0f} s"]
        self._stage(f"{text} \u2013 {', '.join(numbers)}" if numbers else text)

    def show_cancelling(self) -> None:
        """The wish to stop was passed on."""
        self._button(CANCELLING, enabled=False)
        self._bar(None)
        self._stage("Cancelling")

    def refresh_log(self) -> None:
        """Bring the log up to date where it is open, without moving what the reader looks at."""
        if not self.ui.logButton.checked:
            return
        text = self._log() or "The analysis process has not reported anything."
        if self.ui.logText.plainText != text:
            bar = self.ui.logText.verticalScrollBar()
            at_end, position = bar.value >= bar.maximum, bar.value
            self.ui.logText.setPlainText(text)
            bar.setValue(bar.maximum if at_end else position)

    def _button(self, text: str, enabled: bool) -> None:
        self.ui.analyzeButton.text = text
        self.ui.analyzeButton.enabled = enabled
        if text != ANALYZE:
            self.ui.reasonsLabel.setVisible(False)

    def _bar(self, fraction: float | None) -> None:
        self.ui.progressBar.setVisible(True)
        self.ui.progressBar.setRange(0, 0 if fraction is None else 1000)  # no range: a bar that only moves
        if fraction is not None:
            self.ui.progressBar.setValue(round(1000 * fraction))

    def _stage(self, text: str) -> None:
        self.ui.stageLabel.text = text
        self.ui.stageLabel.setVisible(bool(text))

    def _on_log(self, shown: bool) -> None:
        self.ui.logFrame.setVisible(shown)
        self.refresh_log()

    def _on_copy(self) -> None:
        qt.QApplication.clipboard().setText(self._log())
