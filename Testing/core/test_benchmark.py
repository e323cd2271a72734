"""The comparison of one network with three: its counts against known ones, its measurements from real processes."""

from __future__ import annotations

import json
from statistics import median

import pytest
import torch
from torch import nn

from MTMed3DCore import cli, efficiency
from MTMed3DCore.efficiency import as_markdown, count, measure, measure_apart, table_rows
from MTMed3DCore.errors import OutOfResources


def test_the_published_detection_network_has_its_known_parameters_and_two_operations_for_each_multiply_and_add():
    counted = count("published", 48, ("detection",), 96)
    assert counted.parameters == 11_281_205
    # MONAI's Swin also computes the padding of its windows and comes to 131.9 GFLOP.
    assert counted.flops == pytest.approx(123.3e9, rel=0.01)


def test_activations_are_counted_once_each_and_parameters_not_at_all():
    """The first layer keeps its input, the sigmoid its output, which is also what the second layer keeps."""
    network = nn.Sequential(nn.Linear(100, 50), nn.Sigmoid(), nn.Linear(50, 10)).to("meta")
    kept = efficiency._kept_bytes(network, torch.empty(8, 100, device="meta"))
    assert kept == 4 * 8 * (100 + 50)


def test_one_network_of_all_tasks_needs_less_than_three_and_checkpointing_keeps_less():
    whole, *single = (count("mtmed3d", 12, tasks, 64) for tasks in efficiency.VARIANTS.values())
    assert max(each.flops for each in single) < whole.flops < 0.6 * sum(each.flops for each in single)
    assert whole.parameters < 0.6 * sum(each.parameters for each in single)
    assert whole.checkpointed_bytes < 0.7 * whole.activation_bytes


def test_a_network_is_measured_in_a_process_of_its_own_as_often_as_asked():
    measured = measure_apart("mtmed3d", 12, ("detection",), 64, "cpu", 1, 3)
    assert len(measured.seconds) == len(measured.processor_seconds) == 3
    assert min(measured.seconds) > 0
    weights = 4 * count("mtmed3d", 12, ("detection",), 64).parameters
    assert measured.peak_bytes - measured.base_bytes > weights
    with pytest.raises(OutOfResources, match="detection could not be measured"):
        measure_apart("mtmed3d", 12, ("detection",), 64, "no-such-device", 0, 1)


def test_the_command_prints_a_table_and_writes_it_with_every_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(efficiency, "measure_apart", measure)
    arguments = ["benchmark", "tasks", "--feature-size", "12", "--patch", "64", "--device", "cpu", "--repeats", "1"]
    assert cli.main([*arguments, "--warm-up", "0", "-o", str(tmp_path), "-q"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "tasks.json").read_text())
    assert list(result["variants"]) == ["multi-task", "segmentation", "detection", "grading"]
    assert (tmp_path / "tasks.md").read_text() == as_markdown(result)
    rows = {row[0]: row[1:] for row in table_rows(result)}
    singles = [result["variants"][task] for task in ("segmentation", "detection", "grading")]
    assert float(rows["three single-task"][0]) == pytest.approx(sum(s["parameters"] for s in singles) / 1e6, abs=0.01)
    assert float(rows["three single-task"][2]) == pytest.approx(sum(median(s["seconds"]) for s in singles), abs=0.001)
    share = result["variants"]["multi-task"]["flops"] / sum(s["flops"] for s in singles)
    assert float(rows["multi / three"][1]) == pytest.approx(share, abs=0.005)
    assert all(figure in printed for figure in rows["multi-task"][:2])
    for each in result["variants"].values():
        each["peak_bytes"] = each["base_bytes"]  # as where the process had memory to spare
    assert table_rows(result)[-1][5] == "nan"
    assert cli.main([*arguments, "--patch", "50"]) == 2
    assert "50 voxels does not fit" in capsys.readouterr().err
