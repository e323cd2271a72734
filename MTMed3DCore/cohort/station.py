"""One process at work on a cohort: a model that is loaded once, and a few studies on their way through it.

While one study is computed, the next one is read and the last one written. Computing and writing have one thread each:
a second computing thread would only take cores and memory from the first, and matplotlib draws in one thread at a time.
So at most `CohortSettings.in_hand` studies are in memory, however many there are in all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from threading import BoundedSemaphore
from time import perf_counter
from typing import Any

from MTMed3DCore import __version__
from MTMed3DCore.allocator import give_back_freed_memory
from MTMed3DCore.bundles import Bundle, find_bundle
from MTMed3DCore.cohort.folder import THUMBNAIL, CohortFolder, StudyPlace
from MTMed3DCore.cohort.outcome import Outcome, Refusal
from MTMed3DCore.cohort.settings import CohortSettings, fingerprint, known_inputs, study_key
from MTMed3DCore.cohort.studies import Request
from MTMed3DCore.cohort.thumbnail import thumbnail
from MTMed3DCore.datalist.case import Case, ImageFile
from MTMed3DCore.errors import Cancelled, ModelRefused
from MTMed3DCore.findings import Findings
from MTMed3DCore.inference import analyze
from MTMed3DCore.inference.computing import load_named
from MTMed3DCore.progress import Progress
from MTMed3DCore.study import Study
from MTMed3DCore.training.examples import read_images
from MTMed3DCore.worker.cancelling import Stop
from MTMed3DCore.worker.failures import as_refusal

FATAL = ("disk-full", "package-missing")
"""Refusals that every further study would meet as well: going on would compute what cannot be written."""
Tell = Callable[[str, str, float, str], None]
"""Told the study's name, then what `MTMed3DCore.progress.Progress` is told; from several threads."""


def nobody(name: str, stage: str, fraction: float, text: str) -> None:
    """The listener of callers that want none."""


class Station:
    """One process at work on a cohort.

    Args:
        folder: the cohort's, claimed by whoever leads the run.
        settings: what is asked of every study.
        device: in place of that of the settings, where a process has one of its own.
        tell: hears of every step.

    Raises:
        ModelRefused: no such model, a damaged one, ``model-differs`` or ``version-differs``.
        WrongUse: an unknown or absent device.
    """

    def __init__(
        self, folder: CohortFolder, settings: CohortSettings, device: str | None = None, tell: Tell = nobody
    ) -> None:
        self._folder, self._settings, self._tell = folder, settings, tell
        self._bundle = _bundle_of(settings)
        self._depends_on = fingerprint(settings, self._bundle)
        self._network, self._device, self._notices = load_named(self._bundle, device or settings.device)
        self._room = BoundedSemaphore(settings.in_hand)
        self._compute = ThreadPoolExecutor(1, "compute")
        self._write = ThreadPoolExecutor(1, "write")
        self._stop = Stop()

    def analyse(self, request: Request) -> Outcome:
        """Read, analyse and commit one study, unless it is done; may be called from several threads.

        Returns:
            The outcome; a refusal is recorded in the folder as well.

        Raises:
            Cancelled: after `stop`. A study that had been computed by then is committed nevertheless.
        """
        began = perf_counter()
        place = self._folder.place(request.name)
        try:
            with self._room:
                self._stop.check()
                found = self._result(request, place)
            text = "" if found is None else _in_words(found)
            return Outcome(request.name, kept=found is None, seconds=perf_counter() - began, text=text)
        except Cancelled:
            raise
        except Exception as error:  # whatever it is, the other studies go on
            refusal = Refusal.of(as_refusal(error, self._device))
            if refusal.code not in FATAL:
                place.fail(refusal)
            return Outcome(request.name, refusal, fatal=refusal.code in FATAL, seconds=perf_counter() - began)

    def stop(self) -> None:
        """Let every study stop that is not computed yet, at the next layer of the network at the latest."""
        self._stop.wish()

    def close(self) -> None:
        """Wait for what is being written, and end the threads."""
        self._compute.shutdown(cancel_futures=True)
        self._write.shutdown()

    def _result(self, request: Request, place: StudyPlace) -> Findings | None:
        """The findings of a study, committed; None where they were there already."""
        overwrite, run = self._settings.overwrite, self._settings.run
        inputs = known_inputs(request, place.record().get("inputs", ()))
        key = study_key(inputs, self._depends_on)
        if place.done(key, run if overwrite else None):
            place.forgive()
            return None
        place.refuse_others_work(overwrite)
        started = perf_counter()
        study = self._read(request)
        if self._settings.check is not None:
            self._settings.check(study)
        findings = self._compute.submit(self._analyse, study, perf_counter() - started).result()
        self._write.submit(self._commit, findings, place, key, inputs).result()
        return replace(findings, study=None)

    def _read(self, request: Request) -> Study:
        progress = self._listener(request.name)
        if request.volumes:
            files = {name: ImageFile(path, request.volumes.get(name)) for name, path in request.files.items()}
            return read_images(Case(request.name, request.name, files))
        study = Study.read(request.case, **request.files, series=None, progress=progress)
        return replace(study, id=request.id) if request.id else study

    def _analyse(self, study: Study, read_s: float) -> Findings:
        settings, progress = self._settings, self._listener(study.id)
        # A compiled pass has no layers any more; between windows the listener looks.
        with nullcontext() if settings.compiled and settings.mode == "exact" else self._stop.between_layers():
            return analyze(
                replace(study, warnings=(*study.warnings, *self._notices)),
                self._bundle,
                self._device,
                settings.precision,
                progress,
                network=self._network,
                read_s=read_s,
                mode=settings.mode,
                check_uncertainty=settings.check_uncertainty,
                compiled=settings.compiled,
            )

    def _commit(self, findings: Findings, place: StudyPlace, key: str, inputs: list[dict[str, Any]]) -> None:
        settings, stage = self._settings, self._folder.new_stage()
        try:
            findings.write(stage, **settings.write)
            (stage / THUMBNAIL).write_bytes(thumbnail(findings))

            def also() -> None:
                if settings.also is not None:
                    settings.also(findings)

            place.commit(stage, key, inputs, settings.run, settings.overwrite, also)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            give_back_freed_memory()

    def _listener(self, name: str) -> Progress:
        def progress(stage: str, fraction: float, text: str) -> None:
            self._stop.check()
            self._tell(name, stage, fraction, text)

        return progress


def _bundle_of(settings: CohortSettings) -> Bundle:
    """The model that the leader of the run has chosen, as this machine has it."""
    if settings.version != __version__:
        text = f"This worker has MTMed3D {__version__}, the run was begun with {settings.version}."
        raise ModelRefused("version-differs", text, "Install one version on every machine.")
    bundle = find_bundle(settings.model)
    if bundle.sha256 != settings.model_sha256:
        text = f"The model in {settings.model} is not the one that the run was begun with."
        raise ModelRefused("model-differs", text, "Give every machine the same model.")
    return bundle


def _in_words(findings: Findings) -> str:
    count = len(findings.lesions)
    lesions = "no tumour" if count == 0 else "1 lesion" if count == 1 else f"{count} lesions"
    grade = findings.grade
    return lesions if grade is None else f"{lesions}, {grade.label} {grade.probability_hgg:.2f}"
