"""What is measured on a label map, where the standards say: on the T1ce grid as it came in."""

from __future__ import annotations

from MTMed3DCore.measurements.comparison import compare, compare_again
from MTMed3DCore.measurements.laterality import laterality, midplane
from MTMed3DCore.measurements.rano import bidimensional, sum_of_products
from MTMed3DCore.measurements.region import longest_diameter_mm, measure_region

__all__ = [
    "bidimensional",
    "compare",
    "compare_again",
    "laterality",
    "longest_diameter_mm",
    "measure_region",
    "midplane",
    "sum_of_products",
]
