"""Model bundles: find, list, install, verify, load, save, and import the authors' checkpoint.

A bundle is a folder in MONAI's bundle layout, with the weights as safetensors and a manifest of every file's SHA-256;
``docs/bundles.md`` describes it. A bundle is data: nothing in it is ever run.
"""

from __future__ import annotations

from MTMed3DCore.bundles.bundle import Bundle, read_bundle, verify
from MTMed3DCore.bundles.install import Installed, install_bundle
from MTMed3DCore.bundles.published import import_published, network_from_published
from MTMed3DCore.bundles.search import STARTER, bundle_roots, find_bundle, list_bundles
from MTMed3DCore.bundles.writing import record_calibration, rewrite_section, save_bundle

__all__ = [
    "STARTER",
    "Bundle",
    "Installed",
    "bundle_roots",
    "find_bundle",
    "import_published",
    "install_bundle",
    "list_bundles",
    "network_from_published",
    "read_bundle",
    "record_calibration",
    "rewrite_section",
    "save_bundle",
    "verify",
]
