"""BIDS derivatives: one dataset that studies are added to, and nothing of anybody else's is touched."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.exports.bids import subject_label, write_bids
from Testing.example_findings import GRIDS, findings_on


@pytest.fixture
def findings():
    return replace(findings_on(GRIDS["oblique"]), study_id="TCGA-02_0003")


def test_the_segmentation_and_its_unions_lie_on_the_grid_of_the_t1ce(findings, tmp_path):
    anat = write_bids(findings, tmp_path / "out") / "anat"
    stem = "sub-TCGA020003_space-orig"
    labels = nibabel.load(anat / f"{stem}_desc-tumour_dseg.nii.gz")
    assert np.array_equal(np.asarray(labels.dataobj), findings.labels)
    assert np.allclose(labels.affine, findings.grid.affine, atol=1e-5)
    whole, core = (
        np.asarray(nibabel.load(anat / f"{stem}_label-{name}_mask.nii.gz").dataobj)
        for name in ("wholetumour", "tumourcore")
    )
    assert np.array_equal(whole, findings.labels > 0)
    assert np.array_equal(core, np.isin(findings.labels, (1, 4)))


def test_the_description_says_what_made_it_and_the_table_what_the_values_mean(findings, tmp_path):
    anat = write_bids(findings, tmp_path / "out") / "anat"
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "MTMed3D"
    table = (anat / "sub-TCGA020003_space-orig_desc-tumour_dseg.tsv").read_text().splitlines()
    assert [line.split("\t")[:3] for line in table] == [
        ["index", "name", "abbreviation"],
        ["1", "Necrotic core", "NCR"],
        ["2", "Oedema", "ED"],
        ["4", "Enhancing tumour", "ET"],
    ]
    sidecar = json.loads((anat / "sub-TCGA020003_space-orig_desc-tumour_dseg.json").read_text())
    assert sidecar["Findings"]["grade"]["label"] == "HGG"
    assert len(sidecar["Findings"]["lesions"]) == 2


def test_studies_are_added_and_one_is_replaced_only_when_asked(findings, tmp_path):
    root = tmp_path / "out"
    write_bids(findings, root)
    write_bids(replace(findings, study_id="other"), root)
    assert sorted(path.name for path in root.glob("sub-*")) == ["sub-TCGA020003", "sub-other"]
    with pytest.raises(WrongUse, match="not empty"):
        write_bids(findings, root)
    write_bids(findings, root, overwrite=True)


def test_two_studies_of_one_label_are_refused(findings, tmp_path):
    write_bids(findings, tmp_path / "out")
    with pytest.raises(InputRefused, match="'TCGA-02_0003' and 'TCGA020003' would have the same BIDS label"):
        write_bids(replace(findings, study_id="TCGA020003"), tmp_path / "out", overwrite=True)


def test_a_folder_of_somebody_else_is_not_written_into(findings, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(WrongUse, match="no dataset of BIDS derivatives"):
        write_bids(findings, tmp_path)
    (tmp_path / "dataset_description.json").write_text(json.dumps({"GeneratedBy": [{"Name": "fMRIPrep"}]}))
    with pytest.raises(WrongUse, match="is a dataset of fMRIPrep"):
        write_bids(findings, tmp_path)
    assert not list(tmp_path.glob("sub-*"))


def test_a_name_without_letters_makes_no_label():
    assert subject_label("Fall 7 (neu)") == "Fall7neu"
    with pytest.raises(InputRefused, match="no letter or digit"):
        subject_label("---")


def test_names_and_sidecars_follow_the_rules_for_derivatives(findings, tmp_path):
    anat = write_bids(findings, tmp_path / "out") / "anat"
    name = re.compile(r"sub-[A-Za-z0-9]+_space-orig(_label-[A-Za-z0-9]+)?(_desc-[A-Za-z0-9]+)?_(dseg|mask)")
    images = sorted(path.name.removesuffix(".nii.gz") for path in anat.glob("*.nii.gz"))
    assert len(images) == 3
    for stem in images:
        assert name.fullmatch(stem), stem
        sidecar = json.loads((anat / f"{stem}.json").read_text())
        assert sidecar["SpatialReference"] == "orig"  # required, because `orig` is no standard template
        assert sidecar["Manual"] is False
    mask = json.loads((anat / "sub-TCGA020003_space-orig_label-tumourcore_mask.json").read_text())
    assert mask["Type"] == "Lesion"
    assert mask["Sources"] == ["bids::sub-TCGA020003/anat/sub-TCGA020003_space-orig_desc-tumour_dseg.nii.gz"]
    assert (tmp_path / "out" / mask["Sources"][0].removeprefix("bids::")).is_file()
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert {"Name", "BIDSVersion", "DatasetType", "GeneratedBy"} == set(description)
    assert (tmp_path / "out" / "README").read_text().strip()


def test_beside_a_raw_dataset_the_source_is_named(findings, tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    write_bids(findings, tmp_path / "derivatives" / "mtmed3d")
    description = json.loads((tmp_path / "derivatives" / "mtmed3d" / "dataset_description.json").read_text())
    assert description["SourceDatasets"] == [{"URL": "../../"}]
    assert (tmp_path / "derivatives" / "mtmed3d" / description["DatasetLinks"]["raw"]).resolve() == tmp_path


def test_regions_that_a_reader_corrected_are_said_to_be_manual(findings, tmp_path):
    anat = write_bids(replace(findings, regions_by="reader"), tmp_path / "out") / "anat"
    sidecar = json.loads((anat / "sub-TCGA020003_space-orig_desc-tumour_dseg.json").read_text())
    assert sidecar["Manual"] is True
    assert sidecar["Findings"]["regions_by"] == "reader"
