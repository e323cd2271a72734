"""The benchmark of both forward passes, run as its user runs it, as small as it goes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from MTMed3DCore.synthetic import make_study, write_study

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import speed
import timeline

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "speed.py"


@pytest.mark.parametrize(
    ("part", "device", "compiled", "rounds"),
    [
        ("study", "cpu", False, 0),
        ("study", "cpu", True, 1),
        ("study", "cuda:0", False, 1),
        ("encoder", "cpu", False, 1),
    ],
)
def test_setting_up_a_gpu_and_compiling_do_not_count(part: str, device: str, compiled: bool, rounds: int) -> None:
    assert speed.warm_ups(part, {"device": device, "compiled": compiled}) == rounds


def test_a_peak_is_known_of_a_gpu_in_bf16_or_given() -> None:
    assert speed.peak_of("cuda", "bf16", None) == 790
    assert speed.peak_of("cuda", "bf16", 400.0) == 400
    assert speed.peak_of("cuda", "fp32", None) is None
    assert speed.peak_of("cpu", "bf16", None) is None
    assert speed.peak_of("cpu", "fp32", 1.5) == 1.5


def event(start: float, end: float, *, device: str = "CUDA", named: bool = False) -> SimpleNamespace:
    """As the profiler tells of it, in microseconds."""
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(device_type=SimpleNamespace(name=device), is_user_annotation=named, time_range=span)


def test_a_gpu_is_busy_while_a_kernel_runs_however_many_and_not_because_a_range_has_a_name() -> None:
    kernels = [event(40, 50), event(10, 20), event(15, 25), event(16, 18)]
    others = [event(0, 100, named=True), event(0, 200, device="CPU")]
    assert timeline.busy_and_whole([*others, *kernels]) == (25, 40)


def test_both_sides_compute_the_same_and_every_figure_follows_from_what_was_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "-o", str(tmp_path), "--quick", "--device", "cpu", "--precisions", "fp32"]
    command += ["--peak-tflops", "0.5"]
    done = subprocess.run([*command, "--parts", "encoder"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert 0 < row["difference"] <= 1e-4
    assert row["ratio"] == row["plain_seconds"] / row["ours_seconds"]
    assert row["ours_gflops"] == row["gflop"] / row["ours_seconds"]
    assert row["gflop"] > 1
    assert row["peak_share"] == pytest.approx(row["ours_gflops"] / 500)
    assert f"{row['peak_share']:.1%}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 160
    low, high = row["ours_seconds_range"]
    assert f"{low:.3f}-{high:.3f}" in done.stdout
    assert row["ours_peak_mib"] > 100
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_is_measured_in_its_modes_against_the_plain_side(tmp_path: Path) -> None:
    # Longer than a window along each axis, so that MONAI pads nothing.
    write_study(make_study(3, (66, 68, 66), 3.0), tmp_path / "study")
    command = [sys.executable, str(SCRIPT), "-o", str(tmp_path), "--quick", "--device", "cpu", "--precisions", "fp32"]
    command += ["--parts", "--study", str(tmp_path / "study"), "--spacing", "3", "--study-repeats", "1"]
    modes = ["same-lean", "exact", "quick"]
    done = subprocess.run([*command, "--modes", *modes, "--weights", "starter"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [(row["part"], row["mode"]) for row in rows] == [("study", mode) for mode in modes]
    for row in rows:
        assert row["ratio"] == row["plain_seconds"] / row["ours_seconds"]
        assert min(row["dice"]) > 0.3, "both sides have the starter's function, and see the tumour"
    assert min(rows[0]["dice"]) > 0.998, "in the same windows"
