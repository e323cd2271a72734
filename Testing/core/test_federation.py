"""Joining the sites' models: closed forms, tasks that a site lacks, batch statistics, units in another order."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.federation.aggregation import aggregate, distance, posterior_product
from MTMed3DCore.federation.matching import align, match
from MTMed3DCore.federation.settings import FederationSettings
from MTMed3DCore.federation.symmetry import permute, symmetries
from MTMed3DCore.federation.updates import GlobalState, SiteUpdate, fault, is_statistic
from MTMed3DCore.networks import TaskNetwork, build_network
from MTMed3DCore.networks.ownership import owner

TASKS = ("segmentation", "grading")
SHAPES = {"encoder.w": (3, 2), "segmentation_decoder.w": (4,), "grading_branch.w": (2,)}


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def site(name: str, seed: int, studies: int, bayes: bool = True, **labelled: int) -> SiteUpdate:
    """An update with random weights and, for the Bayesian rule, random precisions."""
    counts = {"studies": studies, **labelled}
    known = {k: v for k, v in tensors(seed).items() if counts.get(owner(k, TASKS) or "studies", 0)}
    if not bayes:
        return SiteUpdate(name, counts, known)
    generator = torch.Generator().manual_seed(1000 + seed)
    precision = {k: studies * torch.rand(v.shape, generator=generator).add(0.01) for k, v in known.items()}
    return SiteUpdate(name, counts, {k: v * precision[k] for k, v in known.items()}, precision)


def test_fedavg_is_the_mean_weighted_by_studies() -> None:
    before = GlobalState(4, tensors(0))
    first = site("a", 1, 30, False, segmentation=30, grading=30)
    second = site("b", 2, 10, False, segmentation=10, grading=10)
    after = aggregate(before, [second, first], TASKS)
    for name in SHAPES:
        torch.testing.assert_close(after.tensors[name], 0.75 * tensors(1)[name] + 0.25 * tensors(2)[name])
    assert after.round == 5


def test_two_gaussians_of_known_precision_give_their_product() -> None:
    means, precisions = [torch.tensor([2.0, -1.0]), torch.tensor([6.0, 3.0])], [torch.tensor([3.0, 1.0]), torch.ones(2)]
    weighted = [mean * precision for mean, precision in zip(means, precisions, strict=True)]
    mean, total = posterior_product(weighted, precisions, [1, 1], 0.0)
    assert mean.tolist() == [3.0, 1.0]  # (3*2 + 1*6) / 4 and (-1 + 3) / 2
    assert total.tolist() == [4.0, 2.0]


def test_damping_adds_a_multiple_of_the_mean_precision_by_study() -> None:
    weighted, precisions = [torch.tensor([8.0]), torch.tensor([0.0])], [torch.tensor([4.0]), torch.tensor([2.0])]
    mean, _ = posterior_product(weighted, precisions, [1, 2], 0.5)
    # Mean precision a study is 6/3; damped precisions are 4 + 1 and 2 + 2; means are 2 and 0.
    assert mean.item() == pytest.approx(2 * 5 / 9, abs=1e-12)


@pytest.mark.parametrize("damping", [1e9, math.inf])
def test_infinite_damping_is_fedavg(damping: float) -> None:
    before = GlobalState(0, tensors(0))
    given = [("a", 1, 30, {"segmentation": 30}), ("b", 2, 7, {"segmentation": 5, "grading": 7})]
    averaged = aggregate(before, [site(n, s, k, False, **more) for n, s, k, more in given], TASKS)
    joined = aggregate(before, [site(n, s, k, **more) for n, s, k, more in given], TASKS, damping=damping)
    assert distance(averaged.tensors, joined.tensors) < 1e-6
    assert (
        distance(
            aggregate(before, [site(n, s, k, **m) for n, s, k, m in given], TASKS, damping=0.1).tensors,
            averaged.tensors,
        )
        > 0.01
    )


@pytest.mark.parametrize("bayes", [False, True])
def test_a_site_without_labels_for_a_task_drops_out_of_its_decoder_exactly(bayes: bool) -> None:
    before = GlobalState(0, tensors(0))
    knowing = site("a", 1, 3, bayes, segmentation=3)
    lacking = site("b", 2, 900, bayes, grading=900)
    after = aggregate(before, [knowing, lacking], TASKS, damping=0.3)
    assert distance({"x": after.tensors["segmentation_decoder.w"]}, {"x": tensors(1)["segmentation_decoder.w"]}) < 1e-6
    alone = aggregate(before, [lacking], TASKS, damping=0.3)
    assert torch.equal(alone.tensors["segmentation_decoder.w"], before.tensors["segmentation_decoder.w"])


def test_the_decoder_of_regions_belongs_to_grading_where_regions_are_no_task() -> None:
    assert owner("segmentation_decoder.out.weight", ("grading",)) == "grading"
    assert owner("encoder.layers1.weight", TASKS) is None


def test_batch_statistics_are_those_of_all_samples_together_and_integers_are_copied() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.normal(1, 2, 40), rng.normal(-3, 1, 10)]
    before = GlobalState(
        0, {"n.running_mean": torch.zeros(1), "n.running_var": torch.ones(1), "n.index": torch.arange(3)}
    )
    updates = [
        SiteUpdate(
            str(number),
            {"studies": len(values)},
            {"n.running_mean": torch.tensor([values.mean()]), "n.running_var": torch.tensor([values.var()])},
        )
        for number, values in enumerate(samples)
    ]
    after = aggregate(before, updates, TASKS).tensors
    together = np.concatenate(samples)
    assert after["n.running_mean"].item() == pytest.approx(together.mean(), rel=1e-6)
    assert after["n.running_var"].item() == pytest.approx(together.var(), rel=1e-6)
    assert torch.equal(after["n.index"], torch.arange(3))


def test_the_order_of_the_replies_does_not_change_a_bit() -> None:
    before = GlobalState(0, tensors(0))
    updates = [site(name, seed, 5 + seed, segmentation=2, grading=1) for seed, name in enumerate("abc")]
    one, other = (aggregate(before, each, TASKS, damping=0.3) for each in (updates, updates[::-1]))
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in SHAPES)


def test_the_next_prior_keeps_a_share_of_the_earlier_precision() -> None:
    before = GlobalState(0, tensors(0), {"encoder.w": torch.full((3, 2), 10.0)})
    update = site("a", 1, 4, segmentation=4, grading=4)
    after = aggregate(before, [update], TASKS, damping=0.0, memory=0.5)
    torch.testing.assert_close(after.precision["encoder.w"], update.precision["encoder.w"] + 5.0)
    torch.testing.assert_close(after.tensors["encoder.w"], tensors(1)["encoder.w"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda u: replace(u, tensors={**u.tensors, "encoder.w": torch.full((3, 2), math.nan)}),
            "encoder.w holds values",
        ),
        (lambda u: replace(u, tensors={**u.tensors, "encoder.w": torch.zeros(2, 2)}), r"encoder.w has shape \[2, 2\]"),
        (
            lambda u: replace(u, tensors={k: v for k, v in u.tensors.items() if k != "encoder.w"}),
            "encoder.w is missing",
        ),
        (lambda u: replace(u, tensors={**u.tensors, "other": torch.zeros(1)}), "other was not asked for"),
        (lambda u: replace(u, counts={**u.counts, "segmentation": 0}), "segmentation_decoder.w was not asked for"),
        (lambda u: replace(u, counts={**u.counts, "studies": 0}), "studies"),
        (lambda u: replace(u, counts={**u.counts, "grading": 99}), "more studies with labels"),
        (lambda u: replace(u, precision={**u.precision, "encoder.w": -torch.ones(3, 2)}), "is not positive"),
        (lambda u: replace(u, precision={}), "the precision of encoder.w is missing"),
    ],
)
def test_a_faulty_update_is_named(change, reason: str) -> None:
    before = GlobalState(0, tensors(0))
    good = site("a", 1, 4, segmentation=4, grading=4)
    assert fault(good, before, TASKS, bayes=True) == ""
    import re

    assert re.search(reason, fault(change(good), before, TASKS, bayes=True))


def test_settings_that_protect_nothing_or_mean_nothing_are_refused() -> None:
    for wrong in ({"rule": "mean"}, {"noise": 1.0}, {"noise": 1.0, "clip": 1.0, "rule": "bayes"}, {"prior": 1.0}):
        with pytest.raises(WrongUse):
            FederationSettings(**wrong)
    settings = FederationSettings(rule="bayes", damping=math.inf)
    assert FederationSettings.from_dict(settings.to_dict()) == settings
    with pytest.raises(WrongUse, match="no federation setting fancy"):
        FederationSettings.from_dict({"fancy": 1})


NETWORKS: dict[str, dict[str, Any]] = {
    "mtmed3d": {"feature_size": 12},
    "resformer": {"feature_size": 8, "blocks": (1, 1, 2, 1), "window": 2, "norm": "group"},
    "resformer-batch": {"feature_size": 8, "blocks": (1, 1, 1, 1), "window": 2, "spatial_dims": 2},
    "mtmedformer": {"feature_size": 12, "window": 2, "spatial_dims": 2},
}


def build(name: str) -> TaskNetwork:
    return build_network(family=name.partition("-")[0], **NETWORKS[name]).eval()


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> TaskNetwork:
    """A small network whose norms and biases are not all alike, as after some training."""
    torch.manual_seed(3)
    network = build(request.param)
    network.built_as = request.param
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.add_(0.02 * torch.randn_like(tensor))
    return network


def shuffled(network: TaskNetwork, seed: int) -> dict[str, torch.Tensor]:
    """The network's tensors with the units of every group in a random order that the group allows."""
    rng = np.random.default_rng(seed)
    state = dict(network.state_dict())
    for group in symmetries(network):
        size = group.units // group.blocks
        order = np.concatenate([block * size + rng.permutation(size) for block in rng.permutation(group.blocks)])
        state = permute(state, group, order)
    return state


def test_units_in_another_order_compute_the_same(network: TaskNetwork) -> None:
    groups = symmetries(network)
    assert {group.name.split(".")[0] for group in groups} == {name for name, _ in network.named_children()}
    shape = {3: (1, 4, 64, 32, 32), 2: (1, 4, 64, 64)}[network.config.get("spatial_dims", 3)]
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    other = build(network.built_as)
    other.load_state_dict(shuffled(network, 5))
    assert distance(network.state_dict(), other.state_dict()) > 0.1
    with torch.inference_mode():
        expected, found = network(image), other(image)
    torch.testing.assert_close(found.segmentation, expected.segmentation, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.grade, expected.grade, rtol=1e-3, atol=1e-4)
    for (score, box), (wanted_score, wanted_box) in zip(found.detection or (), expected.detection or (), strict=True):
        torch.testing.assert_close(score, wanted_score, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(box, wanted_box, rtol=1e-3, atol=1e-4)


def test_shuffled_units_of_encoder_and_decoders_are_matched_back_exactly(network: TaskNetwork) -> None:
    """The smaller sites hold the same weights in other orders: the joined model is the network, under both rules."""
    groups = symmetries(network)
    counts = {"studies": 9, "segmentation": 9, "detection": 9, "grading": 9}
    floating = {k: v for k, v in network.state_dict().items() if v.is_floating_point()}
    plain = [SiteUpdate("big", counts, floating)]
    for number in (1, 2):
        state = shuffled(network, number)
        smaller = dict.fromkeys(counts, 3)
        plain.append(SiteUpdate(f"small{number}", smaller, {k: state[k] for k in floating}))
    before = GlobalState(0, network.state_dict())
    tasks = ("segmentation", "detection", "grading")
    unmatched = aggregate(before, plain, tasks)
    assert distance(unmatched.tensors, before.tensors) > 0.1
    matched, moved = match(plain, groups)
    assert moved > 500
    for update in matched[1:]:
        assert all(torch.equal(update.tensors[name], floating[name]) for name in floating)
    generator = torch.Generator().manual_seed(0)
    precision = {k: torch.rand(v.shape, generator=generator) + 0.1 for k, v in floating.items() if not is_statistic(k)}
    weighted = [
        replace(update, tensors={k: v * precision.get(k, 1) for k, v in update.tensors.items()}, precision=precision)
        for update in matched
    ]
    after = aggregate(before, weighted, tasks, damping=0.3)
    assert distance(after.tensors, before.tensors) < 1e-6


def test_units_that_are_in_order_stay_where_they_are_although_the_sites_differ(network: TaskNetwork) -> None:
    state = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    generator = torch.Generator().manual_seed(1)
    other = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    assert align(other, state, symmetries(network)) == []
