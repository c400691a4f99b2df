"""The whole data path of one study on one screen: files in, report and result objects out."""

import io
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dicom_gateway.report.compose import compose_report
from dicom_gateway.report.content import ReportedModel, SupersededReport
from dicom_gateway.report.key_images import render_key_images
from dicom_gateway.report.objects import ENCODERS, StoredResult, part_10
from dicom_gateway.report.outlines import Outlines, outlines_of, write_outlines
from dicom_gateway.report.source_headers import read_source_headers
from dicom_gateway.store.files import OUTLINES_NAME, REPORT_NAME, SEGMENTS_NAME, SR_NAME, SUMMARY_NAME, unfinished
from imaging.errors import ImagingError
from imaging.headers import Series, Study
from imaging.kernel import recognise_kernel
from imaging.lungs import Lungs, segment_lungs
from imaging.quality import QualityIssue, Verdict, check_headers, check_voxels, is_rejected
from imaging.selection import Selection, is_derived, next_selection, select_series
from imaging.volume import Volume, load_volume
from models.detect import Detection, Detector
from models.findings import Finding, FindingKind, Presence
from models.manifest import ModelManifest

OnStage = Callable[[str], None]

_OF_THE_LUNGS = frozenset(
    {
        FindingKind.PULMONARY_NODULE,
        FindingKind.EMPHYSEMA,
        FindingKind.PLEURAL_EFFUSION,
        FindingKind.CONSOLIDATION,
        FindingKind.GROUND_GLASS_OPACITY,
        FindingKind.PNEUMOTHORAX,
        FindingKind.ATELECTASIS,
        FindingKind.INTERSTITIAL_ABNORMALITY,
        FindingKind.BRONCHIECTASIS,
    }
)


# The result objects that are written as files; a destination may be sent others, made of the same record.
RESULT_FILES = {"sr": SR_NAME, "sc": SUMMARY_NAME, "seg": SEGMENTS_NAME}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passed:
    """What the gates let through: the series' volume and lungs, or neither.

    `sharp_kernel` is None where neither the kernel's name nor the image tells.
    """

    selection: Selection
    quality: tuple[QualityIssue, ...]
    volume: Volume | None
    lungs: Lungs | None
    sharp_kernel: bool | None = None


def process_study(
    study: Study,
    detector: Detector,
    *,
    revision: int,
    created: datetime,
    supersedes: SupersededReport | None = None,
    urgent_kinds: Collection[FindingKind] = (),
    unreadable_file_count: int = 0,
    decoded: Path | None = None,
    on_stage: OnStage = lambda stage: None,
) -> StoredResult:
    """Analyse one study. A refusal is a result too. `decoded` is as for `load_volume`.

    Raises ModelError for a model without an answer.
    """
    clock = StageClock(on_stage)
    passed = first_series_through_the_gates(study, clock, decoded)
    detection = _detect(detector, passed, clock)
    key_images, outlines = {}, Outlines()
    with clock.stage("record"):
        if detection and passed.volume and passed.selection.chosen:
            key_images = render_key_images(detection.findings, passed.volume)
            outlines = outlines_of(detection.findings, passed.selection.chosen.slices)
        report = compose_report(
            study_instance_uid=study.study_instance_uid,
            selection=passed.selection,
            quality=passed.quality + (detection.quality if detection else ()),
            findings=detection.findings if detection else (),
            volume=passed.volume,
            contrast=detection.blood_pool.contrast if detection else None,
            contrast_evidence=detection.contrast_evidence if detection else None,
            contrast_phase=detection.enhancement.phase if detection and detection.enhancement else None,
            model=_identity(detector.manifest),
            revision=revision,
            supersedes=supersedes,
            urgent_kinds=urgent_kinds,
            created=created,
            software_version=version("onescan"),
            unreadable_file_count=unreadable_file_count,
            timings_s=clock.seconds,
        )
        headers = read_source_headers(
            _evidence(study, passed.selection.chosen), report.series_instance_uid, outlines.analysed_instances
        )
    return StoredResult(report=report, headers=headers, outlines=outlines, key_images=key_images)


def write_result(result: StoredResult, folder: Path) -> tuple[Path, ...]:
    """Write the record and the objects of RESULT_FILES in place of an earlier one, which a failure leaves as it was."""
    contents = {name: _png(picture) for name, picture in result.key_images.items()}
    contents[OUTLINES_NAME] = write_outlines(result.outlines)
    for kind, name in RESULT_FILES.items():
        for number, ds in enumerate(ENCODERS[kind](result), start=1):
            contents[name if number == 1 else f"{number}_{name}"] = part_10(ds)
    # The report is put in place last: where it stands, everything it names stands too.
    contents[REPORT_NAME] = result.report.model_dump_json(indent=2).encode()
    folder.mkdir(parents=True, exist_ok=True)
    with unfinished(folder) as parts:
        for name, content in contents.items():
            with (parts / name).open("wb") as sink:
                sink.write(content)
                sink.flush()
                os.fsync(sink.fileno())
        earlier = [path for pattern in ("key_*.png", f"*{SEGMENTS_NAME}") for path in folder.glob(pattern)]
        for stale in earlier:
            if stale.name not in contents:
                stale.unlink(missing_ok=True)
        for name in contents:
            (parts / name).replace(folder / name)
    return tuple(folder / name for name in contents)


def first_series_through_the_gates(study: Study, clock: "StageClock", decoded: Path | None = None) -> Passed:
    """The best series that passes both gates; the others are rejected with what the gates said."""
    selection = select_series(study)
    quality: tuple[QualityIssue, ...] = ()
    while selection.chosen is not None:
        quality = check_headers(selection.chosen)
        if not is_rejected(quality):
            with clock.stage("read"):
                volume = _decoded(selection.chosen, decoded)
            if isinstance(volume, QualityIssue):
                quality += (volume,)
            else:
                with clock.stage("lungs"):
                    lungs = segment_lungs(volume)
                    quality += check_voxels(volume, lungs)
                if not is_rejected(quality):
                    kernel = recognise_kernel(
                        selection.chosen.convolution_kernel, volume, lungs, is_original=not is_derived(selection.chosen)
                    )
                    return Passed(
                        selection=selection,
                        quality=quality + ((kernel.issue,) if kernel.issue else ()),
                        volume=volume,
                        lungs=lungs,
                        sharp_kernel=kernel.sharp,
                    )
        if not selection.alternatives:
            # The last one stays the chosen series: the report says why it was refused.
            break
        selection = next_selection(selection, _why_rejected(quality))
    return Passed(selection=selection, quality=quality, volume=None, lungs=None)


def _decoded(series: Series, decoded: Path | None) -> Volume | QualityIssue:
    """The series' volume, or why its pixels refuse it: no repetition would decode them."""
    try:
        return load_volume(series, decoded)
    except ImagingError as error:
        return QualityIssue(check="pixels", verdict=Verdict.REJECT, message=str(error))


def _why_rejected(quality: Sequence[QualityIssue]) -> str:
    return "; ".join(issue.message for issue in quality if issue.verdict is Verdict.REJECT)


def _detect(detector: Detector, passed: Passed, clock: "StageClock") -> Detection | None:
    if passed.volume is None or passed.lungs is None or passed.selection.chosen is None:
        return None
    clock.on_stage("analyse")
    # What may be sharp is taken for sharp.
    detection = detector.detect(passed.volume, passed.lungs, sharp_kernel=passed.sharp_kernel is not False)
    clock.seconds |= detection.timings_s
    return replace(detection, findings=limited_to_what_is_seen(detection.findings, passed.quality))


def limited_to_what_is_seen(findings: Sequence[Finding], quality: Sequence[QualityIssue]) -> tuple[Finding, ...]:
    """Each answer about the lungs says so itself where apices, bases or sides are cut off."""
    cut = [i.message for i in quality if i.check == "coverage" and i.verdict is Verdict.WARN]
    return tuple(
        replace(finding, reason="; ".join(filter(None, (finding.reason, *cut))))
        if cut
        and finding.kind in _OF_THE_LUNGS
        and finding.lesion is None
        and finding.presence is not Presence.NOT_ASSESSED
        else finding
        for finding in findings
    )


def _evidence(study: Study, chosen: Series | None) -> tuple[Path, ...]:
    """Files of the analysed series; without one, those of the whole study."""
    return chosen.files if chosen else tuple(file for series in study.series for file in series.files)


def _identity(manifest: ModelManifest) -> ReportedModel:
    return ReportedModel(name=manifest.name, version=manifest.version, sha256=manifest.sha256)


def _png(picture: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    # Of CT, half the time of the default level and no larger.
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


class StageClock:
    """Seconds of each stage; a stage that runs twice (a second series was tried) adds up."""

    def __init__(self, on_stage: OnStage) -> None:
        self.seconds: dict[str, float] = {}
        self.on_stage = on_stage

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.on_stage(name)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
