"""Each statistic on images whose answer is known, and the warnings that come, or do not come, of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from MTMed3DCore.domain.agent import LEAST_RISE, agent_check
from MTMed3DCore.domain.anatomy import brain_checks, tissue_checks
from MTMed3DCore.domain.cavity import cavity_checks, cavity_volumes
from MTMed3DCore.domain.check import DomainCheck, document_check, notices
from MTMed3DCore.domain.sample import FLAIR, T1, T1CE, T2, Sample, take_sample
from MTMed3DCore.domain.study import check_study, statistics
from MTMed3DCore.domain.uncertainty import disagreement, entropy_check, mean_entropy, mirror_disagreement
from MTMed3DCore.domain.values import ct_checks
from MTMed3DCore.exports.json_file import document_findings, findings_document, write_json
from MTMed3DCore.exports.report import write_report
from MTMed3DCore.geometry import Grid
from MTMed3DCore.inference import InferenceSettings, run_network
from MTMed3DCore.preparation import PreparedStudy, prepare
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.study import Study
from MTMed3DCore.volume import Volume
from Testing.example_findings import GRIDS, findings_on
from Testing.wrong_studies import all_wrong

SPACING = 2.5
RADII = (63.0, 78.0, 62.0)
"""Of the head in mm, to the right, to the front and upward."""
SHAPE = (56, 68, 56)
FLUID, GREY, WHITE = ((0.2, 0.2, 1.1, 0.2), (0.6, 0.62, 0.5, 0.6), (0.9, 0.9, 0.35, 0.5))
"""T1, T1ce, T2 and FLAIR."""


def places() -> np.ndarray:
    """Millimetres from the middle, (3, X, Y, Z)."""
    middle = (np.array(SHAPE) - 1) / 2
    return SPACING * (np.indices(SHAPE) - middle[:, None, None, None])


def ellipsoid(radii: tuple[float, float, float] = RADII) -> np.ndarray:
    return sum((axis / radius) ** 2 for axis, radius in zip(places(), radii, strict=True)) < 1


def ball(middle: tuple[float, float, float], radius: float) -> np.ndarray:
    return sum((axis - at) ** 2 for axis, at in zip(places(), middle, strict=True)) < radius**2


def head(agent: float = 1.5, tumour: np.ndarray | None = None, fluid: np.ndarray | None = None) -> Sample:
    """Stripes of grey and white matter, a ventricle in the middle, and vessels in one voxel of a hundred or so."""
    random, brain = np.random.default_rng(1), ellipsoid()
    x, y, z = places()
    white = np.sin(x / 5) + np.sin(y / 6 + 1) + np.sin(z / 5) > 0
    wet = (x / 17) ** 2 + (y / 42) ** 2 + (z / 24) ** 2 < 1
    wet = wet if fluid is None else wet | fluid
    vessels = (np.abs(np.sin(x / 9 + 0.5)) < 0.07) & (np.abs(np.sin(z / 9)) < 0.3)
    image = np.empty((4, *SHAPE), dtype=np.float32)
    for channel in range(4):
        values = np.where(wet, FLUID[channel], np.where(white, WHITE[channel], GREY[channel]))
        if channel == T1CE:
            values = np.where(vessels & ~wet, agent, values)
        image[channel] = np.where(brain, values + 0.02 * random.standard_normal(SHAPE), 0)
    return Sample(image, brain, np.zeros(SHAPE, bool) if tumour is None else tumour, SPACING)


def outside(checks: list[DomainCheck]) -> list[str]:
    return [check.code for check in checks if not check.within]


class TestBrain:
    def test_volume_and_proportions_of_an_ellipsoid_are_measured(self) -> None:
        brain = ellipsoid()
        size, shape, filling = brain_checks(brain, SPACING, float(brain.sum()) * SPACING**3 / 1000)
        assert size.value == pytest.approx(4 / 3 * pi * np.prod(RADII) / 1000, rel=0.01)
        assert shape.value == pytest.approx(78 / 63, rel=0.04)
        # Two caps of 0.2 % of an ellipsoid are a twentieth of its axis.
        assert filling.value == pytest.approx(pi / 6 / 0.948**3, rel=0.05)
        assert outside([size, shape, filling]) == []

    def test_a_small_child_is_too_small(self) -> None:
        assert outside(brain_checks(ellipsoid(), SPACING, 612.0)) == ["brain-size"]

    def test_a_head_that_was_taken_for_a_brain_is_too_large(self) -> None:
        assert outside(brain_checks(ellipsoid(), SPACING, 3400.0)) == ["brain-size"]

    def test_a_ball_has_no_brain_s_proportions(self) -> None:
        assert outside(brain_checks(ellipsoid((65, 65, 65)), SPACING, 1150.0)) == ["brain-shape"]

    def test_a_block_fills_its_box(self) -> None:
        block = (np.abs(places()) < np.array([50, 62, 50])[:, None, None, None]).all(axis=0)
        assert outside(brain_checks(block, SPACING, 1240.0)) == ["brain-filling"]


class TestTissues:
    def test_an_adult_s_brain_raises_no_doubt(self) -> None:
        assert outside(tissue_checks(head())) == []

    def test_units_and_offsets_do_not_matter(self) -> None:
        sample = head()
        scaled = replace(sample, image=sample.image * np.float32(37) + np.float32(-120))
        before, after = ([check.value for check in tissue_checks(each)] for each in (sample, scaled))
        assert after == pytest.approx(before, abs=1e-3)

    def test_an_infant_s_reversed_contrast_is_noticed(self) -> None:
        sample = head()
        image = sample.image.copy()
        image[T2] = sample.image[T1]
        assert "tissue-contrast" in outside(tissue_checks(replace(sample, image=image)))

    def test_t2_in_place_of_flair_is_noticed_by_its_fluid(self) -> None:
        sample = head()
        image = sample.image.copy()
        image[FLAIR] = sample.image[T2]
        assert "fluid-contrast" in outside(tissue_checks(replace(sample, image=image)))

    def test_a_phantom_without_tissue_is_noticed(self) -> None:
        noise = np.random.default_rng(2).standard_normal((4, *SHAPE)).astype(np.float32)
        codes = outside(tissue_checks(Sample(noise, ellipsoid(), np.zeros(SHAPE, bool), SPACING)))
        assert codes == ["tissue-contrast", "fluid-contrast"]


class TestAgent:
    def test_bright_vessels_are_enough(self) -> None:
        check = agent_check(head(agent=1.5))
        assert check.value > 2 * LEAST_RISE
        assert check.within

    def test_a_second_t1_is_no_t1ce(self) -> None:
        sample = head()
        image = sample.image.copy()
        image[T1CE] = image[T1] + 0.02 * np.random.default_rng(3).standard_normal(SHAPE)
        check = agent_check(replace(sample, image=image))
        assert check.value < LEAST_RISE
        assert check.notice.code == "contrast-missing"

    def test_shading_of_the_coil_is_no_agent(self) -> None:
        sample = head()
        image = sample.image.copy()
        shading = np.exp(0.15 * np.sin(places()[0] / 40)).astype(np.float32)
        image[T1CE] = image[T1] * shading + 0.02 * np.random.default_rng(3).standard_normal(SHAPE)
        assert agent_check(replace(sample, image=image)).value < LEAST_RISE


class TestCavity:
    AT = (-63.0 + 16, 0.0, 0.0)

    def test_a_cavity_at_the_surface_is_measured(self) -> None:
        cavity = ball(self.AT, 18)
        expected = float((cavity & ellipsoid()).sum()) * SPACING**3 / 1000
        largest, at_tumour = cavity_volumes(head(fluid=cavity))
        assert largest == pytest.approx(expected, rel=0.15)
        assert at_tumour == 0.0
        assert outside(cavity_checks(head(fluid=cavity))) == ["cavity"]

    def test_beside_a_tumour_less_is_enough(self) -> None:
        cavity = ball((-63.0 + 9, 0.0, 0.0), 12)
        tumour = ball((-63.0 + 30, 0.0, 0.0), 11)
        assert outside(cavity_checks(head(fluid=cavity))) == []
        assert outside(cavity_checks(head(fluid=cavity, tumour=tumour))) == ["cavity-at-tumour"]

    def test_a_ventricle_and_a_sulcus_are_none(self) -> None:
        sulcus = (np.abs(places()[1]) < 2.5) & (places()[0] < -35)
        assert cavity_volumes(head(fluid=sulcus)) == (0.0, 0.0)


class TestValues:
    @staticmethod
    def volumes(array: np.ndarray) -> dict[str, Volume]:
        grid = Grid(SHAPE, np.diag([SPACING] * 3 + [1.0]))
        return {name: Volume(array.astype(np.float32), grid) for name in SEQUENCES}

    def test_air_of_ct_is_recognised(self) -> None:
        (check,) = ct_checks(self.volumes(np.where(ellipsoid(), 35.0, -1000.0)), ellipsoid())
        assert check.value == pytest.approx(1 - ellipsoid().mean(), abs=0.01)
        assert not check.within

    def test_one_sequence_of_ct_is_named(self) -> None:
        volumes = self.volumes(np.where(ellipsoid(), 700.0, 0.0))
        volumes["flair"] = Volume(np.where(ellipsoid(), 35.0, -1000.0).astype(np.float32), volumes["t1"].grid)
        (check,) = ct_checks(volumes, ellipsoid())
        assert "FLAIR looks like CT" in check.notice.text

    @pytest.mark.parametrize(("tissue", "background"), [(700.0, 0.0), (2.0, -1.0), (600.0, -1000.0)])
    def test_mr_is_not(self, tissue: float, background: float) -> None:
        (check,) = ct_checks(self.volumes(np.where(ellipsoid(), tissue, background)), ellipsoid())
        assert check.within


class TestSample:
    def test_a_fine_study_is_averaged_inside_the_brain_alone(self) -> None:
        brain = np.zeros((9, 8, 8), dtype=bool)
        brain[:7] = True
        image = np.where(brain, np.float32(3), np.float32(100))[None].repeat(4, axis=0)
        sample = take_sample(image, brain, brain, 1.0)
        assert (sample.spacing, sample.brain.shape) == (2.0, (5, 4, 4))
        assert np.unique(sample.values()).tolist() == [3.0]
        assert int(sample.brain.sum()) == 4 * 4 * 4

    def test_a_study_too_coarse_for_vessels_is_judged_by_its_brain_alone(self) -> None:
        grid = Grid(SHAPE, np.diag([8.0, 8.0, 8.0, 1.0]))
        sample = head()
        prepared = PreparedStudy(sample.image, sample.brain, grid, grid, True)
        codes = [check.code for check in statistics(prepared, sample.tumour)]
        assert codes == ["brain-size", "brain-shape", "brain-filling"]


def test_an_oblique_anisotropic_scan_measures_as_the_head_does() -> None:
    turn = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.5, 1.5, 4.0])
    grid = Grid((110, 120, 44), affine)
    affine[:3, 3] = -grid.to_world((np.array(grid.shape) - 1) / 2)
    grid = Grid(grid.shape, affine)
    x, y, z = np.moveaxis(grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    brain = (x / 63) ** 2 + (y / 78) ** 2 + (z / 62) ** 2 < 1
    white = np.sin(x / 7) + np.sin(y / 8 + 1) + np.sin(z / 9) > 0
    random = np.random.default_rng(4)
    volumes = {}
    for channel, name in enumerate(SEQUENCES):
        values = np.where(white, WHITE[channel], GREY[channel]) * 500 + 8 * random.standard_normal(grid.shape)
        volumes[name] = Volume(np.where(brain, values, 0).astype(np.float32), grid)
    prepared = prepare(Study.from_volumes("oblique", volumes, {}), spacing_mm=2.5)
    size, shape, *_ = statistics(prepared, np.zeros(prepared.grid.shape, bool))
    assert size.value == pytest.approx(4 / 3 * pi * 63 * 78 * 62 / 1000, rel=0.02)
    assert shape.value == pytest.approx(78 / 63, rel=0.04)


class OneSided:
    """Sees tumour wherever the first channel is bright, or only in the half of a window with the smaller indices."""

    def __init__(self, sided: bool) -> None:
        self.sided = sided

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]

    def segment(self, x: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        logits = (x[:, :1] - 2.0) * 20
        if self.sided:
            logits[:, :, x.shape[2] // 2 :] = -20
        return logits.repeat(1, 3, 1, 1, 1)

    def detect(self, features: list[torch.Tensor]) -> None:
        return None

    def grade(self, source: Any) -> None:
        return None


class TestUncertainty:
    def test_entropy_of_even_odds_is_one_bit(self) -> None:
        regions = np.zeros((3, 4, 4, 4))
        regions[1, :2] = 0.5
        assert mean_entropy(regions, 0.4) == pytest.approx(1.0)
        regions[1, :2] = 0.9
        assert mean_entropy(regions, 0.4) == pytest.approx(0.469, abs=1e-3)
        assert mean_entropy(regions, 0.95) is None

    def test_entropy_is_judged_by_the_bundle_s_limit(self) -> None:
        regions = np.full((3, 4, 4, 4), 0.9)
        assert [entropy_check(regions, 0.5, limit).within for limit in (0.5, 0.4)] == [True, False]

    def test_disagreement_is_one_less_dice(self) -> None:
        a, b = np.zeros(10, bool), np.zeros(10, bool)
        assert disagreement(a, b) is None
        a[:4] = b[2:6] = True
        assert disagreement(a, b) == pytest.approx(0.5)

    @pytest.mark.parametrize("mirrored", [False, True])
    @pytest.mark.parametrize(("sided", "expected"), [(False, 0.0), (True, 1.0)])
    def test_a_network_that_sees_one_side_only_disagrees_with_itself(
        self, sided: bool, expected: float, mirrored: bool
    ) -> None:
        image = np.zeros((4, 64, 64, 64), dtype=np.float32)
        image[:, 8:20, 20:40, 20:40] = 4.0
        grid = Grid((64, 64, 64), np.eye(4))
        prepared = PreparedStudy(image, np.ones(grid.shape, bool), grid, grid, True)
        settings = InferenceSettings(window=64, mirrored=mirrored)
        network = OneSided(sided)
        raw = run_network(network, prepared, settings)
        value = mirror_disagreement(network, prepared, settings, raw, torch.device("cpu"))
        assert value == pytest.approx(expected, abs=1e-6)


class TestWarnings:
    CHECKS = (
        DomainCheck("brain-size", "the brain's volume", 1400.0, 900.0, 2300.0, "ml", "Look at the mask."),
        DomainCheck("contrast-missing", "the rise", 0.11, 0.28, None, "", "Check the series."),
    )

    def test_only_what_lies_outside_its_range_warns_and_says_what_to_do(self) -> None:
        (notice,) = notices(self.CHECKS)
        assert notice.code == "contrast-missing"
        assert notice.text == (
            "This may not be a pre-operative glioma MR study of an adult: the rise is 0.11, expected at least 0.28. "
            "Check the series."
        )

    def test_findings_json_keeps_every_measurement(self, tmp_path: Path) -> None:
        found = findings_on(GRIDS["oblique"], domain=self.CHECKS, warnings=notices(self.CHECKS))
        write_json(found, tmp_path / "findings.json", {"write": 0.0, "total": 1.0})
        document = json.loads((tmp_path / "findings.json").read_text())
        assert [each["within"] for each in document["domain"]] == [True, False]
        assert [each["code"] for each in document["warnings"]] == ["contrast-missing"]
        assert document_findings(document, found.labels).domain == self.CHECKS
        assert document_check(self.CHECKS[0].document()) == self.CHECKS[0]

    def test_older_findings_without_measurements_are_read(self) -> None:
        found = findings_on(GRIDS["axial"])
        assert document_findings(findings_document(found), found.labels).domain == ()

    def test_the_report_shows_the_warning(self, tmp_path: Path) -> None:
        (tmp_path / "preview.png").write_bytes(b"preview")
        found = findings_on(GRIDS["axial"], tumour=False, warnings=notices(self.CHECKS), domain=self.CHECKS)
        write_report(found, tmp_path / "report.html", tmp_path / "preview.png")
        page = (tmp_path / "report.html").read_text("utf-8")
        assert "This may not be a pre-operative glioma MR study of an adult: the rise is 0.11" in page
        assert "<code>contrast-missing</code>" in page

    def test_a_study_is_checked_in_one_go(self) -> None:
        sample = head(agent=0.62)
        grid = Grid(SHAPE, np.diag([SPACING] * 3 + [1.0]))
        prepared = PreparedStudy(sample.image, sample.brain, grid, grid, True)
        volumes = {name: Volume(image, grid) for name, image in zip(SEQUENCES, sample.image, strict=True)}
        study = Study("head", volumes)
        regions = np.zeros((3, *SHAPE), dtype=np.float32)
        regions[1][ball((30, 0, 0), 12)] = 0.6
        checks = check_study(study, prepared, regions, 0.5, entropy_limit=0.9, differing=0.7)
        assert outside(list(checks)) == ["contrast-missing", "uncertain-mirror", "uncertain-regions"]


class TestWrongStudies:
    """Through reading and preparation, on a synthetic study and on what is made of it."""

    @pytest.fixture(scope="class")
    def makers(self) -> Mapping[str, Callable[[], Study]]:
        return all_wrong(45_000_007)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("plain", set()),
            ("no contrast agent", {"contrast-missing"}),
            ("child-size brain", {"brain-size"}),
            ("resection cavity", {"cavity"}),
            ("CT", {"ct-values"}),
            ("uniform ball", {"brain-shape", "tissue-contrast"}),
            ("gradient cube", {"brain-shape", "brain-filling"}),
        ],
    )
    def test_each_is_told_by_what_is_wrong_with_it(
        self, name: str, expected: set[str], makers: Mapping[str, Callable[[], Study]]
    ) -> None:
        study = makers[name]()
        prepared = prepare(study, spacing_mm=2.0)
        codes = set(outside(list(check_study(study, prepared, np.zeros((3, *prepared.grid.shape)), 0.5))))
        assert expected <= codes
        assert codes <= expected | {"tissue-contrast", "fluid-contrast", "contrast-missing"} if expected else not codes
