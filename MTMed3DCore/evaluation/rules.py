"""How everything is measured, in words: for the report, so that it can be read without the code."""

from __future__ import annotations

from MTMed3DCore.evaluation.detection import FALSE_RATES, HIT_IOU
from MTMed3DCore.evaluation.grading import BINS, THRESHOLD, UNGRADED
from MTMed3DCore.evaluation.lesionwise import DILATION_MM, SMALLEST_MM3
from MTMed3DCore.evaluation.surface import ABSENT_MM

_RATES = ", ".join(f"{rate:g}" for rate in FALSE_RATES)
RULE_TEXT = (
    "The whole volume is measured on the T1ce grid as it came in; nothing is cropped. Regions: whole tumour (labels 1, "
    "2, 4), tumour core (1, 4), enhancing tumour (4), from the label map of every convention.",
    "Dice: 1 where truth and result are both empty, 0 where one is. HD95: the larger of the two directed 95th "
    f"percentiles of surface distances in mm; 0 where both are empty, {ABSENT_MM:g} mm where one is. No case is "
    "dropped from a mean because a region is absent.",
    f"Lesion-wise figures follow BraTS 2023 for adult glioma: true parts whose dilations by {DILATION_MM} mm touch are "
    "one lesion, compared with all found parts that reach into its dilation; lesions of at most "
    f"{SMALLEST_MM3:g} mm³ are left out; every missed lesion and every found part that reaches none counts as Dice 0 "
    f"and HD95 {ABSENT_MM:g} mm.",
    "Boxes are compared as voxel boxes of the T1ce grid, an oriented box as the smallest that holds its eight corners. "
    "Each box, best score first, takes the free lesion that it overlaps most. AP interpolates precision at 101 recalls "
    "(COCO); mAP and mAR are means over the overlaps 0.10, 0.15, … 0.50.",
    f"FROC: mean share of lesions found at IoU {HIT_IOU:g} with at most {_RATES} false boxes a case; the curve is a "
    "step and is never interpolated.",
    "A model's boxes are those of the analysis, boxes drawn round regions that the detector missed among them. "
    "Baseline boxes of the segmentation are drawn round its connected tumours of at least 0.1 ml, ranked by volume; "
    "baseline thresholds are those of FLAIR and of the enhancement of T1ce over T1.",
    f"Grades: a case of unknown grade takes no part. High grade from a probability of {THRESHOLD:g}. A graded case in "
    f"which the model found no tumour, and so gave no grade, counts as wrong and as a probability of {UNGRADED:g}. "
    f"Calibration error: mean distance from the diagonal of the reliability curve over {BINS} bins of equal width, "
    "weighted by cases.",
    "Intervals resample patients, not cases, and repeat the whole computation; a figure that is not defined in half of "
    "the resamples gets none. They tell of the choice of patients, not of the training's chance. A difference "
    "between two methods is taken on the same resamples of both.",
)
