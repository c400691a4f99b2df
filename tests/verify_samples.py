"""A received and analysed study with real files, which a person can verify; the worker is called, not run."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy as sa
from conformance.conftest import MODEL, compose, full_findings, make_slices, make_volume, write_ct
from running import make_settings

from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.pipeline import write_result
from dicom_gateway.report.content import Report
from dicom_gateway.report.key_images import render_key_images
from dicom_gateway.report.outlines import outlines_of
from dicom_gateway.report.source_headers import read_source_headers
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.store import ledger
from dicom_gateway.store.files import StoredFile, result_path
from dicom_gateway.store.schema import open_database
from dicom_gateway.worker import Worker, finished_outcome

STUDY = "1.2.3.4"
CREATED = 1_768_048_205.125


def analysed(files: list[Path], folder: Path, revision: int, created: datetime) -> str:
    """The made-up report in place of an analysis; of a verified revision, what stands there already."""
    if outcome := finished_outcome(folder, created):
        return outcome
    outcome, contents = _result(len(files), revision, created)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return outcome


@cache
def _result(image_count: int, revision: int, created: datetime) -> tuple[str, dict[str, bytes]]:
    """Outcome and result files of a study of so many images; made once, for they take a second."""
    volume = make_volume()
    findings = full_findings(volume)
    with TemporaryDirectory() as folder:
        result = StoredResult(
            report=compose(volume, findings, revision=revision, created=created, model=MODEL),
            headers=read_source_headers(write_ct(Path(folder, "ct"), image_count)),
            outlines=outlines_of(findings, make_slices(volume)),
            key_images=render_key_images(findings, volume),
        )
        written = write_result(result, Path(folder, "result"))
        return result.report.outcome, {path.name: path.read_bytes() for path in written}


@contextmanager
def analysed_study(tmp_path: Path, **values: Any) -> Iterator[Worker]:
    """A worker that has analysed STUDY."""
    settings = make_settings(tmp_path, **values)
    engine = open_database(settings.database)
    jobs = JobQueue(engine)
    working = Worker(settings=settings, engine=engine, jobs=jobs, analyse=analysed)
    receive(working)
    working.analyse_study(STUDY, 1, CREATED)
    yield working
    jobs.close()
    engine.dispose()


def receive(worker: Worker) -> None:
    folder = worker.settings.studies_dir / STUDY / "1.2.3.4.1"
    with worker.engine.begin() as connection:
        for number, path in enumerate(write_ct(folder), start=1):
            record(connection, worker, path, number)
        assert ledger.close_study(connection, STUDY, revision=1, last_received=30.0, now=CREATED)
        ledger.record_rule(connection, STUDY, 1, rule="chests", destinations=("pacs",))


def record(connection: sa.Connection, worker: Worker, path: Path, number: int) -> ledger.Receipt:
    header = ledger.InstanceHeader(
        sop_instance_uid=f"1.2.3.4.1.{number}",
        series_instance_uid="1.2.3.4.1",
        study_instance_uid=STUDY,
        patient_name="Test^Patient",
        patient_id="P-1",
        study_date="20260110",
        description="",
        accession_number="",
    )
    file = StoredFile(path=path.relative_to(worker.settings.data_dir), size_bytes=1)
    return ledger.record_instance(
        connection, header, file, calling_ae_title="CT1", association_count=number, now=float(number)
    )


def stored(worker: Worker, revision: int) -> Report:
    folder = worker.settings.data_dir / result_path(STUDY, revision)
    return Report.model_validate_json((folder / "report.json").read_bytes())


def run_queued(worker: Worker, revision: int) -> None:
    """What the worker does with the job that was queued."""
    worker.analyse_study(STUDY, revision, stored(worker, revision).created.timestamp())
