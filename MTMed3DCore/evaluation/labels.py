"""The label conventions that brain tumour data comes in, and one to compare them in.

========= =============== ====== ============= =========
years     necrotic core   oedema non-enhancing enhancing
========= =============== ====== ============= =========
2012-2016 1               2      3             4
2017-2022 1 (both)        2      1             4
2023-     1 (both)        2      1             3
Decathlon 2 (both)        1      2             3
========= =============== ====== ============= =========
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.findings import ENHANCING, NECROTIC_CORE, OEDEMA

Labels = npt.NDArray[np.uint8]


class LabelConvention(Enum):
    """A table from the values in a file to ours; the index is the value in the file."""

    BRATS_2013 = (0, NECROTIC_CORE, OEDEMA, NECROTIC_CORE, ENHANCING)
    BRATS_2017 = (0, NECROTIC_CORE, OEDEMA, None, ENHANCING)
    BRATS_2023 = (0, NECROTIC_CORE, OEDEMA, ENHANCING)
    MSD = (0, OEDEMA, NECROTIC_CORE, ENHANCING)


def recognise_convention(values: npt.ArrayLike) -> LabelConvention:
    """The convention that a set of label values belongs to.

    A 3 beside a 4 is non-enhancing core, a 3 without any 4 is enhancing tumour; a file of the old convention without
    enhancing tumour cannot be told apart from a new one, and the Decathlon's values not from those of 2023, so give the
    convention where you know it.
    """
    present = set(np.unique(np.asarray(values)).tolist())
    if {3, 4} <= present:
        return LabelConvention.BRATS_2013
    return LabelConvention.BRATS_2023 if 3 in present else LabelConvention.BRATS_2017


def unify_labels(array: npt.NDArray[np.generic], path: str | Path, convention: LabelConvention | None = None) -> Labels:
    """A label map of any convention in the values 1, 2 and 4.

    Args:
        array: as read from the file; whole numbers in any type.
        path: named in a refusal.
        convention: None recognises it.

    Raises:
        InputRefused: a value that is not whole or not part of the convention.
    """
    whole = np.rint(array).astype(np.int64)
    table = (convention or recognise_convention(whole)).value
    known = [value for value, ours in enumerate(table) if ours is not None]
    strange = sorted(set(np.unique(array).tolist()) - set(known))
    if strange:
        raise InputRefused(
            "label-values",
            f"{path} holds the label {strange[0]:g}, which is none of {known}.",
            "Give a label map with the BraTS values, or name its convention.",
        )
    return np.array([ours or 0 for ours in table], dtype=np.uint8)[whole]
