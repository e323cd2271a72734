"""What a study says of its patient stays in the DICOM objects that must say it, and nothing leaves the machine."""

from __future__ import annotations

import csv
import gzip
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from subprocess import PIPE

import nibabel
import numpy as np
import pytest

from MTMed3DCore.cli import main
from MTMed3DCore.errors import WrongUse
from MTMed3DCore.exports.deidentify import deidentified_study
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.study import Study
from Testing.cohorts import SIDE, SPACING_MM, make_model, write_head

NAME, IDENTIFIER, BIRTH, HOSPITAL, DOCTOR, NUMBER = (
    "Zzyzxova",
    "QX7710045",
    "19370217",
    "Quxbridge",
    "Drxqvist",
    "ACQ998",
)
DAY, ROOT_UID = "20190613", "1.2.826.0.1.3680043.9.77777"
MARKS = (NAME, IDENTIFIER, BIRTH, "1937-02-17", HOSPITAL, DOCTOR, NUMBER, DAY, "2019-06-13", ROOT_UID)
TAGS = {
    "PatientName": f"{NAME}^Marta", "PatientID": IDENTIFIER, "PatientBirthDate": BIRTH, "InstitutionName": HOSPITAL,
    "ReferringPhysicianName": DOCTOR, "AccessionNumber": NUMBER, "StudyDescription": f"Brain {NAME}",
    "StudyDate": DAY, "SeriesDate": DAY, "AcquisitionDate": DAY, "ContentDate": DAY, "StudyID": NUMBER,
    "PatientComments": f"{NAME} of {HOSPITAL}", "OperatorsName": DOCTOR, "StationName": HOSPITAL,
    "InstitutionAddress": HOSPITAL, "OtherPatientIDs": IDENTIFIER, "StudyInstanceUID": f"{ROOT_UID}.1",
    "FrameOfReferenceUID": f"{ROOT_UID}.2",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


def marked_nifti(folder: Path, stem: str = "") -> Path:
    """A study whose headers, and whose file names if there is a stem, name the patient."""
    write_head(folder, 3)
    for name in SEQUENCES:
        path = folder / f"{name}.nii.gz"
        image = nibabel.load(path)
        image.header["descrip"], image.header["aux_file"] = f"{NAME} {BIRTH} {HOSPITAL}", IDENTIFIER
        image.header["db_name"], image.header["intent_name"] = IDENTIFIER, NAME
        nibabel.save(
            nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), folder / f"new_{name}.nii.gz"
        )
        path.unlink()
        (folder / f"new_{name}.nii.gz").rename(folder / f"{stem}{name}.nii.gz")
        sidecar = {"PatientName": NAME, "PatientID": IDENTIFIER, "InstitutionName": HOSPITAL, "StudyDate": DAY}
        (folder / f"{stem}{name}.json").write_text(json.dumps(sidecar))
    return folder


def marked_dicom(folder: Path, described: str = "") -> Path:
    """An examination in whose headers every place that may name the patient does; descriptions end in `described`."""
    from Testing.dicom_series import PARAMETERS, Examination, write_series

    write_head(folder.parent / "heads", 3)
    affine = np.diag([-SPACING_MM, -SPACING_MM, SPACING_MM, 1])
    for number, name in enumerate(SEQUENCES, 1):
        array = np.asarray(nibabel.load(folder.parent / "heads" / f"{name}.nii.gz").dataobj).astype(np.int16).clip(0)
        own = {"SeriesDescription": PARAMETERS[name]["SeriesDescription"] + described}
        tags = {**PARAMETERS[name], **TAGS, **own, "SeriesInstanceUID": f"{ROOT_UID}.3.{number}"}
        write_series(folder / name, array, affine, Examination(), number=number, **tags)
    return folder


def found(files: Iterable[Path], *texts: str, marks: Iterable[str] = MARKS) -> list[str]:
    """The marks in files, their names, what they pack, and texts."""
    hits = [f"{mark} in a text" for mark in marks for text in texts if mark.lower() in text.lower()]
    for path in files:
        contents = [path.read_bytes(), path.name.encode()] if path.is_file() else [path.name.encode()]
        if path.name.endswith(".gz"):
            contents.append(gzip.decompress(contents[0]))
        contents += list(streams(contents[0]))
        contents += [content.replace(b"\0", b"") for content in contents]  # UTF-16
        hits += [f"{m} in {path}" for m in marks if any(m.lower().encode() in content.lower() for content in contents)]
    return hits


def streams(content: bytes) -> Iterable[bytes]:
    """What a PDF, also one inside a DICOM object, and the end of a .seg.nrrd pack; pieces of a line of text joined."""
    for start in re.finditer(rb"stream\r?\n|\r?\n\r?\n", content):
        try:
            plain = zlib.decompressobj(wbits=47).decompress(content[start.end() :])
        except zlib.error:
            continue
        yield plain
        yield b"".join(re.findall(rb"\(((?:[^()\\]|\\.)*)\)", plain))


def written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_search_itself_finds_marks_in_every_kind_of_file(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    figure = plt.figure()
    figure.text(0.1, 0.5, f"Patient {NAME}")
    figure.savefig(tmp_path / "a.pdf")
    plt.close(figure)
    (tmp_path / "b.txt").write_text(f"born {BIRTH}", encoding="utf-16")
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(HOSPITAL.encode()))
    assert {hit.split()[0] for hit in found(written(tmp_path), IDENTIFIER)} == {NAME, BIRTH, HOSPITAL, IDENTIFIER}


def test_headers_of_a_dicom_study_reach_only_dicom_objects(model: Path, tmp_path: Path, capfd) -> None:
    pytest.importorskip("highdicom", reason="needs the extra `dicom`")
    import pydicom

    case, out = marked_dicom(tmp_path / "export"), tmp_path / "out"
    arguments = ["analyze", str(case), "-o", str(out), "--model", str(model), "--device", "cpu", "--dicom"]
    assert main([*arguments, "--bids", str(tmp_path / "bids")]) == 0
    shown = capfd.readouterr()
    objects = sorted((out / "dicom").glob("*.dcm"))
    others = [path for path in (*written(out), *written(tmp_path / "bids")) if path not in objects]
    assert len(others) > 12
    marks = [mark for mark in MARKS if mark.replace("-", "") != DAY]  # the report says when the patient was examined
    assert found(others, shown.out, shown.err, marks=marks) == []
    for path in objects:
        assert str(pydicom.dcmread(path).PatientName) == TAGS["PatientName"], "these belong to the patient's record"


def test_a_deidentified_dicom_study_names_nobody_anywhere(model: Path, tmp_path: Path, capfd) -> None:
    pytest.importorskip("highdicom", reason="needs the extra `dicom`")
    import pydicom

    case = marked_dicom(tmp_path / f"{NAME}_{IDENTIFIER}_{BIRTH}", f" {NAME}")
    out, bids = tmp_path / "out", tmp_path / "bids"
    arguments = ["analyze", str(case), "-o", str(out), "--model", str(model), "--device", "cpu", "--dicom", "--json"]
    assert main([*arguments, "--bids", str(bids), "--deidentify", "subject-7"]) == 0
    shown = capfd.readouterr()
    assert found([*written(out), *written(bids)], shown.out, shown.err) == []
    document = json.loads((out / "findings.json").read_text())
    assert document["study"]["id"] == "subject-7"
    assert document["study"]["sequences"] == {name: name for name in SEQUENCES}
    objects = [pydicom.dcmread(path) for path in sorted((out / "dicom").glob("*.dcm"))]
    assert {each.Modality for each in objects} == {"DOC", "SEG", "SR"}
    for each in objects:
        assert (each.PatientName.family_name, each.PatientID) == ("subject-7", "subject-7")
        assert each.PatientIdentityRemoved == "YES"
        assert each.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert not each.PatientBirthDate
        assert not each.StudyDate
    assert len({each.StudyInstanceUID for each in objects}) == 1
    report, measurements, segmentation = (next(e for e in objects if e.Modality == m) for m in ("DOC", "SR", "SEG"))
    referred = {item.ReferencedSOPInstanceUID for item in report.SourceInstanceSequence}
    used = {
        i.ReferencedSOPInstanceUID for s in segmentation.ReferencedSeriesSequence for i in s.ReferencedInstanceSequence
    }
    assert referred < used
    assert (len(referred), len(used)) == (SIDE, 4 * SIDE)
    assert segmentation.SOPInstanceUID in str(measurements)


def test_a_deidentified_nifti_study_names_nobody_anywhere(model: Path, tmp_path: Path, capfd) -> None:
    case = marked_nifti(tmp_path / f"{NAME}_{DAY}", f"{IDENTIFIER}_")
    out = tmp_path / "out"
    arguments = ["analyze", str(case), "-o", str(out), "--model", str(model), "--device", "cpu"]
    assert main([*arguments, "--deidentify", "subject-7", "--bids", str(tmp_path / "bids")]) == 0
    shown = capfd.readouterr()
    assert found([*written(out), *written(tmp_path / "bids")], shown.out, shown.err) == []


def test_headers_of_nifti_files_reach_no_result_of_a_cohort(model: Path, tmp_path: Path, capfd) -> None:
    for number in (1, 2):
        marked_nifti(tmp_path / "cohort" / f"case{number}")
    out = tmp_path / "out"
    assert main(["analyze", str(tmp_path / "cohort"), "-o", str(out), "--model", str(model), "--device", "cpu"]) == 0
    shown = capfd.readouterr()
    with (out / "summary.csv").open() as stream:
        assert len(list(csv.reader(stream))) == 3
    assert found(written(out), shown.out, shown.err) == []


def test_the_worker_says_nothing_of_headers(model: Path, tmp_path: Path) -> None:
    case = marked_nifti(tmp_path / "case")
    inputs = {name: str(case / f"{name}.nii.gz") for name in SEQUENCES}
    request = {"id": "1", "command": "analyze", "inputs": inputs, "output": str(tmp_path / "out"),
               "model": str(model), "device": "cpu"}  # fmt: skip
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "MTMed3DCore.worker"], stdin=PIPE, stdout=PIPE, stderr=log, text=True
        ) as worker,
    ):
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
        said = []
        for line in worker.stdout:
            said.append(line)
            if json.loads(line)["event"] in {"result", "error"}:
                worker.stdin.close()
    assert any('"result"' in line for line in said)
    assert found([tmp_path / "log", *written(tmp_path / "out")], *said) == []


def test_a_pseudonym_is_a_plain_name_and_belongs_to_one_study(model: Path, tmp_path: Path) -> None:
    study = Study.read(write_head(tmp_path / "a" / "case", 1))
    with pytest.raises(WrongUse):
        deidentified_study(study, "../x")
    write_head(tmp_path / "a" / "more", 2)
    arguments = ["analyze", str(tmp_path / "a"), "-o", str(tmp_path / "out"), "--model", str(model)]
    assert main([*arguments, "--deidentify", "x"]) == 2


FORBIDDEN = """
import sys
def forbid(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.client.", "ftplib.", "smtplib.")):
        raise RuntimeError(f"the network was touched: {event} {arguments}")
sys.addaudithook(forbid)
from MTMed3DCore.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_analyse_touches_no_socket(model: Path, tmp_path: Path) -> None:
    case = write_head(tmp_path / "case", 1)
    arguments = ["analyze", str(case), "-o", str(tmp_path / "out"), "--model", str(model), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.pdf").is_file()


def test_the_guard_of_that_test_notices_a_socket() -> None:
    code = FORBIDDEN.split("from MTMed3DCore")[0] + "import socket; socket.socket()"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 1
