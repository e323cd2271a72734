"""The whole analysis, with a network that reads its answer off the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from MTMed3DCore.bundles import Bundle
from MTMed3DCore.errors import Cancelled, OutOfResources, WrongUse
from MTMed3DCore.findings import Findings
from MTMed3DCore.geometry import Grid
from MTMed3DCore.inference import InferenceSettings, analyze, choose_device, choose_precision, run_network
from MTMed3DCore.inference.devices import full_fp32
from MTMed3DCore.notice import Notice
from MTMed3DCore.sequences import SEQUENCES

SETTINGS = InferenceSettings(spacing_mm=1.0, window=64, anchor_shapes=[[12, 12, 12]], grading_crop=32)


class BrightTumourNetwork:
    """Takes what is bright in the first channel for tumour, and boxes every place whose middle is in it."""

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [functional.avg_pool3d(x, stride) for stride in (2, 4, 8, 16, 32)]

    def segment(self, x: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        return (x[:, :1] - 2.0).repeat(1, 3, 1, 1, 1) * 20

    def detect(self, features: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        pairs = [(f[:, :1] * 4 - 14, torch.zeros(1, 6, *f.shape[2:])) for f in features[1:]]
        return [pairs[0], *((scores * 0 - 20, deltas) for scores, deltas in pairs[1:])]

    def grade(self, segmentation: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]])


class StubBundle(Bundle):
    """A bundle whose network needs no weights."""

    def load(self, device: str | torch.device = "cpu") -> BrightTumourNetwork:  # type: ignore[override]
        return BrightTumourNetwork()


def bundle(settings: InferenceSettings = SETTINGS) -> Bundle:
    return StubBundle(Path("nowhere"), "stub", "1.2", "nothing", {}, settings, "0" * 64, 0, {})


def study(tumour_at: tuple[int, int, int] = (14, 40, 11)) -> SimpleNamespace:
    """An oblique, flipped, anisotropic scan with a ball of 12 mm, bright in every sequence."""
    turn = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, -1.0, 2.0])
    affine[:3, 3] = [20.0, 30.0, -10.0]
    grid = Grid((50, 60, 28), affine)
    world = grid.to_world(np.stack(np.indices(grid.shape), axis=-1))
    brain = np.linalg.norm((world - grid.to_world((24.5, 29.5, 13.5))) / [1.0, 1.15, 1.1], axis=-1) < 23
    tumour = np.linalg.norm(world - grid.to_world(tumour_at), axis=-1) < 6
    array = (brain * np.random.default_rng(0).normal(100, 3, grid.shape) + tumour * 200).astype(np.float32)
    return SimpleNamespace(
        id="case",
        grid=grid,
        sequences={name: SimpleNamespace(array=array) for name in SEQUENCES},
        sources={name: Path(f"{name}.nii.gz") for name in SEQUENCES},
        warnings=(Notice("from-reading", "Said when the study was read."),),
        tumour=tumour,
    )


def test_an_analysis_finds_the_tumour_where_it_lies_on_the_scan() -> None:
    case = study()
    findings = analyze(case, bundle(), device="cpu", read_s=1.5)
    (lesion,) = findings.lesions
    assert lesion.origin == "detection"
    np.testing.assert_allclose(lesion.box.center, case.grid.to_world((14, 40, 11)), atol=0.5)
    np.testing.assert_allclose(lesion.box.size, [11, 11, 10], atol=2.01)
    found = findings.labels > 0
    assert 2 * (found & case.tumour).sum() / (found.sum() + case.tumour.sum()) > 0.9
    assert lesion.volumes_ml["enhancing"] == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.15)
    assert lesion.longest_diameter_mm == pytest.approx(12, abs=1.5)
    assert findings.grade is not None
    assert findings.grade.label == "LGG"
    assert findings.grade.probability_hgg == pytest.approx(1 / (1 + np.e))


def test_findings_say_where_they_come_from() -> None:
    findings = analyze(study(), bundle(), device="cpu", read_s=1.5)
    assert (findings.study_id, findings.model.name, findings.model.version) == ("case", "stub", "1.2")
    assert findings.sources["t2"] == "t2.nii.gz"
    assert findings.warnings[0].code == "from-reading"
    assert findings.timing_s["read"] == 1.5
    assert findings.timing_s["total"] == pytest.approx(sum(findings.timing_s[k] for k in ("read", "prepare", "infer")))
    assert (findings.software["device"], findings.software["precision"]) == ("cpu", "fp32")


def test_an_assumed_channel_order_is_said() -> None:
    assumed = InferenceSettings.from_dict({**SETTINGS.to_dict(), "channel_order_assumed": True})
    assert "channel-order-assumed" in [notice.code for notice in analyze(study(), bundle(assumed)).warnings]


def test_a_study_without_tumour_has_neither_lesion_nor_grade() -> None:
    case = study()
    for volume in case.sequences.values():
        volume.array = np.where(case.tumour, 100.0, volume.array).astype(np.float32)
    findings = analyze(case, bundle(), device="cpu")
    assert findings.lesions == ()
    assert findings.grade is None
    assert not findings.labels.any()


def test_the_listener_hears_the_stages_in_order_and_can_stop_them() -> None:
    stages: list[str] = []
    analyze(study(), bundle(), device="cpu", progress=lambda stage, fraction, text: stages.append(stage))
    assert list(dict.fromkeys(stages)) == ["prepare", "infer"]

    def stop(stage: str, fraction: float, text: str) -> None:
        if stage == "infer":
            raise Cancelled

    with pytest.raises(Cancelled):
        analyze(study(), bundle(), device="cpu", progress=stop)


def test_short_memory_is_a_refusal_with_a_remedy() -> None:
    class Greedy(BrightTumourNetwork):
        def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    with pytest.raises(OutOfResources) as refusal:
        analyze(study(), bundle(), device="cpu", network=Greedy())
    assert refusal.value.code == "memory"


@pytest.mark.parametrize(
    ("device", "code"), [("gpu", "device-unknown"), ("cpu:1", "device-unknown"), ("cuda:99", "device-absent")]
)
def test_devices_that_do_not_exist_are_refused(device: str, code: str) -> None:
    with pytest.raises(WrongUse, match=device) as refusal:
        choose_device(device)
    assert refusal.value.code == code


def test_the_cpu_computes_in_fp32_unless_told_otherwise() -> None:
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"
    with pytest.raises(WrongUse, match="fp16"):
        choose_precision("fp16", torch.device("cpu"))


@pytest.mark.parametrize(
    ("capability", "hip", "precision"), [((7, 5), None, "fp32"), ((8, 0), None, "bf16"), ((9, 0), "6.4", "bf16")]
)
def test_a_gpu_computes_in_bf16_where_it_has_instructions_for_it(
    capability: tuple[int, int], hip: str | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {torch.device("cuda:1"): capability}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *each: True)  # as torch says where it emulates
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: others[device])
    monkeypatch.setattr(torch.version, "hip", hip)
    assert choose_precision("auto", torch.device("cuda:1")) == precision


CUDNN: Any = torch.backends.cudnn


def tf32() -> tuple[Any, ...]:
    """What torch is set to for convolutions on CUDA; of a name that it refuses to read, that."""
    try:
        allowed = CUDNN.allow_tf32
    except RuntimeError:
        allowed = "mixed"
    return allowed, CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision if hasattr(CUDNN, "rnn") else None


@pytest.fixture
def as_it_comes() -> Iterator[None]:
    """Torch's settings of precision are as torch sets them, before and after."""
    yield
    torch.backends.fp32_precision = "none"
    CUDNN.allow_tf32 = True


SETTINGS_OF_TF32: dict[str, Callable[[], None]] = {
    "as it comes": lambda: None,
    "off": lambda: setattr(CUDNN, "allow_tf32", False),
    "newer name": lambda: setattr(CUDNN.conv, "fp32_precision", "ieee"),
    "on for all of torch": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


@pytest.mark.usefixtures("as_it_comes")
@pytest.mark.parametrize("setting", list(SETTINGS_OF_TF32))
def test_fp32_on_a_gpu_is_fp32_whatever_torch_is_set_to_and_the_setting_comes_back(setting: str) -> None:
    SETTINGS_OF_TF32[setting]()
    before = tf32()
    with suppress(Cancelled), full_fp32(torch.device("cuda"), "fp32"):
        assert CUDNN.conv.fp32_precision == "ieee"
        raise Cancelled
    assert tf32() == before
    for device, precision in (("cuda", "bf16"), ("cpu", "fp32")):
        with full_fp32(torch.device(device), precision):
            assert tf32() == before


@pytest.mark.usefixtures("as_it_comes")
def test_every_way_to_run_on_a_gpu_is_exact_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = run_network, []

    def full(network: Any, prepared: Any, settings: Any, device: torch.device, *rest: Any, **way: Any) -> Any:
        seen.append((device.type, CUDNN.conv.fp32_precision, CUDNN.allow_tf32))
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(network, prepared, settings, device, *rest, **way)

    monkeypatch.setattr("MTMed3DCore.inference.computing.run_network", full)
    monkeypatch.setattr("MTMed3DCore.inference.pipeline.choose_device", lambda name: torch.device("cuda"))
    findings = analyze(study(), bundle(replace(SETTINGS, window=96)), precision="fp32")
    assert findings.software["device"] == "cpu"
    assert seen == [("cuda", "ieee", False)] * 4 + [("cpu", "tf32", True)]


class CutNetwork(BrightTumourNetwork):
    """Its levels may be cut into windows; remembers the sizes of what it encoded."""

    level_strides = (2, 4, 8, 16, 32)
    config = {"feature_size": 12}  # noqa: RUF012

    def __init__(self) -> None:
        self.encoded: list[tuple[int, ...]] = []

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.encoded.append(tuple(x.shape[2:]))
        return super().encode(x)


FINE = replace(SETTINGS, spacing_mm=0.5)
"""At this spacing the study takes several windows."""


def quickly(network: CutNetwork, *, check_uncertainty: bool = False) -> Findings:
    """In fp32, whatever this machine is good at."""
    options = {"mode": "quick", "precision": "fp32", "check_uncertainty": check_uncertainty}
    return analyze(study(), bundle(FINE), device="cpu", network=network, **options)


@pytest.fixture
def little_memory(monkeypatch) -> None:
    """Enough for the brain in one pass and for the model's own windows, not for larger ones."""
    monkeypatch.setattr("MTMed3DCore.inference.measured.memory_at_hand", lambda device: 1.3e8)


@pytest.mark.usefixtures("little_memory")
def test_the_quick_mode_encodes_the_brain_once_and_finds_the_same_tumour() -> None:
    network = CutNetwork()
    exact = analyze(study(), bundle(FINE), device="cpu", check_uncertainty=True)
    quick = quickly(network, check_uncertainty=True)
    assert (exact.software["mode"], quick.software["mode"]) == ("exact", "quick")
    assert quick.labels.any()
    assert (quick.labels == exact.labels).all()
    assert len(quick.lesions) == len(exact.lesions) == 1
    np.testing.assert_allclose(quick.lesions[0].box.center, exact.lesions[0].box.center, atol=1e-3)
    whole = network.encoded[0]
    assert max(whole) > 64
    assert network.encoded.count(whole) == 2, "the study, and its mirror image"
    assert len(network.encoded) == 5, "twice the whole and the glance, and once what is graded"
    assert [each.code for each in quick.domain] == [each.code for each in exact.domain]


def test_the_lean_mode_segments_less_and_finds_the_same_tumour() -> None:
    segmented = []

    class Counting(CutNetwork):
        def segment(self, x: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
            segmented.append(tuple(x.shape[2:]))
            return super().segment(x, features)

    exact = analyze(study(), bundle(FINE), device="cpu", network=Counting(), check_uncertainty=True)
    everything = segmented.copy()
    segmented.clear()
    lean = analyze(study(), bundle(FINE), device="cpu", network=Counting(), mode="lean", check_uncertainty=True)
    assert lean.software["mode"] == "lean"
    assert len(segmented) < len(everything)
    both = int((lean.labels & exact.labels > 0).sum())
    assert 2 * both >= 0.99 * ((lean.labels > 0).sum() + (exact.labels > 0).sum()) > 0
    assert [each.code for each in lean.domain] == [each.code for each in exact.domain]


def test_a_brain_too_large_for_one_pass_is_analysed_window_by_window(monkeypatch) -> None:
    monkeypatch.setattr("MTMed3DCore.inference.measured.memory_at_hand", lambda device: 1e6)
    network = CutNetwork()
    findings = quickly(network)
    assert findings.labels.any()
    assert max(max(shape) for shape in network.encoded) == 64
    assert "memory-not-whole" in [notice.code for notice in findings.warnings], "the mode says quick, and was not"


@pytest.mark.usefixtures("little_memory")
def test_memory_that_fails_in_one_pass_is_named_and_the_windows_find_the_tumour() -> None:
    class Small(CutNetwork):
        def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
            if max(x.shape[2:]) > 64:
                raise MemoryError
            return super().encode(x)

    findings = quickly(Small())
    assert "memory-not-whole" in [notice.code for notice in findings.warnings]
    assert (findings.labels == analyze(study(), bundle(FINE), device="cpu").labels).all()


def test_where_nothing_is_focused_short_memory_is_not_blamed_on_the_whole_brain() -> None:
    class OneWindow(CutNetwork):
        def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
            self.encoded.append(tuple(x.shape[2:]))
            raise MemoryError

    network = OneWindow()
    with pytest.raises(OutOfResources):
        analyze(study(), bundle(), device="cpu", network=network, mode="quick", precision="fp32")
    assert len(network.encoded) == 1


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(WrongUse, match="hasty"):
        analyze(study(), bundle(), device="cpu", mode="hasty")
