"""The folder of a run: what it was asked, on what, by which versions, and how it went.

::

    RUN/README.md          what each of these files is
    RUN/config.json        settings, hashes of the list and of each study, anchors, what a warm start took
    RUN/sessions.jsonl     one row for each start or resumption: command, versions, commit, devices, `CHANGEABLE`
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
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn, Protocol

import monai
import torch

import MTMed3DCore
from MTMed3DCore.datalist.case import Case, box_document
from MTMed3DCore.errors import WrongUse
from MTMed3DCore.hashing import file_sha256
from MTMed3DCore.training.distributed import Team
from MTMed3DCore.training.settings import CaseSettings, ListSettings, TrainSettings
from MTMed3DCore.whole_file import write_whole

CONFIG, SESSIONS, HISTORY, VALIDATION = "config.json", "sessions.jsonl", "history.jsonl", "validation.jsonl"
CURVES, BOARD, CHECKPOINT, BUNDLE, CACHE = "curves.png", "tensorboard", "checkpoint.pt", "bundle", "cache"
CHANGEABLE = ("device", "workers", "save_every", "validate_every")
"""Settings in which a resumed run may differ: they have no part in what it comes to, but for a device's rounding."""
IDLE = "trains_nothing"
"""The use of cases from which no patch can have a truth."""
NAMED = 10
"""Studies that a message names; more are counted."""
README = """# {name}

A training run of MTMed3D {version}: {tasks}, {steps} steps, on {cases} studies of a data list whose SHA-256 is
`{digest}`.

| file | what it is |
|---|---|
| `config.json` | the settings in full, the anchors, the studies by their part in the run with the SHA-256 of what was \
given of them, those that were refused and why, what a warm start took |
| `sessions.jsonl` | one row for each start or resumption: command line, versions, commit, processes and devices, and \
the settings in which a resumption may differ |
| `history.jsonl` | one row a step: the loss of each task over the batch, and the task weights |
| `validation.jsonl` | one row a validation, means of whole studies on the working grid: Dice, average precision of \
the boxes at IoU 0.1, share of right grades |
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


def digest_of(case: Case) -> str:
    """SHA-256 of what is given of a study: its files' content, wherever they lie, and what the list says of it."""
    files = {**case.images, **({"label": case.label} if case.label else {})}
    contents = {path: file_sha256(path) for path in {file.path for file in files.values()}}
    boxes = None if case.boxes is None else [box_document(box) for box in case.boxes]
    given = [{name: [contents[file.path], file.index] for name, file in files.items()}, case.convention, case.grade]
    return sha256(json.dumps([*given, boxes], sort_keys=True).encode()).hexdigest()


def describe(
    listed: Listed,
    settings: TrainSettings,
    shapes: list[list[float]],
    refused: dict[str, str],
    studies: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """The content of ``config.json``.

    Args:
        listed: what the run was asked to learn from.
        settings: of the run.
        shapes: of the anchors.
        refused: reason by case.
        studies: `digest_of` each case in its order, by what the case is used for; None where the list alone is known.
    """
    return {
        "settings": settings.to_dict(),
        "list_sha256": listed.sha256,
        "cases": len(listed.cases),
        "refused": refused,
        **({} if studies is None else {"studies": studies}),
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
    earlier, now = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(config))
    earlier["settings"] = kind.from_dict(earlier["settings"]).to_dict()  # settings that came since, by default
    for name, value in now["settings"].items():
        if name not in CHANGEABLE and earlier["settings"][name] != value:
            _refuse(f"{path} has another setting {name}: {earlier['settings'][name]!r}, not {value!r}.")
    if "studies" in earlier:
        _compare_studies(path, earlier, now)
    else:
        _compare_lists(path, earlier, now)
    if earlier["anchor_shapes"] != now["anchor_shapes"]:
        _refuse(f"{path} has other anchor_shapes: {earlier['anchor_shapes']}, not {now['anchor_shapes']}.")


def _compare_studies(path: Path, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """What each study holds, what it is used for, and the order in which patches are dealt from them."""
    before, after = (
        {case: (use, digest) for use, cases in config["studies"].items() for case, digest in cases.items()}
        | dict.fromkeys(sorted(config["refused"]), ("refused", ""))
        for config in (earlier, now)
    )
    differing = [case for case in {*before, *after} if before.get(case) != after.get(case)]
    if differing:
        why = now["refused"]
        names = names_of(f"{case} (refused now: {why[case]})" if case in why else case for case in differing)
        _refuse(f"{path} has other studies, or another use of them: {names}.")
    if list(before) != list(after):
        _refuse(f"{path} has the same studies in another order.")


def _compare_lists(path: Path, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Of a list of images, or of a run by a version that kept no digests and drew from every case."""
    if earlier["list_sha256"] != now["list_sha256"]:
        _refuse(f"{path} has another list_sha256, and nothing else to tell the list by.")
    differing = {*earlier["refused"]} ^ {*now["refused"]} | {*now.get("studies", {}).get(IDLE, ())}
    if differing:
        _refuse(f"{path} has other refused studies, or draws from some that train nothing: {names_of(differing)}.")


def _refuse(text: str) -> NoReturn:
    raise WrongUse("run-differs", text, "Resume with what the run began with, or start another run.")


def names_of(cases: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = sorted(cases)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


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


def note_session(
    folder: Path, first_step: int, team: Team, device: torch.device, settings: ListSettings | None = None
) -> None:
    """Add who goes on with the run, from which step, and with what; of the settings those that may have changed."""
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
        "settings": {} if settings is None else {name: getattr(settings, name) for name in CHANGEABLE},
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
        write_whole(path, "".join(f"{row}\n" for row in rows))


def _step_of(row: str) -> float:
    try:
        return float(json.loads(row)["step"])
    except (ValueError, KeyError):  # the last row of a run that was killed may be half a row
        return float("inf")
