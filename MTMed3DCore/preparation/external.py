"""Brain masks from tools that the user has installed: HD-BET (Isensee et al., Hum Brain Mapp 40, 2019) and SynthStrip
(Hoopes et al., NeuroImage 260, 2022). Nothing is installed or downloaded here; weights stay under their own terms.

What the tools want, by their own command lines:

* HD-BET 2 knows ``-i -o -device --disable_tta --save_bet_mask --no_bet_image`` and writes ``NAME_bet.nii.gz`` beside
  the output ``NAME.nii.gz``. HD-BET 1 knows ``-i -o -device -mode -tta -pp -s`` and writes ``NAME_mask.nii.gz``; an
  image that it cannot read ends with exit status 0 and no file. Neither accepts the other's options; ``--help`` tells
  which it is. Both want the image in the orientation of the MNI template.
* SynthStrip takes ``-i IMAGE -m MASK``, brings the image into its own orientation, and ends with 1 where
  ``FREESURFER_HOME`` is not set; it complains on stdout.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from MTMed3DCore.errors import MTMed3DError
from MTMed3DCore.geometry import Grid
from MTMed3DCore.notice import Notice
from MTMed3DCore.volume import Volume, read_volume

LIMIT_S = 900
"""Seconds after which a tool is given up; on a processor alone they take minutes."""
HELP_S = 120
"""Seconds within which a tool must say what options it has; HD-BET loads its libraries first."""
_IMAGE, _STRIPPED, _MASK = "t1ce.nii.gz", "brain.nii.gz", "mask.nii.gz"


@dataclass(frozen=True)
class Tool:
    """An installed tool.

    Args:
        name: ``"hd-bet"`` or ``"synthstrip"``.
        program: how it is started.
    """

    name: str
    program: tuple[str, ...]


def installed_tools() -> list[Tool]:
    """What is found on the PATH or among the importable packages, in the order of trial."""
    tools = []
    if program := shutil.which("hd-bet"):
        tools.append(Tool("hd-bet", (program,)))
    elif find_spec("HD_BET"):
        tools.append(Tool("hd-bet", (sys.executable, "-m", "HD_BET.entry_point")))
    if program := shutil.which("mri_synthstrip") or shutil.which("synthstrip"):
        tools.append(Tool("synthstrip", (program,)))
    return tools


def _command(tool: Tool, place: Path) -> tuple[list[str], str]:
    """Command line for the image in a folder, and the name of the mask that it makes there."""
    source, stripped, mask = str(place / _IMAGE), str(place / _STRIPPED), str(place / _MASK)
    if tool.name == "synthstrip":
        return [*tool.program, "-i", source, "-m", mask], _MASK
    start = [*tool.program, "-i", source, "-o", stripped, "-device", "cpu"]
    said = subprocess.run([*tool.program, "--help"], capture_output=True, timeout=HELP_S, text=True)
    if "--save_bet_mask" in said.stdout:
        return [*start, "--disable_tta", "--save_bet_mask"], _STRIPPED.replace(".nii.gz", "_bet.nii.gz")
    if "-tta" in said.stdout:
        return [*start, "-mode", "fast", "-tta", "0", "-s", "1"], _STRIPPED.replace(".nii.gz", "_mask.nii.gz")
    raise ValueError(f"its options are not known to this version; it said: {_last_line(said.stdout, said.stderr)}")


def external_mask(t1ce: Volume) -> tuple[npt.NDArray[np.bool_] | None, str, tuple[Notice, ...]]:
    """The brain mask of the first installed tool that makes one.

    Args:
        t1ce: as it came in.

    Returns:
        bool (X, Y, Z) on the T1ce grid or None, the tool's name, and a notice for every tool that failed.
    """
    notices: list[Notice] = []
    for tool in installed_tools():
        try:
            return _run(tool, t1ce), tool.name, tuple(notices)
        except (OSError, subprocess.SubprocessError, MTMed3DError, ValueError) as error:
            text = f"{tool.name} is installed but made no brain mask: {_complaint(error)}"
            notices.append(Notice("brain-tool-failed", text))
    return None, "", tuple(notices)


def _run(tool: Tool, t1ce: Volume) -> npt.NDArray[np.bool_]:
    import nibabel
    from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

    native = nibabel.Nifti1Image(t1ce.array.astype(np.float32), t1ce.grid.affine)
    upright = nibabel.as_closest_canonical(native)
    with tempfile.TemporaryDirectory(prefix="mtmed3d-") as folder:
        place = Path(folder)
        command, made = _command(tool, place)
        nibabel.save(upright, place / _IMAGE)
        subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S, text=True)
        if not (place / made).is_file():
            raise ValueError("it ended without a complaint and without a mask")
        mask = read_volume(place / made)
    if not mask.grid.same_as(Grid(upright.shape, upright.affine)):
        raise ValueError("its mask lies on another grid than the T1ce")
    back = ornt_transform(io_orientation(upright.affine), io_orientation(native.affine))
    inside: npt.NDArray[np.bool_] = np.ascontiguousarray(apply_orientation(mask.array > 0.5, back))
    return inside


def _complaint(error: Exception) -> str:
    """What a tool said last before it failed."""
    if isinstance(error, subprocess.CalledProcessError):
        return _last_line(error.stderr, error.stdout) or f"exit status {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it did not end within {error.timeout:.0f} s"
    return _last_line(str(error)) or type(error).__name__


def _last_line(*texts: str | None) -> str:
    """The last line of the first text that has one."""
    lines = [line.strip() for text in texts if text and text.strip() for line in text.strip().splitlines()[-1:]]
    return lines[0][:200] if lines else ""
