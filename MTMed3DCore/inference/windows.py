"""One encoder pass a window for every task, stitched to the whole working volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data.utils import compute_importance_map
from scipy import ndimage

from MTMed3DCore.errors import ModelRefused
from MTMed3DCore.findings import WHOLE_TUMOUR
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.inference.coarse import LEAST_WINDOWS, windows_with_tumour
from MTMed3DCore.inference.detection import BoxCollector
from MTMed3DCore.inference.settings import GRANULE, InferenceSettings
from MTMed3DCore.inference.tiling import Triple, Window, plan_windows
from MTMed3DCore.networks.registry import TASKS
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.sequences import SEQUENCES

if TYPE_CHECKING:
    from MTMed3DCore.preparation import PreparedStudy


@dataclass(frozen=True, eq=False)
class RawResult:
    """What the network says, on the working grid.

    Args:
        regions: float32 (3, X, Y, Z), probabilities of tumour core, whole tumour, enhancing tumour; zero further than a
            voxel outside the brain, and everywhere from a network that does not segment.
        boxes: float32 (N, 6), half-open voxel boxes, best first.
        scores: float32 (N,), 0 to 1.
        hgg_probability: 0 to 1; None without tumour or without a grading branch.
        detects: whether the network looks for boxes; if not, there are none.
    """

    regions: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    hgg_probability: float | None
    detects: bool = True


def run_network(
    network: Any,
    prepared: PreparedStudy,
    settings: InferenceSettings,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    progress: Progress = silent,
    *,
    window: Triple | None = None,
    batch: int = 1,
    glance: bool = False,
) -> RawResult:
    """Run every task of a network on a prepared study.

    Regions are the mean of the windows' probabilities with Gaussian weights. The grade comes from a pass of its own
    over a cube round the largest tumour, as in training: logits that are stitched from several windows are unlike any
    that the grading branch has learnt from.

    Args:
        network: a `TaskNetwork` in eval mode on `device`.
        prepared: image in the order of `SEQUENCES`; channels are reordered here to the model's order.
        settings: the model's.
        precision: ``"fp32"``, or ``"bf16"`` for autocast; boxes are decoded in fp32 either way.
        progress: told as stage ``infer``, window by window, and may cancel there.
        window: sides of the windows in place of the model's; see `MTMed3DCore.inference.tiling.quickest_sides`.
        batch: windows that go through the network at a time.
        glance: segment only where a pass at half the resolution, or a box, gives reason to; see
            `MTMed3DCore.inference.coarse`.

    Raises:
        ModelRefused: outputs that are not finite or do not fit the settings.
        Cancelled: by the listener.
    """
    device = torch.device(device)
    padded, windows = plan_windows(prepared.grid.shape, window or settings.window)
    order = [SEQUENCES.index(name) for name in settings.channel_order]
    # The volume stays on the CPU; a batch of windows at a time goes to the device.
    volume = torch.zeros((1, len(order), *padded))
    x, y, z = prepared.grid.shape
    volume[0, :, :x, :y, :z] = torch.from_numpy(prepared.image[order])
    stitch = _Stitch(padded, windows[0].size)
    boxes = BoxCollector(settings, prepared.grid.shape)
    detects = False

    def rounded() -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

    with torch.inference_mode():
        asked = [True] * len(windows)
        if glance and len(windows) >= LEAST_WINDOWS and "segmentation" in getattr(network, "tasks", TASKS):
            progress("infer", 0.0, "Glance")
            with rounded():
                asked = windows_with_tumour(network, volume, windows, device)
        for first in range(0, len(windows), batch):
            some = windows[first : first + batch]
            progress("infer", first / (len(windows) + 1), f"Window {first + 1} of {len(windows)}")
            part = torch.cat([volume[(slice(None), slice(None), *each.slices)] for each in some]).to(device)
            with rounded():
                features = network.encode(part)
                detection = network.detect(features)
            wanted = asked[first : first + batch]
            if detection is not None:
                detects = True
                for index, each in enumerate(some):
                    maps = [(scores[index : index + 1], deltas[index : index + 1]) for scores, deltas in detection]
                    wanted[index] |= boxes.add(maps, each.start, each.size, each.own) > 0
            if not any(wanted):
                continue
            if not all(wanted):
                some = [each for each, want in zip(some, wanted, strict=True) if want]
                part, *features = (level[torch.tensor(wanted, device=device)] for level in (part, *features))
            with rounded():
                segmentation = network.segment(part, features)
                views = [segmentation, *_mirrored(network, part, settings, segmentation is not None)]
            if segmentation is not None:
                stitch.add(some, [view.float().cpu() for view in views])
        found, scores = boxes.merged()
        probabilities = stitch.probabilities()
        if probabilities is None:
            regions = np.zeros((3, x, y, z), dtype=np.float32)
            return RawResult(regions, found, scores, None, detects)
        # One voxel of grace, so that interpolation to the native grid leaves tumour at the brain's surface whole.
        brain = ndimage.binary_dilation(prepared.brain)
        regions = np.where(brain, probabilities[:, :x, :y, :z].numpy(), np.float32(0.0))
        progress("infer", len(windows) / (len(windows) + 1), "Grading")
        tumour = settings.regions_of(regions)[WHOLE_TUMOUR]
        grade = None
        if tumour.any() and "grading" in getattr(network, "tasks", TASKS):
            # As large as in training, unless memory is short.
            side = min(settings.grading_crop, *(window or (settings.window,) * 3))
            with rounded():
                grade = _grade(network, volume[0, :, :x, :y, :z], tumour, side, device)
    progress("infer", 1.0, "Inferred")
    probability = None if grade is None else float(torch.softmax(grade.float(), dim=1)[0, 1])
    return RawResult(regions, found, scores, probability, detects)


class _Stitch:
    """Gaussian means of the windows' probabilities over the padded volume.

    Args:
        padded: sides of the volume.
        size: of every window.
    """

    def __init__(self, padded: Triple, size: Triple) -> None:
        self._weight = compute_importance_map(size, mode="gaussian", sigma_scale=0.125, device="cpu").float()
        self._total = torch.zeros(padded)
        self._sum: torch.Tensor | None = None

    def add(self, windows: Sequence[Window], views: Sequence[torch.Tensor]) -> None:
        """The logits (B, R, X, Y, Z) of some windows, seen in one or more views.

        Raises:
            ModelRefused: ``output-not-finite``.
        """
        if not all(bool(torch.isfinite(view).all()) for view in views):
            raise ModelRefused(
                "output-not-finite",
                "The network's segmentation is not finite.",
                "Analyse with --precision fp32; if that does not help, the model is damaged.",
            )
        if self._sum is None:
            self._sum = torch.zeros((views[0].shape[1], *self._total.shape))
        likely = torch.stack([view.sigmoid() for view in views]).mean(0)
        for index, window in enumerate(windows):
            self._sum[(slice(None), *window.slices)] += self._weight * likely[index]
            self._total[window.slices] += self._weight

    def probabilities(self) -> torch.Tensor | None:
        """(R, X, Y, Z), zero where no window was segmented; None where none was at all."""
        return None if self._sum is None else self._sum.div_(self._total.where(self._total > 0, 1.0))


def _mirrored(network: Any, part: torch.Tensor, settings: InferenceSettings, segments: bool) -> list[torch.Tensor]:
    """The segmentation of a window (1, C, X, Y, Z) seen in the mirror, mirrored back; nothing where not asked for."""
    if not (settings.mirrored and segments):
        return []
    # The first axis of the working grid runs between the left and the right.
    mirror = part.flip(2)
    return [network.segment(mirror, network.encode(mirror)).flip(2)]


def _grade(
    network: Any, image: torch.Tensor, tumour: npt.NDArray[np.bool_], side: int, device: torch.device
) -> torch.Tensor | None:
    """Logits (1, 2) of the grade of the largest tumour; None from a network that does not grade."""
    if getattr(network, "grades_image", False):
        graded: torch.Tensor | None = network.grade(grading_crop(image, tumour, side).to(device))
        return graded
    crop = grading_crop(image, tumour, max(side, 2 * GRANULE)).to(device)  # the encoder takes no smaller one
    logits = network.segment(crop, network.encode(crop))
    return None if logits is None else network.grade(logits)


def grading_crop(image: torch.Tensor, tumour: npt.NDArray[np.bool_], side: int) -> torch.Tensor:
    """The cube round the largest tumour that is graded.

    It stays inside the image where that is large enough; what a small image lacks is zero, as in training.

    Args:
        image: (C, X, Y, Z).
        tumour: bool (X, Y, Z), not empty.
        side: of the cube.

    Returns:
        (1, C, side, side, side).
    """
    components, _ = ndimage.label(tumour)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    box = VoxelBox.around(components == sizes.argmax())
    middle = (np.asarray(box.lower) + np.asarray(box.upper)) / 2
    crop = image.new_zeros((image.shape[0], side, side, side))
    place, target = [slice(None)], [slice(None)]
    for centre, extent in zip(middle, image.shape[1:], strict=True):
        first = int(np.clip(round(centre - side / 2), 0, max(0, extent - side)))
        place.append(slice(first, first + side))
        target.append(slice(0, min(side, extent)))
    crop[tuple(target)] = image[tuple(place)]
    return crop[None]
