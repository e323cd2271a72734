"""What stands beside what: baselines over fewer cases, temperatures of the right model and patients, precisions."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MTMed3DCore.bundles.writing import save_bundle
from MTMed3DCore.commands.evaluate import show
from MTMed3DCore.errors import WrongUse
from MTMed3DCore.evaluation.bootstrap import Bootstrap
from MTMed3DCore.evaluation.crossvalidation import cross_validation
from MTMed3DCore.evaluation.document import Evaluation, read_evaluation
from MTMed3DCore.evaluation.figures import draw_froc
from MTMed3DCore.evaluation.publishing import publish
from MTMed3DCore.evaluation.report import report_page
from MTMed3DCore.evaluation.results import CaseResult, MethodResult, RegionScore
from MTMed3DCore.evaluation.run import ModelSource
from MTMed3DCore.evaluation.summary import segmentation_difference, summarise
from MTMed3DCore.evaluation.temperature import temperature_from
from MTMed3DCore.inference import devices
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.networks import build_network

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import ablation

BOOTSTRAP = Bootstrap(200)
LESION, ELSEWHERE = [0.0, 0.0, 0.0, 9.0, 9.0, 9.0], [50.0, 50.0, 50.0, 59.0, 59.0, 59.0]


def method(dice: float, box: list[float]) -> MethodResult:
    score = RegionScore(dice, 10 * (1 - dice), dice, 10 * (1 - dice), 1, 0, 0, 5.0, 5.0)
    return MethodResult(dict.fromkeys(("whole_tumour", "tumour_core", "enhancing"), score), [box], [0.9])


def results(model: str = "a", first: int = 0) -> list[CaseResult]:
    """Four patients. The model is bad on the first two, which alone the thresholds are measured on, and good after."""
    made = []
    for number, dice in enumerate((0.02, 0.04, 0.96, 1.0)):
        methods = {"model": method(dice, LESION if dice > 0.5 else ELSEWHERE)}
        if dice < 0.5:
            methods["thresholds"] = method(1.0, LESION)
        name = f"p{first + number}"
        identity = {"name": "net", "version": "1", "sha256": model * 64, "trained_on": "?"}
        grade, probability = ("HGG", 0.9) if number % 2 else ("LGG", 0.3 + 0.1 * number)
        made.append(CaseResult(name, name, None, "k", grade, [LESION], True, probability, None, methods, identity))
    return made


def evaluation(found: list[CaseResult], **data: Any) -> Evaluation:
    return Evaluation({}, {"cases": len(found), **data}, found, [], summarise(found, BOOTSTRAP), BOOTSTRAP)


def written(folder: Path, found: list[CaseResult], **data: Any) -> Path:
    folder.mkdir()
    evaluation(found, **data).write(folder)
    return folder


def test_model_and_baseline_are_compared_over_the_cases_of_both() -> None:
    found = results()
    summary = summarise(found, BOOTSTRAP)
    segmentation, detection = (summary[task]["methods"] for task in ("segmentation", "detection"))
    means = [segmentation[name]["whole_tumour"]["dice"]["value"] for name in ("model", "thresholds")]
    assert means == pytest.approx([0.505, 1.0])
    difference = segmentation_difference(found, BOOTSTRAP)
    assert difference["enhancing"]["dice"]["value"] == pytest.approx(0.03 - 1)
    assert difference["enhancing"]["dice"]["low"] == pytest.approx(0.02 - 1)
    assert difference["enhancing"]["hd95_mm"]["value"] == pytest.approx(9.7)
    assert segmentation_difference(found[2:], BOOTSTRAP) is None
    assert detection["model"]["figures"]["sensitivity"]["value"] == 0.5
    assert detection["thresholds"]["figures"]["sensitivity"]["value"] == 1
    assert detection["thresholds"]["difference"]["sensitivity"] == {"value": -1, "low": -1, "high": -1}


def test_report_and_console_say_over_how_many_cases_a_baseline_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = evaluation(results())
    publish(made, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<small>baseline: intensity thresholds (2 of 4 cases)</small>") == 3
    assert page.count("model minus baseline: intensity thresholds (2 of 4 cases)") == 3 + 1
    assert "<small>model minus baseline: intensity thresholds (2 of 4 cases)</small></td><td>-0.970" in page
    show(made, tmp_path)
    assert capsys.readouterr().out.count("baseline: intensity thresholds (2 of 4") == 3 + 1
    publish(evaluation(results()[:2]), tmp_path / "two")
    assert "cases)<" not in (tmp_path / "two" / "report.html").read_text()
    of_both = draw_froc(made.summary["detection"], results())
    assert of_both != draw_froc(made.summary["detection"], results()[:2])


def test_a_mean_over_folds_says_where_a_fold_lacks_the_figure(tmp_path: Path) -> None:
    lacking = [replace(each, graded=False, probability_hgg=None) for each in results("b", 4)]
    folds = [written(tmp_path / name, found) for name, found in (("a", results()), ("b", lacking))]
    page = report_page(cross_validation(folds, BOOTSTRAP), {}, {})
    assert "<td>grading: AUC</td><td>1.000</td><td>–</td><td>1.000 ± –<small>folds: 1</small></td>" in page
    assert page.count("folds: 1<") == 7
    assert "<td>0.505</td><td>0.505</td><td>0.505 ± 0.000</td>" in page


def test_a_temperature_is_not_fitted_on_cases_of_the_training(tmp_path: Path) -> None:
    ours = results(first=4)
    fitted = written(tmp_path / "fit", results())
    assert temperature_from(fitted, ours, lambda patient: patient == "p9")[1] == []
    with pytest.raises(WrongUse, match=r"trained on 1 of the cases.*--fold") as refused:
        temperature_from(fitted, ours, lambda patient: patient == "p2")
    assert refused.value.code == "temperature-trained"
    with pytest.raises(WrongUse, match="trained on 3 of the cases"):
        temperature_from(written(tmp_path / "told", results(), trained_on=3), ours)
    assert temperature_from(written(tmp_path / "none", results(), trained_on=0), ours)[1] == []
    (doubt,) = temperature_from(fitted, ours)[1]
    assert doubt.startswith("Nothing tells whether the model was trained on")


def test_a_temperature_is_of_one_model(tmp_path: Path) -> None:
    folds = [written(tmp_path / name, results(name, first)) for name, first in (("a", 0), ("b", 4))]
    pooled = tmp_path / "pooled"
    pooled.mkdir()
    cross_validation(folds, BOOTSTRAP).write(pooled)
    assert len(read_evaluation(pooled).results) == 8
    for folder, model in ((pooled, "a"), (folds[0], "b")):
        with pytest.raises(WrongUse, match="results of 2 models") as refused:
            temperature_from(folder, results(model, 8))
        assert refused.value.code == "temperature-model"
    assert temperature_from(folds[0], results("a", 8))[0]["cases"] == 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    network = build_network("mtmed3d", feature_size=12, tasks=("segmentation",)).eval()
    kwargs = {"name": "tiny", "version": "1", "trained_on": "nothing", "card": "# tiny\n"}
    return save_bundle(tmp_path_factory.mktemp("bundle") / "tiny", network, InferenceSettings(), **kwargs)


def test_rows_of_one_precision_are_not_taken_for_those_of_another(
    bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ModelSource(bundle, None, tmp_path, "cpu")
    case: Any = None
    auto, single, half = (replace(source, precision=each).fingerprint(case) for each in ("auto", "fp32", "bf16"))
    assert auto == single != half
    monkeypatch.setattr(devices, "choose_precision", lambda *_: "bf16")  # what auto is on a GPU
    assert source.fingerprint(case) == half


def test_an_arm_of_the_ablation_is_measured_on_real_studies_by_its_own_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    score = dict.fromkeys(ablation.EVALUATED, 0.5)

    def measure(case: Path, output: Path, options: list[str]) -> dict[str, Any]:
        commands.append(["analyze", str(case), "-o", str(output), *options])
        return {"found": score}

    settings = InferenceSettings()
    network = build_network("mtmed3d", feature_size=12, tasks=("segmentation",)).eval()
    monkeypatch.setattr(ablation, "measure", measure)
    monkeypatch.setattr(ablation, "trained_network", lambda run: (network, settings))
    monkeypatch.setattr(ablation, "run_over", lambda network, settings, seeds: [])
    monkeypatch.setattr(ablation, "calibrated", lambda settings, outcomes: settings)
    monkeypatch.setattr(ablation, "region_dice", lambda settings, outcomes: np.array([0.1, 0.2, 0.3]))
    run: Any = type("Run", (), {"steps": 1})
    result = ablation.score("control", run, tmp_path, [tmp_path / "study"])
    expected = [str(tmp_path / "study"), "-o", str(tmp_path / "study"), "--model", str(tmp_path / "bundle")]
    assert commands == [["analyze", *expected]]
    assert result["real"] == {"study": score}
    assert result["held_out"] == {"whole_tumour": 0.2, "tumour_core": 0.1, "enhancing": 0.3}
    assert "| control | none | 0.200 | 0.100 | 0.300 | 0.500 | 0.500 | 0.500 |" in ablation.table({"control": result})
