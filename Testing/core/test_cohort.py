"""Cohorts: what is done stays done, one failure stops nothing, and a folder holds every study once."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
from io import BytesIO
from pathlib import Path

import pytest

from MTMed3DCore import cli
from MTMed3DCore.bundles import find_bundle
from MTMed3DCore.cohort.folder import RECORD, STATE, SUMMARY, THUMBNAIL, CohortFolder
from MTMed3DCore.cohort.local import analyse_here
from MTMed3DCore.cohort.outcome import Outcome, Refusal
from MTMed3DCore.cohort.run import Tally, refuse_names, run_cohort
from MTMed3DCore.cohort.settings import CohortSettings, fingerprint, known_inputs, study_key
from MTMed3DCore.cohort.studies import Request, read_list, studies_below
from MTMed3DCore.errors import InputRefused, ModelRefused, WrongUse
from MTMed3DCore.exports import FINDINGS
from MTMed3DCore.exports.atomic import PARTIAL
from MTMed3DCore.hashing import file_sha256
from Testing.cohorts import contents, finished, make_model, start, wait_for_results, write_head

NAMES = ("a", "broken", "c", "d")
GOOD = ("a", "c", "d")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


def write_studies(folder: Path) -> Path:
    """Four studies, the second of which lacks a sequence; returns their folder."""
    for seed, name in enumerate(NAMES):
        write_head(folder / name, seed)
    (folder / "broken" / "t2.nii.gz").unlink()
    return folder


def analyze(studies: Path, out: Path, model: Path, *options: str) -> int:
    """The command, in this process."""
    return cli.main(["analyze", str(studies), "-o", str(out), "--model", str(model), "--device", "cpu", *options])


def summary(out: Path) -> dict[str, dict[str, str]]:
    """The rows of summary.csv by study."""
    with (out / SUMMARY).open(newline="", encoding="utf-8") as stream:
        return {row["id"]: row for row in csv.DictReader(stream)}


def left_behind(out: Path) -> list[str]:
    """Temporary files and folders."""
    marks = (PARTIAL, ".partial", "staging", "run.json", "dask-")
    return [str(path) for path in out.rglob("*") if any(mark in path.name for mark in marks)]


@pytest.fixture(scope="module")
def first(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run over four studies: its folder, and what it ended with."""
    root = tmp_path_factory.mktemp("cohort")
    code = analyze(write_studies(root / "studies"), root / "out", model, "--quiet")
    return root / "out", code


def test_a_broken_study_in_the_middle_stops_no_other_and_is_named_with_code_and_remedy(first) -> None:
    out, code = first
    assert code == 3
    rows = summary(out)
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(GOOD, "done") | {"broken": "failed"}
    assert rows["broken"]["code"] == "sequence-missing"
    assert "t2.nii.gz" in rows["broken"]["remedy"]
    assert finished(out) == set(GOOD)
    assert not (out / "broken").exists()
    findings = json.loads((out / "c" / FINDINGS).read_text())
    assert float(rows["c"]["whole_tumour_ml"]) == pytest.approx(findings["volumes_ml"]["whole_tumour"], abs=5e-4)
    assert int(rows["c"]["lesions"]) == len(findings["lesions"])


def test_the_overview_has_failures_first_a_picture_of_each_result_and_nothing_from_elsewhere(first) -> None:
    page = (first[0] / "overview.html").read_text(encoding="utf-8")
    assert page.index("Failed: 1") < page.index("sequence-missing</code></td>") < page.index("Analysed: 3")
    assert "4: 3 analysed, 1 failed, 0 not analysed yet" in page
    assert page.count("data:image/jpeg;base64,") == len(GOOD)
    assert all(page.count(f'href="{name}/report.html"') == 1 for name in GOOD)
    assert not any(word in page for word in ("<script", "http://", "https://", "$"))


def test_every_result_records_its_inputs_with_their_hashes_and_has_a_small_picture(first) -> None:
    from PIL import Image

    out, _ = first
    record = json.loads((out / "d" / RECORD).read_text())
    named = {each["name"]: each for each in record["inputs"]}
    assert sorted(named) == ["flair", "t1", "t1ce", "t2"]
    assert all(each["sha256"] == file_sha256(Path(each["path"])) for each in named.values())
    with Image.open(BytesIO((out / "d" / THUMBNAIL).read_bytes())) as picture:
        assert (picture.format, max(picture.size)) == ("JPEG", 128)


def test_a_result_is_the_one_of_the_study_by_itself_and_no_temporary_file_is_left(first, model, tmp_path) -> None:
    out, _ = first
    assert analyze(out.parent / "studies" / "a", tmp_path / "alone", model, "--quiet") == 0
    assert contents(out / "a") == contents(tmp_path / "alone")
    assert left_behind(out) == []


def test_the_same_run_again_does_only_what_changed(model, tmp_path, capsys) -> None:
    studies, out = write_studies(tmp_path / "studies"), tmp_path / "out"
    assert analyze(studies, out, model, "--quiet") == 3
    before = {name: (out / name / FINDINGS).stat().st_mtime_ns for name in GOOD}
    touched, changed = studies / "a" / "t1.nii.gz", studies / "c" / "t1.nii.gz"
    os.utime(touched)
    changed.write_bytes((studies / "d" / "t1.nii.gz").read_bytes())
    write_head(tmp_path / "whole", 9)
    (tmp_path / "whole" / "t2.nii.gz").rename(studies / "broken" / "t2.nii.gz")
    capsys.readouterr()
    assert analyze(studies, out, model, "--json") == 0
    answered = json.loads(capsys.readouterr().out)["studies"]
    assert [(each["id"], each["status"], each["error"]) for each in answered] == [
        (name, "done", None) for name in NAMES
    ]
    assert answered[2]["findings"] == json.loads((out / "c" / FINDINGS).read_text())
    redone = {name for name in GOOD if (out / name / FINDINGS).stat().st_mtime_ns != before[name]}
    assert redone == {"c"}
    assert not list((out / STATE / "failed").iterdir())
    assert "2 analysed in" in (out / "overview.html").read_text()  # the changed one and the mended one
    assert left_behind(out) == []


def test_a_run_that_is_killed_leaves_whole_results_and_the_next_one_goes_on(model, tmp_path) -> None:
    studies, out = write_studies(tmp_path / "studies"), tmp_path / "out"
    arguments = (studies, "-o", out, "--model", model, "--quiet")
    process = start(*arguments)
    wait_for_results(process, out, 1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    stood = {name: (out / name / FINDINGS).stat().st_ino for name in finished(out)}
    assert all((out / name / each).is_file() for name in stood for each in (RECORD, THUMBNAIL, "segmentation.nii.gz"))
    assert analyze(studies, out, model, "--quiet") == 3
    assert finished(out) == set(GOOD)
    assert {name: (out / name / FINDINGS).stat().st_ino for name in stood} == stood
    assert left_behind(out) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_and_summarises_what_is_done(number, model, tmp_path) -> None:
    out = tmp_path / "out"
    rows = [["id", "case"]]
    study = write_head(tmp_path / "study", 1)
    rows += [[f"s{count}", str(study)] for count in range(12)]
    (tmp_path / "list.csv").write_text("\n".join(map(",".join, rows)))
    process = start(tmp_path / "list.csv", "-o", out, "--model", model)
    wait_for_results(process, out, 2)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said
    statuses = {name: row["status"] for name, row in summary(out).items()}
    assert {name for name, status in statuses.items() if status == "done"} == finished(out)
    assert set(statuses.values()) == {"done", "pending"}
    assert "left" in said  # the time that is left, beside each study
    assert left_behind(out) == []


def test_a_second_run_into_the_folder_is_refused_while_the_first_one_works(model, tmp_path, capsys) -> None:
    studies = write_studies(tmp_path / "studies")
    with CohortFolder(tmp_path / "out").claimed():
        assert analyze(studies, tmp_path / "out", model) == 2
    said = capsys.readouterr().err
    assert "Another run writes into" in said
    assert f"process {os.getpid()}" in said
    assert finished(tmp_path / "out") == set()


def staged(cohort: CohortFolder, text: str) -> Path:
    """A finished result that is not in place yet."""
    stage = cohort.new_stage()
    stage.mkdir(parents=True)
    (stage / FINDINGS).write_text(text)
    return stage


def test_of_two_results_of_one_study_the_first_one_stays(tmp_path) -> None:
    cohort = CohortFolder(tmp_path)
    place = cohort.place("a")
    with cohort.claimed():
        place.commit(staged(cohort, "first"), "key", [], "run", overwrite=False)
        place.commit(staged(cohort, "second"), "key", [], "run", overwrite=False)
        assert (tmp_path / "a" / FINDINGS).read_text() == "first"
        place.commit(staged(cohort, "third"), "another key", [], "run", overwrite=False)
        place.commit(staged(cohort, "fourth"), "another key", [], "another run", overwrite=True)
    assert (tmp_path / "a" / FINDINGS).read_text() == "fourth"
    assert place.done("another key", "another run")
    assert left_behind(tmp_path) == []


def test_a_replacement_that_was_killed_half_way_is_done_again(tmp_path) -> None:
    cohort = CohortFolder(tmp_path)
    place = cohort.place("a")
    with cohort.claimed():
        place.commit(staged(cohort, "first"), "key", [], "run", overwrite=False)
    aside = tmp_path / "a" / f"{PARTIAL}0" / "replaced"
    aside.mkdir(parents=True)
    (tmp_path / "a" / FINDINGS).rename(aside / FINDINGS)  # as far as a kill may let it come
    assert not place.done("key")
    with cohort.claimed():
        place.refuse_others_work(overwrite=False)
        place.commit(staged(cohort, "second"), "key", [], "run", overwrite=False)
    assert (tmp_path / "a" / FINDINGS).read_text() == "second"
    assert left_behind(tmp_path) == []


def test_a_folder_of_somebody_else_and_an_edited_result_are_never_replaced(tmp_path) -> None:
    cohort = CohortFolder(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(WrongUse) as caught:
        cohort.place("thesis").refuse_others_work(overwrite=False)
    assert caught.value.code == "output-not-empty"
    place = cohort.place("a")
    with cohort.claimed():
        place.commit(staged(cohort, "as written"), "key", [], "run", overwrite=False)
    (tmp_path / "a" / FINDINGS).write_text("as corrected")
    for overwrite in (False, True):
        with pytest.raises(WrongUse) as caught:
            place.refuse_others_work(overwrite)
        assert caught.value.code == "output-edited"


def test_no_more_studies_than_asked_for_are_in_hand_and_one_at_a_time_goes_in_turn(model, tmp_path) -> None:
    study = write_head(tmp_path / "study", 1)
    requests = [Request(study, id=f"s{number}") for number in range(4)]
    bundle = find_bundle(model)
    for in_hand in (1, 2):
        begun: list[str] = []
        most = 0
        ended = 0

        def tell(name: str, *_: object, begun: list[str] = begun) -> None:
            if name not in begun:
                begun.append(name)

        folder = CohortFolder(tmp_path / f"out{in_hand}")
        settings = CohortSettings(bundle.folder, bundle.sha256, device="cpu", in_hand=in_hand)
        with folder.claimed():
            for outcome in analyse_here(requests, folder, settings, tell):
                assert outcome.refusal is None
                most = max(most, len(begun) - ended)
                ended += 1
        assert ended == 4
        assert most == in_hand


def test_a_full_disk_ends_the_run_at_once_since_nothing_more_could_be_written(model, tmp_path) -> None:
    study = write_head(tmp_path / "study", 1)
    requests = [Request(study, id=f"s{number}") for number in range(4)]
    bundle, folder = find_bundle(model), CohortFolder(tmp_path / "out")

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    settings = CohortSettings(bundle.folder, bundle.sha256, device="cpu", in_hand=1, also=full)
    result = run_cohort(requests, folder, settings, analyse_here)
    assert result.stopped is not None
    assert (result.stopped.code, result.stopped.exit_code) == ("disk-full", 5)
    assert set(result.tally.statuses.values()) == {"pending"}
    assert left_behind(folder.root) == []


def test_a_model_that_is_not_the_leaders_is_refused(model, tmp_path) -> None:
    folder = CohortFolder(tmp_path / "out")
    settings = CohortSettings(model, "0" * 64, device="cpu")
    with pytest.raises(ModelRefused, match="not the one that the run was begun with"):
        run_cohort([Request(tmp_path)], folder, settings, analyse_here)


def test_a_thumbnail_shows_the_patients_right_on_the_left_and_the_front_on_top() -> None:
    import numpy as np
    from PIL import Image

    from MTMed3DCore.cohort.thumbnail import thumbnail
    from MTMed3DCore.findings import ENHANCING, Findings, ModelIdentity
    from MTMed3DCore.geometry import Grid

    labels = np.zeros((20, 40, 10), dtype=np.uint8)  # axes left, posterior, superior; voxels 2, 1 and 1 mm
    labels[2:6, 4:12, 3:5] = ENHANCING
    affine = np.array([[-2.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1]])
    findings = Findings("s", {}, Grid(labels.shape, affine), labels, (), None, ModelIdentity("m", "1", "0" * 64, "-"))
    pixels = np.asarray(Image.open(BytesIO(thumbnail(findings)))).astype(int)
    assert pixels.shape == (128, 128, 3)  # 40 mm by 40 mm
    rows, columns = np.nonzero(pixels[..., 0] > 60)
    # In mm from the patient's right and from the front: 4 to 12 and 4 to 12, at 128 / 40 pixels a mm.
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == pytest.approx([13, 38, 13, 38], abs=3)


def test_the_key_follows_content_and_settings_and_not_the_place(model, tmp_path) -> None:
    one, other = write_head(tmp_path / "one", 1), write_head(tmp_path / "other", 1)
    bundle = find_bundle(model)
    depends_on = fingerprint(CohortSettings(model, bundle.sha256), bundle)
    keys = {study_key(known_inputs(Request(place)), depends_on) for place in (one, other)}
    assert len(keys) == 1
    for changed in (
        CohortSettings(model, bundle.sha256, precision="bf16"),
        CohortSettings(model, bundle.sha256, mode="quick"),
        CohortSettings(model, bundle.sha256, write={"dicom": "BINARY"}),
        CohortSettings(model, bundle.sha256, version="0.0.1"),
    ):
        keys.add(study_key(known_inputs(Request(one)), fingerprint(changed, bundle)))
    (one / "t1.nii.gz").write_bytes((one / "t2.nii.gz").read_bytes())
    keys.add(study_key(known_inputs(Request(one)), depends_on))
    assert len(keys) == 6


def test_a_data_list_with_a_file_missing_is_a_failure_of_that_study_alone(tmp_path) -> None:
    from MTMed3DCore.datalist import DataList, build_datalist

    write_head(tmp_path / "BraTS19_A_1_1", 1)
    write_head(tmp_path / "BraTS19_B_1_1", 2)
    build_datalist([tmp_path], folds=0).write(tmp_path / "list.json")
    (tmp_path / "BraTS19_A_1_1" / "t2.nii.gz").unlink()
    with pytest.raises(InputRefused):
        DataList.read(tmp_path / "list.json")
    requests = read_list(tmp_path / "list.json")
    assert [request.name for request in requests] == ["BraTS19_A_1_1", "BraTS19_B_1_1"]
    with pytest.raises(InputRefused) as caught:
        known_inputs(requests[0])
    assert caught.value.code == "file-missing"
    assert len(known_inputs(requests[1])) == 4


def test_a_folder_of_studies_is_told_from_a_study(tmp_path) -> None:
    write_studies(tmp_path / "studies")
    (tmp_path / "studies" / "out").mkdir()
    below = studies_below(tmp_path / "studies", tmp_path / "studies" / "out")
    assert [request.name for request in below] == list(NAMES)
    assert studies_below(tmp_path / "studies" / "a", tmp_path / "out") == []
    nested = write_head(tmp_path / "patient" / "images", 1)
    assert studies_below(nested.parent, tmp_path / "out") == []  # one study, one level down


@pytest.mark.parametrize("name", ["overview.html", "SUMMARY.csv", ".mtmed3d-cohort"])
def test_a_study_cannot_be_called_as_a_file_of_the_run(name, tmp_path) -> None:
    with pytest.raises(WrongUse) as caught:
        refuse_names([Request(tmp_path, id="a"), Request(tmp_path, id=name)])
    assert caught.value.code == "study-name"


def test_names_that_differ_in_capitals_alone_are_refused(tmp_path) -> None:
    with pytest.raises(WrongUse) as caught:
        refuse_names([Request(tmp_path, id="Case1"), Request(tmp_path, id="case1")])
    assert caught.value.code == "study-name-twice"


def test_the_time_left_counts_only_what_this_run_has_worked_on(monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("MTMed3DCore.cohort.run.perf_counter", lambda: clock[0])
    tally = Tally(f"s{number}" for number in range(10))
    assert tally.seconds_left() is None
    for number in range(4):
        tally.add(Outcome(f"s{number}", kept=True))
    assert tally.seconds_left() is None
    clock[0] = 130.0
    tally.add(Outcome("s4"))
    tally.add(Outcome("s5", Refusal("code", "text", "", 3)))
    assert tally.seconds_left() == pytest.approx(30 / 2 * 4)
    assert (tally.counts["done"], tally.counts["failed"], tally.counts["pending"]) == (5, 1, 4)
    assert tally.exit_code == 3


def test_options_that_belong_to_one_study_or_to_a_cluster_are_refused_elsewhere(model, tmp_path, capsys) -> None:
    studies = write_studies(tmp_path / "studies")
    out = tmp_path / "out"
    for options in (["--mask", "m.nii.gz"], ["--in-hand", "0"], ["--workers", "2"], ["--slurm", "memory=1GB"]):
        assert analyze(studies, out, model, *options) == 2
    assert analyze(studies / "a", out, model, "--cluster", "local") == 2
    assert not out.exists()
