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
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.inference.coarse import LEAST_WINDOWS, windows_with_tumour
from MTMed3DCore.inference.detection import BoxCollector
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.inference.tiling import Triple, Window, plan_windows
from MTMed3DCore.networks.registry import TASKS
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.sequences import SEQUENCES

if TYPE_CHECKING:
    from MTMed3DCore.preparation import PreparedStudy

WHOLE_TUMOUR = 1
"""Channel of the whole tumour among TC, WT, ET."""


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

    Regions are the mean of the windows' probabilities with Gaussian weights. The grade comes from one pass over a cube
    round the largest tumour: of the stitched logits, or of the image in a family that grades images.

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
        if stitch.logits is None:
            regions = np.zeros((3, x, y, z), dtype=np.float32)
            return RawResult(regions, found, scores, None, detects)
        logits, probabilities = stitch.means()
        if not torch.isfinite(logits).all():
            raise ModelRefused(
                "output-not-finite",
                "The network's segmentation is not finite.",
                "Analyse with --precision fp32; if that does not help, the model is damaged.",
            )
        # One voxel of grace, so that interpolation to the native grid leaves tumour at the brain's surface whole.
        brain = ndimage.binary_dilation(prepared.brain)
        regions = np.where(brain, probabilities[:, :x, :y, :z].numpy(), np.float32(0.0))
        progress("infer", len(windows) / (len(windows) + 1), "Grading")
        tumour = settings.regions_of(regions)[WHOLE_TUMOUR]
        if getattr(network, "grades_image", False):
            crop = grading_crop(volume[0], tumour, settings.grading_crop, torch.zeros(len(order)))
        else:
            crop = grading_crop(logits, tumour, settings.grading_crop)
        grade = None if crop is None else network.grade(crop.to(device))
    progress("infer", 1.0, "Inferred")
    probability = None if grade is None else float(torch.softmax(grade.float(), dim=1)[0, 1])
    return RawResult(regions, found, scores, probability, detects)


class _Stitch:
    """Gaussian means of the windows' logits and probabilities over the padded volume.

    Args:
        padded: sides of the volume.
        size: of every window.
    """

    def __init__(self, padded: Triple, size: Triple) -> None:
        self._weight = compute_importance_map(size, mode="gaussian", sigma_scale=0.125, device="cpu").float()
        self._total = torch.zeros(padded)
        self.logits: torch.Tensor | None = None
        self.probabilities: torch.Tensor | None = None

    def add(self, windows: Sequence[Window], views: Sequence[torch.Tensor]) -> None:
        """The logits (B, R, X, Y, Z) of some windows, seen in one or more views."""
        if self.logits is None or self.probabilities is None:
            self.logits, self.probabilities = (torch.zeros((views[0].shape[1], *self._total.shape)) for _ in range(2))
        for index, window in enumerate(windows):
            seen = [view[index] for view in views]
            logits, likely = _mean(seen), _mean([view.sigmoid() for view in seen])
            where = (slice(None), *window.slices)
            self.logits[where] += self._weight * logits
            self.probabilities[where] += self._weight * likely
            self._total[window.slices] += self._weight

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and probabilities; where no window was segmented, the logits' background and no probability."""
        assert self.logits is not None
        assert self.probabilities is not None
        empty = self._total == 0
        if not empty.any():
            return self.logits.div_(self._total), self.probabilities.div_(self._total)
        self._total[empty] = 1.0
        logits, probabilities = self.logits.div_(self._total), self.probabilities.div_(self._total)
        background = logits[:, ~empty].median(dim=1).values
        logits[:, empty] = background[:, None]
        return logits, probabilities


def _mean(views: Sequence[torch.Tensor]) -> torch.Tensor:
    return views[0] if len(views) == 1 else torch.stack(list(views)).mean(0)


def _mirrored(network: Any, part: torch.Tensor, settings: InferenceSettings, segments: bool) -> list[torch.Tensor]:
    """The segmentation of a window (1, C, X, Y, Z) seen in the mirror, mirrored back; nothing where not asked for."""
    if not (settings.mirrored and segments):
        return []
    # The first axis of the working grid runs between the left and the right.
    mirror = part.flip(2)
    return [network.segment(mirror, network.encode(mirror)).flip(2)]


def grading_crop(
    source: torch.Tensor, tumour: npt.NDArray[np.bool_], side: int, background: torch.Tensor | None = None
) -> torch.Tensor | None:
    """The cube of logits or of the image round the largest tumour that the grading sees.

    The cube stays inside the volume where the volume is large enough; what a small volume lacks is filled.

    Args:
        source: (C, X, Y, Z), padded volume.
        tumour: whole tumour on the unpadded volume.
        side: of the cube.
        background: (C,), what to fill with; None takes each channel's median, which in logits is that of background.

    Returns:
        (1, C, side, side, side), or None without tumour.
    """
    if not tumour.any():
        return None
    components, _ = ndimage.label(tumour)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    box = VoxelBox.around(components == sizes.argmax())
    middle = (np.asarray(box.lower) + np.asarray(box.upper)) / 2
    if background is None:
        background = source.flatten(1).median(dim=1).values
    crop = background[:, None, None, None].repeat(1, side, side, side)
    place, target = [slice(None)], [slice(None)]
    for centre, extent in zip(middle, source.shape[1:], strict=True):
        if extent <= side:
            first = (side - extent) // 2
            place.append(slice(0, extent))
            target.append(slice(first, first + extent))
        else:
            first = int(np.clip(round(centre - side / 2), 0, extent - side))
            place.append(slice(first, first + side))
            target.append(slice(0, side))
    crop[tuple(target)] = source[tuple(place)]
    return crop[None]
