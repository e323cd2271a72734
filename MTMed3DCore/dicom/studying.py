"""From a folder of DICOM files to the four volumes of a study."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from MTMed3DCore.dicom.choosing import choose
from MTMed3DCore.dicom.scanning import scan
from MTMed3DCore.dicom.series import Series
from MTMed3DCore.notice import Notice
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.sequences import NAMES, SEQUENCES
from MTMed3DCore.volume import Volume


@dataclass(frozen=True, eq=False)
class DicomStudy:
    """The four sequences of a DICOM study, each on its own grid.

    Args:
        volumes: by sequence, in the order of `SEQUENCES`.
        series: the series of each, with header and files: what exported DICOM objects refer to.
        notices: what choosing and reading noticed.
    """

    volumes: Mapping[str, Volume]
    series: Mapping[str, Series]
    notices: tuple[Notice, ...]

    @property
    def sources(self) -> dict[str, Path]:
        """The folder of each series."""
        return {name: Path(os.path.commonpath([f.path.parent for f in s.frames])) for name, s in self.series.items()}


def read_dicom(
    places: str | Path | Sequence[str | Path], named: Mapping[str, str] | None = None, progress: Progress = silent
) -> DicomStudy:
    """Read the four sequences of a DICOM study.

    Args:
        places: folder or folders that hold one patient's study, at any depth.
        named: see `choosing.choose`.
        progress: told of every file and series, stage ``read``.

    Raises:
        InputRefused, WrongUse: see `scan`, `choose` and `Series.read`.
    """
    choice = choose(scan(places, progress), named)
    volumes = {}
    notices = list(choice.notices)
    for number, name in enumerate(SEQUENCES):
        series = choice.series[name]
        progress("read", 0.5 + 0.5 * number / len(SEQUENCES), f"Reading the {NAMES[name]}, series {series.name}")
        volumes[name] = series.read()
        notices += series.stack.notices
    return DicomStudy(volumes, choice.series, tuple(notices))
