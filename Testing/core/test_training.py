"""Anchors, losses and GradNorm against numbers worked out by hand; a run that diverges."""

from __future__ import annotations

import json
import subprocess
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from MTMed3DCore import cli
from MTMed3DCore.errors import WrongUse
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.inference import InferenceSettings
from MTMed3DCore.inference.windows import RawResult
from MTMed3DCore.networks import MultiTaskOutput
from MTMed3DCore.preparation import PreparedStudy
from MTMed3DCore.training.anchors import LevelAnchors, fit_anchor_shapes, flatten_maps, mean_best_iou
from MTMed3DCore.training.balancing import GradNorm, task_gradients
from MTMed3DCore.training.calibration import Outcome, calibrated, lesion_f1
from MTMed3DCore.training.distributed import Team
from MTMed3DCore.training.feeding import CasePatches
from MTMed3DCore.training.losses import DetectionLoss, GradingLoss, MultiTaskLoss, SegmentationLoss, Target
from MTMed3DCore.training.patches import Patch
from MTMed3DCore.training.precision import guard_small_convolutions
from MTMed3DCore.training.trainer import Trainer
from Testing.core.test_distributed import torchrun
from Testing.core.test_train_options import ANCHORS, SETTINGS, made_patch
from Testing.training_runs import SMALL, four_studies, with_sources


def test_anchors_fitted_to_boxes_of_three_sizes_cover_them():
    rng = np.random.default_rng(3)
    sizes = np.concatenate([base * rng.uniform(0.9, 1.1, (40, 3)) for base in ([8, 8, 8], [20, 16, 20], [40, 50, 30])])
    shapes = fit_anchor_shapes(sizes, count=3)
    assert mean_best_iou(sizes, shapes) > 0.7
    assert mean_best_iou(sizes, [[3.0, 3.0, 3.0]] * 3) < 0.6


def test_too_few_boxes_to_fit_anchors_are_refused():
    with pytest.raises(ValueError, match="at least 5 boxes"):
        fit_anchor_shapes([[1, 2, 3]], count=5)


def test_flattened_head_maps_keep_the_order_of_the_anchors():
    """Each place writes its own anchor's corner into the map; flattening must line the two up."""
    image = torch.zeros(1, 4, 32, 64, 32)
    maps = [torch.zeros(1, 2, 8, 16, 8), torch.zeros(1, 2, 4, 8, 4)]
    anchors, places = LevelAnchors([[4, 4, 4], [8, 4, 4]], (1, 2))(image, maps)
    rows = anchors.split([n * 2 for n in places])
    painted = [r.reshape(*m.shape[2:], 12).permute(3, 0, 1, 2)[None] for r, m in zip(rows, maps, strict=True)]
    assert torch.equal(flatten_maps(painted, 6)[0], anchors)
    assert anchors[0].tolist() == [0, 0, 0, 4, 4, 4]
    assert anchors[2 * (8 * 3 + 1) : 2 * (8 * 3 + 1) + 1].tolist() == [[0, 12, 4, 4, 16, 8]]


def test_a_false_positive_on_an_empty_region_is_charged_and_pushed_down():
    logits = torch.full((1, 3, 8, 8, 8), -6.0)
    logits[:, 2, 2:6, 2:6, 2:6] = 3.0
    logits.requires_grad_()
    truth = torch.zeros(1, 3, 8, 8, 8)
    loss = SegmentationLoss()(logits, truth)
    loss.backward()
    clean = SegmentationLoss()(torch.full((1, 3, 8, 8, 8), -6.0), truth)
    assert loss > clean + 0.2
    assert (logits.grad[:, 2, 2:6, 2:6, 2:6] > 1e-4).all()


def detection_maps(size: int, score: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (torch.full((1, 1, n, n, n), score).requires_grad_(), torch.zeros(1, 6, n, n, n).requires_grad_())
        for n in (size // 4, size // 8, size // 16, size // 32)
    ]


def test_an_exact_anchor_at_an_object_costs_no_box_loss():
    image = torch.zeros(1, 4, 32, 32, 32)
    loss = DetectionLoss([[4.0, 4.0, 4.0]])
    maps = detection_maps(32, -20.0)
    box = torch.tensor([[8.0, 8.0, 8.0, 12.0, 12.0, 12.0]])
    with torch.no_grad():
        maps[0][0][0, 0, 2, 2, 2] = 20.0
    loss(image, maps, box).backward()
    place = maps[0][1].grad[0, :, 2, 2, 2]
    assert place.abs().max() == 0
    shifted = detection_maps(32, -20.0)
    loss(image, shifted, box + 1.0).backward()
    assert shifted[0][1].grad[0, :, 2, 2, 2].abs().max() > 0


def test_scores_are_charged_by_the_focal_formula_over_the_number_of_positives():
    maps = detection_maps(32, 0.0)
    loss = DetectionLoss([[4.0, 4.0, 4.0]])(torch.zeros(1, 4, 32, 32, 32), maps, torch.zeros(0, 6))
    anchors = 8**3 + 4**3 + 2**3 + 1
    assert float(loss.detach()) == pytest.approx(anchors * 0.75 * 0.25 * np.log(2), rel=1e-5)


def test_a_patch_without_objects_pushes_all_scores_down_and_no_box():
    maps = detection_maps(32, 0.0)
    DetectionLoss([[4.0, 4.0, 4.0]])(torch.zeros(1, 4, 32, 32, 32), maps, torch.zeros(0, 6)).backward()
    assert all((scores.grad > 0).all() and boxes.grad.abs().max() == 0 for scores, boxes in maps)


def test_grading_loss_falls_as_the_right_grade_gains():
    loss = GradingLoss()
    wrong, right = (loss(torch.tensor([[a, -a]]), 0) for a in (-2.0, 2.0))
    assert right < 0.01 < 1.0 < wrong


def test_a_task_without_labels_costs_nothing_but_reaches_its_outputs():
    segmentation = torch.randn(1, 3, 32, 32, 32, requires_grad=True)
    grade = torch.randn(1, 2, requires_grad=True)
    maps = detection_maps(32, 0.3)
    output = MultiTaskOutput(segmentation, grade, maps, [])
    criterion = MultiTaskLoss(("segmentation", "detection", "grading"), [[4.0, 4.0, 4.0]])
    losses = criterion(torch.zeros(1, 4, 32, 32, 32), output, Target(None, None, None))
    assert set(losses) == {"segmentation", "detection", "grading"}
    assert all(float(value.detach()) == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert segmentation.grad.abs().max() == grade.grad.abs().max() == maps[0][0].grad.abs().max() == 0


@pytest.fixture
def two_tasks():
    shared = torch.ones(3, requires_grad=True)
    scales = torch.tensor([1.0, 10.0])

    def losses() -> dict[str, torch.Tensor]:
        return {"small": scales[0] * shared.square().sum(), "large": scales[1] * shared.square().sum()}

    return shared, losses


def test_gradnorm_lowers_the_task_with_the_larger_gradient_and_keeps_the_sum(two_tasks):
    shared, losses = two_tasks
    balance = GradNorm(("small", "large"), alpha=0.0, learning_rate=0.05, warm_up=1)
    balance.observe(losses(), [True, True])
    for _ in range(400):
        balance.update(losses(), task_gradients(losses(), [shared]), [True, True])
    small, large = balance.weights.tolist()
    assert small + large == pytest.approx(2.0, abs=1e-5)
    assert small / large == pytest.approx(10.0, rel=0.15)


def test_gradnorm_leaves_no_gradient_in_the_network(two_tasks):
    shared, losses = two_tasks
    balance = GradNorm(("small", "large"), warm_up=1)
    values = losses()
    balance.observe(values, [True, True])
    balance.update(values, task_gradients(values, [shared]), [True, True])
    assert balance.weights.tolist() != [1.0, 1.0]
    assert shared.grad is None
    balance.total(values).backward()
    expected = 2 * (balance.weights[0] * 1.0 + balance.weights[1] * 10.0)
    assert torch.allclose(shared.grad, expected.detach().expand(3), atol=1e-5)


def test_gradnorm_keeps_its_initial_losses_through_a_checkpoint(two_tasks):
    shared, losses = two_tasks
    balance = GradNorm(("small", "large"), warm_up=1)
    balance.observe(losses(), [True, True])
    again = GradNorm(("small", "large"), warm_up=1)
    again.load_state_dict(balance.state_dict())
    assert again.initial.tolist() == pytest.approx([3.0, 30.0])
    with torch.no_grad():
        shared.mul_(0.5)
    again.observe(losses(), [True, True])
    assert again.initial.tolist() == pytest.approx([3.0, 30.0])


def test_gradnorm_keeps_the_weight_of_a_task_without_labels(two_tasks):
    shared, losses = two_tasks
    balance = GradNorm(("small", "large"), warm_up=1)
    balance.observe(losses(), [True, False])
    balance.update(losses(), task_gradients(losses(), [shared]), [True, False])
    assert balance.weights.tolist() == [1.0, 1.0]
    assert balance.seen.tolist() == [1.0, 0.0]


def test_convolutions_over_few_voxels_keep_full_precision_gradients_under_autocast():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(48, 48, 3, padding=1), torch.nn.Conv3d(48, 48, 3, padding=1))
    x = torch.randn(1, 48, 2, 2, 2)
    network(x).square().sum().backward()
    exact = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    guard_small_convolutions(network)
    with torch.autocast("cpu", torch.bfloat16):
        small = network(x)
        large = network(torch.randn(1, 48, 8, 8, 8))
    assert (small.dtype, large.dtype) == (torch.float32, torch.bfloat16)
    small.square().sum().backward()
    assert all(torch.equal(p.grad, wanted) for p, wanted in zip(network.parameters(), exact, strict=True))


def test_an_error_inside_a_guarded_convolution_does_not_leave_autocast_switched_off():
    convolution = torch.nn.Conv3d(4, 4, 3, padding=1)
    guard_small_convolutions(convolution)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError):
            convolution(torch.randn(1, 5, 2, 2, 2))
        assert torch.is_autocast_enabled("cpu")


def outcome_of(probability: float, noise_ml: float, score: float, false_score: float) -> Outcome:
    """A cube of tumour found with a probability, a speck of noise beside it, a true box and a false one."""
    grid = Grid((40, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0]))
    regions = np.zeros((3, 40, 40, 40), np.float32)
    truth = np.zeros((3, 40, 40, 40), bool)
    regions[:, 5:15, 5:15, 5:15], truth[:, 5:15, 5:15, 5:15] = probability, True
    regions[:, 20 : 20 + round(noise_ml / 0.008), 30, 30] = 0.9
    boxes = np.array([[5, 5, 5, 15, 15, 15], [20, 20, 20, 25, 25, 25]], np.float32)
    raw = RawResult(regions, boxes, np.array([score, false_score], np.float32), None)
    prepared = PreparedStudy(np.zeros((4, 40, 40, 40), np.float32), np.ones((40, 40, 40), bool), grid, grid, True)
    return Outcome(raw, prepared, truth, [VoxelBox((5, 5, 5), (15, 15, 15))])


def test_calibration_takes_the_thresholds_that_keep_what_is_true_and_drop_what_is_not():
    """Tumours are found with .45 and more, specks hold less than .15 ml, and false boxes score .25 at most."""
    start = InferenceSettings(anchor_shapes=[[5, 5, 5]], score_threshold=0.05)
    chosen = calibrated(start, [outcome_of(0.45, 0.05, 0.9, 0.12), outcome_of(0.8, 0.13, 0.9, 0.25)])
    assert chosen.region_thresholds == (0.3, 0.3, 0.3)
    assert (chosen.minimum_lesion_ml, chosen.score_threshold) == (0.2, 0.3)


def test_each_region_has_the_threshold_that_suits_it():
    """Noise of .45 lies round the core alone, and a study without tumour says nothing of the regions."""
    outcome = outcome_of(0.55, 0.0, 0.9, 0.12)
    outcome.raw.regions[0, 5:15, 5:15, 15:25] = 0.45
    outcome.raw.regions[2][outcome.regions[2]] = 0.35
    free = replace(outcome_of(0.95, 0.0, 0.9, 0.12), regions=np.zeros((3, 40, 40, 40), bool), boxes=[])
    chosen = calibrated(InferenceSettings(anchor_shapes=[[5, 5, 5]], score_threshold=0.05), [outcome, free])
    assert chosen.region_thresholds == (0.5, 0.3, 0.3)


def test_boxes_without_a_region_get_a_threshold_of_their_own_where_that_spares_false_lesions():
    """Each study has a true box of .6 round a region; in one a box of .75 holds nothing and is false."""
    start = InferenceSettings(anchor_shapes=[[5, 5, 5]], score_threshold=0.05)
    chosen = calibrated(start, [outcome_of(0.9, 0.0, 0.6, 0.75), outcome_of(0.9, 0.0, 0.6, 0.01)])
    assert (chosen.score_threshold, chosen.bare_box_score) == (0.05, 0.8)
    assert lesion_f1(chosen, [outcome_of(0.9, 0.0, 0.6, 0.75)]) == 1.0


def test_regions_without_a_box_need_a_size_where_the_detector_is_right_about_them():
    """A false region of 1.6 ml has no box; a true one of 1.2 ml has one, which is much too large to count by itself."""
    start = InferenceSettings(anchor_shapes=[[5, 5, 5]], score_threshold=0.05)
    small = outcome_of(0.9, 0.0, 0.9, 0.01)
    small.raw.regions[:, 25:30, 25:30, 25:33] = 0.9
    little = outcome_of(0.9, 0.0, 0.9, 0.01)
    little.raw.regions[...] = 0.05
    little.raw.regions[:, 5:10, 5:10, 5:11] = 0.9
    little = replace(little, regions=little.raw.regions > 0.5, boxes=[VoxelBox((5, 5, 5), (10, 10, 11))])
    little.raw.boxes[0] = [0, 0, 0, 20, 20, 30]
    chosen = calibrated(start, [small, little])
    assert (chosen.minimum_lone_ml, chosen.minimum_lesion_ml) == (2.0, 0.1)
    assert lesion_f1(chosen, [small, little]) == 1.0


def test_lesion_f1_pools_hits_misses_and_false_lesions_over_studies():
    settings = InferenceSettings(anchor_shapes=[[5, 5, 5]], score_threshold=0.05)
    found, missed = outcome_of(0.9, 0, 0.9, 0.2), outcome_of(0.1, 0, 0.01, 0.02)
    assert lesion_f1(settings, [found]) == pytest.approx(2 * 1 / (2 + 1))
    assert lesion_f1(settings, [found, missed]) == pytest.approx(2 * 1 / (2 + 2))
    assert lesion_f1(settings, []) == 1.0


class Spoiled(torch.nn.Module):
    """A loss of which one task is multiplied, or given a term that is zero with an endless slope."""

    def __init__(self, loss: torch.nn.Module, task: str, factor: float) -> None:
        super().__init__()
        self.loss, self.task, self.factor = loss, task, factor

    def forward(self, *given: object) -> dict[str, torch.Tensor]:
        losses = self.loss(*given)
        own = losses[self.task]
        return {**losses, self.task: own + (0.0 * own).sqrt() if self.factor == 1 else own * self.factor}


def everything_of(trainer: Trainer) -> dict[str, dict]:
    """All that a checkpoint holds of a trainer but its random numbers."""
    moments = {str(number): state for number, state in trainer.optimizer.state_dict()["state"].items()}
    balance = dict(trainer.balance.state_dict())
    parts = {"network": trainer.network.state_dict(), "average": trainer.average.state_dict()}
    return deepcopy({**parts, "moments": moments, "balance": balance, "steps": {"all": torch.tensor(trainer.steps)}})


@pytest.mark.parametrize(
    ("balancing", "precision", "task", "factor", "text"),
    [
        ("fixed", "fp32", "detection", np.nan, "at step 2 the loss of detection is not finite"),
        ("uncertainty", "bf16", "segmentation", np.inf, "at step 2 the loss of segmentation is not finite"),
        ("mgda", "bf16", "grading", -np.inf, "at step 2 the loss of grading is not finite"),
        ("fixed", "fp32", "detection", 1, "at step 2 the gradient of detection is not finite"),
        ("gradnorm", "fp32", "grading", 1, "at step 2 the gradient of grading is not finite"),
    ],
)
def test_a_step_with_a_loss_or_a_gradient_that_is_not_finite_is_refused_and_moves_nothing(
    balancing, precision, task, factor, text
):
    trainer = Trainer(replace(SETTINGS, balancing=balancing, precision=precision), ANCHORS)
    trainer.step([made_patch()], 0.0)
    before, whole = everything_of(trainer), trainer.loss
    trainer.loss = Spoiled(whole, task, factor)
    with pytest.raises(WrongUse, match=text) as refused:
        trainer.step([made_patch(), made_patch(known=("grading",))], 0.0)
    assert refused.value.code == "training-diverged"
    assert "--learning-rate below 0.0004" in refused.value.remedy
    assert ("--precision fp32" in refused.value.remedy) == (precision == "bf16")
    torch.testing.assert_close(everything_of(trainer), before, rtol=0, atol=0)
    trainer.loss = whole
    assert set(trainer.step([made_patch(known=("grading",))], 0.0)) == {"grading"}  # no label is no divergence


def test_a_run_that_diverges_keeps_its_last_good_checkpoint_and_can_go_on_from_it(tmp_path, monkeypatch, capsys):
    """A checkpoint is due at each of two steps, and the patch of the second holds no numbers."""
    four_studies(tmp_path / "studies")
    (tmp_path / "settings.json").write_text(json.dumps(replace(SMALL, steps=2, save_every=1, fold=None).to_dict()))
    folder = tmp_path / "run"
    command = ["train", tmp_path / "studies" / "list.json", "--settings", tmp_path / "settings.json", "-o", folder]
    real = CasePatches.__getitem__

    def spoiled(patches: CasePatches, number: int) -> Patch:
        patch = real(patches, number)
        return replace(patch, image=patch.image * torch.nan) if number == 1 else patch

    with monkeypatch.context() as patched:
        patched.setattr(CasePatches, "__getitem__", spoiled)
        assert cli.main([*map(str, command), "--quiet"]) == WrongUse.exit_code == 2
    said = capsys.readouterr().err
    assert "at step 2 the loss of segmentation, detection" in said
    assert "Train anew with a --learning-rate below 0.0004" in said
    kept = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert kept["steps"] == 1
    assert all(tensor.isfinite().all() for tensor in kept["network"].values())
    assert len((folder / "history.jsonl").read_text().splitlines()) == 1
    assert not (folder / "bundle").exists()
    assert cli.main([*map(str, command), "--resume", "--quiet"]) == 0
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["steps"] == 2


RANKS = """
import sys
from pathlib import Path
from MTMed3DCore.training.distributed import join_team
from Testing.core.test_training import told_of_divergence
with join_team("cpu") as team:
    for balancing in ("fixed", "mgda"):
        (Path(sys.argv[1]) / f"{balancing}-{team.rank}").write_text(told_of_divergence(balancing, team))
"""


def told_of_divergence(balancing: str, team: Team) -> str:
    """What this process says of a batch whose second patch, the other process's, holds no numbers."""
    trainer = Trainer(replace(SETTINGS, balancing=balancing), ANCHORS, team)
    before, patch = everything_of(trainer), made_patch(known=("detection",))
    batch = [made_patch(), Patch(patch.image * torch.nan, patch.target)]
    with pytest.raises(WrongUse) as refused:
        trainer.step(list(team.share(batch)), 0.0)
    torch.testing.assert_close(everything_of(trainer), before, rtol=0, atol=0)
    return refused.value.text


def test_what_diverges_in_one_of_two_processes_is_refused_by_both_with_the_same_words(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    subprocess.run(torchrun(tmp_path / "ranks.py", tmp_path), check=True, env=with_sources(), timeout=300)
    said = {(tmp_path / f"{balancing}-{rank}").read_text() for balancing in ("fixed", "mgda") for rank in (0, 1)}
    assert said == {"Training has diverged: at step 1 the loss of detection is not finite."}
