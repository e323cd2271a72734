"""The benchmark of both forward passes, run as its user runs it, as small as it goes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from MTMed3DCore.synthetic import make_study, write_study

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "speed.py"


def test_both_sides_compute_the_same_and_every_figure_follows_from_what_was_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "-o", str(tmp_path), "--quick", "--device", "cpu", "--precisions", "fp32"]
    done = subprocess.run([*command, "--parts", "encoder"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert 0 < row["difference"] <= 1e-4
    assert row["ratio"] == row["plain_seconds"] / row["ours_seconds"]
    assert row["ours_gflops"] == row["gflop"] / row["ours_seconds"]
    assert row["gflop"] > 1
    assert row["ours_peak_mib"] > 100
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_is_measured_in_both_modes_against_the_plain_side(tmp_path: Path) -> None:
    write_study(make_study(3, (60, 64, 60), 3.0), tmp_path / "study")
    command = [sys.executable, str(SCRIPT), "-o", str(tmp_path), "--quick", "--device", "cpu", "--precisions", "fp32"]
    command += ["--parts", "--study", str(tmp_path / "study"), "--spacing", "3", "--study-repeats", "1"]
    done = subprocess.run(
        [*command, "--modes", "exact", "quick", "--weights", "starter"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [(row["part"], row["mode"]) for row in rows] == [("study", "exact"), ("study", "quick")]
    for row in rows:
        assert row["ratio"] == row["plain_seconds"] / row["ours_seconds"]
        assert min(row["dice"]) > 0.3, "both sides have the starter's function, and see the tumour"
