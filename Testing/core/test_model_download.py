"""Downloads of models: encrypted, resumed where they were cut, bounded, and never taken for what they are not."""

from __future__ import annotations

import hashlib
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("cryptography", reason="needs the extra `cluster`")

from MTMed3DCore import bundles
from MTMed3DCore.bundles import download as downloading
from MTMed3DCore.bundles.download import Download, check_address, download
from MTMed3DCore.bundles.install import WORKPLACE, install_bundle
from MTMed3DCore.cli import main
from MTMed3DCore.errors import Cancelled, ModelRefused
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.networks import build_network
from Testing.https_server import Site, serving

CONTENT = random.Random(8).randbytes(3_000_000)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(downloading, "WAIT_S", 0.01)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "localhost")
    with serving(tmp_path / "server") as site:
        site.files["/model.zip"] = CONTENT
        yield site


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A zip of a small bundle called ``small``."""
    torch.manual_seed(3)
    place = tmp_path_factory.mktemp("archive")
    network = build_network("mtmed3d", feature_size=12, tasks=("segmentation",)).eval()
    settings = InferenceSettings(spacing_mm=2.0, window=64)
    bundles.save_bundle(
        place / "small", network, settings, name="small", version="1.0.0", trained_on="Nothing.", card="# Small\n",
        half=True,
    )  # fmt: skip
    with zipfile.ZipFile(place / "small.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for path in sorted((place / "small").rglob("*")):
            packed.write(path, path.relative_to(place))
    return (place / "small.zip").read_bytes()


def fetch(site: Site, folder: Path, path: str = "/model.zip", **options) -> Path:
    what = Download(site.url + path, folder, options.pop("largest", 10_000_000), options.pop("size", None))
    return download(what, trusted=site.certificate, **options)


def refused(site: Site, folder: Path, path: str = "/model.zip", **options) -> ModelRefused:
    with pytest.raises(ModelRefused) as caught:
        fetch(site, folder, path, **options)
    return caught.value


def test_a_whole_file_comes_as_it_is(site: Site, tmp_path: Path) -> None:
    seen = []
    path = fetch(site, tmp_path / "got", size=len(CONTENT), progress=lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("download", 1.0, "3.0 of 3.0 MB")


def test_a_connection_cut_in_the_middle_goes_on_from_there(site: Site, tmp_path: Path) -> None:
    site.cuts = [1_000_000, 500_000]
    assert fetch(site, tmp_path / "got").read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_later_run_goes_on_where_an_earlier_one_gave_up(site: Site, tmp_path: Path) -> None:
    site.cuts = [1_000_000, 0, 0, 0]
    error = refused(site, tmp_path / "got")
    assert error.code == "download-cut"
    assert "1000000 bytes" in error.text
    site.ranges.clear()
    assert fetch(site, tmp_path / "got").read_bytes() == CONTENT
    assert site.ranges == ["bytes=1000000-"]


def test_a_file_that_changed_on_the_server_starts_anew(site: Site, tmp_path: Path) -> None:
    site.cuts = [1_000_000, 0, 0, 0]
    refused(site, tmp_path / "got")
    site.files["/model.zip"] = CONTENT[::-1]
    assert fetch(site, tmp_path / "got").read_bytes() == CONTENT[::-1]


def test_a_weak_entity_tag_is_not_trusted_for_going_on(site: Site, tmp_path: Path) -> None:
    site.tag = lambda content: 'W/"1"'
    site.cuts = [1_000_000]
    assert fetch(site, tmp_path / "got").read_bytes() == CONTENT
    assert site.ranges == [None, None]


def test_a_file_that_had_come_whole_is_not_fetched_twice(site: Site, tmp_path: Path) -> None:
    fetch(site, tmp_path / "got")
    assert fetch(site, tmp_path / "got").read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=3000000-"]


def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429]
    assert fetch(site, tmp_path / "got").read_bytes() == CONTENT


def test_a_missing_file_is_refused_at_once(site: Site, tmp_path: Path) -> None:
    assert refused(site, tmp_path / "got", "/none.zip").code == "download-refused"
    assert len(site.ranges) == 1


def test_a_certificate_that_nobody_here_knows_is_refused(site: Site, tmp_path: Path) -> None:
    what = Download(site.url + "/model.zip", tmp_path / "got", 10_000_000)
    with pytest.raises(ModelRefused) as caught:
        download(what)
    assert caught.value.code == "download-untrusted"
    assert not site.ranges, "nothing may be asked before the server is known"


def test_a_certificate_for_another_name_is_refused(site: Site, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site.url = site.url.replace("localhost", "127.0.0.1")
    assert refused(site, tmp_path / "got").code == "download-untrusted"


@pytest.mark.parametrize(
    "address",
    ["http://host/m.zip", "ftp://host/m.zip", "file:///etc/passwd", "https://user:secret@host/m", "https:///m",
     "https://host/a b", "https://host/a\r\nX: y"],
)  # fmt: skip
def test_only_plain_https_addresses_are_taken(address: str) -> None:
    with pytest.raises(ModelRefused) as caught:
        check_address(address)
    assert caught.value.code == "download-insecure"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("target", ["http://localhost:1/m.zip", "https://user:pw@localhost/m.zip"])
def test_a_redirect_out_of_https_is_refused(site: Site, tmp_path: Path, target: str) -> None:
    site.redirects["/moved"] = target
    assert refused(site, tmp_path / "got", "/moved").code == "download-insecure"


def test_a_redirect_to_a_file_of_this_machine_is_refused(site: Site, tmp_path: Path) -> None:
    site.redirects["/moved"] = "file:///etc/hostname"
    assert refused(site, tmp_path / "got", "/moved").code == "download-refused"


def test_a_redirect_within_https_is_followed(site: Site, tmp_path: Path) -> None:
    site.redirects["/moved"] = f"{site.url}/model.zip"
    assert fetch(site, tmp_path / "got", "/moved").read_bytes() == CONTENT


def test_redirects_in_a_circle_end(site: Site, tmp_path: Path) -> None:
    site.redirects["/moved"] = f"{site.url}/moved"
    assert refused(site, tmp_path / "got", "/moved").code == "download-refused"
    assert len(site.ranges) <= 6


@pytest.mark.parametrize("with_length", [True, False])
def test_what_is_larger_than_any_model_is_not_taken(site: Site, tmp_path: Path, with_length: bool) -> None:
    site.with_length = with_length
    assert refused(site, tmp_path / "got", largest=2_000_000).code == "download-size"
    assert not list((tmp_path / "got").glob("*.part"))


def test_another_size_than_expected_is_refused_before_anything_comes(site: Site, tmp_path: Path) -> None:
    error = refused(site, tmp_path / "got", size=17)
    assert (error.code, "3000000" in error.text, "17" in error.text) == ("download-size", True, True)
    assert not list((tmp_path / "got").glob("*.part"))


def test_a_key_in_the_address_is_not_shown(site: Site, tmp_path: Path) -> None:
    assert "token" not in str(refused(site, tmp_path / "got", "/none.zip?token=abc"))


def test_a_cancelled_download_keeps_what_has_come(site: Site, tmp_path: Path) -> None:
    def stop(_stage: str, fraction: float, _text: str) -> None:
        if fraction > 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        fetch(site, tmp_path / "got", progress=stop)
    assert fetch(site, tmp_path / "got").read_bytes() == CONTENT
    assert site.ranges[1] is not None


def test_a_model_is_installed_from_an_address_over_a_cut_connection(site: Site, tmp_path: Path, archive) -> None:
    site.files["/small.zip"] = archive
    site.cuts = [len(archive) // 2]
    root = tmp_path / "models"
    digest = hashlib.sha256(archive).hexdigest()
    installed = install_bundle(
        f"{site.url}/small.zip", sha256=digest, size=len(archive), root=root, trusted=site.certificate
    )
    assert installed.sha256 == digest
    assert installed.bundle.folder == root / "small"
    assert bundles.find_bundle(root / "small").load().config["feature_size"] == 12
    assert [path.name for path in (root / WORKPLACE).iterdir() if path.name != "lock"] == []
    assert site.ranges == [None, f"bytes={len(archive) // 2}-"]


def test_a_downloaded_archive_with_another_hash_is_refused_and_not_kept(site: Site, tmp_path: Path, archive) -> None:
    site.files["/small.zip"] = archive
    root = tmp_path / "models"
    with pytest.raises(ModelRefused) as caught:
        install_bundle(f"{site.url}/small.zip", sha256="0" * 64, root=root, trusted=site.certificate)
    assert caught.value.code == "install-mismatch"
    assert hashlib.sha256(archive).hexdigest() in caught.value.text
    assert sorted(path.name for path in root.rglob("*")) == [WORKPLACE, "lock"]


def test_the_command_has_no_way_around_an_unknown_certificate(site: Site, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert main(["model", "install", f"{site.url}/model.zip"]) == 4
    assert "certificate" in capsys.readouterr().err
    assert main(["model", "install", f"{site.url}/model.zip", "--insecure"]) == 2
