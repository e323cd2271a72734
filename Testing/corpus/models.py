"""Models, lists and what else may be given beside the images."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from MTMed3DCore.bundles.manifest import write_manifest
from Testing.corpus.case import SEQUENCES, Given, Subject, four_files
from Testing.corpus.model import write_model
from Testing.corpus.plain import AFFINE, SHAPE, save, sequence

CASES = Subject("models and lists")


@cache
def _model() -> Path:
    """One model that the cases copy; not the one that a worker keeps loaded, whose files it need not read again."""
    place = Path(tempfile.mkdtemp(prefix="mtmed3d-corpus-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return write_model(place / "model", seed=1).folder


def _with_model(folder: Path, spoil: Callable[[Path], None]) -> Given:
    shutil.copytree(_model(), folder / "model")
    spoil(folder / "model")
    return Given(four_files(folder).files, options={"model": str(folder / "model")})


def _configured(folder: Path, change: Callable[[dict[str, Any]], None]) -> Given:
    """A model whose ``inference.json`` was changed by somebody who also wrote the manifest anew."""

    def spoil(model: Path) -> None:
        file = model / "configs" / "inference.json"
        document = json.loads(file.read_text(encoding="utf-8"))
        change(document)
        file.write_text(json.dumps(document), encoding="utf-8")
        write_manifest(model)

    return _with_model(folder, spoil)


@CASES.refuses("model-unknown", "nobody")
def model_that_nobody_has(folder: Path) -> Given:
    return Given(four_files(folder).files, options={"model": "nobody"})


@CASES.refuses("bundle-missing", "nowhere")
def folder_without_a_model(folder: Path) -> Given:
    return Given(four_files(folder).files, options={"model": str(folder / "nowhere")})


@CASES.refuses("bundle-tampered", "model.safetensors")
def weights_cut_short(folder: Path) -> Given:
    return _with_model(folder, lambda model: _cut(model / "models" / "model.safetensors"))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


@CASES.refuses("bundle-tampered", "SHA-256")
def weights_with_a_changed_byte(folder: Path) -> Given:
    def spoil(model: Path) -> None:
        file = model / "models" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(bytes(content))

    return _with_model(folder, spoil)


@CASES.refuses("bundle-tensors", "does not fit")
def weights_of_another_size_of_network(folder: Path) -> Given:
    return _configured(folder, lambda document: document["network_def"].update(feature_size=24))


@CASES.refuses("bundle-target", "os.system")
def configuration_that_asks_for_code(folder: Path) -> Given:
    return _configured(folder, lambda document: document["network_def"].update(_target_="os.system"))


@CASES.refuses("bundle-target", "never run")
def configuration_with_an_expression(folder: Path) -> Given:
    return _configured(folder, lambda document: document["network_def"].update(preset="$__import__('os').getcwd()"))


@CASES.analyses()
def window_of_a_million_voxels(folder: Path) -> Given:
    """A window is never larger than the study."""
    return _configured(folder, lambda document: document["mtmed3d"].update(window=32_000_000))


@CASES.refuses("settings-invalid", "spacing_mm")
def spacing_that_is_no_number(folder: Path) -> Given:
    return _configured(folder, lambda document: document["mtmed3d"].update(spacing_mm=float("nan")))


@CASES.refuses("settings-invalid", "malformed")
def window_that_is_a_text(folder: Path) -> Given:
    return _configured(folder, lambda document: document["mtmed3d"].update(window="96"))


@CASES.refuses("bundle-config", "JSON")
def configuration_that_is_no_json(folder: Path) -> Given:
    def spoil(model: Path) -> None:
        (model / "configs" / "metadata.json").write_bytes(b'{"version": "\xff')
        write_manifest(model)

    return _with_model(folder, spoil)


@CASES.refuses("mask-empty", "mask")
def mask_half_a_metre_away(folder: Path) -> Given:
    moved = AFFINE.copy()
    moved[2, 3] += 500
    save(folder / "mask.nii.gz", (sequence("t1ce") > 0).astype(np.uint8), moved)
    return Given(four_files(folder).files, options={"mask": str(folder / "mask.nii.gz")})


@CASES.refuses("constant", "mask")
def mask_without_a_voxel(folder: Path) -> Given:
    save(folder / "mask.nii.gz", np.zeros(SHAPE, np.uint8), AFFINE)
    return Given(four_files(folder).files, options={"mask": str(folder / "mask.nii.gz")})


@CASES.refuses("list-damaged", "list.json")
def list_that_is_no_json(folder: Path) -> Given:
    (folder / "list.json").write_text("{", encoding="utf-8")
    return Given(place=folder / "list.json")


@CASES.refuses("list-damaged", "list.json")
def list_of_brackets(folder: Path) -> Given:
    """Nested deeper than a parser of JSON can follow."""
    (folder / "list.json").write_text("[" * 100_000, encoding="utf-8")
    return Given(place=folder / "list.json")


def _list(folder: Path, change: Callable[[dict[str, Any]], None]) -> Given:
    entry: dict[str, Any] = {"id": "a", "patient": "a", "images": {name: f"{name}.nii.gz" for name in SEQUENCES}}
    entry |= {"label": None, "convention": None, "grade": None, "boxes": None, "fold": None, "source": ""}
    document: dict[str, Any] = {"schema": "mtmed3d.datalist/1", "created": "2026-01-01T00:00:00+00:00", "folds": 0}
    document |= {"seed": 0, "notes": [], "cases": [entry], "skipped": []}
    change(document)
    (folder / "list.json").write_text(json.dumps(document), encoding="utf-8")
    return Given(place=folder / "list.json")


@CASES.refuses("list-empty", "list.json")
def list_without_a_study(folder: Path) -> Given:
    return _list(folder, lambda document: document["cases"].clear())


@CASES.refuses("list-damaged", "boxes")
def list_with_a_box_of_no_size(folder: Path) -> Given:
    box = {"center_ras_mm": [0, 0, 0], "size_mm": [0, 1, 1], "axes_ras": np.eye(3).tolist()}
    return _list(folder, lambda document: document["cases"][0].update(boxes=[box]))


@CASES.refuses("list-damaged", "boxes")
def list_with_a_box_of_infinite_size(folder: Path) -> Given:
    box = {"center_ras_mm": [0, 0, 0], "size_mm": [float("inf"), 1, 1], "axes_ras": np.eye(3).tolist()}
    return _list(folder, lambda document: document["cases"][0].update(boxes=[box]))


@CASES.refuses("list-id", "twice")
def list_with_one_id_twice(folder: Path) -> Given:
    return _list(folder, lambda document: document["cases"].append(document["cases"][0]))


@CASES.refuses("list-columns", "missing: t1, t1ce", plain=False)
def table_with_other_columns(folder: Path) -> Given:
    (folder / "list.csv").write_text("name,age\nx,3\n", encoding="utf-8")
    return Given(place=folder / "list.csv")


@CASES.refuses("list-columns", "none", plain=False)
def empty_table(folder: Path) -> Given:
    (folder / "list.csv").write_bytes(b"")
    return Given(place=folder / "list.csv")


@CASES.refuses("list-unreadable", "list.csv", plain=False)
def table_that_is_no_text(folder: Path) -> Given:
    (folder / "list.csv").write_bytes(b"case\n" + bytes(range(128, 256)) * 3)
    return Given(place=folder / "list.csv")


@CASES.refuses("list-id", "folder", plain=False)
def table_whose_id_leaves_the_output(folder: Path) -> Given:
    (folder / "list.csv").write_text("id,case\n../../evil,x\n", encoding="utf-8")
    return Given(place=folder / "list.csv")


@CASES.refuses("findings-invalid", "findings.json")
def prior_result_that_is_no_json(folder: Path) -> Given:
    (folder / "findings.json").write_text("[]", encoding="utf-8")
    return Given(four_files(folder).files, options={"prior": str(folder / "findings.json")})


@CASES.refuses("device-unknown", "quantum")
def device_that_does_not_exist(folder: Path) -> Given:
    return Given(four_files(folder).files, options={"device": "quantum"})


@CASES.refuses("no-overlap", "t2")
def sequence_of_another_head_position(folder: Path) -> None:
    away = AFFINE.copy()
    away[:3, 3] += [130, 0, 0]
    save(folder / "t2.nii.gz", sequence("t2"), away)
