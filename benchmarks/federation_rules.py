"""The rules of aggregation on a toy that runs in minutes on one core: what they gain, and where they do not.

    python benchmarks/federation_rules.py OUT [--seeds 3]

A small transformer with two decoders labels each of eight tokens and the whole sequence. Three unlike sites: 900
sequences with both labels; 150 with shifted inputs and token labels alone; 400 shifted the other way, with sequence
labels alone. Every method is measured on 600 sequences of each kind with all labels. ``rounds``: ten rounds of an epoch
from common weights. ``one shot``: one round of ten epochs, every site from weights of its own.

The sites' part is the toy's; joining and matching are `MTMed3DCore.federation`. Writes ``rules.json``, ``rules.md`` and
``rules.png``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from MTMed3DCore.federation.aggregation import aggregate
from MTMed3DCore.federation.laplace import FLOOR
from MTMed3DCore.federation.matching import match
from MTMed3DCore.federation.symmetry import Place, UnitGroup
from MTMed3DCore.federation.updates import GlobalState, SiteUpdate
from MTMed3DCore.networks.ownership import owner

WIDTH, HEADS, HEAD, HIDDEN, TOKENS = 32, 4, 8, 48, 8
TASKS = ("segmentation", "grading")
SITES: dict[str, dict[str, Any]] = {
    "large": {"n": 900, "shift": 0.0, "tasks": TASKS},
    "tokens": {"n": 150, "shift": 1.2, "tasks": ("segmentation",)},
    "labels": {"n": 400, "shift": -1.0, "tasks": ("grading",)},
}
METHODS = ("fedavg", "bayes", "bayes+matching", "local", "centralised")
TRUTH = torch.Generator().manual_seed(3)
AXIS, MIX = torch.randn(4, generator=TRUTH), torch.randn(4, 3, generator=TRUTH)
DIRECTION = torch.tensor([1.0, -1.0, 0.5, 0.0])
Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Block(nn.Module):
    """A transformer block with its norms first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * HEADS * HEAD), nn.Linear(HEADS * HEAD, WIDTH)
        self.linear1, self.linear2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) to the same."""
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, n, -1))
        return x + self.linear2(torch.relu(self.linear1(self.norm2(x))))


class Toy(nn.Module):
    """A shared encoder and two decoders, named as the project's networks name theirs."""

    def __init__(self) -> None:
        super().__init__()
        blocks = nn.ModuleList([Block(), Block()])
        self.encoder = nn.ModuleDict({"embed": nn.Linear(4, WIDTH), "blocks": blocks})
        self.position = nn.Parameter(0.1 * torch.randn(1, TOKENS, WIDTH))
        self.segmentation_decoder = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
        self.grading_head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 8, 4) to logits (B, 8) and (B, 3)."""
        x = self.encoder["embed"](x) + self.position
        for block in self.encoder["blocks"]:
            x = block(x)
        return self.segmentation_decoder(x).squeeze(-1), self.grading_head(x.mean(1))


def toy_symmetries() -> list[UnitGroup]:
    """Hidden units, heads and decoder units of the toy."""
    groups = []
    for number in range(2):
        at = f"encoder.blocks.{number}."
        fused = [Place(f"{at}qkv.{kind}", 0, p * HEADS * HEAD, HEAD) for kind in ("weight", "bias") for p in range(3)]
        groups.append(UnitGroup(f"{at}heads", HEADS, (*fused, Place(f"{at}proj.weight", 1, 0, HEAD))))
        hidden = (Place(f"{at}linear1.weight", 0), Place(f"{at}linear1.bias", 0), Place(f"{at}linear2.weight", 1))
        groups.append(UnitGroup(f"{at}hidden", HIDDEN, hidden))
    for at in ("segmentation_decoder.", "grading_head."):
        units = (Place(f"{at}0.weight", 0), Place(f"{at}0.bias", 0), Place(f"{at}2.weight", 1))
        groups.append(UnitGroup(at, WIDTH, units))
    return groups


def make(n: int, shift: float, seed: int) -> Data:
    """Sequences (n, 8, 4), token labels (n, 8), sequence labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    pure = torch.randn(n, TOKENS, 4, generator=generator)
    x = pure + shift * DIRECTION
    tokens = (((x * x.mean(1, keepdim=True).sign()) @ AXIS) > 0).float()
    label = ((pure.pow(2).mean(1) - 1) @ MIX + 0.5 * x.mean(1) @ MIX.flip(0)).argmax(1)
    return x, tokens, label


def losses(network: Callable[..., Any], data: Data, tasks: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The loss of each task that has labels."""
    tokens, label = network(data[0])
    every = {
        "segmentation": binary_cross_entropy_with_logits(tokens, data[1]),
        "grading": cross_entropy(label, data[2]),
    }
    return {task: every[task] for task in tasks}


def train(state: dict[str, torch.Tensor], parts: list[tuple[Data, tuple[str, ...]]], epochs: int, seed: int) -> Toy:
    """Adam from a state, over one or several sites' data."""
    network = Toy()
    network.load_state_dict(state)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        batches = [(d, t, rows) for d, t in parts for rows in torch.randperm(len(d[0]), generator=generator).split(32)]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            data, tasks, rows = batches[index]
            optimiser.zero_grad()
            torch.stack(list(losses(network, tuple(part[rows] for part in data), tasks).values())).sum().backward()
            optimiser.step()
    return network


def laplace(network: Toy, data: Data, tasks: tuple[str, ...], size: int = 128) -> dict[str, torch.Tensor]:
    """n times the mean squared gradient of each task's loss, sequence by sequence."""
    weights = {name: tensor.detach() for name, tensor in network.named_parameters()}
    total = {name: torch.full_like(tensor, FLOOR * len(data[0])) for name, tensor in weights.items()}
    for task in tasks:

        def one(values: Any, x: Any, y: Any, c: Any, task: str = task) -> torch.Tensor:
            rows = (x[None], y[None], c[None])
            return losses(lambda image: torch.func.functional_call(network, values, (image,)), rows, (task,))[task]

        found = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0, 0))(weights, *(part[:size] for part in data))
        for name, gradient in found.items():
            total[name] += len(data[0]) * gradient.pow(2).mean(0)
    return total


def update(name: str, network: Toy, data: Data, rule: str) -> SiteUpdate:
    """What a site sends."""
    tasks = SITES[name]["tasks"]
    counts = {"studies": len(data[0]), **{task: len(data[0]) for task in tasks}}
    sent = {
        k: v.detach().clone() for k, v in network.state_dict().items() if counts.get(owner(k, TASKS) or "studies", 0)
    }
    if rule == "fedavg":
        return SiteUpdate(name, counts, sent)
    own = laplace(network, data, tasks)
    own = {k: own[k] for k in sent}
    return SiteUpdate(name, counts, {k: v * own[k] for k, v in sent.items()}, own)


def measure(network: Toy, tests: list[Data]) -> list[float]:
    """Accuracy of tokens and of sequences, mean over the kinds."""
    rows = []
    with torch.no_grad():
        for x, y, c in tests:
            tokens, label = network(x)
            rows.append(
                [((tokens > 0) == y.bool()).float().mean().item(), (label.argmax(1) == c).float().mean().item()]
            )
    found: list[float] = np.mean(rows, 0).tolist()
    return found


def run(method: str, seed: int, rounds: int, epochs: int, common: bool) -> tuple[list[list[float]], int]:
    """The course of a method: both accuracies after every round; and how many units were moved."""
    data = {n: make(site["n"], site["shift"], 100 * seed + 10 + k) for k, (n, site) in enumerate(SITES.items())}
    tests = [make(600, site["shift"], 100 * seed + 50 + k) for k, site in enumerate(SITES.values())]
    starts = {}
    for number, name in enumerate(SITES):
        torch.manual_seed(1000 * seed + (0 if common else number))
        starts[name] = Toy().state_dict()
    state = GlobalState(0, starts["large"])
    course, moved = [], 0
    for number in range(rounds):
        if method == "centralised":
            parts = [(data[name], site["tasks"]) for name, site in SITES.items()]
            state = GlobalState(number + 1, train(dict(state.tensors), parts, epochs, 100 * seed + number).state_dict())
            course.append(_measured(state.tensors, tests))
            continue
        begun = {n: starts[n] if method == "local" or number == 0 else dict(state.tensors) for n in SITES}
        done = {
            n: train(begun[n], [(data[n], site["tasks"])], epochs, 100 * seed + number) for n, site in SITES.items()
        }
        if method == "local":
            starts = {name: network.state_dict() for name, network in done.items()}
            course.append(_mean_of_knowing({name: measure(network, tests) for name, network in done.items()}))
            continue
        updates = [update(name, network, data[name], method.split("+")[0]) for name, network in done.items()]
        if method == "bayes+matching":
            updates, count = match(updates, toy_symmetries())
            moved += count
        state = aggregate(state, updates, TASKS, damping=0.3)
        course.append(_measured(state.tensors, tests))
    return course, moved


def _mean_of_knowing(found: dict[str, list[float]]) -> list[float]:
    """Mean of each accuracy over the sites that have labels for its task: the others never learned it."""
    means = []
    for index, task in enumerate(TASKS):
        means.append(float(np.mean([each[index] for name, each in found.items() if task in SITES[name]["tasks"]])))
    return means


def _measured(tensors: Any, tests: list[Data]) -> list[float]:
    network = Toy()
    network.load_state_dict(dict(tensors))
    return measure(network, tests)


def draw(results: dict[str, Any], picture: Path) -> None:
    """Both accuracies over the rounds, mean of the seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (index, title) in zip(figure.subplots(1, 2), enumerate(("tokens", "sequences")), strict=True):
        for method in METHODS:
            curves = np.array([entry["course"] for entry in results["rounds"][method]])[:, :, index]
            panel.plot(range(1, curves.shape[1] + 1), curves.mean(0), marker="o", markersize=3, label=method)
        panel.set_title(f"accuracy of {title}, ten rounds from common weights")
        panel.set_xlabel("round")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(picture, dpi=110)


def main() -> int:
    """Run everything, and write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {"rounds": (10, 1, True), "one shot": (1, 10, False)}
    results: dict[str, Any] = {name: {method: [] for method in METHODS} for name in settings}
    lines = ["| setting | method | tokens | sequences | units moved |", "|---|---|---|---|---|"]
    for name, (rounds, epochs, common) in settings.items():
        for method in METHODS:
            for seed in range(options.seeds):
                course, moved = run(method, seed, rounds, epochs, common)
                results[name][method].append({"seed": seed, "course": course, "moved": moved})
            last = np.array([entry["course"][-1] for entry in results[name][method]])
            means = [f"{m:.3f} ± {s:.3f}" for m, s in zip(last.mean(0), last.std(0), strict=True)]
            moved = sum(entry["moved"] for entry in results[name][method])
            lines.append(f"| {name} | {method} | {means[0]} | {means[1]} | {moved} |")
            print(lines[-1], flush=True)
    (options.out / "rules.json").write_text(json.dumps(results, indent=1))
    (options.out / "rules.md").write_text("\n".join(lines) + "\n")
    draw(results, options.out / "rules.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
