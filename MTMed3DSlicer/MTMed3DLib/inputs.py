"""The four volumes of a study: checked, copied, and written where the worker reads them, with a brain mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import slicer

from MTMed3DLib.attributes import MASK
from MTMed3DLib.background import Report
from MTMed3DLib.brain import mask_of
from MTMed3DLib.nodes import Array, grid_of, has_linear_transform, ijk_to_ras, to_frame_of, voxels_of

SEQUENCES = ("t1", "t1ce", "t2", "flair")
NAMES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
SMALLEST_OVERLAP = 0.5
"""Share of the smaller volume's extent that two sequences must have in common."""
LARGEST_SHEAR = 1e-3

Nodes = Mapping[str, Any]


def reasons(nodes: Nodes) -> list[str]:
    """Every reason why these volumes cannot be analysed, in words for a person; empty when they can."""
    problems = [f"{NAMES[name]} is not chosen." for name in SEQUENCES if nodes.get(name) is None]
    chosen = {name: nodes[name] for name in SEQUENCES if nodes.get(name) is not None}
    for first, second in combinations(chosen, 2):
        if chosen[first].GetID() == chosen[second].GetID():
            problems.append(f"{NAMES[second]} is the same volume as {NAMES[first]}.")
    usable = {}
    for name, node in chosen.items():
        problem = _problem_of(node)
        if problem is None:
            usable[name] = node
        else:
            problems.append(f"{NAMES[name]} ({node.GetName()}) {problem}.")
    if "t1ce" in usable:
        for name, node in usable.items():
            if name != "t1ce" and overlap(node, usable["t1ce"]) < SMALLEST_OVERLAP:
                problems.append(f"{NAMES[name]} does not overlap T1ce in space.")
    return problems


def overlap(first: Any, second: Any) -> float:
    """Share of the smaller of two volumes' extents in the world that both cover, parent transforms included."""
    bounds = []
    for node in (first, second):
        corners = np.c_[grid_of(node).corners(), np.ones(8)] @ to_frame_of(node, None).T
        bounds.append((corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)))
    (low_a, high_a), (low_b, high_b) = bounds
    common = np.prod(np.maximum(np.minimum(high_a, high_b) - np.maximum(low_a, low_b), 0.0))
    return float(common / min(np.prod(high_a - low_a), np.prod(high_b - low_b)))


@dataclass(frozen=True, eq=False)
class Inputs:
    """Copies of the four volumes, which another thread may write while the scene goes on.

    Args:
        volumes: voxels (X, Y, Z) and voxel-to-RAS matrix (4, 4) in the frame of T1ce, of each sequence; under `MASK`
            a brain mask, where the user gives one.
    """

    volumes: Mapping[str, tuple[Array, Array]]

    def write(self, folder: Path, report: Report = lambda *_: None) -> dict[str, Path]:
        """Write them as NRRD files; returns the file of each sequence, and of the mask.

        Raises:
            OSError, RuntimeError: a file cannot be written.
        """
        import SimpleITK as sitk

        files = {}
        for index, (name, (voxels, affine)) in enumerate(self.volumes.items()):
            report("read", index / len(self.volumes), f"Handing over {NAMES.get(name, name)}")
            lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
            spacing = np.linalg.norm(lps[:3, :3], axis=0)
            image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
            image.SetSpacing(spacing.tolist())
            image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
            image.SetOrigin(lps[:3, 3].tolist())
            files[name] = folder / f"{name.replace(' ', '_')}.nrrd"
            sitk.WriteImage(image, str(files[name]))
        return files


def take_inputs(nodes: Nodes, mask: Any = None) -> Inputs:
    """Copy the four volumes out of the scene, in the frame of T1ce, below T1ce's own parent transform.

    What stands between another sequence and T1ce goes into that sequence's geometry; what stands above T1ce stays
    outside, and the result nodes get it from the same transform node. No voxel of a sequence is interpolated.

    Args:
        nodes: the volume of each sequence.
        mask: label map or segmentation node of the brain, or None.

    Raises:
        ValueError: `reasons` is not empty, or the mask cannot be used; the text says why.
    """
    problems = reasons(nodes)
    if problems:
        raise ValueError(" ".join(problems))
    t1ce = nodes["t1ce"]
    volumes = {
        name: (np.array(voxels_of(node.GetImageData())), to_frame_of(node, t1ce) @ ijk_to_ras(node))
        for name, node in ((name, nodes[name]) for name in SEQUENCES)
    }
    return Inputs(volumes if mask is None else {**volumes, MASK: mask_of(mask, t1ce)})


def is_scalar(node: Any) -> bool:
    """Whether a volume node holds one intensity a voxel, and neither labels nor tensors."""
    return node.IsA("vtkMRMLScalarVolumeNode") and not (
        node.IsA("vtkMRMLLabelMapVolumeNode") or node.IsA("vtkMRMLTensorVolumeNode")
    )


def _problem_of(node: Any) -> str | None:
    """What is wrong with one volume, as the end of a sentence."""
    if not is_scalar(node):
        return "is not a scalar volume"
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        return "holds no voxels"
    if image.GetNumberOfScalarComponents() != 1:
        return "is a colour or vector volume"
    if min(image.GetDimensions()) < 2:
        return "is a single slice"
    if not has_linear_transform(node):
        return "is under a non-linear transform; harden the transform first"
    columns = (to_frame_of(node, None) @ ijk_to_ras(node))[:3, :3]
    columns = columns / np.linalg.norm(columns, axis=0)
    if np.abs(columns.T @ columns - np.eye(3)).max() > LARGEST_SHEAR:
        return "is sheared by its transform; harden the transform first"
    return None


def same_volume(first: Any, second: Any) -> bool:
    """Whether two references name one node, also where either is None."""
    ids = [None if node is None else node.GetID() for node in (first, second)]
    return ids[0] == ids[1]


def is_volume(node: Any) -> bool:
    """Whether a node is a volume that a sequence could be."""
    return node is not None and isinstance(node, slicer.vtkMRMLScalarVolumeNode) and is_scalar(node)
