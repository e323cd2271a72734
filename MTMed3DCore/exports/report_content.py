"""What the report says, apart from how a page or a sheet shows it: tables of plain text with their units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from MTMed3DCore.findings import REGION_LABELS, Findings, Lesion
from MTMed3DCore.measurements.rano import sum_of_products
from MTMed3DCore.preparation.record import BRAIN_SOURCES

if TYPE_CHECKING:
    from MTMed3DCore.recognition.header import SeriesHeader

GRADE_NOTE = "Likelihood from imaging alone; the WHO grade needs tissue."
SCORE_NOTE = (
    "Score: the box detector's confidence, 0 to 1; half the mean tumour probability where only the segmentation shows "
    "the lesion. Lesions are numbered by falling score, not by size."
)
RANO_NOTE = (
    "RANO: longest diameter of enhancing tumour on an axial slice as scanned, and the longest perpendicular to it; "
    "necrosis enclosed by a rim is not taken off. Measurable: both reach the least diameter, on two slices at least."
)
COMPARISON_NOTE = (
    "By diameters alone. RANO also asks for clinical state, steroids, T2/FLAIR and confirmation, and changes between "
    "two automatic outlines include the method's own error."
)
_VERDICTS = {"good": "good", "doubtful": "doubtful: compare by eye", "failed": "failed", "not-needed": "not needed"}
_NAMES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}


@dataclass(frozen=True)
class TextTable:
    """Headings and rows of text; the first column names the row."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def region_name(key: str) -> str:
    """A key of `REGION_LABELS` for a person: ``whole_tumour`` as ``whole tumour``."""
    return key.replace("_", " ")


def examination(findings: Findings) -> str:
    """Date of the examination, where the study came as DICOM; otherwise empty."""
    date = _headers(findings)["t1ce"].study_date if "t1ce" in _headers(findings) else ""
    return f"Examination of {date[:4]}-{date[4:6]}-{date[6:8]}" if len(date) == 8 and date.isdigit() else ""


def grade_sentence(findings: Findings) -> tuple[str, str]:
    """The grade in one word or two, and what stands behind it."""
    grade = findings.grade
    if grade is None:
        return "No grade", "no tumour was found, or the model does not grade"
    percent = f"{100 * grade.probability_hgg:.0f} %"
    if grade.by == "model":
        return grade.label, f"probability of high grade {percent}"
    model = f"; the model's probability of high grade is {percent}" if 0 < grade.probability_hgg < 1 else ""
    return grade.label, f"set by the reader{model}"


def calibration_note(findings: Findings) -> str:
    """What the model's metadata says of how far the probability can be taken at its word."""
    grade = findings.grade
    if grade is None:
        return ""
    said = grade.calibration
    if said is None:
        return (
            f"Not calibrated: {findings.model.name} {findings.model.version} records no calibration of its grade, so "
            "take the probability for a rank rather than a chance."
        )
    return _calibrated(said)


def score_note(findings: Findings) -> str:
    """What score and probability of a lesion mean."""
    said = findings.lesion_calibration
    if said is None:
        return SCORE_NOTE
    return f"{SCORE_NOTE} Probability: that a lesion of this score is a true one. {_calibrated(said)}"


def _calibrated(said: Mapping[str, Any]) -> str:
    """Method, studies and error of a calibration."""
    error = f", mean calibration error {said['calibration_error']:.2f}" if "calibration_error" in said else ""
    count = f"{said['studies']} {'study' if said['studies'] == 1 else 'studies'}"
    return f"Calibrated by {said['method']} on {count} ({said['data']}){error}; other patients and scanners may differ."


def lesion_title(lesion: Lesion) -> str:
    """Number, side, score and where it was found."""
    found = "detector" if lesion.origin == "detection" else "segmentation"
    side = "" if lesion.laterality is None else f", {lesion.laterality['side']}"
    return (
        f"Lesion {lesion.id}{side}: score {lesion.score:.2f}{_likely(lesion, ', probability ')}, found by the {found}"
    )


def _likely(lesion: Lesion, before: str, after: str = "") -> str:
    """The calibrated probability between some words; empty where there is none."""
    return "" if lesion.probability is None else f"{before}{lesion.probability:.2f}{after}"


def lesion_table(lesion: Lesion, findings: Findings) -> TextTable:
    """Everything that was measured on one lesion."""
    size = " × ".join(f"{extent:.0f}" for extent in lesion.box.size)
    rows = [
        ("box", f"{size} mm"),
        ("longest diameter in 3D", f"{lesion.longest_diameter_mm:.1f} mm"),
        *((f"volume, {region_name(name)}", f"{lesion.volumes_ml[name]:.2f} ml") for name in REGION_LABELS),
    ]
    if lesion.laterality is not None:
        side, share = lesion.laterality["side"], 100 * lesion.laterality["right_share"]
        rows.append(("side", f"{side} ({share:.0f} % right)" if side == "bilateral" else side))
    rano = lesion.rano
    if rano is not None and "longest_mm" in rano:
        diameters = f"{rano['longest_mm']:.1f} × {rano['perpendicular_mm']:.1f} mm"
        rows.append(("RANO diameters", f"{diameters}, product {rano['product_mm2']:.0f} mm²"))
        if "slice_index" in rano:
            rows.append(("RANO slice", _slice(rano, findings)))
            rows.append(("enhancement on", f"{rano['slices']} axial slice{'' if rano['slices'] == 1 else 's'}"))
        if "measurable" in rano:
            least = f"least {rano['least_mm']:.0f} mm"
            rows.append(("measurable", f"yes ({least})" if rano["measurable"] else f"no: {rano['reason']} ({least})"))
    elif rano is None:
        rows.append(("RANO diameters", "none: nothing enhances"))
    return TextTable(("", ""), tuple(rows))


def _slice(rano: Mapping[str, Any], findings: Findings) -> str:
    """Which axial slice, counted from the feet, because array order differs from viewer to viewer."""
    axis, index = rano["slice_axis"], rano["slice_index"]
    count = findings.grid.shape[axis]
    number = index + 1 if findings.grid.affine[2, axis] > 0 else count - index
    return f"{number} of {count}, from the feet"


def overview_table(findings: Findings) -> TextTable:
    """One row for each lesion."""
    score = "score" if findings.lesion_calibration is None else "score (prob.)"
    header = ("#", "side", score, "found by", "box (mm)", "longest (mm)", "RANO (mm)",
              *(f"{region_name(name)} (ml)" for name in REGION_LABELS))  # fmt: skip
    rows = []
    for lesion in findings.lesions:
        size = "×".join(f"{extent:.0f}" for extent in lesion.box.size)
        found = "detector" if lesion.origin == "detection" else "segmentation"
        side = "" if lesion.laterality is None else str(lesion.laterality["side"])
        rano = lesion.rano
        across = "" if rano is None else f"{rano['longest_mm']:.0f}×{rano['perpendicular_mm']:.0f}"
        volumes = (f"{lesion.volumes_ml[name]:.2f}" for name in REGION_LABELS)
        longest = f"{lesion.longest_diameter_mm:.1f}"
        score = f"{lesion.score:.2f}{_likely(lesion, ' (', ')')}"
        rows.append((str(lesion.id), side, score, found, size, longest, across, *volumes))
    return TextTable(header, tuple(rows))


def hidden_sentence(findings: Findings, shown: int) -> str:
    """How many lesions have no key images, or an empty text."""
    hidden = len(findings.lesions) - shown
    return f"Key images of the first {shown} lesions; {hidden} more are in the table only." if hidden > 0 else ""


def volume_table(findings: Findings) -> TextTable:
    """Volumes in the whole study."""
    measured = findings.volumes_ml
    rows = tuple((region_name(name), f"{measured[name]:.2f}") for name in REGION_LABELS)
    return TextTable(("region", "volume (ml)"), rows)


def rano_sentence(findings: Findings) -> str:
    """The sum of products of the study."""
    total = sum_of_products(lesion.rano for lesion in findings.lesions if _is_measured(lesion))
    if total == 0:
        return "No lesion is measurable by RANO."
    return f"Sum of products of the measurable lesions: {total:.0f} mm²."


def preparation_table(findings: Findings) -> TextTable | None:
    """Brain mask and registrations, or None where they are not known."""
    record = findings.preparation
    if record is None:
        return None
    rows = [("brain mask", f"{BRAIN_SOURCES[record.brain_source]}; {record.brain_ml:.0f} ml")]
    for each in record.registrations:
        figures = _VERDICTS[each.verdict]
        if each.method == "mutual-information":
            figures += f"; turned {each.rotation_deg:.1f}°, moved {each.translation_mm:.1f} mm against its header"
        elif each.method == "given":
            figures = "given by the user"
        elif each.verdict != "not-needed":
            figures += "; left where its header puts it"
        if each.disagreement_mm is not None:
            figures += f"; two runs end {each.disagreement_mm:.2f} mm apart"
        if each.mutual_information is not None and each.mutual_information_header is not None:
            figures += f"; mutual information {each.mutual_information:.2f}"
            figures += f" (header {each.mutual_information_header:.2f})"
        rows.append((f"registration of {_NAMES[each.sequence]}", figures))
    shape = " × ".join(str(size) for size in record.working.shape)
    rows.append(("working grid", f"{shape} voxels of {record.working.spacing[0]:.3g} mm"))
    return TextTable(("", ""), tuple(rows))


def comparison_table(findings: Findings) -> TextTable | None:
    """What changed since the prior study, or None where none was given."""
    compared = findings.comparison
    if compared is None:
        return None
    rows = [
        (f"{region_name(name)} (ml)", f"{change['prior']:.2f}", f"{change['current']:.2f}", _percent(change["percent"]))
        for name, change in compared["volumes_ml"].items()
    ]
    products = compared["sum_of_products_mm2"]
    values = (f"{products['prior']:.0f}", f"{products['current']:.0f}", _percent(products["percent"]))
    rows.append(("RANO sum of products (mm²)", *values))
    return TextTable(("", "prior", "now", "change"), tuple(rows))


def comparison_sentence(findings: Findings) -> str:
    """With what it was compared, and what the diameters say."""
    compared = findings.comparison
    if compared is None:
        return ""
    prior = compared["prior"]
    model = "the same model" if compared["same_model"] else f"another model ({prior['model']})"
    new = compared["new_lesions"]
    more = f" {new} more lesion{'s' if new > 1 else ''} than before." if new else ""
    return f"Prior study {prior['study']}, analysed {prior['created'][:10]} with {model}: {compared['reading']}.{more}"


def model_table(findings: Findings) -> TextTable:
    """The model and the essence of its card."""
    model = findings.model
    rows = [("model", f"{model.name} {model.version}"), ("trained on", model.trained_on)]
    rows += list(findings.model_card.items())
    return TextTable(("", ""), (*rows, ("weights, SHA-256", model.sha256)))


def provenance_table(findings: Findings) -> TextTable:
    """Files or series, grid, software and time."""
    grid = findings.grid
    shape = " × ".join(str(size) for size in grid.shape)
    spacing = " × ".join(f"{size:.3g}" for size in grid.spacing)
    stages = [(stage, s) for stage, s in findings.timing_s.items() if stage not in ("write", "total")]
    rows = (
        *((_NAMES.get(name, name), _source(findings, name)) for name in findings.sources),
        ("T1ce grid", f"{shape} voxels of {spacing} mm"),
        ("regions", "by the model" if findings.regions_by == "model" else "corrected by a reader"),
        *findings.software.items(),
        *((f"{stage}, seconds", f"{seconds:.2f}") for stage, seconds in stages),
    )
    return TextTable(("", ""), rows)


def _source(findings: Findings, name: str) -> str:
    """The series of a sequence as its scanner names it, or the path of its file."""
    header = _headers(findings).get(name)
    if header is None:
        return findings.sources[name]
    return f"series {header.number}: {header.description or header.protocol or 'without description'}"


def _headers(findings: Findings) -> dict[str, SeriesHeader]:
    series = getattr(findings.study, "series", None) or {}
    return {name: each.header for name, each in series.items()}


def _is_measured(lesion: Lesion) -> bool:
    return lesion.rano is not None and "measurable" in lesion.rano


def _percent(value: float | None) -> str:
    return "new" if value is None else f"{value:+.0f} %"
