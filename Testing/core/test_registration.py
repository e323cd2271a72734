"""Registration: displacements that are known are undone, and what cannot be registered is said to have failed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.geometry import Grid
from MTMed3DCore.preparation import prepare
from MTMed3DCore.preparation.grid import resample_rigid
from MTMed3DCore.preparation.head import bias_corrected, settled
from MTMed3DCore.preparation.record import Registration, itk_transform, read_preparation, write_preparation
from MTMed3DCore.preparation.registration import FixedImage, register
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.synthetic import make_study
from MTMed3DCore.synthetic.head import HeadStudy, make_head_round
from MTMed3DCore.volume import Volume, to_sitk


@pytest.fixture(scope="module")
def head() -> HeadStudy:
    study = make_study(11, (54, 64, 54), 3.0)
    return make_head_round(study.image.numpy(), study.brain.numpy(), study.grid, seed=4)


def motion(degrees: tuple[float, float, float], shift: tuple[float, float, float], middle: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle + shift
    return matrix


def moved(head: HeadStudy, sequence: str, matrix: np.ndarray) -> Volume:
    """A sequence of a head that lay elsewhere in the scanner."""
    return Volume(head.sequences[sequence], Grid(head.grid.shape, matrix @ head.grid.affine))


def brain_points(head: HeadStudy) -> np.ndarray:
    return head.grid.to_world(np.argwhere(head.brain)[::50])


def mean_error_mm(found: np.ndarray, true: np.ndarray, points: np.ndarray) -> float:
    return float(np.linalg.norm((points @ (found - true)[:3, :3].T) + (found - true)[:3, 3], axis=1).mean())


def even(volume: Volume):
    return bias_corrected(to_sitk(volume))


def test_a_turned_and_moved_sequence_is_brought_back(head: HeadStudy) -> None:
    points = brain_points(head)
    true = motion((11, -6, 7), (9, -8, 7), points.mean(axis=0))
    found = register(FixedImage(even(Volume(head.sequences["t1ce"], head.grid))), even(moved(head, "t2", true)), "t2")
    assert found.verdict == "good"
    assert mean_error_mm(found.matrix, true, points) < 1.0
    assert found.rotation_deg == pytest.approx(14.3, abs=1.0)
    assert found.mutual_information > 1.2 * found.mutual_information_header


def test_noise_cannot_be_registered_and_stays_where_its_header_puts_it(head: HeadStudy) -> None:
    noise = np.random.default_rng(0).normal(100, 10, head.grid.shape).astype(np.float32)
    fixed = FixedImage(even(Volume(head.sequences["t1ce"], head.grid)))
    found = register(fixed, even(Volume(noise, head.grid)), "flair")
    assert found.verdict == "failed"
    assert found.method == "header"
    np.testing.assert_array_equal(found.matrix, np.eye(4))


def test_an_image_of_a_few_voxels_is_not_tried() -> None:
    array = np.random.default_rng(1).uniform(1, 99, (20, 24, 16)).astype(np.float32)
    volume = Volume(array, Grid(array.shape, np.eye(4)))
    found = register(FixedImage(even(volume)), even(volume), "t1")
    assert (found.verdict, found.method, found.disagreement_mm) == ("doubtful", "header", None)


def test_a_sequence_that_lies_right_is_good_where_its_header_puts_it(head: HeadStudy) -> None:
    fixed = FixedImage(even(Volume(head.sequences["t1ce"], head.grid)))
    found = register(fixed, even(Volume(head.sequences["t2"], head.grid)), "t2")
    assert found.verdict == "good"
    assert mean_error_mm(found.matrix, np.eye(4), brain_points(head)) < 0.5


def study_with(head: HeadStudy, **scanned: Volume) -> SimpleNamespace:
    """The head's study with some sequences replaced by what the scanner is to have made."""
    volumes = {name: Volume(head.sequences[name], head.grid) for name in SEQUENCES} | scanned
    return SimpleNamespace(
        grid=head.grid,
        scanned=volumes,
        sequences={name: Volume(head.sequences[name], head.grid) for name in SEQUENCES},
    )


@pytest.fixture
def verdicts(monkeypatch):
    """Lets registrations end as a test wants, without running any."""
    monkeypatch.setattr("MTMed3DCore.preparation.head.bias_corrected", lambda image: image)  # only steers the search

    def give(**wanted: Registration) -> None:
        def pretended(fixed: FixedImage, moving: object, sequence: str) -> Registration:
            return wanted.get(sequence, Registration(sequence, np.eye(4), "mutual-information", "good", 0.1))

        monkeypatch.setattr("MTMed3DCore.preparation.registration.register", pretended)

    return give


FAILED = Registration("flair", np.eye(4), "header", "failed", 11.25)


def test_a_study_whose_registration_failed_is_refused_with_the_figure_and_a_way_out(head: HeadStudy, verdicts) -> None:
    verdicts(flair=FAILED)
    with pytest.raises(InputRefused, match=r"flair \(two runs end 11.2 mm apart\)") as refused:
        prepare(study_with(head), spacing_mm=3.0, mask=head.brain)
    assert refused.value.code == "registration-failed"
    assert "--preparation" in refused.value.remedy


def test_to_be_looked_at_it_is_kept_where_its_header_puts_it(head: HeadStudy, verdicts) -> None:
    verdicts(flair=FAILED)
    prepared = prepare(study_with(head), spacing_mm=3.0, mask=head.brain, keep_failed=True)
    assert "registration-failed" in [notice.code for notice in prepared.warnings]
    np.testing.assert_array_equal(prepared.record.registrations[2].matrix, np.eye(4))
    again = prepare(study_with(head), spacing_mm=3.0, earlier=prepared.record)  # by --preparation, seen and accepted
    assert "registration-failed" in [notice.code for notice in again.warnings]


def test_a_doubtful_registration_is_a_warning_with_its_figure(head: HeadStudy, verdicts) -> None:
    verdicts(t2=Registration("t2", np.eye(4), "mutual-information", "doubtful", 2.5))
    (notice,) = [n for n in prepare(study_with(head), spacing_mm=3.0, mask=head.brain).warnings if "regist" in n.code]
    assert notice.code == "registration-doubtful"
    assert "2.5 mm apart" in notice.text


def test_a_transform_that_the_user_corrected_replaces_the_failed_one(head: HeadStudy, verdicts, tmp_path) -> None:
    verdicts(flair=FAILED)
    study = study_with(head)
    write_preparation(prepare(study, spacing_mm=3.0, mask=head.brain, keep_failed=True).record, tmp_path)
    corrected = motion((0, 0, 4), (5, 0, 0), np.zeros(3))
    SimpleITK.WriteTransform(itk_transform(corrected), str(tmp_path / "flair_to_t1ce.tfm"))
    earlier = read_preparation(tmp_path, head.grid)
    found = {each.sequence: each for each in earlier.registrations}
    assert (found["flair"].method, found["flair"].verdict) == ("given", "not-needed")
    np.testing.assert_allclose(found["flair"].matrix, corrected, atol=1e-9)
    assert found["t2"].disagreement_mm == 0.1
    again = prepare(study, spacing_mm=3.0, earlier=earlier)
    assert not [notice for notice in again.warnings if notice.code.startswith("registration")]


def test_transform_and_change_of_grid_are_one_interpolation() -> None:
    source = Grid((40, 44, 30), np.diag([1.0, 1.0, 2.0, 1.0]))
    matrix = motion((10, 5, -8), (3, -2, 1), np.array([20.0, 22.0, 30.0]))
    world = source.to_world(np.stack(np.indices(source.shape), -1))
    ramp = Volume((world @ [0.7, -1.3, 2.1] + 5).astype(np.float32), source)
    for spacing, count in ((1.0, 18), (2.0, 9)):
        target = Grid((count,) * 3, np.diag([spacing] * 3 + [1.0]) + np.array([[0, 0, 0, 11], [0, 0, 0, 13],
                                                                               [0, 0, 0, 20], [0] * 4]))  # fmt: skip
        points = target.to_world(np.stack(np.indices(target.shape), -1)) @ matrix[:3, :3].T + matrix[:3, 3]
        np.testing.assert_allclose(resample_rigid(ramp, matrix, target), points @ [0.7, -1.3, 2.1] + 5, atol=2e-3)


def test_a_clinical_study_is_prepared_recorded_and_prepared_again_from_the_record(head: HeadStudy, tmp_path) -> None:
    points = brain_points(head)
    true = {name: np.eye(4) for name in SEQUENCES}
    true["flair"] = motion((-8, 4, 10), (-6, 7, 5), points.mean(axis=0))
    scanned = {name: moved(head, name, true[name]) for name in SEQUENCES}
    study = SimpleNamespace(
        grid=head.grid,
        scanned={**scanned, "t1ce": Volume(head.sequences["t1ce"], head.grid)},
        sequences={name: Volume(head.sequences[name], head.grid) for name in SEQUENCES},
    )
    first = prepare(study, spacing_mm=3.0, external=False)
    assert not first.stripped
    assert "brain-mask-approximate" in [notice.code for notice in first.warnings]
    found = {each.sequence: each for each in first.record.registrations}
    assert mean_error_mm(found["flair"].matrix, true["flair"], points) < 1.0
    write_preparation(first.record, tmp_path / "preparation")
    again = prepare(study, spacing_mm=3.0, earlier=read_preparation(tmp_path, head.grid))
    assert again.record.brain_source == first.record.brain_source == "built-in"
    np.testing.assert_array_equal(again.brain, first.brain)
    np.testing.assert_allclose(again.image, first.image, atol=1e-3)
    # The sequence lies over the T1ce: where the T1ce shows brain, so does the FLAIR, at the same places.
    truth = make_reference(head, first.grid, "flair")
    inside = first.brain & (truth > 0)
    assert np.corrcoef(first.image[3][inside], truth[inside])[0, 1] > 0.9


def make_reference(head: HeadStudy, grid: Grid, sequence: str) -> np.ndarray:
    """The sequence on the working grid as if the head had never moved."""
    return resample_rigid(Volume(head.sequences[sequence] * head.brain, head.grid), np.eye(4), grid)


def test_the_last_digits_of_a_scans_place_change_nothing(head: HeadStudy) -> None:
    turned = Grid(head.grid.shape, motion((11, -6, 7), (9.12345, -8, 7), np.zeros(3)) @ head.grid.affine)
    nearly = Grid(turned.shape, turned.affine.astype(np.float32).astype(float))
    assert not np.array_equal(turned.affine, nearly.affine)
    images = [settled(to_sitk(Volume(head.sequences["t2"], grid))) for grid in (turned, nearly)]
    exact = to_sitk(Volume(head.sequences["t2"], turned))
    assert images[0].GetOrigin() == images[1].GetOrigin()
    assert images[0].GetDirection() == images[1].GetDirection()
    corner = [side - 1 for side in exact.GetSize()]
    ends = [image.TransformIndexToPhysicalPoint(corner) for image in (exact, images[0])]
    assert float(np.linalg.norm(np.subtract(*ends))) < 0.03
