"""The bundle that a run or a federation leaves, and what its card says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import MTMed3DCore
from MTMed3DCore.bundles import Bundle, save_bundle
from MTMed3DCore.networks import TaskNetwork, find_family
from MTMed3DCore.training.run_folder import BUNDLE, Listed
from MTMed3DCore.training.settings import TrainSettings

if TYPE_CHECKING:
    from MTMed3DCore.images2d.settings import ImageSettings
    from MTMed3DCore.inference import InferenceSettings


def write_bundle(
    folder: Path,
    network: TaskNetwork,
    settings: TrainSettings,
    inference: InferenceSettings | ImageSettings,
    *,
    learned: str,
    more: str,
    trained_on: str,
    trained_patients: Iterable[str] = (),
) -> Bundle:
    """Write a trained network as the bundle in the folder of its run.

    Args:
        folder: of the run; the bundle has its name, with a dash for what a bundle's name cannot hold.
        network: with its final weights.
        settings: of the training.
        inference: how it is applied.
        learned: for the card, how or on what it was trained: the words after "trained with MTMed3D and its version".
        more: what the card says after the tasks.
        trained_on: one sentence, shown with every result.
        trained_patients: as `save_bundle`.
    """
    family = find_family(settings.network_family)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-")[:64] or "trained"
    card = (
        f"# {name}\n\n**For research use only.** A network of the family {family.name} ({family.reference}), "
        f"trained with MTMed3D {MTMed3DCore.__version__} {learned}; tasks: {', '.join(settings.tasks)}{more}\n"
    )
    return save_bundle(
        folder / BUNDLE,
        network.cpu().eval(),
        inference,
        name=name,
        version="1.0.0",
        trained_on=trained_on,
        card=card,
        trained_patients=trained_patients,
        overwrite=True,
    )


def of_list(listed: Listed, cases: Iterable[Any], kind: str) -> str:
    """So many cases of a list, for a card: ``on 12 studies of a list (SHA-256 ...)``."""
    return f"on {len(list(cases))} {kind} of a list (SHA-256 {listed.sha256[:12] or 'unknown'})"
