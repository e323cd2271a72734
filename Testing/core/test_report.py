"""The report: what a reader finds in it, in words and figures, on the page and on the sheets."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from MTMed3DCore.bundles.calibration import grade_calibration
from MTMed3DCore.exports import report_content as content
from MTMed3DCore.exports.preview import MAX_LESIONS, KeyImages
from MTMed3DCore.exports.report import write_report
from MTMed3DCore.exports.report_pdf import write_report_pdf
from MTMed3DCore.findings import RESEARCH_USE, Findings, Grade
from MTMed3DCore.geometry import Grid
from MTMed3DCore.measurements import compare, measure_region
from MTMed3DCore.preparation.record import PreparationRecord, Registration
from MTMed3DCore.recognition.header import SeriesHeader
from Testing.example_findings import GRIDS, findings_on

CALIBRATION = {"method": "temperature scaling", "studies": 120, "data": "patients of three hospitals"}


@pytest.fixture
def findings() -> Findings:
    """Two lesions of which the first was measured."""
    found = findings_on(GRIDS["oblique"])
    first, second = found.lesions
    region = np.zeros(found.labels.shape, bool)
    region[2:9, 3:11, 4:10] = True
    first = replace(first, **measure_region(region, found.labels, found.grid, np.zeros(3)))
    return replace(found, lesions=(first, second))


@pytest.fixture
def page(tmp_path: Path, monkeypatch):
    """The words of the report, tags and spaces apart; its pictures are not drawn."""
    (tmp_path / "preview.png").write_bytes(b"preview")
    monkeypatch.setattr(KeyImages, "png", lambda self, lesion, dpi=100: b"key image")

    def read(findings: Findings) -> str:
        write_report(findings, tmp_path / "report.html", tmp_path / "preview.png")
        text = (tmp_path / "report.html").read_text("utf-8").split("</style>")[1]
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split())

    return read


def test_an_uncalibrated_grade_is_plainly_said_to_be_so(findings: Findings, page) -> None:
    text = page(findings)
    assert "HGG probability of high grade 93 %" in text
    assert "Not calibrated: starter 1.0 records no calibration" in text
    assert "WHO grade needs tissue" in text


def test_a_calibrated_grade_says_by_what_and_on_whom(findings: Findings, page) -> None:
    calibration = grade_calibration({"mtmed3d": {"grade_calibration": {**CALIBRATION, "calibration_error": 0.04}}})
    text = page(replace(findings, grade=Grade("HGG", 0.93, calibration=calibration)))
    assert "Calibrated by temperature scaling on 120 studies (patients of three hospitals)" in text
    assert "calibration error 0.04" in text
    assert "Not calibrated" not in text


@pytest.mark.parametrize(
    "said",
    [None, "yes", {}, {**CALIBRATION, "studies": "many"}, {**CALIBRATION, "studies": 0}, {**CALIBRATION, "data": ""}],
)
def test_metadata_that_tells_half_of_a_calibration_tells_none(said: object) -> None:
    assert grade_calibration({"mtmed3d": {"grade_calibration": said}}) is None


def test_a_grade_that_a_reader_set_does_not_borrow_the_models_probability(findings: Findings, page) -> None:
    text = page(replace(findings, grade=Grade("LGG", 0.93, "reader")))
    assert "LGG set by the reader; the model's probability of high grade is 93 %" in text
    assert "LGG set by the reader Likelihood" in page(replace(findings, grade=Grade("LGG", 0.0, "reader")))


def test_every_measurement_has_its_unit(findings: Findings, page) -> None:
    text = page(findings)
    first = findings.lesions[0]
    assert f"longest diameter in 3D {first.longest_diameter_mm:.1f} mm" in text
    assert f"volume, whole tumour {first.volumes_ml['whole_tumour']:.2f} ml" in text
    longest, across, product = (first.rano[name] for name in ("longest_mm", "perpendicular_mm", "product_mm2"))
    assert f"{longest:.1f} × {across:.1f} mm, product {product:.0f} mm²" in text
    assert f"side {first.laterality['side']}" in text
    assert RESEARCH_USE in text


@pytest.mark.parametrize(("flip", "number"), [(1.0, 6), (-1.0, 11)])
def test_the_slice_is_counted_from_the_feet_whichever_way_the_array_runs(
    findings: Findings, flip: float, number: int
) -> None:
    grid = Grid(findings.grid.shape, np.diag([1.0, 1.0, flip, 1.0]))
    rano = {**findings.lesions[0].rano, "slice_axis": 2, "slice_index": 5}
    table = content.lesion_table(replace(findings.lesions[0], rano=rano), replace(findings, grid=grid))
    assert dict(table.rows)["RANO slice"] == f"{number} of 16, from the feet"


def test_each_lesion_has_key_images_and_those_beyond_are_counted(findings: Findings, tmp_path: Path, page) -> None:
    many = tuple(replace(findings.lesions[1], id=number) for number in range(1, MAX_LESIONS + 3))
    text = page(replace(findings, lesions=many))
    assert f"Key images of the first {MAX_LESIONS} lesions; 2 more are in the table only." in text
    assert (tmp_path / "report.html").read_text("utf-8").count("<img") == MAX_LESIONS
    page(findings_on(GRIDS["oblique"], tumour=False))
    assert (tmp_path / "report.html").read_text("utf-8").count("<img") == 1


def test_quality_of_the_preparation_is_told_sequence_by_sequence(findings: Findings, page) -> None:
    registrations = (
        Registration("t1", np.eye(4), "mutual-information", "good", 0.21, 0.9, 0.5, 3.25, 1.5),
        Registration("t2", np.eye(4), "header", "doubtful", 2.5, 0.7, 0.8),
        Registration("flair", np.eye(4), "given", "not-needed"),
    )
    record = PreparationRecord(findings.grid, findings.grid, findings.labels > 0, "built-in", registrations)
    text = page(replace(findings, preparation=record))
    assert "registration of T1 good; turned 3.2°, moved 1.5 mm against its header; two runs end 0.21 mm apart" in text
    assert "registration of T2 doubtful: compare by eye; left where its header puts it; two runs end 2.50 mm" in text
    assert "registration of FLAIR given by the user" in text
    assert f"brain mask built-in method, approximate; {record.brain_ml:.0f} ml" in text


def test_the_change_since_a_prior_study_is_in_percent(findings: Findings, page) -> None:
    labels = findings.labels.copy()
    labels[14:18, 17:23, 2:5] = 0
    prior = replace(findings, study_id="before", labels=labels, lesions=findings.lesions[:1])
    text = page(replace(findings, comparison=compare(findings, prior)))
    now, before = findings.volumes_ml["whole_tumour"], prior.volumes_ml["whole_tumour"]
    assert f"whole tumour (ml) {before:.2f} {now:.2f} {100 * (now - before) / before:+.0f} %" in text
    assert "1 more lesion than before" in text


def test_dicom_series_are_named_by_their_scanner(findings: Findings, page) -> None:
    header = SeriesHeader(number=6, description="AX T1 SE +C", study_date="20240105")
    study = SimpleNamespace(sequences=findings.study.sequences, series={"t1ce": SimpleNamespace(header=header)})
    text = page(replace(findings, study=study))
    assert "Examination of 2024-01-05" in text
    assert "T1ce series 6: AX T1 SE +C" in text
    assert "T2 case/t2.nii.gz" in text


def test_a_heading_of_the_model_card_stands_alone(findings: Findings, tmp_path: Path, page) -> None:
    page(replace(findings, model_card={"Measured on 24 studies": "", "mean Dice": "0.75"}))
    text = (tmp_path / "report.html").read_text("utf-8")
    assert '<th colspan="2" class="part">Measured on 24 studies</th>' in text


def test_the_sheets_are_the_same_for_the_same_findings_and_grow_with_the_lesions(findings: Findings, tmp_path) -> None:
    long = replace(findings, model_card={"limits": "word " * 400 + "w" * 300})
    sizes = []
    for name, what in (("one", findings), ("again", findings), ("long", long)):
        write_report_pdf(what, tmp_path / name)
        sizes.append(int(re.findall(rb"/Count (\d+)", (tmp_path / name).read_bytes())[0]))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "again").read_bytes()
    assert sizes[2] > sizes[0] >= 2
