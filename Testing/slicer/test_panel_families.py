"""A bundle of another family of networks, chosen in the panel, analyses a brain study in a real worker process."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="no torch to make a bundle with"),
    pytest.mark.skipif("MTMED3D_WORKER_PYTHON" in os.environ, reason="the worker is another Python's"),
]
SEQUENCES = ("t1", "t1ce", "t2", "flair")
SIDE, SPACING_MM = 40, 4.0
NAME = "small-resformer"
ANALYSIS_S = 400.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small ResFormer for brain studies, with the weights that it starts its training with."""
    import torch

    from MTMed3DCore import bundles
    from MTMed3DCore.inference import InferenceSettings
    from MTMed3DCore.networks import find_family

    torch.manual_seed(1)
    family = find_family("resformer")
    network = family.for_brain(8, family.tasks, 2, 64, {"blocks": [1, 1, 1, 1], "drop_path": 0.0})
    settings = InferenceSettings(window=64, grading_crop=64, spacing_mm=SPACING_MM)
    root = tmp_path_factory.mktemp("models")
    bundles.save_bundle(root / NAME, network, settings, name=NAME, version="0.1", trained_on="Nothing.", card="")
    return root


@pytest.fixture
def widget(application: Any, module: Any, scene: Any, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module's widget, whose worker finds that bundle."""
    monkeypatch.setenv("MTMED3D_MODELS", str(models))
    opened = application.open_module(module)
    yield opened
    application.unload("MTMed3D")
    opened.parent.deleteLater()
    application.processEvents()


@pytest.fixture
def study(scene: Any) -> dict[str, Any]:
    """Four volumes of a skull-stripped ball."""
    import slicer

    side = np.linspace(-1, 1, SIDE)
    x, y, z = np.meshgrid(side, side, side, indexing="ij")
    ball = np.sqrt(x**2 + y**2 + z**2) < 0.8
    rng = np.random.default_rng(0)
    nodes = {}
    for name in SEQUENCES:
        array = np.where(ball, 100 + 10 * rng.standard_normal(ball.shape), 0).astype(np.float32)
        matrix = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
        nodes[name] = slicer.util.addVolumeFromArray(np.ascontiguousarray(array.T), ijkToRAS=matrix, name=name)
        nodes[name].CreateDefaultDisplayNodes()
    return nodes


def test_a_resformer_of_the_model_selector_analyses_a_brain_study(widget: Any, study: dict[str, Any], let: Any) -> None:
    panel, ui = widget.panel, widget.panel.ui
    let(lambda: ui.analyzeButton.enabled and ui.modelCombo.count > 1, ANALYSIS_S)
    offered = [ui.modelCombo.itemText(index) for index in range(ui.modelCombo.count)]
    ui.modelCombo.setCurrentIndex(offered.index(f"{NAME} 0.1"))
    ui.analyzeButton.click()
    let(lambda: not panel.analysis.busy, ANALYSIS_S)
    assert panel.analysis.failure is None, str(panel.analysis.failure)
    shown = panel.findings.study
    assert shown.findings.model.name == NAME
    assert ui.modelLabel.text == f"{NAME} 0.1"
    labels = shown.labels()
    assert labels.shape == (SIDE, SIDE, SIDE)
    assert labels.any()
    assert shown.volumes_ml()["whole_tumour"] == pytest.approx((labels > 0).sum() * SPACING_MM**3 / 1000)
    # The family finds no boxes: every box is drawn round a region that it segmented.
    assert shown.boxes()
    assert [lesion.origin for lesion in shown.findings.lesions] == ["region"] * len(shown.boxes())
    assert shown.findings.grade is not None
    assert ui.maskQuality.text.startswith("the study came skull-stripped")
    assert ui.t2Quality.text == "not needed, lies on the T1ce already"
