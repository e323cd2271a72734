"""The network's own doubt: the entropy of what it segments, and whether the mirror image says the same.

Entropy costs nothing and means something only beside what the same network reaches on studies of its kind, so its
limit belongs to the bundle. The mirror image costs a second pass and has a limit of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from MTMed3DCore.domain.check import DomainCheck
from MTMed3DCore.domain.sample import Mask
from MTMed3DCore.findings import WHOLE_TUMOUR

if TYPE_CHECKING:
    import torch

    from MTMed3DCore.inference.focus import Sides
    from MTMed3DCore.inference.settings import InferenceSettings
    from MTMed3DCore.inference.tiling import Triple
    from MTMed3DCore.inference.windows import RawResult
    from MTMed3DCore.preparation import PreparedStudy
    from MTMed3DCore.progress import Progress

MOST_DISAGREEMENT = 0.5
_MEANING = (
    "The model is unsure of what it sees; what it reports may be anything but a glioma, or not there at all. Check "
    "every region by eye."
)


def entropy_check(regions: npt.NDArray[np.floating[Any]], threshold: float, limit: float) -> DomainCheck | None:
    """Mean entropy of the whole tumour's probability over what is taken for tumour; None where nothing is.

    Args:
        regions: probabilities (3, X, Y, Z) of TC, WT, ET.
        threshold: from which a voxel belongs to the whole tumour.
        limit: the bundle's, in bits.
    """
    value = mean_entropy(regions, threshold)
    if value is None:
        return None
    return DomainCheck(
        "uncertain-regions", "the mean entropy inside the segmented tumour", value, None, limit, "bit", _MEANING
    )


def mean_entropy(regions: npt.NDArray[np.floating[Any]], threshold: float) -> float | None:
    """Bits a voxel, over the voxels of the whole tumour; 0 where all are certain, 1 where all are even."""
    whole = regions[WHOLE_TUMOUR]
    likely = whole[whole >= threshold].astype(np.float64)
    if not likely.size:
        return None
    return float((entr(likely) + entr(1 - likely)).mean() / np.log(2))


def mirror_check(value: float | None) -> DomainCheck | None:
    """`disagreement` of the mirror image as a check; None where there is none."""
    if value is None:
        return None
    return DomainCheck(
        "uncertain-mirror", "the disagreement (1 - Dice) between the study and its mirror image", value, None,
        MOST_DISAGREEMENT, "", _MEANING,
    )  # fmt: skip


def disagreement(a: Mask, b: Mask) -> float | None:
    """1 - Dice of two masks: 0 for the same one, 1 for two that share nothing; None for two empty ones."""
    total = int(a.sum()) + int(b.sum())
    return None if total == 0 else 1 - 2 * int((a & b).sum()) / total


def mirror_disagreement(
    network: Any,
    prepared: PreparedStudy,
    settings: InferenceSettings,
    raw: RawResult,
    device: torch.device,
    precision: str = "fp32",
    progress: Progress | None = None,
    *,
    window: Triple | None = None,
    batch: int = 1,
    lean: bool = False,
    focus: Sides | None = None,
    on_host: bool = False,
) -> float | None:
    """Segment the mirror image of a study, and compare its whole tumour with the plain one's.

    A model that averages over the mirror image anyhow is compared in the same way: what the plain image alone would
    have given is twice that average less what the mirror image gives.

    Args:
        network: a `TaskNetwork` in eval mode on `device`.
        prepared: the study.
        settings: the model's.
        raw: what the network said of the study.
        device, precision, progress, window, batch, lean, focus, on_host: as for
            `MTMed3DCore.inference.windows.run_network`.

    Returns:
        1 - Dice; None where neither view shows tumour.
    """
    from MTMed3DCore.inference.windows import run_network
    from MTMed3DCore.progress import silent

    # The first axis of the working grid runs between the left and the right.
    mirrored = replace(prepared, image=prepared.image[:, ::-1].copy(), brain=prepared.brain[::-1].copy())
    plain = replace(settings, mirrored=False)
    way: dict[str, Any] = {"window": window, "batch": batch, "lean": lean, "focus": focus, "on_host": on_host}
    seen = run_network(SegmentationOnly(network), mirrored, plain, device, precision, progress or silent, **way)
    other = seen.regions[WHOLE_TUMOUR, ::-1]
    here = raw.regions[WHOLE_TUMOUR]
    if settings.mirrored:
        here = 2 * here - other
    return disagreement(here >= settings.whole_tumour_threshold, other >= settings.whole_tumour_threshold)


class SegmentationOnly:
    """A network's encoder and segmentation, without the time that its boxes and its grade would take."""

    tasks: Sequence[str] = ("segmentation",)

    def __init__(self, network: Any) -> None:
        self.encode, self.segment = network.encode, network.segment
        self.level_strides = getattr(network, "level_strides", None)

    def detect(self, features: Any) -> None:
        """No boxes."""
