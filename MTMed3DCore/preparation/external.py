"""Brain masks from tools that the user has installed: HD-BET (Isensee et al., Hum Brain Mapp 40, 2019) and SynthStrip
(Hoopes et al., NeuroImage 260, 2022). Nothing is installed or downloaded here; weights stay under their own terms."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from MTMed3DCore.errors import MTMed3DError
from MTMed3DCore.findings import Notice
from MTMed3DCore.volume import Volume, read_volume

LIMIT_S = 900
"""Seconds after which a tool is given up; on a processor alone they take minutes."""


@dataclass(frozen=True)
class Tool:
    """An installed tool.

    Args:
        name: ``"hd-bet"`` or ``"synthstrip"``.
        command: from the input and output file to the command line; the mask is sought beside the output.
    """

    name: str
    command: Callable[[Path, Path], Sequence[str]]


def installed_tools() -> list[Tool]:
    """What is found on the PATH or among the importable packages, in the order of trial."""
    tools = []
    program = shutil.which("hd-bet")
    start = [program] if program else [sys.executable, "-m", "HD_BET.entry_point"] if find_spec("HD_BET") else None
    if start is not None:
        options = ["-device", "cpu", "--disable_tta", "--save_bet_mask"]
        tools.append(Tool("hd-bet", lambda source, target: [*start, "-i", str(source), "-o", str(target), *options]))
    strip = shutil.which("mri_synthstrip") or shutil.which("synthstrip")
    if strip:
        tools.append(Tool("synthstrip", lambda source, target: [strip, "-i", str(source), "-m", str(target)]))
    return tools


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
            text = f"{tool.name} is installed but made no brain mask: {_last_line(error)}"
            notices.append(Notice("brain-tool-failed", text))
    return None, "", tuple(notices)


def _run(tool: Tool, t1ce: Volume) -> npt.NDArray[np.bool_]:
    import nibabel

    with tempfile.TemporaryDirectory(prefix="mtmed3d-") as place:
        source, target = Path(place) / "t1ce.nii.gz", Path(place) / "brain.nii.gz"
        nibabel.save(nibabel.Nifti1Image(t1ce.array.astype(np.float32), t1ce.grid.affine), source)
        subprocess.run(tool.command(source, target), check=True, capture_output=True, timeout=LIMIT_S, text=True)
        masks = [path for path in sorted(Path(place).glob("brain*.nii.gz")) if path != target] or [target]
        mask = read_volume(masks[0])
    if not mask.grid.same_as(t1ce.grid):
        raise ValueError("its mask lies on another grid than the T1ce")
    return np.asarray(mask.array > 0.5)


def _last_line(error: Exception) -> str:
    said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return said[-1][:200] if said else type(error).__name__
