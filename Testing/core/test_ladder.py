"""What happens when memory is short, with simulated errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pipeline import SETTINGS, BrightTumourNetwork, bundle, study

from MTMed3DCore import cli
from MTMed3DCore.bundles import Bundle
from MTMed3DCore.errors import OutOfResources
from MTMed3DCore.inference import analyze
from MTMed3DCore.inference.ladder import Rung, climb_down, ladder, short_of_memory
from MTMed3DCore.inference.windows import RawResult
from Testing.cohorts import make_model, write_head

CUDA = torch.device("cuda")
NOTHING = RawResult(np.zeros((3, 1, 1, 1), np.float32), np.zeros((0, 6), np.float32), np.zeros(0, np.float32), None)


class SmallMemoryNetwork(BrightTumourNetwork):
    """Has memory for windows of 64 voxels and no larger ones."""

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        if max(x.shape[2:]) > 64:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return super().encode(x)


def climbed(rungs: list[Rung], suffices: Any) -> Rung:
    """The rung that served, where memory suffices for some only."""

    def run(rung: Rung) -> RawResult:
        if not suffices(rung):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return NOTHING

    return climb_down(rungs, run)[1]


def test_a_gpu_tries_one_window_at_a_time_then_smaller_ones_then_the_cpu() -> None:
    rungs = ladder(CUDA, (96, 128, 64), 4, may_leave=True)
    assert [(each.device.type, each.window, each.batch) for each in rungs] == [
        ("cuda", (96, 128, 64), 4),
        ("cuda", (96, 128, 64), 1),
        ("cuda", (64, 64, 64), 1),
        ("cuda", (64, 64, 64), 1),
        ("cpu", (96, 128, 64), 1),
    ]
    codes = [None if each.notice is None else each.notice.code for each in rungs]
    assert codes == [None, "memory-one-window", "memory-small-windows", "memory-on-host", "device-fallback"]
    assert [each.on_host for each in rungs] == [False, False, False, True, False]


def test_a_quick_analysis_goes_window_by_window_before_anything_else_changes() -> None:
    rungs = ladder(torch.device("cpu"), (96, 96, 96), 1, may_leave=True, focused=True)
    assert [(each.focused, each.window) for each in rungs] == [
        (True, (96, 96, 96)),
        (False, (96, 96, 96)),
        (False, (64, 64, 64)),
    ]
    assert rungs[1].notice is not None
    assert rungs[1].notice.code == "memory-not-whole"


def test_a_brain_that_is_known_not_to_fit_is_named_from_the_first_rung_on() -> None:
    rungs = ladder(torch.device("cpu"), (96, 96, 96), 1, may_leave=True, too_large=True)
    assert [each.focused for each in rungs] == [False, False]
    codes = [None if each.notice is None else each.notice.code for each in rungs]
    assert codes == ["memory-not-whole", "memory-small-windows"]


def test_a_device_that_was_asked_for_is_not_left_and_the_smallest_window_not_divided() -> None:
    assert [each.device.type for each in ladder(CUDA, (96, 96, 96), 1, may_leave=False)] == ["cuda"] * 3
    assert len(ladder(torch.device("cpu"), (64, 64, 64), 1, may_leave=True)) == 1


def test_the_first_rung_that_suffices_serves() -> None:
    rungs = ladder(CUDA, (96, 96, 96), 4, may_leave=True)
    assert climbed(rungs, lambda rung: True) is rungs[0]
    assert climbed(rungs, lambda rung: rung.batch == 1) is rungs[1]
    assert climbed(rungs, lambda rung: rung.device.type == "cpu") is rungs[4]
    with pytest.raises(torch.OutOfMemoryError):
        climbed(rungs, lambda rung: False)


def test_other_errors_are_not_taken_for_short_memory() -> None:
    tried = []

    def run(rung: Rung) -> RawResult:
        tried.append(rung)
        raise RuntimeError("expected scalar type Float")

    with pytest.raises(RuntimeError, match="scalar type"):
        climb_down(ladder(CUDA, (96, 96, 96), 4, may_leave=True), run)
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("FIND was unable to find an engine to execute this computation after trying 7 plans.", True),
        ("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`", False),
        ("cuDNN error: CUDNN_STATUS_BAD_PARAM", False),
    ],
)
def test_the_libraries_of_cuda_have_words_of_their_own_for_short_memory(text: str, short: bool) -> None:
    assert short_of_memory(RuntimeError(text)) is short


@pytest.fixture
def full_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is there, with no room for any network."""
    load = Bundle.load

    def loaded(bundle: Bundle, device: str | torch.device = "cpu") -> Any:
        if torch.device(device).type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return load(bundle, device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Bundle, "load", loaded)


@pytest.mark.usefixtures("full_gpu")
@pytest.mark.parametrize("names", [("one",), ("one", "two")])
def test_where_a_full_gpu_has_no_room_for_the_network_the_cpu_computes_and_the_findings_say_so(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    model, out = make_model(tmp_path / "model"), tmp_path / "out"
    cases = [str(write_head(tmp_path / name, 0)) for name in names]
    assert cli.main(["analyze", *cases, "-o", str(out), "--model", str(model), "--quiet"]) == 0
    for place in (out,) if len(names) == 1 else (out / name for name in names):
        findings = json.loads((place / "findings.json").read_text())
        assert "device-fallback" in [notice["code"] for notice in findings["warnings"]]
        assert findings["software"]["device"] == "cpu"


@pytest.mark.usefixtures("full_gpu")
def test_a_full_gpu_that_was_asked_for_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    model, case = make_model(tmp_path / "model"), write_head(tmp_path / "case", 0)
    command = ["analyze", str(case), "-o", str(tmp_path / "out"), "--model", str(model), "--device", "cuda"]
    assert cli.main([*command, "--quiet"]) == OutOfResources.exit_code


def test_findings_name_the_smaller_windows_and_hold_the_same_tumour() -> None:
    settings = replace(SETTINGS, window=96, spacing_mm=0.6)
    findings = analyze(study(), bundle(settings), device="cpu", network=SmallMemoryNetwork())
    assert "memory-small-windows" in [notice.code for notice in findings.warnings]
    expected = analyze(study(), bundle(settings), device="cpu", network=BrightTumourNetwork())
    assert "memory-small-windows" not in [notice.code for notice in expected.warnings]
    assert findings.labels.any()
    assert (findings.labels == expected.labels).all()


def test_short_memory_at_the_last_rung_is_a_refusal() -> None:
    class Greedy(BrightTumourNetwork):
        def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(OutOfResources):
        analyze(study(), bundle(replace(SETTINGS, window=96)), device="cpu", network=Greedy())
