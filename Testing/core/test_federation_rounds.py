"""Rounds of a federation with the project's own trainer: faults of sites, a server that resumes, what leaves a site."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from MTMed3DCore import cli
from MTMed3DCore.datalist import DataList
from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.federation.aggregation import distance
from MTMed3DCore.federation.coordinator import Absence, Coordinator
from MTMed3DCore.federation.laplace import pull_towards
from MTMed3DCore.federation.plan import Plan
from MTMed3DCore.federation.privacy import alias, blur, epsilon, salt_of
from MTMed3DCore.federation.settings import FederationSettings
from MTMed3DCore.federation.simulation import simulate
from MTMed3DCore.federation.site import Site
from MTMed3DCore.federation.splitting import split_at_random, split_by
from MTMed3DCore.federation.updates import SiteUpdate
from MTMed3DCore.training.examples import ExampleCache
from MTMed3DCore.training.feeding import CasePatches
from MTMed3DCore.training.losses import Target
from MTMed3DCore.training.patches import Patch, cut_patch
from Testing.training_runs import SMALL, four_studies

TRAINING = replace(SMALL, balancing="fixed", fold=None, augmentation={})
QUICK = FederationSettings(rule="bayes", rounds=2, local_steps=1, fisher_patches=1)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> DataList:
    return four_studies(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ExampleCache:
    return ExampleCache(tmp_path_factory.mktemp("cache"), SMALL.spacing_mm)


class SlimPatches(CasePatches):
    """A quarter of each patch, without its boxes: nothing here depends on how much a network sees."""

    def __getitem__(self, number: int) -> Patch:
        patch = super().__getitem__(number)
        cut = (slice(None), slice(None), slice(16, 48), slice(16, 48))
        target = patch.target
        regions = None if target.regions is None else target.regions[(slice(None), *cut)]
        boxes = None if target.boxes is None else target.boxes[:0]
        return Patch(patch.image[cut], Target(regions, boxes, target.grade))


@pytest.fixture(scope="module", autouse=True)
def _slim() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("MTMed3DCore.federation.site.CasePatches", SlimPatches)
        yield


@pytest.fixture(scope="module")
def sites(listed: DataList, cache: ExampleCache) -> list[Site]:
    """Three unlike sites: all labels, regions alone, grades alone."""
    first, second, third, fourth = listed.cases
    regions = replace(third, grade=None, boxes=None)
    grades = replace(fourth, label=None, boxes=None)
    made = []
    for name, cases in (("a", (first, second)), ("b", (regions,)), ("c", (grades,))):
        site, refused = Site.open(name, cases, cache, TRAINING)
        assert not refused
        made.append(site)
    return made


@pytest.fixture(scope="module")
def first_round(sites: list[Site]) -> tuple[Plan, Coordinator, list[SiteUpdate]]:
    """The Bayesian updates of all sites to fresh weights."""
    plan = Plan.make(QUICK, TRAINING)
    before = Coordinator(plan)
    return plan, before, [site.update(before.state, plan) for site in sites]


def test_a_site_sends_named_tensors_and_counts_of_the_tasks_that_it_knows(first_round) -> None:
    _, _, (a, b, c) = first_round
    assert dict(a.counts) == {"studies": 2, "segmentation": 2, "detection": 2, "grading": 2}
    assert dict(b.counts) == {"studies": 1, "segmentation": 1, "detection": 0, "grading": 0}
    assert {name.split(".")[0] for name in b.tensors} == {"encoder", "segmentation_decoder"}
    assert {name.split(".")[0] for name in c.tensors} == {"encoder", "grading_branch"}
    losses = [{name for name in update.figures if name.startswith("loss_")} for update in (b, c)]
    assert losses == [{"loss_segmentation"}, {"loss_grading"}]
    assert set(a.precision) == set(a.tensors)
    assert all(torch.isfinite(p).all() and (p > 0).all() for p in a.precision.values())


def test_a_grade_without_an_outline_is_learnt_from_patches_that_show_nearly_all_of_the_brain(cache, listed) -> None:
    example = replace(cache.load(listed.cases[0]), labels=None, boxes=None)
    rng = np.random.default_rng(0)
    patches = {size: cut_patch(example, size, rng, varied=False) for size in (24, 64)}
    brain = (example.image != 0).any(0).sum()
    shown = {size: float((patch.image != 0).any(0).sum() / brain) for size, patch in patches.items()}
    assert shown[24] < 0.9
    assert shown[64] == 1.0
    assert {size: patch.target.grade for size, patch in patches.items()} == {24: None, 64: example.grade}


def test_a_site_that_comes_back_sends_what_it_would_have_sent(first_round, sites: list[Site]) -> None:
    plan, before, (_, b, _) = first_round
    torch.manual_seed(77)  # whatever the process did in between
    again = sites[1].update(before.state, plan)
    assert all(torch.equal(again.tensors[name], b.tensors[name]) for name in b.tensors)
    assert all(torch.equal(again.precision[name], b.precision[name]) for name in b.precision)


def test_the_decoder_of_a_task_comes_from_the_sites_that_know_it(first_round) -> None:
    plan, before, updates = first_round
    after = Coordinator(plan, state=before.state)
    after.take(updates)
    (a, _, c) = updates
    for name in (n for n in a.tensors if n.startswith("detection_decoder")):
        torch.testing.assert_close(after.state.tensors[name].double(), a.mean(name), rtol=1e-5, atol=1e-7)
    alone = Coordinator(plan, state=before.state)
    alone.take([c])
    untouched = [n for n in before.state.tensors if n.startswith(("detection_decoder", "segmentation_decoder"))]
    assert all(torch.equal(alone.state.tensors[name], before.state.tensors[name]) for name in untouched)


def test_sites_with_nan_wrong_shapes_or_none_are_named_and_the_round_goes_on(first_round, tmp_path: Path) -> None:
    plan, before, (a, b, c) = first_round
    name = next(iter(b.tensors))
    broken = replace(b, tensors={**b.tensors, name: torch.full_like(b.tensors[name], math.nan)})
    flat = replace(c, tensors={**c.tensors, name: torch.zeros(3)})
    coordinator = Coordinator(plan, tmp_path, state=before.state)
    record = coordinator.take([a, broken, flat, Absence("d", "lost"), replace(a)])
    assert set(record["sites"]) == {"a"}
    assert "values that are not finite" in record["absent"]["b"]
    assert "shape [3]" in record["absent"]["c"]
    assert record["absent"]["d"] == "lost"
    assert "replied already" in record["absent"]["a"]
    alone = Coordinator(plan, state=before.state)
    alone.take([a])
    assert distance(alone.state.tensors, coordinator.state.tensors) == 0.0
    assert json.loads((tmp_path / "federation.json").read_text())["rounds"] == [record]


def test_a_round_with_too_few_sites_changes_nothing(first_round) -> None:
    plan, before, (a, _, _) = first_round
    strict = replace(plan, federation=replace(plan.federation, fewest_sites=2))
    coordinator = Coordinator(strict, state=before.state)
    record = coordinator.take([a])
    assert not record["joined"]
    assert coordinator.state.round == 1
    assert distance(coordinator.state.tensors, before.state.tensors) == 0.0


class Unreliable(Site):
    """A site that fails in its first round."""

    def update(self, before, plan, progress=None):
        if before.round == 0:
            raise RuntimeError(f"no more disk for {self.training[0].id}")
        return super().update(before, plan)


def test_a_site_lost_in_a_round_or_late_is_named_and_joins_again(sites: list[Site]) -> None:
    lost = Unreliable("b", sites[1].training, (), sites[1].cache)
    plan = Plan.make(replace(QUICK, rule="fedavg"), TRAINING)
    course = simulate("fedavg", plan, [sites[2], lost])
    assert course.rounds[0]["absent"] == {"b": "lost: RuntimeError"}  # no name of a case
    assert set(course.rounds[1]["sites"]) == {"b", "c"}
    hurried = Plan.make(replace(QUICK, rule="fedavg", rounds=1, timeout=1e-6), TRAINING)
    late = simulate("fedavg", hurried, [sites[2]])
    assert late.rounds[0]["absent"]["c"].startswith("late")


def test_a_server_killed_between_rounds_resumes_to_the_same_weights(sites: list[Site], tmp_path: Path) -> None:
    plan = Plan.make(replace(QUICK, prior=0.1), TRAINING)
    whole = simulate("bayes", plan, sites[1:2], folder=tmp_path / "whole")
    killed = Coordinator.start(plan, tmp_path / "killed")
    killed.take([sites[1].update(killed.state, plan)])
    (tmp_path / "killed" / ".round-0002.safetensors.partial").write_bytes(b"half a file")
    resumed = simulate("bayes", plan, sites[1:2], folder=tmp_path / "killed", resume=True)
    assert all(torch.equal(whole.state.tensors[name], resumed.state.tensors[name]) for name in whole.state.tensors)
    assert [record["round"] for record in resumed.rounds] == [1, 2]
    assert (tmp_path / "killed" / "bundle" / "configs" / "metadata.json").is_file()
    with pytest.raises(WrongUse, match="holds a federation"):
        Coordinator.start(plan, tmp_path / "killed")
    with pytest.raises(WrongUse, match="something else"):
        Coordinator.start(Plan.make(replace(QUICK, rounds=9), TRAINING), tmp_path / "killed", resume=True)
    (tmp_path / "killed" / "round-0002.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputRefused, match="cannot be resumed"):
        Coordinator.start(plan, tmp_path / "killed", resume=True)


def test_the_prior_adds_the_gradient_of_its_quadratic_to_every_step() -> None:
    network = torch.nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[1.0, 5.0]])
    trainer = SimpleNamespace(network=network, optimizer=torch.optim.SGD(network.parameters(), 0.1), device="cpu")
    pull_towards(trainer, {"weight": torch.tensor([[0.0, 5.0]])}, {"weight": torch.tensor([[2.0, 9.0]])}, 0.5)
    (network(torch.tensor([[0.0, 3.0]])) * 1.0).sum().backward()  # the loss's own gradient is 0 and 3
    trainer.optimizer.step()
    torch.testing.assert_close(network.weight.data, torch.tensor([[1.0 - 0.1 * 0.5 * 2.0, 5.0 - 0.1 * 3.0]]))


def test_an_update_is_clipped_and_blurred_and_the_accounting_is_the_stated_formula() -> None:
    before = {"w": torch.zeros(1000)}
    clipped = blur({"w": torch.full((1000,), 5.0)}, before, 2.0, 0.0)
    assert clipped["w"].norm().item() == pytest.approx(2.0, rel=1e-6)
    small = torch.full((1000,), 0.01)
    torch.testing.assert_close(blur({"w": small}, before, 2.0, 0.0)["w"], small)
    noisy = [blur({"w": small}, before, 2.0, 3.0)["w"] for _ in range(2)]
    assert noisy[0].std().item() == pytest.approx(6.0, rel=0.15)
    torch.manual_seed(0)
    assert not torch.equal(noisy[0], noisy[1])
    rho = 2 * 10 / 5.0**2
    orders = [1 + step / 1000 for step in range(1, 100_000)]
    best = min(rho * order + math.log(1e5) / (order - 1) for order in orders)
    assert epsilon(5.0, 10, 1e-5) == pytest.approx(best, rel=1e-4)
    assert epsilon(0.0, 10, 1e-5) == math.inf


def test_case_names_leave_a_site_only_as_salted_hashes(tmp_path: Path) -> None:
    salt = salt_of(tmp_path / "site")
    assert salt == salt_of(tmp_path / "site") != salt_of(tmp_path / "other")
    assert (tmp_path / "site" / ".salt").stat().st_mode & 0o077 == 0
    assert alias("Mueller", salt) == alias("Mueller", salt) != alias("Mueller", salt_of(tmp_path / "other"))
    assert "Mueller" not in alias("Mueller", salt)


def test_lists_are_split_at_random_by_patient_by_their_own_columns_and_by_a_table(
    listed: DataList, tmp_path: Path
) -> None:
    parts = split_at_random(listed, 2, seed=4)
    assert parts == split_at_random(listed, 2, seed=4)
    assert sorted(case.id for part in parts.values() for case in part) == sorted(case.id for case in listed.cases)
    assert [len(part) for part in parts.values()] == [2, 2]
    assert {name: {case.grade for case in part} for name, part in split_by(listed, "grade").items()} == {
        "HGG": {"HGG"},
        "LGG": {"LGG"},
    }
    table = tmp_path / "sites.csv"
    rows = [f"{case.id},{'north' if number else 'south'}" for number, case in enumerate(listed.cases)]
    table.write_text("id,site\n" + "\n".join(rows) + "\n")
    assert {name: len(part) for name, part in split_by(listed, "site", table).items()} == {"north": 3, "south": 1}
    table.write_text("id,site\n" + rows[0] + "\n")
    with pytest.raises(InputRefused, match="has no site for"):
        split_by(listed, "site", table)
    with pytest.raises(WrongUse, match="no column 'colour'"):
        split_by(listed, "colour")
    with pytest.raises(WrongUse, match="cannot be spread over 9"):
        split_at_random(listed, 9, 0)


def test_the_command_simulates_and_leaves_records_a_picture_and_a_bundle(
    listed: DataList, cache: ExampleCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed.write(tmp_path / "list.json")
    settings = {**TRAINING.to_dict(), "fold": 0, "tasks": ["segmentation"]}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    out = tmp_path / "out"
    given = ["federate", "simulate", str(tmp_path / "list.json"), "-o", str(out), "--sites", "2", "--seed", "1"]
    given += ["--settings", str(tmp_path / "settings.json"), "--cache", str(cache.folder), "--device", "cpu", "--json"]
    given += ["--rounds", "1", "--local-steps", "1", "--fisher-patches", "1", "--methods", "bayes+matching", "local"]
    assert cli.main(given) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["methods"]) == {"bayes+matching", "local"}
    (record,) = answer["methods"]["bayes+matching"]["rounds"]
    assert set(record["sites"]) == {"site1", "site2"}
    assert set(record["measured"]) >= {"global"}
    assert 0 <= record["measured"]["global"]["whole_tumour"] <= 1
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    bundle = out / "bayes+matching" / "bundle"
    assert (bundle / "models" / "model.safetensors").is_file()
    assert json.loads((bundle / "configs" / "metadata.json").read_text())["name"] == "bayes-matching"
    text = (out / "simulation.json").read_text()
    assert json.loads(text)["schema"] == "mtmed3d.federation-simulation/1"
    assert not any(case.id in text for case in listed.cases)
    assert cli.main(given) == 2
    assert "not empty" in capsys.readouterr().err
