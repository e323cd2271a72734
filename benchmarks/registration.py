"""What registration undoes, and what its quality figure says where it does not.

    python benchmarks/registration.py STUDY OUT [--other STUDY] [--trials 20] [--provocations 4]

STUDY is a folder of T1, T1ce, T2 and FLAIR of one patient. The sequences' own places are found once; then each is
moved by a known rigid motion, in turn, and registered again. The error is the mean distance over the head between the
motion that was found and the one that was applied. Provocations ask for failures: motions beyond what happens between
two series, a mirrored image, part of the head only, another patient's image (``--other``), and noise. Writes
``registration.json`` into OUT, the verdict and the figures of every trial.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from MTMed3DCore.geometry import FloatArray, Grid
from MTMed3DCore.preparation.head import bias_corrected, settled
from MTMed3DCore.preparation.record import Registration
from MTMed3DCore.preparation.registration import FixedImage, register
from MTMed3DCore.study import Study
from MTMed3DCore.volume import Volume, to_sitk

MOVING = ("t2", "flair", "t1")
USUAL_DEG, USUAL_MM = 15.0, 15.0
"""What a patient may move between two series."""
WIDE_DEG, WIDE_MM = (30.0, 60.0), (30.0, 70.0)
SLAB_SLICES = 9


def motion(rng: np.random.Generator, degrees: float, millimetres: float, middle: FloatArray) -> FloatArray:
    """A rigid motion (4 x 4, RAS mm) by so much about a random axis through a point, and along a random direction."""
    axis, along = (vector / np.linalg.norm(vector) for vector in rng.standard_normal((2, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * axis).as_matrix()
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle + millimetres * along
    return matrix


def moved(volume: Volume, matrix: FloatArray) -> Volume:
    """The scan of a patient who lay elsewhere."""
    return Volume(volume.array, Grid(volume.grid.shape, matrix @ volume.grid.affine))


def apart_mm(one: FloatArray, other: FloatArray, points: FloatArray) -> float:
    """Mean distance at which two 4 x 4 matrices put the same points."""
    difference = one - other
    return float(np.linalg.norm(points @ difference[:3, :3].T + difference[:3, 3], axis=1).mean())


class Bench:
    """One study against which everything is registered.

    Args:
        study: of four sequences as scanned.
    """

    def __init__(self, study: Study) -> None:
        self.volumes = dict(study.scanned)
        self.fixed = FixedImage(even(self.volumes["t1ce"]))
        self.points = self.fixed.points * [-1.0, -1.0, 1.0]
        self.middle = self.points.mean(axis=0)
        self.own = {name: self.run(self.volumes[name], name) for name in MOVING}

    def run(self, volume: Volume, name: str) -> Registration:
        """Register a volume to the T1ce."""
        return register(self.fixed, even(volume), name)

    def trial(self, kind: str, name: str, volume: Volume, truth: FloatArray | None) -> dict[str, Any]:
        """One registration as a record; `truth` is where the volume belongs, None where it belongs nowhere."""
        began = time.perf_counter()
        found = self.run(volume, name)
        return {
            "kind": kind,
            "sequence": name,
            "verdict": found.verdict,
            "error_mm": None if truth is None else apart_mm(found.matrix, truth, self.points),
            "disagreement_mm": found.disagreement_mm,
            "mutual_information": found.mutual_information,
            "mutual_information_header": found.mutual_information_header,
            "rotation_deg": found.rotation_deg,
            "translation_mm": found.translation_mm,
            "seconds": time.perf_counter() - began,
        }


def even(volume: Volume) -> Any:
    """As preparation hands it to the registration."""
    return bias_corrected(settled(to_sitk(volume)))


def usual(bench: Bench, count: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Motions up to `USUAL_DEG` and `USUAL_MM`."""
    for number in range(count):
        name = MOVING[number % len(MOVING)]
        matrix = motion(rng, rng.uniform(0, USUAL_DEG), rng.uniform(0, USUAL_MM), bench.middle)
        yield bench.trial("usual", name, moved(bench.volumes[name], matrix), matrix @ bench.own[name].matrix)


def provoked(bench: Bench, other: Study | None, count: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """What ought to fail, or at least be doubted."""
    changes: dict[str, Callable[[Volume], Volume]] = {
        "mirrored": lambda v: Volume(np.ascontiguousarray(v.array[::-1]), v.grid),
        "slab": lambda v: Volume(v.array[..., :SLAB_SLICES], Grid((*v.grid.shape[:2], SLAB_SLICES), v.grid.affine)),
        "noise": lambda v: Volume(rng.gamma(2.0, 50.0, v.grid.shape).astype(np.float32), v.grid),
    }
    for number in range(count):
        name = MOVING[number % len(MOVING)]
        volume, own = bench.volumes[name], bench.own[name].matrix
        matrix = motion(rng, rng.uniform(*WIDE_DEG), rng.uniform(*WIDE_MM), bench.middle)
        yield bench.trial("wide", name, moved(volume, matrix), matrix @ own)
        for kind, change in changes.items():
            small = motion(rng, rng.uniform(0, USUAL_DEG), rng.uniform(0, USUAL_MM), bench.middle)
            yield bench.trial(kind, name, moved(change(volume), small), small @ own if kind == "slab" else None)
        if other is not None:
            small = motion(rng, rng.uniform(0, USUAL_DEG), rng.uniform(0, USUAL_MM), bench.middle)
            yield bench.trial("other patient", name, moved(other.scanned[name], small), None)


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--provocations", type=int, default=4)
    options = parser.parse_args()
    rng = np.random.default_rng(2025)
    bench = Bench(Study.read(options.study))
    other = None if options.other is None else Study.read(options.other)
    options.output.mkdir(parents=True, exist_ok=True)
    trials = []
    for each in chain(usual(bench, options.trials, rng), provoked(bench, other, options.provocations, rng)):
        trials.append(each)
        error = "" if each["error_mm"] is None else f"{each['error_mm']:.2f} mm off"
        apart = "" if each["disagreement_mm"] is None else f"runs {each['disagreement_mm']:.2f} mm apart"
        print(f"{each['kind']:14s}{each['sequence']:6s}{each['verdict']:10s}{error:16s}{apart}", flush=True)
    text = json.dumps({"trials": trials}, indent=1) + "\n"
    (options.output / "registration.json").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
