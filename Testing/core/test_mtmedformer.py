"""MTMedFormer: an encoder that knows no task, decoders that know nothing of each other, and a loss for images."""

from __future__ import annotations

import pytest
import torch

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.evaluation.detection import detection_figures, match_boxes
from MTMed3DCore.images2d.imagelist import Truths
from MTMed3DCore.images2d.prediction import find_boxes
from MTMed3DCore.images2d.settings import ImageSettings
from MTMed3DCore.networks.interface import MultiTaskOutput
from MTMed3DCore.networks.mtmedformer import MTMedFormer, build_mtmedformer
from MTMed3DCore.networks.registry import TASKS
from MTMed3DCore.training.anchors import LevelAnchors
from MTMed3DCore.training.hybrid import BatchTarget, HybridLoss
from Testing.shapes import SIDE, drawn_shapes, learn

SHAPES = ((14.0, 14.0), (10.0, 18.0))


def small(tasks: tuple[str, ...] = TASKS) -> MTMedFormer:
    torch.manual_seed(0)
    arguments = {"spatial_dims": 2, "in_channels": 1, "regions": 1, "labels": 2, "num_anchors": len(SHAPES)}
    return build_mtmedformer(**arguments, feature_size=12, window=4, tasks=tasks)


def lifted(box: list[float]) -> list[float]:
    return [box[0], box[1], 0.0, box[2], box[3], 1.0]


def test_maps_of_two_dimensions_have_four_numbers_a_box_and_of_three_six() -> None:
    output = small()(torch.randn(2, 1, SIDE, SIDE))
    assert [tuple(s.shape) for s, _ in output.detection] == [(2, 2, n, n) for n in (16, 8, 4, 2)]
    assert [tuple(d.shape) for _, d in output.detection] == [(2, 8, n, n) for n in (16, 8, 4, 2)]
    assert (tuple(output.segmentation.shape), tuple(output.grade.shape)) == ((2, 1, 64, 64), (2, 2))
    volume = build_mtmedformer(feature_size=12, window=2, num_anchors=1).eval()
    with torch.inference_mode():
        output = volume(torch.randn(1, 4, 64, 32, 32))
    assert [tuple(d.shape[1:]) for _, d in output.detection] == [
        (6, 16, 8, 8),
        (6, 8, 4, 4),
        (6, 4, 2, 2),
        (6, 2, 1, 1),
    ]
    assert (tuple(output.segmentation.shape), tuple(output.grade.shape)) == ((1, 3, 64, 32, 32), (1, 2))


def test_every_task_reaches_the_encoder_and_no_other_decoder() -> None:
    network = small()
    output = network(torch.randn(1, 1, SIDE, SIDE))
    values = {
        "segmentation_decoder": output.segmentation.square().mean(),
        "grading_head": output.grade.square().mean(),
        "detection_decoder": sum(s.square().mean() + d.square().mean() for s, d in output.detection),
    }
    for own, value in values.items():
        network.zero_grad()
        value.backward(retain_graph=True)
        reached = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached == {"encoder", own}


def test_a_network_without_a_task_has_no_part_for_it_and_the_same_encoder() -> None:
    whole, part = small(), small(("grading",))
    assert {name.split(".")[0] for name in part.state_dict()} == {"encoder", "grading_head"}
    part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
    image = torch.randn(1, 1, SIDE, SIDE)
    whole.eval(), part.eval()
    with torch.inference_mode():
        assert torch.equal(part(image).grade, whole(image).grade)
        assert part(image).segmentation is None
        assert part(image).detection is None


@pytest.mark.parametrize(("setting", "value"), [("feature_size", 16), ("window", 1), ("spatial_dims", 4)])
def test_a_setting_that_no_network_can_have_is_refused(setting: str, value: int) -> None:
    with pytest.raises(WrongUse, match=setting):
        build_mtmedformer(**{setting: value})


def test_perfect_boxes_cost_nothing_and_an_image_without_boxes_charges_only_false_scores() -> None:
    image = torch.zeros(1, 1, SIDE, SIDE)
    loss = HybridLoss(("detection",), SHAPES)
    sides = (16, 8, 4, 2)
    maps = [(torch.full((1, 2, n, n), -20.0), torch.zeros(1, 8, n, n)) for n in sides]
    anchors, _ = LevelAnchors(SHAPES)(image, [s for s, _ in maps])
    box = anchors[2 * (7 * 16 + 9)]  # an anchor of the finest level is the truth
    output = MultiTaskOutput(None, None, maps, [])
    missed = loss(image, output, BatchTarget((None,), (box[None],), (None,)))["detection"]
    assert float(missed) > 1.0
    empty = loss(image, output, BatchTarget((None,), (torch.zeros(0, 4),), (None,)))["detection"]
    assert float(empty) == pytest.approx(0.0, abs=1e-6)
    unknown = loss(image, output, BatchTarget((None,), (None,), (None,)))["detection"]
    assert float(unknown) == 0.0


def test_a_tiny_set_with_boxes_is_learnt_by_heart() -> None:
    batch = drawn_shapes(2)
    dice, right, output = learn(small(), HybridLoss(TASKS, SHAPES), batch, {}, steps=60, rate=3e-3)
    settings = ImageSettings(SIDE, 1, Truths(("a",), (1,)), anchor_shapes=SHAPES)
    matches = []
    for index, truth in enumerate(batch[1].boxes):
        maps = [(s[index : index + 1], d[index : index + 1]) for s, d in output.detection]
        boxes, scores = find_boxes(maps, settings)
        matches.append(match_boxes([lifted(b) for b in boxes.tolist()], scores.tolist(), [lifted(truth[0].tolist())]))
    assert dice >= 0.95
    assert right == 1.0
    assert detection_figures(matches)["AP_IoU_0.10"] == pytest.approx(1.0)
