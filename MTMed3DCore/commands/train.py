"""``mtmed3d train``: a network from labelled studies."""

from __future__ import annotations

import argparse
import json
from os import environ
from pathlib import Path
from typing import Any

from MTMed3DCore.commands.console import (
    Subparsers,
    add_json_option,
    new_parser,
    print_trained,
    progress_bar,
    read_settings,
)
from MTMed3DCore.commands.images import train_on_images
from MTMed3DCore.images2d.imagelist import is_image_list
from MTMed3DCore.networks.registry import DEFAULT_FAMILY, FAMILY_NAMES, IMAGE_FAMILY, find_family

DESCRIPTION = """\
Trains the shared encoder with all three decoders, or with some of them, on the cases of a data list. The run's folder
receives its settings, the course of the losses as a picture, checkpoints, and at the end a bundle that `mtmed3d analyze
--model RUN/bundle` takes. A run that was interrupted, in whatever way, goes on with --resume as if it had not been.
"""
EPILOG = """\
examples:
  mtmed3d datalist MICCAI_BraTS_2019_Data_Training -o brats19.json
  mtmed3d train brats19.json -o runs/fold0 --fold 0 --device cuda --precision bf16
  mtmed3d train brats19.json -o runs/segmentation --tasks segmentation
  mtmed3d train brats19.json -o runs/resformer --family resformer
  mtmed3d train isic.json -o runs/isic --family resformer --settings isic-settings.json
  mtmed3d train brats19.json -o runs/fold0 --resume
  torchrun --nproc-per-node 4 -m MTMed3DCore train brats19.json -o runs/fold0 --batch 4 --device cuda
"""
TASKS = ("segmentation", "detection", "grading")
BALANCERS = ("gradnorm", "mgda", "uncertainty", "fixed")
SMALLEST_WINDOW = 64
"""Voxels; a model is applied in windows of the side of its wide patches."""
OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("feature-size", int, "width of the network: 12, 24 or 48 (default: 24; resformer 16)"),
    ("spacing-mm", float, "working spacing in mm (default: 1)"),
    ("patch", int, "side of a training patch in voxels, a multiple of 32 (default: 96)"),
    ("batch", int, "patches a step, over all processes (default: 1)"),
    ("steps", int, "steps of the run (default: 20000)"),
    ("learning-rate", float, "highest learning rate of AdamW (default: 4e-4)"),
    ("validate-every", int, "steps between two validations, 0 for the last step alone (default: 1000)"),
    ("save-every", int, "steps between two checkpoints (default: 200)"),
    ("workers", int, "processes that cut patches, no more than there are cores (default: 2)"),
    ("seed", int, "of everything random (default: 1000)"),
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_parser(subparsers, "train", "train a network on a data list", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("list", type=Path, metavar="LIST", help="data list, made by `mtmed3d datalist`")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run, with its own settings")
    parser.add_argument(
        "--family", choices=FAMILY_NAMES, help="of networks (default: mtmed3d; resformer for a list of images)"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="train these alone (default: all of the family)")
    parser.add_argument("--fold", type=int, help="fold to validate on (default: 0)")
    parser.add_argument("--all-cases", action="store_true", help="train on every case, without validation")
    parser.add_argument("--balancing", choices=BALANCERS, help="how the tasks are weighed (default: the family's own)")
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:N or mps (default: cuda where there is one, else mps, else cpu)"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: fp32")
    parser.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        default=None,
        help="compute activations again in the backward pass: less memory, more time, the same gradients",
    )
    parser.add_argument("--no-augmentation", action="store_true", help="train on the patches as they are")
    parser.add_argument(
        "--encoder-weights", type=Path, metavar="FILE", help="start the encoder from self-supervised Swin UNETR weights"
    )
    for name, kind, text in OPTIONS:
        parser.add_argument(f"--{name}", type=kind, help=text, metavar="N")
    parser.add_argument("--settings", type=Path, metavar="JSON", help="file with settings; options go before it")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="prepared studies, shared by runs")
    add_json_option(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, and say where the bundle lies."""
    if is_image_list(options.list):
        return train_on_images(options, chosen_settings(options))
    from MTMed3DCore.datalist import DataList
    from MTMed3DCore.training.run import train
    from MTMed3DCore.training.run_folder import IDLE, names_of
    from MTMed3DCore.training.settings import CaseSettings

    listed = DataList.read(options.list)
    settings = CaseSettings.from_dict(chosen_settings(options))
    leads = environ.get("RANK", "0") == "0"  # of the processes that torchrun starts, one speaks
    shown = leads and not (options.quiet or options.json)
    with progress_bar(f"Training in {options.output}", shown) as progress:
        bundle = train(listed, options.output, settings, cache=options.cache, resume=options.resume, progress=progress)
    if not leads:
        return 0
    config = read_settings(options.output / "config.json")
    if options.json:
        print(json.dumps({"bundle": str(bundle.folder), "steps": settings.steps}))
    else:
        if "warm_start" in config:
            print(f"Encoder: {config['warm_start']['text']}")
        if idle := config.get("studies", {}).get(IDLE):
            print(f"{len(idle)} studies trained nothing: {names_of(idle)}")
        print_trained(options.list, options.output, bundle.folder, settings.fold)
    return 0


def chosen_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of a resumed run, of a file and of the options; each goes before the one named before it."""
    plain: dict[str, Any] = {}
    if options.resume and (options.output / "config.json").is_file():
        plain |= read_settings(options.output / "config.json")["settings"]
    if options.settings is not None:
        plain |= read_settings(options.settings)
    named = [
        "tasks",
        "fold",
        "balancing",
        "precision",
        "gradient_checkpointing",
        *(name.replace("-", "_") for name, _, _ in OPTIONS),
    ]
    plain |= {name: value for name in named if (value := getattr(options, name)) is not None}
    if options.family is not None:
        plain["network_family"] = options.family
    images = is_image_list(options.list)
    family = find_family(plain.get("network_family", IMAGE_FAMILY if images else DEFAULT_FAMILY))
    plain = family.training_defaults(2 if images else 3) | plain
    if "patch" in plain:
        plain["wide_patch"] = max(plain["patch"], plain.get("wide_patch", SMALLEST_WINDOW))
    if options.all_cases:
        plain["fold"] = None
    if options.no_augmentation:
        plain["augmentation"] = {}
    if options.encoder_weights is not None:
        plain["encoder_weights"] = str(options.encoder_weights.resolve())
    if options.device is not None or "device" not in plain:
        from MTMed3DCore.inference import choose_device

        plain["device"] = str(choose_device(options.device or "auto"))
    return plain
