"""The three segmented regions as every export shows them: label value, name, colour and standard codes.

Codes: category and types of DICOM CID 7150 and CID 7159 (SNOMED CT), enhancing lesion from the NCI Thesaurus, because
SNOMED CT has no concept for it. The colours of necrosis and oedema are those of 3D Slicer's terminology for the same
codes; it has none for an enhancing lesion, which gets a strong colour beside the two pale ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from MTMed3DCore.findings import ENHANCING, NECROTIC_CORE, OEDEMA

TYPE_CONTEXT = "Segmentation category and type - DICOM master list"
ANATOMY_CONTEXT = "Anatomic codes - DICOM master list"
LESION_COLOR = (255, 153, 0)
"""Colour of lesion boxes, RGB 0 to 255."""


@dataclass(frozen=True)
class Code:
    """A coded concept: value, coding scheme designator (``SCT``, ``NCIt``) and meaning."""

    value: str
    scheme: str
    meaning: str

    @property
    def triplet(self) -> str:
        """As a 3D Slicer terminology entry spells it: ``scheme^value^meaning``."""
        return f"{self.scheme}^{self.value}^{self.meaning}"


MORPHOLOGICALLY_ALTERED = Code("49755003", "SCT", "Morphologically Altered Structure")
BRAIN = Code("12738006", "SCT", "Brain")


@dataclass(frozen=True)
class Region:
    """One segmented region.

    Args:
        key: its name in `MTMed3DCore.findings.REGION_LABELS` and its segment ID in 3D Slicer.
        label: its value in the label map.
        name: for a person.
        color: RGB, 0 to 255.
        type: DICOM Segmented Property Type; the category is `MORPHOLOGICALLY_ALTERED`, the anatomy is `BRAIN`.
    """

    key: str
    label: int
    name: str
    color: tuple[int, int, int]
    type: Code

    @property
    def rgb(self) -> tuple[float, float, float]:
        """Colour with components 0 to 1."""
        red, green, blue = (component / 255 for component in self.color)
        return red, green, blue

    @property
    def terminology_entry(self) -> str:
        """Value of the ``TerminologyEntry`` tag of a 3D Slicer segment."""
        parts = (TYPE_CONTEXT, MORPHOLOGICALLY_ALTERED.triplet, self.type.triplet, "^^")
        return "~".join((*parts, ANATOMY_CONTEXT, BRAIN.triplet, "^^"))


REGIONS = (
    Region("necrotic_core", NECROTIC_CORE, "Necrotic core", (216, 191, 216), Code("6574001", "SCT", "Necrosis")),
    Region("oedema", OEDEMA, "Oedema", (140, 224, 228), Code("79654002", "SCT", "Edema")),
    Region("enhancing", ENHANCING, "Enhancing tumour", (226, 74, 51), Code("C113842", "NCIt", "Enhancing Lesion")),
)
"""In the order of their label values."""
