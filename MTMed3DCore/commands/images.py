"""What ``datalist``, ``train``, ``evaluate`` and ``analyze`` do with folders and lists of 2D images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from MTMed3DCore.commands.console import print_table, print_trained, progress_bar
from MTMed3DCore.errors import InputRefused, WrongUse

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
"""As `MTMed3DCore.images2d.pixels.SUFFIXES`, named here so that the help loads no numpy."""
SHOWN = 10
WHERE = "Give one list for brain studies and one for images."


def list_images(options: argparse.Namespace) -> int:
    """Make and write a list of images, and say what is in it."""
    from MTMed3DCore.images2d.layouts import build_image_list

    if len(options.folders) != 1 or options.annotation is not None:
        raise WrongUse("usage", "--images lists one folder, and takes no --annotation.")
    with progress_bar("Looking for images", not (options.quiet or options.json)) as progress:
        listed = build_image_list(options.folders[0], folds=options.folds, seed=options.seed, progress=progress)
    listed.write(options.output)
    truths = listed.truths
    counts: dict[str, Any] = {
        "images": len(listed.cases),
        "patients": len({case.group for case in listed.cases}),
        "masks": sum(case.mask is not None for case in listed.cases),
        "boxes": sum(len(case.boxes or ()) for case in listed.cases),
        "labelled": sum(case.labels is not None for case in listed.cases),
        "regions": list(truths.regions),
        "labels": list(truths.labels),
        "skipped": len(listed.skipped),
        "notes": list(listed.notes),
    }
    if options.json:
        print(json.dumps(counts | {"list": str(options.output)}, indent=1))
        return 0
    for name, value in counts.items():
        if name != "notes":
            print(f"{name:<10} {', '.join(value) if isinstance(value, list) else value}")
    print(f"regions by {truths.region_activation}, labels by {truths.label_activation}")
    for note in listed.notes:
        print(f"note: {note}")
    for path, reason in listed.skipped[:SHOWN]:
        print(f"skipped: {path}: {reason}")
    print(f"Written to {options.output}")
    return 0


def train_on_images(options: argparse.Namespace, chosen: dict[str, Any]) -> int:
    """Train on a list of images, and say where the bundle lies.

    Args:
        options: of the command.
        chosen: its settings, from all places.

    Raises:
        WrongUse: an option that has no meaning for images, or a family that does not take them.
    """
    from MTMed3DCore.images2d.imagelist import ImageList
    from MTMed3DCore.images2d.training import ImageTrainSettings, train_images
    from MTMed3DCore.networks.registry import find_family

    foreign = sorted(set(chosen) - {each.name for each in fields(ImageTrainSettings)})
    if foreign:
        text = f"The setting {foreign[0]} has no meaning for images."
        raise WrongUse("training-setting", text, "Leave it out, or give a list of brain studies.")
    listed = ImageList.read(options.list)
    family = find_family(chosen["network_family"])
    if options.tasks is None:
        chosen["tasks"] = [task for task in chosen["tasks"] if task in listed.truths.tasks]
    if not chosen["tasks"]:
        text = f"{options.list} has no truth for any task of the family {family.name}."
        raise InputRefused("no-training-cases", text, "Add masks, boxes or labels, or choose another --family.")
    family.check(2, chosen["tasks"])
    settings = ImageTrainSettings.from_dict(chosen)
    with progress_bar(f"Training in {options.output}", not (options.quiet or options.json)) as progress:
        bundle = train_images(listed, options.output, settings, resume=options.resume, progress=progress)
    if options.json:
        print(json.dumps({"bundle": str(bundle.folder), "steps": settings.steps}))
    else:
        print_trained(options.list, options.output, bundle.folder, settings.fold)
    return 0


def evaluate_on_images(options: argparse.Namespace) -> int:
    """Measure a model on a list of images.

    Raises:
        WrongUse: an option that has no meaning for images.
        InputRefused: ``list-differs``, a list of other regions or labels than the model's.
    """
    from MTMed3DCore.bundles import find_bundle
    from MTMed3DCore.images2d.evaluation import evaluate_images, write_report
    from MTMed3DCore.images2d.imagelist import ImageList
    from MTMed3DCore.inference import choose_device

    if options.model is None:
        raise WrongUse("usage", "Images are measured with a model.", "Give --model.")
    for name in ("predictions", "temperature_from", "tasks"):
        if getattr(options, name):
            raise WrongUse("usage", f"--{name.replace('_', '-')} has no meaning for images.", WHERE)
    bundle = find_bundle(options.model)
    settings, listed = bundle.image_settings, ImageList.read(options.list)
    for name in ("regions", "values", "labels"):
        own, theirs = getattr(settings.truths, name), getattr(listed.truths, name)
        if own and theirs and own != theirs:
            text = f"{options.list} has the {name} {list(theirs)}, the model {bundle.name} {list(own)}."
            raise InputRefused("list-differs", text, "Measure a model on images of what it was trained for.")
    cases = listed.cases if options.fold is None else listed.fold(options.fold)[1]
    if options.cases:
        cases = tuple(case for case in cases if case.id in set(options.cases))
    if not cases:
        raise InputRefused("no-truth", f"{options.list} has no such case.", "Leave out --fold and --cases.")
    device = choose_device(options.device)
    with progress_bar(f"Evaluation in {options.output}", not (options.quiet or options.json)) as progress:
        figures, rows = evaluate_images(bundle.load(device), settings, cases, device, progress)
        model = asdict(bundle.identity)
        path = write_report(
            options.output, figures, rows, model=model, skipped=listed.skipped, overwrite=options.overwrite
        )
    if options.json:
        print(json.dumps({"evaluation": str(path), "figures": figures}, indent=1))
    else:
        title = f"{bundle.name} {bundle.version} on {len(cases)} images"
        print_table(title, ("figure", "value"), [(name, f"{value:.3f}") for name, value in figures.items()])
        print(f"Written to {options.output}. For research use only.")
    return 0


def are_images(paths: Sequence[Path]) -> bool:
    """Whether all of some paths are image files by their names."""
    return bool(paths) and all(path.suffix.lower() in SUFFIXES for path in paths)


def analyze_images(options: argparse.Namespace) -> int:
    """Run a model on image files: for each NAME, ``NAME.json``, and ``NAME_mask.png`` from a model that segments.

    Raises:
        InputRefused: ``case-missing``, an image that cannot be read.
        WrongUse: ``study-name-twice``, and what `publishing` refuses.
    """
    from MTMed3DCore.bundles import find_bundle
    from MTMed3DCore.exports.atomic import publishing
    from MTMed3DCore.images2d.prediction import document, predict, write_mask
    from MTMed3DCore.inference import choose_device

    missing = [path for path in options.cases if not path.is_file()]
    if missing:
        raise InputRefused("case-missing", f"There is no file {missing[0]}.", "Give image files.")
    stems = [path.stem for path in options.cases]
    if len(set(stems)) < len(stems):
        text = "Two images have one name, so their results would share a file."
        raise WrongUse("study-name-twice", text, "Give each another name, or analyse them apart.")
    bundle = find_bundle(options.model)
    settings = bundle.image_settings
    device = choose_device(options.device)
    network = bundle.load(device)
    answers = []
    quiet = options.quiet or options.json
    last = f"{stems[-1]}.json"
    with (
        progress_bar(f"Images into {options.output}", not quiet) as progress,
        publishing(options.output, overwrite=options.overwrite, last=last) as partial,
    ):
        for number, path in enumerate(options.cases):
            progress("infer", number / len(options.cases), path.name)
            found = predict(network, settings, path, device)
            answer = document(found, settings, path, asdict(bundle.identity))
            if found.mask is not None:
                write_mask(found.mask, settings, partial / f"{path.stem}_mask.png")
            (partial / f"{path.stem}.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
            answers.append(answer)
        progress("infer", 1.0, f"{len(answers)} images")
    if options.json:
        print(json.dumps({"images": answers}, indent=1))
    else:
        rows = [(Path(each["image"]).name, _told(each["labels"]), str(len(each["boxes"]))) for each in answers]
        print_table("Images", ("image", "labels", "boxes"), rows, left=("labels",))
        print(f"Written to {options.output}. For research use only.")
    return 0


def _told(labels: dict[str, float]) -> str:
    return ", ".join(f"{name} {chance:.2f}" for name, chance in labels.items()) or "-"
