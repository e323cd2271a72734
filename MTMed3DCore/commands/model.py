"""``mtmed3d model``: list, describe, verify, install and import model bundles."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.commands.console import Subparsers, add_json_option, new_parser, print_table, progress_bar

if TYPE_CHECKING:
    from MTMed3DCore.bundles import Bundle

EPILOG = """\
examples:
  mtmed3d model list
  mtmed3d model info starter
  mtmed3d model verify starter
  mtmed3d model install https://example.org/glioma-2.zip --sha256 9f86d0...
  mtmed3d model import-published checkpoint.pt -o models/theirs --order flair,t1,t1ce,t2
"""
INSTALL_DESCRIPTION = """\
Puts a model among your own. SOURCE is an https address or a file, a zip or a tar of a bundle, or a bundle's folder. A
download that was cut goes on where it stopped when the command is run again. Give --sha256 from a place other than the
archive's own: without it only damage is noticed, not another maker. Nothing in a bundle is ever run.
"""
IMPORT_DESCRIPTION = """\
Turns a checkpoint that the published MTMed3D code wrote into a bundle. The file is read as tensors only: code in it is
refused, never run. The authors do not state the order of their four input channels. Say it with --order if you know it;
otherwise t1,t1ce,t2,flair is assumed, and the bundle and every result made with it say so.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command and its own commands."""
    parser = new_parser(subparsers, "model", "list, describe, verify, install and import models", epilog=EPILOG)
    actions = parser.add_subparsers(title="what to do", metavar="ACTION", required=True)

    listing = new_parser(actions, "list", "the models on this machine")
    listing.set_defaults(run=run_list)

    info = new_parser(actions, "info", "what a model is, was trained on, and how it is applied")
    info.set_defaults(run=run_info)

    check = new_parser(actions, "verify", "check every file of a model against its recorded SHA-256")
    check.set_defaults(run=run_verify)
    for action in (info, check):
        action.add_argument("model", metavar="MODEL", help="name of a model, or a bundle's folder")

    install = new_parser(actions, "install", "put a model among your own", description=INSTALL_DESCRIPTION)
    install.add_argument("source", metavar="SOURCE", help="https address, .zip, .tar, .tar.gz, or a bundle's folder")
    install.add_argument("--sha256", metavar="HASH", help="expected SHA-256 of the archive; any other is refused")
    install.add_argument("--size", type=int, metavar="BYTES", help="expected size of the archive")
    install.add_argument("--name", help="name of the model here (default: the bundle's own)")
    install.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    install.set_defaults(run=run_install)

    published = new_parser(
        actions, "import-published", "make a bundle from the authors' checkpoint", description=IMPORT_DESCRIPTION
    )
    published.add_argument("file", type=Path, metavar="FILE", help="checkpoint: .pt, .pth or .safetensors")
    published.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder of the new bundle"
    )
    published.add_argument("--name", help="name of the model (default: the folder's name)")
    published.add_argument("--order", metavar="A,B,C,D", help="input channels, for example t1,t1ce,t2,flair")
    published.add_argument("--overwrite", action="store_true", help="replace a bundle that lies in the folder")
    install.add_argument("--overwrite", action="store_true", help="replace your model of the same name")
    published.set_defaults(run=run_import)

    for action in (listing, info, check, install, published):
        add_json_option(action)


def run_list(options: argparse.Namespace) -> int:
    """Print every model that a name finds."""
    from MTMed3DCore.bundles import bundle_roots, list_bundles

    bundles = list_bundles()
    if options.json:
        print(json.dumps({"models": [_summary(bundle) for bundle in bundles]}, indent=2))
    elif bundles:
        rows = [(b.name, b.version, b.family, f"{b.size / 1e6:.1f} MB", str(b.folder)) for b in bundles]
        print_table("Models", ("name", "version", "family", "weights", "folder"), rows)
    else:
        print("No models found. Looked in:", *bundle_roots(), sep="\n  ")
    return 0


def run_info(options: argparse.Namespace) -> int:
    """Print what a model's bundle says of it."""
    from MTMed3DCore.bundles import find_bundle

    bundle = find_bundle(options.model)
    summary = _summary(bundle)
    if options.json:
        print(json.dumps(summary, indent=2))
        return 0
    for key in ("name", "version", "family", "trained_on", "sha256", "bytes", "folder"):
        print(f"{key:<12} {summary[key]}")
    for title in ("network", "settings"):
        print(f"{title}:")
        for key, value in summary[title].items():
            print(f"  {key:<22} {value}")
    print(bundle.metadata.get("intended_use", ""))
    return 0


def run_verify(options: argparse.Namespace) -> int:
    """Hash every file; a changed, missing or added one is refused with exit code 4."""
    from MTMed3DCore.bundles import find_bundle, verify

    bundle = find_bundle(options.model)
    hashes = verify(bundle)
    if options.json:
        print(json.dumps({"model": bundle.name, "verified": hashes}, indent=2))
    else:
        print(f"{bundle.name} {bundle.version}: all {len(hashes)} files are as recorded, in {bundle.folder}")
    return 0


def run_install(options: argparse.Namespace) -> int:
    """Install a model among the user's own."""
    from MTMed3DCore.bundles import install_bundle

    with progress_bar(f"Model {options.source.split('?')[0]}", not (options.json or options.quiet)) as progress:
        installed = install_bundle(
            options.source,
            sha256=options.sha256,
            size=options.size,
            name=options.name,
            overwrite=options.overwrite,
            progress=progress,
        )
    bundle = installed.bundle
    if options.json:
        print(json.dumps({**_summary(bundle), "archive_sha256": installed.sha256}, indent=2))
        return 0
    print(f"Installed {bundle.name} {bundle.version} into {bundle.folder}")
    if installed.sha256 and not options.sha256:
        print(f"The archive has SHA-256 {installed.sha256}, which was NOT compared with anything; see --sha256.")
    print(f"Use it with: mtmed3d analyze CASE -o OUT --model {bundle.folder.name}")
    return 0


def run_import(options: argparse.Namespace) -> int:
    """Make a bundle from the authors' checkpoint."""
    from MTMed3DCore.bundles import import_published

    order = [part.strip().lower() for part in options.order.split(",")] if options.order else None
    bundle = import_published(options.file, options.output, order, name=options.name, overwrite=options.overwrite)
    if options.json:
        print(json.dumps(_summary(bundle), indent=2))
        return 0
    print(f"Imported as {bundle.name} into {bundle.folder}")
    if bundle.settings.channel_order_assumed:
        channels = ",".join(bundle.settings.channel_order)
        print(f"The order of the input channels was ASSUMED to be {channels}; give --order if you know it.")
    print(f"Use it with: mtmed3d analyze CASE -o OUT --model {bundle.folder}")
    return 0


def _summary(bundle: Bundle) -> dict[str, Any]:
    return {
        **asdict(bundle.identity),
        "folder": str(bundle.folder),
        "bytes": bundle.size,
        "family": bundle.family,
        "network": bundle.network_config,
        "settings": bundle.applied.to_dict(),
    }
