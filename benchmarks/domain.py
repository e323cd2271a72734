"""What the out-of-domain checks say of real studies, of wrong ones, and of synthetic ones as they should be.

    python benchmarks/domain.py OUT [--cases FOLDER ...] [--model starter] [--synthetic 200] [--wrong]
                                [--statistics-only]

``--cases`` and ``--wrong`` run the whole analysis with the mirror image, or with ``--statistics-only`` none of the
network, as if no tumour had been found; ``--synthetic`` takes the statistics of that
many studies of every family in turn, with the true tumour in place of a segmented one. Rows are kept in
``OUT/domain.json`` as they come, so that a run that was interrupted goes on; ``OUT/domain.md`` holds the tables.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from MTMed3DCore.bundles import find_bundle
from MTMed3DCore.domain.study import check_study, statistics
from MTMed3DCore.domain.uncertainty import mean_entropy, mirror_disagreement
from MTMed3DCore.errors import MTMed3DError
from MTMed3DCore.inference import analyze, computing
from MTMed3DCore.preparation import prepare
from MTMed3DCore.study import Study
from MTMed3DCore.synthetic import make_study
from MTMed3DCore.training.calibration import as_prepared
from Testing.wrong_studies import all_wrong

FAMILIES = ("default", "varied", "held_out")
FIRST_SEED = 40_000_000
WRONG_SEED = 45_000_007


def analysed(source: Callable[[], Study], model: Any, network: Any) -> dict[str, Any]:
    """Every measurement and warning of one study, or why it was refused."""
    try:
        study = source()
        with _Probe() as probe:
            findings = analyze(study, model, "cpu", network=network, check_uncertainty=True)
    except MTMed3DError as error:
        return {"refused": f"{error.code}: {error.text}"}
    return {
        "warnings": [notice.code for notice in findings.warnings],
        "values": {check.code: check.value for check in findings.domain},
        "outside": [check.code for check in findings.domain if not check.within],
        "entropy": probe.entropy,
        "mirror_s": probe.mirror_s,
        "timing_s": dict(findings.timing_s),
        "whole_tumour_ml": findings.volumes_ml["whole_tumour"],
    }


def measured(source: Callable[[], Study]) -> dict[str, Any]:
    """The statistics of one study, and the warnings of its reading and preparation."""
    try:
        study = source()
        prepared = prepare(study, spacing_mm=2.0)
    except MTMed3DError as error:
        return {"refused": f"{error.code}: {error.text}"}
    checks = check_study(study, prepared, np.zeros((3, *prepared.grid.shape), np.float32), 0.5)
    return {
        "warnings": [notice.code for notice in (*study.warnings, *prepared.warnings)],
        "values": {check.code: check.value for check in checks},
        "outside": [check.code for check in checks if not check.within],
    }


class _Probe:
    """Takes the entropy and the seconds of the mirror image while an analysis runs."""

    entropy: float | None = None
    mirror_s = 0.0

    def __enter__(self) -> _Probe:
        def timed(network: Any, prepared: Any, settings: Any, raw: Any, *more: Any, **others: Any) -> float | None:
            self.entropy = mean_entropy(raw.regions, settings.whole_tumour_threshold)
            began = time.process_time()
            result = mirror_disagreement(network, prepared, settings, raw, *more, **others)
            self.mirror_s = time.process_time() - began
            return result

        computing.mirror_disagreement = timed
        return self

    def __exit__(self, *error: object) -> None:
        computing.mirror_disagreement = mirror_disagreement


def synthetic(number: int) -> dict[str, Any]:
    """The statistics of one synthetic study."""
    family = FAMILIES[number % len(FAMILIES)]
    study = make_study(FIRST_SEED + number, family=family)
    prepared = as_prepared(study)
    checks = statistics(prepared, study.labels.numpy() > 0)
    return {
        "family": family,
        "values": {check.code: check.value for check in checks},
        "outside": [check.code for check in checks if not check.within],
        "ranges": {check.code: check.expected for check in checks},
    }


def tables(rows: dict[str, dict[str, Any]]) -> str:
    """The synthetic studies by statistic, then every other study by name."""
    made = [row for row in rows.values() if "family" in row]
    parts = [_synthetic_table(made)] if made else []
    others = {name: row for name, row in rows.items() if "family" not in row}
    codes = list(dict.fromkeys(code for row in others.values() for code in row.get("values", {})))
    lines = ["| study | says | " + " | ".join(codes) + " | entropy |", "|---|---|" + "---|" * (len(codes) + 1)]
    for name, row in others.items():
        said = f"refused: {row['refused']}" if "refused" in row else ", ".join(_said(row)) or "nothing"
        cells = [_number(row.get("values", {}).get(code)) for code in codes]
        lines.append(f"| {name} | {said} | " + " | ".join(cells) + f" | {_number(row.get('entropy'))} |")
    return "\n\n".join([*parts, *(["\n".join(lines)] if others else [])]) + "\n"


def _synthetic_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| statistic | expected | studies | least | 1 % | median | 99 % | greatest | false warnings |"]
    lines.append("|" + "---|" * 9)
    for code in dict.fromkeys(code for row in rows for code in row["values"]):
        values = np.array([row["values"][code] for row in rows if code in row["values"]])
        cuts = " | ".join(_number(cut) for cut in np.percentile(values, (0, 1, 50, 99, 100)))
        false = sum(code in row["outside"] for row in rows)
        expected = next(row["ranges"][code] for row in rows if code in row["ranges"])
        lines.append(f"| `{code}` | {expected} | {len(values)} | {cuts} | {false} |")
    return "\n".join(lines)


def _said(row: dict[str, Any]) -> list[str]:
    """What lies outside its range, then the other warnings about the input in brackets."""
    about = ("sequence-", "contrast-", "registration-", "not-skull-stripped", "brain-not-covered")
    others = [code for code in row["warnings"] if code.startswith(about) and code not in row["values"]]
    return [*row["outside"], *(f"({code})" for code in others)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def kept(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of an earlier run."""
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    return rows


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--cases", nargs="*", type=Path, default=[])
    parser.add_argument("--model", default="starter")
    parser.add_argument("--synthetic", type=int, default=0)
    parser.add_argument("--wrong", action="store_true")
    parser.add_argument("--statistics-only", action="store_true")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "domain.json"
    rows = kept(path)

    def add(work: Iterable[tuple[str, Callable[[], dict[str, Any]]]]) -> None:
        for name, measure in work:
            if name not in rows:
                rows[name] = measure()
                path.write_text(json.dumps(rows, indent=1))
                print(name, rows[name].get("outside", rows[name]), flush=True)

    add((f"synthetic {number}", partial(synthetic, number)) for number in range(options.synthetic))
    sources = {str(Path(*case.parts[-2:])): partial(Study.read, case) for case in options.cases}
    sources |= all_wrong(WRONG_SEED) if options.wrong else {}
    if options.statistics_only:
        add((name, partial(measured, source)) for name, source in sources.items())
    elif sources:
        bundle = find_bundle(options.model)
        network = bundle.load("cpu")
        add((name, partial(analysed, source, bundle, network)) for name, source in sources.items())
    (options.output / "domain.md").write_text(tables(rows))
    print(tables(rows))


if __name__ == "__main__":
    main()
