"""The output folder: complete or not there, and never at the cost of what a person changed in it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MTMed3DCore import exports
from MTMed3DCore.errors import Cancelled, InputRefused, OutOfResources, WrongUse
from MTMed3DCore.exports import read_findings, write_findings
from Testing.example_findings import GRIDS, findings_on


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the slowest writer, where the picture is not what is tested."""
    monkeypatch.setattr(exports, "write_preview", lambda findings, path: path.write_bytes(b"\x89PNG"))
    monkeypatch.setattr(exports, "write_report_pdf", lambda findings, path: path.write_bytes(b"%PDF"))


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_writing_into_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WrongUse, match=r"notes\.txt") as refusal:
        write_findings(findings_on(GRIDS["axial"]), tmp_path)
    assert refusal.value.code == "output-not-empty"
    assert files_in(tmp_path) == {"notes.txt"}


def test_writing_to_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(WrongUse) as refusal:
        write_findings(findings_on(GRIDS["axial"]), tmp_path / "out", overwrite=True)
    assert refusal.value.code == "output-is-a-file"
    assert (tmp_path / "out").read_text() == "mine"


def test_overwriting_replaces_our_files_only(tmp_path: Path) -> None:
    findings = findings_on(GRIDS["axial"])
    write_findings(findings, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "boxes" / "extra.mrk.json").write_text("{}")
    fewer = dataclasses.replace(findings, lesions=findings.lesions[:1], study_id="second")
    write_findings(fewer, tmp_path / "out", overwrite=True)
    assert files_in(tmp_path / "out") == {
        ".mtmed3d.json",
        "boxes/extra.mrk.json",
        "boxes/lesion-1.mrk.json",
        "findings.json",
        "notes.txt",
        "preview.png",
        "report.html",
        "report.pdf",
        "segmentation.nii.gz",
        "segmentation.seg.nrrd",
    }
    assert read_findings(tmp_path / "out").study_id == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["boxes/lesion-2.mrk.json", "segmentation.seg.nrrd", "findings.json"])
def test_a_file_that_a_reader_edited_is_never_replaced(name: str, tmp_path: Path) -> None:
    findings = findings_on(GRIDS["axial"])
    write_findings(findings, tmp_path)
    edited = (tmp_path / name).read_bytes() + b"\n"
    (tmp_path / name).write_bytes(edited)
    before = files_in(tmp_path)
    with pytest.raises(WrongUse, match=re.escape(name)) as refusal:
        write_findings(findings, tmp_path, overwrite=True)
    assert refusal.value.code == "output-edited"
    assert (tmp_path / name).read_bytes() == edited
    assert files_in(tmp_path) == before


def test_a_file_of_the_same_name_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "segmentation.nii.gz").write_bytes(b"an expert's work")
    with pytest.raises(WrongUse, match=r"segmentation\.nii\.gz") as refusal:
        write_findings(findings_on(GRIDS["axial"]), tmp_path, overwrite=True)
    assert refusal.value.code == "output-not-ours"
    assert files_in(tmp_path) == {"segmentation.nii.gz"}
    assert (tmp_path / "segmentation.nii.gz").read_bytes() == b"an expert's work"


def test_a_forged_manifest_reaches_no_file_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".mtmed3d.json").write_text(json.dumps({"files": {"../outside.txt": "0" * 64}}))
    write_findings(findings_on(GRIDS["axial"]), tmp_path / "out", overwrite=True)
    assert (tmp_path / "outside.txt").read_text() == "mine"


def fail_with(error: BaseException) -> Callable[..., None]:
    def writer(*_: Any) -> None:
        raise error

    return writer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), OutOfResources),
        (PermissionError(13, "denied"), WrongUse),
        (Cancelled(), Cancelled),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_midway_leaves_what_was_there_before(
    error: BaseException,
    expected: type[BaseException],
    existing: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    findings = findings_on(GRIDS["axial"])
    if existing:
        write_findings(findings, tmp_path / "out")
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    monkeypatch.setattr(exports, "write_report", fail_with(error))
    with pytest.raises(expected):
        write_findings(findings, tmp_path / "out", overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == before
    assert (tmp_path / "out").exists() is existing


def test_a_rename_that_fails_puts_the_earlier_result_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = findings_on(GRIDS["axial"])
    write_findings(findings, tmp_path / "out")
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    rename = Path.rename

    def locked(self: Path, target: Path) -> Path:
        """As where another program holds the new file's place open."""
        if Path(target) == tmp_path / "out" / "report.html" and "replaced" not in self.parent.name:
            raise PermissionError(13, "in use")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", locked)
    with pytest.raises(WrongUse, match="in use"):
        write_findings(dataclasses.replace(findings, study_id="second"), tmp_path / "out", overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == before


def test_earlier_files_that_cannot_be_put_back_are_kept_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = findings_on(GRIDS["axial"])
    write_findings(findings, tmp_path)
    before = sorted((tmp_path / name).read_bytes() for name in files_in(tmp_path))
    rename, moved = Path.rename, []

    def breaks_down(self: Path, target: Path) -> Path:
        """As where the disk goes away after three renames."""
        if len(moved) == 3:
            raise OSError(5, "gone")
        moved.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", breaks_down)
    with pytest.raises(WrongUse, match="gone"):
        write_findings(findings, tmp_path, overwrite=True)
    kept = [(tmp_path / name).read_bytes() for name in files_in(tmp_path)]
    assert [content for content in before if content not in kept] == []


def test_findings_with_a_corrected_segmentation_come_back_corrected(tmp_path: Path) -> None:
    findings = findings_on(GRIDS["oblique"])
    write_findings(findings, tmp_path)
    corrected = np.where(findings.labels == 2, 4, findings.labels).astype(np.uint8)
    exports.write_nifti(dataclasses.replace(findings, labels=corrected), tmp_path / "segmentation.nii.gz")
    np.testing.assert_array_equal(read_findings(tmp_path).labels, corrected)
    assert exports.edited_files(tmp_path) == ["segmentation.nii.gz"]


def test_reading_refuses_what_is_missing_damaged_or_on_another_grid(tmp_path: Path) -> None:
    findings = findings_on(GRIDS["oblique"])
    with pytest.raises(InputRefused) as missing:
        read_findings(tmp_path)
    write_findings(findings, tmp_path)
    exports.write_nifti(findings_on(GRIDS["axial"]), tmp_path / "segmentation.nii.gz")
    with pytest.raises(InputRefused) as other_grid:
        read_findings(tmp_path)
    (tmp_path / "segmentation.nii.gz").write_bytes(b"nonsense")
    with pytest.raises(InputRefused) as unreadable:
        read_findings(tmp_path)
    (tmp_path / "findings.json").write_text("{")
    with pytest.raises(InputRefused) as damaged:
        read_findings(tmp_path)
    codes = [refusal.value.code for refusal in (missing, other_grid, unreadable, damaged)]
    assert codes == ["findings-missing", "segmentation-grid", "segmentation-unreadable", "findings-invalid"]
