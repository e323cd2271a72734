"""Several processes train one network: PyTorch's own distributed training, as ``torchrun`` starts it.

Every process holds the whole network and takes its share of each batch. Gradients are averaged by
`torch.nn.parallel.DistributedDataParallel`; what the task weights are computed from is averaged here, so that all
processes come to the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from os import environ
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from MTMed3DCore.errors import WrongUse

T = TypeVar("T")
LONGEST_WAIT = timedelta(hours=2)
"""How long a process waits for the others: preparing or validating a share of the studies may take its time."""
_NEW_NAME = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
_NO_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}
"""No buffer of the network changes while it trains, so none is sent at every step; torch 2.13 renamed the option."""


@dataclass(frozen=True)
class Team:
    """The processes of a run, as one of them sees it; by default it is alone.

    Args:
        rank: of this process, 0 to size - 1; 0 writes the files.
        size: number of processes.
        local_rank: of this process on its machine; chooses its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows progress."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every n-th item, beginning with the rank."""
        return items[self.rank :: self.size]

    def device(self, name: str) -> torch.device:
        """This process's device: ``cuda`` means a GPU for each."""
        device = torch.device(name)
        return torch.device("cuda", self.local_rank) if device.type == "cuda" and self.size > 1 else device

    def parallel(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network as this process calls it to train; alone, the network itself."""
        if self.size == 1:
            return network
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True, **_NO_BUFFERS)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def rows(self, mine: torch.Tensor) -> torch.Tensor:
        """Rows (n, ...) of every process, dealt as `share` deals, back in their common order (n * size, ...)."""
        if self.size == 1:
            return mine
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return torch.stack(parts, dim=1).flatten(0, 1)

    def gather(self, mine: T) -> list[T]:
        """What every process has, in the order of the ranks; anything that can be pickled."""
        if self.size == 1:
            return [mine]
        parts: list[T] = [mine] * self.size
        dist.all_gather_object(parts, mine)
        return parts


@contextmanager
def join_team(device: str) -> Iterator[Team]:
    """The team that ``torchrun`` started, or a team of one.

    Args:
        device: torch's name of it; gloo connects CPUs, nccl GPUs.

    Raises:
        WrongUse: ``device-index``, one and the same GPU for several processes.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield Team()
        return
    team = Team(int(environ["RANK"]), int(environ["WORLD_SIZE"]), int(environ["LOCAL_RANK"]))
    wanted = torch.device(device)
    if wanted.type == "cuda" and wanted.index is not None and team.size > 1:
        text = f"{team.size} processes cannot share the device {device}."
        raise WrongUse("device-index", text, "Give --device cuda: each process takes the GPU of its number.")
    if wanted.type == "cuda":
        torch.cuda.set_device(team.device(device))
    dist.init_process_group("nccl" if wanted.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield team
    finally:
        dist.destroy_process_group()
