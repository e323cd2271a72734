"""A compiled network gives what it gives uncompiled; one that cannot be compiled is used as it is, and that is said.

No code is generated here: torch's backend ``aot_eager`` traces and lowers as ``inductor`` does, and then computes with
the same kernels as always.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pipeline import BrightTumourNetwork, bundle, study
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from MTMed3DCore.bundles import find_bundle
from MTMed3DCore.errors import Cancelled
from MTMed3DCore.inference import analyze, compiled, computing, run_network
from MTMed3DCore.inference.compiled import compile_passes, even_batch
from MTMed3DCore.synthetic import make_study
from MTMed3DCore.training.calibration import as_prepared

CPU = torch.device("cpu")
SIDE = 64


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing compiled before, and a cache folder of the test's own."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    monkeypatch.setattr(compiled, "SLOW_ON", ())
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_every_pass_is_one_graph_and_gives_the_same_numbers() -> None:
    network = find_bundle("starter").load()
    x = torch.randn(1, 4, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        levels = network.encode(x)
        logits, detection = network.segment(x, levels), network.detect(levels)
        compile_passes(network, CPU, "aot_eager")  # which fails where a pass is more than one graph
        again = network.encode(x)
        assert all(torch.equal(a, b) for a, b in zip(levels, again, strict=True))
        # The convolutions are direct ones here, and by Winograd's filters there.
        torch.testing.assert_close(network.segment(x, again), logits, atol=1e-4, rtol=0)
        for (scores, deltas), (others, other_deltas) in zip(network.detect(again), detection, strict=True):
            torch.testing.assert_close(scores, others, atol=1e-4, rtol=0)
            torch.testing.assert_close(deltas, other_deltas, atol=1e-4, rtol=0)


def test_a_study_seen_in_the_mirror_too_has_the_same_regions_boxes_and_grade() -> None:
    network, settings = find_bundle("starter").load(), replace(find_bundle("starter").settings, mirrored=True)
    prepared = as_prepared(make_study(5, (40, 48, 40), 4.0))
    plain = run_network(network, prepared, settings)
    compile_passes(network, CPU, "aot_eager")
    again = run_network(network, prepared, settings)
    np.testing.assert_allclose(again.regions, plain.regions, atol=1e-4)
    np.testing.assert_allclose(again.boxes, plain.boxes, atol=1e-2)
    assert again.hgg_probability == pytest.approx(plain.hgg_probability, abs=1e-4)


def test_what_was_compiled_before_is_not_compiled_again() -> None:
    network = BrightTumourNetwork()
    compile_passes(network, CPU, "aot_eager")
    encode = network.encode
    compile_passes(network, CPU, "aot_eager")
    assert network.encode is encode


class Opaque(BrightTumourNetwork):
    """Asks for a value in the middle, which no graph can hold."""

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        return super().encode(x) if float(x.abs().max()) >= 0 else []


def test_a_network_that_cannot_be_compiled_is_used_as_it_is_and_a_notice_says_so() -> None:
    case, network = study(), Opaque()
    plain = analyze(case, bundle(), device="cpu", network=Opaque())
    findings = analyze(case, bundle(), device="cpu", network=network, compiled=True)
    (notice,) = [each for each in findings.warnings if each.code == "not-compiled"]
    assert "with the same result" in notice.text
    assert np.array_equal(findings.labels, plain.labels)
    assert "encode" not in vars(network)


def warned(network: BrightTumourNetwork, **options: Any) -> list[str]:
    """What the findings of a study that was to be compiled warn of."""
    findings = analyze(study(), bundle(), device="cpu", network=network, compiled=True, **options)
    return [each.code for each in findings.warnings]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The networks that are compiled from now on."""
    seen: list[Any] = []
    monkeypatch.setattr(compiled, "compile_passes", lambda *each: (seen.append(each[0]), compile_passes(*each)))
    return seen


def test_a_compilation_that_failed_is_not_tried_again_and_every_study_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    network, tried = Opaque(), counted(monkeypatch)
    assert ["not-compiled" in warned(network) for _ in range(3)] == [True] * 3
    assert tried == [network]


def test_nothing_of_a_failed_run_is_held_while_the_next_one_computes() -> None:
    handled = []

    class Watched(Opaque):
        def segment(self, x: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
            handled.append(sys.exc_info()[1])
            return super().segment(x, features)

    assert "not-compiled" in warned(Watched())
    assert set(handled) == {None}


def test_a_recorded_pass_too_large_for_memory_is_forgotten_before_anything_else_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reset, run, forgotten = torch._dynamo.reset, computing.run_network, []

    def short(network: Any, *rest: Any, **more: Any) -> Any:
        if "encode" in vars(network):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert forgotten, "what torch has compiled holds the memory"
        return run(network, *rest, **more)

    monkeypatch.setattr(computing, "run_network", short)
    monkeypatch.setattr(torch._dynamo, "reset", lambda: (forgotten.append(True), reset()))
    network, tried = BrightTumourNetwork(), counted(monkeypatch)
    for _ in range(2):
        codes = warned(network)
        assert "not-compiled" in codes
        assert not [code for code in codes if code.startswith("memory")], "the passes as they are had memory enough"
    assert len(tried) == 1


def test_on_a_cpu_the_network_is_used_as_it_is_and_the_notice_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "SLOW_ON", ("cpu",))
    network, tried = BrightTumourNetwork(), counted(monkeypatch)
    findings = analyze(study(), bundle(), device="cpu", network=network, compiled=True)
    (notice,) = [each for each in findings.warnings if each.code == "not-compiled"]
    assert "cpu" in notice.text
    assert "on a GPU" in notice.text
    assert not tried


@pytest.mark.parametrize("named", [True, False])
def test_what_is_compiled_lies_in_the_users_cache_unless_another_folder_is_named(
    named: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MTMED3D_CACHE", str(tmp_path / "cache"))
    if not named:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # as torch does when nobody has
    compile_passes(BrightTumourNetwork(), CPU, "aot_eager")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path if named else tmp_path / "cache" / "compiled")


def test_an_error_that_is_not_the_compilers_is_not_taken_for_one() -> None:
    def cancelling(stage: str, fraction: float, text: str) -> None:
        if stage == "infer":
            raise Cancelled

    with pytest.raises(Cancelled):
        analyze(study(), bundle(), device="cpu", network=BrightTumourNetwork(), compiled=True, progress=cancelling)


def test_a_quick_analysis_is_not_compiled() -> None:
    network = BrightTumourNetwork()
    analyze(study(), bundle(), device="cpu", network=network, compiled=True, mode="quick")
    assert "encode" not in vars(network)


@pytest.mark.parametrize(("windows", "batch"), [(1, 1), (7, 1), (8, 4), (9, 3), (12, 4), (18, 3)])
def test_windows_go_in_batches_without_a_rest(windows: int, batch: int) -> None:
    assert even_batch(windows, 4) == batch
