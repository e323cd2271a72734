"""The DICOM objects of one result: segmentation, structured report and, where there is one, the report as PDF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.exports.dicom_pdf import write_dicom_pdf
from MTMed3DCore.exports.dicom_seg import KINDS, write_dicom_seg
from MTMed3DCore.exports.dicom_source import DicomSources, sources_of
from MTMed3DCore.exports.dicom_sr import write_dicom_sr
from MTMed3DCore.findings import Findings

SEGMENTATION = "segmentation.dcm"
MEASUREMENTS = "measurements.dcm"
REPORT = "report.dcm"


def write_dicom(
    findings: Findings,
    folder: Path,
    kind: str = "BINARY",
    *,
    pdf: bytes | None = None,
    sources: DicomSources | None = None,
    observer: str = "",
    states: Mapping[int, str] | None = None,
) -> list[Path]:
    """Write the objects into a folder, which is made; without tumour there is no segmentation.

    Args:
        findings: what was found.
        folder: takes `SEGMENTATION`, `MEASUREMENTS` and, with `pdf`, `REPORT`.
        kind: ``"BINARY"`` or ``"LABELMAP"``.
        pdf: the report, if it is to be filed too.
        sources: the series that was analysed; by default that of ``findings.study``.
        observer: DICOM name of the reader who reviewed the findings, or empty.
        states: what a reader made of each lesion's box; see `dicom_sr.write_dicom_sr`.

    Returns:
        The files.

    Raises:
        WrongUse: ``dicom-support`` (highdicom is not installed) or an unknown kind.
        InputRefused: ``dicom-source``, the study did not come as DICOM.
    """
    check_dicom_export(kind)
    sources = sources or sources_of(findings)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / MEASUREMENTS]
    segmentation = None
    if findings.labels.any():
        segmentation = write_dicom_seg(findings, folder / SEGMENTATION, sources, kind, observer)
        files.insert(0, folder / SEGMENTATION)
    write_dicom_sr(findings, folder / MEASUREMENTS, sources, segmentation, observer, states)
    if pdf is not None:
        write_dicom_pdf(findings, pdf, folder / REPORT, sources)
        files.append(folder / REPORT)
    return files


def check_dicom_export(kind: str = "BINARY") -> None:
    """Refuse before any work what `write_dicom` could not write.

    Raises:
        WrongUse: ``dicom-support`` or ``dicom-kind``.
    """
    if kind not in KINDS:
        raise WrongUse("dicom-kind", f"There is no DICOM segmentation {kind!r}.", f"Use {' or '.join(KINDS)}.")
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        remedy = "Install it with `pip install 'mtmed3d[dicom]'`."
        raise WrongUse("dicom-support", "Writing DICOM needs the package highdicom.", remedy) from error
