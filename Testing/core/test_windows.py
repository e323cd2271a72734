"""Windows, stitching, and the order in which the tasks run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from MTMed3DCore.errors import Cancelled, ModelRefused
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.inference.detection import BoxCollector
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.inference.tiling import plan_windows
from MTMed3DCore.inference.windows import _Run, grading_crop, run_network
from MTMed3DCore.networks import build_network
from MTMed3DCore.preparation import PreparedStudy
from MTMed3DCore.progress import silent
from MTMed3DCore.sequences import SEQUENCES

SETTINGS = InferenceSettings(
    window=64, score_threshold=0.5, max_detections=50, nms_iou=0.3, anchor_shapes=[[10, 12, 14], [20, 16, 18]]
)


class LocalNetwork:
    """Answers in each voxel and place from what lies in it alone, so windows must make no difference."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.mix = torch.randn(3, 4, 1, 1, 1, generator=random)
        self.heads = [(torch.randn(2, 4, 1, 1, 1, generator=random), torch.randn(12, 4, 1, 1, 1, generator=random))]
        self.heads *= 4
        self.graded: list[torch.Tensor] = []
        self.encoded = 0

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.encoded += 1
        assert all(side % 32 == 0 for side in x.shape[2:])
        return [functional.avg_pool3d(x, stride) * stride for stride in (2, 4, 8, 16, 32)]

    def segment(self, x: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        return functional.conv3d(x, self.mix)

    def detect(self, features: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        pairs = zip(features[1:], self.heads, strict=True)
        return [(functional.conv3d(f, s) - 3, functional.conv3d(f, b) * 0.1) for f, (s, b) in pairs]

    def grade(self, segmentation: torch.Tensor) -> torch.Tensor:
        self.graded.append(segmentation)
        return torch.tensor([[0.0, np.log(3.0)]])


def prepared_study(shape: tuple[int, int, int] = (130, 70, 100), seed: int = 0) -> PreparedStudy:
    image = np.random.default_rng(seed).standard_normal((4, *shape), dtype=np.float32)
    grid = Grid(shape, np.eye(4))
    return PreparedStudy(image, np.ones(shape, dtype=bool), grid, grid, True)


@pytest.mark.parametrize("window", [64, 96, 128])
@pytest.mark.parametrize("extent", [(240, 240, 155), (130, 70, 20), (128, 96, 33)])
def test_windows_start_on_the_lattice_of_all_levels_and_their_parts_tile_the_volume(
    extent: tuple[int, int, int], window: int
) -> None:
    padded, windows = plan_windows(extent, window)
    tiles, covered = np.zeros(padded, dtype=int), np.zeros(padded, dtype=int)
    for each in windows:
        assert all(start % 32 == 0 for start in each.start)
        assert all(side % 32 == 0 and side <= window for side in each.size)
        tiles[tuple(slice(low, high) for low, high in zip(*each.own, strict=True))] += 1
        covered[each.slices] += 1
    assert (tiles == 1).all()
    assert covered.min() >= 1
    assert all(0 <= full - side < 32 and full % 32 == 0 for full, side in zip(padded, extent, strict=True))


def test_an_axis_that_fits_into_a_window_gets_one_of_its_own_length() -> None:
    padded, windows = plan_windows((60, 97, 30), 128)
    assert padded == (64, 128, 32)
    assert [(each.start, each.size) for each in windows] == [((0, 0, 0), (64, 128, 32))]


def test_a_volume_within_one_granule_still_leaves_the_deepest_level_more_than_one_voxel() -> None:
    padded, windows = plan_windows((20, 32, 9), 96)
    assert padded == (64, 32, 32)
    network = build_network("mtmed3d", 12, num_anchors=2).eval()
    result = run_network(network, prepared_study((20, 32, 9)), SETTINGS)
    assert len(windows) == 1
    assert result.regions.shape == (3, 20, 32, 9)


def test_neighbouring_windows_overlap_by_thirty_two() -> None:
    _, windows = plan_windows((160, 30, 30), 96)
    assert [each.start[0] for each in windows] == [0, 64]
    assert [(each.own[0][0], each.own[1][0]) for each in windows] == [(0, 80), (80, 160)]


@pytest.mark.parametrize("window", [64, 96])
def test_windows_stitch_to_what_one_pass_over_the_whole_volume_gives(window: int) -> None:
    prepared = prepared_study()
    network = LocalNetwork()
    whole = run_network(network, prepared, replace(SETTINGS, window=160))
    assert network.encoded == 2, "the whole and what is graded"
    parts = run_network(network, prepared, replace(SETTINGS, window=window))
    assert network.encoded > 4
    np.testing.assert_allclose(parts.regions, whole.regions, atol=2e-6)
    assert parts.regions.shape == (3, 130, 70, 100)
    assert len(whole.boxes) > 10
    np.testing.assert_allclose(parts.boxes, whole.boxes, atol=1e-3)
    np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-5)


def test_windows_in_batches_give_what_they_give_one_by_one() -> None:
    prepared = prepared_study()
    alone = run_network(LocalNetwork(), prepared, SETTINGS)
    together = run_network(LocalNetwork(), prepared, SETTINGS, batch=5)
    np.testing.assert_allclose(together.regions, alone.regions, atol=1e-6)
    np.testing.assert_allclose(together.boxes, alone.boxes, atol=1e-4)


def test_nothing_is_asked_of_the_device_between_the_first_window_and_the_last() -> None:
    """Tensors of the device `meta` have no values: whoever wants one, as a GPU's host would have to wait for, fails."""
    device = torch.device("meta")
    network = build_network("mtmed3d", 12, num_anchors=2).eval()
    network.multiply_out()
    padded, windows = plan_windows((100, 70, 70), 64)
    boxes = BoxCollector(SETTINGS, (100, 70, 70))
    volume = torch.zeros((1, 4, *padded), device=device)
    brain = VoxelBox((0, 0, 0), (100, 70, 70))
    run = _Run(network.to(device), volume, brain, SETTINGS, device, "fp32", silent, boxes)
    with torch.inference_mode():
        run.everywhere(windows, 2)
    assert run.detects


def test_regions_gathered_on_the_host_are_the_same() -> None:
    prepared = prepared_study()
    there = run_network(LocalNetwork(), prepared, SETTINGS, on_host=True)
    here = run_network(LocalNetwork(), prepared, SETTINGS)
    np.testing.assert_array_equal(there.regions, here.regions)
    np.testing.assert_array_equal(there.boxes, here.boxes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_voxel_that_is_not_finite_is_enough_for_a_refusal(value: float) -> None:
    prepared = prepared_study((200, 70, 100))
    network = LocalNetwork()
    plain = network.segment

    def spoilt(x: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        logits = plain(x, features)
        if network.encoded == 2:
            logits[0, 1, 3, 4, 5] = value
        return logits

    network.segment = spoilt  # type: ignore[method-assign]
    with pytest.raises(ModelRefused, match="segmentation is not finite"):
        run_network(network, prepared, SETTINGS)


def test_windows_of_three_sides_stitch_alike() -> None:
    prepared = prepared_study()
    cubic = run_network(LocalNetwork(), prepared, SETTINGS)
    oblong = run_network(LocalNetwork(), prepared, SETTINGS, window=(96, 64, 128))
    np.testing.assert_allclose(oblong.regions, cubic.regions, atol=2e-6)


class DarkNetwork(LocalNetwork):
    """Sees tumour where the first channel is bright, and counts the windows that it segments."""

    level_strides = (2, 4, 8, 16, 32)

    def __init__(self, boxes: bool = False) -> None:
        super().__init__()
        self.boxes, self.segmented = boxes, 0

    def segment(self, x: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        self.segmented += len(x)
        return (x[:, :1] - 5).repeat(1, 3, 1, 1, 1)

    def detect(self, features: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        maps = [(f[:, :1].repeat(1, 2, 1, 1, 1) * 0 - 9, f[:, :1].repeat(1, 12, 1, 1, 1) * 0) for f in features[1:]]
        if self.boxes:
            maps[0][0][0, 0, 2, 2, 2] = 4.0
        return maps


def dark_study(at: int = 20) -> PreparedStudy:
    prepared = prepared_study((256, 64, 64))
    prepared.image[:] = 0.0
    prepared.image[:, at : at + 20, 20:40, 20:40] = 10.0
    return prepared


def models_own(extent: tuple[int, int, int]) -> tuple[int, int, int]:
    return 64, 64, 64


@pytest.mark.parametrize("at", [20, 55, 200])
def test_a_focused_run_encodes_once_and_segments_only_round_the_tumour(at: int) -> None:
    full, focused = DarkNetwork(), DarkNetwork()
    everything = run_network(full, dark_study(at), SETTINGS)
    some = run_network(focused, dark_study(at), SETTINGS, focus=models_own)
    assert (full.encoded, full.segmented) == (7 + 1, 7 + 1)  # the windows, and what is graded
    assert focused.encoded == 1 + 1 + 1  # the whole, the glance, what is graded
    assert focused.segmented == 1 + 1 + 1  # the glance, one window, what is graded
    np.testing.assert_array_equal(some.regions >= 0.5, everything.regions >= 0.5)
    assert (some.regions >= 0.5).sum() == 3 * 20**3
    assert some.hgg_probability == pytest.approx(everything.hgg_probability)


@pytest.mark.parametrize(("at", "needed"), [(20, 1), (55, 3), (200, 2)])
def test_a_lean_run_segments_those_windows_of_the_fixed_tiling_that_hold_something(at: int, needed: int) -> None:
    full, lean = DarkNetwork(), DarkNetwork()
    everything = run_network(full, dark_study(at), SETTINGS)
    some = run_network(lean, dark_study(at), SETTINGS, lean=True, batch=2)
    assert lean.segmented == 1 + needed + 1  # the glance, the windows, what is graded
    np.testing.assert_array_equal(some.regions >= 0.5, everything.regions >= 0.5)
    np.testing.assert_array_equal(some.boxes, everything.boxes)
    assert some.regions.min() == 0, "a window that is left out says that nothing is there"


@pytest.mark.parametrize("batch", [1, 3])
def test_levels_cut_from_the_whole_give_what_windows_give(batch: int) -> None:
    class FromLevels(LocalNetwork):
        """Segments by the encoder's levels, so that a level cut wrongly shows."""

        level_strides = (2, 4, 8, 16, 32)

        def segment(self, x: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
            wide = [functional.interpolate(level, x.shape[2:]) for level in features]
            return functional.conv3d(sum(wide, x) / 6, self.mix)

    prepared = prepared_study((200, 70, 100))
    windows = run_network(FromLevels(), prepared, SETTINGS)
    focused = run_network(FromLevels(), prepared, SETTINGS, focus=models_own, batch=batch)
    np.testing.assert_allclose(focused.regions, windows.regions, atol=2e-6)
    np.testing.assert_allclose(focused.boxes, windows.boxes, atol=1e-3)
    np.testing.assert_allclose(focused.scores, windows.scores, atol=1e-5)


def test_a_network_whose_levels_cannot_be_cut_is_computed_window_by_window() -> None:
    network = DarkNetwork()
    network.level_strides = None  # type: ignore[assignment]
    run_network(network, dark_study(), SETTINGS, focus=models_own)
    assert network.encoded == 7 + 1


def test_a_box_calls_for_its_segmentation_whatever_the_glance_saw() -> None:
    prepared = dark_study()
    prepared.image[:] = 0.0
    without, boxed = DarkNetwork(), DarkNetwork(boxes=True)
    clean = run_network(without, prepared, SETTINGS, focus=models_own)
    assert without.segmented == 1
    assert clean.regions.shape == (3, 256, 64, 64)
    assert not clean.regions.any()
    run_network(boxed, prepared, SETTINGS, focus=models_own)
    assert boxed.segmented == 1 + 1
    lean = DarkNetwork(boxes=True)
    run_network(lean, prepared, SETTINGS, lean=True)
    assert lean.segmented > 1
    assert lean.encoded == 1 + 7 + (lean.segmented - 1), "once more where a box came after its window"


def test_channels_come_in_the_order_that_the_model_was_trained_with() -> None:
    prepared = prepared_study((32, 32, 32))
    network = LocalNetwork()
    network.mix = torch.eye(4)[:3, :, None, None, None]
    order = ("flair", "t1ce", "t1", "t2")
    regions = run_network(network, prepared, replace(SETTINGS, channel_order=order)).regions
    expected = 1 / (1 + np.exp(-prepared.image[[SEQUENCES.index(name) for name in order[:3]]]))
    np.testing.assert_allclose(regions, expected, atol=1e-6)


def test_the_grade_is_the_softmax_of_one_pass_round_the_tumour_and_absent_without_one() -> None:
    network = LocalNetwork()
    prepared = prepared_study((130, 40, 40))
    prepared.brain[:40] = prepared.brain[100:] = False
    result = run_network(network, prepared, replace(SETTINGS, grading_crop=64))
    assert result.hgg_probability == pytest.approx(0.75)
    (graded,) = network.graded
    order = [SEQUENCES.index(name) for name in SETTINGS.channel_order]
    seen = torch.zeros(1, 4, 64, 64, 64)
    seen[..., :40, :40] = torch.from_numpy(prepared.image[order, 38:102])
    torch.testing.assert_close(graded, network.segment(seen, []))


def test_nothing_is_graded_without_tumour() -> None:
    network = LocalNetwork()
    network.mix = network.mix * 0.0
    clean = run_network(network, prepared_study((40, 40, 40)), replace(SETTINGS, region_thresholds=(0.9, 0.9, 0.9)))
    assert clean.hgg_probability is None
    assert network.graded == []


def test_there_is_no_tumour_outside_the_brain() -> None:
    prepared = prepared_study((40, 32, 32))
    prepared.brain[20:] = False
    network = LocalNetwork()
    network.mix = network.mix * 0.0
    regions = run_network(network, prepared, SETTINGS).regions
    assert (regions[:, :21] == 0.5).all()
    assert not regions[:, 21:].any()


def test_a_network_without_a_task_leaves_its_part_empty() -> None:
    network = LocalNetwork()
    network.detect = lambda features: None  # type: ignore[method-assign,assignment]
    assert run_network(network, prepared_study((32, 32, 32)), SETTINGS).boxes.shape == (0, 6)
    network = LocalNetwork()
    network.segment = lambda x, features: None  # type: ignore[method-assign,assignment]
    detected = run_network(network, prepared_study((32, 40, 32)), SETTINGS)
    assert detected.regions.shape == (3, 32, 40, 32)
    assert not detected.regions.any()
    assert detected.hgg_probability is None
    assert len(detected.boxes) > 0


def test_bf16_stays_close_to_fp32() -> None:
    prepared, network = prepared_study((64, 64, 64)), LocalNetwork()
    fine = run_network(network, prepared, SETTINGS).regions
    coarse = run_network(network, prepared, SETTINGS, precision="bf16").regions
    assert coarse.dtype == np.float32
    assert 1e-6 < np.abs(coarse - fine).max() < 0.05


def test_progress_counts_windows_and_can_cancel_between_them() -> None:
    told: list[str] = []

    def listen(stage: str, fraction: float, text: str) -> None:
        assert stage == "infer"
        assert 0 <= fraction <= 1
        told.append(text)
        if text == "Window 3 of 3":
            raise Cancelled

    network = LocalNetwork()
    with pytest.raises(Cancelled):
        run_network(network, prepared_study((128, 64, 64)), SETTINGS, progress=listen)
    assert told == ["Window 1 of 3", "Window 2 of 3", "Window 3 of 3"]
    assert network.encoded == 2


def test_a_segmentation_that_is_not_finite_is_refused() -> None:
    network = LocalNetwork()
    network.mix[0, 0] = float("nan")
    with pytest.raises(ModelRefused, match="not finite") as refusal:
        run_network(network, prepared_study((32, 32, 32)), SETTINGS)
    assert refusal.value.code == "output-not-finite"


def test_the_grading_crop_holds_the_largest_tumour_in_its_middle() -> None:
    image = torch.arange(90 * 90 * 90, dtype=torch.float32).reshape(1, 90, 90, 90).repeat(4, 1, 1, 1)
    tumour = np.zeros((90, 90, 90), dtype=bool)
    tumour[40:50, 30:44, 60:66] = True
    tumour[5:7, 5:7, 5:7] = True
    crop = grading_crop(image, tumour, 32)
    torch.testing.assert_close(crop[0], image[:, 29:61, 21:53, 47:79])


def test_the_grading_crop_stays_inside_and_fills_what_is_missing_with_zeros() -> None:
    image = torch.full((4, 90, 30, 30), 1.0)
    image[:, 0:5, 0:5, 0:5] = 6.0
    tumour = np.zeros((90, 30, 30), dtype=bool)
    tumour[0:5, 0:5, 0:5] = True
    crop = grading_crop(image, tumour, 64)
    assert crop.shape == (1, 4, 64, 64, 64)
    torch.testing.assert_close(crop[0, :, :, :30, :30], image[:, :64])
    assert (crop[..., 30:, :] == 0).all()
    assert (crop[..., 30:] == 0).all()


def test_the_grading_crop_leaves_the_study_on_no_side_that_is_long_enough() -> None:
    network = LocalNetwork()
    prepared = prepared_study((70, 66, 65))
    prepared.brain[:60] = False
    run_network(network, prepared, SETTINGS)
    order = [SEQUENCES.index(name) for name in SETTINGS.channel_order]
    (graded,) = network.graded
    seen = torch.from_numpy(prepared.image[order, 6:, 1:65, :64])[None]
    torch.testing.assert_close(graded, network.segment(seen, []))


def test_settings_survive_json_and_refuse_what_no_model_can_have() -> None:
    settings = InferenceSettings(anchor_shapes=[[1, 2, 3]], channel_order=["t2", "t1", "flair", "t1ce"])
    assert InferenceSettings.from_dict(settings.to_dict()) == settings
    wrong = (({"window": 100}, "window"), ({"window": 32}, "window"), ({"channel_order": ["t1"] * 4}, "channel_order"))
    for plain, name in wrong:
        with pytest.raises(ModelRefused, match=name):
            InferenceSettings.from_dict(plain)
    with pytest.raises(ModelRefused, match="overlap"):
        InferenceSettings.from_dict({"overlap": 0.5})
