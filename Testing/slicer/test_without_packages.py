"""The module in an application that has none of the Python packages yet: it opens, and says what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from surroundings import MODULE, ROOT, missing_piece

SCRIPT = """
import json, sys
from pathlib import Path
root, here, module = sys.argv[1:]
sys.path[:0] = [here, module, root]
from MTMed3DLib import packages
for name in (*packages.NEEDED, "PyTorchUtils"):
    sys.modules[name] = None
import standin
application = standin.install()
import MTMed3D
from panel_driver import add_study, wait_until
panel = application.open_module(application.register(MTMed3D.MTMed3D, Path(module) / "MTMed3D.py")).panel
ui, scene = panel.ui, application.scene
add_study(scene)
wait_until(lambda: ui.analyzeButton.enabled, application)
told = {"missing": packages.missing(), "needed": packages.NEEDED}
ui.analyzeButton.click()
told["analyze"] = ui.stageLabel.text
panel.say("")
told["opened"] = panel.export.open(Path(root))
told["open"] = ui.stageLabel.text
from MTMed3DLib.nodes import tag
tag(scene.AddNewNodeByClass("vtkMRMLTextNode"), "earlier", "grade")
scene.InvokeEvent(scene.EndImportEvent)
wait_until(lambda: ui.stageLabel.text.startswith("The scene holds"), application)
told["scene"] = ui.stageLabel.text
application.unload("MTMed3D")
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> Any:
    """What the panel said on each occasion."""
    if missing_piece():
        pytest.skip(missing_piece())
    command = [sys.executable, "-c", SCRIPT, str(ROOT), str(Path(__file__).parent), str(MODULE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_panel_opens_and_fills_in_the_volumes(told: Any) -> None:
    assert told["missing"] == told["needed"]


def test_analyze_names_what_is_missing_first(told: Any) -> None:
    assert told["analyze"].startswith("The PyTorch extension is missing.")


def test_a_reviewed_case_is_not_opened_before_the_packages_are_there(told: Any) -> None:
    assert not told["opened"]
    assert told["open"].startswith("The PyTorch extension is missing.")


def test_a_study_of_the_scene_waits_for_them(told: Any) -> None:
    assert "Python packages are missing (torch," in told["scene"]
    assert told["scene"].endswith("click Analyze to install them.")
