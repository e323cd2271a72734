"""Whole studies as training sees them: on the working grid, normalised, with what is known of their truth.

Preparing a real study takes seconds, so each is prepared once and kept as a safetensors file in a cache whose names
change with the study's files and with the settings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from MTMed3DCore.datalist.building import read_label
from MTMed3DCore.datalist.case import Case
from MTMed3DCore.errors import Cancelled, MTMed3DError
from MTMed3DCore.evaluation.labels import LabelConvention, unify_labels
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.preparation import PreparedStudy, normalise_tensor, prepare
from MTMed3DCore.preparation.grid import resample_axes
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.study import Study
from MTMed3DCore.synthetic import SyntheticStudy
from MTMed3DCore.volume import read_volume, refuse_missing

CACHE_FORMAT = 1
"""Raise it whenever what is stored changes."""
GRADES = ("LGG", "HGG")


@dataclass(frozen=True, eq=False)
class Example:
    """A study to cut patches from.

    Args:
        image: (4, X, Y, Z) float32, normalised, zero outside the brain.
        labels: uint8 (X, Y, Z) of 0, 1, 2, 4; None without a label map.
        boxes: of the lesions in voxels; None where nobody knows them.
        grade: 0 LGG, 1 HGG, or None.
    """

    image: torch.Tensor
    labels: torch.Tensor | None
    boxes: list[VoxelBox] | None
    grade: int | None


def synthetic_example(study: SyntheticStudy) -> Example:
    """A synthetic study as an example, on the host wherever it was made."""
    image = normalise_tensor(study.image, study.brain).cpu()
    return Example(image, study.labels.cpu(), study.boxes, study.grade)


def read_images(case: Case) -> Study:
    """The four sequences of a case, also out of one four-dimensional file.

    Raises:
        InputRefused: as `read_volume` and `Study.from_volumes`.
    """
    volumes = {name: read_volume(case.images[name].path, index=case.images[name].index) for name in SEQUENCES}
    return Study.from_volumes(case.id, volumes, {name: case.images[name].path for name in SEQUENCES})


def prepare_case(case: Case, spacing_mm: float, normalisation: str = "zscore_brain") -> tuple[Example, PreparedStudy]:
    """Bring a case to the working grid.

    A voxel there belongs to a region when at least half of it does, so thin structures neither vanish nor swell on
    average.
    """
    prepared = prepare(read_images(case), spacing_mm=spacing_mm, normalisation=normalisation)
    labels = None
    if case.label is not None:
        native = read_label(case)
        convention = LabelConvention[case.convention] if case.convention else None
        unified = unify_labels(native.array, case.label.path, convention)
        labels = torch.from_numpy(labels_on_grid(unified, native.grid, prepared.grid))
    boxes = None if case.boxes is None else [box.to_voxel(prepared.grid) for box in case.boxes]
    grade = None if case.grade is None else GRADES.index(case.grade)
    return Example(torch.from_numpy(prepared.image), labels, boxes, grade), prepared


def labels_on_grid(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """A label map (X, Y, Z) of 1, 2, 4 on another grid of the same axes, region by region."""
    result = np.zeros(target.shape, np.uint8)
    for values, label in (((1, 2, 4), 2), ((1, 4), 1), ((4,), 4)):
        result[resample_axes(np.isin(labels, values), source, target, "zero") >= 0.5] = label
    return result


class ExampleCache:
    """Prepared cases on disk, made when they are first asked for.

    Args:
        folder: of the cache; may be shared by runs.
        spacing_mm, normalisation: of the working grid.
    """

    def __init__(self, folder: Path, spacing_mm: float, normalisation: str = "zscore_brain") -> None:
        self.folder = folder
        self.spacing_mm, self.normalisation = spacing_mm, normalisation

    def path(self, case: Case) -> Path:
        """Where a case is kept; another name as soon as one of its files or the settings change.

        Raises:
            InputRefused: ``file-missing``.
        """
        parts = [*case.images.values(), *([case.label] if case.label else [])]
        for part in parts:
            refuse_missing(part.path)
        files = [(str(p.path), p.index, (stat := p.path.stat()).st_size, stat.st_mtime_ns) for p in parts]
        boxes = None if case.boxes is None else [box.corners().round(3).tolist() for box in case.boxes]
        known = [CACHE_FORMAT, self.spacing_mm, self.normalisation, files, case.convention, case.grade, boxes]
        digest = sha256(json.dumps(known).encode()).hexdigest()[:24]
        return self.folder / f"{digest}.safetensors"

    def load(self, case: Case) -> Example:
        """The case, prepared now if it is not there yet."""
        path = self.path(case)
        if not path.is_file():
            example, _ = prepare_case(case, self.spacing_mm, self.normalisation)
            self._save(example, path)
        with safe_open(path, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
        boxes = [VoxelBox.from_list(row) for row in tensors["boxes"].tolist()] if "boxes" in tensors else None
        grade = int(tensors["grade"]) if "grade" in tensors else None
        return Example(tensors["image"].float(), tensors.get("labels"), boxes, grade)

    def fill(self, cases: Sequence[Case], workers: int = 1, progress: Progress = silent) -> dict[str, str]:
        """Prepare every case that is not there yet; returns the reason for each that cannot be."""
        refused: dict[str, str] = {}

        def prepare_one(case: Case) -> None:
            try:
                self.load(case)
            except Cancelled:
                raise
            except MTMed3DError as error:
                refused[case.id] = error.text

        with ThreadPoolExecutor(max(1, workers)) as pool:
            for number, _ in enumerate(pool.map(prepare_one, cases)):
                progress("prepare", (number + 1) / len(cases), f"{number + 1} of {len(cases)} studies")
        return refused

    def _save(self, example: Example, path: Path) -> None:
        tensors = {"image": example.image.half().contiguous()}
        if example.labels is not None:
            tensors["labels"] = example.labels.contiguous()
        if example.boxes is not None:
            rows = [box.to_list() for box in example.boxes]
            tensors["boxes"] = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
        if example.grade is not None:
            tensors["grade"] = torch.tensor(example.grade)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
        try:
            save_file(tensors, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
