"""Pixels of PNG, TIFF, JPEG and BMP files, read by SimpleITK, in the frame of `MTMed3DCore.images2d.imagelist`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch.nn.functional import interpolate

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.images2d.imagelist import Box

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
SMALLEST_PIXELS = 4
"""Connected pixels of a mask below this are a speck of the drawing, and get no box."""
PERCENTILES = (0.5, 99.5)


def _read(path: Path) -> npt.NDArray[np.generic]:
    """Pixels (rows, columns) or (rows, columns, components).

    Raises:
        InputRefused: ``image-unreadable``, ``image-pages``.
    """
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        text = f"{path} cannot be read as an image: {last}"
        raise InputRefused("image-unreadable", text, "Give PNG, TIFF, JPEG or BMP files.") from error
    if image.GetDimension() != 2 and not (image.GetDimension() == 3 and image.GetSize()[2] == 1):
        text = f"{path} has {image.GetSize()[-1]} pages."
        raise InputRefused("image-pages", text, "Give one image a file.")
    array: npt.NDArray[np.generic] = sitk.GetArrayFromImage(image)
    return array[0] if image.GetDimension() == 3 else array


def image_size(path: Path) -> tuple[int, int]:
    """Columns and rows of an image, from its header.

    Raises:
        InputRefused: ``image-unreadable``.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        text = f"{path} cannot be read as an image."
        raise InputRefused("image-unreadable", text, "Give PNG, TIFF, JPEG or BMP files.") from error
    columns, rows = reader.GetSize()[:2]
    return columns, rows


def read_image(path: Path, channels: int) -> torch.Tensor:
    """An image as float32 (C, X, Y), from about -1 (its darkest) to about 1 (its brightest values).

    The range is that between two percentiles over all channels together, so that a colour keeps its tint and a 16-bit
    file its contrast; the published code feeds 0 to 255 as it is.

    Args:
        path: file.
        channels: 3 for colour, 1 for grey; a file of the other kind is converted, transparency is dropped.

    Raises:
        InputRefused: ``image-unreadable``, ``image-pages``, ``image-not-finite``.
    """
    pixels = _read(path).astype(np.float32)
    colours = pixels[..., None] if pixels.ndim == 2 else pixels
    if colours.shape[-1] in (2, 4):
        colours = colours[..., :-1]
    if colours.shape[-1] != channels:
        colours = colours.mean(axis=-1, keepdims=True).repeat(channels, axis=-1)
    if not np.isfinite(colours).all():
        text = f"{path} has pixels that are not finite."
        raise InputRefused("image-not-finite", text, "Leave the image out, or write it again.")
    low, high = (float(value) for value in np.percentile(colours, PERCENTILES))
    scaled = np.clip((colours - low) / max(high - low, 1e-6), 0, 1) * 2 - 1
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 1, 0)))


def read_mask(path: Path, values: Sequence[int] | None = None) -> npt.NDArray[np.uint8]:
    """A mask as (X, Y): 0 for background, n for the n-th of `values`.

    Args:
        path: file.
        values: that regions have in the file; None gives the file's own values, up to 255.

    Raises:
        InputRefused: ``mask-colours`` (a coloured file), ``mask-values`` (a value that is not of `values`).
    """
    pixels = _read(path)
    if pixels.ndim == 3:
        colours = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1]
        if not (colours == colours[..., :1]).all():
            text = f"The mask {path} is coloured."
            raise InputRefused("mask-colours", text, "Write masks as grey values, one for each region.")
        pixels = colours[..., 0]
    pixels = pixels.T
    found = np.unique(pixels)
    strange = [
        v for v in found.tolist() if v != int(v) or not 0 <= v <= 255 or (values is not None and v and v not in values)
    ]
    if strange:
        expected = "whole numbers from 0 to 255" if values is None else f"0, {', '.join(map(str, values))}"
        text = f"The mask {path} has the value {strange[0]:g}; expected are {expected}."
        raise InputRefused("mask-values", text, "Masks must be stored without loss, as PNG or TIFF, not as JPEG.")
    if values is None:
        return pixels.astype(np.uint8)
    numbers = np.zeros(256, dtype=np.uint8)
    numbers[list(values)] = np.arange(1, len(values) + 1)
    return numbers[pixels.astype(np.uint8)]


def boxes_of_mask(mask: npt.NDArray[np.uint8]) -> tuple[Box, ...]:
    """One box for each connected part (8 neighbours) of a mask (X, Y), whatever its regions."""
    parts, _ = ndimage.label(mask > 0, structure=np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    boxes = []
    for number, found in enumerate(ndimage.find_objects(parts), start=1):
        if found is not None and sizes[number] >= SMALLEST_PIXELS:
            x, y = found
            boxes.append((float(x.start), float(y.start), float(x.stop), float(y.stop)))
    return tuple(boxes)


def resize_image(image: torch.Tensor, side: int) -> torch.Tensor:
    """(C, X, Y) to a square (C, side, side); the proportions are not kept, as published."""
    return interpolate(image[None], size=(side, side), mode="bilinear", align_corners=False, antialias=True)[0]


def resize_mask(mask: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Numbers (X, Y) to another shape, each pixel that of the nearest."""
    return interpolate(mask[None, None].float(), size=tuple(shape), mode="nearest-exact")[0, 0].to(mask.dtype)
