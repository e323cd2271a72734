"""From the detection maps of windows to boxes in the whole volume.

Anchors and box coding are MONAI's (`AnchorGeneratorWithAnchorShape`, `BoxCoder`); only their place differs: anchors
stand where the window stands in the whole volume, so boxes need no later shift and one suppression serves all windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import clip_boxes_to_image, non_max_suppression

from MTMed3DCore.errors import ModelRefused
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.inference.tiling import Triple
from MTMed3DCore.inference.transfer import to_device

CANDIDATES_PER_LEVEL = 1000
"""Boxes of one level that enter the suppression, as in RetinaNet."""
Level = tuple[torch.Tensor, torch.Tensor]


def level_anchors(settings: InferenceSettings, window: Triple, levels: Sequence[Triple]) -> list[torch.Tensor]:
    """Anchors of a window at the origin, by level, each (x * y * z * A, 6) half-open voxel boxes, place by place.

    Args:
        window: sides of the window in voxels.
        levels: sides of every level's map.
    """
    generator = AnchorGeneratorWithAnchorShape(settings.anchor_scales, settings.anchor_shapes)
    strides = [[torch.tensor(side // n) for side, n in zip(window, level, strict=True)] for level in levels]
    anchors: list[torch.Tensor] = generator.grid_anchors([list(level) for level in levels], strides)
    return anchors


class BoxCollector:
    """Gathers boxes window by window, then merges them once.

    What a window says of its best anchors stays where its maps are, and its number is not asked for, so that a GPU need
    not wait before the end: only then boxes are decoded, and suppressed, on the host.

    Args:
        settings: anchors and thresholds.
        extent: sides of the working volume in voxels (without padding); boxes are clipped to it.
    """

    def __init__(self, settings: InferenceSettings, extent: Triple) -> None:
        self._settings = settings
        self._extent = extent
        self._coder = BoxCoder((1.0,) * 6)
        self._anchors: dict[tuple[Triple, ...], list[torch.Tensor]] = {}
        self._found: list[list[_Candidates]] = [[] for _ in settings.anchor_scales]

    def add(self, maps: Sequence[Level], start: Triple, window: Triple, own: tuple[Triple, Triple]) -> None:
        """Take the boxes of one window.

        Args:
            maps: by level, score logits (1, A, x, y, z) and deltas (1, 6A, x, y, z), the latter anchor by anchor.
            start: the window's first voxel in the working volume.
            window: the window's sides.
            own: lower and upper bound (half-open, voxels of the working volume) of the part of the volume that this
                window answers for; anchors with their centres elsewhere are left to the other windows.

        Raises:
            ModelRefused: the maps do not fit the anchors of the settings.
        """
        settings = self._settings
        anchor_count = len(settings.anchor_shapes)
        if len(maps) != len(settings.anchor_scales) or any(scores.shape[1] != anchor_count for scores, _ in maps):
            raise ModelRefused(
                "anchors-mismatch",
                f"The settings name {anchor_count} anchors at {len(settings.anchor_scales)} levels; the network has "
                f"{[int(scores.shape[1]) for scores, _ in maps]} by level.",
                "Install the model again, or ask its maker.",
            )
        for level, ((scores, deltas), anchors) in enumerate(zip(maps, self._anchors_of(maps, window), strict=True)):
            probability = torch.sigmoid(scores[0].float()).permute(1, 2, 3, 0).reshape(-1)
            codes = deltas[0].float().unflatten(0, (anchor_count, 6)).permute(2, 3, 4, 0, 1).reshape(-1, 6)
            asked = probability > settings.score_threshold
            for axis, (first, lower, upper) in enumerate(zip(start, *own, strict=True)):
                centres = (anchors[:, axis] + anchors[:, axis + 3]) / 2
                asked = asked & (centres >= lower - first) & (centres < upper - first)
            scored = torch.where(asked, probability, -1.0)
            best, chosen = scored.topk(min(CANDIDATES_PER_LEVEL, len(scored)))
            finite = torch.isfinite(probability).all()
            self._found[level].append(_Candidates(codes[chosen], anchors[chosen], start, best, finite))

    def _anchors_of(self, maps: Sequence[Level], window: Triple) -> list[torch.Tensor]:
        """A window's anchors by level, where its maps are."""
        shapes = tuple((int(s.shape[2]), int(s.shape[3]), int(s.shape[4])) for s, _ in maps)
        if (window, *shapes) not in self._anchors:
            made = level_anchors(self._settings, window, shapes)
            self._anchors[(window, *shapes)] = [to_device(each, maps[0][0].device) for each in made]
        return self._anchors[(window, *shapes)]

    def merged(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Boxes (N, 6), half-open voxels of the working volume, and scores (N,), best first.

        Raises:
            ModelRefused: a score, or the deltas of a box above the threshold, are not finite.
        """
        boxes, scores = [torch.zeros((0, 6))], [torch.zeros(0)]
        for level in self._found:
            if not level:
                continue
            found = [each.on_host() for each in level]
            anchors = torch.cat([each.anchors + torch.tensor(each.start).repeat(2) for each in found])
            level_scores, rank = torch.cat([each.scores for each in found]).sort(descending=True, stable=True)
            rank = rank[: min(CANDIDATES_PER_LEVEL, int((level_scores > 0).sum()))]
            codes = torch.cat([each.codes for each in found])[rank]
            if not (torch.isfinite(codes).all() and all(each.finite for each in found)):
                raise ModelRefused(
                    "output-not-finite",
                    "The network's boxes are not finite.",
                    "Analyse with --precision fp32; if that does not help, the model is damaged.",
                )
            level_boxes = self._coder.decode_single(codes, anchors[rank])
            clipped, kept = clip_boxes_to_image(level_boxes, self._extent, remove_empty=True)
            boxes.append(torch.as_tensor(clipped))
            scores.append(level_scores[: len(rank)][torch.as_tensor(kept)])
        all_boxes, all_scores = torch.cat(boxes), torch.cat(scores)
        keep = torch.as_tensor(
            non_max_suppression(all_boxes, all_scores, self._settings.nms_iou, self._settings.max_detections)
        ).long()
        return all_boxes[keep].numpy(), all_scores[keep].numpy()


@dataclass(frozen=True, eq=False)
class _Candidates:
    """The best anchors of a level of a window.

    Args:
        codes: (N, 6), the deltas.
        anchors: (N, 6), in the window.
        start: the window's first voxel in the working volume.
        scores: (N,), -1 where there are fewer that are asked for.
        finite: whether all scores of the level are.
    """

    codes: torch.Tensor
    anchors: torch.Tensor
    start: Triple
    scores: torch.Tensor
    finite: torch.Tensor

    def on_host(self) -> _Candidates:
        """The same in the host's memory."""
        return _Candidates(self.codes.cpu(), self.anchors.cpu(), self.start, self.scores.cpu(), self.finite.cpu())
