"""DICOM Encapsulated PDF: the report, filed with the patient's study."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.exports.dicom_source import SERIES_NUMBERS, DicomSources, equipment
from MTMed3DCore.findings import Findings

TITLE = "MTMed3D report (research use only)"
_PATIENT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID",
    "StudyDate", "StudyTime", "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "SpecificCharacterSet",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
)  # fmt: skip


def write_dicom_pdf(findings: Findings, pdf: bytes, path: Path, sources: DicomSources) -> None:
    """Write a PDF as a DICOM object of the source's patient and study.

    Args:
        findings: what the report is of.
        pdf: the document.
        path: file to write.
        sources: the series that was analysed.

    Raises:
        InputRefused: ``pdf-invalid``, these bytes are no PDF.
    """
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian, generate_uid

    if not pdf.startswith(b"%PDF-"):
        raise InputRefused("pdf-invalid", f"The report begins with {pdf[:8]!r}; a PDF begins with %PDF-.")
    source, dataset = sources.t1ce[0], Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in _PATIENT:
        if keyword in source:
            setattr(dataset, keyword, source.get(keyword))
    now = datetime.now().astimezone()
    made_by = equipment(findings)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID, dataset.SeriesNumber = generate_uid(), SERIES_NUMBERS["DOC"]
    dataset.InstanceNumber, dataset.Modality, dataset.ConversionType = 1, "DOC", "WSD"
    dataset.SeriesDescription, dataset.DocumentTitle = TITLE, TITLE
    dataset.Manufacturer, dataset.ManufacturerModelName = made_by["manufacturer"], made_by["manufacturer_model_name"]
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = made_by["software_versions"], made_by["device_serial_number"]
    dataset.ContentDate = dataset.SeriesDate = dataset.InstanceCreationDate = now.strftime("%Y%m%d")
    dataset.ContentTime = dataset.SeriesTime = dataset.InstanceCreationTime = now.strftime("%H%M%S")
    dataset.AcquisitionDateTime = findings.created.astimezone().strftime("%Y%m%d%H%M%S")
    dataset.BurnedInAnnotation, dataset.MIMETypeOfEncapsulatedDocument = "YES", "application/pdf"
    dataset.ConceptNameCodeSequence = []
    references = []
    for image in sources.t1ce:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        references.append(reference)
    dataset.SourceInstanceSequence = references
    dataset.EncapsulatedDocumentLength = len(pdf)
    dataset.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
