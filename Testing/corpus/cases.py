"""Every case of the corpus."""

from __future__ import annotations

from Testing.corpus import dicom, formats, headers, models, sequences, values
from Testing.corpus.case import Case

ALL: tuple[Case, ...] = tuple(
    case for subject in (formats, headers, values, sequences, dicom, models) for case in subject.CASES
)
