"""Drawn discs and squares, and a few steps that learn them by heart; shared by the tests of the families."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from MTMed3DCore.networks.interface import MultiTaskOutput, TaskNetwork
from MTMed3DCore.training.hybrid import BatchTarget, HybridLoss

SIDE = 64


def drawn_shapes(count: int) -> tuple[torch.Tensor, BatchTarget]:
    """Images (count, 1, 64, 64) of a disc or a square on noise, with mask, box and one of two labels."""
    rng = np.random.default_rng(7)
    images, masks, boxes = [], [], []
    for number in range(count):
        x, y = rng.integers(20, SIDE - 20, 2)
        grid = np.abs(np.mgrid[:SIDE, :SIDE] - np.array([x, y])[:, None, None])
        mask = (np.hypot(*grid) if number % 2 == 0 else grid.max(axis=0)) < 16
        images.append(0.2 * rng.standard_normal((1, SIDE, SIDE)) + 1.5 * mask)
        masks.append(torch.from_numpy(mask[None]).float())
        boxes.append(torch.tensor([[x - 15.0, y - 15.0, x + 16.0, y + 16.0]]))
    labels = tuple(torch.eye(2)[number % 2] for number in range(count))
    batch = torch.from_numpy(np.stack(images)).float()
    return batch, BatchTarget(tuple(masks), tuple(boxes), labels)


def learn(
    network: TaskNetwork,
    loss: HybridLoss,
    batch: tuple[torch.Tensor, BatchTarget],
    weights: Mapping[str, float],
    *,
    steps: int,
    rate: float = 1e-2,
) -> tuple[float, float, MultiTaskOutput]:
    """Step a network on one batch; returns Dice of the worst image, share of right labels, and the last output."""
    images, target = batch
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    network.train()
    for _ in range(steps):
        losses = loss(images, network(images), target)
        optimizer.zero_grad()
        sum(weights.get(task, 1.0) * each for task, each in losses.items()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        output = network.eval()(images)
    found, truth = output.segmentation > 0, torch.stack(list(target.regions)) > 0
    axes = (1, 2, 3)
    dice = 2 * (found & truth).sum(axes) / (found.sum(axes) + truth.sum(axes))
    right = (output.grade.argmax(1) == torch.stack(list(target.labels)).argmax(1)).float().mean()
    return float(dice.min()), float(right), output
