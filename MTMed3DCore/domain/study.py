"""Every check that can be made of one analysed study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.domain.agent import agent_check
from MTMed3DCore.domain.anatomy import brain_checks, tissue_checks
from MTMed3DCore.domain.cavity import cavity_checks
from MTMed3DCore.domain.check import DomainCheck
from MTMed3DCore.domain.sample import Mask, take_sample
from MTMed3DCore.domain.uncertainty import entropy_check, mirror_check
from MTMed3DCore.domain.values import ct_checks
from MTMed3DCore.findings import WHOLE_TUMOUR

if TYPE_CHECKING:
    from MTMed3DCore.preparation import PreparedStudy
    from MTMed3DCore.study import Study


def check_study(
    study: Study,
    prepared: PreparedStudy,
    regions: npt.NDArray[np.floating[Any]],
    threshold: float,
    entropy_limit: float | None = None,
    differing: float | None = None,
) -> tuple[DomainCheck, ...]:
    """Measure a study; what it is too coarse or too small for is left out.

    Args:
        study: with the intensities that were read.
        prepared: the same on the working grid.
        regions: probabilities (3, X, Y, Z) of TC, WT, ET on the working grid.
        threshold: from which a voxel belongs to the whole tumour.
        entropy_limit: of the bundle, in bits; without one the entropy is not judged.
        differing: `mirror_disagreement` of the study, where it was asked for.
    """
    record = prepared.record
    checks = ct_checks(study.sequences, None if record is None else record.brain)
    checks += statistics(prepared, regions[WHOLE_TUMOUR] >= threshold)
    doubts = [mirror_check(differing)]
    if entropy_limit is not None:
        doubts.append(entropy_check(regions, threshold, entropy_limit))
    return (*checks, *(each for each in doubts if each is not None))


def statistics(prepared: PreparedStudy, tumour: Mask) -> list[DomainCheck]:
    """What is measured on the working grid.

    Args:
        prepared: the study.
        tumour: bool (X, Y, Z) on the working grid.
    """
    record, spacing = prepared.record, float(prepared.grid.spacing.mean())
    volume = float(prepared.brain.sum()) * spacing**3 / 1000 if record is None else record.brain_ml
    checks = brain_checks(prepared.brain, spacing, volume)
    sample = take_sample(prepared.image, prepared.brain, tumour, spacing)
    if sample.speaks:
        checks += [*tissue_checks(sample), agent_check(sample), *cavity_checks(sample)]
    return checks
