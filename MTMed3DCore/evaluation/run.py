"""Every case of a list through a model, or out of earlier results, one row a case; an interrupted run goes on."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import MTMed3DCore
from MTMed3DCore.bundles import Bundle
from MTMed3DCore.datalist.case import Case, DataList, box_document
from MTMed3DCore.errors import Cancelled, InputRefused, ModelRefused, MTMed3DError, WrongUse
from MTMed3DCore.evaluation.files import ANALYSES, ROWS, SETTINGS, case_name, read_json, write_json
from MTMed3DCore.evaluation.results import UNDETECTED, CaseResult, Failure
from MTMed3DCore.evaluation.scoring import score_case
from MTMed3DCore.exports import FINDINGS, read_findings
from MTMed3DCore.exports.json_file import read_document
from MTMed3DCore.findings import Findings
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.study import Study
from MTMed3DCore.training.examples import read_images

ROW_FORMAT = 1
"""Raise it whenever a measure changes, so that rows of an older version are measured again."""
TASKS = ("segmentation", "detection", "grading")


class Source(Protocol):
    """Where the findings of a case come from."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this source from another one, in JSON types."""

    def tasks(self, cases: Sequence[Case]) -> tuple[str, ...]:
        """What of `TASKS` the findings of these cases are for."""

    def fingerprint(self, case: Case) -> Any:
        """What the findings of a case depend on beside the case's own files, in JSON types."""

    def find(self, case: Case, study: Study, progress: Progress) -> tuple[Findings, Path]:
        """Findings of a case and the folder in which they lie."""


@dataclass(frozen=True)
class ModelSource:
    """A model that analyses each case as ``mtmed3d analyze`` does.

    Args:
        bundle, network: the model, loaded.
        folder: of the evaluation; analyses are written below it.
        device, precision: as in `MTMed3DCore.inference.analyze`.
    """

    bundle: Bundle
    network: Any
    folder: Path
    device: str = "auto"
    precision: str = "auto"

    @property
    def identity(self) -> dict[str, Any]:
        """Name, version, hash and training of the model."""
        return {"model": asdict(self.bundle.identity)}

    def tasks(self, cases: Sequence[Case]) -> tuple[str, ...]:
        """Those of the network."""
        return tuple(self.bundle.network_config.get("tasks", TASKS))

    def fingerprint(self, case: Case) -> Any:
        """The weights, the settings with which they are read, and the precision that ``auto`` means here."""
        from MTMed3DCore.inference import choose_device, choose_precision

        precision = choose_precision(self.precision, choose_device(self.device))
        return [self.bundle.sha256, self.bundle.settings.to_dict(), precision]

    def find(self, case: Case, study: Study, progress: Progress) -> tuple[Findings, Path]:
        """Analyse the case, and write everything that an analysis writes."""
        from MTMed3DCore.inference import analyze

        findings = analyze(study, self.bundle, self.device, self.precision, progress, network=self.network)
        target = self.folder / ANALYSES / case_name(case.id)
        findings.write(target, overwrite=True, progress=progress)
        return findings, target


@dataclass(frozen=True)
class StoredSource:
    """Output folders of ``mtmed3d analyze``, one subfolder a case."""

    folder: Path

    @property
    def identity(self) -> dict[str, Any]:
        """The folder; which model it was, each case says."""
        return {"predictions": str(self.folder.resolve())}

    def place(self, case: Case) -> Path:
        """Where the findings of a case lie."""
        named = self.folder / case_name(case.id)
        beside = self.folder / case.images["t1ce"].path.parent.name
        return beside if not named.is_dir() and (beside / FINDINGS).is_file() else named

    def tasks(self, cases: Sequence[Case]) -> tuple[str, ...]:
        """What every model among the findings shows that it does: they do not say what it was made for.

        A model that grades no case does not grade; one that finds lesions, but never a voxel of tumour, does not
        segment; and an analysis warns where there is no detector.
        """
        by_model: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for case in cases:
            with suppress(InputRefused):  # which the case says for itself when it is measured
                document = read_document(self.place(case) / FINDINGS)
                by_model[document["model"]["sha256"]].append(document)
        return tuple(task for task in TASKS if all(_shown(task, found) for found in by_model.values()))

    def fingerprint(self, case: Case) -> Any:
        """Size and time of every file of the findings."""
        return [(f.name, *_stat(f)) for f in sorted(self.place(case).glob("*.*")) if f.suffix in (".json", ".gz")]

    def find(self, case: Case, study: Study, progress: Progress) -> tuple[Findings, Path]:
        """Read them; those of another study's grid are refused."""
        findings = read_findings(self.place(case))
        if not findings.grid.same_as(study.grid):
            text = f"{self.place(case)} was made on a grid {findings.grid.shape}, {case.id} has {study.grid.shape}."
            raise InputRefused("findings-grid", text, "Give the results of the studies that the list names.")
        return findings, self.place(case)


def choose_cases(listed: DataList, fold: int | None = None, ids: Sequence[str] = ()) -> tuple[Case, ...]:
    """The cases to evaluate: a fold's validation cases, those named, or all; without those that nothing is known of.

    Raises:
        WrongUse: ``case-unknown``, ``fold-unknown``.
        InputRefused: ``no-truth``, where no case has a label map, boxes or a grade.
    """
    cases = listed.cases if fold is None else listed.fold(fold)[1]
    if ids:
        known = {case.id for case in cases}
        unknown = [case_id for case_id in ids if case_id not in known]
        if unknown:
            text = f"The list{'' if fold is None else f' in fold {fold}'} has no case {unknown[0]!r}."
            raise WrongUse("case-unknown", text, "Name cases by their ids in the list.")
        cases = tuple(case for case in cases if case.id in set(ids))
    chosen = tuple(case for case in cases if case.label or case.boxes is not None or case.grade)
    if not chosen:
        text = f"None of the {len(cases)} cases has a label map, boxes or a grade."
        raise InputRefused("no-truth", text, "Evaluation compares with a truth; give a list of labelled studies.")
    return chosen


def evaluate_cases(
    cases: Sequence[Case],
    source: Source,
    folder: Path,
    tasks: Collection[str] | None = None,
    progress: Progress = silent,
    failed: Callable[[Failure], None] = lambda failure: None,
) -> tuple[list[CaseResult], list[Failure]]:
    """Measure every case; a case that is refused does not stop the others.

    Rows that an earlier run has stored are taken as they are, unless the case, its truth, the findings or the measures
    have changed since.

    Args:
        cases: with truth, see `choose_cases`.
        source: of findings.
        folder: of the evaluation.
        tasks: see `score_case`; None for all that the source offers.
        progress: may cancel; finished rows stay.
        failed: told of each case that could not be measured, at once.
    """
    tasks = source.tasks(cases) if tasks is None else tasks
    results, failures = [], []
    for number, case in enumerate(cases):
        progress("evaluate", number / len(cases), f"{case.id}, {number + 1} of {len(cases)}")
        row = folder / ROWS / f"{case_name(case.id)}.json"
        try:
            key = _key(case, source, tasks)
            result = _stored(row, key)
            if result is None:
                study = read_images(case)
                findings, place = source.find(case, study, progress)
                result = replace(score_case(case, findings, study, tasks, key), analysis=str(place.resolve()))
                write_json(row, result.to_dict())
                result = CaseResult.from_dict(result.to_dict())  # the same numbers as a run that goes on would read
            results.append(result)
        except (Cancelled, ModelRefused):
            raise  # neither would be different for the next case
        except MTMed3DError as error:
            failures.append(Failure(case.id, error.code, error.text, error.remedy))
            failed(failures[-1])
    progress("evaluate", 1.0, f"{len(results)} of {len(cases)} cases")
    return results, failures


def claim_folder(folder: Path, described: dict[str, Any], overwrite: bool) -> None:
    """Begin an evaluation in a folder, or go on with the same one.

    Args:
        folder: new, empty, or of the same evaluation.
        described: what the evaluation is of, in JSON types.
        overwrite: take the folder over from another evaluation; files are replaced as new ones are written.

    Raises:
        WrongUse: ``output-not-folder``, ``output-not-empty``, ``evaluation-differs``.
    """
    if folder.exists() and not folder.is_dir():
        raise WrongUse("output-not-folder", f"{folder} is a file.", "Give a folder for the results.")
    path = folder / SETTINGS
    if not overwrite and path.is_file():
        earlier = read_json(path, "description of an evaluation", "Give another folder, or --overwrite.")
        different = [name for name in described if earlier.get(name) != json.loads(json.dumps(described[name]))]
        if different:
            named = ", ".join(name.replace("_", " ") for name in different)
            text = f"{folder} holds another evaluation; this one differs in: {named}."
            raise WrongUse("evaluation-differs", text, "Give another folder, or --overwrite to replace it.")
        return
    if not overwrite and folder.is_dir() and any(not each.name.startswith(".") for each in folder.iterdir()):
        text = f"The output folder {folder} is not empty."
        raise WrongUse("output-not-empty", text, "Give another folder, or --overwrite.")
    write_json(path, described)


def _shown(task: str, documents: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one model's ``findings.json`` speak for a task."""
    match task:
        case "segmentation":
            tumour = any(each["volumes_ml"]["whole_tumour"] > 0 for each in documents)
            return tumour or not any(each["lesions"] for each in documents)
        case "grading":
            return any(_graded_by_model(each["grade"]) for each in documents)
    return not any(warning["code"] == UNDETECTED for each in documents for warning in each["warnings"])


def _graded_by_model(grade: Mapping[str, Any] | None) -> bool:
    """Whether a grade has the model's probability; a reader's has 0 or 1 where the model gave none."""
    return grade is not None and (grade.get("by") != "reader" or 0 < grade["probability_hgg"] < 1)


def _key(case: Case, source: Source, tasks: Collection[str]) -> str:
    files = [*case.images.values(), *([case.label] if case.label else [])]
    images = [(str(f.path), f.index, *_stat(f.path)) for f in files]
    boxes = None if case.boxes is None else [box_document(box) for box in case.boxes]
    truth = [case.patient, case.fold, case.grade, case.convention, boxes]
    known = [ROW_FORMAT, MTMed3DCore.__version__, images, truth, sorted(tasks), source.fingerprint(case)]
    return sha256(json.dumps(known).encode()).hexdigest()[:32]


def _stat(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _stored(row: Path, key: str) -> CaseResult | None:
    """A stored row, or None where there is none or it is of something else."""
    try:
        result = CaseResult.from_dict(json.loads(row.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return result if result.key == key else None
