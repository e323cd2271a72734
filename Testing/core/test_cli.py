"""The command line: what it says, what it ends with, and what it does not load."""

from __future__ import annotations

import csv
import errno
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from MTMed3DCore import __version__, cli, doctor
from MTMed3DCore.cohort.studies import CHANNELS
from MTMed3DCore.commands import analyze
from MTMed3DCore.errors import Cancelled, InputRefused, ModelRefused, OutOfResources, WrongUse

COMMANDS = (
    *(["analyze"], ["demo"], ["doctor"], ["model"], ["model", "list"], ["model", "info"], ["model", "verify"]),
    *(["federate"], ["federate", "simulate"], ["federate", "serve"], ["federate", "join"], ["prepare"], ["series"]),
)


def heavy_modules_after(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after running `code`."""
    code += "\nimport sys; print('LOADED', *({'torch', 'monai', 'numpy', 'scipy', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["analyze", "--help"], ["model", "list", "--help"]])
def test_help_and_version_load_no_heavy_package(arguments: list[str]) -> None:
    assert heavy_modules_after(f"from MTMed3DCore.cli import main; assert main({arguments!r}) == 0") == set()


def test_importing_the_package_loads_no_heavy_package_and_offers_its_names() -> None:
    code = "import MTMed3DCore as m; assert {'Study', 'Findings', 'analyze', 'networks', 'bundles'} <= set(dir(m))"
    assert heavy_modules_after(code) == set()


def test_lazy_attributes_are_the_modules_own() -> None:
    import MTMed3DCore
    from MTMed3DCore import bundles, findings

    assert MTMed3DCore.Findings is findings.Findings
    assert MTMed3DCore.bundles is bundles
    with pytest.raises(AttributeError, match="nothing"):
        _ = MTMed3DCore.nothing


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"mtmed3d {' '.join(command)}" in shown


def test_the_top_help_names_every_command_exit_code_and_research_use(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("analyze", "demo", "model", "doctor", "federate", "0 done", "130 cancelled"))
    assert "research use only" in shown


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mtmed3d {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["analyze"],
        ["analyze", "-o", "out"],
        ["analyze", "case", "-o", "out", "--precision", "fp8"],
        ["analyze", "-o", "out", "--t1", "a.nii.gz"],
        ["analyze", "case", "-o", "out", "--t1", "a.nii.gz"],
        ["model"],
        ["demo", "--seed", "many"],
    ],
)
def test_wrong_use_ends_with_2_and_says_why(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_case_that_is_not_there_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyze", str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 3
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_ends_with_4_and_json_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["model", "info", "no-such-model", "--json"]) == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"]["code"] == "model-unknown"
    assert "remedy: " in shown.err


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (WrongUse("a", "b"), 2),
        (InputRefused("a", "b"), 3),
        (ModelRefused("a", "b"), 4),
        (OutOfResources("a", "b"), 5),
        (MemoryError(), 5),
        (OSError(errno.ENOSPC, "No space left", "out/findings.json"), 5),
        (PermissionError(errno.EACCES, "Permission denied", "out"), 2),
        (Cancelled(), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_refusal_has_its_exit_code_and_no_traceback(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def examine() -> list[doctor.Check]:
        raise raised

    monkeypatch.setattr(doctor, "examine", examine)
    assert cli.main(["doctor"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "Traceback" not in shown


def test_doctor_says_ten_things_and_ends_with_the_first_lack(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for variable in ("MTMED3D_MODELS", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr("MTMed3DCore.bundles.search._PACKAGE", tmp_path)
    assert cli.main(["doctor", "--json"]) == 4
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert list(checks) == [
        *("mtmed3d", "python", "torch", "monai", "devices", "bf16", "memory", "cores", "starter", "disk"),
    ]
    assert checks["starter"]["exit_code"] == 4
    assert "cpu" in checks["devices"]["text"]


def test_too_little_memory_is_a_lack_of_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 2 * doctor.GIB)
    memory = next(check for check in doctor.examine() if check.name == "memory")
    assert memory.exit_code == 5
    assert "2.0 GiB" in memory.text


def options(output: Path, *cases: Path, **files: Path) -> Namespace:
    return Namespace(output=output, cases=list(cases), **{channel: files.get(channel) for channel in CHANNELS})


def test_several_cases_are_a_cohort_and_one_is_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    requests, cohort = analyze.find_requests(options(tmp_path / "out", tmp_path / "a", tmp_path / "b"))
    assert cohort
    assert [request.name for request in requests] == ["a", "b"]
    assert analyze.find_requests(options(tmp_path / "out", tmp_path / "a"))[1] is False


def test_two_studies_of_one_name_are_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x/case", "y/case"):
        (tmp_path / name).mkdir(parents=True)
    assert cli.main(["analyze", str(tmp_path / "x/case"), str(tmp_path / "y/case"), "-o", str(tmp_path / "out")]) == 2
    assert "More than one study is called case" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def test_a_list_gives_files_relative_to_itself(tmp_path: Path) -> None:
    rows = [["id", "flair", "t2", "t1ce", "t1"], ["p1", "f.nii", "2.nii", "c.nii", "1.nii"]]
    (request,) = analyze.read_list(write_csv(tmp_path / "list.csv", rows))
    assert request.name == "p1"
    assert request.files == {
        "t1": tmp_path / "1.nii",
        "t1ce": tmp_path / "c.nii",
        "t2": tmp_path / "2.nii",
        "flair": tmp_path / "f.nii",
    }


@pytest.mark.parametrize(
    ("rows", "code", "named"),
    [
        ([["t1", "t1ce", "t2"], ["a", "b", "c"]], "list-columns", "flair"),
        ([["case"]], "list-empty", "list.csv"),
        ([["id", "case"], ["p", ""]], "list-cell", "Line 2"),
        ([["id", "case"], ["p", "c"], ["../up", "c"]], "list-id", "'../up'"),
    ],
)
def test_a_faulty_list_is_refused_with_its_place(tmp_path: Path, rows: list[list[str]], code: str, named: str) -> None:
    with pytest.raises(InputRefused) as caught:
        analyze.read_list(write_csv(tmp_path / "list.csv", rows))
    assert caught.value.code == code
    assert named in caught.value.text


def test_results_that_lie_there_are_not_replaced_unasked(tmp_path: Path) -> None:
    analyze.refuse_existing(tmp_path, overwrite=False)
    (tmp_path / "findings.json").write_text("{}")
    with pytest.raises(WrongUse) as caught:
        analyze.refuse_existing(tmp_path, overwrite=False)
    assert caught.value.code == "output-not-empty"
    analyze.refuse_existing(tmp_path, overwrite=True)


def test_the_demo_fills_no_folder_that_holds_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert cli.main(["demo", "-o", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_analyze_takes_a_study_from_files_to_results_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import nibabel
    import numpy as np
    import torch

    from MTMed3DCore import bundles
    from MTMed3DCore.inference.settings import InferenceSettings
    from MTMed3DCore.networks import build_network

    torch.manual_seed(0)
    network = build_network("mtmed3d", feature_size=12)
    settings = InferenceSettings(spacing_mm=4.0, window=64, grading_crop=64)
    bundles.save_bundle(
        tmp_path / "models/tiny", network, settings, name="tiny", version="1", trained_on="Nothing.", card=""
    )
    monkeypatch.setenv("MTMED3D_MODELS", str(tmp_path / "models"))
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, 40),) * 3, indexing="ij")
    head = np.sqrt(x**2 + y**2 + z**2) < 0.8
    generator = np.random.default_rng(0)
    (tmp_path / "case").mkdir()
    for sequence in CHANNELS:
        image = np.where(head, 100 + 10 * generator.standard_normal(head.shape), 0).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.diag([4, 4, 4, 1])), tmp_path / "case" / f"{sequence}.nii.gz")
    arguments = ["analyze", str(tmp_path / "case"), "-o", str(tmp_path / "out"), "--model", "tiny", "--device", "cpu"]
    assert cli.main([*arguments, "--json"]) == 0
    (study,) = json.loads(capsys.readouterr().out)["studies"]
    assert study["findings"]["model"]["name"] == "tiny"
    assert study["findings"]["timing_s"]["read"] > 0
    assert study["findings"] == json.loads((tmp_path / "out/findings.json").read_text())
    assert nibabel.load(tmp_path / "out/segmentation.nii.gz").shape == (40, 40, 40)
    assert cli.main(arguments) == 2
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert "research use only" in capsys.readouterr().out


def test_the_demo_analyses_its_study_and_sets_the_result_beside_the_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "-o", str(tmp_path / "demo"), "--device", "cpu", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["comparison"]["regions"]["whole_tumour"]["dice"] > 0.5
    assert (tmp_path / "demo" / "results" / "findings.json").is_file()


def test_the_demo_compares_volumes_overlap_and_grade() -> None:
    from types import SimpleNamespace

    import numpy as np
    import torch

    from MTMed3DCore.commands.demo import compare
    from MTMed3DCore.findings import Findings, Grade, Lesion, ModelIdentity
    from MTMed3DCore.geometry import Grid, VoxelBox

    grid = Grid((10, 10, 10), np.diag([10.0, 10.0, 10.0, 1.0]))
    true, found = np.zeros((2, 10, 10, 10), dtype=np.uint8)
    true[2:6, 2:6, 2:6] = 2
    found[4:6, 2:6, 2:6] = 2
    box = VoxelBox((4, 2, 2), (6, 6, 6))
    lesion = Lesion(1, 0.9, box.to_world(grid), {}, 1.0)
    identity = ModelIdentity("m", "1", "0" * 64, "-")
    findings = Findings("s", {}, grid, found, (lesion,), Grade("HGG", 0.8), identity)
    truth = SimpleNamespace(labels=torch.from_numpy(true), boxes=[VoxelBox((2, 2, 2), (6, 6, 6))], grade=0)
    comparison = compare(findings, truth)
    whole = comparison["regions"]["whole_tumour"]
    assert whole["true_ml"] == pytest.approx(64)
    assert whole["found_ml"] == pytest.approx(32)
    assert whole["dice"] == pytest.approx(2 * 32 / 96)
    assert comparison["regions"]["enhancing"]["dice"] is None
    assert comparison["lesions"] == {"found": 1, "best_iou": [pytest.approx(0.5)]}
    assert comparison["grade"] == {"true": "LGG", "found": "HGG"}
