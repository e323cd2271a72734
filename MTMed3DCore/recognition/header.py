"""What the acquisition parameters of a series say about its contrast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SeriesHeader:
    """The part of a series' header that this package uses; nothing in it names a person.

    Args:
        patient_key: hash of the patient's identifiers, to tell patients apart.
        study_uid, series_uid, frame_uid: DICOM's unique identifiers of study, series and frame of reference.
        number: the scanner's number of the series.
        description, protocol: free text of the scanner's user.
        modality: ``MR``, ``CT``, ...
        image_type: values of DICOM's Image Type, upper case.
        scanning_sequence: of ``SE``, ``IR``, ``GR``, ``EP``, ``RM``.
        acquisition_type: ``2D``, ``3D`` or empty.
        te_ms, tr_ms, ti_ms: echo, repetition and inversion time in ms, None where absent.
        b_value: diffusion weighting in s/mm2, None where absent.
        contrast_agent: name of the agent as recorded, empty where none is.
        body_part: as recorded, upper case.
        study_date, acquired: ``YYYYMMDD`` and ``HHMMSS``, empty where absent.
        manufacturer: as recorded.
    """

    patient_key: str = ""
    study_uid: str = ""
    series_uid: str = ""
    frame_uid: str = ""
    number: int | None = None
    description: str = ""
    protocol: str = ""
    modality: str = "MR"
    image_type: tuple[str, ...] = ()
    scanning_sequence: frozenset[str] = frozenset()
    acquisition_type: str = ""
    te_ms: float | None = None
    tr_ms: float | None = None
    ti_ms: float | None = None
    b_value: float | None = None
    contrast_agent: str = ""
    body_part: str = ""
    study_date: str = ""
    acquired: str = ""
    manufacturer: str = ""


@dataclass(frozen=True)
class Evidence:
    """What a header says.

    Args:
        weightings: the weightings that the parameters allow, empty where they say nothing.
        contrast: True where an agent is recorded, None otherwise: many scanners record none.
        aside: why it is none of the four sequences, or empty.
        firm: whether `aside` was stated, not inferred from the parameters.
        reason: the parameters that decided, for a person.
    """

    weightings: frozenset[str] = frozenset()
    contrast: bool | None = None
    aside: str = ""
    firm: bool = False
    reason: str = ""


_IMAGE_TYPES = {
    "localiser": {"LOCALIZER"},
    "diffusion": {"ADC", "DIFFUSION", "TRACEW", "FA", "EADC", "TENSOR", "DIFFUSION_ANISO", "DIFFUSION MAP"},
    "perfusion": {"PERFUSION", "CBV", "CBF", "RCBV", "RCBF", "MTT", "TTP", "TMAX", "RELCBV", "ASL", "PERFUSION_ASL"},
    "functional imaging": {"FMRI", "MOSAIC", "T_TEST", "TTEST"},
    "susceptibility weighting": {"SWI", "MNIP", "MINIP", "MIN IP"},
    "reformatted or projected": {
        "MPR",
        "REFORMATTED",
        "PROJECTION IMAGE",
        "MIP",
        "MAX_IP",
        "VOLUME_RENDERED",
        "CSA MPR",
    },
    "subtraction": {"SUBTRACTION", "SUBTRACT", "SUB"},
    "phase or velocity": {"P", "PHASE MAP", "PHASE", "VELOCITY MAP", "VELOCITY", "PCA", "R_FFE", "I_FFE", "B0 MAP"},
    "parameter map": {"T1 MAP", "T2 MAP", "T2_STAR MAP", "T1_MAP", "T2_MAP", "R2_MAP", "FIELD_MAP", "MAP"},
    "picture of the screen": {"SCREEN SAVE", "SCREENSHOT", "CAPTURE"},
}
_ELSEWHERE = ("SPINE", "ABDOMEN", "PELVIS", "KNEE", "CHEST", "THORAX", "BREAST", "PROSTATE", "SHOULDER", "HIP", "ANKLE")
_NO_AGENT = frozenset({"", "NO", "NONE", "N", "0", "WITHOUT", "NO CONTRAST", "UNKNOWN", "NULL"})
LONG_TE_MS = 70.0
SHORT_TE_MS = 36.0


def read_header(header: SeriesHeader) -> Evidence:
    """What the header says; words of the description are not looked at.

    The bounds follow the usual protocols at 1.5 T and 3 T: a T1 by short echo and short repetition or an inversion of
    300 to 1300 ms, a FLAIR by a longer inversion before a long echo, a T2 by a long echo without one.
    """
    if header.modality != "MR":
        return Evidence(aside="not MR", firm=True, reason=f"modality {header.modality}")
    types = set(header.image_type)
    for aside, values in _IMAGE_TYPES.items():
        if hit := types & values:
            return Evidence(aside=aside, firm=True, reason=f"image type {sorted(hit)[0]}")
    if header.b_value is not None and header.b_value > 0:
        return Evidence(aside="diffusion", firm=True, reason=f"b value {header.b_value:g}")
    if any(part in header.body_part for part in _ELSEWHERE):
        return Evidence(aside="not the brain", firm=True, reason=f"body part {header.body_part}")
    contrast = True if header.contrast_agent.strip().upper() not in _NO_AGENT else None
    weightings, aside = _weighting(header)
    return Evidence(weightings, contrast, aside, reason=_reason(header))


def _weighting(header: SeriesHeader) -> tuple[frozenset[str], str]:
    te, tr, ti = header.te_ms, header.tr_ms, header.ti_ms or None
    kind = header.scanning_sequence
    if "EP" in kind:
        return frozenset(), "echo-planar imaging"
    if te is None or te <= 0:
        return frozenset(), ""
    gradient = "GR" in kind and "SE" not in kind
    if ti is not None and 80 <= ti < 300 and not gradient:
        return frozenset(), "short-inversion recovery (STIR)"
    if ti is not None and ti >= 1300 and te >= LONG_TE_MS:
        return frozenset({"flair"}), ""
    if gradient:
        if te >= 10:
            return frozenset(), "gradient echo (T2*)"
        return frozenset({"t1"}), ""
    if te >= LONG_TE_MS:
        # Some scanners leave the inversion time out; then only the long repetition hints at it.
        hidden = ti is None and ("IR" in kind or tr is None or tr >= 4500)
        return frozenset({"t2", "flair"} if hidden else {"t2"}), ""
    if te <= SHORT_TE_MS and ti is not None and ti < 1500:
        return frozenset({"t1"}), ""
    if te <= SHORT_TE_MS and tr is not None and tr <= 1300:
        return frozenset({"t1"}), ""
    if te < 50 and tr is not None and tr > 1800 and ti is None and "SE" in kind:
        return frozenset(), "proton density"
    return frozenset(), ""


def _reason(header: SeriesHeader) -> str:
    times = [
        f"{name} {value:.3g}" if value < 100 else f"{name} {value:.0f}"
        for name, value in (("TE", header.te_ms), ("TR", header.tr_ms), ("TI", header.ti_ms))
        if value
    ]
    agent = [f"agent {header.contrast_agent}"] if header.contrast_agent else []
    return " ".join([*sorted(header.scanning_sequence), *times, *agent])
