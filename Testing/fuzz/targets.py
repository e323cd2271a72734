"""What is fuzzed: a valid small file, and what reads it."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from Testing.dicom_series import PARAMETERS, Examination, write_series

SHAPE = (6, 5, 4)
AFFINE = np.array([[2.0, 0, 0, -5], [0, 2, 0, -4], [0, 0, 3, -6], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Target:
    """One reader.

    Args:
        seeds: the contents that are changed.
        run: writes a content into a folder and reads it.
        head: how many of the first bytes the header takes.
        native: whether code that is not Python reads it, which may end the process.
    """

    seeds: tuple[bytes, ...]
    run: Callable[[bytes, Path], object]
    head: int = 400
    native: bool = False


def make(name: str, place: Path) -> Target:
    """A target by its name; `place` takes files that stay the same from one execution to the next."""
    return _MAKERS[name](place)


def _array() -> np.ndarray:
    return np.arange(120, dtype=np.int16).reshape(SHAPE) * 7


def _volume(suffix: str, pack: Callable[[bytes], bytes] = bytes) -> Callable[[bytes, Path], object]:
    from MTMed3DCore.volume import read_volume

    def run(content: bytes, folder: Path) -> object:
        file = folder / f"image{suffix}"
        file.write_bytes(pack(content))
        return read_volume(file)

    return run


def _nifti(place: Path) -> Target:
    image = nibabel.Nifti1Image(_array(), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    seeds = (image.to_bytes(), nibabel.Nifti2Image(_array(), AFFINE).to_bytes())
    return Target(seeds, _volume(".nii"))


def _nifti_gz(place: Path) -> Target:
    return Target(tuple(gzip.compress(seed) for seed in _nifti(place).seeds), _volume(".nii.gz"), 40)


def _itk(place: Path, suffix: str, packings: Iterable[bool] = (False, True)) -> Target:
    seeds = []
    image = sitk.GetImageFromArray(_array().transpose(2, 1, 0))
    image.SetSpacing((2.0, 2.0, 3.0))
    for packed in packings:
        sitk.WriteImage(image, str(place / f"seed{suffix}"), packed)
        seeds.append((place / f"seed{suffix}").read_bytes())
    return Target(tuple(seeds), _volume(suffix), native=True)


def _dicom(place: Path) -> Target:
    from MTMed3DCore.dicom.scanning import scan

    array = np.arange(8 * 8 * 3, dtype=np.uint16).reshape(8, 8, 3)
    files = write_series(place / "series", array, AFFINE, Examination(), **PARAMETERS["t1"])
    others = [(file.name, file.read_bytes()) for file in files[1:]]

    def run(content: bytes, folder: Path) -> object:
        for name, bytes_ in others:
            if not (folder / name).exists():
                (folder / name).write_bytes(bytes_)
        (folder / files[0].name).write_bytes(content)
        return [series.read() for series in scan(folder) if series.fault is None and series.frames]

    return Target((files[0].read_bytes(),), run, 1400)


def _bundle(place: Path) -> Target:
    from MTMed3DCore.bundles import read_bundle
    from MTMed3DCore.bundles.manifest import write_manifest
    from Testing.corpus.model import write_model

    configs = ("configs/inference.json", "configs/metadata.json", "configs/manifest.json")
    model = write_model(place / "model").folder
    (model / "models" / "model.safetensors").write_bytes(b"weights are not read here")
    metadata = json.loads((model / configs[1]).read_text())
    write_manifest(model)
    record = json.loads((model / configs[2]).read_text())["files"]["models/model.safetensors"]["sha256"]
    metadata["mtmed3d"]["sha256"] = record
    (model / configs[1]).write_text(json.dumps(metadata))
    write_manifest(model)
    seeds = tuple((model / name).read_bytes() for name in configs)

    def run(content: bytes, folder: Path) -> object:
        copy = folder / "model"
        if not copy.exists():
            shutil.copytree(model, copy)
        which = 1 if b"monai_version" in content else 2 if b"mtmed3d.bundle" in content else 0
        for name, seed in zip(configs, seeds, strict=True):
            (copy / name).write_bytes(seed)
        (copy / configs[which]).write_bytes(content)
        if which < 2:
            write_manifest(copy)  # whoever changes a configuration can write the manifest as well
        return read_bundle(copy)

    return Target(seeds, run, 4000)


def _datalist(place: Path) -> Target:
    from MTMed3DCore.datalist import DataList

    box = {"center_ras_mm": [1, 2, 3], "size_mm": [4, 5, 6], "axes_ras": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}
    images = {name: f"{name}.nii.gz#{n}" for n, name in enumerate(("t1", "t1ce", "t2", "flair"))}
    entry = {"id": "a", "patient": "p", "images": images, "label": "seg.nii.gz", "convention": "BRATS_2017"}
    entry |= {"grade": "HGG", "boxes": [box], "fold": 0, "source": "a reader"}
    document = {"schema": "mtmed3d.datalist/1", "created": "2026-01-01T00:00:00+00:00", "folds": 1, "seed": 0}
    document |= {"notes": ["a note"], "cases": [entry], "skipped": [{"path": "x", "reason": "y"}]}

    def run(content: bytes, folder: Path) -> object:
        (folder / "list.json").write_bytes(content)
        return DataList.read(folder / "list.json", complete=False)

    return Target((json.dumps(document).encode(),), run, 2000)


def _table(place: Path) -> Target:
    from MTMed3DCore.cohort.studies import read_list

    def run(content: bytes, folder: Path) -> object:
        (folder / "list.csv").write_bytes(content)
        return read_list(folder / "list.csv")

    seeds = (b"id,case\na,x/y\nb,z\n", b"id,t1,t1ce,t2,flair\nq,a,b,c,d\n")
    return Target(seeds, run, 100)


def _findings(place: Path) -> Target:
    from MTMed3DCore.exports import read_findings, write_findings
    from Testing.example_findings import findings_on, grid_of

    found = findings_on(grid_of(np.eye(3), (4.0, 4.0, 4.0)))
    write_findings(found, place / "result")
    seed = (place / "result" / "findings.json").read_bytes()

    def run(content: bytes, folder: Path) -> object:
        copy = folder / "result"
        if not copy.exists():
            shutil.copytree(place / "result", copy)
        (copy / "findings.json").write_bytes(content)
        return read_findings(copy)

    return Target((seed,), run, 10_000)


def _request(place: Path) -> Target:
    from MTMed3DCore.worker.protocol import parse_request

    inputs = {name: f"/{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair")}
    seed = {"id": "7", "command": "analyze", "inputs": inputs, "output": "out", "model": "starter", "overwrite": True}
    return Target(
        (json.dumps(seed).encode(), b'{"id":"8","command":"cancel","target":"7"}'),
        lambda content, folder: parse_request(content.decode("utf-8", errors="replace")),
        300,
    )


_MAKERS: dict[str, Callable[[Path], Target]] = {
    "nifti": _nifti,
    "nifti-gz": _nifti_gz,
    "nrrd": lambda place: _itk(place, ".nrrd"),
    "metaimage": lambda place: _itk(place, ".mha"),
    "dicom": _dicom,
    "bundle": _bundle,
    "datalist": _datalist,
    "table": _table,
    "findings": _findings,
    "request": _request,
}
NAMES = tuple(_MAKERS)
