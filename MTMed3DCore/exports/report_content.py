"""What the report says, apart from how a page or a sheet shows it: tables of plain text with their units."""

from __future__ import annotations

from dataclasses import dataclass

from MTMed3DCore.findings import REGION_LABELS, Findings, Lesion
from MTMed3DCore.measurements.rano import sum_of_products
from MTMed3DCore.preparation.record import BRAIN_SOURCES

GRADE_NOTE = "Likelihood from imaging alone; the WHO grade needs tissue."
CALIBRATION_NOTE = (
    "The probability is the model's own, not calibrated on patients of this scanner: a rank rather than a chance."
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


@dataclass(frozen=True)
class TextTable:
    """Headings and rows of text; the first column names the row."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def region_name(key: str) -> str:
    """A key of `REGION_LABELS` for a person: ``whole_tumour`` as ``whole tumour``."""
    return key.replace("_", " ")


def lesion_title(lesion: Lesion) -> str:
    """Number, score, where it was found and on which side."""
    found = "detection" if lesion.origin == "detection" else "segmented region"
    side = "" if lesion.laterality is None else f", {lesion.laterality['side']}"
    return f"Lesion {lesion.id}{side}: score {lesion.score:.2f}, found by {found}"


def lesion_table(lesion: Lesion) -> TextTable:
    """Everything that was measured on one lesion."""
    size = " × ".join(f"{extent:.0f}" for extent in lesion.box.size)
    rows = [
        ("box", f"{size} mm"),
        ("longest diameter in 3D", f"{lesion.longest_diameter_mm:.1f} mm"),
        *((f"volume, {region_name(name)}", f"{lesion.volumes_ml[name]:.2f} ml") for name in REGION_LABELS),
    ]
    if lesion.laterality is not None:
        share = lesion.laterality["right_share"]
        rows.append(("side", f"{lesion.laterality['side']} ({100 * share:.0f} % right of the midplane)"))
    rano = lesion.rano
    if rano is not None and "longest_mm" in rano:
        diameters = f"{rano['longest_mm']:.1f} × {rano['perpendicular_mm']:.1f} mm"
        rows.append(("RANO diameters", f"{diameters}, product {rano['product_mm2']:.0f} mm²"))
        rows.append(("RANO slice", f"{rano['slice_index'] + 1} of the axial stack, seen on {rano['slices']}"))
        least = f"least {rano['least_mm']:.0f} mm"
        rows.append(("measurable", f"yes ({least})" if rano["measurable"] else f"no: {rano['reason']} ({least})"))
    elif rano is None:
        rows.append(("RANO diameters", "none: nothing enhances"))
    return TextTable(("", ""), tuple(rows))


def overview_table(findings: Findings) -> TextTable:
    """One row for each lesion."""
    header = ("#", "score", "found by", "size (mm)", "longest diameter (mm)",
              *(f"{region_name(name)} (ml)" for name in REGION_LABELS))  # fmt: skip
    rows = []
    for lesion in findings.lesions:
        size = " × ".join(f"{extent:.0f}" for extent in lesion.box.size)
        found = "detection" if lesion.origin == "detection" else "segmented region"
        volumes = (f"{lesion.volumes_ml[name]:.2f}" for name in REGION_LABELS)
        rows.append((str(lesion.id), f"{lesion.score:.2f}", found, size, f"{lesion.longest_diameter_mm:.1f}", *volumes))
    return TextTable(header, tuple(rows))


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
        elif each.verdict == "failed":
            figures += "; left where its header puts it"
        if each.disagreement_mm is not None:
            figures += f"; two runs agree to {each.disagreement_mm:.2f} mm"
        if each.mutual_information is not None and each.mutual_information_header is not None:
            figures += f"; mutual information {each.mutual_information:.2f}"
            figures += f" (header {each.mutual_information_header:.2f})"
        rows.append((f"registration of {each.sequence} to t1ce", figures))
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
    """Files, grid, software and time."""
    grid = findings.grid
    shape = " × ".join(str(size) for size in grid.shape)
    spacing = " × ".join(f"{size:.3g}" for size in grid.spacing)
    stages = [(stage, s) for stage, s in findings.timing_s.items() if stage not in ("write", "total")]
    rows = (
        *findings.sources.items(),
        ("T1ce grid", f"{shape} voxels of {spacing} mm"),
        *findings.software.items(),
        *((f"{stage}, seconds", f"{seconds:.2f}") for stage, seconds in stages),
    )
    return TextTable(("", ""), rows)


def _is_measured(lesion: Lesion) -> bool:
    return lesion.rano is not None and "measurable" in lesion.rano


def _percent(value: float | None) -> str:
    return "new" if value is None else f"{value:+.0f} %"
