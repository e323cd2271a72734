"""Data lists: which labelled studies there are, their grades and boxes, and the folds that they are split into."""

from MTMed3DCore.datalist.building import build_datalist
from MTMed3DCore.datalist.case import Case, DataList, Skipped
from MTMed3DCore.datalist.folds import assign_folds

__all__ = ["Case", "DataList", "Skipped", "assign_folds", "build_datalist"]
