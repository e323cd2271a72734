"""What a run can be asked for: missing labels, recomputed activations, a warm start, balancing beside the gradients."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from monai.networks.nets import SwinUNETR
from torch import nn

from MTMed3DCore import cli
from MTMed3DCore.errors import InputRefused, ModelRefused, WrongUse
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.inference import InferenceSettings
from MTMed3DCore.networks.swin import PUBLISHED_OFFSETS, PublishedPatchMerging, build_encoder
from MTMed3DCore.training import validation
from MTMed3DCore.training.curves import draw_curves
from MTMed3DCore.training.examples import Example, ExampleCache
from MTMed3DCore.training.feeding import CasePatches, trains
from MTMed3DCore.training.losses import Target
from MTMed3DCore.training.patches import Patch
from MTMed3DCore.training.run import train
from MTMed3DCore.training.settings import CaseSettings, TrainSettings
from MTMed3DCore.training.trainer import Trainer
from MTMed3DCore.training.warm_start import start_encoder
from Testing.training_runs import SMALL, four_studies

ANCHORS = [[8.0, 8.0, 8.0]]
SETTINGS = TrainSettings(feature_size=12, patch=64, wide_patch=64, warm_up=1, balance_every=1)
PARTS = {"segmentation": "segmentation_decoder", "detection": "detection_decoder", "grading": "grading_branch"}


def made_patch(*, known: tuple[str, ...] = ("segmentation", "detection", "grading")) -> Patch:
    """A small patch with the truth of some tasks."""
    generator = torch.Generator().manual_seed(2)
    regions = (torch.rand(1, 3, 64, 32, 32, generator=generator) > 0.8).float()
    target = Target(
        regions if "segmentation" in known else None,
        torch.tensor([[4.0, 5.0, 6.0, 13.0, 13.0, 13.0]]) if "detection" in known else None,
        1 if "grading" in known else None,
    )
    return Patch(torch.randn(4, 64, 32, 32, generator=generator), target)


def gradients_after_a_step(trainer: Trainer, patches: list[Patch]) -> dict[str, torch.Tensor]:
    trainer.step(patches, 0.0)
    return {name: parameter.grad.clone() for name, parameter in trainer.network.named_parameters()}


@pytest.mark.parametrize(
    ("known", "untouched"),
    [
        (("segmentation", "detection"), ("grading",)),
        (("detection",), ("segmentation", "grading")),
        (("segmentation", "grading"), ("detection",)),
    ],
)
def test_a_task_without_a_label_moves_nothing_of_its_own_and_is_not_told(known, untouched):
    trainer = Trainer(SETTINGS, ANCHORS)
    told = trainer.step([made_patch(known=known)], 0.0)
    assert set(told) == set(known)
    for task, part in PARTS.items():
        largest = max(float(p.grad.abs().max()) for p in getattr(trainer.network, part).parameters())
        assert (largest == 0) == (task in untouched), task
    assert max(float(p.grad.abs().max()) for p in trainer.network.encoder.parameters()) > 0


def test_a_missing_label_in_one_patch_leaves_the_loss_that_is_told_to_the_others():
    whole, half = (
        Trainer(SETTINGS, ANCHORS).step(patches, 0.0)
        for patches in ([made_patch()], [made_patch(), made_patch(known=("detection",))])
    )
    assert half["segmentation"] == pytest.approx(whole["segmentation"], rel=1e-6)
    assert half["grading"] == pytest.approx(whole["grading"], rel=1e-6)


@pytest.mark.parametrize("balancing", ["gradnorm", "mgda"])
def test_the_networks_gradients_are_the_same_with_and_without_the_pass_of_the_balancing(balancing, monkeypatch):
    without = Trainer(replace(SETTINGS, balancing="fixed"), ANCHORS)
    with_balance = Trainer(replace(SETTINGS, balancing=balancing), ANCHORS)
    seen = {}
    monkeypatch.setattr(with_balance.balance, "update", lambda losses, gradients, present: seen.update(gradients))
    expected = gradients_after_a_step(without, [made_patch()])
    found = gradients_after_a_step(with_balance, [made_patch()])
    assert all(float(gradient.norm()) > 0 for gradient in seen.values())
    assert set(seen) == set(PARTS)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_task_gradients_are_averaged_over_the_batch_before_anything_is_made_of_them(monkeypatch):
    """The norm of the mean of two gradients is not the mean of their norms, unless they point the same way."""
    seen: list[dict[str, torch.Tensor]] = []
    patches = [made_patch(), Patch(made_patch().image.flip(1), made_patch().target)]
    for batch in ([patches[0]], [patches[1]], patches):
        trainer = Trainer(SETTINGS, ANCHORS)
        monkeypatch.setattr(trainer.balance, "update", lambda losses, gradients, present: seen.append(gradients))
        trainer.step(batch, 0.0)
    first, second, both = (each["segmentation"] for each in seen)
    torch.testing.assert_close(both, (first + second) / 2)
    assert both.norm() < 0.99 * (first.norm() + second.norm()) / 2


def test_recomputed_activations_give_the_same_gradients_and_the_same_names():
    kept, recomputed = (Trainer(replace(SETTINGS, gradient_checkpointing=on), ANCHORS) for on in (False, True))
    expected, found = (gradients_after_a_step(trainer, [made_patch()]) for trainer in (kept, recomputed))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert list(recomputed.network.state_dict()) == list(kept.network.state_dict())


def swinvit_file(path: Path, feature_size: int = 12) -> dict[str, torch.Tensor]:
    """Random weights under the names of MONAI's ``model_swinvit.pt``, which was trained on one channel; written."""
    torch.manual_seed(4)
    encoder = SwinUNETR(in_channels=1, out_channels=1, feature_size=feature_size).swinViT
    state = {f"module.{name.replace('mlp.linear', 'mlp.fc')}": tensor for name, tensor in encoder.state_dict().items()}
    state |= {"module.rotation_head.weight": torch.zeros(4, 768), "module.norm.weight": torch.ones(768)}
    torch.save({"epoch": 100, "state_dict": state}, path)
    return state


def test_self_supervised_weights_reach_the_encoder_under_the_names_that_monai_gives_them(tmp_path):
    state = swinvit_file(tmp_path / "model_swinvit.pt")
    theirs = SwinUNETR(in_channels=1, out_channels=1, feature_size=12)
    theirs.load_from({"state_dict": state})
    encoder = build_encoder(4, 12, published_merging=False)
    report = start_encoder(encoder, tmp_path / "model_swinvit.pt")
    ours, wanted = encoder.state_dict(), theirs.swinViT.state_dict()
    blocks = [name for name in wanted if ".blocks." in name]
    assert len(blocks) == 8 * 14
    assert all(torch.equal(ours[name], wanted[name]) for name in blocks)
    assert (report.missing, report.left) == ((), ("module.norm.weight", "module.rotation_head.weight"))
    assert "were left (module.norm.weight" in str(report)
    # One channel becomes four that share it: four equal sequences give what the one channel gave.
    image = torch.randn(1, 1, 4, 4, 4)
    torch.testing.assert_close(
        encoder.patch_embed(image.repeat(1, 4, 1, 1, 1)), theirs.swinViT.patch_embed(image), rtol=1e-4, atol=1e-5
    )


def test_each_sub_lattice_of_a_merge_keeps_the_columns_with_which_it_was_trained(tmp_path):
    state = swinvit_file(tmp_path / "file.pt")
    encoder = build_encoder(4, 12, published_merging=False)
    start_encoder(encoder, tmp_path / "file.pt")
    merge = encoder.layers1[0].downsample
    trained = PublishedPatchMerging(12, nn.LayerNorm, spatial_dims=3)
    trained.load_state_dict({name: state[f"module.layers1.0.downsample.{name}"] for name in trained.state_dict()})
    columns = dict(zip(product(range(2), repeat=3), merge.reduction.weight.chunk(8, dim=1), strict=True))
    assert torch.equal(columns[1, 0, 1], trained.reduction.weight.chunk(8, dim=1)[PUBLISHED_OFFSETS.index((1, 0, 1))])
    assert columns[1, 1, 0].abs().max() == columns[0, 1, 1].abs().max() == 0
    same = torch.randn(1, 1, 1, 1, 12).expand(1, 2, 2, 2, 12)  # where all sub-lattices agree, both merges do
    torch.testing.assert_close(merge(same), trained(same), rtol=1e-4, atol=1e-5)


def test_weights_of_another_size_of_another_network_or_with_code_in_them_are_refused(tmp_path):
    encoder = build_encoder(4, 12, published_merging=False)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    swinvit_file(tmp_path / "wide.pt", feature_size=24)
    with pytest.raises(ModelRefused, match=r"wide\.pt does not fit: .* has shape"):
        start_encoder(encoder, tmp_path / "wide.pt")
    torch.save({"state_dict": {"fc.weight": torch.ones(2)}}, tmp_path / "other.pt")
    with pytest.raises(ModelRefused, match=r"holds no block of a Swin encoder, but fc\.weight"):
        start_encoder(encoder, tmp_path / "other.pt")
    torch.save({"state_dict": {}, "code": Path("x")}, tmp_path / "code.pt")
    with pytest.raises(ModelRefused, match=r"code\.pt cannot be read"):
        start_encoder(encoder, tmp_path / "code.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_run_explains_itself_and_trains_on_cases_that_lack_a_grade_or_a_label_map(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    swinvit_file(tmp_path / "model_swinvit.pt")
    listed = four_studies(tmp_path / "studies")
    ungraded, unlabelled = replace(listed.cases[0], grade=None), replace(listed.cases[1], label=None)
    weights = str(tmp_path / "model_swinvit.pt")
    settings = replace(SMALL, steps=2, fold=None, gradient_checkpointing=True, encoder_weights=weights)
    folder = tmp_path / "run"
    train(listed.with_cases((ungraded, unlabelled)), folder, settings)
    rows = [json.loads(row) for row in (folder / "history.jsonl").read_text().splitlines()]
    tasks = sorted(sorted(set(row) - {"step", "weights"}) for row in rows)
    assert tasks == [["detection", "grading"], ["detection", "segmentation"]]
    config = json.loads((folder / "config.json").read_text())
    assert config["list_sha256"] == listed.sha256
    assert config["warm_start"]["text"].startswith(f"{2 + 8 * 13 + 4 * 3} of 118 tensors")
    (session,) = [json.loads(row) for row in (folder / "sessions.jsonl").read_text().splitlines()]
    assert session["versions"]["torch"] == torch.__version__
    assert session["command"]
    assert (session["from_step"], session["processes"]) == (0, 1)
    assert all(f"`{name}`" in (folder / "README.md").read_text() for name in ("config.json", "curves.png", "bundle/"))
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    points = {point.step: point.value for point in board.Scalars("loss/detection")}
    assert points == {row["step"]: pytest.approx(row["detection"], abs=1e-5) for row in rows}


def test_a_few_steps_on_one_patch_lower_the_loss_of_every_task():
    trainer = Trainer(replace(SETTINGS, learning_rate=3e-3, balance_every=100), ANCHORS)
    told = [trainer.step([made_patch()], 0.0) for _ in range(5)]
    assert told[-1]["segmentation"] < 0.95 * told[0]["segmentation"]
    assert told[-1]["detection"] < 0.9 * told[0]["detection"]
    assert told[-1]["grading"] < told[0]["grading"]


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"seed": -1}, r"seed cannot be -1\. Give 0 or more"),
        ({"workers": -1}, r"workers cannot be -1\. Give 0 or more"),
        ({"validate_every": -2}, r"validate_every cannot be -2\. Give 0 or more"),
        ({"save_every": 0}, r"save_every cannot be 0\. Give 1 or more"),
        ({"tasks": ("grading", "grading")}, r"tasks cannot be \('grading', 'grading'\)\. Name .* each once"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_they_may_be(chosen, reason):
    with pytest.raises(WrongUse, match=reason):
        CaseSettings(**chosen)


def test_the_help_names_every_device_that_a_run_takes_by_itself(capsys):
    assert cli.main(["train", "--help"]) == 0
    assert "cuda where there is one, else mps, else cpu" in " ".join(capsys.readouterr().out.split())


def test_validation_tells_the_precision_of_the_boxes_where_lesions_are_known(monkeypatch):
    lesions = [VoxelBox((2, 2, 2), (8, 8, 8)), VoxelBox((10, 10, 10), (14, 14, 14))]
    network = SimpleNamespace(tasks=("detection",))

    def measured(found: list[VoxelBox], truth: list[VoxelBox] | None) -> dict[str, float]:
        boxes = np.array([box.to_list() for box in found], np.float32).reshape(-1, 6)
        raw = SimpleNamespace(boxes=boxes, scores=np.linspace(0.9, 0.5, len(found), dtype=np.float32))
        monkeypatch.setattr(validation, "run_network", lambda *given: raw)
        example = Example(torch.zeros(4, 16, 16, 16), None, truth, None)
        return validation.measure_study(network, example, InferenceSettings(), torch.device("cpu"))

    assert measured(lesions, lesions) == {"boxes_ap10": pytest.approx(1.0)}
    assert 0.4 < measured(lesions[:1], lesions)["boxes_ap10"] < 0.6
    assert measured([], lesions) == {"boxes_ap10": 0.0}
    assert measured(lesions, []) == measured(lesions, None) == {}


def test_a_point_at_either_end_of_the_validation_lies_inside_its_panel(tmp_path, monkeypatch):
    (tmp_path / "rows").write_text('{"step": 1, "boxes_ap10": 1.0}\n')
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **how: drawn.append(self) or save(self, *given, **how))
    draw_curves(tmp_path / "none", tmp_path / "rows", ["detection"], tmp_path / "curves.png")
    low, high = drawn[0].axes[2].get_ylim()
    assert low < 0
    assert high > 1


def test_a_case_that_is_only_graded_trains_from_patches_that_hold_its_brain_or_is_left_out(tmp_path):
    """At 1.6 mm these brains are wider than 64 voxels, and hardly than 96."""
    listed = four_studies(tmp_path / "studies")
    graded, whole = replace(listed.cases[0], label=None, boxes=None), listed.cases[1]
    narrow = replace(SMALL, spacing_mm=1.6, steps=2, fold=None)
    wide = replace(narrow, wide_patch=96, wide_share=0.1)
    cache = ExampleCache(tmp_path / "cache", 1.6)
    assert not trains(graded, cache, narrow)
    assert not trains(replace(graded, grade=None), cache, wide)
    assert trains(replace(graded, label=whole.label), cache, narrow)
    assert trains(graded, cache, wide)
    patches = CasePatches([graded], cache, wide)
    assert all(patches[number].target.grade is not None for number in range(len(patches)))
    told = []
    folder = tmp_path / "run"
    with_both = listed.with_cases((graded, whole))
    train(with_both, folder, narrow, cache=cache.folder, progress=lambda stage, share, text: told.append(text))
    assert f"1 of 2 training studies train nothing: {graded.id}" in told
    studies = json.loads((folder / "config.json").read_text())["studies"]
    assert {use: list(cases) for use, cases in studies.items()} == {
        "training": [whole.id],
        "validation": [],
        "trains_nothing": [graded.id],
    }
    rows = [json.loads(row) for row in (folder / "history.jsonl").read_text().splitlines()]
    assert all("segmentation" in row for row in rows)
    with pytest.raises(InputRefused, match="truth for grading"):
        train(listed.with_cases((graded,)), tmp_path / "none", replace(narrow, tasks=("grading",)), cache=cache.folder)
