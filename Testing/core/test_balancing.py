"""Task weights against brute force and hand-worked numbers."""

from __future__ import annotations

import itertools

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
    make_balancer,
    min_norm_weights,
    task_gradients,
)


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
