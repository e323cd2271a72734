"""Folders of 2D images become lists, whatever their layout; a list trains a model that the standard commands take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from MTMed3DCore import cli
from MTMed3DCore.bundles import read_bundle
from MTMed3DCore.errors import InputRefused, ModelRefused, WrongUse
from MTMed3DCore.images2d.evaluation import label_figures, region_overlap
from MTMed3DCore.images2d.feeding import Example, ImageBatches, flipped, load_example, region_channels, rotated
from MTMed3DCore.images2d.imagelist import ImageList, Truths
from MTMed3DCore.images2d.layouts import build_image_list
from MTMed3DCore.images2d.pixels import boxes_of_mask, read_image, read_mask, resize_mask
from MTMed3DCore.images2d.prediction import find_boxes
from MTMed3DCore.images2d.settings import ImageSettings
from MTMed3DCore.images2d.training import ImageTrainSettings


def write(path: Path, pixels: np.ndarray) -> Path:
    """Write (rows, columns) or (rows, columns, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3), str(path))
    return path


def square(values: Sequence[int], shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    """A mask with a square of 8 pixels for each value, 10 columns apart, from column 2 and row 4 on."""
    mask = np.zeros(shape, dtype=np.uint8)
    for place, value in enumerate(values):
        mask[4:12, 2 + 10 * place : 10 + 10 * place] = value
    return mask


def noise(seed: int, shape: tuple[int, ...] = (40, 60)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


@pytest.fixture
def isic(tmp_path: Path) -> Path:
    """ISIC 2017: colour JPEG files, masks of 0 and 255, a table of two 0/1 columns, superpixels to be left alone."""
    root = tmp_path / "isic"
    rows = ["image_id,melanoma,seborrheic_keratosis"]
    for number in range(4):
        name = f"ISIC_{number:07d}"
        write(root / "ISIC-2017_Training_Data" / f"{name}.jpg", noise(number, (40, 60, 3)))
        write(root / "ISIC-2017_Training_Data" / f"{name}_superpixels.png", noise(number, (40, 60, 3)))
        write(root / "ISIC-2017_Training_Part1_GroundTruth" / f"{name}_segmentation.png", square([255]))
        rows.append(f"{name},{number % 2}.0,{int(number == 2)}.0")
    (root / "ISIC-2017_Training_Part3_GroundTruth.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def retouch(tmp_path: Path) -> Path:
    """Slices of RETOUCH volumes: the same slice numbers in each volume's folder, masks of 1, 2 and 3."""
    root = tmp_path / "retouch"
    for volume, values in (("TRAIN001", [[1], [1, 2]]), ("TRAIN002", [[], [3]])):
        for number, shown in enumerate(values):
            write(root / volume / "images" / f"{number:03d}.tif", noise(number).astype(np.uint16) * 200)
            write(root / volume / "masks" / f"{number:03d}.png", square(shown))
    (root / "regions.csv").write_text("value,name\n1,IRF\n2,SRF\n3,PED\n")
    return root


@pytest.fixture
def radiographs(tmp_path: Path) -> Path:
    """Chest radiographs: a row for each box, an empty one where there is none, and 0 or 1."""
    root = tmp_path / "chest"
    for name in ("a", "b", "c"):
        write(root / "train_images" / f"{name}.png", noise(ord(name)))
    lines = ["patientId,x,y,width,height,Target", "a,10,4,20,8,1", "a,40,6,10,10,1", "b,,,,,0", "c,1,2,3,4,1"]
    (root / "train_labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def mammograms(tmp_path: Path) -> Path:
    """Mammograms: lesions drawn into masks, a patient with two views, a word for each finding."""
    root = tmp_path / "breast"
    rows = ["image,patient_id,pathology"]
    for number, (patient, word) in enumerate(
        [("p1", "BENIGN"), ("p1", "BENIGN"), ("p2", "MALIGNANT"), ("p3", "BENIGN")]
    ):
        write(root / "images" / f"m{number}.png", noise(number))
        write(root / "masks" / f"m{number}_mask.png", square([255, 255]))
        rows.append(f"m{number}.png,{patient},{word}")
    (root / "findings.csv").write_text("\n".join(rows) + "\n")
    return root


def test_isic_masks_and_table_are_joined_by_name(isic: Path) -> None:
    listed = build_image_list(isic, folds=2)
    truths = Truths(("lesion",), (255,), "sigmoid", ("melanoma", "seborrheic_keratosis"), "sigmoid", True)
    assert listed.truths == truths
    assert [case.id for case in listed.cases] == [f"ISIC_{number:07d}" for number in range(4)]
    assert [case.labels["melanoma"] for case in listed.cases] == [0, 1, 0, 1]
    assert listed.cases[2].labels == {"melanoma": 0, "seborrheic_keratosis": 1}
    assert listed.cases[0].boxes == ((2.0, 4.0, 10.0, 12.0),)
    assert sorted(case.fold for case in listed.cases) == [0, 0, 1, 1]
    assert listed.skipped == ()


def test_retouch_slices_stay_with_their_volume_and_are_labelled_by_their_masks(retouch: Path) -> None:
    listed = build_image_list(retouch, folds=2)
    assert listed.truths.regions == listed.truths.labels == ("IRF", "SRF", "PED")
    assert (listed.truths.region_activation, listed.truths.label_activation) == ("softmax", "sigmoid")
    assert listed.truths.channels == 4
    labels = [tuple(case.labels.values()) for case in listed.cases]
    assert labels == [(1, 0, 0), (1, 1, 0), (0, 0, 0), (0, 0, 1)]
    assert {case.group for case in listed.cases} == {"TRAIN001", "TRAIN002"}
    assert all(
        len({case.fold for case in listed.cases if case.group == group}) == 1 for group in ("TRAIN001", "TRAIN002")
    )


def test_boxes_of_radiographs_come_from_their_table_and_none_is_known_to_be_none(radiographs: Path) -> None:
    listed = build_image_list(radiographs, folds=0)
    boxes = {case.id.split("/")[-1]: case.boxes for case in listed.cases}
    assert boxes["a"] == ((10.0, 4.0, 30.0, 12.0), (40.0, 6.0, 50.0, 16.0))
    assert boxes["b"] == ()
    assert listed.truths.tasks == ("detection", "grading")
    assert listed.truths.labels == ("Target",)


def test_words_of_mammograms_exclude_each_other_and_views_of_a_patient_share_a_fold(mammograms: Path) -> None:
    listed = build_image_list(mammograms, folds=3)
    assert listed.truths.labels == ("BENIGN", "MALIGNANT")
    assert listed.truths.label_activation == "softmax"
    assert [case.labels["MALIGNANT"] for case in listed.cases] == [0, 0, 1, 0]
    assert listed.cases[0].fold == listed.cases[1].fold
    assert len({case.fold for case in listed.cases}) == 3
    assert all(len(case.boxes) == 2 for case in listed.cases)


def test_folders_named_after_training_and_validation_decide_the_folds(tmp_path: Path) -> None:
    for split, names in (("train", "ab"), ("val", "c")):
        for name in names:
            write(tmp_path / split / "images" / f"{name}.png", noise(1))
            write(tmp_path / split / "masks" / f"{name}.png", square([1]))
    listed = build_image_list(tmp_path)
    training, held = listed.fold(0)
    assert [case.image.stem for case in training] == ["a", "b"]
    assert [case.image.stem for case in held] == ["c"]


def test_a_list_comes_back_as_it_was_written(retouch: Path, tmp_path: Path) -> None:
    listed = build_image_list(retouch, folds=2)
    listed.write(tmp_path / "lists" / "list.json")
    again = ImageList.read(tmp_path / "lists" / "list.json")
    same = [replace(case, image=case.image.resolve(), mask=case.mask.resolve()) for case in again.cases]
    assert same == [replace(case, image=case.image.resolve(), mask=case.mask.resolve()) for case in listed.cases]
    assert (again.truths, again.folds, again.notes) == (listed.truths, listed.folds, listed.notes)
    (retouch / "TRAIN001" / "masks" / "000.png").unlink()
    with pytest.raises(InputRefused, match=r"000\.png for TRAIN001/000"):
        ImageList.read(tmp_path / "lists" / "list.json")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda root: write(root / "masks" / "m0_mask.png", square([255], (41, 60))), "60, 41"),
        (lambda root: write(root / "masks" / "m0_mask.png", noise(1, (40, 60, 3))), "is coloured"),
        (lambda root: (root / "images" / "m0.png").write_bytes(b"no image"), "cannot be read"),
    ],
    ids=["size", "colours", "damaged"],
)
def test_an_image_that_cannot_be_used_is_left_out_with_the_reason(mammograms: Path, spoil, reason: str) -> None:
    spoil(mammograms)
    listed = build_image_list(mammograms, folds=0)
    assert [case.id for case in listed.cases] == ["m1", "m2", "m3"]
    ((path, why),) = listed.skipped
    assert path.endswith("m0.png")
    assert reason in why


def test_a_box_without_extent_is_refused_with_its_line(radiographs: Path) -> None:
    (radiographs / "train_labels.csv").write_text("patientId,x,y,width,height,Target\na,10,4,0,8,1\n")
    with pytest.raises(InputRefused, match=r"train_labels\.csv, line 2"):
        build_image_list(radiographs, folds=0)


def test_axes_are_columns_then_rows_and_the_brightest_value_is_one(tmp_path: Path) -> None:
    pixels = np.zeros((30, 50), dtype=np.uint16)
    pixels[3, 7:27] = 4000
    image = read_image(write(tmp_path / "a.tif", pixels), 3)
    assert image.shape == (3, 50, 30)
    assert image[:, 7, 3].tolist() == [1.0, 1.0, 1.0]
    assert image[0, 3, 7] == -1.0
    mask = read_mask(write(tmp_path / "m.png", (pixels > 0).astype(np.uint8) * 9), (9,))
    assert mask.shape == (50, 30)
    assert mask[7, 3] == 1
    assert boxes_of_mask(mask) == ((7.0, 3.0, 27.0, 4.0),)
    with pytest.raises(InputRefused, match="has the value 9; expected are 0, 8"):
        read_mask(tmp_path / "m.png", (8,))


def test_exclusive_regions_have_a_background_channel_and_single_ones_do_not() -> None:
    mask = torch.tensor([[0, 1], [2, 2]])
    truths = Truths(("a", "b"), (1, 2), "softmax")
    channels = region_channels(mask, truths)
    assert channels.tolist() == [[[1, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 1]]]
    assert torch.equal(region_channels(mask, replace(truths, region_activation="sigmoid")), channels[1:])


def test_mirroring_moves_image_mask_and_boxes_alike(tmp_path: Path) -> None:
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[5:20, 30:40] = 1
    example = Example(mask[None].float(), mask, torch.tensor(boxes_of_mask(mask.numpy())), None)
    mirrored = flipped(example)
    assert mirrored.boxes.tolist() == [list(box) for box in boxes_of_mask(mirrored.mask.numpy())]
    assert torch.equal(mirrored.image[0], mirrored.mask.float())
    again = flipped(mirrored)
    assert torch.equal(again.boxes, example.boxes)
    turned = rotated(example, 20.0)
    overlap = ((turned.image[0] > 0.5) & (turned.mask > 0)).sum() / (turned.mask > 0).sum()
    assert float(overlap) > 0.9
    assert not torch.equal(turned.mask, mask)
    assert abs(int(turned.mask.sum()) - int(mask.sum())) < 0.1 * int(mask.sum())
    assert turned.boxes is None


def test_a_resized_mask_and_resized_boxes_agree(mammograms: Path) -> None:
    listed = build_image_list(mammograms, folds=0)
    example = load_example(listed.cases[0], listed.truths, 128, 1)
    from_mask = torch.tensor(boxes_of_mask(resize_mask(example.mask, (128, 128)).numpy()))
    assert torch.allclose(example.boxes, from_mask, atol=1.5)
    assert example.image.shape == (1, 128, 128)


def test_which_images_come_when_depends_on_seed_and_number_alone(isic: Path) -> None:
    listed = build_image_list(isic, folds=0)
    settings = ImageTrainSettings(patch=64, wide_patch=64, images=3, steps=4, workers=0)
    batches = ImageBatches(listed.cases, listed.truths, settings)
    later = ImageBatches(listed.cases, listed.truths, settings)
    assert torch.equal(later[2].batch, batches[2].batch)
    assert not torch.equal(batches[0].batch, batches[1].batch)
    seen = torch.cat([batches[number].batch for number in range(4)])
    assert len(seen) == 12  # four images, three epochs


def test_a_box_is_read_from_the_anchor_that_holds_it() -> None:
    settings = ImageSettings(side=64, anchor_shapes=((8.0, 8.0),), score_threshold=0.5)
    maps = [(torch.full((1, 1, n, n), -9.0), torch.zeros(1, 4, n, n)) for n in (16, 8, 4, 2)]
    maps[1][0][0, 0, 2, 5] = 4.0  # stride 8, scale 2: a box of 16 pixels round (20, 44) by the generator's convention
    boxes, scores = find_boxes(maps, settings)
    assert scores.tolist() == pytest.approx([0.982], abs=1e-3)
    x0, y0, x1, y1 = boxes[0].tolist()
    assert (x1 - x0, y1 - y0) == (16.0, 16.0)
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((16.0, 40.0), abs=4.0)


def test_figures_follow_the_published_conventions() -> None:
    truth, found = square([1, 2]), square([1, 0, 3])
    figures = region_overlap(found, truth, ("a", "b", "c"))
    assert figures == {"dice_a": 1.0, "iou_a": 1.0, "dice_b": 0.0, "iou_b": 0.0}  # c is not there: it does not count
    chances, labels = np.array([[0.9, 0.2], [0.4, 0.6]]), np.array([[1, 0], [1, 0]])
    pooled = label_figures(chances, labels, exclusive=False)
    assert pooled == {"accuracy": 0.5, "sensitivity_labels": 0.5, "specificity_labels": 0.5}
    assert label_figures(chances, np.array([[1, 0], [0, 1]]), exclusive=True) == {"accuracy": 1.0}


def test_the_standard_commands_go_from_a_folder_to_a_report_and_to_predictions(
    isic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"images": 2, "warm_up": 1, "network_options": {"blocks": [1, 1, 1, 1]}, "feature_size": 8, "patch": 64}
    (tmp_path / "settings.json").write_text(json.dumps(options | {"workers": 0}))
    here, run, report, out = (str(tmp_path / name) for name in ("list.json", "run", "report", "out"))
    assert cli.main(["datalist", str(isic), "-o", here, "--images", "--folds", "2", "--quiet"]) == 0
    settings = ["--settings", str(tmp_path / "settings.json"), "--steps", "2", "--device", "cpu"]
    assert cli.main(["train", here, "-o", run, *settings, "--quiet"]) == 0
    rows = [json.loads(row) for row in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [row["weights"] for row in rows] == [[1.0, 0.25]] * 2
    bundle = read_bundle(tmp_path / "run" / "bundle")
    assert (bundle.family, bundle.for_studies) == ("resformer", False)
    with pytest.raises(ModelRefused, match="made for 2D images"):
        _ = bundle.settings
    model = ["--model", str(bundle.folder), "--device", "cpu"]
    capsys.readouterr()
    assert cli.main(["evaluate", here, *model, "-o", report, "--fold", "0", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert 0 <= figures["dice_lesion"] <= 1
    assert json.loads((tmp_path / "report" / "evaluation.json").read_text())["figures"] == figures
    image = next((isic / "ISIC-2017_Training_Data").glob("*0.jpg"))
    assert cli.main(["analyze", str(image), *model, "-o", out, "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["images"]
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / f"{image.stem}_mask.png")))
    assert mask.shape == (40, 60)
    assert answer["area_pixels"] == {"lesion": int((mask == 255).sum())}
    assert set(answer["labels"]) == {"melanoma", "seborrheic_keratosis"}


def test_what_a_list_of_images_cannot_train_is_refused_before_any_work(isic: Path, tmp_path: Path) -> None:
    listed = build_image_list(isic, folds=0)
    listed.write(tmp_path / "list.json")
    base = ["train", str(tmp_path / "list.json"), "-o", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main([*base, "--family", "mtmed3d"]) == 2
    assert cli.main([*base, "--tasks", "detection"]) == 2
    assert cli.main([*base, "--encoder-weights", "w.pt"]) == 2
    assert not (tmp_path / "run").exists()
    with pytest.raises(WrongUse, match="channels is 2"):
        ImageTrainSettings(channels=2)
