"""What is measured on a label map, where the standards say: on the T1ce grid as it came in."""

from __future__ import annotations

from MTMed3DCore.measurements.comparison import compare
from MTMed3DCore.measurements.laterality import laterality, midplane
from MTMed3DCore.measurements.rano import bidimensional, sum_of_products

__all__ = ["bidimensional", "compare", "laterality", "midplane", "sum_of_products"]
