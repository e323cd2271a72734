"""Task weights against brute force and hand-worked numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.training.balancing import (
    BALANCERS,
    MGDA,
    FixedWeights,
    GradNorm,
    UncertaintyWeights,
    gradnorm_loss,
    make_balancer,
    min_norm_weights,
    task_gradients,
)
from MTMed3DCore.training.balancing.per_task import PerTask
from MTMed3DCore.training.trainer import Trainer
from Testing.core.test_train_options import ANCHORS, SETTINGS, made_patch

TASKS = ("a", "b", "c")


def brute_force(products: np.ndarray, steps: int = 200) -> float:
    """Lowest w' G w over a fine lattice of the simplex."""
    lowest = np.inf
    for a, b in itertools.product(range(steps + 1), repeat=2):
        if a + b <= steps:
            w = np.array([a, b, steps - a - b]) / steps
            lowest = min(lowest, w @ products @ w)
    return lowest


@pytest.mark.parametrize("seed", range(12))
def test_min_norm_weights_are_no_worse_than_any_on_a_fine_lattice(seed):
    gradients = np.random.default_rng(seed).normal(size=(3, 2 if seed % 3 == 0 else 5)) * [[1.0], [3.0], [0.3]]
    products = gradients @ gradients.T
    weights = min_norm_weights(torch.from_numpy(products)).numpy()
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    assert weights @ products @ weights <= brute_force(products) + 1e-9


def test_two_opposed_gradients_cancel_and_two_equal_ones_share():
    opposed = torch.tensor([[4.0, -2.0], [-2.0, 1.0]], dtype=torch.float64)  # gradients 2 and -1
    assert min_norm_weights(opposed).tolist() == pytest.approx([1 / 3, 2 / 3])
    equal = torch.ones(2, 2, dtype=torch.float64)
    assert min_norm_weights(equal).sum().item() == pytest.approx(1)


def test_of_two_aligned_gradients_the_shorter_is_the_minimum():
    aligned = torch.tensor([[9.0, 3.0], [3.0, 1.0]], dtype=torch.float64)  # gradients 3 and 1
    assert min_norm_weights(aligned).tolist() == pytest.approx([0.0, 1.0], abs=1e-9)


def three_losses(shared: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"a": shared[0] ** 2 * 4, "b": (shared[1] - 3) ** 2, "c": (shared[0] + 2 * shared[1]) ** 2}


def test_a_step_along_mgdas_direction_lowers_every_loss():
    shared = torch.tensor([1.0, 1.5], requires_grad=True)
    balance = MGDA(("a", "b", "c"), normalised=False)
    losses = three_losses(shared)
    balance.update(losses, task_gradients(losses, [shared]), [True, True, True])
    (gradient,) = torch.autograd.grad(balance.total(losses), shared)
    after = three_losses(shared.detach() - 1e-4 * gradient)
    assert gradient.norm() > 1e-6
    assert all(after[task] <= losses[task] + 1e-9 for task in losses)


def mgda_of(rows: Sequence[Sequence[float]], *, normalised: bool = True) -> tuple[list[float], torch.Tensor]:
    """MGDA's weights for three gradients on the shared parameters, and the step's direction, their weighted sum."""
    gradients = torch.tensor(rows)
    balance = MGDA(TASKS, normalised=normalised)
    balance.update({}, dict(zip(TASKS, gradients, strict=True)), [True] * 3)
    return balance.weights.tolist(), balance.weights @ gradients


def test_a_fitted_task_takes_no_weight_from_the_others_unless_mgda_goes_by_the_gradients_own_lengths():
    """Orthogonal gradients: at length one all weigh 1/3; by themselves they weigh as 1 / length ** 2."""
    rows = [[3.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 1e-4]]
    weights, direction = mgda_of(rows)
    assert weights == pytest.approx([1.0, 1.0, 1.0])
    assert direction.tolist() == pytest.approx([3.0, 4.0, 1e-4])
    weights, direction = mgda_of(rows, normalised=False)
    assert weights == pytest.approx([3e-8 / 9, 3e-8 / 16, 3.0], rel=1e-5)
    assert direction.norm() < 4e-4


def test_a_task_without_any_gradient_keeps_its_weight_and_mgda_weighs_the_others():
    assert mgda_of([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])[0] == pytest.approx([1.0, 1.0, 1.0])


def test_of_opposed_gradients_mgda_weighs_the_directions_and_the_longer_one_wins():
    """Directions (1, 0), (0, 1), (-1, 0): half the first and half the third give zero; then 1.5 * 4 - 1.5 * 2 = 3."""
    weights, direction = mgda_of([[4.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])
    assert weights == pytest.approx([1.5, 0.0, 1.5], abs=1e-6)
    assert direction.tolist() == pytest.approx([3.0, 0.0], abs=1e-5)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_one_length_have_a_common_descent_and_mgda_finds_the_steepest(seed, normalised):
    """For the shortest combination u, every gradient g has g u >= u u; the weights sum to three, so d = 3 u."""
    rows = np.random.default_rng(seed).normal(size=(3, 5))
    rows *= 7.0 / np.linalg.norm(rows, axis=1, keepdims=True)
    lowest = brute_force(rows @ rows.T)
    direction = mgda_of(rows.tolist(), normalised=normalised)[1].double().numpy()
    assert direction @ direction == pytest.approx(9 * lowest, rel=1e-3)
    assert (rows @ direction).min() == pytest.approx(3 * lowest, rel=1e-3)


def test_with_mgda_a_network_goes_on_learning_two_tasks_when_the_third_is_fitted():
    trainer = Trainer(replace(SETTINGS, learning_rate=1e-3, balancing="mgda"), ANCHORS)
    told = [trainer.step([made_patch()], 0.0) for _ in range(6)]
    assert told[2]["grading"] < 0.002  # its gradient is all but gone
    assert told[5]["detection"] < 0.7 * told[2]["detection"]
    assert (
        told[5]["segmentation"] < told[2]["segmentation"] - 0.17
    )  # 0.024 to 0.044 a step if the third took the weight
    assert trainer.balance.weights.tolist() == pytest.approx([1.0, 1.0, 1.0], abs=0.15)


def test_mgda_leaves_the_weight_of_a_task_without_labels_alone():
    shared = torch.tensor([1.0, 1.5], requires_grad=True)
    balance = MGDA(("a", "b", "c"))
    balance.update(three_losses(shared), task_gradients(three_losses(shared), [shared]), [True, False, True])
    assert balance.weights[1] == 1.0
    assert balance.weights.sum().item() == pytest.approx(3.0, abs=1e-5)
    assert shared.grad is None


def test_uncertainty_weights_come_to_rest_at_the_inverse_of_each_loss():
    balance = UncertaintyWeights(("a", "b"), learning_rate=0.02)
    losses = {"a": torch.tensor(0.5), "b": torch.tensor(4.0)}
    for _ in range(1500):
        balance.update(losses, {}, [True, True])
    assert balance.weights.tolist() == pytest.approx([2.0, 0.25], rel=0.01)
    for _ in range(50):
        balance.update(losses, {}, [True, False])
    assert balance.weights[1].item() == pytest.approx(0.25, rel=0.05)


def test_gradnorms_loss_without_alpha_asks_for_equal_norms():
    """Weights 1.5 and 0.5, norms 2 and 20: G = 3 and 10, both targets 6.5, so |-3.5| + |3.5| = 7; slopes -2 and 20."""
    weights = torch.tensor([1.5, 0.5], requires_grad=True)
    loss = gradnorm_loss(weights, torch.tensor([2.0, 20.0]), torch.tensor([0.5, 2.0]), alpha=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(7.0)
    assert weights.grad.tolist() == pytest.approx([-2.0, 20.0])


def test_gradnorms_loss_with_alpha_lets_the_slower_task_have_the_larger_norm():
    """Losses at 1/2 and 2 of what they were: r = 0.5 / 1.25 = 0.4 and 2 / 1.25 = 1.6, r ** 1.5 = 0.252982 and 2.023858.

    Norms 2 and 20 with weights 1: mean 11, targets 2.782804 and 22.262435, differences -0.782804 and -2.262435; both
    weights ought to rise, with slopes -2 and -20.
    """
    weights = torch.ones(2, requires_grad=True)
    loss = gradnorm_loss(weights, torch.tensor([2.0, 20.0]), torch.tensor([0.5, 2.0]), alpha=1.5)
    loss.backward()
    assert loss.item() == pytest.approx(0.782804 + 2.262435, abs=5e-6)
    assert weights.grad.tolist() == pytest.approx([-2.0, -20.0])


@pytest.mark.parametrize(("alpha", "slopes"), [(0.0, (-2.0, 20.0)), (1.5, (-2.0, -20.0))])
def test_gradnorms_weights_descend_its_loss_for_the_gradients_and_losses_of_the_batch(alpha, slopes):
    """The case above: a loss fell from 8 to 4, the other rose from 3 to 6, and their gradients have lengths 2 and 20.

    Adam's first moments are a tenth of the slopes.
    """
    balance = GradNorm(("a", "b"), alpha=alpha, learning_rate=0.1, warm_up=1)
    balance.observe({"a": torch.tensor(8.0), "b": torch.tensor(3.0)}, [True, True])
    gradients = {"a": torch.tensor([1.2, 1.6]), "b": torch.tensor([-12.0, 16.0])}
    balance.update({"a": torch.tensor(4.0), "b": torch.tensor(6.0)}, gradients, [True, True])
    moments = [each["exp_avg"].item() for each in balance.entries.optimizer.state_dict()["state"].values()]
    assert moments == pytest.approx([slope / 10 for slope in slopes], rel=1e-5)
    moved = [1 - 0.1 * np.sign(slope) for slope in slopes]  # Adam's first move; then the sum of two is restored
    assert balance.weights.tolist() == pytest.approx([2 * weight / sum(moved) for weight in moved], rel=1e-5)


@pytest.mark.parametrize("name", ["gradnorm", "mgda", "uncertainty"])
def test_a_task_without_labels_keeps_its_weight_to_the_last_bit_while_the_others_move(name):
    shared = torch.tensor([1.0, 1.5], requires_grad=True)
    balance = make_balancer(name, TASKS)

    def step(present: list[bool]) -> None:
        losses = three_losses(shared)
        balance.observe(losses, present)
        balance.update(losses, task_gradients(losses, [shared]), present)

    for _ in range(15):
        step([True] * 3)
    before = balance.weights.detach().clone()
    for _ in range(20):
        step([True, True, False])
    after = balance.weights.detach()
    assert after[2] == before[2] != 1.0
    assert (after[:2] - before[:2]).abs().min() > 0.01
    if name == "gradnorm":
        assert after[:2].sum().item() == pytest.approx(before[:2].sum().item(), abs=1e-5)
    if name != "mgda":  # its moments stay as well
        (owner,) = (each for each in balance.children() if isinstance(each, PerTask))
        steps = [int(each["step"]) for each in owner.optimizer.state_dict()["state"].values()]
        assert steps[2] == steps[0] - 20 == steps[1] - 20


def test_gradnorms_first_step_follows_its_definition():
    """Norms 2 and 20, equal rates: the target is their mean, 11, so the larger weight falls and the smaller rises.

    Adam's first step is the learning rate in the direction of the sign; then the weights are scaled to the sum of two.
    """
    shared = torch.ones(1, requires_grad=True)
    losses = {"a": shared.sum() ** 2, "b": 10 * shared.sum() ** 2}
    balance = GradNorm(("a", "b"), alpha=0.0, learning_rate=0.1, warm_up=1)
    balance.observe(losses, [True, True])
    balance.update(losses, task_gradients(losses, [shared]), [True, True])
    assert balance.weights.tolist() == pytest.approx([1.1, 0.9], abs=1e-4)


def test_gradnorm_pulls_towards_the_task_that_trains_more_slowly():
    shared = torch.ones(1, requires_grad=True)
    balance = GradNorm(("slow", "quick"), alpha=1.0, learning_rate=0.1, warm_up=1)
    balance.observe({"slow": shared.sum() ** 2, "quick": 4 * shared.sum() ** 2}, [True, True])
    now = {"slow": shared.sum() ** 2, "quick": shared.sum() ** 2}  # the quick one has fallen to a quarter
    balance.update(now, task_gradients(now, [shared]), [True, True])
    slow, quick = balance.weights.tolist()
    assert slow > 1 > quick


@pytest.mark.parametrize("name", BALANCERS)
def test_a_run_goes_on_with_the_same_weights_after_a_restart(name):
    shared = torch.tensor([1.0, 1.5], requires_grad=True)

    def step(balance):
        losses = three_losses(shared)
        balance.observe(losses, [True] * 3)
        balance.update(losses, task_gradients(losses, [shared]), [True] * 3)

    first = make_balancer(name, ("a", "b", "c"))
    for _ in range(15):
        step(first)
    again = make_balancer(name, ("a", "b", "c"))
    again.load_state_dict(first.state_dict())
    for _ in range(5):
        step(first)
        step(again)
    assert torch.equal(first.weights, again.weights)


def test_one_task_alone_has_weight_one_and_unknown_names_are_refused():
    assert isinstance(make_balancer("gradnorm", ("segmentation",)), FixedWeights)
    assert make_balancer("fixed", ("a", "b"), {"b": 0.25}).weights.tolist() == [1.0, 0.25]
    with pytest.raises(WrongUse, match="'luck'"):
        make_balancer("luck", ("a", "b"))
