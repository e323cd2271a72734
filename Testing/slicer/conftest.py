"""The panel's tests run on Slicer's own libraries and a stand-in for its widget layer; see `standin`."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODULE = ROOT / "MTMed3DSlicer"
for folder in (HERE, MODULE):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def missing_piece() -> str:
    """Why the panel cannot be tested here; empty where it can."""
    for name, extra in (("slicer", "the slicer-core wheel"), ("PySide6", "PySide6-Essentials")):
        if importlib.util.find_spec(name) is None:
            return f"{extra} (extra 'slicer') is not installed"
    try:
        import PySide6.QtWidgets  # noqa: F401
    except ImportError as error:  # Qt is there but the system lacks a library that it needs
        return f"Qt does not start here: {error}"
    return ""


@pytest.fixture(scope="session")
def application() -> Any:
    """``slicer.app`` of the stand-in."""
    reason = missing_piece()
    if reason:
        pytest.skip(reason)
    import standin

    return standin.install()


@pytest.fixture(scope="session")
def module(application: Any) -> Any:
    """The module as the application knows it once it has started."""
    import MTMed3D

    return application.register(MTMed3D.MTMed3D, MODULE / "MTMed3D.py")


@pytest.fixture
def scene(application: Any) -> Iterator[Any]:
    """The application's scene, empty before and after."""
    application.scene.Clear(0)
    application.messages.clear()
    application.answers.clear()
    yield application.scene
    application.scene.Clear(0)


@pytest.fixture
def worker() -> Any:
    """A worker that does what the test says."""
    from panel_driver import ObedientWorker

    return ObedientWorker()


@pytest.fixture
def panel(application: Any, module: Any, scene: Any, worker: Any) -> Iterator[Any]:
    import qt
    import slicer

    from MTMed3DLib.panel import Panel

    content = slicer.util.loadUI(module.module.resourcePath("UI/MTMed3D.ui"))
    content.setMRMLScene(scene)
    made = Panel(
        slicer.util.childWidgetVariables(content),
        scene,
        worker,
        lambda: [],
        lambda: None,
        lambda: pytest.fail("sample"),
    )
    content.show()
    made.content = content
    made.enter()
    yield made
    made.close()
    content.deleteLater()
    qt.QApplication.processEvents()


@pytest.fixture
def let(application: Any) -> Any:
    """Wait until something is so; returns the seconds."""
    from panel_driver import WAIT_S, wait_until

    return lambda done, limit_s=WAIT_S: wait_until(done, application, limit_s)


@pytest.fixture
def analysed(panel: Any, scene: Any, worker: Any, let: Any) -> Any:
    """A panel that shows two lesions."""
    from panel_driver import add_study

    add_study(scene)
    let(lambda: panel.ui.analyzeButton.enabled)
    panel.ui.analyzeButton.click()
    worker.finish()
    let(lambda: panel.findings.study is not None)
    return panel
