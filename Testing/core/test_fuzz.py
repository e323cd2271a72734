"""Properties that hold on any grid, for any line sent to the worker, and for any change to a file that is read."""

from __future__ import annotations

import json
import tempfile
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.volume import Volume, read_volume, resample
from MTMed3DCore.worker.protocol import BadRequest, Request, parse_request
from Testing.fuzz.mutate import fuzz
from Testing.fuzz.mutations import minimise
from Testing.fuzz.targets import NAMES, Target, make

ORIENTATIONS = [
    np.eye(3)[list(order)] * signs for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)
]
QUICK = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
EXECUTIONS = {"dicom": 15, "bundle": 60, "findings": 60}


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Any of the 48 orientations, tilted, with any spacing from 0.3 to 8 mm, anywhere within a metre."""
    orientation = draw(st.sampled_from(ORIENTATIONS))
    angles = [draw(st.floats(-44, 44)) for _ in range(3)]
    spacing = [draw(st.floats(0.3, 8)) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ orientation @ np.diag(spacing)
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    x, y, z = (draw(st.integers(3, 9)) for _ in range(3))
    return Grid((x, y, z), affine)


def ramp(grid: Grid) -> Volume:
    """A linear function of the place in the world, which linear interpolation keeps."""
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    world = grid.to_world(voxels) - grid.affine[:3, 3]
    return Volume((world @ [1.0, -2.0, 0.5]).astype(np.float32), grid)


def test_the_orientations_are_the_48_of_a_cube() -> None:
    assert len({tuple(each.ravel() + 0.0) for each in ORIENTATIONS}) == 48


@QUICK
@given(grid=grids(), suffix=st.sampled_from([".nii", ".nii.gz"]))
def test_a_file_on_any_grid_is_read_to_the_same_places_in_the_world(grid: Grid, suffix: str) -> None:
    volume = ramp(grid)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"image{suffix}"
        nibabel.save(nibabel.Nifti1Image(volume.array, grid.affine), file)
        read = read_volume(file)
    assert read.grid.same_as(grid, tolerance_mm=0.01)
    np.testing.assert_array_equal(read.array, volume.array)


@QUICK
@given(grid=grids(), order=st.permutations(range(3)), flips=st.tuples(*[st.booleans()] * 3))
def test_storing_the_axes_otherwise_moves_no_voxel_in_the_world(
    grid: Grid, order: list[int], flips: tuple[bool, ...]
) -> None:
    """The 48 ways to store one image, on any grid."""
    volume = ramp(grid)
    signs = np.where(flips, -1, 1)
    turn = nibabel.orientations.ornt_transform(
        np.stack([order, signs], axis=1), np.stack([np.arange(3), np.ones(3)], axis=1)
    )
    stored = nibabel.Nifti1Image(volume.array, grid.affine).as_reoriented(turn)
    other = Volume(np.asarray(stored.dataobj), Grid(stored.shape, stored.affine))
    assert resample(other, grid).array == pytest.approx(volume.array, abs=1e-2)


@QUICK
@given(grid=grids(), other=grids(), corners=st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_a_box_keeps_its_place_and_volume_on_any_grid(grid: Grid, other: Grid, corners: list[float]) -> None:
    low, high = np.sort(np.reshape(corners, (2, 3)), axis=0) * grid.shape
    box = VoxelBox(tuple(low), tuple(high + 1))
    world = box.to_world(grid)
    assert np.allclose(world.to_voxel(grid).to_list(), box.to_list(), atol=1e-6)
    assert np.prod(world.size) == pytest.approx(box.size.prod() * grid.voxel_volume_ml * 1000)
    held = world.to_voxel(other).to_world(other)
    inside = (world.corners() - held.center) @ np.linalg.inv(held.axes)
    assert (np.abs(inside) <= held.size / 2 + 1e-6).all()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("id", "command", "inputs", "output", "model", "device", "overwrite", "target", "study")


def parsed(line: str) -> Request | BadRequest:
    try:
        return parse_request(line)
    except BadRequest as refusal:
        return refusal


@QUICK
@given(line=st.text() | JSON.map(json.dumps))
def test_any_line_is_a_request_or_refused_as_one(line: str) -> None:
    answer = parsed(line)
    assert isinstance(answer, Request) or (answer.code and answer.text)


@QUICK
@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON),
    command=st.sampled_from(["analyze", "load", "cancel", "ping", "shutdown"]),
)
def test_any_fields_of_a_command_are_taken_or_refused_under_its_id(fields: dict[str, Any], command: str) -> None:
    answer = parsed(json.dumps({**fields, "id": "7", "command": command}))
    assert (answer.id if isinstance(answer, Request) else answer.request_id) == "7"


@pytest.mark.parametrize(
    "line", ["[" * 200_000, '{"id":' + "[" * 950 + "]" * 950 + "}", "9" * 10_000, '{"id":"\\ud800"}']
)
def test_lines_made_to_overstrain_a_parser_are_refused(line: str) -> None:
    assert isinstance(parsed(line), BadRequest)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_changed_is_read_as_long_as_it_is_not_changed(name: str, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    target = make(name, tmp_path)
    for seed in target.seeds:
        target.run(seed, tmp_path / "work")


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_is_read_or_refused_but_crashes_no_reader(name: str, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    outcome = fuzz(make(name, tmp_path), EXECUTIONS.get(name, 200), seed=2, folder=tmp_path / "work")
    assert outcome.crashes == {}
    assert outcome.refused > 0 or name == "dicom"  # there, a file that is no DICOM any more is passed over


def test_a_crash_is_found_and_made_small(tmp_path: Path) -> None:
    """The fuzzer's own test: a reader that fails on every content without its first letter."""

    def reader(content: bytes, folder: Path) -> None:
        if b"A" not in content:
            raise IndexError("no A")

    outcome = fuzz(Target((b"A" + b"b" * 40,), reader, 4), 300, seed=0, folder=tmp_path)
    assert [key.split()[0] for key in outcome.crashes] == ["IndexError"]
    assert minimise(b"Abbb", b"xbcd", lambda content: b"A" not in content) == b"xbbb"
