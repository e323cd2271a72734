"""The registry knows every family, builds it from a bundle's arguments, and refuses what a family cannot do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from MTMed3DCore import bundles, cli
from MTMed3DCore.errors import ModelRefused, WrongUse
from MTMed3DCore.geometry import Grid
from MTMed3DCore.inference import InferenceSettings, run_network
from MTMed3DCore.inference.lesions import find_lesions
from MTMed3DCore.networks import FAMILIES, FAMILY_NAMES, TASKS, build_network, find_family
from MTMed3DCore.networks.interface import TaskNetwork
from MTMed3DCore.preparation import PreparedStudy
from MTMed3DCore.training.losses import Target
from MTMed3DCore.training.patches import Patch
from MTMed3DCore.training.settings import CaseSettings, TrainSettings
from MTMed3DCore.training.trainer import Trainer
from MTMed3DCore.worker.cancelling import Stop
from MTMed3DCore.worker.work import Work
from Testing.training_runs import four_studies

SMALL = {
    "mtmed3d": {},
    "resformer": {"blocks": [1, 1, 1, 1], "drop_path": 0.0},
    "mtmedformer": {},
}
SIZE = {"mtmed3d": 12, "resformer": 8, "mtmedformer": 12}


def small_network(name: str, tasks: tuple[str, ...] | None = None) -> TaskNetwork:
    family = find_family(name)
    torch.manual_seed(1)
    return family.for_brain(SIZE[name], tasks or family.tasks, 2, 64, SMALL[name]).eval()


@pytest.fixture(scope="module")
def resformer() -> TaskNetwork:
    return small_network("resformer")


def test_the_families_are_named_without_loading_torch() -> None:
    code = "import sys; from MTMed3DCore.networks import FAMILY_NAMES; print(*FAMILY_NAMES, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mtmed3d", "resformer", "mtmedformer", "False"]


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_family_is_built_again_from_its_own_configuration(name: str) -> None:
    network = small_network(name)
    again = build_network(**json.loads(json.dumps(network.config)))
    assert type(again) is type(network)
    assert again.config == network.config
    assert again.tasks == network.tasks == tuple(task for task in TASKS if task in find_family(name).tasks)
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    assert {key: tensor.shape for key, tensor in again.state_dict().items()} == shapes


def test_arguments_without_a_family_make_an_mtmed3d_network() -> None:
    network = build_network(preset="mtmed3d", feature_size=12, tasks=["segmentation"], num_anchors=3)
    assert network.family == "mtmed3d"
    assert "family" not in network.config  # bundles of earlier versions and of this one say the same


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: find_family("unet"), "'unet'"),
        (lambda: build_network(family="unet"), "'unet'"),
        (lambda: find_family("mtmed3d").check(2, TASKS), "mtmed3d"),
        (lambda: find_family("resformer").check(3, ("detection",)), "detection"),
        (lambda: find_family("resformer").for_brain(8, ("segmentation",), 2, 64, {"depth": 3}), "depth"),
        (lambda: find_family("resformer").for_brain(12, ("segmentation",), 2, 64, {}), "feature_size"),
        (lambda: TrainSettings(tasks=("detection",), network_family="resformer"), "tasks"),
    ],
)
def test_what_a_family_cannot_do_is_refused_by_name(wrong, named: str) -> None:
    with pytest.raises(WrongUse, match=named):
        wrong()


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_layer_on_which_tasks_are_balanced_is_reached_by_every_task(name: str) -> None:
    network = small_network(name).train()
    output = network(torch.randn(1, 4, 64, 64, 64))
    losses = {"segmentation": output.segmentation, "grading": output.grade}
    if output.detection is not None:
        losses["detection"] = output.detection[-1][0]
    for task, values in losses.items():
        (gradient,) = torch.autograd.grad(values.square().sum(), network.last_shared(), retain_graph=True)
        assert float(gradient.abs().sum()) > 0, task


def test_a_trainer_steps_a_resformer_with_its_published_weights() -> None:
    family = find_family("resformer")
    plain = family.training_defaults(3) | {"feature_size": 8, "network_options": SMALL["resformer"], "patch": 64}
    trainer = Trainer(TrainSettings.from_dict(plain), [])
    assert trainer.balance.weights.tolist() == [1.0, 0.25]
    regions = torch.zeros(1, 3, 64, 64, 64)
    regions[:, :, 20:40, 20:40, 20:40] = 1
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    losses = trainer.step([Patch(torch.randn(4, 64, 64, 64), Target(regions, None, 1))], 0.0)
    assert set(losses) == {"segmentation", "grading"}
    assert all(np.isfinite(value) for value in losses.values())
    moved = [name for name, tensor in trainer.network.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {name.split(".")[0] for name in moved} == {"encoder", "segmentation_decoder", "grading_head"}


def test_a_bundle_of_another_family_says_so_and_loads_to_the_same_function(
    resformer: TaskNetwork, tmp_path: Path
) -> None:
    settings = InferenceSettings(window=64, grading_crop=64, spacing_mm=4.0)
    saved = bundles.save_bundle(tmp_path / "b", resformer, settings, name="b", version="1", trained_on="-", card="")
    assert (saved.family, saved.for_studies) == ("resformer", True)
    assert json.loads((saved.folder / bundles.bundle.INFERENCE).read_text())["network_def"]["family"] == "resformer"
    assert saved.metadata["references"] == [find_family("resformer").reference]
    with pytest.raises(ModelRefused, match="made for brain studies"):
        _ = saved.image_settings
    image = torch.randn(1, 4, 32, 32, 32)
    with torch.inference_mode():
        expected, found = resformer(image), saved.load()(image)
    assert torch.equal(expected.segmentation, found.segmentation)
    assert torch.equal(expected.grade, found.grade)


def test_a_network_that_grades_images_sees_the_image_round_the_tumour_and_finds_no_boxes() -> None:
    """A stand-in with a known answer: tumour where FLAIR is bright, HGG where T1ce is bright inside the crop."""

    class Known:
        grades_image = True

        def encode(self, x):
            return [x]

        def segment(self, x, features):
            return 20 * (x[:, 3:4].repeat(1, 3, 1, 1, 1) - 1)

        def detect(self, features):
            return None

        def grade(self, source):
            assert source.shape == (1, 4, 32, 32, 32)
            return torch.stack([torch.zeros(1), source[:, 1].sum(dim=(1, 2, 3)) - 100], dim=1)

    image = np.zeros((4, 64, 64, 64), np.float32)
    image[3, 40:50, 40:50, 40:50] = 2
    settings = InferenceSettings(window=64, grading_crop=32)
    grid = Grid((64, 64, 64), np.eye(4))
    chances = []
    for bright in ((slice(40, 46),) * 3, (slice(0, 6),) * 3):  # inside the crop, then far from it
        shown = image.copy()
        shown[(1, *bright)] = 1
        prepared = PreparedStudy(shown, np.ones((64, 64, 64), bool), grid, grid, stripped=True)
        raw = run_network(Known(), prepared, settings)
        chances.append(raw.hgg_probability)
    assert chances == pytest.approx([1.0, 0.0], abs=1e-6)
    assert not raw.detects
    found = find_lesions(raw.regions, [], [], grid, InferenceSettings(), detects=raw.detects)
    (lesion,), (notice,) = found.lesions, found.notices
    assert lesion.origin == "region"
    assert lesion.score == pytest.approx(1.0, abs=1e-3)  # not halved: nothing has contradicted it
    assert notice.code == "boxes-from-regions"
    assert lesion.box.size.tolist() == [10.0, 10.0, 10.0]


def test_every_family_has_a_reference_and_tasks_that_exist() -> None:
    for family in FAMILIES:
        assert set(family.tasks) <= set(TASKS)
        assert set(family.weights) <= set(family.tasks)
        assert len(family.reference) > 20
        loss = family.make_loss(family.tasks, [[8.0, 8.0, 8.0]])
        assert tuple(loss.tasks) == family.tasks


def test_a_patch_holds_two_voxels_of_the_familys_deepest_level_at_least() -> None:
    assert CaseSettings(network_family="resformer", tasks=("segmentation",), patch=32).patch == 32
    with pytest.raises(WrongUse, match="patch cannot be 32"):
        CaseSettings(network_family="mtmed3d", patch=32)
    with pytest.raises(WrongUse, match="wide_patch cannot be 32"):
        CaseSettings(network_family="resformer", tasks=("segmentation",), patch=32, wide_patch=32)


def test_a_resformer_goes_from_a_list_of_studies_to_a_bundle_that_commands_and_panel_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = four_studies(tmp_path / "studies")
    settings = {"network_options": SMALL["resformer"], "feature_size": 8, "spacing_mm": 4.0, "warm_up": 1, "workers": 0}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    here, run, report, out = (str(tmp_path / name) for name in ("studies/list.json", "run", "report", "out"))
    chosen = ["--family", "resformer", "--settings", str(tmp_path / "settings.json"), "--patch", "64", "--steps", "1"]
    assert cli.main(["train", here, "-o", run, *chosen, "--all-cases", "--device", "cpu", "--quiet"]) == 0
    (row,) = [json.loads(row) for row in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert row["weights"] == [1.0, 0.25]
    (tmp_path / "models").mkdir()
    (tmp_path / "run" / "bundle").rename(tmp_path / "models" / "resformer")
    monkeypatch.setenv("MTMED3D_MODELS", str(tmp_path / "models"))
    offered = {each["name"]: each for each in Work().models()["models"]}
    assert offered["run"]["family"] == "resformer"
    assert offered["starter"]["family"] == "mtmed3d"
    case = listed.cases[0]
    fields = {
        "inputs": {name: str(file.path) for name, file in case.images.items()},
        "output": out,
        "model": "resformer",
        "device": "cpu",
    }
    card = (tmp_path / "models" / "resformer" / "docs" / "README.md").read_text()
    assert "A network of the family resformer" in card
    assert "on 4 studies of a list" in card
    answer = Work().analyze(fields, Stop(), lambda stage, fraction, text: None)
    findings = json.loads(Path(answer["findings"]).read_text())
    assert findings["model"]["name"] == "run"
    assert all(lesion["volumes_ml"]["whole_tumour"] > 0 for lesion in findings["lesions"])
    codes = {warning["code"] for warning in findings["warnings"]}
    assert ("boxes-from-regions" in codes) == bool(findings["lesions"])
    assert not codes & {"region-without-box", "box-without-region"}
    capsys.readouterr()
    model = ["--model", "resformer", "--device", "cpu", "--resamples", "10", "--pictures", "0"]
    assert cli.main(["evaluate", here, *model, "-o", report, "--cases", case.id, "--json"]) == 0
    assert (tmp_path / "report" / "evaluation.json").is_file()
