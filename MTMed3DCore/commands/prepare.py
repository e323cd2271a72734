"""``mtmed3d prepare``: the four sequences of one study, registered and skull-stripped, and the record of how."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.commands.clinical import (
    add_file_options,
    add_mask_option,
    add_preparation_option,
    add_series_option,
    given_files,
    named_series,
    read_preparations,
    refuse_existing,
)
from MTMed3DCore.commands.console import Subparsers, add_output_options, new_parser, progress_bar
from MTMed3DCore.errors import WrongUse
from MTMed3DCore.preparation.kinds import NORMALISATIONS

if TYPE_CHECKING:
    from MTMed3DCore.preparation import PreparedStudy
    from MTMed3DCore.progress import Progress
    from MTMed3DCore.study import Study

DESCRIPTION = """\
Brings the four sequences of one study together, as `mtmed3d analyze` does before a model sees them: T1, T2 and FLAIR
registered to the T1ce, the brain outlined, everything on one grid with one interpolation. CASE is a folder with T1,
T1ce, T2 and FLAIR, or one patient's DICOM study; several folders are one DICOM study.
"""
EPILOG = """\
examples:
  mtmed3d prepare case/ -o prepared/
  mtmed3d prepare --t1 a.nii.gz --t1ce b.nii.gz --t2 c.nii.gz --flair d.nii.gz -o prepared/
  mtmed3d prepare dicom/ -o prepared/ --series t1ce=7
  mtmed3d analyze case/ -o results/ --preparation prepared/      with a transform or the mask corrected

written: t1, t1ce, t2, flair (.nii.gz, skull-stripped, on the working grid) with prepared_mask.nii.gz, their brain mask;
brain_mask.nii.gz on the T1ce grid as it came in; *_to_t1ce.tfm, transforms for ITK and 3D Slicer; preparation.json, the
record; quality.png, the mask on the T1ce and each sequence against it. For research use only.
"""
SPACING_MM = 1.0
WORKING_MASK = "prepared_mask.nii.gz"
"""The brain mask on the working grid; the one on the T1ce grid is `record.MASK`."""
QUALITY = "quality.png"


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_parser(
        subparsers, "prepare", "register a study and strip its skull", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument("cases", nargs="*", type=Path, metavar="CASE", help="folder of a study, or folders of DICOM")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the results")
    add_file_options(parser)
    group = parser.add_argument_group("preparation")
    add_series_option(group)
    add_mask_option(group)
    add_preparation_option(group)
    group.add_argument(
        "--spacing", type=float, default=SPACING_MM, metavar="MM", help="of the working grid (default: 1)"
    )
    group.add_argument(
        "--normalisation",
        choices=("none", *NORMALISATIONS),
        default="none",
        help="of the written intensities (default: none, as the scanner made them)",
    )
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prepare the study; returns 0, also where something about it is doubtful, which is said."""
    files = given_files(options)
    if not files and not options.cases:
        raise WrongUse("usage", "No study is given.", "Give a CASE folder, or --t1 --t1ce --t2 --flair.")
    if files and options.series:
        raise WrongUse("usage", "--series belongs to a CASE folder of DICOM files.", "Leave it out.")
    if not options.spacing > 0:
        raise WrongUse("usage", f"--spacing is {options.spacing:g} mm.", "Give a length above 0.")
    refuse_existing(options.output, options.overwrite)
    with progress_bar("Preparing", not (options.json or options.quiet)) as progress:
        study, prepared = prepare_study(options, files, progress)
        write_prepared(study, prepared, options.output, overwrite=options.overwrite, progress=progress)
    if options.json:
        print(json.dumps(_document(study, prepared, options.output), indent=2))
    else:
        _print(study, prepared, options.output)
    return 0


def prepare_study(
    options: argparse.Namespace, files: dict[str, Path], progress: Progress
) -> tuple[Study, PreparedStudy]:
    """Read and prepare what the options name.

    Raises:
        InputRefused: as `Study.read`, `read_mask` and `prepare` do.
    """
    from MTMed3DCore.preparation import prepare
    from MTMed3DCore.study import Study

    study = Study.read(options.cases or None, **files, series=named_series(options), progress=progress)
    mask, earlier = read_preparations(options, study)
    normalisation = None if options.normalisation == "none" else options.normalisation
    # A sequence that could not be registered is what the transforms and the picture are looked at for.
    prepared = prepare(
        study,
        spacing_mm=options.spacing,
        normalisation=normalisation,
        progress=progress,
        mask=mask,
        earlier=earlier,
        keep_failed=True,
    )
    return study, prepared


def write_prepared(study: Study, prepared: PreparedStudy, folder: Path, *, overwrite: bool, progress: Progress) -> None:
    """Write the prepared sequences, masks, record and picture into a folder, which appears complete or not at all.

    Raises:
        WrongUse, OutOfResources: the folder cannot take the files, see `atomic.publishing`.
    """
    import numpy as np

    from MTMed3DCore.exports.atomic import publishing
    from MTMed3DCore.exports.nifti import save_image, save_labels
    from MTMed3DCore.exports.quality import write_quality
    from MTMed3DCore.preparation.record import RECORD, write_preparation
    from MTMed3DCore.sequences import SEQUENCES
    from MTMed3DCore.volume import Volume

    assert prepared.record is not None
    with publishing(folder, overwrite=overwrite, last=RECORD) as partial:
        for index, name in enumerate(SEQUENCES):
            progress("write", 0.15 * index, f"Writing {name}.nii.gz")
            save_image(Volume(prepared.image[index], prepared.grid), partial / f"{name}.nii.gz")
        save_labels(prepared.brain.astype(np.uint8), prepared.grid, partial / WORKING_MASK, "brain mask")
        progress("write", 0.6, "Drawing the quality")
        write_quality(study, prepared, partial / QUALITY)
        progress("write", 0.9, "Writing the record")
        write_preparation(prepared.record, partial)
    progress("write", 1.0, "Written")


def _document(study: Study, prepared: PreparedStudy, folder: Path) -> dict[str, Any]:
    assert prepared.record is not None
    notices = [{"code": each.code, "text": each.text} for each in (*study.warnings, *prepared.warnings)]
    return {"id": study.id, "output": str(folder), "preparation": prepared.record.document(), "warnings": notices}


def _print(study: Study, prepared: PreparedStudy, folder: Path) -> None:
    """What was done, how sure it is, where it lies, and that it is for research use only."""
    from MTMed3DCore.findings import RESEARCH_USE
    from MTMed3DCore.preparation.words import mask_in_words, registration_in_words
    from MTMed3DCore.sequences import NAMES

    record = prepared.record
    assert record is not None
    print(f"Study {study.id}\nbrain mask: {mask_in_words(record)}")
    for each in record.registrations:
        print(f"{NAMES[each.sequence]} on T1ce: {registration_in_words(each)}")
    for notice in (*study.warnings, *prepared.warnings):
        print(f"warning: {notice.text}")
    print(f"Results in {folder}\n{RESEARCH_USE}")
