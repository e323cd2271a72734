"""`mtmed3d evaluate` from end to end: a network of random weights, ready results, failures, interruptions, folds."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from MTMed3DCore import cli
from MTMed3DCore.bundles.writing import save_bundle
from MTMed3DCore.datalist import DataList, build_datalist
from MTMed3DCore.datalist.case import Case
from MTMed3DCore.errors import Cancelled, InputRefused, WrongUse
from MTMed3DCore.evaluation.document import read_evaluation
from MTMed3DCore.evaluation.results import CaseResult
from MTMed3DCore.evaluation.run import StoredSource, choose_cases, evaluate_cases
from MTMed3DCore.evaluation.scoring import component_boxes, truth_labels
from MTMed3DCore.findings import Findings, Grade, Lesion, ModelIdentity, volumes_ml
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.json_schema import first_fault
from MTMed3DCore.networks import build_network
from MTMed3DCore.synthetic import make_study, write_study
from MTMed3DCore.training.examples import read_images

MODEL = ModelIdentity("near-truth", "1.0", "a" * 64, "nothing")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small synthetic studies, two of each grade, in two folds, with a list."""
    root = tmp_path_factory.mktemp("evaluate")
    wanted = {0: 2, 1: 2}
    seed = 0
    while any(wanted.values()):
        study = make_study(seed, (44, 50, 44), 4.0)
        seed += 1
        if study.grade is None or not wanted[study.grade]:
            continue
        wanted[study.grade] -= 1
        write_study(study, root / "studies" / ("HGG" if study.grade else "LGG") / f"BraTS19_S_{seed:02}_1")
    build_datalist([root / "studies"], folds=2).write(root / "list.json")
    return root


@pytest.fixture(scope="module")
def listed(root: Path) -> DataList:
    return DataList.read(root / "list.json")


def write_result(case: Case, folder: Path, kind: str, probability: float | None) -> None:
    """Results of a case: the truth itself, nothing, or the truth without enhancement and with a false box before it."""
    study = read_images(case)
    labels = truth_labels(case, study.grid)
    if kind == "nothing":
        labels = np.zeros_like(labels)
    if kind == "blunder":
        labels = np.where(labels == 4, 1, labels).astype(np.uint8)
    boxes, _ = component_boxes(labels, study.grid)
    scored = [(VoxelBox.from_list(box), 0.5 - 0.1 * n) for n, box in enumerate(boxes)]
    if kind == "blunder":
        scored.insert(0, (VoxelBox((0, 0, 0), (3, 3, 3)), 0.99))
    volumes = volumes_ml(labels, study.grid)
    lesions = tuple(Lesion(n, s, b.to_world(study.grid), volumes, 9.0) for n, (b, s) in enumerate(scored, start=1))
    grade = None if probability is None else Grade("HGG" if probability >= 0.5 else "LGG", probability)
    sources = {name: str(path) for name, path in study.sources.items()}
    Findings(case.id, sources, study.grid, labels, lesions, grade, MODEL).write(folder / case.id)


@pytest.fixture(scope="module")
def stored(root: Path, listed: DataList) -> Path:
    """Ready results, one of each kind and one more that is the truth itself."""
    kinds = [("truth", 0.8), ("nothing", None), ("blunder", 0.4), ("truth", 0.1)]
    for case, (kind, probability) in zip(listed.cases, kinds, strict=True):
        write_result(case, root / "stored", kind, probability)
    return root / "stored"


def evaluate(*arguments: Any) -> int:
    return cli.main(["evaluate", *map(str, arguments), "--quiet", "--resamples", "20"])


@pytest.fixture(scope="module")
def report(root: Path, stored: Path) -> Path:
    """The evaluation of the ready results."""
    assert evaluate(root / "list.json", "--predictions", stored, "-o", root / "report", "--pictures", 2) == 0
    return root / "report"


def test_the_figures_are_those_of_the_results_case_by_case(report: Path, listed: DataList) -> None:
    evaluation = read_evaluation(report)
    exact, empty, blunder, last = evaluation.results
    assert [r.id for r in evaluation.results] == [case.id for case in listed.cases]
    assert {(s.dice, s.hd95_mm, s.lesion_dice, s.missed) for s in exact.methods["model"].regions.values()} == {
        (1, 0, 1, 0)
    }
    whole = empty.methods["model"].regions["whole_tumour"]
    assert (whole.dice, whole.hd95_mm, whole.found_ml) == (0, 374, 0)
    assert whole.missed == whole.lesions > 0
    assert last.methods["model"].regions["tumour_core"].dice == 1
    table = evaluation.summary["segmentation"]["methods"]["model"]["whole_tumour"]
    assert table["dice"]["value"] == pytest.approx(3 / 4)
    assert table["hd95_mm"]["value"] == pytest.approx(374 / 4)
    assert 0 <= table["dice"]["low"] <= 0.75 <= table["dice"]["high"] <= 1
    detection = evaluation.summary["detection"]
    found = detection["methods"]["model"]["figures"]
    missed = len(empty.truth_boxes)
    assert detection["lesions"] == sum(len(case.boxes) for case in listed.cases)
    assert found["sensitivity"]["value"] == pytest.approx(1 - missed / detection["lesions"])
    assert found["false_per_case"]["value"] == 1 / 4
    assert detection["methods"]["components"]["figures"]["false_per_case"]["value"] == 0
    assert blunder.methods["model"].scores[0] == 0.99
    own, components = (detection["methods"][name] for name in ("model", "components"))
    for name, entry in components["difference"].items():
        expected = own["figures"][name]["value"] - components["figures"][name]["value"]
        assert entry["value"] == pytest.approx(expected)
    assert components["difference"]["sensitivity"] == {"value": 0, "low": 0, "high": 0}
    assert components["difference"]["AP_IoU_0.10"]["value"] < 0 <= components["difference"]["AP_IoU_0.10"]["high"]


def test_grades_are_compared_with_the_known_ones_beside_always_hgg(report: Path, listed: DataList) -> None:
    grading = read_evaluation(report).summary["grading"]
    given = [0.8, None, 0.4, 0.1]
    right = [p is not None and (p >= 0.5) == (c.grade == "HGG") for p, c in zip(given, listed.cases, strict=True)]
    assert (grading["cases"], grading["hgg"], grading["lgg"], grading["ungraded"]) == (4, 2, 2, 1)
    assert grading["methods"]["model"]["figures"]["accuracy"]["value"] == pytest.approx(np.mean(right))
    always = grading["methods"]["always_hgg"]["figures"]
    assert (always["balanced_accuracy"]["value"], always["sensitivity"]["value"]) == (0.5, 1)


def test_the_folder_holds_a_table_figures_and_one_page_that_needs_nothing_else(report: Path) -> None:
    document = json.loads((report / "evaluation.json").read_text())
    assert first_fault(document, "evaluation-1") is None
    assert document["source"]["model"]["name"] == "near-truth"
    rows = list(csv.DictReader((report / "cases.csv").open()))
    assert [row["case"] for row in rows] == [case["id"] for case in document["cases"]]
    assert [float(row["whole_tumour_dice"]) for row in rows] == [1, 0, 1, 1]
    assert [row["boxes_false"] for row in rows] == ["0", "0", "1", "0"]
    assert rows[1]["probability_hgg"] == ""
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 + 2
    assert not any(word in page for word in ("http://", "https://", "<script", 'src="figures'))
    table = page[page.index("<h2>Cases</h2>") :]
    assert table.index(f"<td>{rows[1]['case']}</td>") < table.index(f"<td>{rows[2]['case']}</td>")
    assert table.index(f"<td>{rows[1]['case']}</td>") < table.index(f"<td>{rows[0]['case']}</td>")
    for name in ("regions", "froc", "reliability"):
        assert (report / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_is_run_as_analyze_runs_it_and_its_results_measure_the_same_when_read_back(
    root: Path, listed: DataList, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    settings = InferenceSettings(spacing_mm=4.0, window=64, grading_crop=64)
    network = build_network("mtmed3d", feature_size=12).eval()
    seen = listed.fold(1)[1][0].patient
    kwargs = {"name": "tiny", "version": "1", "trained_on": "one patient, they say", "card": "# tiny\n"}
    save_bundle(tmp_path / "bundle", network, settings, **kwargs, trained_patients=[seen, "somebody else"])
    common = [root / "list.json", "--fold", 1, "--pictures", 0]
    assert evaluate(*common, "--model", tmp_path / "bundle", "-o", tmp_path / "run", "--device", "cpu", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    names = sorted(case.id for case in listed.fold(1)[1])
    assert sorted(path.name for path in (tmp_path / "run" / "cases").iterdir()) == names
    assert (tmp_path / "run" / "cases" / names[0] / "preview.png").is_file()
    first = read_evaluation(tmp_path / "run")
    assert first.source["model"]["name"] == "tiny"
    assert any("trained on 1 of these 2 cases" in note for note in first.notes)
    assert said["summary"] == json.loads(json.dumps(first.summary))
    assert evaluate(*common, "--predictions", tmp_path / "run" / "cases", "-o", tmp_path / "again") == 0
    again = read_evaluation(tmp_path / "again")
    assert again.summary["segmentation"] == first.summary["segmentation"]
    assert again.summary["grading"] == first.summary["grading"]
    for name, entry in first.summary["detection"]["methods"]["model"]["figures"].items():
        assert again.summary["detection"]["methods"]["model"]["figures"][name] == pytest.approx(entry)


def test_a_failed_case_is_named_and_does_not_stop_the_others(
    root: Path, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: DataList
) -> None:
    shutil.copytree(stored, tmp_path / "results")
    lost = listed.cases[0].id
    (tmp_path / "results" / lost / "segmentation.nii.gz").write_bytes(b"damaged")
    arguments = [root / "list.json", "--predictions", tmp_path / "results", "-o", tmp_path / "out", "--pictures", 0]
    assert evaluate(*arguments) == 3
    assert f"error: {lost}" in capsys.readouterr().err
    evaluation = read_evaluation(tmp_path / "out")
    assert [failure.id for failure in evaluation.failures] == [lost]
    assert len(evaluation.results) == 3
    assert lost in (tmp_path / "out" / "report.html").read_text()
    shutil.copytree(stored / lost, tmp_path / "results" / lost, dirs_exist_ok=True)
    assert evaluate(*arguments) == 0  # the same command takes up what failed
    assert read_evaluation(tmp_path / "out").failures == []


class Counting(StoredSource):
    """Stored results that note which cases they were asked for."""

    asked: list[str]

    def find(self, case: Case, study: Any, progress: Any) -> Any:
        self.asked.append(case.id)
        return super().find(case, study, progress)


def run_counted(
    cases: Sequence[Case], stored: Path, folder: Path, **options: Any
) -> tuple[list[CaseResult], list[str]]:
    source = Counting(stored)
    object.__setattr__(source, "asked", [])
    results, _ = evaluate_cases(cases, source, folder, **options)
    return results, source.asked


def test_an_interrupted_evaluation_goes_on_and_measures_anew_only_what_changed(
    listed: DataList, stored: Path, tmp_path: Path
) -> None:
    def stop(stage: str, fraction: float, text: str) -> None:
        if stage == "evaluate" and fraction >= 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        run_counted(listed.cases, stored, tmp_path, progress=stop)
    assert len(list((tmp_path / "rows").glob("*.json"))) == 2
    results, asked = run_counted(listed.cases, stored, tmp_path)
    assert asked == [case.id for case in listed.cases[2:]]
    (tmp_path / "rows" / f"{listed.cases[0].id}.json").write_text('{"id": "torn')
    regraded = replace(listed.cases[1], grade=None)
    again, asked = run_counted([listed.cases[0], regraded, *listed.cases[2:]], stored, tmp_path)
    assert asked == [listed.cases[0].id, listed.cases[1].id]
    assert replace(again[0], seconds={}) == replace(results[0], seconds={})
    assert again[1].grade is None


def test_what_nobody_knows_is_left_out_and_not_guessed(listed: DataList, stored: Path, tmp_path: Path) -> None:
    bare = replace(listed.cases[0], grade=None, label=None)
    (result,), _ = run_counted([bare], stored, tmp_path)
    assert result.methods["model"].regions is None
    assert result.grade is None
    assert result.truth_boxes
    nothing = replace(bare, boxes=None)
    with pytest.raises(InputRefused, match="None of the 1 cases"):
        choose_cases(listed.with_cases((nothing,)))
    with pytest.raises(WrongUse, match="no case 'x'"):
        choose_cases(listed, ids=["x"])
    assert [case.id for case in choose_cases(listed, ids=[listed.cases[2].id])] == [listed.cases[2].id]
    assert {case.fold for case in choose_cases(listed, fold=1)} == {1}


def test_a_model_is_only_measured_on_its_tasks(listed: DataList, stored: Path, tmp_path: Path) -> None:
    (result,), _ = run_counted(listed.cases[:1], stored, tmp_path, tasks=("detection",))
    assert result.methods["model"].regions is None
    assert "components" not in result.methods
    assert not result.graded


def shown(stored: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The ready results with every ``findings.json`` changed."""
    shutil.copytree(stored, folder)
    for path in folder.glob("*/findings.json"):
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
    return folder


def ungraded(document: dict[str, Any]) -> None:
    document["grade"] = None


def boxes_only(document: dict[str, Any]) -> None:
    ungraded(document)
    document["volumes_ml"] = dict.fromkeys(document["volumes_ml"], 0.0)


def undetected(document: dict[str, Any]) -> None:
    document["warnings"].append({"code": "boxes-from-regions", "text": "The model has no box detector."})


def graded_by_a_reader(document: dict[str, Any]) -> None:
    document["grade"] = {"label": "HGG", "probability_hgg": 1.0, "by": "reader"}


def test_stored_results_are_for_the_tasks_that_every_model_among_them_shows(
    listed: DataList, stored: Path, tmp_path: Path
) -> None:
    every = ("segmentation", "detection", "grading")
    assert StoredSource(stored).tasks(listed.cases) == every
    assert StoredSource(tmp_path / "none").tasks(listed.cases) == every  # each case then says what is missing
    changes = {ungraded: every[:2], boxes_only: every[1:2], undetected: every[::2], graded_by_a_reader: every[:2]}
    for change, tasks in changes.items():
        assert StoredSource(shown(stored, tmp_path / change.__name__, change)).tasks(listed.cases) == tasks
    mixed = shown(stored, tmp_path / "mixed", lambda document: None)
    path = mixed / listed.cases[1].id / "findings.json"  # the one without a grade, now another model's
    path.write_text(path.read_text().replace(MODEL.sha256, "b" * 64))
    assert StoredSource(mixed).tasks(listed.cases) == every[:2]


def test_results_of_a_model_that_does_not_grade_get_no_figures_of_grading_but_a_note(
    root: Path, listed: DataList, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shown(stored, tmp_path / "results", ungraded)
    arguments = [root / "list.json", "--predictions", folder, "--pictures", 0]
    assert evaluate(*arguments, "-o", tmp_path / "out") == 0
    evaluation = read_evaluation(tmp_path / "out")
    assert evaluation.summary["grading"] is None
    assert evaluation.summary["segmentation"]["methods"]["model"]["whole_tumour"]["dice"]["value"] == 0.75
    assert sum("does it: grading." in note for note in evaluation.notes) == 1
    assert evaluate(*arguments, "-o", tmp_path / "asked", "--tasks", "detection", "grading") == 2
    assert "grading; the tasks of the results in" in (said := capsys.readouterr().err)
    assert "are: segmentation, detection." in said
    assert not (tmp_path / "asked").exists()
    later = listed.cases[3].id  # a graded result that comes later belongs to the same evaluation
    shutil.copytree(stored / later, folder / later, dirs_exist_ok=True)
    assert evaluate(*arguments, "-o", tmp_path / "out") == 0
    assert read_evaluation(tmp_path / "out").summary["grading"]["ungraded"] == 3


def test_a_model_is_not_asked_for_a_task_that_it_lacks(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = build_network("mtmed3d", feature_size=12, tasks=("segmentation",)).eval()
    kwargs = {"name": "outlines", "version": "1", "trained_on": "nothing", "card": "# outlines\n"}
    save_bundle(tmp_path / "bundle", network, InferenceSettings(), **kwargs)
    arguments = [root / "list.json", "--model", tmp_path / "bundle", "--device", "cpu", "-o", tmp_path / "out"]
    assert evaluate(*arguments, "--tasks", "segmentation", "grading") == 2
    assert "--tasks names grading; the tasks of the model outlines are: segmentation." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def folds(root: Path, stored: Path) -> list[Path]:
    """One evaluation a fold; the second has a temperature of the first."""
    places = [root / f"fold{fold}" for fold in (0, 1)]
    for fold, place in enumerate(places):
        more = ["--temperature-from", places[0]] if fold else []
        arguments = [root / "list.json", "--predictions", stored, "--fold", fold, "-o", place, "--pictures", 0]
        assert evaluate(*arguments, *more) == 0
    return places


def test_a_temperature_comes_from_other_patients_only(
    root: Path, stored: Path, folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = read_evaluation(folds[1])
    assert evaluation.temperature["log_loss_after"] <= evaluation.temperature["log_loss_before"] + 1e-9
    value = evaluation.temperature["value"]
    for result in evaluation.results:
        if result.probability_hgg is None:
            assert result.scaled_probability_hgg is None
        else:
            p = result.probability_hgg
            expected = 1 / (1 + (1 / p - 1) ** (1 / value))
            assert result.scaled_probability_hgg == pytest.approx(expected, abs=1e-5)
    assert "model_scaled" in evaluation.summary["grading"]["methods"]
    arguments = [root / "list.json", "--predictions", stored, "-o", tmp_path / "out", "--temperature-from", folds[0]]
    assert evaluate(*arguments) == 2
    assert "share 2 patients" in capsys.readouterr().err


def test_folds_are_pooled_over_patients_and_stand_beside_each_other(
    report: Path, folds: list[Path], tmp_path: Path
) -> None:
    assert evaluate("--summarise", *folds, "-o", tmp_path / "all") == 0
    together, alone = read_evaluation(tmp_path / "all"), read_evaluation(report)
    for task in ("segmentation", "detection"):
        pooled, direct = (each.summary[task]["methods"]["model"] for each in (together, alone))
        key = "whole_tumour" if task == "segmentation" else "figures"
        assert {n: e["value"] for n, e in pooled[key].items() if isinstance(e, dict)} == pytest.approx(
            {n: e["value"] for n, e in direct[key].items() if isinstance(e, dict)}
        )
    dice = [fold["figures"]["whole_tumour dice"] for fold in together.folds]
    page = (tmp_path / "all" / "report.html").read_text()
    assert f"{np.mean(dice):.3f} ± {np.std(dice, ddof=1):.3f}" in page
    assert "grading: sensitivity" in page
    assert together.notes[0] == "Only 4 patients: bootstrap intervals over so few are too narrow."
    assert sum("patients" in note for note in together.notes) == 1
    assert any("temperature" in note for note in together.notes)


def test_evaluations_that_do_not_fit_together_are_refused(
    report: Path, folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--summarise", folds[0], report, "-o", tmp_path / "a") == 2
    assert "more than one of the evaluations" in capsys.readouterr().err
    assert evaluate("--summarise", folds[0], "-o", tmp_path / "b") == 2
    assert evaluate("--summarise", folds[0], tmp_path, "-o", tmp_path / "c") == 3
    assert not any((tmp_path / name).exists() for name in "abc")


def test_a_folder_of_another_evaluation_is_not_written_into(
    root: Path, report: Path, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: DataList
) -> None:
    before = (report / "evaluation.json").read_bytes()
    arguments = [root / "list.json", "--predictions", stored]
    assert evaluate(*arguments, "-o", report, "--cases", listed.cases[0].id) == 2
    assert "differs in: cases" in capsys.readouterr().err
    assert (report / "evaluation.json").read_bytes() == before
    (tmp_path / "letter.txt").write_text("mine")
    assert evaluate(*arguments, "-o", tmp_path) == 2
    assert evaluate(*arguments, "--model", "starter", "-o", tmp_path / "x") == 2
    assert evaluate("-o", tmp_path / "x") == 2
    assert evaluate(*arguments, "-o", tmp_path / "x", "--fold", 7) == 2
    assert evaluate(root / "list.json", "--predictions", tmp_path / "none", "-o", tmp_path / "x") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
