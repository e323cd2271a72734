"""What the tests of training share: four small studies in a list, a small run's settings, and a way to kill one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from MTMed3DCore.datalist import DataList, build_datalist
from MTMed3DCore.synthetic import make_study, write_study
from MTMed3DCore.training.settings import CaseSettings

SMALL = CaseSettings(
    feature_size=12,
    spacing_mm=4.0,
    patch=64,
    wide_patch=64,
    steps=4,
    save_every=2,
    validate_every=0,
    balance_every=2,
    workers=0,
    warm_up=1,
    fold=0,
)


def four_studies(root: Path) -> DataList:
    """Four synthetic studies in BraTS 2019's folders, two of each grade, in two folds; the list is ``list.json``."""
    wanted = {0: 2, 1: 2}
    seed = 0
    while any(wanted.values()):
        study = make_study(seed, (44, 50, 44), 4.0)
        seed += 1
        if study.grade is None or not wanted[study.grade]:
            continue
        wanted[study.grade] -= 1
        name = f"BraTS19_S_{seed}_1"
        write_study(study, root / ("HGG" if study.grade else "LGG") / name)
    build_datalist([root], folds=2).write(root / "list.json")
    return DataList.read(root / "list.json")


def with_sources() -> dict[str, str]:
    """The environment of a process that the tests start; it computes with as many threads as this one."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


def kill_at_random(command: list[str], history: Path, steps: int) -> None:
    """Start a run, wait until a random one of its first steps is done and then a moment, and kill all its processes."""
    rows, moment = random.randint(1, steps - 1), random.uniform(0, 0.5)
    print(f"killed {moment:.3f} s after step {rows}")
    process = subprocess.Popen(command, env=with_sources())
    try:
        while not history.is_file() or history.read_text().count("\n") < rows:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.02)
        time.sleep(moment)
    finally:
        for pid in [process.pid, *_descendants(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they started; torchrun puts its own into other groups."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, children) for found in (child, *_descendants(child))]
