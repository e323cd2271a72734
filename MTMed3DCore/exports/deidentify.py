"""Results without a patient: another name for the study, no paths, and DICOM headers after PS3.15 Annex E.

The Basic Application Level Confidentiality Profile is met from the other side: what exported objects take from the
source is not searched for identity but rebuilt from what geometry and pixels need. Free text, names, dates and private
elements never pass, and every identifier of an instance is replaced, the same one by the same one within one result.
The date of the analysis stays, in DICOM and elsewhere.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.exports.dicom_source import DicomSources, complete
from MTMed3DCore.notice import Notice

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from MTMed3DCore.study import Study

METHOD = "DICOM PS3.15 Basic Profile, by rebuilding"
PSEUDONYM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NUMBERS = frozenset({"DS", "FD", "FL", "IS", "US", "UL", "SS", "SL", "CS", "AT"})
_GROUPS = frozenset({"SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"})
_PLACES = frozenset({"PatientPosition", "PatientOrientation"})
_PERSONAL = frozenset(
    {"SmokingStatus", "PregnancyStatus", "EthnicGroup", "ResponsiblePersonRole", "BurnedInAnnotation"}
)
_STANDARD_ROOT = "1.2.840.10008."
"""UIDs of the standard itself, which name classes and not instances."""


def check_pseudonym(name: str) -> None:
    """Refuse a name that could not stand for a patient in every kind of file.

    Raises:
        WrongUse: ``pseudonym``.
    """
    if not PSEUDONYM.fullmatch(name):
        remedy = "Use up to 64 letters, digits, dashes and underscores, beginning with a letter or digit."
        raise WrongUse("pseudonym", f"{name!r} is no pseudonym.", remedy)


def deidentified_study(study: Study, pseudonym: str) -> Study:
    """A study under another name, whose files are known by their sequence only.

    Args:
        study: its name, paths, and texts of its series are taken out of its warnings.
        pseudonym: letters, digits, dash and underscore.

    Raises:
        WrongUse: ``pseudonym``, no such name.
    """
    check_pseudonym(pseudonym)
    known = {study.id}
    for path in study.sources.values():
        known |= {str(path), str(path.resolve()), *path.resolve().parts[1:]}
    for series in study.series.values():
        known |= {series.name, series.header.description, series.header.protocol}
        known |= {frame.path.name for frame in series.frames}
    warnings = tuple(Notice(notice.code, _without(notice.text, known)) for notice in study.warnings)
    return replace(
        study,
        id=pseudonym,
        sources={name: Path(name) for name in study.sources},
        warnings=warnings,
        series={
            # What a report would show: free text of the scanner's user, and when the patient was examined.
            name: replace(each, header=replace(each.header, description="", protocol="", study_date="", acquired=""))
            for name, each in study.series.items()
        },
        deidentified=True,
    )


def deidentified_sources(sources: DicomSources, pseudonym: str) -> DicomSources:
    """Headers with nothing but what exported objects need; see the module.

    Args:
        sources: headers as the scanner wrote them.
        pseudonym: stands for the patient's name and identifier.
    """
    # Nobody can try out which identifier was replaced, not even whoever knows the old one.
    key = secrets.token_bytes(32)
    return DicomSources(
        [_rebuilt(dataset, pseudonym, key) for dataset in sources.t1ce],
        [_rebuilt(dataset, pseudonym, key) for dataset in sources.others],
    )


def _without(text: str, known: Iterable[str | None]) -> str:
    for part in sorted((each for each in known if each and len(each) > 2), key=len, reverse=True):
        text = text.replace(part, "[removed]")
    return text


def _rebuilt(dataset: Dataset, pseudonym: str, key: bytes) -> Dataset:
    from pydicom.dataset import FileMetaDataset
    from pydicom.sr.codedict import codes

    rebuilt = _kept(dataset, key, _GROUPS)
    if hasattr(dataset, "file_meta"):
        rebuilt.file_meta = FileMetaDataset(_kept(dataset.file_meta, key, frozenset()))
    rebuilt.PatientName, rebuilt.PatientID = f"{pseudonym}^Deidentified", pseudonym
    rebuilt.PatientIdentityRemoved, rebuilt.DeidentificationMethod = "YES", METHOD
    code = codes.DCM.BasicApplicationConfidentialityProfile
    method = _new()
    method.CodeValue, method.CodingSchemeDesignator, method.CodeMeaning = code.value, "DCM", code.meaning
    rebuilt.DeidentificationMethodCodeSequence = [method]
    complete(rebuilt)
    return rebuilt


def _new() -> Dataset:
    from pydicom.dataset import Dataset

    return Dataset()


def _kept(dataset: Any, key: bytes, sequences: frozenset[str] | None) -> Dataset:
    """Numbers, keywords of the standard and replaced identifiers; of sequences those named, or with None all."""
    kept = _new()
    for element in dataset:
        name = element.keyword
        if not name or element.tag.is_private or name in _PERSONAL:
            continue
        if name.startswith("Patient") and name not in _PLACES:
            continue
        if element.VR in _NUMBERS:
            setattr(kept, name, element.value)
        elif element.VR == "UI":
            setattr(kept, name, _replaced(element.value, key))
        elif element.VR == "SQ" and (sequences is None or name in sequences):
            setattr(kept, name, [_kept(item, key, None) for item in element.value])
    return kept


def _replaced(value: Any, key: bytes) -> Any:
    if value is None or isinstance(value, str):
        uid = str(value or "")
        if not uid or uid.startswith(_STANDARD_ROOT):
            return uid
        digest = hashlib.blake2b(uid.encode(), key=key, digest_size=16).digest()
        return f"2.25.{int.from_bytes(digest, 'big')}"  # PS3.5 B.2
    return [_replaced(each, key) for each in value]
