"""Installing a model: all of it in one step, or a refusal with a name and nothing left behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from MTMed3DCore import bundles
from MTMed3DCore.bundles import archive as unpacking
from MTMed3DCore.bundles import install as installing
from MTMed3DCore.bundles.install import WORKPLACE, install_bundle
from MTMed3DCore.bundles.manifest import write_manifest
from MTMed3DCore.bundles.search import MODELS_VARIABLE
from MTMed3DCore.cli import main
from MTMed3DCore.errors import Cancelled, ModelRefused, MTMed3DError, WrongUse
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.networks import build_network

WEIGHTS = "models/model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    network = build_network("mtmed3d", feature_size=12, tasks=("segmentation",)).eval()
    folder = tmp_path_factory.mktemp("bundles") / "small"
    settings = InferenceSettings(spacing_mm=2.0, window=64)
    bundles.save_bundle(
        folder, network, settings, name="small", version="1.0.0", trained_on="Nothing.", card="# Small\n", half=True
    )
    return folder


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "small")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def zipped(folder: Path, top: str = "small/") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as packed:
        for file in sorted(folder.rglob("*")):
            packed.write(file, top + file.relative_to(folder).as_posix())
    return path


def tarred(folder: Path, mode: str = "w:gz", **added: Callable[[tarfile.TarInfo], None]) -> Path:
    path = folder.with_suffix(".tar")
    with tarfile.open(path, mode) as packed:
        packed.add(folder, "small")
        for name, change in added.items():
            info = tarfile.TarInfo(f"small/docs/{name}")
            change(info)
            packed.addfile(info)
    return path


def refused(source: Path, root: Path, **options) -> MTMed3DError:
    """The refusal; nothing may be among the models after it, and no file of the attack anywhere else."""
    with pytest.raises(MTMed3DError) as caught:
        install_bundle(source, root=root, **options)
    left = [path for path in root.rglob("*") if path.name not in {WORKPLACE, "lock"}] if root.exists() else []
    assert not left
    return caught.value


@pytest.mark.parametrize("pack", [zipped, tarred, lambda f: tarred(f, "w"), lambda f: zipped(f, ""), lambda f: f])
def test_every_kind_of_source_is_installed(bundle: Path, root: Path, pack) -> None:
    source = pack(bundle)
    stages = []
    installed = install_bundle(source, root=root, progress=lambda stage, *_: stages.append(stage))
    assert installed.bundle.folder == root / "small"
    assert bundles.verify(root / "small") == bundles.verify(bundle)
    assert list(dict.fromkeys(stages)) == ["unpack", "verify"]
    assert installed.sha256 == (None if source.is_dir() else hashlib.sha256(source.read_bytes()).hexdigest())
    assert bundle.is_dir(), "the source stays"
    if os.name != "nt":
        assert (root / "small").stat().st_mode & 0o055 == 0o055


def test_an_installed_model_is_found_by_its_name(bundle: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    source = zipped(bundle)
    assert main(["model", "install", str(source), "--name", "mine", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["archive_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert bundles.find_bundle("mine").sha256 == answer["sha256"]
    assert "mine" in {each.folder.name for each in bundles.list_bundles()}
    assert main(["model", "install", str(source), "--name", "mine"]) == 2
    assert main(["model", "install", str(source), "--name", "mine", "--overwrite"]) == 0
    assert "NOT compared" in capsys.readouterr().out


def test_a_model_is_replaced_only_when_asked_and_only_by_a_good_one(bundle: Path, root: Path) -> None:
    install_bundle(bundle, root=root)
    before = (root / "small" / WEIGHTS).stat().st_mtime_ns
    with pytest.raises(WrongUse) as caught:
        install_bundle(bundle, root=root)
    assert caught.value.code == "model-exists"
    (bundle / "docs" / "README.md").write_text("changed")
    with pytest.raises(ModelRefused):
        install_bundle(bundle, root=root, overwrite=True)
    assert (root / "small" / WEIGHTS).stat().st_mtime_ns == before
    write_manifest(bundle)
    install_bundle(bundle, root=root, overwrite=True)
    assert (root / "small" / "docs" / "README.md").read_text() == "changed"
    assert sorted(path.name for path in root.iterdir()) == [WORKPLACE, "small"]


def test_a_name_that_would_find_another_model_is_refused(bundle: Path, root: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(bundle, tmp_path / "first" / "small")
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "first"))
    assert refused(bundle, root).code == "model-shadowed"
    assert install_bundle(bundle, root=root, name="other").bundle.folder == root / "other"


def test_two_installations_do_not_meet(bundle: Path, root: Path) -> None:
    def again(*_: object) -> None:
        with pytest.raises(WrongUse) as caught:
            install_bundle(bundle, root=root)
        assert caught.value.code == "install-running"
        raise Cancelled

    with pytest.raises(Cancelled):
        install_bundle(bundle, root=root, progress=again)


@pytest.mark.parametrize("stage", ["unpack", "verify"])
def test_a_cancelled_installation_leaves_nothing(bundle: Path, root: Path, stage: str) -> None:
    def stop(where: str, *_: object) -> None:
        if where == stage:
            raise Cancelled

    assert refused(bundle, root, progress=stop).code == "cancelled"


def test_what_a_killed_installation_left_is_removed_by_the_next(bundle: Path, root: Path) -> None:
    left = root / WORKPLACE / "unpacked-1"
    shutil.copytree(bundle, left / "small")
    old = root / WORKPLACE / "old.part"
    old.write_bytes(b"x")
    os.utime(old, (0, 0))
    install_bundle(bundle, root=root)
    assert [path.name for path in (root / WORKPLACE).iterdir()] in ([], ["lock"])


@pytest.mark.parametrize(
    ("expected", "code"),
    [({"sha256": "ab" * 32}, "install-mismatch"), ({"size": 12}, "install-mismatch"),
     ({"sha256": "abc"}, "install-hash"), ({"size": 0}, "install-hash"), ({"name": "../up"}, "bundle-name")],
)  # fmt: skip
def test_another_hash_size_or_name_is_refused_before_unpacking(bundle, root, monkeypatch, expected, code) -> None:
    monkeypatch.setattr(installing, "unpack", lambda *_, **__: pytest.fail("unpacked"))
    assert refused(zipped(bundle), root, **expected).code == code


def test_a_hash_for_a_folder_and_a_source_that_is_not_there_are_refused(bundle: Path, root: Path) -> None:
    assert refused(bundle, root, sha256="0" * 64).code == "install-hash"
    assert refused(bundle / "none.zip", root).code == "install-source"
    with pytest.raises(ModelRefused) as caught:
        install_bundle("http://example.org/model.zip", root=root)
    assert caught.value.code == "download-insecure"


ESCAPES = ["../evil.md", "small/../../evil.md", "/tmp/evil.md", "C:/evil.md", "..\\evil.md", "small/./evil.md",
           "small//evil.md", "small/con.md", "small/evil.md.", "small/a\nb.md", "small/" + "x" * 300]  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_out_of_the_folder_are_refused_by_name(bundle: Path, root: Path, name: str, kind: str) -> None:
    if kind == "zip":
        source = zipped(bundle)
        with zipfile.ZipFile(source, "a") as packed:
            packed.writestr(name, "evil")
    else:
        source = tarred(bundle, x=lambda info: setattr(info, "name", name))
    error = refused(source, root)
    assert error.code == "archive-path"
    assert repr(name[:200]) in error.text
    assert not list(root.parent.rglob("*evil*"))


def link(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, "/etc/passwd"

    return change


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_tar_are_refused(bundle: Path, root: Path, kind: bytes) -> None:
    error = refused(tarred(bundle, secret=link(kind)), root)
    assert (error.code, "secret" in error.text) == ("archive-link", True)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"])
def test_devices_and_unknown_members_of_a_tar_are_refused(bundle: Path, root: Path, kind: bytes) -> None:
    error = refused(tarred(bundle, odd=link(kind)), root)
    assert (error.code, "odd" in error.text) == ("archive-device", True)


@pytest.mark.parametrize(
    ("mode", "code"),
    [(stat.S_IFLNK, "archive-link"), (stat.S_IFIFO, "archive-device"), (stat.S_IFCHR, "archive-device")],
)
def test_links_and_devices_in_a_zip_are_refused(bundle: Path, root: Path, mode: int, code: str) -> None:
    source = zipped(bundle)
    with zipfile.ZipFile(source, "a") as packed:
        info = zipfile.ZipInfo("small/docs/secret.md")
        info.external_attr = (mode | 0o644) << 16
        packed.writestr(info, "/etc/passwd")
    assert refused(source, root).code == code


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_links_and_pipes_in_a_folder_are_refused(bundle: Path, root: Path) -> None:
    (bundle / "docs" / "secret").symlink_to("/etc/passwd")
    assert refused(bundle, root).code == "archive-link"
    (bundle / "docs" / "secret").unlink()
    os.mkfifo(bundle / "docs" / "pipe")
    assert refused(bundle, root).code == "archive-device"


@pytest.mark.parametrize("name", ["small/docs/README.md", "small/docs/readme.MD", "SMALL/docs/README.md"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(bundle: Path, root: Path, name: str) -> None:
    source = zipped(bundle)
    with zipfile.ZipFile(source, "a") as packed:
        packed.writestr(name, "# Another card\n")
    assert refused(source, root).code == "archive-duplicate"


def test_a_file_used_as_a_folder_is_refused(bundle: Path, root: Path) -> None:
    source = zipped(bundle)
    with zipfile.ZipFile(source, "a") as packed:
        packed.writestr("small/docs/README.md/evil.md", "evil")
    assert refused(source, root).code == "archive-duplicate"


def test_bombs_are_refused_by_size_before_anything_is_written(tmp_path: Path, root: Path, monkeypatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(unpacking, "_write", lambda *_: pytest.fail("written"))
    folder = tmp_path / "bomb"
    folder.mkdir()
    (folder / "zeros.txt").write_bytes(bytes(8 << 20))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(folder / "zeros.txt", "bomb/zeros.txt")
    for source in (tmp_path / "bomb.zip", tarred(folder), folder):
        assert refused(source, root).code == "archive-size"


def test_bombs_are_refused_by_count(bundle: Path, root: Path) -> None:
    for number in range(300):
        (bundle / "docs" / f"{number}.txt").touch()
    for source in (zipped(bundle), tarred(bundle), bundle):
        assert refused(source, root).code == "archive-count"


def test_a_tar_whose_header_would_fill_the_memory_is_refused(bundle: Path, root: Path) -> None:
    info = tarfile.TarInfo("small/pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    source = bundle.with_suffix(".tar")
    source.write_bytes(gzip.compress(info.tobuf(tarfile.PAX_FORMAT) + bytes(1 << 16)))
    assert refused(source, root).code == "archive-size"


def test_a_zip_whose_table_would_fill_the_memory_is_refused(bundle: Path, root: Path) -> None:
    source = zipped(bundle)
    content = bytearray(source.read_bytes())
    struct.pack_into("<I", content, content.rfind(b"PK\x05\x06") + 12, 1 << 30)
    source.write_bytes(content)
    assert refused(source, root).code == "archive-size"


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_truncated_archive_is_refused(bundle: Path, root: Path, pack, share: float) -> None:
    source = pack(bundle)
    content = source.read_bytes()
    source.write_bytes(content[: int(len(content) * share)])
    assert refused(source, root).code == "archive-damaged"


@pytest.mark.parametrize("content", [b"", b"MZ\x90\x00", b"<html>Sign in</html>", b"\x1f\x8b", b"PK\x03\x04"])
def test_what_is_no_archive_is_refused(tmp_path: Path, root: Path, content: bytes) -> None:
    source = tmp_path / "model.zip"
    source.write_bytes(content)
    assert refused(source, root).code in {"archive-kind", "archive-damaged"}


def test_an_archive_without_a_bundle_is_refused(tmp_path: Path, root: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as packed:
        packed.writestr("a/readme.md", "# Nothing\n")
    assert refused(tmp_path / "m.zip", root).code == "archive-no-bundle"


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["models/model.pt", "docs/notes.txt", "docs/picture.png", "configs/more.json",
                                  "models/extra.safetensors", "scripts/run.py", "docs/LICENSE"])  # fmt: skip
def test_pickled_files_and_code_are_refused_whatever_they_are_called(bundle, root, tmp_path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    write_manifest(bundle)
    error = refused(zipped(bundle), root)
    assert (error.code, name in error.text) == ("bundle-file-kind", True)
    assert not (tmp_path / "ran").exists()


def replace_weights(bundle: Path, content: bytes) -> None:
    """As somebody who also mends the hashes."""
    (bundle / WEIGHTS).write_bytes(content)
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    metadata["mtmed3d"]["sha256"] = hashlib.sha256(content).hexdigest()
    (bundle / "configs/metadata.json").write_text(json.dumps(metadata))
    write_manifest(bundle)


def test_pickled_weights_under_the_right_name_are_refused_unread(bundle: Path, root: Path, tmp_path: Path) -> None:
    replace_weights(bundle, pickle.dumps(Evil(tmp_path / "ran")))
    assert refused(bundle, root).code == "weights-pickled"
    buffer = io.BytesIO()
    torch.save({"a": Evil(tmp_path / "ran")}, buffer)
    replace_weights(bundle, buffer.getvalue())
    assert refused(bundle, root).code == "weights-pickled"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("claimed", [1 << 62, (1 << 64) - 1, 5 << 20, 200])
def test_an_oversize_tensor_header_is_refused(bundle: Path, root: Path, claimed: int) -> None:
    replace_weights(bundle, struct.pack("<Q", claimed) + b'{"a":1}' + bytes(64))
    assert refused(bundle, root).code == "weights-header"


def test_a_header_within_the_file_but_beyond_any_real_one_is_refused(bundle: Path, root: Path) -> None:
    header = b'{"a":"' + b"x" * (5 << 20) + b'"}'
    replace_weights(bundle, struct.pack("<Q", len(header)) + header)
    assert refused(bundle, root).code == "weights-header"


@pytest.mark.parametrize(
    "header", [b"{[", b'{"a":' + b"[" * 100_000, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}',
               b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
               b'{"a":{"dtype":"X","shape":[],"data_offsets":[0,4]}}']
)  # fmt: skip
def test_a_tensor_header_that_lies_is_refused(bundle: Path, root: Path, header: bytes) -> None:
    replace_weights(bundle, struct.pack("<Q", len(header)) + header + bytes(4))
    assert refused(bundle, root).code == "weights-unreadable"


def test_a_changed_file_is_refused(bundle: Path, root: Path) -> None:
    (bundle / "docs" / "README.md").write_text("# Smalk\n")
    assert refused(zipped(bundle), root).code == "bundle-tampered"


@pytest.mark.parametrize("expression", ["$__import__('os').system('touch ran')", "@network", "%other"])
def test_expressions_of_a_configuration_are_refused_and_not_run(
    bundle, root, tmp_path, monkeypatch, expression
) -> None:
    monkeypatch.chdir(tmp_path)
    config = json.loads((bundle / "configs/inference.json").read_text())
    config["network_def"]["preset"] = expression
    (bundle / "configs/inference.json").write_text(json.dumps(config))
    write_manifest(bundle)
    assert refused(zipped(bundle), root).code == "bundle-target"
    assert not (tmp_path / "ran").exists()
