"""Exports: what is written about a study, read back with other readers."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from jsonschema import Draft202012Validator
from matplotlib.image import imread

from MTMed3DCore import exports
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.exports import read_findings, write_findings
from MTMed3DCore.exports.json_file import findings_document
from MTMed3DCore.exports.regions import REGIONS
from MTMed3DCore.findings import RESEARCH_USE, Findings, Grade, ModelIdentity
from MTMed3DCore.geometry import Grid
from MTMed3DCore.json_schema import load_schema
from MTMed3DCore.notice import Notice
from Testing.example_findings import GRIDS, SHAPE, findings_on


@pytest.fixture(params=list(GRIDS))
def findings(request: pytest.FixtureRequest) -> Findings:
    return findings_on(GRIDS[request.param])


def itk_corner_errors(image: SimpleITK.Image, grid: Grid) -> float:
    """Greatest distance in mm between where ITK and the grid put the corner voxels."""
    indices = np.array(np.meshgrid(*[(0, n - 1) for n in grid.shape])).reshape(3, -1).T
    points = np.array([image.TransformIndexToPhysicalPoint([int(i) for i in index]) for index in indices])
    return float(np.abs(points * (-1, -1, 1) - grid.to_world(indices)).max())


def test_simpleitk_reads_the_nifti_labels_at_the_same_physical_points(findings: Findings, tmp_path: Path) -> None:
    exports.write_nifti(findings, tmp_path / "segmentation.nii.gz")
    image = SimpleITK.ReadImage(str(tmp_path / "segmentation.nii.gz"))
    assert image.GetPixelID() == SimpleITK.sitkUInt8
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).T, findings.labels)
    assert itk_corner_errors(image, findings.grid) < 1e-3


def test_both_affines_of_the_nifti_are_the_grid_that_came_in(findings: Findings, tmp_path: Path) -> None:
    exports.write_nifti(findings, tmp_path / "segmentation.nii.gz")
    image = nibabel.load(tmp_path / "segmentation.nii.gz")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    np.testing.assert_array_equal(image.get_sform(), findings.grid.affine)
    np.testing.assert_allclose(image.get_qform(), findings.grid.affine, atol=1e-4)


def test_a_sheared_grid_leaves_the_qform_unset(tmp_path: Path) -> None:
    affine = np.eye(4, dtype=np.float32)
    affine[0, 1] = 0.25
    exports.write_nifti(findings_on(Grid(SHAPE, affine)), tmp_path / "segmentation.nii.gz")
    image = nibabel.load(tmp_path / "segmentation.nii.gz")
    assert int(image.header["qform_code"]) == 0
    np.testing.assert_array_equal(image.affine, affine)


def test_simpleitk_reads_the_slicer_segmentation_at_the_same_physical_points(
    findings: Findings, tmp_path: Path
) -> None:
    exports.write_seg_nrrd(findings, tmp_path / "segmentation.seg.nrrd")
    image = SimpleITK.ReadImage(str(tmp_path / "segmentation.seg.nrrd"))
    assert image.GetPixelID() == SimpleITK.sitkUInt8
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).T, findings.labels)
    assert itk_corner_errors(image, findings.grid) < 1e-4


def test_pynrrd_reads_the_slicer_segmentation_with_its_regions(findings: Findings, tmp_path: Path) -> None:
    nrrd = pytest.importorskip("nrrd", reason="pynrrd is not installed")
    exports.write_seg_nrrd(findings, tmp_path / "segmentation.seg.nrrd")
    voxels, header = nrrd.read(str(tmp_path / "segmentation.seg.nrrd"))
    np.testing.assert_array_equal(voxels, findings.labels)
    to_ras = np.diag([-1.0, -1.0, 1.0])
    assert header["space"] == "left-posterior-superior"
    np.testing.assert_allclose(to_ras @ header["space directions"].T, findings.grid.affine[:3, :3], atol=1e-6)
    np.testing.assert_allclose(to_ras @ header["space origin"], findings.grid.affine[:3, 3], atol=1e-6)
    assert [header[f"Segment{i}_LabelValue"] for i in range(3)] == ["1", "2", "4"]
    assert [header[f"Segment{i}_Name"] for i in range(3)] == ["Necrotic core", "Oedema", "Enhancing tumour"]
    assert "SCT^6574001^Necrosis" in header["Segment0_Tags"]


def test_the_written_json_follows_the_schema_and_names_the_lesions(findings: Findings, tmp_path: Path) -> None:
    exports.write_json(findings, tmp_path / "findings.json", {"write": 0.5, "total": 6.5})
    document = json.loads((tmp_path / "findings.json").read_text("utf-8"))
    Draft202012Validator.check_schema(load_schema("findings-1"))
    Draft202012Validator(load_schema("findings-1")).validate(document)
    assert document["schema"] == "mtmed3d.findings/1"
    assert document["lesions"][0]["voxel_box"] == [2, 3, 4, 9, 11, 10]
    assert document["lesions"][1]["voxel_box"] == [13.5, 17, 2, 18, 23.25, 5]
    assert [lesion["origin"] for lesion in document["lesions"]] == ["detection", "region"]
    expected_ml = (7 * 8 * 6 + 4 * 6 * 3) * abs(np.linalg.det(findings.grid.affine[:3, :3])) / 1000
    assert document["volumes_ml"]["whole_tumour"] == pytest.approx(expected_ml)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"grade": Grade("glioblastoma", 0.9)}, "grade/label"),
        ({"grade": Grade("HGG", 1.7)}, "grade/probability_hgg"),
        ({"sources": {"t1": "a", "t1ce": "b", "t2": "c"}}, "study/sequences"),
        ({"model": ModelIdentity("starter", "1.0", "not a digest", "")}, "model/sha256"),
        ({"warnings": (Notice("Not Kebab", "text"),)}, "warnings/0/code"),
        ({"timing_s": {"read": -1.0}}, "timing_s/read"),
        ({"study_id": ""}, "study/id"),
    ],
)
def test_findings_that_break_the_schema_are_refused_by_field(
    changes: dict[str, Any], field: str, tmp_path: Path
) -> None:
    with pytest.raises(InputRefused, match=field) as refusal:
        write_findings(findings_on(GRIDS["axial"], **changes), tmp_path / "out")
    assert refusal.value.code == "findings-invalid"
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    lesion = dataclasses.replace(findings_on(GRIDS["axial"]).lesions[0], rano={"product_mm2": float("nan")})
    with pytest.raises(InputRefused, match="not finite"):
        exports.write_json(
            findings_on(GRIDS["axial"], lesions=(lesion,)), tmp_path / "f.json", {"write": 0, "total": 0}
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "labels", [np.full(SHAPE, 3, np.uint8), np.zeros(SHAPE, np.int16), np.zeros((20, 24, 15), np.uint8)]
)
def test_a_label_map_outside_its_contract_is_refused(labels: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputRefused) as refusal:
        write_findings(findings_on(GRIDS["axial"], labels=labels), tmp_path / "out")
    assert refusal.value.code == "labels-invalid"
    assert not (tmp_path / "out").exists()


def test_boxes_of_every_grid_are_written_as_proper_rotations_with_the_same_corners(
    findings: Findings, tmp_path: Path
) -> None:
    for lesion in findings.lesions:
        exports.write_markups(lesion, tmp_path / "box.mrk.json")
        (roi,) = json.loads((tmp_path / "box.mrk.json").read_text("utf-8"))["markups"]
        columns = np.array(roi["orientation"]).reshape(3, 3)
        assert (roi["type"], roi["roiType"], roi["coordinateSystem"]) == ("ROI", "Box", "LPS")
        assert roi["display"]["handlesInteractive"] is False
        assert np.linalg.det(columns) == pytest.approx(1.0)
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
        corners = (np.array(roi["center"]) + (signs * roi["size"] / 2) @ columns.T) * (-1, -1, 1)
        distances = np.linalg.norm(corners[:, None] - lesion.box.corners(), axis=-1)
        assert distances.min(axis=0).max() < 1e-6


def test_findings_come_back_as_they_were_written(findings: Findings, tmp_path: Path) -> None:
    path = write_findings(findings, tmp_path / "out")
    back = read_findings(tmp_path / "out")
    assert path == tmp_path / "out" / "findings.json"
    np.testing.assert_array_equal(back.labels, findings.labels)
    np.testing.assert_array_equal(back.grid.affine, findings.grid.affine)
    np.testing.assert_array_equal(back.lesions[1].box.corners(), findings.lesions[1].box.corners())
    document, timing = findings_document(findings), back.timing_s
    assert findings_document(back) | {"timing_s": document["timing_s"]} == document
    assert timing["total"] == pytest.approx(6.0 + timing["write"])


def test_a_tumour_free_study_is_written_and_says_so(tmp_path: Path) -> None:
    write_findings(findings_on(GRIDS["oblique"], tumour=False), tmp_path / "out")
    back = read_findings(tmp_path / "out" / "findings.json")
    assert (back.lesions, back.grade, back.labels.any()) == ((), None, False)
    assert "No lesion found" in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert list((tmp_path / "out" / "boxes").iterdir()) == []


def test_the_preview_shows_every_region_and_box_in_its_colour(findings: Findings, tmp_path: Path) -> None:
    bare = dataclasses.replace(findings, study=None)  # on black, an overlay has one known colour
    exports.write_preview(bare, tmp_path / "preview.png")
    pixels = np.rint(imread(tmp_path / "preview.png")[..., :3] * 255).astype(int)
    assert pixels.shape[1] == 1050
    for color in (np.array(region.color) * 0.55 for region in REGIONS):
        assert (np.abs(pixels - color).max(axis=-1) <= 2).sum() > 20
    assert (np.abs(pixels - (255, 153, 0)).max(axis=-1) <= 2).sum() > 100


def test_the_preview_shows_the_right_of_the_patient_on_the_left(tmp_path: Path) -> None:
    for name in ("axial", "left-handed"):
        grid = GRIDS[name]
        world = grid.to_world(np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1))
        middle = grid.to_world((np.array(SHAPE) - 1) / 2)
        labels = np.where(world[..., 0] > middle[0], 4, 0).astype(np.uint8)
        whole = findings_on(grid, labels=labels, lesions=(), with_study=False)
        exports.write_preview(whole, tmp_path / "preview.png")
        pixels = imread(tmp_path / "preview.png")[130:420, :340, :3]  # the axial plane
        red = (pixels[..., 0] > 0.4) & (pixels[..., 1] < 0.25)
        columns = np.flatnonzero(red.any(axis=0))
        assert columns.size > 50
        assert columns.max() < 20 + 325 / 2 + 5


def test_the_preview_is_cropped_to_the_head(tmp_path: Path) -> None:
    image = np.zeros(SHAPE, np.float32)
    image[5:15, 6:18, 4:12] = 300.0
    study = SimpleNamespace(sequences={"t1ce": SimpleNamespace(array=image, grid=GRIDS["axial"])})
    shown = []
    for kept in (study, None):
        exports.write_preview(findings_on(GRIDS["axial"], tumour=False, study=kept), tmp_path / "preview.png")
        shown.append(imread(tmp_path / "preview.png")[130:420, :340, :3])
    bright = (shown[0] > 0.95).all(axis=-1)
    assert bright.any(axis=1).mean() > 0.7
    assert not (shown[1] > 0.95).all(axis=-1).any()


def test_importing_the_exports_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys, MTMed3DCore.exports; print({'torch', 'matplotlib', 'monai'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


class Page(HTMLParser):
    """Tags, attributes and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_report_is_complete_in_itself_and_escapes_its_values(tmp_path: Path) -> None:
    write_findings(findings_on(GRIDS["oblique"], study_id="<script>alert(1)</script> & Co"), tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert {link[:22] for link in page.links} == {"data:image/png;base64,"}
    assert not re.search(r"https?://|@import|url\(", text)
    for words in (
        "<script>alert(1)</script> & Co",
        RESEARCH_USE,
        "HGG",
        "0.97",
        "The channel order <was> assumed.",
        "0" * 64,
    ):
        assert words in page.words
