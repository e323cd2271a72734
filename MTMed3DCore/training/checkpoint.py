"""Everything that a run needs to go on as if it had never stopped, in one file that appears whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.training.trainer import Trainer
from MTMed3DCore.whole_file import writing_whole

FORMAT = 1


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write the state of a trainer: weights, their mean, optimiser, task weights, random numbers, steps."""
    state = {
        "format": FORMAT,
        "steps": trainer.steps,
        "network": trainer.network.state_dict(),
        "average": trainer.average.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "balance": trainer.balance.state_dict(),
        "random": torch.get_rng_state(),
    }
    with writing_whole(path) as stream:
        torch.save(state, stream)


def load_checkpoint(trainer: Trainer, path: Path) -> None:
    """Put a trainer of the same settings into the state of a checkpoint.

    Raises:
        InputRefused: ``checkpoint-damaged``, a file that is not one of ours, or of other settings.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']}")
        trainer.network.load_state_dict(state["network"])
        trainer.average.load_state_dict(state["average"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.balance.load_state_dict(state["balance"])
        torch.set_rng_state(state["random"])
        trainer.steps = int(state["steps"])
    except Exception as error:  # torch raises whatever the damage leads to
        text = f"{path} cannot be resumed from: {error}."
        raise InputRefused("checkpoint-damaged", text, "Start the run again in another folder.") from error
