"""What `analyze` refuses: the exit code, the reason on stderr and in JSON, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from MTMed3DCore import cli
from Testing.awkward_grids import GRIDS, SHAPE


def rewrite(file: Path, array: np.ndarray | None = None, sform: np.ndarray | None = None) -> None:
    """Store a sequence again with other values, or with an sform that the qform does not follow."""
    image = nibabel.load(file)
    old = np.asarray(image.dataobj)
    changed = nibabel.Nifti1Image(old if array is None else array, image.affine)
    if sform is not None:
        changed.set_qform(image.affine, 1)
        changed.set_sform(sform, 1)
    nibabel.save(changed, file)


def missing(case: Path) -> None:
    (case / "flair.nii.gz").unlink()


def given_twice(case: Path) -> None:
    shutil.copy(case / "t2.nii.gz", case / "scan_T2.nii.gz")


def same_pixels(case: Path) -> None:
    shutil.copy(case / "t2.nii.gz", case / "flair.nii.gz")


def elsewhere(case: Path) -> None:
    image = nibabel.load(case / "t2.nii.gz")
    moved = image.affine.copy()
    moved[2, 3] += 500
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), moved), case / "t2.nii.gz")


def four_dimensional(case: Path) -> None:
    rewrite(case / "t1.nii.gz", np.random.default_rng(1).random((*SHAPE, 3)).astype(np.float32))


def colour(case: Path) -> None:
    rewrite(case / "t1.nii.gz", np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])))


def not_a_number(case: Path) -> None:
    array = np.asarray(nibabel.load(case / "t1ce.nii.gz").dataobj).copy()
    array[3, 4, 5] = np.nan
    rewrite(case / "t1ce.nii.gz", array)


def infinite(case: Path) -> None:
    array = np.asarray(nibabel.load(case / "t1ce.nii.gz").dataobj).copy()
    array[3, 4, 5] = np.inf
    rewrite(case / "t1ce.nii.gz", array)


def constant(case: Path) -> None:
    rewrite(case / "t1ce.nii.gz", np.full(SHAPE, 7, np.float32))


def truncated(case: Path) -> None:
    file = case / "flair.nii.gz"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def corrupt(case: Path) -> None:
    file = case / "flair.nii.gz"
    packed = bytearray(file.read_bytes())
    packed[len(packed) // 2] ^= 0xFF
    file.write_bytes(bytes(packed))


def contradictory(case: Path) -> None:
    moved = GRIDS["axial"].copy()
    moved[0, 3] += 5
    rewrite(case / "t1.nii.gz", sform=moved)


def too_large(case: Path) -> None:
    raw = bytearray(nibabel.load(case / "t1.nii.gz").to_bytes())
    raw[40:48] = np.array([3, 30000, 30000, 30000], np.int16).tobytes()
    (case / "t1.nii.gz").unlink()
    (case / "t1.nii").write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("spoil", "code", "named"),
    [
        (missing, "sequence-missing", "flair"),
        (given_twice, "sequence-ambiguous", "scan_T2.nii.gz"),
        (same_pixels, "sequence-twice", "flair"),
        (elsewhere, "no-overlap", "t2"),
        (four_dimensional, "not-3d", "t1.nii.gz"),
        (colour, "not-scalar", "t1.nii.gz"),
        (not_a_number, "not-finite", "t1ce.nii.gz"),
        (infinite, "not-finite", "t1ce.nii.gz"),
        (constant, "constant", "t1ce.nii.gz"),
        (truncated, "file-damaged", "flair.nii.gz"),
        (corrupt, "file-damaged", "flair.nii.gz"),
        (contradictory, "geometry-contradiction", "t1.nii.gz"),
        (too_large, "too-large", "t1.nii"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_analyze_refuses_it_by_name_with_a_remedy_and_leaves_nothing(
    spoil: Callable[[Path], None],
    code: str,
    named: str,
    write_case: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = write_case()
    spoil(case)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    status = cli.main(["analyze", str(case), "-o", str(tmp_path / "out"), "--json"])
    shown = capsys.readouterr()
    assert status == 3
    answer = json.loads(shown.out)["error"]
    assert answer["code"] == code
    assert named in answer["text"]
    assert answer["remedy"]
    assert answer["text"] in " ".join(shown.err.split())
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
