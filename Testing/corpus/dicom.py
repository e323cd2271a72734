"""DICOM faults: slices missing or doubled, patients mixed, pixels absent or not decodable, other kinds of image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import JPEG2000Lossless, generate_uid

from Testing.corpus.case import SEQUENCES, Given, Subject
from Testing.corpus.plain import AFFINE, sequence
from Testing.dicom_series import PARAMETERS, Examination, write_series

CASES = Subject("DICOM")
NUMBERS = {"t1": 3, "t2": 4, "flair": 5, "t1ce": 6}


def _examination(
    folder: Path, changes: dict[str, dict[str, Any]] | None = None, *, patients: dict[str, Examination] | None = None
) -> Given:
    """A quarter of the plain study as DICOM; the tags of a sequence can be changed."""
    shared = Examination()
    for name in SEQUENCES:
        examination = (patients or {}).get(name, shared)
        values = sequence(name)[::2, ::2, 6:30:2].clip(0)
        tags = {**PARAMETERS[name], **(changes or {}).get(name, {})}
        affine = AFFINE @ np.diag([2.0, 2, 2, 1])
        write_series(folder / name, values, affine, examination, number=NUMBERS[name], **tags)
    return Given(place=folder)


def _files(folder: Path, name: str = "flair") -> list[Path]:
    return sorted((folder / name).iterdir(), key=lambda path: int(path.name.rpartition("_")[2]))


def _rewrite(path: Path, **tags: Any) -> None:
    dataset = pydicom.dcmread(path)
    for tag, value in tags.items():
        if value is None:
            delattr(dataset, tag)
        else:
            setattr(dataset, tag, value)
    dataset.save_as(path)


@CASES.refuses("slices-missing", "lacks 1", plain=False)
def slice_missing(folder: Path) -> Given:
    given = _examination(folder)
    _files(folder)[5].unlink()
    return given


@CASES.refuses("slices-duplicate", "AX T2 FLAIR", plain=False)
def two_slices_at_one_place(folder: Path) -> Given:
    given = _examination(folder)
    files = _files(folder)
    _rewrite(files[5], ImagePositionPatient=pydicom.dcmread(files[4]).ImagePositionPatient)
    return given


@CASES.refuses("slices-uneven", "AX T2 FLAIR", plain=False)
def slice_out_of_its_place(folder: Path) -> Given:
    given = _examination(folder)
    place = pydicom.dcmread(_files(folder)[5]).ImagePositionPatient
    _rewrite(_files(folder)[5], ImagePositionPatient=[place[0], place[1], float(place[2]) - 3.4])
    return given


@CASES.refuses("geometry-shear", "AX T2 FLAIR", plain=False)
def gantry_tilt(folder: Path) -> Given:
    given = _examination(folder)
    for number, file in enumerate(_files(folder)):
        place = pydicom.dcmread(file).ImagePositionPatient
        _rewrite(file, ImagePositionPatient=[place[0], float(place[1]) + 2 * number, place[2]])
    return given


@CASES.refuses("several-patients", "more than one patient", plain=False)
def two_patients(folder: Path) -> Given:
    return _examination(folder, patients={"t2": Examination("SOMEONE-ELSE")})


@CASES.refuses("several-studies", "2 studies", plain=False)
def two_studies_of_a_patient(folder: Path) -> Given:
    return _examination(folder, patients={"t2": Examination(date="20230105")})


@CASES.refuses("file-damaged", "pixels", plain=False)
def no_pixel_data(folder: Path) -> Given:
    given = _examination(folder)
    _rewrite(_files(folder)[5], PixelData=None)
    return given


@CASES.refuses("file-damaged", "pixels", plain=False)
def pixel_data_cut_short(folder: Path) -> Given:
    given = _examination(folder)
    file = _files(folder)[5]
    file.write_bytes(file.read_bytes()[:-200])
    return given


@CASES.refuses("dicom-compression", "JPEG 2000", plain=False)
def raw_pixels_that_claim_to_be_jpeg_2000(folder: Path) -> Given:
    given = _examination(folder)
    file = _files(folder)[5]
    dataset = pydicom.dcmread(file)
    pixels = b"\xff\x4f\xff\x51" + bytes(60)
    dataset.PixelData = pydicom.encaps.encapsulate([pixels])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.save_as(file)
    return given


@CASES.refuses("sequence-missing", "FLAIR", plain=False)
def computed_tomography_as_flair(folder: Path) -> Given:
    return _examination(folder, {"flair": {"Modality": "CT"}})


@CASES.refuses("sequence-missing", "No series is the T1", plain=False)
def computed_tomography_alone(folder: Path) -> Given:
    return _examination(folder, {name: {"Modality": "CT"} for name in SEQUENCES})


@CASES.refuses("sequence-missing", "T1", plain=False)
def localiser_alone(folder: Path) -> Given:
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_series(
        folder / "loc", sequence("t1")[::4, ::4, ::8].clip(0), AFFINE, Examination(), ImageType=kind, EchoTime=5
    )
    return Given(place=folder)


@CASES.refuses("sequence-missing", "T1", plain=False)
def knee(folder: Path) -> Given:
    return _examination(folder, {name: {"BodyPartExamined": "KNEE"} for name in SEQUENCES})


@CASES.refuses("sequence-missing", "FLAIR", plain=False)
def slices_without_a_position(folder: Path) -> Given:
    return _examination(folder, {"flair": {"ImagePositionPatient": None}})


@CASES.refuses("sequence-missing", "FLAIR", plain=False)
def spacing_of_zero_in_the_slices(folder: Path) -> Given:
    return _examination(folder, {"flair": {"PixelSpacing": [0, 0]}})


@CASES.refuses("sequence-ambiguous", "T1ce", plain=False)
def two_t1ce_alike(folder: Path) -> Given:
    shared = Examination()
    given = _examination(folder, patients=dict.fromkeys(SEQUENCES, shared))
    values = sequence("t1ce")[::2, ::2, 6:30:2].clip(0) + 1
    write_series(folder / "again", values, AFFINE @ np.diag([2.0, 2, 2, 1]), shared, number=9, **PARAMETERS["t1ce"])
    return given


@CASES.refuses("constant", "AX T2 FLAIR", plain=False)
def blank_slices(folder: Path) -> Given:
    given = _examination(folder)
    for file in _files(folder):
        _rewrite(file, PixelData=bytes(len(pydicom.dcmread(file).PixelData)))
    return given


@CASES.refuses("not-scalar", "colours", plain=False)
def colour_slices(folder: Path) -> Given:
    given = _examination(folder)
    for file in _files(folder):
        _rewrite(file, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    return given


@CASES.refuses("slices-missing", "lacks 1", plain=False)
def header_cut_short(folder: Path) -> Given:
    """So short that it tells of no image any more."""
    given = _examination(folder)
    file = _files(folder)[5]
    file.write_bytes(file.read_bytes()[:700])
    return given


@CASES.refuses("file-damaged", "IM", plain=False)
def file_that_ends_within_its_first_number(folder: Path) -> Given:
    """Five bytes where the length of the file's own description should be, an integer of four."""
    given = _examination(folder)
    _files(folder)[5].write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x00\x00" + b"60010")
    return given


def _overwritten(folder: Path, after: bytes, skip: int, by: bytes) -> Given:
    """An examination of whose slices one has other bytes, `skip` from where `after` begins."""
    given = _examination(folder)
    file = _files(folder)[5]
    content = file.read_bytes()
    start = content.index(after) + skip
    file.write_bytes(content[:start] + by + content[start + len(by) :])
    return given


@CASES.refuses("file-damaged", "IM", plain=False)
def value_of_an_unknown_kind(folder: Path) -> Given:
    return _overwritten(folder, b"\x18\x00\x15\x00CS", 4, b"C\xff")  # the body part


@CASES.refuses("file-damaged", "IM", plain=False)
def position_that_is_no_number(folder: Path) -> Given:
    return _overwritten(folder, b"\x20\x00\x32\x00DS", 8, b"x" * 4)


@CASES.refuses("file-damaged", "IM", plain=False)
def colours_counted_by_half_a_number(folder: Path) -> Given:
    return _overwritten(folder, b"\x28\x00\x02\x00US", 4, b"FD")


@CASES.refuses("file-damaged", "IM", plain=False)
def bits_counted_by_half_a_number(folder: Path) -> Given:
    return _overwritten(folder, b"\x28\x00\x00\x01US", 4, b"FD")


@CASES.refuses("slices-missing", "lacks", plain=False)
def slice_that_is_rubbish(folder: Path) -> Given:
    """Passed over as no DICOM file, and then missed."""
    given = _examination(folder)
    _files(folder)[5].write_bytes(np.random.default_rng(0).bytes(3000))
    return given


@CASES.refuses("dicom-none", "no DICOM image", plain=False)
def slices_of_other_objects(folder: Path) -> Given:
    """Only an object that is no image of a series."""
    given = _examination(folder)
    for name in SEQUENCES:
        for file in _files(folder, name):
            _rewrite(file, SeriesInstanceUID=None)
    return given


@CASES.refuses("geometry-shear", "AX T2 FLAIR", plain=False)
def orientation_whose_axes_are_not_perpendicular(folder: Path) -> Given:
    return _examination(folder, {"flair": {"ImageOrientationPatient": [1, 0, 0, 0.6, 0.8, 0]}})


@CASES.refuses("slices-missing", "lacks", plain=False)
def one_slice_of_another_size(folder: Path) -> Given:
    given = _examination(folder)
    file = _files(folder)[5]
    _rewrite(file, Rows=11, PixelData=pydicom.dcmread(file).PixelData[: 11 * 20 * 2])
    return given


@CASES.refuses("slices-missing", "lacks", plain=False)
def slice_of_another_series(folder: Path) -> Given:
    given = _examination(folder)
    _rewrite(_files(folder)[5], SeriesInstanceUID=generate_uid())
    return given
