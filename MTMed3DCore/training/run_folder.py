"""The folder of a run: what it was asked, on what, by which versions, and how it went.

::

    RUN/README.md          what each of these files is
    RUN/config.json        settings, hash of the list, anchors, what a warm start took
    RUN/sessions.jsonl     one row for each start or resumption: command, versions, commit, devices
    RUN/history.jsonl      one row a step: losses, task weights
    RUN/validation.jsonl   one row a validation
    RUN/curves.png         both as a picture
    RUN/tensorboard/       both for TensorBoard, where it is installed
    RUN/checkpoint.pt      the latest state of the run
    RUN/bundle/            the finished model
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import monai
import torch

import MTMed3DCore
from MTMed3DCore.errors import WrongUse
from MTMed3DCore.training.distributed import Team
from MTMed3DCore.training.settings import CaseSettings, TrainSettings
from MTMed3DCore.whole_file import write_whole

CONFIG, SESSIONS, HISTORY, VALIDATION = "config.json", "sessions.jsonl", "history.jsonl", "validation.jsonl"
CURVES, BOARD, CHECKPOINT, BUNDLE, CACHE = "curves.png", "tensorboard", "checkpoint.pt", "bundle", "cache"
README = """# {name}

A training run of MTMed3D {version}: {tasks}, {steps} steps, on {cases} studies of a data list whose SHA-256 is
`{digest}`.

| file | what it is |
|---|---|
| `config.json` | the settings in full, the anchors, the studies that were refused and why, what a warm start took |
| `sessions.jsonl` | one row for each start or resumption: command line, versions, commit, processes and devices |
| `history.jsonl` | one row a step: the loss of each task over the batch, and the task weights |
| `validation.jsonl` | one row a validation: mean Dice of whole studies on the working grid, share of right grades |
| `curves.png`, `tensorboard/` | both as a picture and for `tensorboard --logdir` |
| `checkpoint.pt` | the latest state; `mtmed3d train LIST -o {name} --resume` goes on from it |
| `bundle/` | the finished model, for `mtmed3d analyze --model` and `mtmed3d evaluate --model` |
"""


class Listed(Protocol):
    """A list of studies or of images."""

    @property
    def sha256(self) -> str: ...

    @property
    def cases(self) -> Sequence[Any]: ...


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder that holds something to a new run, and one without a run to a resumed one.

    Raises:
        WrongUse: ``run-exists``, ``run-missing``.
    """
    if resume and not (folder / CONFIG).is_file():
        raise WrongUse("run-missing", f"{folder} holds no run to resume.", "Leave --resume out to start one.")
    if not resume and folder.exists() and any(each.name != CACHE for each in folder.iterdir()):
        text = f"{folder} is not empty."
        raise WrongUse("run-exists", text, "Give --resume to go on, or another folder to start anew.")


def describe(
    listed: Listed, settings: TrainSettings, shapes: list[list[float]], refused: dict[str, str]
) -> dict[str, Any]:
    """The content of ``config.json``."""
    return {
        "settings": settings.to_dict(),
        "list_sha256": listed.sha256,
        "cases": len(listed.cases),
        "refused": refused,
        "anchor_shapes": shapes,
    }


def compare(folder: Path, config: dict[str, Any], kind: type[TrainSettings] = CaseSettings) -> None:
    """Refuse to resume a run as another one.

    Args:
        folder: of the run.
        config: what `describe` gives now.
        kind: of its settings.

    Raises:
        WrongUse: ``run-differs``.
    """
    path = folder / CONFIG
    earlier = json.loads(path.read_text(encoding="utf-8"))
    earlier["settings"] = kind.from_dict(earlier["settings"]).to_dict()  # settings that came since, by default
    for name in ("settings", "list_sha256", "anchor_shapes"):
        if earlier[name] != json.loads(json.dumps(config[name])):
            raise WrongUse("run-differs", f"{path} has another {name}.", "Resume with what the run began with.")


def write_description(folder: Path, config: dict[str, Any]) -> None:
    """``config.json`` and ``README.md`` of a new run."""
    settings = config["settings"]
    text = README.format(
        name=folder.name,
        version=MTMed3DCore.__version__,
        tasks=", ".join(settings["tasks"]),
        steps=settings["steps"],
        cases=config["cases"],
        digest=config["list_sha256"] or "unknown",
    )
    write_whole(folder / CONFIG, json.dumps(config, indent=1) + "\n")
    (folder / "README.md").write_text(text, encoding="utf-8")


def note_session(folder: Path, first_step: int, team: Team, device: torch.device) -> None:
    """Add who goes on with the run, from which step, and with what."""
    row = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": first_step,
        "command": sys.argv,
        "versions": {
            "mtmed3d": MTMed3DCore.__version__,
            "torch": torch.__version__,
            "monai": monai.__version__,
            "python": platform.python_version(),
        },
        "commit": source_commit(),
        "processes": team.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})",
        "threads": torch.get_num_threads(),
    }
    with (folder / SESSIONS).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def source_commit() -> str | None:
    """The commit of the checkout that runs, with ``+`` where files differ from it; None for an installed package."""
    root = Path(MTMed3DCore.__file__).resolve().parents[1]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # looking must not lock the checkout

    def ask(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, env=environment)
        return done.stdout.strip()

    try:
        if Path(ask("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # the package lies in somebody else's checkout
        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def cut_rows(path: Path, steps: int) -> None:
    """Drop the rows that were written after the checkpoint from which the run goes on."""
    if path.is_file():
        rows = [row for row in path.read_text(encoding="utf-8").splitlines() if _step_of(row) <= steps]
        path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def _step_of(row: str) -> float:
    try:
        return float(json.loads(row)["step"])
    except (ValueError, KeyError):  # the last row of a run that was killed may be half a row
        return float("inf")
