"""The model card of the starter bundle."""

CARD = """# starter {version}

A first model that works without any download: preset `mtmed3d`, {feature_size} features, working spacing
{spacing_mm:g} mm.

**For research use only.** Trained on {trained_on}: {steps} steps of {batch} patches of {patch} voxels in
{minutes:.0f} minutes. It knows pre-operative, skull-stripped glioma studies of adults as a generator draws them; it has
never seen a metastasis, a meningioma, an operated brain, a child or a haemorrhage.

## Recipe

`python -m MTMed3DCore.training.starter` on `{device}` in `{precision}`; runs that go on from each other, with the
first studies {seeds}. Patches of {patch} voxels, {wide_share:.0%} of them of {wide_patch}; Dice and focal loss for the
regions, focal and smooth L1 over ATSS matches for the boxes, focal for the grade; tasks balanced by {balancing}; AdamW
with warm-up and cosine; the exponential mean of the weights is kept. {mean}A run ends by the clock, so that the same
seeds give a like model, not the same one.

## Measured on {count} synthetic studies of the family `held_out`, whose ranges are shifted against those of training

| what | value |
|---|---|
| mean Dice, whole tumour | {whole_tumour:.3f} |
| mean Dice, tumour core | {tumour_core:.3f} |
| mean Dice, enhancing tumour | {enhancing:.3f} |
| grade right | {grade_right} of {graded} |
| false whole tumour in tumour-free studies, median | {false_ml:.1f} ml of {tumour_free} studies |

A voxel belongs to tumour core, whole tumour and enhancing tumour from the probabilities {region_thresholds}; a lesion
is reported from {minimum_lesion_ml:g} ml, or from {minimum_lone_ml:g} ml where no box is about it, and a box from score
{score_threshold:g}, one in which nothing is segmented from {bare_box_score:g}{mirrored}: chosen on {calibration} other
studies of that family. Brightness apart from the tumour with a share of core below {minimum_core_share:g} is left out,
and a notice tells of it; that share was set by hand after real studies had shown such brightness.

Dice counts an empty region that is predicted empty as 1 and any other mismatch with an empty region as 0. On real
studies expect less, above all for the core, the enhancing tumour and the grade.

## Where it fails, and what it must not be used for

It was never fitted to a patient's image. Small false parts beside the tumour are common, thin enhancing rims are lost
at the working spacing, and the grade follows the volumes of the regions, so that what looks like enhancement makes a
low-grade tumour a high-grade one. It must not be used for diagnosis, for planning or following a treatment, for triage,
as the only reader of anything, or as a reference for another method; nor after an operation or radiation, in children,
or for anything but a glioma.
"""
"""Filled by `MTMed3DCore.training.starter.write_starter`."""
MEAN = """The mean was taken of what the runs were after {steps} steps in all. """
"""Where the weights of several runs were averaged."""
