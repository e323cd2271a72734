"""One encoder pass a window for every task, stitched to the whole working volume.

The network's maps have strides up to 32, so windows start at multiples of 32 in a volume padded to multiples of 32:
then every level of every window falls on one common lattice, and stitching is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data.utils import compute_importance_map
from scipy import ndimage

from MTMed3DCore.errors import ModelRefused
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.inference.detection import BoxCollector, Triple
from MTMed3DCore.inference.settings import GRANULE, InferenceSettings
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


@dataclass(frozen=True)
class Window:
    """A window in the padded working volume.

    Args:
        start: first voxel.
        size: sides in voxels.
        own: lower and upper bound (half-open) of the part of the volume that this window answers for; the parts of all
            windows tile the padded volume.
    """

    start: Triple
    size: Triple
    own: tuple[Triple, Triple]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the window's voxels."""
        x, y, z = (slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))
        return x, y, z


def plan_windows(extent: Triple, window: int) -> tuple[Triple, list[Window]]:
    """Windows that cover a volume.

    Neighbours overlap by 32 voxels (by more at the far end); an axis that fits into one window gets one of its own
    padded length.

    Args:
        extent: sides of the working volume.
        window: side of the cubic window, a multiple of 32, at least 64.

    Returns:
        The sides of the padded volume, multiples of 32, and the windows.
    """
    if max(extent) <= GRANULE:  # the deepest level's norms need more than one voxel
        extent = (2 * GRANULE, extent[1], extent[2])
    axes: list[list[tuple[int, int, int, int]]] = []
    padded = []
    for side in extent:
        full = -(-side // GRANULE) * GRANULE
        size = min(window, full)
        stride = max(GRANULE, size - GRANULE)
        starts = [*range(0, full - size, stride), full - size]
        cuts = [0, *((a + size + b) // 2 for a, b in pairwise(starts)), full]
        axes.append([(a, size, low, high) for a, (low, high) in zip(starts, pairwise(cuts), strict=True)])
        padded.append(full)
    windows = []
    for x, y, z in product(*axes):
        start, size3, low3, high3 = zip(x, y, z, strict=True)
        windows.append(Window(start, size3, (low3, high3)))
    return (padded[0], padded[1], padded[2]), windows


def run_network(
    network: Any,
    prepared: PreparedStudy,
    settings: InferenceSettings,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    progress: Progress = silent,
) -> RawResult:
    """Run every task of a network on a prepared study.

    Regions are the mean of the windows' probabilities with Gaussian weights. The grade comes from one pass over a cube
    round the largest tumour: of the stitched logits, or of the image in a family that grades images.

    Args:
        network: a `TaskNetwork` in eval mode on `device`.
        prepared: image in the order of `SEQUENCES`; channels are reordered here to the model's order.
        settings: the model's.
        precision: ``"fp32"``, or ``"bf16"`` for autocast.
        progress: told as stage ``infer``, window by window, and may cancel there.

    Raises:
        ModelRefused: outputs that are not finite or do not fit the settings.
        Cancelled: by the listener.
    """
    device = torch.device(device)
    padded, windows = plan_windows(prepared.grid.shape, settings.window)
    order = [SEQUENCES.index(name) for name in settings.channel_order]
    # The volume stays on the CPU; a window at a time goes to the device.
    volume = torch.zeros((1, len(order), *padded))
    x, y, z = prepared.grid.shape
    volume[0, :, :x, :y, :z] = torch.from_numpy(prepared.image[order])
    weight = compute_importance_map(windows[0].size, mode="gaussian", sigma_scale=0.125, device="cpu").float()
    total = torch.zeros(padded)
    stitched: tuple[torch.Tensor, torch.Tensor] | None = None
    boxes = BoxCollector(settings, prepared.grid.shape)
    with torch.inference_mode():
        for index, window in enumerate(windows):
            progress("infer", index / (len(windows) + 1), f"Window {index + 1} of {len(windows)}")
            part = volume[(slice(None), slice(None), *window.slices)].to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                features = network.encode(part)
                segmentation = network.segment(part, features)
                detection = network.detect(features)
                views = [segmentation, *_mirrored(network, part, settings, segmentation is not None)]
            if segmentation is not None:
                views = [view[0].float().cpu() for view in views]
                logits, likely = (torch.stack(each).mean(0) for each in (views, [view.sigmoid() for view in views]))
                if stitched is None:
                    stitched = torch.zeros((len(logits), *padded)), torch.zeros((len(logits), *padded))
                where = (slice(None), *window.slices)
                stitched[0][where] += weight * logits
                stitched[1][where] += weight * likely
                total[window.slices] += weight
            detects = detection is not None
            if detection is not None:
                boxes.add(detection, window.start, window.size, window.own)
        found, scores = boxes.merged()
        if stitched is None:
            regions = np.zeros((3, x, y, z), dtype=np.float32)
            return RawResult(regions, found, scores, None, detects)
        logits, probabilities = (each.div_(total) for each in stitched)
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
        tumour = regions[WHOLE_TUMOUR] >= settings.region_threshold
        if getattr(network, "grades_image", False):
            crop = grading_crop(volume[0], tumour, settings.grading_crop, torch.zeros(len(order)))
        else:
            crop = grading_crop(logits, tumour, settings.grading_crop)
        grade = None if crop is None else network.grade(crop.to(device))
    progress("infer", 1.0, "Inferred")
    probability = None if grade is None else float(torch.softmax(grade.float(), dim=1)[0, 1])
    return RawResult(regions, found, scores, probability, detects)


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
