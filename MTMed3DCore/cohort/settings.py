"""What is asked of every study of a cohort, and how a study is known to be done already."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from MTMed3DCore import __version__
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.hashing import file_sha256

if TYPE_CHECKING:
    from MTMed3DCore.bundles import Bundle
    from MTMed3DCore.cohort.studies import Request
    from MTMed3DCore.findings import Findings
    from MTMed3DCore.study import Study

RESULT_FORMAT = 2
"""Raise it whenever the same inputs, model and settings give another result within one version of MTMed3D."""
IN_HAND = 3
"""Studies that a process works on at a time: one is read, one computed, one written."""


@dataclass(frozen=True)
class CohortSettings:
    """What is asked of every study; sent to the workers of a cluster as it is.

    Args:
        model: the bundle's folder.
        model_sha256: of its weights; a machine that finds others there refuses to work.
        device, precision: as in `MTMed3DCore.inference.analyze`.
        write: options of `MTMed3DCore.exports.write_findings`, in JSON types.
        more: what else a result depends on, in JSON types.
        check: refuses a study whose result could not be written as asked, before it is analysed.
        also: writes what lies outside the output folder; called before the result is committed, maybe more than once.
        overwrite: do studies again that are done, and write into folders that hold something else.
        in_hand: studies that a process works on at a time; 1 reads, computes and writes in turn.
        mode, check_uncertainty, compiled: as in `MTMed3DCore.inference.analyze`.
        run: tells one run from another.
        version: of MTMed3D; a machine with another one refuses to work.
    """

    model: Path
    model_sha256: str
    device: str = "auto"
    precision: str = "auto"
    write: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Study], None] | None = None
    also: Callable[[Findings], None] | None = None
    overwrite: bool = False
    in_hand: int = IN_HAND
    mode: str = "exact"
    check_uncertainty: bool = False
    compiled: bool = False
    run: str = field(default_factory=lambda: uuid4().hex)
    version: str = __version__


def fingerprint(settings: CohortSettings, bundle: Bundle) -> dict[str, Any]:
    """What a result depends on beside the study, in JSON types.

    The device is left out, as it is when a model is evaluated, and whether the network is compiled: to go on elsewhere
    is no reason to begin again. Every result says on which device and in which precision it was computed.
    """
    return {
        "format": RESULT_FORMAT,
        "mtmed3d": settings.version,
        "model": bundle.sha256,
        "network": bundle.network_config,
        "applied": bundle.settings.to_dict(),
        "precision": settings.precision,
        "write": dict(settings.write),
        "mode": settings.mode,
        "check_uncertainty": settings.check_uncertainty,
        "more": dict(settings.more),
    }


def known_inputs(request: Request, earlier: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Every file of a study with its SHA-256.

    Args:
        request: the study.
        earlier: what this function gave for it before. A file of the same path, size and time of change is taken for
            the same; any other is read.

    Returns:
        ``name`` (the sequence, or a DICOM file's path in its folder), ``path``, ``volume``, ``bytes``, ``modified_ns``
        and ``sha256`` of each, in JSON types.

    Raises:
        InputRefused: ``file-missing``; what `MTMed3DCore.sequences.find_sequences` refuses.
    """
    known = {str(each.get("path")): each for each in earlier}
    found = []
    for name, path in _files(request).items():
        path = path.expanduser().absolute()
        try:
            stat = path.stat()
        except FileNotFoundError as error:
            text = f"{path} does not exist."
            raise InputRefused("file-missing", text, "Give the path of an image file.") from error
        entry: dict[str, Any] = {"name": name, "path": str(path), "volume": request.volumes.get(name)}
        entry |= {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}
        same = known.get(str(path), {})
        unchanged = all(same.get(each) == entry[each] for each in ("bytes", "modified_ns"))
        entry["sha256"] = same["sha256"] if unchanged and "sha256" in same else file_sha256(path)
        found.append(entry)
    return found


def study_key(inputs: Sequence[Mapping[str, Any]], depends_on: Mapping[str, Any]) -> str:
    """What a result is known by: another content of a file, model or setting gives another key, another place does not.

    Args:
        inputs: of `known_inputs`.
        depends_on: of `fingerprint`.
    """
    content = sorted((each["name"], each["volume"] or 0, each["sha256"]) for each in inputs)
    return sha256(json.dumps([content, depends_on], sort_keys=True).encode()).hexdigest()


def _files(request: Request) -> dict[str, Path]:
    from MTMed3DCore.sequences import find_sequences, holds_dicom

    if request.case is None:
        return dict(request.files)
    case = request.case.expanduser()
    if not holds_dicom(case):
        return find_sequences(case)
    files = sorted(path for path in case.rglob("*") if path.is_file())
    return {path.relative_to(case).as_posix(): path for path in files}
