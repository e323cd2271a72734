"""The four volumes of a study: guessed from their names, checked with every reason, written with their transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="the slicer-core wheel (extra 'slicer') is not installed")

from scene_helpers import SEQUENCES, add_transform, add_volume, rigid  # noqa: E402

from MTMed3DCore.geometry import Grid  # noqa: E402
from MTMed3DCore.volume import read_volume  # noqa: E402
from MTMed3DLib.inputs import reasons, take_inputs  # noqa: E402
from MTMed3DLib.nodes import matrix_of, voxels_of  # noqa: E402
from MTMed3DLib.suggestion import suggest  # noqa: E402
from Testing.example_findings import GRIDS  # noqa: E402


@pytest.fixture
def scene() -> Any:
    scene = slicer.vtkMRMLScene()
    yield scene
    scene.Clear(1)


@pytest.fixture
def nodes(scene: Any) -> dict[str, Any]:
    return {name: add_volume(scene, name, GRIDS["oblique"], seed) for seed, name in enumerate(SEQUENCES)}


def test_volumes_are_suggested_by_their_names(scene: Any) -> None:
    names = ["3: localiser", "5: t2_tse_tra", "7: T1_post_contrast", "8: t1_se", "9: T2_FLAIR"]
    made = {name: add_volume(scene, name, GRIDS["axial"]) for name in names}
    found = suggest(scene).nodes
    assert found["flair"] is made["9: T2_FLAIR"]
    assert found["t2"] is made["5: t2_tse_tra"]
    assert found["t1ce"] is made["7: T1_post_contrast"]
    assert found["t1"] is made["8: t1_se"]


def test_of_two_alike_none_is_suggested_and_both_are_named(scene: Any) -> None:
    for name in ("5: t2_tse_tra", "10: T2"):
        add_volume(scene, name, GRIDS["axial"])
    found = suggest(scene)
    assert found.nodes["t2"] is None
    assert found.hints["t2"] == "“5: t2_tse_tra” and “10: T2” are T2 alike; choose one."


def test_of_two_the_clearly_finer_one_is_suggested_and_the_other_named(scene: Any) -> None:
    grid = GRIDS["axial"]
    add_volume(scene, "4: T1 gd", Grid(grid.shape, grid.affine @ np.diag([2.0, 2.0, 2.0, 1.0])))
    fine = add_volume(scene, "9: T1 gd iso", grid)
    found = suggest(scene)
    assert found.nodes["t1ce"] is fine
    assert "“4: T1 gd”" in found.hints["t1ce"]


def test_a_volume_that_may_be_two_sequences_is_shown_with_both_and_not_chosen(scene: Any) -> None:
    add_volume(scene, "T1 pre and post", GRIDS["axial"])
    found = suggest(scene)
    assert (found.nodes["t1"], found.nodes["t1ce"]) == (None, None)
    assert found.hints["t1ce"] == "T1ce may be “T1 pre and post” (T1 or T1ce?); choose it."


def test_a_volume_that_is_spoken_for_is_no_suggestion(scene: Any) -> None:
    taken, other = (add_volume(scene, name, GRIDS["axial"]) for name in ("5: t2_tse_tra", "10: T2"))
    assert suggest(scene, without={taken.GetID()}).nodes["t2"] is other


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        ("T1 MPRAGE +C", "t1ce"),
        ("t1_mpr_sag_p2_iso+KM", "t1ce"),
        ("SAG T1 C+", "t1ce"),
        ("T1w Gd", "t1ce"),
        ("3D T1 with contrast", "t1ce"),
        ("T1 without contrast", "t1"),
        ("T1 MPRAGE -C", "t1"),
        ("5: T2 FLAIR/ax", "flair"),
    ],
)
def test_an_enhanced_t1_is_known_by_the_words_of_its_description(scene: Any, name: str, sequence: str) -> None:
    add_volume(scene, name, GRIDS["axial"])
    assert [key for key, node in suggest(scene).nodes.items() if node is not None] == [sequence]


def test_label_maps_are_no_suggestion(scene: Any) -> None:
    scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "T1")
    assert suggest(scene).nodes["t1"] is None


def test_a_complete_study_has_no_reason_against_it(nodes: dict[str, Any]) -> None:
    assert reasons(nodes) == []


def test_every_reason_is_named_not_the_first_alone(scene: Any, nodes: dict[str, Any]) -> None:
    far = add_volume(scene, "far", Grid((20, 24, 16), np.diag([1.0, 1.0, 1.0, 1.0]) + np.eye(4, k=3) * 900))
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    told = reasons({**nodes, "t1": None, "t2": far, "flair": nodes["t1ce"]})
    assert told == [
        "T1 is not chosen.",
        "FLAIR is the same volume as T1ce.",
        "T2 does not overlap T1ce in space.",
    ]
    assert reasons({**nodes, "t2": empty}) == ["T2 (empty) holds no voxels."]


def test_a_non_linear_transform_is_a_reason(scene: Any, nodes: dict[str, Any]) -> None:
    warp = scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "warp")
    nodes["flair"].SetAndObserveTransformNodeID(warp.GetID())
    assert reasons(nodes) == ["FLAIR (flair) is under a non-linear transform; harden the transform first."]


def test_a_shearing_transform_is_a_reason(scene: Any, nodes: dict[str, Any]) -> None:
    shear = np.eye(4)
    shear[0, 1] = 0.3
    nodes["t1"].SetAndObserveTransformNodeID(add_transform(scene, "shear", shear).GetID())
    assert reasons(nodes) == ["T1 (t1) is sheared by its transform; harden the transform first."]


def test_overlap_is_judged_where_the_transforms_put_the_volumes(scene: Any, nodes: dict[str, Any]) -> None:
    away = add_transform(scene, "away", rigid(0, (500, 0, 0)))
    nodes["t2"].SetAndObserveTransformNodeID(away.GetID())
    assert reasons(nodes) == ["T2 does not overlap T1ce in space."]
    for node in nodes.values():
        node.SetAndObserveTransformNodeID(away.GetID())
    assert reasons(nodes) == []


@pytest.mark.parametrize("grid", list(GRIDS))
def test_volumes_are_written_voxel_by_voxel_on_their_own_grids(scene: Any, tmp_path: Path, grid: str) -> None:
    nodes = {name: add_volume(scene, name, GRIDS[grid], seed) for seed, name in enumerate(SEQUENCES)}
    for name, path in take_inputs(nodes).write(tmp_path).items():
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, voxels_of(nodes[name].GetImageData()))
        np.testing.assert_allclose(volume.grid.affine, GRIDS[grid].affine, atol=1e-4)


def test_what_stands_between_a_sequence_and_t1ce_goes_into_its_geometry(
    scene: Any, nodes: dict[str, Any], tmp_path: Path
) -> None:
    head, registration = rigid(40, (100, 0, 0)), rigid(10, (3, 4, 5))
    parent = add_transform(scene, "head", head)
    child = add_transform(scene, "registration", registration)
    child.SetAndObserveTransformNodeID(parent.GetID())
    for name, node in nodes.items():
        node.SetAndObserveTransformNodeID((child if name == "t2" else parent).GetID())
    files = take_inputs(nodes).write(tmp_path)
    own = GRIDS["oblique"].affine
    np.testing.assert_allclose(read_volume(files["t1ce"]).grid.affine, own, atol=1e-4)
    np.testing.assert_allclose(read_volume(files["t2"]).grid.affine, registration @ own, atol=1e-4)


def test_a_study_that_cannot_be_run_is_not_written(scene: Any, nodes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="FLAIR is not chosen"):
        take_inputs({**nodes, "flair": None})
    assert list(tmp_path.iterdir()) == []


def test_whole_numbers_stay_whole(scene: Any, nodes: dict[str, Any], tmp_path: Path) -> None:
    from MTMed3DLib.nodes import oriented_image

    image = oriented_image((np.arange(20 * 24 * 16) % 251).astype(np.uint8).reshape(20, 24, 16), np.eye(4))
    nodes["t1"].SetAndObserveImageData(image)
    nodes["t1"].SetIJKToRASMatrix(matrix_of(GRIDS["oblique"].affine))
    volume = read_volume(take_inputs(nodes).write(tmp_path)["t1"])
    assert volume.array[3, 5, 7] == (3 * 24 * 16 + 5 * 16 + 7) % 251
