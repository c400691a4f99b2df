"""Studies from files to results in a folder, without service or database: what `onescan analyze` does."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dicom_gateway.pipeline import OnStage, process_study, write_result
from dicom_gateway.report.content import Report
from dicom_gateway.report.headline import headline
from dicom_gateway.report.stored import StoredResult
from imaging.errors import ImagingError
from imaging.headers import Study
from imaging.uids import is_safe_uid
from models.detect import Detector
from models.errors import ModelError

FINDINGS_TABLE = "findings.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysedStudy:
    """How one study ended: reported, refused (a report says why) or failed (`problem` says why)."""

    study_instance_uid: str
    outcome: str
    headline: tuple[str, ...]
    problem: str | None = None
    report: Report | None = None


def analyze_studies(
    studies: Sequence[Study],
    out: Path,
    detector: Detector,
    *,
    unreadable_files: Sequence[Path] = (),
    on_stage: OnStage,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[AnalysedStudy]:
    """Analyse each study into `out/<StudyInstanceUID>`; a study that fails does not stop the others.

    A report counts those of `unreadable_files` that lie in a folder with images of its study.
    """
    unreadable = Counter(file.parent for file in unreadable_files)
    for study in studies:
        uid = study.study_instance_uid
        if not is_safe_uid(uid):
            yield AnalysedStudy(
                study_instance_uid="(invalid)",
                outcome="failed",
                headline=(),
                problem="the Study Instance UID is not a valid UID",
            )
            continue
        try:
            result = process_study(
                study,
                detector,
                revision=1,
                created=clock(),
                unreadable_file_count=sum(unreadable[folder] for folder in _folders(study)) if unreadable else 0,
                on_stage=on_stage,
            )
            write_result(result, out / uid)
        except Exception as error:  # noqa: BLE001  # edge: one study must not end the batch
            known = isinstance(error, (ImagingError, ModelError, OSError))
            problem = str(error) if known else f"unexpected {type(error).__name__}"
            yield AnalysedStudy(study_instance_uid=uid, outcome="failed", headline=(), problem=problem)
        else:
            yield _ended(result)


def _folders(study: Study) -> set[Path]:
    return {file.parent for series in study.series for file in series.files}


def _ended(result: StoredResult) -> AnalysedStudy:
    report = result.report
    return AnalysedStudy(
        study_instance_uid=report.study_instance_uid,
        outcome=report.outcome,
        headline=headline(report),
        problem=report.refusal,
        report=report,
    )


@contextmanager
def findings_table(path: Path) -> Iterator[Callable[[AnalysedStudy], None]]:
    """What adds a study: one row a finding and measurement (one where there is none), for a spreadsheet or data frame.

    Its rows are in the file when that returns, whatever ends the others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # What is no text (a file name of other bytes in an error) must not end the table.
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as sink:
        table = csv.writer(sink)
        table.writerow(
            (
                *("study_instance_uid", "series_instance_uid", "outcome", "problem", "kind", "lesion", "presence"),
                *("probability", "reason", "laterality", "site", "evidence_grade", "quantity", "side", "value", "unit"),
            )
        )
        sink.flush()

        def add(study: AnalysedStudy) -> None:
            table.writerows(_rows(study))
            sink.flush()

        yield add


def _rows(study: AnalysedStudy) -> Iterator[tuple[object, ...]]:
    report = study.report
    if report is None or study.outcome != "reported":
        yield (study.study_instance_uid, "", study.outcome, study.problem or "")
        return
    for finding in report.findings:
        start = (
            *(report.study_instance_uid, report.series_instance_uid, report.outcome, ""),
            *(finding.kind, finding.lesion, finding.presence, finding.probability, finding.reason),
            *(finding.laterality, finding.site, finding.evidence_grade),
        )
        for measurement in finding.measurements:
            yield (*start, measurement.quantity, measurement.laterality, measurement.value, measurement.unit)
        if not finding.measurements:
            yield start
