"""The sizes of windows that a measured cost recommends, and what is measured and remembered for it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from MTMed3DCore.inference import measured
from MTMed3DCore.inference.measured import (
    TURNS,
    bf16_pays,
    cache_folder,
    fits_whole,
    focus_sides,
    memory_at_hand,
    remembered,
    window_cost,
    window_seconds,
)
from MTMed3DCore.inference.tiling import WindowCost, fitting_sides, plan_windows, quickest_sides

BRAIN = (144, 176, 139)
LINEAR = WindowCost(fixed_s=0.1, voxel_s=1e-6)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTMED3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measured, "_here", {})


def seconds(sides: tuple[int, int, int] | int) -> float:
    return LINEAR.seconds(window.size for window in plan_windows(BRAIN, sides)[1])


def quickest(most_voxels: float) -> tuple[int, int, int]:
    return quickest_sides(BRAIN, fitting_sides(BRAIN, 96, most_voxels), LINEAR)


def test_with_memory_enough_one_window_without_overlap_is_quickest():
    assert quickest(1e9) == (160, 192, 160)
    assert seconds((160, 192, 160)) < 0.5 * seconds(96)


def test_with_less_memory_windows_keep_within_it_and_are_still_quicker_than_the_models():
    sides = quickest(160 * 128 * 160)
    assert sides[0] * sides[1] * sides[2] <= 160 * 128 * 160
    assert seconds(sides) < seconds(96)
    assert all(side % 32 == 0 and side >= 96 for side in sides)


def test_without_memory_the_models_own_window_stays():
    assert fitting_sides(BRAIN, 96, 0.0) == [(96, 96, 96)]
    assert fitting_sides((60, 176, 30), 96, 0.0) == [(64, 96, 32)]


def test_the_cost_is_measured_only_where_there_is_a_choice(monkeypatch):
    asked = []
    monkeypatch.setattr(measured, "window_cost", lambda *each: asked.append(each) or LINEAR)
    network = SimpleNamespace(config={"feature_size": 12})
    monkeypatch.setattr(measured, "memory_at_hand", lambda device: 0.0)
    assert focus_sides(network, 4, 96, CPU, "fp32")(BRAIN) == (96, 96, 96)
    assert not asked
    monkeypatch.setattr(measured, "memory_at_hand", lambda device: 1e12)
    assert focus_sides(network, 4, 96, CPU, "fp32")(BRAIN) == (160, 192, 160)
    assert len(asked) == 1


def test_whether_a_volume_fits_follows_from_features_precision_and_memory(monkeypatch):
    monkeypatch.setattr(measured, "memory_at_hand", lambda device: 1e9)
    fits = {
        (features, precision): fits_whole(SimpleNamespace(config={"feature_size": features}), BRAIN, CPU, precision)
        for features in (12, 48)
        for precision in ("fp32", "bf16")
    }
    assert fits == {(12, "fp32"): True, (12, "bf16"): True, (48, "fp32"): False, (48, "bf16"): True}


def test_figures_are_measured_once_and_kept_for_the_next_process(monkeypatch):
    assert remembered("speed", lambda: {"s": 2.0}) == {"s": 2.0}
    monkeypatch.setattr(measured, "_here", {})
    assert remembered("speed", lambda: {"s": 3.0}) == {"s": 2.0}
    assert remembered("other", lambda: {"s": 4.0}) == {"s": 4.0}
    monkeypatch.setattr(measured, "_here", {})
    assert remembered("speed", lambda: {"s": 3.0}) == {"s": 2.0}


@pytest.mark.parametrize("content", ["", "[]", '{"speed": 1}', '{"speed": {"s": "fast"}}'])
def test_a_damaged_cache_is_measured_anew(content):
    cache_folder().mkdir(parents=True)
    (cache_folder() / "measured.json").write_text(content)
    assert remembered("speed", lambda: {"s": 3.0}) == {"s": 3.0}


def test_a_cache_that_cannot_be_written_costs_a_measurement_and_no_more(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MTMED3D_CACHE", str(tmp_path / "file" / "folder"))
    assert remembered("speed", lambda: {"s": 3.0}) == {"s": 3.0}
    assert remembered("speed", lambda: {"s": 4.0}) == {"s": 3.0}


def test_the_cost_of_any_window_follows_from_two(monkeypatch):
    monkeypatch.setattr(
        measured, "window_seconds", lambda _, shape, *rest: 0.25 + 2e-6 * shape[2] * shape[3] * shape[4]
    )
    cost = window_cost(SimpleNamespace(config={"feature_size": 12}), 4, CPU, "fp32")
    assert cost.seconds([(128, 96, 96)]) == pytest.approx(0.25 + 2e-6 * 128 * 96 * 96)
    assert cost.seconds([(96, 96, 96)] * 3) == pytest.approx(3 * (0.25 + 2e-6 * 96**3))


@pytest.mark.parametrize(("gain", "pays"), [(1.2, False), (1.4, True)])
def test_bf16_is_taken_where_it_was_measured_to_pay(monkeypatch, gain, pays):
    monkeypatch.setattr(measured, "window_seconds", lambda *each, **_: gain if each[3] == "fp32" else 1.0)
    assert bf16_pays(SimpleNamespace(config={}), 4, CPU) is pays
    monkeypatch.setattr(measured, "window_seconds", lambda *each, **_: 1.0)
    assert bf16_pays(SimpleNamespace(config={}), 4, CPU) is pays


class Counting:
    """Remembers its passes."""

    config = {"feature_size": 12}  # noqa: RUF012

    def __init__(self):
        self.passes = []

    def encode(self, x):
        self.passes.append("encode")

    def segment(self, x, features):
        self.passes.append("segment")

    def detect(self, features):
        self.passes.append("detect")


def test_a_window_is_timed_as_a_quick_run_pays_for_it_without_its_encoding():
    quick, exact = Counting(), Counting()
    window_seconds(quick, (1, 4, 8, 8, 8), CPU, "fp32")
    assert quick.passes == ["encode", *["segment"] * (TURNS + 1)]
    window_seconds(exact, (1, 4, 8, 8, 8), CPU, "fp32", all_passes=True)
    assert [exact.passes.count(each) for each in ("detect", "segment")] == [TURNS + 1] * 2


def test_whether_bf16_pays_follows_from_all_passes(monkeypatch):
    asked = []
    monkeypatch.setattr(measured, "window_seconds", lambda *each, **more: asked.append(more) or 1.0)
    bf16_pays(SimpleNamespace(config={}), 4, CPU)
    assert asked == [{"all_passes": True}] * 2


def test_figures_of_whole_windows_that_an_earlier_version_remembered_are_not_taken_for_the_segmentations():
    window_cost(Counting(), 4, CPU, "fp32")
    (key,) = json.loads((cache_folder() / "measured.json").read_text())
    assert key.startswith("segment | ")


def test_what_torch_has_of_a_gpu_and_does_not_use_is_at_hand(monkeypatch):
    for name, value in {"mem_get_info": (100, 999), "memory_reserved": 70, "memory_allocated": 30}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory_at_hand(torch.device("cuda")) == (100 + 70 - 30) / 2
