"""How well boxes find the lesions: COCO's average precision and recall, and the FROC curve.

Names and thresholds are those of nnDetection and of MONAI's detection bundles: ``AP_IoU_0.10``,
``mAP_IoU_0.10_0.50_0.05`` (mean over the overlaps 0.10, 0.15, ... 0.50), ``mAR_IoU_0.10_0.50_0.05``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

HIT_IOU = 0.1
"""Overlap from which a box finds a lesion: the hit criterion of the published work."""
IOU_RANGE = (0.1, 0.5, 0.05)
MAX_DETECTIONS = 100
"""Boxes of a case that are looked at; an analysis gives far fewer."""
FALSE_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False boxes a case at which the FROC curve is read (LUNA16, Setio et al., Med Image Anal 42, 2017)."""
FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Matches:
    """The boxes of one case against the truth.

    Args:
        result: what MONAI's `matching_batch` gives for the only class, 0; empty without boxes on either side.
        scores: of the boxes, best first.
        hits: whether each of them finds a lesion at `HIT_IOU` that no better box has found.
        lesions: true lesions.
    """

    result: dict[int, dict[str, Any]]
    scores: FloatArray
    hits: npt.NDArray[np.bool_]
    lesions: int


def iou_matrix(a: FloatArray, b: FloatArray) -> FloatArray:
    """Intersection over union of every pair of voxel boxes, (N, 6) and (M, 6) to (N, M)."""
    low = np.maximum(a[:, None, :3], b[None, :, :3])
    high = np.minimum(a[:, None, 3:], b[None, :, 3:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    volumes = [(boxes[:, 3:] - boxes[:, :3]).prod(axis=1) for boxes in (a, b)]
    result: FloatArray = shared / (volumes[0][:, None] + volumes[1][None, :] - shared)
    return result


@cache
def _coco() -> Any:
    from monai.apps.detection.metrics.coco import COCOMetric

    settings: dict[str, Any] = {"iou_list": (HIT_IOU,), "iou_range": IOU_RANGE, "max_detection": (MAX_DETECTIONS,)}
    return COCOMetric(classes=("lesion",), per_class=False, verbose=False, **settings)


def match_boxes(boxes: Sequence[Sequence[float]], scores: Sequence[float], truth: Sequence[Sequence[float]]) -> Matches:
    """Match the boxes of one case, best score first, each to the free lesion that it overlaps most.

    Args:
        boxes, truth: ``[x0, y0, z0, x1, y1, z1)`` in voxels of one grid.
        scores: of `boxes`.
    """
    from monai.apps.detection.metrics.matching import matching_batch

    coco = _coco()
    (result,) = matching_batch(
        iou_fn=iou_matrix,
        iou_thresholds=coco.iou_thresholds,
        pred_boxes=[np.asarray(boxes, dtype=np.float64).reshape(-1, 6)],
        pred_classes=[np.zeros(len(boxes), dtype=int)],
        pred_scores=[np.asarray(scores, dtype=np.float64)],
        gt_boxes=[np.asarray(truth, dtype=np.float64).reshape(-1, 6)],
        gt_classes=[np.zeros(len(truth), dtype=int)],
        max_detections=MAX_DETECTIONS,
    )
    if 0 not in result:
        return Matches({}, np.zeros(0), np.zeros(0, dtype=bool), 0)
    at_hit = int(np.flatnonzero(coco.iou_thresholds == HIT_IOU)[0])
    hits = result[0]["dtMatches"][at_hit].astype(bool)
    return Matches(result, np.asarray(result[0]["dtScores"]), hits, len(truth))


def detection_figures(cases: Sequence[Matches]) -> dict[str, float]:
    """Figures over cases; NaN for what the cases cannot tell, for example precision where no lesion is true.

    Returns:
        ``AP_IoU_0.10``, ``mAP_…``, ``AR_IoU_0.10``, ``mAR_…``; ``FROC`` (mean sensitivity at `FALSE_RATES`); and at the
        working point, that is with every box that the analysis gives, ``sensitivity`` and ``false_per_case``.
    """
    lesions = sum(case.lesions for case in cases)
    figures = {"false_per_case": float(np.mean([np.sum(~case.hits) for case in cases])) if cases else np.nan}
    if lesions == 0:
        return dict.fromkeys(FIGURES, np.nan) | figures
    coco, _ = _coco()([case.result for case in cases])
    figures |= {name.removesuffix(f"_MaxDet_{MAX_DETECTIONS}"): float(value) for name, value in coco.items()}
    figures["sensitivity"] = float(sum(case.hits.sum() for case in cases) / lesions)
    figures["FROC"] = float(np.mean(sensitivity_at(cases, FALSE_RATES)))
    return {name: figures[name] for name in FIGURES}


_RANGE = "_".join(f"{value:.2f}" for value in IOU_RANGE)
FIGURES = (
    f"AP_IoU_{HIT_IOU:.2f}",
    f"mAP_IoU_{_RANGE}",
    f"AR_IoU_{HIT_IOU:.2f}",
    f"mAR_IoU_{_RANGE}",
    "FROC",
    "sensitivity",
    "false_per_case",
)
"""In the order of the tables."""


def froc_curve(cases: Sequence[Matches]) -> tuple[FloatArray, FloatArray]:
    """False boxes a case, and share of the lesions found, as the score from which boxes count falls.

    MONAI's `compute_froc_curve_data` leaves out the lowest score, and with it every hit of equal scores; here the curve
    starts at (0, 0) and ends with all boxes.

    Raises:
        ValueError: the cases have no lesion.
    """
    lesions = sum(case.lesions for case in cases)
    if lesions == 0:
        raise ValueError("Without true lesions there is no sensitivity.")
    scores = np.concatenate([case.scores for case in cases])
    hits = np.concatenate([case.hits for case in cases])
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], hits[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else np.zeros(0, dtype=int)
    found, false = np.cumsum(hits)[last], np.cumsum(~hits)[last]
    return np.append(0.0, false / len(cases)), np.append(0.0, found / lesions)


def sensitivity_at(cases: Sequence[Matches], rates: Sequence[float]) -> FloatArray:
    """Highest sensitivity at no more than each number of false boxes a case; a step, never interpolated."""
    false, sensitivity = froc_curve(cases)
    return np.array([sensitivity[false <= rate].max() for rate in rates])
