"""A person vouches for the report of a study: the next revision, which goes where the report went.

The verified record is put where the worker will look for the result of an analysis, and such an analysis is queued: the
worker finds it finished and does the rest as ever. So nothing is sent twice, and nothing is lost when either is killed.
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.errors import NotFound, StudyHasChanged
from dicom_gateway.events import Event, emit
from dicom_gateway.jobs.queue import STAT, JobQueue
from dicom_gateway.operate import opened
from dicom_gateway.pipeline import write_result
from dicom_gateway.report.content import Report, Verification
from dicom_gateway.report.objects import read_result, read_superseded
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.verification import Question, Stated, restated, stated_in, verified_report
from dicom_gateway.settings import Settings
from dicom_gateway.store import index, ledger
from dicom_gateway.store.files import result_path, unfinished
from dicom_gateway.store.schema import StudyState
from imaging.errors import UnreadableInstance


def verify_study(
    settings: Settings,
    study_instance_uid: str,
    verification: Verification,
    stated: Mapping[Question, Stated],
    *,
    revision: int | None = None,
) -> Report:
    """The verified report, whose delivery is queued; `revision` is what the person has read, by default the newest.

    Raises NotFound without such a study or report, ContradictoryVerdict for what cannot be stated of it, and
    StudyHasChanged where that revision is not the newest, or not of all images that were received. Raises as
    `operate.opened`.
    """
    with opened(settings) as (engine, jobs):
        study = index.get_study(engine, study_instance_uid)
        newest = index.get_report(engine, study_instance_uid)
        if study is None or newest is None:
            raise NotFound("There is no report of such a study.")
        if revision is not None and newest.revision != revision:
            raise StudyHasChanged(f"revision {newest.revision} has taken the place of what was read: read that one")
        if study.state not in (StudyState.REPORTED, StudyState.REFUSED) or newest.revision != study.revision:
            raise StudyHasChanged("the study is not at rest: wait for the report of its newest revision")
        created = time.time()
        result = _verified(settings, engine, newest, created, verification, stated)
        with unfinished((settings.data_dir / newest.folder).parent) as being_written:
            write_result(result, being_written)
            _queue(settings, engine, jobs, study, result.report, being_written)
        emit(Event.REPORT_VERIFIED, study_instance_uid=study_instance_uid, revision=result.report.revision)
        return result.report


def _verified(
    settings: Settings,
    engine: sa.Engine,
    row: index.ReportRow,
    created: float,
    verification: Verification,
    stated: Mapping[Question, Stated],
) -> StoredResult:
    uid, revision = row.study_instance_uid, row.revision + 1
    images = [settings.data_dir / image.path for image in index.list_instances(engine, uid, row.revision)]
    earlier = (r for r in index.list_reports(engine, uid) if r.revision <= row.revision)
    results = (read_result(settings.data_dir / r.folder, images) for r in earlier)
    try:
        newest = next(results)
        automated = newest if newest.report.verification is None else _automated(results)
    except (OSError, ValueError, UnreadableInstance) as error:
        raise NotFound("The record of the report or an image of it cannot be read.") from error
    supersedes = read_superseded(settings.data_dir / result_path(uid, revision), uid, revision)
    if supersedes is None:
        raise NotFound("The record of the report is damaged.")
    report = verified_report(
        automated.report,
        verification,
        supersedes=supersedes,
        revision=revision,
        created=datetime.fromtimestamp(created, UTC),
        stated=restated(stated_in(newest.report), stated),
    )
    shown = {finding.key_image for finding in report.findings}
    key_images = {name: picture for name, picture in automated.key_images.items() if name in shown}
    return replace(automated, report=report, key_images=key_images)


def _automated(results: Iterator[StoredResult]) -> StoredResult:
    """The newest that nobody verified: of it the verified ones after it were made."""
    found = next((result for result in results if result.report.verification is None), None)
    if found is None:
        raise NotFound("There is no automated report of the study any more.")
    return found


def _queue(
    settings: Settings, engine: sa.Engine, jobs: JobQueue, study: index.StudyRow, report: Report, being_written: Path
) -> None:
    """Revision, its rule, its folder, its report and its job in one transaction.

    The report is known at once, for the worker may be busy with another study for minutes; then this one, which takes
    it a moment, comes before those that wait for an analysis.
    """
    uid, created = study.study_instance_uid, report.created.timestamp()
    place = result_path(uid, report.revision)
    folder = settings.data_dir / place
    with engine.begin() as connection:
        if not ledger.queue_next_revision(connection, uid, study.revision, now=created):
            raise StudyHasChanged("an image or another verdict came in the meantime: read the newest report")
        # Of a revision that was never finished.
        shutil.rmtree(folder, ignore_errors=True)
        being_written.replace(folder)
        ledger.record_report(connection, uid, report.revision, folder=place, created=created, outcome=report.outcome)
        jobs.submit_analysis(connection, uid, report.revision, created=created, priority=STAT)
