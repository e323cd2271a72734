"""The passes of a network compiled by torch: fewer and larger kernels, and on a GPU one launch for a whole pass.

Compiling takes minutes for each size of window, so it is for whoever analyses many studies. What was compiled lies in
the user's cache folder, and another process on the same machine takes it from there. Layouts, channels last among them,
are the compiler's to choose.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from MTMed3DCore.inference.ladder import clear_away, short_of_memory
from MTMed3DCore.inference.measured import cache_folder
from MTMed3DCore.networks.fast.swin import order_of
from MTMed3DCore.notice import Notice

Result = TypeVar("Result")
BACKEND = "inductor"
MOST_SIZES = 32
"""Sizes of windows that are compiled in one process; with more the network is used as it is."""
SLOW_ON = ("cpu",)
"""Kinds of devices for which generating code takes longer (ten minutes and more) than it saves."""
_WHY_NOT = "_not_compiled_because"
_FOLDER_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_PASSES = ("encode", "detect", "segment")


def run_compiled(network: Any, device: torch.device, run: Callable[[], Result]) -> tuple[Result | None, Notice | None]:
    """What a run gives with the network's passes compiled; where it does not, nothing, and what to say of it.

    After a failure the passes are as they were, and are not compiled again: every study would pay for it anew. Memory
    that falls short is one, as a recorded pass keeps what it computes with.

    Args:
        network, device: as of `compile_passes`.
        run: takes the passes of `network`.
    """
    if device.type in SLOW_ON:
        text = f"Compiling for the device {device} takes longer than it saves; the network was used as it is."
        return None, Notice("not-compiled", f"{text} Use --compile on a GPU.")
    why = vars(network).get(_WHY_NOT)
    if why is None:
        compile_passes(network, device)
        try:
            return run(), None
        except Exception as error:
            if not (is_of_compiler(error) or short_of_memory(error)):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            short = f"the memory of {device} did not suffice"
            why = short if short_of_memory(error) else (lines or [type(error).__name__])[0]
        uncompile(network, why)
        clear_away(device)
    text = f"The network could not be compiled ({why}); it was used as it is, with the same result."
    return None, Notice("not-compiled", text)


def compile_passes(network: Any, device: torch.device, backend: str | None = None) -> None:
    """Have a network's passes compiled at their first use, each size of window anew; a second call changes nothing.

    Args:
        network: a `TaskNetwork` in eval mode on `device`.
        backend: of ``torch.compile``; `BACKEND` unless said.
    """
    backend = backend or BACKEND
    if "encode" in vars(network):
        return
    _keep_on_disk()
    torch._dynamo.config.recompile_limit = MOST_SIZES
    torch.compiler.assume_constant_result(order_of)
    # The launches of a pass are recorded and replayed as a whole (CUDA graphs).
    mode = "reduce-overhead" if device.type == "cuda" and backend == "inductor" else None
    encode, detect, segment = (
        torch.compile(getattr(network, name), backend=backend, mode=mode, dynamic=False, fullgraph=True)
        for name in _PASSES
    )

    def encoded(x: torch.Tensor) -> list[torch.Tensor]:
        torch.compiler.cudagraph_mark_step_begin()  # nothing of the window before is looked at any more
        levels: list[torch.Tensor] = encode(x)
        return levels

    def segmented(x: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor | None:
        logits: torch.Tensor | None = segment(x, features)
        # A replay writes where the last one wrote, and the mirror image of a window comes before its logits are used.
        return None if logits is None else logits.clone()

    network.encode, network.detect, network.segment = encoded, detect, segmented


def _keep_on_disk() -> None:
    """Name the folder for what is compiled, unless the user has named another."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Torch sets the variable itself as soon as its compiler is imported, to a folder that a restart may empty.
    if os.environ.get(_FOLDER_VARIABLE, default_cache_dir()) == default_cache_dir():
        os.environ[_FOLDER_VARIABLE] = str(cache_folder() / "compiled")


def is_of_compiler(error: BaseException) -> bool:
    """Whether an error is that something could not be compiled."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return isinstance(error, (FailOnRecompileLimitHit, TorchDynamoException))


def uncompile(network: Any, why: str) -> None:
    """Take the passes as they are again, from now on, and forget what was compiled for them.

    Args:
        network: whose passes were compiled.
        why: what to say of it.
    """
    for name in _PASSES:
        vars(network).pop(name, None)
    setattr(network, _WHY_NOT, why)
    torch._dynamo.reset()  # torch holds what it compiled, and with it the recorded launches and their memory


def even_batch(windows: int, most: int) -> int:
    """The most windows at a time, up to a number, that leave no smaller rest: it would be compiled as well."""
    return max(size for size in range(1, min(most, windows) + 1) if windows % size == 0)
