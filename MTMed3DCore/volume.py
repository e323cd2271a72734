"""Volumes: voxels with their grid, read from a file only when the file is whole and says where it lies.

NIfTI is read with nibabel, NRRD and MetaImage with SimpleITK. Neither alone is safe: SimpleITK reads a truncated file
as zeros, nibabel does not look at gzip's checksum, and the two disagree on which of two contradicting NIfTI transforms
holds.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.geometry import Grid
from MTMed3DCore.memory import available_memory
from MTMed3DCore.sequences import SUFFIXES

RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Between RAS (nibabel, this package) and LPS (ITK, DICOM) millimetres; its own inverse."""
TRANSFORM_TOLERANCE_MM = 0.5
"""How far two transforms of one NIfTI file may place a corner apart."""
SHEAR_TOLERANCE = 1e-3
"""Largest cosine between two axes of a grid that ITK, which knows no shear, may still take as orthogonal."""
MEMORY_SHARE = 0.5
"""Share of the machine's free memory that one volume may claim."""
UNTOLD_MEMORY = 16 * 2**30
"""Bytes taken for free where the system does not say."""
_INTERPOLATORS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "bspline": sitk.sitkBSpline}
_UNREADABLE = (
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
    EOFError,
    OSError,
    OverflowError,
    ValueError,
    zlib.error,
)
"""What nibabel raises on a header that is none."""
_ITK_SIZES = {"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4}


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar image.

    Args:
        array: (X, Y, Z).
        grid: where its voxels lie.

    Raises:
        ValueError: the array does not have the grid's shape.
    """

    array: npt.NDArray[Any]
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ValueError(f"The array has shape {self.array.shape}, its grid {self.grid.shape}.")


def read_volume(path: str | Path, *, blank: bool = False, index: int | None = None) -> Volume:
    """Read a volume as float32, scaled as its header says.

    Args:
        path: of an image file.
        blank: accept one whose voxels are all the same, as the label map of a study without tumour is.
        index: of the volume, counted from 0, in a NIfTI file of four dimensions; None for a file of three.

    Raises:
        InputRefused: the file is missing, of an unknown kind, damaged, larger than memory, not a three-dimensional
            scalar image, without a usable geometry, has no volume of that number, or holds values that are not finite
            or all the same.
    """
    file = Path(path)
    refuse_missing(file)
    name = file.name.lower()
    if not name.endswith(SUFFIXES):
        raise InputRefused("file-kind", f"{file} is no image that can be read.", f"Give one of {', '.join(SUFFIXES)}.")
    nifti = name.endswith((".nii", ".nii.gz"))
    if index is not None and not nifti:
        raise InputRefused("file-kind", f"{file} is no NIfTI file.", "Volumes are told apart in NIfTI files only.")
    volume = _read_nifti(file, index) if nifti else _read_itk(file)
    named = str(file) if index is None else f"volume {index} of {file}"
    if not np.isfinite(volume.array).all():
        count = int((~np.isfinite(volume.array)).sum())
        raise InputRefused("not-finite", f"{named} holds {count} voxels that are NaN or infinite.", "Export it again.")
    if not blank and volume.array.min() == volume.array.max():
        value = float(volume.array.flat[0])
        raise InputRefused("constant", f"Every voxel of {named} is {value:g}.", "Give the image itself, not a blank.")
    return volume


def refuse_missing(file: Path) -> None:
    """Refuse what is no file: nothing, a folder, a broken link, a pipe.

    Raises:
        InputRefused: ``file-missing``.
    """
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "is no file" if file.exists() else "does not exist"
        raise InputRefused("file-missing", f"{file} {what}.", "Give the path of an image file.")


def resample(volume: Volume, grid: Grid, interpolation: str = "linear", fill: float = 0.0) -> Volume:
    """The volume on another grid, in one interpolation.

    Args:
        volume: any orientation.
        grid: where values are wanted.
        interpolation: ``"linear"``, ``"nearest"`` or ``"bspline"``.
        fill: value beyond the volume.

    Returns:
        A float32 volume on `grid`.
    """
    reference = to_sitk(Volume(np.zeros(grid.shape, np.uint8), grid))
    moved = sitk.Resample(
        to_sitk(volume), reference, sitk.Transform(), _INTERPOLATORS[interpolation], fill, sitk.sitkFloat32
    )
    return Volume(sitk.GetArrayFromImage(moved).transpose(2, 1, 0), grid)


def to_sitk(volume: Volume) -> sitk.Image:
    """As a SimpleITK image: LPS millimetres, array axes in ITK's order.

    Raises:
        ValueError: the grid is sheared, which ITK cannot express.
    """
    axes = volume.grid.axes
    shear = np.abs(axes @ axes.T - np.eye(3)).max()
    if shear > SHEAR_TOLERANCE:
        raise ValueError(f"A grid whose axes are {shear:.3f} off the perpendicular cannot be given to ITK.")
    # ITK asks for perpendicular axes to the last digit: take the nearest such set.
    left, _, right = np.linalg.svd(axes.T)
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0)))
    image.SetSpacing(volume.grid.spacing.tolist())
    image.SetDirection((RAS_LPS[:3, :3] @ left @ right).ravel().tolist())
    image.SetOrigin((RAS_LPS[:3, :3] @ volume.grid.affine[:3, 3]).tolist())
    return image


def from_sitk(image: sitk.Image) -> Volume:
    """From a three-dimensional scalar SimpleITK image."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return Volume(array, Grid((array.shape[0], array.shape[1], array.shape[2]), RAS_LPS @ affine))


def _damaged(file: Path, reason: object) -> InputRefused:
    return InputRefused("file-damaged", f"{file} is damaged: {reason}.", "Copy or export it again.")


def _check_memory(file: Path, voxels: int) -> None:
    """Refuse what the header claims before anything of that size is asked for."""
    free = available_memory()
    if free == math.inf:
        free = UNTOLD_MEMORY
    needed = voxels * 4
    if needed > free * MEMORY_SHARE:
        raise InputRefused(
            "too-large",
            f"The header of {file} claims {voxels} voxels, {needed / 2**30:.1f} GiB of {free / 2**30:.1f} GiB free.",
            "Check the header; crop the image, or use a machine with more memory.",
        )


def _read_nifti(file: Path, index: int | None) -> Volume:
    try:
        image: Any = nibabel.load(file)
        header = image.header
        stored = shape = tuple(int(n) for n in image.shape)
        dtype = header.get_data_dtype()
        offset = int(header["vox_offset"])
    except _UNREADABLE as error:
        raise _damaged(file, error) from error
    if index is not None:
        if len(shape) != 4 or index >= shape[3]:
            text = f"{file} has {' x '.join(map(str, shape))} voxels, and so no volume {index} (counted from 0)."
            raise InputRefused("volume-missing", text, "Give a file with one volume for each sequence.")
        shape = shape[:3]
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    _check_scalar(file, shape, dtype)
    _check_memory(file, math.prod(shape))
    try:
        grid = Grid((shape[0], shape[1], shape[2]), _nifti_affine(file, image))
    except ValueError as error:  # a quaternion of no rotation, a matrix that is flat or not finite
        text = f"The geometry of {file} cannot be used: {error}"
        raise InputRefused("geometry", text, "Correct the header.") from error
    _check_shear(file, grid)
    _check_payload(file, offset + math.prod(stored) * dtype.itemsize)
    try:
        voxels = image.dataobj if index is None else image.dataobj[..., index]
        array = np.asarray(voxels, dtype=np.float32).reshape(shape)
    except (EOFError, OSError, ValueError, OverflowError, zlib.error) as error:
        raise _damaged(file, error) from error
    return Volume(array, grid)


def _nifti_affine(file: Path, image: Any) -> npt.NDArray[np.float64]:
    """The transform of a NIfTI file, when it has one and only one."""
    header = image.header
    spacing = np.asarray(header.get_zooms()[:3], dtype=np.float64)
    if not np.isfinite(spacing).all() or (spacing <= 0).any():
        text = f"The voxel spacing of {file} (pixdim) is {spacing.tolist()} mm."
        raise InputRefused("geometry", text, "Correct the header.")
    if not hasattr(header, "get_sform"):
        raise InputRefused("geometry", f"{file} is no NIfTI file with a transform.", "Convert it to NIfTI-1.")
    sform, qform = (get(coded=True) for get in (header.get_sform, header.get_qform))
    if not sform[1] and not qform[1]:
        raise InputRefused(
            "geometry-absent",
            f"{file} has neither sform nor qform, so left and right are unknown.",
            "Convert it from DICOM again with a tool that writes them.",
        )
    chosen = sform[0] if sform[1] else qform[0]
    if chosen is None or not np.isfinite(chosen).all() or abs(np.linalg.det(chosen[:3, :3])) < 1e-9:
        raise InputRefused("geometry", f"The transform of {file} is not invertible.", "Correct the header.")
    if sform[1] and qform[1]:
        shape = tuple(int(n) for n in image.shape[:3])
        grids = [Grid((shape[0], shape[1], shape[2]), matrix) for matrix in (sform[0], qform[0])]
        apart = float(np.abs(grids[0].corners() - grids[1].corners()).max())
        if apart > TRANSFORM_TOLERANCE_MM:
            raise InputRefused(
                "geometry-contradiction",
                f"The sform and qform of {file} place its corners {apart:.1f} mm apart.",
                "Find out which is right, and set the other to it or its code to zero.",
            )
    return np.asarray(chosen, dtype=np.float64)


def _check_scalar(file: Path, shape: tuple[int, ...], dtype: np.dtype[Any], components: int = 1) -> None:
    if dtype.names or components != 1 or dtype.kind == "c":
        kind = "complex" if dtype.kind == "c" else "colour or vector"
        raise InputRefused("not-scalar", f"{file} holds {kind} values.", "Give a grey-scale image.")
    if len(shape) != 3 or min(shape) < 2:
        sides = " x ".join(str(n) for n in shape)
        remedy = "Split it into one file for each volume." if len(shape) > 3 else "Give a three-dimensional image."
        raise InputRefused("not-3d", f"{file} has {sides} voxels, not three dimensions.", remedy)


def _check_shear(file: Path, grid: Grid) -> None:
    axes = grid.axes
    shear = float(np.abs(axes @ axes.T - np.eye(3)).max())
    if shear > SHEAR_TOLERANCE:
        raise InputRefused(
            "geometry-shear",
            f"The axes of {file} are not perpendicular (cosine {shear:.3f}).",
            "Resample it to a grid with perpendicular axes, as gantry-tilted data must be.",
        )


def _check_payload(file: Path, needed: int) -> None:
    """Refuse a NIfTI file whose bytes end early or whose compression is broken."""
    size = file.stat().st_size
    if file.name.lower().endswith(".gz"):
        size = 0
        try:
            with gzip.open(file) as stream:
                while block := stream.read(1 << 22):  # to the end, where the checksum stands
                    size += len(block)
        except (EOFError, OSError, zlib.error) as error:
            raise _damaged(file, error) from error
    if size < needed:
        raise _damaged(file, f"it holds {size} bytes and its header asks for {needed}")


def _read_itk(file: Path) -> Volume:
    if file.suffix.lower() in (".mha", ".mhd"):
        _check_metaimage_header(file)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _damaged(file, str(error).strip().splitlines()[-1]) from error
    shape = tuple(int(n) for n in reader.GetSize())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    complex_kinds = (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)
    kind = np.dtype(np.complex64 if reader.GetPixelIDValue() in complex_kinds else np.float32)
    _check_scalar(file, shape, kind, reader.GetNumberOfComponents())
    _check_memory(file, math.prod(shape))
    _check_itk_payload(file)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _damaged(file, str(error).strip().splitlines()[-1]) from error
    if image.GetDimension() == 4:
        image = image[:, :, :, 0]
    try:
        return from_sitk(sitk.Cast(image, sitk.sitkFloat32))
    except ValueError as error:
        text = f"The geometry of {file} cannot be used: {error}"
        raise InputRefused("geometry", text, "Correct the header.") from error


def _check_metaimage_header(file: Path) -> None:
    """Refuse a MetaImage header whose counts do not fit its dimensions: ITK reads beyond its memory on one."""
    with file.open("rb") as stream:
        head = stream.read(1 << 16).partition(b"ElementDataFile")[0].decode("latin-1")
    pairs = (line.partition("=") for line in head.splitlines())
    fields = {key.strip().lower(): value.split() for key, _, value in pairs}
    dimensions = " ".join(fields.get("ndims", []))
    if dimensions not in ("2", "3", "4"):
        raise _damaged(file, f"its NDims is {dimensions[:40]!r}")
    n = int(dimensions)
    wanted = {"dimsize": n, "elementspacing": n, "offset": n, "transformmatrix": n * n, "centerofrotation": n}
    for name, count in wanted.items():
        values = fields.get(name)
        if (values is None and name == "dimsize") or (values is not None and len(values) != count):
            raise _damaged(file, f"its {name} has {len(values or ())} values for {n} dimensions")


def _check_itk_payload(file: Path) -> None:
    """Refuse a NRRD or MetaImage file whose data end early; ITK would fill up with zeros."""
    head, _, body = file.read_bytes().partition(b"\n\n" if file.suffix.lower() in (".nrrd", ".nhdr") else b"LOCAL")
    text = head.decode("latin-1")
    nrrd = text.startswith("NRRD")
    fields = {
        key.strip().lower(): value.strip()
        for key, _, value in (line.partition(":" if nrrd else "=") for line in text.splitlines())
        if value
    }
    placed = ({"space", "space directions"},) if nrrd else ({"transformmatrix"}, {"orientation"}, {"rotation"})
    if not any(each <= fields.keys() for each in placed):
        raise InputRefused(
            "geometry-absent",
            f"{file} does not say how its axes lie in space, so left and right are unknown.",
            "Convert it from DICOM again with a tool that writes directions.",
        )
    data = body if nrrd else body.split(b"\n", 1)[-1]
    detached = fields.get("data file") or fields.get("datafile")
    other = fields.get("elementdatafile")
    if detached or other:
        target = file.parent / (detached or other or "")
        if not target.is_file():
            raise _damaged(file, f"its data file {target.name} is missing")
        data = target.read_bytes()
    sides = fields.get("sizes") or fields.get("dimsize") or ""
    try:
        voxels = math.prod(int(n) for n in sides.split())
    except ValueError as error:
        raise _damaged(file, f"its sizes {sides!r} are no whole numbers") from error
    if nrrd:
        encoding = fields.get("encoding", "raw")
        packed = encoding in ("gzip", "gz")
        itemsize = _nrrd_itemsize(fields.get("type", "")) if packed or encoding == "raw" else 0
    else:
        packed = fields.get("compresseddata", "false").lower() == "true"
        kind = fields.get("elementtype", "")
        itemsize = _ITK_SIZES.get(kind, {"MET_FLOAT": 4, "MET_DOUBLE": 8}.get(kind, 0))
    if packed:
        try:
            data = zlib.decompress(data, wbits=47)  # 47: gzip or zlib, whichever the header shows
        except zlib.error as error:
            raise _damaged(file, error) from error
    if len(data) < voxels * itemsize:
        raise _damaged(file, f"it holds {len(data)} bytes of {voxels * itemsize}")


def _nrrd_itemsize(kind: str) -> int:
    """Bytes of one value of a NRRD type, 0 where unknown."""
    words = kind.replace("unsigned", "").replace("signed", "").split()
    word = (words[0] if words else "").removesuffix("_t").removeprefix("u")
    sizes = {"char": 1, "int8": 1, "short": 2, "int16": 2, "int": 4, "int32": 4, "float": 4, "double": 8}
    return {**sizes, "long": 8, "longlong": 8, "int64": 8}.get(word, 0)
