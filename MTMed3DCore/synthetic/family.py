"""How synthetic studies vary: the ranges from which each study draws.

Intensities are relative to the brightest common tissue of their sequence; lengths are millimetres. The orderings that
physics gives (fluid dark on T1 and FLAIR and bright on T2; free water of oedema bright on T2 and FLAIR; gadolinium
bright on T1ce wherever the blood-brain barrier is absent or broken) hold over the whole of every range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from MTMed3DCore.synthetic.fields import Range


@dataclass(frozen=True)
class Family:
    """Ranges of one family of studies.

    Args:
        tumour_free: share of studies without tumour.
        low_grade: share of tumours that are low grade.
        low_grade_enhancing: share of the low-grade ones that enhance, in patches and without a rim.
        low_grade_patches: level from which a noise of unit variance makes such a patch; the lower, the more enhances.
        several: share of high-grade studies with two or three lesions.
        high_grade_radius, low_grade_radius, satellite_radius: mm.
        rim: thickness of an enhancing rim, mm, drawn in the logarithm.
        enhancement: T1ce intensity of enhancing tumour, drawn in the logarithm.
        oedema_reach: mm around a high-grade core.
        oedema_strength: 0 as white matter, 1 as wet as oedema gets.
        white_t1, grey_t1, fluid_t1, white_t2, grey_t2, fluid_t2, white_flair, fluid_flair: tissue intensities.
        grey_over_white_flair: added to the white matter's FLAIR.
        bright_cortex: share of studies whose cortex is brighter on FLAIR in places.
        bright_cortex_flair: added there.
        curve: deviation of the logarithm of the exponent of the intensity curve.
        atrophy: 0 narrow to 1 wide sulci.
        ventricles: scale of the ventricles.
        bias: log amplitude of slow shading, of no place in particular.
        bias_mm: correlation length of that shading.
        coil: how much of the receive coils' own shading, bright near them, is left: 0 none, 1 all.
        wide_sinuses: share of studies whose venous sinuses are wide, the transverse ones among them.
        noise: standard deviation of the noise.
        thick_slices: share of sequences blurred along one axis.
        slice_blur_mm: standard deviation of that blur.
    """

    tumour_free: float = 0.20
    low_grade: float = 0.40
    low_grade_enhancing: float = 0.20
    low_grade_patches: Range = (1.3, 2.2)
    several: float = 0.25
    high_grade_radius: Range = (8.0, 32.0)
    low_grade_radius: Range = (9.0, 34.0)
    satellite_radius: Range = (3.5, 11.0)
    rim: Range = (1.2, 9.0)
    enhancement: Range = (0.92, 1.9)
    oedema_reach: Range = (3.0, 20.0)
    oedema_strength: Range = (0.4, 1.0)
    white_t1: Range = (0.78, 0.95)
    grey_t1: Range = (0.54, 0.70)
    fluid_t1: Range = (0.10, 0.34)
    white_t2: Range = (0.28, 0.40)
    grey_t2: Range = (0.43, 0.56)
    fluid_t2: Range = (0.85, 1.35)
    white_flair: Range = (0.44, 0.60)
    grey_over_white_flair: Range = (0.0, 0.18)
    bright_cortex: float = 0.5
    bright_cortex_flair: Range = (0.05, 0.25)
    curve: float = 0.16
    fluid_flair: Range = (0.08, 0.32)
    atrophy: Range = (0.0, 1.0)
    ventricles: Range = (0.55, 1.7)
    bias: Range = (0.0, 0.16)
    bias_mm: Range = (35.0, 60.0)
    coil: Range = (0.0, 0.0)
    wide_sinuses: float = 0.0
    noise: Range = (0.002, 0.022)
    thick_slices: float = 0.5
    slice_blur_mm: Range = (1.0, 2.6)


# No scanner, no protocol and no brain alike: healthy tissue about twice as varied, more shading, noise and curve,
# and coils that leave the surface brighter than the depth. Half of the low-grade tumours enhance, as many of grade
# 3 do; oedema may reach further than the core is wide, and is never as faint as a coil's shading.
_VARIED = replace(
    Family(),
    low_grade_enhancing=0.5,
    low_grade_patches=(0.4, 2.2),
    oedema_reach=(2.0, 30.0),
    oedema_strength=(0.6, 1.0),
    white_t1=(0.70, 1.03),
    grey_t1=(0.46, 0.78),
    fluid_t1=(0.02, 0.46),
    white_t2=(0.22, 0.46),
    grey_t2=(0.37, 0.62),
    fluid_t2=(0.80, 2.20),
    white_flair=(0.36, 0.68),
    grey_over_white_flair=(-0.06, 0.27),
    bright_cortex=0.7,
    bright_cortex_flair=(0.05, 0.32),
    fluid_flair=(0.02, 0.44),
    curve=0.18,
    bias=(0.0, 0.25),
    bias_mm=(16.0, 60.0),
    coil=(0.0, 0.4),
    wide_sinuses=0.5,
    noise=(0.002, 0.03),
)
FAMILIES = {
    "default": Family(),
    "varied": _VARIED,
    # For decoders that are to tell tumour from none.
    "varied_free": replace(_VARIED, tumour_free=0.5),
    # Settings are chosen on this one: its ranges are shifted against the default ones, and overlap them.
    "held_out": replace(
        Family(),
        low_grade_enhancing=0.35,
        low_grade_patches=(0.8, 2.0),
        high_grade_radius=(7.0, 36.0),
        rim=(1.5, 7.0),
        enhancement=(1.0, 1.6),
        oedema_reach=(5.0, 25.0),
        oedema_strength=(0.35, 0.8),
        white_t1=(0.70, 0.80),
        grey_t1=(0.50, 0.60),
        white_t2=(0.36, 0.44),
        grey_t2=(0.50, 0.60),
        fluid_t2=(1.1, 2.0),
        white_flair=(0.52, 0.66),
        grey_over_white_flair=(0.05, 0.25),
        bright_cortex=0.9,
        bright_cortex_flair=(0.10, 0.35),
        curve=0.20,
        ventricles=(0.8, 2.0),
        bias=(0.05, 0.20),
        bias_mm=(22.0, 50.0),
        coil=(0.1, 0.4),
        wide_sinuses=0.7,
        noise=(0.01, 0.03),
    ),
}
"""Families by name."""
