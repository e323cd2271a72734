"""ResFormer computes what its description says, and learns a few images by heart."""

from __future__ import annotations

import pytest
import torch

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.networks.interface import MultiTaskOutput
from MTMed3DCore.networks.resformer import build_resformer
from MTMed3DCore.networks.resformer_parts import ChannelAttention, FeatureEnhancement, patch_embedding, patch_merging
from MTMed3DCore.training.hybrid import BatchTarget, HybridLoss
from MTMed3DCore.training.losses import Target
from Testing.shapes import drawn_shapes, learn

SMALL = {"spatial_dims": 2, "in_channels": 1, "regions": 1, "feature_size": 8, "window": 4}
SMALL |= {"blocks": (1, 1, 1, 1), "drop_path": 0.0, "norm": "group"}


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_published_size_has_the_residual_blocks_of_a_resnet_34() -> None:
    network = build_resformer(spatial_dims=2, in_channels=3, regions=4, labels=3, window=14)
    assert parameters(network.encoder.residual) == 21_275_136
    assert [network.encoder.swin[level].blocks[0].num_heads for level in range(4)] == [2, 4, 8, 16]
    assert parameters(network) == 56_346_955


def test_channel_attention_weighs_channels_and_not_tokens() -> None:
    torch.manual_seed(0)
    attention = ChannelAttention()
    x = torch.randn(2, 5, 6, 7)
    means = torch.nn.functional.pad(x.mean(dim=(1, 2)), (1, 1))
    kernel = attention.conv.weight.flatten()
    gate = torch.sigmoid(means[:, :-2] * kernel[0] + means[:, 1:-1] * kernel[1] + means[:, 2:] * kernel[2])
    assert torch.allclose(attention(x), x * (1 + gate[:, None, None]), atol=1e-6)
    order = torch.randperm(5)
    assert torch.allclose(attention(x[:, order]), attention(x)[:, order], atol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_tokens_halve_the_sides(dims: int) -> None:
    kernels = (2, 4, 8, 16) if dims == 2 else (2, 4, 8)
    embedding = patch_embedding(dims, 3, 32, kernels)
    widths = [conv.out_channels for conv in embedding.convs]
    assert widths == ([16, 8, 4, 4] if dims == 2 else [16, 8, 8])
    tokens = embedding(torch.randn(1, 3, *[32] * dims))
    assert tokens.shape == (1, 32, *[16] * dims)
    assert torch.allclose(tokens.mean(dim=1), torch.zeros(1, *[16] * dims), atol=1e-5)  # layer-normed
    assert patch_merging(dims, 32)(tokens).shape == (1, 64, *[8] * dims)


@pytest.mark.parametrize("rate", [6, 12, 18])
def test_a_dilated_branch_sees_exactly_its_rate_away(rate: int) -> None:
    enhancement = FeatureEnhancement(2, 2, (6, 12, 18), "batch").eval()
    x = torch.zeros(1, 2, 41, 41, requires_grad=True)
    branch = enhancement.branches[(6, 12, 18).index(rate) + 1].conv
    branch(x)[0, :, 20, 20].sum().backward()
    places = {tuple(place) for place in (x.grad[0].abs().sum(0) > 0).nonzero().tolist()}
    assert places == {(20 + a, 20 + b) for a in (-rate, 0, rate) for b in (-rate, 0, rate)}


def test_labels_come_from_the_deepest_two_levels_alone() -> None:
    network = build_resformer(**SMALL).eval()
    image = torch.randn(1, 1, 64, 64)
    features = network.encode(image)
    assert [tuple(level.shape[1:]) for level in features] == [(8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4)]
    others = [torch.zeros_like(features[0]), torch.zeros_like(features[1]), *features[2:]]
    assert torch.equal(network.classify(others), network.classify(features))
    changed = [*features[:3], features[3].flip(1)]
    assert not torch.allclose(network.classify(changed), network.classify(features))
    assert torch.equal(network.grade(image), network(image).grade)


def test_the_parallel_form_adds_what_the_sequential_form_joins() -> None:
    torch.manual_seed(0)
    sequential, parallel = (build_resformer(**SMALL, variant=name).eval() for name in ("sequential", "parallel"))
    parallel.encoder.load_state_dict(sequential.encoder.state_dict())
    image = torch.randn(1, 1, 64, 64)
    encoder = sequential.encoder
    residual = encoder.residual[0](encoder.pool(encoder.stem(image)))
    tokens = encoder.tokens[0](image)
    assert torch.allclose(sequential.encode(image)[0], encoder.swin[0](residual + tokens), atol=1e-6)
    assert torch.allclose(parallel.encode(image)[0], residual + encoder.swin[0](tokens), atol=1e-6)
    assert not any("where" in name for name in parallel.state_dict())
    assert parallel(image).segmentation.shape == (1, 1, 64, 64)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("feature_size", 12), ("variant", "both"), ("norm", "layer"), ("rates", [0]), ("blocks", [1, 1]), ("tasks", [])],
)
def test_a_setting_that_no_network_can_have_is_refused(setting: str, value: object) -> None:
    with pytest.raises(WrongUse, match=setting):
        build_resformer(**{**SMALL, setting: value})


def test_an_image_that_does_not_fit_the_strides_is_refused() -> None:
    network = build_resformer(**SMALL)
    with pytest.raises(ValueError, match="multiples of 16"):
        network.encode(torch.zeros(1, 1, 64, 40))


def test_unknown_truth_costs_nothing_and_leaves_the_others_as_they_are() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 16, 16, requires_grad=True), torch.randn(2, 2, requires_grad=True)
    regions = torch.nn.functional.one_hot(torch.randint(0, 3, (16, 16)), 3).permute(2, 0, 1).float()
    loss = HybridLoss(("segmentation", "grading"), [], region_activation="softmax", label_activation="sigmoid")
    truth = torch.tensor([1.0, 0.0])
    both = loss(
        logits, MultiTaskOutput(logits, labels, None, []), BatchTarget((regions, None), (None,) * 2, (None, truth))
    )
    first, second = MultiTaskOutput(logits[:1], None, None, []), MultiTaskOutput(None, labels[1:], None, [])
    one = loss(logits[:1], first, BatchTarget((regions,), (None,), (None,)))
    other = loss(logits[1:], second, BatchTarget((None,), (None,), (truth,)))
    assert torch.allclose(both["segmentation"], one["segmentation"])
    assert torch.allclose(both["grading"], other["grading"])
    sigmoid = torch.sigmoid(labels[1]).detach()
    wanted = float(-(sigmoid[0].log() + (1 - sigmoid[1]).log()) / 2)
    assert float(both["grading"].detach()) == pytest.approx(wanted, rel=1e-5)
    nothing = loss(logits, MultiTaskOutput(logits, labels, None, []), BatchTarget(*[(None, None)] * 3))
    assert [float(value.detach()) for value in nothing.values()] == [0.0, 0.0]
    nothing["segmentation"].backward()
    assert float(logits.grad.abs().sum()) == 0.0


def test_a_label_weighs_what_it_is_given_and_a_perfect_segmentation_costs_nothing() -> None:
    loss = HybridLoss(("segmentation", "grading"), [], label_activation="sigmoid", label_weights=(3.0, 1.0))
    regions = torch.zeros(1, 1, 32, 32)
    regions[..., 4:20, 4:20] = 1
    labels = torch.zeros(1, 2)
    target = BatchTarget((regions[0],), (None,), (torch.tensor([1.0, 1.0]),))
    losses = loss(regions, MultiTaskOutput(40 * (regions - 0.5), labels, None, []), target)
    assert float(losses["segmentation"]) == pytest.approx(0.0, abs=1e-5)
    assert float(losses["grading"]) == pytest.approx((3 + 1) / 2 * 0.6931, rel=1e-3)


def test_a_brain_patch_is_a_batch_of_one_with_exclusive_grades() -> None:
    loss = HybridLoss(("segmentation", "grading"), [])
    logits = torch.tensor([[0.0, 2.0]])
    output = MultiTaskOutput(None, logits, None, [])
    losses = loss(torch.zeros(1, 4, 8, 8, 8), output, Target(None, None, 1))
    assert float(losses["grading"]) == pytest.approx(float(torch.log1p(torch.exp(torch.tensor(-2.0)))), rel=1e-5)


def test_a_tiny_set_is_learnt_by_heart() -> None:
    torch.manual_seed(0)
    network = build_resformer(**SMALL)
    loss = HybridLoss(("segmentation", "grading"), [])
    dice, right, _ = learn(network, loss, drawn_shapes(2), {"grading": 0.25}, steps=60)
    assert dice >= 0.95
    assert right == 1.0
