"""Grids and boxes on axial, flipped, sagittal and oblique anisotropic grids, against arithmetic of the tests' own."""

from __future__ import annotations

import numpy as np
import pytest

from MTMed3DCore.geometry import Grid, VoxelBox, WorldBox
from Testing.awkward_grids import GRIDS, SHAPE


def test_voxel_centres_land_where_the_affine_puts_them_and_come_back(grid):
    index = np.array([3.0, 7.5, 11.0])
    world = sum(index[k] * grid.affine[:3, k] for k in range(3)) + grid.affine[:3, 3]
    assert np.allclose(grid.to_world(index), world)
    assert np.allclose(grid.to_voxel(world), index)


def test_spacing_axes_and_volume_are_those_of_the_columns(grid):
    assert np.allclose(grid.spacing, [np.sqrt((grid.affine[:3, k] ** 2).sum()) for k in range(3)])
    assert np.allclose(grid.axes[2], grid.affine[:3, 2] / grid.spacing[2])
    assert grid.voxel_volume_ml == pytest.approx(grid.spacing.prod() / 1000)


def test_a_box_of_voxels_reaches_half_a_voxel_beyond_their_centres(grid):
    box = VoxelBox((2, 3, 4), (5, 9, 6)).to_world(grid)
    centres = [grid.to_world([x, y, z]) for x in (2, 4) for y in (3, 8) for z in (4, 5)]
    along = (np.array(centres) - box.center) @ box.axes.T
    assert np.allclose(np.abs(along).max(axis=0), box.size / 2 - grid.spacing / 2)
    assert np.allclose(box.size, [3 * grid.spacing[0], 6 * grid.spacing[1], 2 * grid.spacing[2]])


def test_a_box_survives_the_way_to_the_world_and_back(grid):
    box = VoxelBox((2, 3, 4), (5, 9, 6))
    assert np.allclose(box.to_world(grid).to_voxel(grid).to_list(), box.to_list())


def test_on_another_grid_the_box_holds_all_eight_corners(grid):
    world = VoxelBox((2, 3, 4), (5, 9, 6)).to_world(grid)
    other = Grid(SHAPE, GRIDS["axial"])
    moved = world.to_voxel(other)
    corners = other.to_voxel(world.corners()) + 0.5
    assert np.allclose(moved.lower, corners.min(axis=0))
    assert np.allclose(moved.upper, corners.max(axis=0))


def test_the_box_of_a_mask_is_tight_and_its_slices_cut_it_out():
    mask = np.zeros(SHAPE, bool)
    mask[3:7, 4:5, 6:18] = True
    box = VoxelBox.around(mask)
    assert box.to_list() == [3, 4, 6, 7, 5, 18]
    assert mask[box.slices(SHAPE)].all()
    assert mask[box.slices(SHAPE)].sum() == mask.sum()


def test_fractional_boxes_select_the_voxels_whose_centres_they_hold():
    # In box coordinates voxel i reaches from i to i + 1, so its centre is at i + 0.5.
    selected = VoxelBox((1.4, 0.0, 0.0), (3.6, 1.0, 1.0)).slices((9, 9, 9))[0]
    assert list(range(9))[selected] == [1, 2, 3]


def test_iou_of_half_overlapping_boxes_is_a_third():
    a, b = VoxelBox((0, 0, 0), (4, 4, 4)), VoxelBox((2, 0, 0), (6, 4, 4))
    assert a.iou(b) == pytest.approx(1 / 3)
    assert a.iou(VoxelBox((9, 9, 9), (10, 10, 10))) == 0


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3)])
def test_an_impossible_affine_is_refused(affine):
    with pytest.raises(ValueError, match="affine"):
        Grid(SHAPE, affine)


def test_impossible_boxes_are_refused():
    with pytest.raises(ValueError, match="positive extent"):
        VoxelBox((1, 1, 1), (1, 2, 2))
    with pytest.raises(ValueError, match="positive size"):
        WorldBox(np.zeros(3), np.array([1.0, 0.0, 1.0]), np.eye(3))
    with pytest.raises(ValueError, match="empty mask"):
        VoxelBox.around(np.zeros(SHAPE, bool))


def test_a_grid_is_the_same_only_where_every_corner_is(grid):
    shifted = grid.affine.copy()
    shifted[:3, 3] += 0.1
    assert grid.same_as(Grid(SHAPE, grid.affine + 0.0))
    assert not grid.same_as(Grid(SHAPE, shifted))
    assert not grid.same_as(Grid((SHAPE[0] - 1, *SHAPE[1:]), grid.affine))
