"""HD-BET and SynthStrip are called as their own command lines want it: stand-ins refuse every option that they lack."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from MTMed3DCore.geometry import Grid
from MTMed3DCore.preparation.external import external_mask
from MTMed3DCore.volume import Volume
from Testing.example_findings import GRIDS

BRIGHT = 500.0
PRELUDE = f"""\
#!{sys.executable}
import argparse, os, sys
parser = argparse.ArgumentParser()
parser.add_argument("-i", required=True)
parser.add_argument("-o")
"""
EXTRACTION = f"""\
import nibabel
image = nibabel.load(arguments.i)
mask = nibabel.Nifti1Image((image.get_fdata() > {BRIGHT}).astype("uint8"), image.affine)
"""
HD_BET_2 = (
    PRELUDE
    + """\
parser.add_argument("-device", default="cuda")
parser.add_argument("--disable_tta", action="store_true")
parser.add_argument("--save_bet_mask", action="store_true")
parser.add_argument("--no_bet_image", action="store_true")
parser.add_argument("--verbose", action="store_true")
arguments = parser.parse_args()
assert arguments.device == "cpu", "no CUDA here"
assert arguments.o.endswith(".nii.gz"), "Output file must end with .nii.gz"
"""
    + EXTRACTION
    + """\
assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S"), "not the orientation of the MNI template"
if not arguments.no_bet_image:
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(), image.affine), arguments.o)
if arguments.save_bet_mask:
    nibabel.save(mask, arguments.o[:-7] + "_bet.nii.gz")
"""
)
HD_BET_1 = (
    PRELUDE
    + """\
parser.add_argument("-mode", default="accurate")
parser.add_argument("-device", default="0")
parser.add_argument("-tta", default=1, type=int)
parser.add_argument("-pp", default=1, type=int)
parser.add_argument("-s", "--save_mask", default=0, type=int)
arguments = parser.parse_args()
assert arguments.mode in ("fast", "accurate") and arguments.device == "cpu" and arguments.tta == 0
"""
    + EXTRACTION
    + """\
nibabel.save(nibabel.Nifti1Image(image.get_fdata(), image.affine), arguments.o)
if arguments.save_mask:
    nibabel.save(mask, arguments.o[:-7] + "_mask.nii.gz")
"""
)
SYNTHSTRIP = (
    PRELUDE
    + """\
parser.add_argument("-m", "--mask")
parser.add_argument("-g", "--gpu", action="store_true")
parser.add_argument("-b", "--border", default=1, type=int)
parser.add_argument("--no-csf", action="store_true")
parser.add_argument("--model")
if len(sys.argv) == 1 or "-h" in sys.argv or "--help" in sys.argv:
    parser.print_help()
    sys.exit(1)
arguments = parser.parse_args()
if "FREESURFER_HOME" not in os.environ and not arguments.model:
    print("error: FREESURFER_HOME env variable must be set! Make sure FreeSurfer is properly sourced.")
    sys.exit(1)
if not arguments.o and not arguments.mask:
    print("error: Must provide at least --out or --mask output flags.")
    sys.exit(1)
"""
    + EXTRACTION
    + "nibabel.save(mask, arguments.mask)\n"
)


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Puts executables on an otherwise empty PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("FREESURFER_HOME", str(tmp_path))

    def write(**scripts: str) -> Path:
        for name, script in scripts.items():
            tool = tmp_path / name.replace("hd_bet", "hd-bet")
            tool.write_text(script)
            tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
        return tmp_path

    return write


def scan(name: str = "axial") -> tuple[Volume, np.ndarray]:
    """A scan with a bright body near one corner, and where the body is."""
    grid: Grid = GRIDS[name]
    brain = np.zeros(grid.shape, bool)
    brain[2:9, 3:11, 4:10] = True
    return Volume(np.where(brain, 2 * BRIGHT, 10.0).astype(np.float32), grid), brain


@pytest.mark.parametrize("name", ["oblique, left-handed", "sagittal, left-handed"])
def test_hd_bet_gets_an_upright_image_and_its_mask_returns_to_the_scans_own_order(install, name: str) -> None:
    install(hd_bet=HD_BET_2)
    volume, brain = scan(name)
    mask, tool, notices = external_mask(volume)
    assert (tool, notices) == ("hd-bet", ())
    np.testing.assert_array_equal(mask, brain)


def test_the_first_hd_bet_is_called_with_its_own_options(install) -> None:
    install(hd_bet=HD_BET_1)
    volume, brain = scan()
    mask, tool, notices = external_mask(volume)
    assert (tool, notices) == ("hd-bet", ())
    np.testing.assert_array_equal(mask, brain)


def test_synthstrip_is_asked_for_the_mask_alone(install) -> None:
    install(mri_synthstrip=SYNTHSTRIP)
    volume, brain = scan("left-handed")
    mask, tool, notices = external_mask(volume)
    assert (tool, notices) == ("synthstrip", ())
    np.testing.assert_array_equal(mask, brain)


def test_what_synthstrip_complains_of_on_stdout_is_said(install, monkeypatch) -> None:
    install(mri_synthstrip=SYNTHSTRIP)
    monkeypatch.delenv("FREESURFER_HOME")
    mask, _, notices = external_mask(scan()[0])
    assert mask is None
    assert "FREESURFER_HOME env variable must be set" in notices[0].text


def test_a_success_without_a_mask_is_no_mask_and_the_next_tool_is_asked(install) -> None:
    silent = HD_BET_1.replace("nibabel.save(mask", "print(mask")
    install(hd_bet=silent, mri_synthstrip=SYNTHSTRIP)
    volume, brain = scan()
    mask, tool, notices = external_mask(volume)
    assert tool == "synthstrip"
    np.testing.assert_array_equal(mask, brain)
    assert [notice.code for notice in notices] == ["brain-tool-failed"]
    assert "without a mask" in notices[0].text


def test_a_tool_that_fails_is_said_and_passed_over(install) -> None:
    install(hd_bet=HD_BET_2.replace(EXTRACTION, "sys.exit('no weights')\n"))
    mask, _, notices = external_mask(scan()[0])
    assert mask is None
    assert [notice.text for notice in notices] == ["hd-bet is installed but made no brain mask: no weights"]


def test_a_tool_with_other_options_is_not_called(install) -> None:
    script = '[ "$1" = --help ] && echo usage: hd-bet --future && exit 0\necho called > "$0.called"\n'
    install(hd_bet=f"#!/bin/sh\n{script}")
    mask, _, notices = external_mask(scan()[0])
    assert mask is None
    assert "options are not known" in notices[0].text
    assert not list(Path(install()).glob("*.called"))
