"""The head as a whole: where it is, and copies of its images that are even, isotropic and coarse enough to search."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

BIAS_MM = 5.0
"""Voxel distance at which the coils' shading, which is broad, is estimated."""
_BIAS_ITERATIONS = [40, 40]


def isotropic(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """A copy with isotropic voxels over the same field of view, smoothed first along axes that become coarser."""
    spacing = np.asarray(image.GetSpacing())
    extent = spacing * image.GetSize()
    smoothed = sitk.Cast(image, sitk.sitkFloat32)
    # Half the new voxel distance keeps what the new voxels can hold; axes that are coarse already need none.
    sigma = [0.5 * spacing_mm if step < 0.9 * spacing_mm else 0.0 for step in spacing]
    for axis, width in enumerate(sigma):
        if width and image.GetSize()[axis] >= 4:
            smoothed = sitk.RecursiveGaussian(smoothed, width, False, sitk.RecursiveGaussianImageFilter.ZeroOrder, axis)
    size = np.maximum(1, np.round(extent / spacing_mm)).astype(int)
    direction = np.reshape(image.GetDirection(), (3, 3))
    first = np.asarray(image.GetOrigin()) + direction @ ((spacing_mm - spacing) / 2 + (extent - size * spacing_mm) / 2)
    edge = sitk.ZeroFluxNeumannPad(smoothed, [1] * 3, [1] * 3)  # the outermost half voxel has a value too
    return sitk.Resample(edge, size.tolist(), sitk.Transform(), sitk.sitkLinear, first.tolist(), [spacing_mm] * 3,
                         image.GetDirection(), 0.0, sitk.sitkFloat32)  # fmt: skip


def head_mask(image: sitk.Image) -> sitk.Image:
    """Uint8 mask of everything that is not air: above Otsu's threshold, joined, holes filled."""
    values = sitk.GetArrayViewFromImage(image)
    sample = values[::2, ::2, ::2]
    clipped = sitk.Clamp(image, sitk.sitkFloat32, float(values.min()), float(np.percentile(sample, 99)))
    # Of three classes (air, dim, bright) the lower threshold is that of the air.
    bright = sitk.OtsuMultipleThresholds(clipped, 2, 0, 128) > 0
    spacing = image.GetSpacing()[0]
    closed = sitk.BinaryMorphologicalClosing(bright, [max(1, round(6.0 / spacing))] * 3)
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(closed), sortByObjectSize=True)
    return sitk.Cast(sitk.BinaryFillhole(parts == 1), sitk.sitkUInt8)


def settled(image: sitk.Image) -> sitk.Image:
    """The image with its place rounded to what registration can tell, at most about 0.02 mm away.

    The same scan differs between DICOM and NIfTI in the last digits of its place, and an optimiser makes visible
    differences of them.
    """
    rounded = np.round(np.reshape(image.GetDirection(), (3, 3)), 4)
    left, _, right = np.linalg.svd(rounded)
    image = sitk.Image(image)
    image.SetDirection((left @ right).ravel().tolist())
    image.SetSpacing(np.round(image.GetSpacing(), 4).tolist())
    image.SetOrigin(np.round(image.GetOrigin(), 2).tolist())
    return image


def bias_corrected(image: sitk.Image) -> sitk.Image:
    """A copy without the coils' shading (N4); the image itself where the correction cannot be estimated."""
    coarse = isotropic(image, BIAS_MM)
    mask = head_mask(coarse)
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations(_BIAS_ITERATIONS)
    lowest = float(sitk.GetArrayViewFromImage(coarse).min())
    try:
        correction.Execute(coarse - min(0.0, lowest) + 1.0, mask)
        field = correction.GetLogBiasFieldAsImage(image)
    except RuntimeError:  # too small for the splines, or an empty mask
        return sitk.Cast(image, sitk.sitkFloat32)
    return sitk.Cast(image, sitk.sitkFloat32) / sitk.Cast(sitk.Exp(field), sitk.sitkFloat32)
