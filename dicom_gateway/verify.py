"""A person vouches for the report of a study: the next revision, which goes where the report went.

The verified record is put where the worker will look for the result of an analysis, and such an analysis is queued: the
worker finds it finished and does the rest as ever. So nothing is sent twice, and nothing is lost when either is killed.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.errors import NotFound, StudyHasChanged
from dicom_gateway.events import Event, emit
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.operate import opened
from dicom_gateway.pipeline import write_result
from dicom_gateway.report.content import Report, Verification
from dicom_gateway.report.objects import read_result, read_superseded
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.verification import Question, Stated, verified_report
from dicom_gateway.settings import Settings
from dicom_gateway.store import index, ledger
from dicom_gateway.store.files import result_path
from dicom_gateway.store.schema import StudyState


def verify_study(
    settings: Settings, study_instance_uid: str, verification: Verification, stated: Mapping[Question, Stated]
) -> Report:
    """The verified report, whose delivery is queued.

    Raises NotFound without such a study or report, ContradictoryVerdict for what cannot be stated of it, and
    StudyHasChanged where the newest report is not of all images that were received. Raises as `operate.opened`.
    """
    with opened(settings) as (engine, jobs):
        study = index.get_study(engine, study_instance_uid)
        newest = index.get_report(engine, study_instance_uid)
        if study is None or newest is None:
            raise NotFound("There is no report of such a study.")
        if study.state not in (StudyState.REPORTED, StudyState.REFUSED) or newest.revision != study.revision:
            raise StudyHasChanged("the study is not at rest: wait for the report of its newest revision")
        created = time.time()
        result = _verified(settings, engine, newest, created, verification, stated)
        folder = settings.data_dir / result_path(study_instance_uid, result.report.revision)
        being_written = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(being_written, ignore_errors=True)
        write_result(result, being_written)
        _queue(engine, jobs, study, created, being_written, folder)
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
    images = index.list_instances(engine, uid, row.revision)
    result = read_result(settings.data_dir / row.folder, [settings.data_dir / image.path for image in images])
    supersedes = read_superseded(settings.data_dir / result_path(uid, revision), uid, revision)
    if supersedes is None:
        raise NotFound("The record of the report is damaged.")
    report = verified_report(
        result.report,
        verification,
        supersedes=supersedes,
        revision=revision,
        created=datetime.fromtimestamp(created, UTC),
        stated=stated,
    )
    shown = {finding.key_image for finding in report.findings}
    key_images = {name: picture for name, picture in result.key_images.items() if name in shown}
    return replace(result, report=report, key_images=key_images)


def _queue(
    engine: sa.Engine, jobs: JobQueue, study: index.StudyRow, created: float, being_written: Path, folder: Path
) -> None:
    """Revision, its rule, its folder and its job in one transaction."""
    uid, revision = study.study_instance_uid, study.revision + 1
    applied = index.get_applied_rule(engine, uid, study.revision)
    with engine.begin() as connection:
        if not ledger.queue_next_revision(connection, uid, study.revision, now=created):
            raise StudyHasChanged("an image came in the meantime: wait for the next report")
        if applied is not None:
            ledger.record_rule(connection, uid, revision, rule=applied.rule, destinations=applied.destinations)
        # Of a revision that was never finished.
        shutil.rmtree(folder, ignore_errors=True)
        being_written.replace(folder)
        jobs.submit_analysis(connection, uid, revision, created=created, priority=study.priority)
