"""One encoder pass a window for every task, stitched to the whole working volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from MTMed3DCore.allocator import give_back_freed_memory
from MTMed3DCore.errors import ModelRefused
from MTMed3DCore.findings import WHOLE_TUMOUR
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.inference.detection import BoxCollector, Level
from MTMed3DCore.inference.focus import Sides, cut, focus_windows, glance, may_focus, needed_windows
from MTMed3DCore.inference.settings import GRANULE, InferenceSettings
from MTMed3DCore.inference.tiling import Triple, Window, plan_windows, window_weight
from MTMed3DCore.inference.transfer import to_device
from MTMed3DCore.networks.registry import TASKS
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.sequences import SEQUENCES

if TYPE_CHECKING:
    from MTMed3DCore.preparation import PreparedStudy

GRADING_FROM = 0.9
"""Share of the time before the grading, for the progress bar."""
WHOLE_SHARE = 0.4
"""Of a quick run before its glance."""
GLANCE_SHARE = 0.1
"""Of a lean run before its first window."""


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
    lean: bool = False,
    focus: Sides | None = None,
    on_host: bool = False,
    tiling: Sequence[Window] | None = None,
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
        window: sides of the windows in place of the model's.
        batch: windows that go through the network at a time.
        lean: segment only the windows in which a glance or a box gives reason to; where there are few, all the same.
        focus: encode the whole volume in one pass, detect in it, and segment only where a glance or a box gives reason
            to, in windows of the sides that this gives; see `MTMed3DCore.inference.focus`. Where there are few windows,
            or the network's levels cannot be cut into windows, everything is computed all the same.
        on_host: keep the volume and the regions in the host's memory, and bring windows to the device one by one;
            otherwise all is on the device, and nothing waits for it before the end, or before the glance is seen.
        tiling: windows in place of `plan_windows`', for comparisons with other ways to cover the same volume.

    Raises:
        ModelRefused: outputs that are not finite or do not fit the settings.
        Cancelled: by the listener.
    """
    device = torch.device(device)
    padded, windows = plan_windows(prepared.grid.shape, window or settings.window)
    windows = windows if tiling is None else list(tiling)
    order = [SEQUENCES.index(name) for name in settings.channel_order]
    volume = torch.zeros((1, len(order), *padded))
    x, y, z = prepared.grid.shape
    volume[0, :, :x, :y, :z] = torch.from_numpy(prepared.image[order])
    volume = volume if on_host else to_device(volume, device)
    brain_box = VoxelBox.around(prepared.brain)
    boxes = BoxCollector(settings, prepared.grid.shape)
    run = _Run(network, volume, brain_box, settings, device, precision, progress, boxes)
    with torch.inference_mode():
        if focus is not None and may_focus(network, windows):
            run.closely(windows, focus, batch)
        elif lean and may_focus(network, windows):
            run.leanly(windows, batch)
        else:
            run.everywhere(windows, batch)
        # One voxel of grace, so that interpolation to the native grid leaves tumour at the brain's surface whole. A GPU
        # still computes meanwhile.
        brain = ndimage.binary_dilation(prepared.brain)
        found, scores = run.boxes.merged()
        probabilities = run.stitch.probabilities()
        if probabilities is None:
            regions = np.zeros((3, x, y, z), dtype=np.float32)
            return RawResult(regions, found, scores, None, run.detects)
        regions = np.where(brain, probabilities[:, :x, :y, :z].cpu().numpy(), np.float32(0.0))
        progress("infer", GRADING_FROM, "Grading")
        tumour = settings.regions_of(regions)[WHOLE_TUMOUR]
        grade = None
        if tumour.any() and "grading" in getattr(network, "tasks", TASKS):
            # As large as in training, unless memory is short.
            side = min(settings.grading_crop, *(window or (settings.window,) * 3))
            with run.rounded():
                grade = _grade(network, volume[0, :, :x, :y, :z], tumour, side, device)
    progress("infer", 1.0, "Inferred")
    probability = None if grade is None else float(torch.softmax(grade.float(), dim=1)[0, 1])
    return RawResult(regions, found, scores, probability, run.detects)


@dataclass(eq=False)
class _Run:
    """The passes over one study, and what they have gathered.

    Args:
        network, settings, device, precision, progress: as in `run_network`.
        volume: (1, C, X, Y, Z), padded; the regions are gathered where it is.
        brain: in the volume.
        boxes: takes the boxes.
    """

    network: Any
    volume: torch.Tensor
    brain: VoxelBox
    settings: InferenceSettings
    device: torch.device
    precision: str
    progress: Progress
    boxes: BoxCollector
    detects: bool = False

    def __post_init__(self) -> None:
        x, y, z = self.volume.shape[2:]
        self.padded: Triple = (x, y, z)
        self.stitch = _Stitch(self.padded, self.volume.device)

    def rounded(self) -> AbstractContextManager[Any]:
        """In bf16 where that is asked for."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def everywhere(self, windows: Sequence[Window], batch: int) -> None:
        """Every task in every window."""
        for some in self._steps(windows, batch, 0.0, GRADING_FROM):
            part, features = self._detected(some)
            self._segment(part, features, some)

    def leanly(self, windows: Sequence[Window], batch: int) -> None:
        """The encoder and the detection in every window, the segmentation where it is called for."""
        seen = self._glance(0.0)
        wanted = needed_windows(seen, np.zeros((0, 6), np.float32), windows)
        others = [window for window in windows if window not in wanted]
        half = GLANCE_SHARE + (GRADING_FROM - GLANCE_SHARE) * len(wanted) / len(windows)
        for some in self._steps(wanted, batch, GLANCE_SHARE, half):
            part, features = self._detected(some)
            self._segment(part, features, some)
        for some in self._steps(others, batch, half, GRADING_FROM, "Quiet window"):
            self._detected(some)
        # A box where the glance saw nothing: such a window is encoded once more, as levels of all would take much room.
        late = [window for window in needed_windows(seen, self.boxes.merged()[0], windows) if window in others]
        for some in self._steps(late, batch, GRADING_FROM, GRADING_FROM):
            self._segment(*self._encoded(some), some)
        self.stitch.leave_out([window for window in others if window not in late])

    def closely(self, windows: Sequence[Window], sides: Sides, batch: int) -> None:
        """The whole volume at once, then the segmentation where it is called for.

        Args:
            windows: that cover the volume.
            sides: of windows over a region.
            batch: windows that are segmented at a time.
        """
        self.progress("infer", 0.0, "Whole brain")
        whole = Window((0, 0, 0), self.padded, ((0, 0, 0), self.padded))
        with self.rounded():
            levels = self.network.encode(self._part(whole))
            detection = self.network.detect(levels)
        self._take_boxes(detection, [whole])
        del detection
        give_back_freed_memory()  # what a whole brain took lies in pieces that no window fits into
        wanted = focus_windows(self._glance(WHOLE_SHARE), self.boxes.merged()[0], windows, sides)
        for some in self._steps(wanted, batch, WHOLE_SHARE, GRADING_FROM):
            features = [cut(levels, self.network.level_strides, window) for window in some]
            self._segment(self._parts(some), [torch.cat(level) for level in zip(*features, strict=True)], some)

    def _steps(
        self, windows: Sequence[Window], most: int, begin: float, end: float, name: str = "Window"
    ) -> Iterator[list[Window]]:
        """Windows in batches, with progress between two shares of the time."""
        done = 0
        for some in _batches(windows, most):
            share = begin + (end - begin) * done / len(windows)
            self.progress("infer", share, f"{name} {done + 1} of {len(windows)}")
            done += len(some)
            yield some

    def _glance(self, share: float) -> npt.NDArray[np.bool_]:
        """What a glance sees."""
        self.progress("infer", share, "Glance")
        with self.rounded():
            return glance(self.network, self.volume, self.brain, self.device)

    def _detected(self, windows: Sequence[Window]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The image and the levels of some windows, whose boxes are taken."""
        part, features = self._encoded(windows)
        with self.rounded():
            detection = self.network.detect(features)
        self._take_boxes(detection, windows)
        return part, features

    def _encoded(self, windows: Sequence[Window]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The image and the levels of some windows."""
        part = self._parts(windows)
        with self.rounded():
            return part, self.network.encode(part)

    def _parts(self, windows: Sequence[Window]) -> torch.Tensor:
        return torch.cat([self._part(window) for window in windows])

    def _part(self, window: Window) -> torch.Tensor:
        return to_device(self.volume[(slice(None), slice(None), *window.slices)], self.device)

    def _take_boxes(self, detection: Sequence[Level] | None, windows: Sequence[Window]) -> None:
        """The boxes of some windows, if the network looks for any."""
        if detection is None:
            return
        self.detects = True
        for index, each in enumerate(windows):
            maps = [(scores[index : index + 1], deltas[index : index + 1]) for scores, deltas in detection]
            self.boxes.add(maps, each.start, each.size, each.own)

    def _segment(self, part: torch.Tensor, features: Sequence[torch.Tensor], windows: Sequence[Window]) -> None:
        """The regions of some windows, if the network segments."""
        with self.rounded():
            segmentation = self.network.segment(part, features)
            if segmentation is None:
                return
            views = [segmentation, *_mirrored(self.network, part, self.settings)]
        self.stitch.add(windows, [view.float().to(self.volume.device) for view in views])


class _Stitch:
    """Gaussian means of the windows' probabilities over the padded volume.

    Args:
        padded: sides of the volume.
        device: where they are gathered.
    """

    def __init__(self, padded: Triple, device: torch.device) -> None:
        self._weights: dict[Triple, torch.Tensor] = {}
        self._total = torch.zeros(padded, device=device)
        self._finite = torch.tensor(True, device=device)  # asked at the end: a GPU need not wait for it
        self._sum: torch.Tensor | None = None

    def add(self, windows: Sequence[Window], views: Sequence[torch.Tensor]) -> None:
        """The logits (B, R, X, Y, Z) of some windows, seen in one or more views."""
        if self._sum is None:
            self._sum = self._total.new_zeros((views[0].shape[1], *self._total.shape))
        for view in views:
            self._finite = self._finite & torch.isfinite(view).all()
        likely = torch.stack([view.sigmoid() for view in views]).mean(0)
        for index, window in enumerate(windows):
            weight = self._weight(window.size)
            self._sum[(slice(None), *window.slices)] += weight * likely[index]
            self._total[window.slices] += weight

    def leave_out(self, windows: Sequence[Window]) -> None:
        """Windows that would say that nothing is there."""
        for window in windows:
            self._total[window.slices] += self._weight(window.size)

    def _weight(self, size: Triple) -> torch.Tensor:
        """Of the voxels of a window."""
        if size not in self._weights:
            self._weights[size] = to_device(window_weight(size), self._total.device)
        return self._weights[size]

    def probabilities(self) -> torch.Tensor | None:
        """(R, X, Y, Z), zero where no window was segmented; None where none was at all.

        Raises:
            ModelRefused: ``output-not-finite``.
        """
        if self._sum is None:
            return None
        if not bool(self._finite):
            raise ModelRefused(
                "output-not-finite",
                "The network's segmentation is not finite.",
                "Analyse with --precision fp32; if that does not help, the model is damaged.",
            )
        return self._sum.div_(self._total.where(self._total > 0, 1.0))


def _batches(windows: Sequence[Window], most: int) -> Iterator[list[Window]]:
    """Windows of one size together, so many at a time."""
    alike: dict[Triple, list[Window]] = {}
    for window in windows:
        alike.setdefault(window.size, []).append(window)
    for some in alike.values():
        yield from (some[first : first + most] for first in range(0, len(some), most))


def _mirrored(network: Any, part: torch.Tensor, settings: InferenceSettings) -> list[torch.Tensor]:
    """The segmentation of a window (1, C, X, Y, Z) seen in the mirror, mirrored back; nothing where not asked for."""
    if not settings.mirrored:
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
