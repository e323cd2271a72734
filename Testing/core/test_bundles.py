"""Bundles: what is written is what is loaded, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from MTMed3DCore import bundles
from MTMed3DCore.bundles.manifest import FORMAT, MANIFEST, MAX_CONFIG_BYTES, write_manifest
from MTMed3DCore.bundles.published import PUBLISHED_REGION_THRESHOLD, published_settings, read_checkpoint
from MTMed3DCore.bundles.search import MODELS_VARIABLE
from MTMed3DCore.bundles.weights import check_header
from MTMed3DCore.errors import ModelRefused, WrongUse
from MTMed3DCore.hashing import file_sha256
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.networks import build_network

WEIGHTS = "models/model.safetensors"
SETTINGS = InferenceSettings(spacing_mm=2.0, window=64, channel_order=("flair", "t1", "t1ce", "t2"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(5)
    network = build_network("mtmed3d", feature_size=12, tasks=("segmentation",)).eval()
    folder = tmp_path_factory.mktemp("bundles") / "small"
    bundles.save_bundle(
        folder, network, SETTINGS, name="small", version="2.1.0", trained_on="Nothing at all.", card="# Small\n"
    )
    return folder, network


@pytest.fixture
def copy(saved: tuple[Path, torch.nn.Module], tmp_path: Path) -> Path:
    return shutil.copytree(saved[0], tmp_path / "small")


def rewrite(folder: Path, name: str, change: dict) -> None:
    """Change a JSON file of a bundle and its manifest, as its maker could."""
    content = json.loads((folder / name).read_text())
    content.update(change)
    (folder / name).write_text(json.dumps(content))
    write_manifest(folder)


def refused(folder: Path) -> ModelRefused:
    with pytest.raises(ModelRefused) as caught:
        bundles.find_bundle(folder).load()
    return caught.value


def test_a_saved_bundle_loads_with_the_same_weights_settings_and_identity(saved) -> None:
    folder, network = saved
    bundle = bundles.find_bundle(folder)
    assert (bundle.name, bundle.version, bundle.trained_on) == ("small", "2.1.0", "Nothing at all.")
    assert bundle.settings == SETTINGS
    assert bundle.network_config == network.config
    assert bundle.sha256 == file_sha256(folder / WEIGHTS)
    assert bundle.identity.sha256 == bundle.sha256
    loaded = bundle.load("cpu")
    assert not loaded.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_every_user_of_the_machine_may_read_a_bundle(saved):
    folder, _ = saved
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o044 == 0o044, path


def test_half_stores_large_tensors_in_fp16_and_loads_them_as_fp32(saved, tmp_path: Path) -> None:
    folder, network = saved
    bundle = bundles.save_bundle(
        tmp_path / "half", network, SETTINGS, name="half", version="1", trained_on="-", card="", half=True
    )
    stored = load_file(bundle.folder / WEIGHTS)
    kinds = {tensor.dtype for tensor in stored.values() if tensor.is_floating_point() and tensor.ndim >= 2}
    assert kinds == {torch.float16}
    assert bundle.size < 0.52 * (folder / WEIGHTS).stat().st_size
    for name, tensor in bundle.load().state_dict().items():
        own = network.state_dict()[name]
        assert tensor.dtype == own.dtype
        torch.testing.assert_close(tensor, own, rtol=1e-3, atol=1e-6)


def test_metadata_has_the_keys_of_the_monai_bundle_schema(saved) -> None:
    metadata = bundles.find_bundle(saved[0]).metadata
    required = {"schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"}
    required |= {"required_packages_version", "task", "description", "authors", "copyright", "network_data_format"}
    assert required <= metadata.keys()
    image = metadata["network_data_format"]["inputs"]["image"]
    assert image["channel_def"] == {"0": "flair", "1": "t1", "2": "t1ce", "3": "t2"}


def test_one_changed_byte_of_the_weights_is_refused_with_both_hashes(copy: Path) -> None:
    path = copy / WEIGHTS
    expected = file_sha256(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    error = refused(copy)
    assert error.code == "bundle-tampered"
    assert WEIGHTS in error.text
    assert expected in error.text
    assert file_sha256(path) in error.text
    with pytest.raises(ModelRefused, match=WEIGHTS):
        bundles.verify(copy)


def test_a_changed_model_card_is_refused(copy: Path) -> None:
    (copy / "docs/README.md").write_text("# Smell\n")
    error = refused(copy)
    assert error.code == "bundle-tampered"
    assert "docs/README.md" in error.text


def test_a_section_of_the_card_is_added_then_replaced_and_the_bundle_stays_whole(copy: Path) -> None:
    before = bundles.read_bundle(copy).sha256
    bundles.rewrite_section(copy, "Limits", "None known.")
    bundles.rewrite_section(copy, "Authors", "Nobody.")
    bundles.rewrite_section(copy, "Limits", "Many.")
    assert (copy / "docs/README.md").read_text() == "# Small\n\n## Limits\n\nMany.\n\n## Authors\n\nNobody.\n"
    assert bundles.verify(copy)[WEIGHTS] == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_missing_file_is_refused_by_name(copy: Path) -> None:
    (copy / "docs/README.md").unlink()
    error = refused(copy)
    assert error.code == "bundle-file-missing"
    assert "docs/README.md" in error.text


def test_an_extra_file_is_refused_by_name(copy: Path) -> None:
    (copy / "scripts").mkdir()
    (copy / "scripts/run.py").write_text("raise SystemExit")
    error = refused(copy)
    assert error.code == "bundle-file-extra"
    assert "scripts/run.py" in error.text


def test_what_a_file_manager_leaves_behind_is_no_extra_file(copy: Path) -> None:
    (copy / ".DS_Store").write_bytes(b"\0")
    assert bundles.find_bundle(copy).name == "small"


def test_a_link_in_a_bundle_is_refused(copy: Path, tmp_path: Path) -> None:
    outside = (copy / WEIGHTS).rename(tmp_path / "outside.safetensors")
    try:
        (copy / WEIGHTS).symlink_to(outside)
    except OSError:
        pytest.skip("this system allows no symbolic links")
    assert refused(copy).code == "bundle-path"


@pytest.mark.parametrize("name", ["../outside", "/etc/hosts", "models\\..\\x", "c:/x"])
def test_a_manifest_that_names_a_path_outside_is_refused(copy: Path, name: str) -> None:
    content = json.loads((copy / MANIFEST).read_text())
    content["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    (copy / MANIFEST).write_text(json.dumps(content))
    error = refused(copy)
    assert error.code == "bundle-path"
    assert repr(name) in error.text


def test_a_target_other_than_our_networks_is_refused(copy: Path) -> None:
    rewrite(copy, "configs/inference.json", {"network_def": {"_target_": "os.system", "command": "true"}})
    error = refused(copy)
    assert error.code == "bundle-target"
    assert "'os.system'" in error.text


@pytest.mark.parametrize("value", ["$__import__('os')", "@other", "%file", {"_target_": "os.system"}])
def test_an_expression_or_nested_target_is_refused(copy: Path, value: object) -> None:
    definition = {"_target_": "MTMed3DCore.networks.build_network", "preset": value}
    rewrite(copy, "configs/inference.json", {"network_def": definition})
    assert refused(copy).code == "bundle-target"


def test_weights_beyond_the_limit_are_refused_before_they_are_read(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    content = json.loads((copy / MANIFEST).read_text())
    content["files"][WEIGHTS]["bytes"] = (2 << 30) + 1
    (copy / MANIFEST).write_text(json.dumps(content))
    assert refused(copy).code == "weights-too-large"


@pytest.mark.parametrize(
    "content",
    [
        b"MR\x00\x00\x00\x00\x00\x00 weights, but without a header",
        (9).to_bytes(8, "little") + b"{not JSON",
        (40_000).to_bytes(8, "little") + b'{"a":' * 8_000,
    ],
)
def test_what_is_no_safetensors_file_is_refused_by_its_header(content: bytes) -> None:
    with pytest.raises(ModelRefused, match=r"there\.weights is no safetensors file") as refusal:
        check_header(content, Path("there.weights"))
    assert refusal.value.code == "weights-unreadable"


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        ("[]", "holds a list"),
        ('{"format": "another/1", "files": {}}', "has format 'another/1'"),
        ('{"format": "FORMAT", "files": []}', "has no object `files`"),
        ("{" + " " * MAX_CONFIG_BYTES + "}", "at most"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_manifest_that_is_none_is_refused_with_what_it_holds(copy: Path, manifest: str, text: str) -> None:
    (copy / MANIFEST).write_text(manifest.replace("FORMAT", FORMAT))
    with pytest.raises(ModelRefused, match=text):
        bundles.read_bundle(copy)


def test_every_misfit_tensor_is_named(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    first, second = sorted(name for name, tensor in tensors.items() if tensor.ndim == 1)[:2]
    tensors["stranger"] = tensors.pop(first)
    tensors[second] = torch.full((3,), 1.0)
    save_file(tensors, copy / WEIGHTS)
    own = json.loads((copy / "configs/metadata.json").read_text())["mtmed3d"]
    rewrite(copy, "configs/metadata.json", {"mtmed3d": {**own, "sha256": file_sha256(copy / WEIGHTS)}})
    error = refused(copy)
    assert error.code == "bundle-tensors"
    assert f"{first} is missing" in error.text
    assert "stranger is not part of the network" in error.text
    assert f"{second} has shape [3]" in error.text


def test_weights_that_are_not_finite_are_refused(saved, tmp_path: Path) -> None:
    network = build_network(**saved[1].config)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    folder = tmp_path / "nan"
    bundles.save_bundle(folder, network, SETTINGS, name="nan", version="1", trained_on="-", card="")
    assert "not finite" in refused(folder).text


def test_a_name_finds_the_first_root_that_has_it(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path))
    assert bundles.find_bundle("small").folder == copy
    assert "small" in [bundle.name for bundle in bundles.list_bundles()]


def test_a_damaged_bundle_is_refused_and_not_passed_over(
    copy: Path, saved, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (copy / "docs/README.md").write_text("changed")
    monkeypatch.setenv(MODELS_VARIABLE, bundles.search.os.pathsep.join([str(tmp_path), str(saved[0].parent)]))
    with pytest.raises(ModelRefused, match=r"docs/README\.md"):
        bundles.find_bundle("small")
    assert "small" not in [bundle.name for bundle in bundles.list_bundles()]


def test_an_unknown_name_is_refused_with_the_known_ones(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, str(copy.parent))
    with pytest.raises(ModelRefused, match="small") as caught:
        bundles.find_bundle("no-such-model")
    assert caught.value.code == "model-unknown"


def test_a_folder_in_the_working_directory_never_hides_an_installed_model(
    copy: Path, saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy.parent)
    monkeypatch.setenv(MODELS_VARIABLE, str(saved[0].parent))
    assert bundles.find_bundle("small").folder == saved[0]
    assert bundles.find_bundle("./small").folder == copy


def test_saving_over_a_bundle_needs_to_be_asked_for_and_leaves_nothing_behind(copy: Path, saved) -> None:
    arguments = {"name": "small", "version": "3", "trained_on": "-", "card": ""}
    with pytest.raises(WrongUse) as caught:
        bundles.save_bundle(copy, saved[1], SETTINGS, **arguments)
    assert caught.value.code == "output-exists"
    assert bundles.find_bundle(copy).version == "2.1.0"
    bundles.save_bundle(copy, saved[1], SETTINGS, **arguments, overwrite=True)
    assert bundles.find_bundle(copy).version == "3"
    assert [path.name for path in copy.parent.iterdir()] == ["small"]


def test_published_settings_hold_the_authors_figures_and_say_an_assumed_order() -> None:
    settings = published_settings()
    assert settings.channel_order_assumed
    assert settings.channel_order == ("t1", "t1ce", "t2", "flair")
    assert settings.region_thresholds == (PUBLISHED_REGION_THRESHOLD,) * 3
    assert pytest.approx(torch.sigmoid(torch.tensor(0.3)).item()) == PUBLISHED_REGION_THRESHOLD


def test_a_bundle_with_one_threshold_for_all_regions_is_still_read():
    settings = InferenceSettings.from_dict({"region_threshold": 0.3})
    assert settings.region_thresholds == (0.3, 0.3, 0.3)
    assert InferenceSettings.from_dict(settings.to_dict()) == settings
    given = published_settings(["flair", "t1", "t1ce", "t2"])
    assert not given.channel_order_assumed
    assert given.channel_order == ("flair", "t1", "t1ce", "t2")


@pytest.mark.parametrize("order", [["t1", "t2"], ["t1", "t1", "t2", "flair"], ["t1", "t1ce", "t2", "pd"]])
def test_an_order_that_is_no_permutation_is_wrong_use(order: list[str]) -> None:
    with pytest.raises(WrongUse, match="channel order"):
        published_settings(order)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "evil.pt"
    torch.save({"state_dict": Path}, file)
    with pytest.raises(ModelRefused) as caught:
        read_checkpoint(file)
    assert caught.value.code == "checkpoint-code"


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "state_dict": state}])
def test_a_bare_and_a_wrapped_state_dict_read_the_same(tmp_path: Path, wrap) -> None:
    state = {"module.a": torch.arange(3.0)}
    torch.save(wrap(state), tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    assert list(read) == ["module.a"]
    assert read["module.a"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.safetensors"])
def test_a_checkpoint_of_noise_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no checkpoint at all")
    with pytest.raises(ModelRefused, match=name):
        read_checkpoint(tmp_path / name)


def test_a_checkpoint_of_another_network_is_refused_by_tensor_and_writes_nothing(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ModelRefused, match=r"conv\.weight|is missing"):
        bundles.import_published(tmp_path / "other.pt", tmp_path / "imported")
    assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]


def test_a_published_checkpoint_becomes_a_bundle_with_the_same_tensors(tmp_path: Path) -> None:
    from MTMed3DCore.networks.published import published_name

    torch.manual_seed(3)
    network = build_network("published", feature_size=48)
    theirs = {f"module.{published_name(name)}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pt")
    bundle = bundles.import_published(tmp_path / "theirs.pt", tmp_path / "theirs", ["flair", "t1", "t1ce", "t2"])
    assert bundle.network_config["preset"] == "published"
    assert not bundle.settings.channel_order_assumed
    loaded = bundle.load().state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())
