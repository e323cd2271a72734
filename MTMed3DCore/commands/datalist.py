"""``mtmed3d datalist``: which labelled studies a folder holds."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from MTMed3DCore.commands.console import Subparsers, add_output_options, new_parser, print_table, progress_bar
from MTMed3DCore.commands.images import list_images
from MTMed3DCore.errors import WrongUse

if TYPE_CHECKING:
    from MTMed3DCore.datalist import DataList

SHOWN = 10
"""Skipped files that are printed; the list holds all."""
DESCRIPTION = """\
Finds labelled studies in the layouts of BraTS 2013 to 2023 and of the Medical Segmentation Decathlon, and cases that
were exported from 3D Slicer after review. Boxes are taken from the label maps, one for each lesion. Grades come from
HGG and LGG folders, name_mapping.csv or the published annotation file; what is not known is left open. A reader's
grade stands over all of these, and a case that a reader has corrected over the original with the same images. The
folds keep a patient's studies together and are balanced by grade.
"""
EPILOG = """\
examples:
  mtmed3d datalist MICCAI_BraTS_2019_Data_Training -o brats19.json
  mtmed3d datalist BraTS2020_TrainingData reviewed/ -o both.json --folds 5 --seed 1
  mtmed3d datalist ISIC-2017 -o isic.json --images
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_parser(
        subparsers, "datalist", "list labelled studies, with boxes and folds", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="folder with labelled studies")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="LIST", help="file to write (.json)")
    parser.add_argument("--folds", type=int, default=5, help="number of folds, 0 for none (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other folds (default: 0)")
    parser.add_argument(
        "--annotation", type=Path, metavar="JSON", help="the published data_annotation.json, for grades"
    )
    parser.add_argument("--images", action="store_true", help="the folder holds 2D images with masks, boxes or labels")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make and write the list, and say what is in it."""
    from MTMed3DCore.datalist import build_datalist

    if options.output.exists() and not options.overwrite:
        raise WrongUse("output-exists", f"{options.output} exists.", "Choose another file, or give --overwrite.")
    if options.images:
        return list_images(options)
    with progress_bar("Looking for labelled studies", not options.quiet) as progress:
        listed = build_datalist(
            options.folders,
            folds=options.folds,
            seed=options.seed,
            annotation=options.annotation,
            progress=progress,
        )
    listed.write(options.output)
    if options.json:
        print(json.dumps(summary(listed) | {"list": str(options.output)}, indent=1))
    else:
        show(listed, options.output)
    return 0


def summary(listed: DataList) -> dict[str, object]:
    """Counts of a list."""
    return {
        "cases": len(listed.cases),
        "patients": len({case.patient for case in listed.cases}),
        "labelled": sum(case.label is not None for case in listed.cases),
        "grades": dict(Counter(case.grade or "unknown" for case in listed.cases)),
        "lesions": sum(len(case.boxes or ()) for case in listed.cases),
        "skipped": len(listed.skipped),
        "notes": list(listed.notes),
    }


def show(listed: DataList, path: Path) -> None:
    """Print a list's counts by fold, its notes, and what was skipped."""
    rows = []
    for fold in range(listed.folds) if listed.folds else [None]:
        cases = [case for case in listed.cases if case.fold == fold]
        grades = Counter(case.grade for case in cases)
        row = [len(cases), len({case.patient for case in cases}), grades["HGG"], grades["LGG"], grades[None]]
        lesions = sum(len(case.boxes or ()) for case in cases)
        rows.append(["all" if fold is None else str(fold), *(str(n) for n in [*row, lesions])])
    print_table(f"{len(listed.cases)} cases", ("fold", "cases", "patients", "HGG", "LGG", "no grade", "lesions"), rows)
    for note in listed.notes:
        print(f"note: {note}")
    for each in listed.skipped[:SHOWN]:
        print(f"skipped: {each.path}: {each.reason}")
    if len(listed.skipped) > SHOWN:
        print(f"skipped: {len(listed.skipped) - SHOWN} more; {path} names all of them.")
    print(f"Written to {path}")
