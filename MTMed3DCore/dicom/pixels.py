"""The voxels of a series, whatever its transfer syntax."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.dicom.series import Frame, Series
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.volume import Volume


def read_volume(series: Series) -> Volume:
    """The voxels of a series as float32, scaled as its files say, on the grid of `Series.stack`.

    Raises:
        InputRefused: the geometry cannot be used, a file is damaged or compressed in a way that no installed decoder
            reads, it holds colours, or every voxel has the same value.
    """
    stack = series.stack
    columns, rows, _ = stack.grid.shape
    slices = np.empty((len(stack.frames), rows, columns), np.float32)
    numbered = sorted(enumerate(stack.frames), key=lambda item: str(item[1].path))
    for path, group in groupby(numbered, key=lambda item: item[1].path):
        planes = _decode(path, series.name)
        for place, frame in group:
            slices[place] = _plane(planes, frame) * np.float32(frame.slope) + np.float32(frame.intercept)
    array = slices.transpose(2, 1, 0)[:, ::-1]
    if not stack.is_even:
        array = _evenly(array, stack.positions, stack.grid.shape[2])
    if not np.isfinite(array).all():
        raise InputRefused("not-finite", f"Series {series.name} holds values that are not finite.", "Export it again.")
    if array.min() == array.max():
        text = f"Every voxel of series {series.name} is {float(array.flat[0]):g}."
        raise InputRefused("constant", text, "Give the image itself, not a blank.")
    return Volume(np.ascontiguousarray(array), stack.grid)


def _decode(path: Path, name: str) -> npt.NDArray[Any]:
    """Stored values of a file: (rows, columns) or (frames, rows, columns)."""
    import pydicom
    from pydicom.errors import BytesLengthException

    damage = (ValueError, AttributeError, KeyError, EOFError, OSError, TypeError, BytesLengthException)
    dataset = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:  # an old file without preamble: never compressed
        implicit, _ = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        )
    try:
        coloured = int(dataset.get("SamplesPerPixel", 1)) != 1
    except (*damage, NotImplementedError) as error:  # values are decoded as they are asked for
        raise _damaged(path, name, error) from error
    if coloured:
        raise InputRefused("not-scalar", f"{path.name} of series {name} holds colours.", "Give a grey-scale series.")
    try:
        return np.asarray(dataset.pixel_array)
    except (RuntimeError, NotImplementedError, ImportError) as error:
        syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        kind = syntax.name if syntax is not None else "an unknown encoding"
        raise InputRefused(
            "dicom-compression",
            f"The pixels of {path.name} of series {name} ({kind}) cannot be decoded: {_first_line(error)}.",
            "Install the decoders with `pip install 'mtmed3d[dicom]'`, or export the series uncompressed.",
        ) from error
    except damage as error:
        raise _damaged(path, name, error) from error


def _damaged(path: Path, name: str, error: Exception) -> InputRefused:
    text = f"The pixels of {path.name} of series {name} are damaged: {_first_line(error)}."
    return InputRefused("file-damaged", text, "Copy or export it again.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _plane(planes: npt.NDArray[Any], frame: Frame) -> npt.NDArray[np.float32]:
    if planes.ndim == 3:
        planes = planes[frame.index or 0]
    if planes.shape != frame.shape:
        text = f"{frame.label} has {planes.shape} pixels, its header says {frame.shape}."
        raise InputRefused("file-damaged", text, "Copy or export it again.")
    return planes.astype(np.float32)


def _evenly(array: npt.NDArray[np.float32], positions: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float32]:
    """Linear interpolation between slices (last axis) to `count` evenly spaced ones."""
    wanted = np.linspace(positions[0], positions[-1], count)
    upper = np.clip(np.searchsorted(positions, wanted), 1, len(positions) - 1)
    share = ((wanted - positions[upper - 1]) / (positions[upper] - positions[upper - 1])).astype(np.float32)
    return array[..., upper - 1] * (1 - share) + array[..., upper] * share
