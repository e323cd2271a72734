"""Synthetic brain tumour studies: anatomy, gliomas and MR contrast from seeded randomness, with exact truth."""

from MTMed3DCore.synthetic.family import FAMILIES, Family
from MTMed3DCore.synthetic.files import write_study
from MTMed3DCore.synthetic.study import DEFAULT_SHAPE, DEFAULT_SPACING_MM, SyntheticStudy, make_study

__all__ = ["DEFAULT_SHAPE", "DEFAULT_SPACING_MM", "FAMILIES", "Family", "SyntheticStudy", "make_study", "write_study"]
