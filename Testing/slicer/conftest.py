"""The panel's tests run on Slicer's own libraries and a stand-in for its widget layer; see `standin`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path[:0] = [folder for folder in map(str, (Path(__file__).parent, Path(__file__).parents[2] / "MTMed3DSlicer"))
                if folder not in sys.path]  # fmt: skip

from surroundings import MODULE, missing_piece  # noqa: E402


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
