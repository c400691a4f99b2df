"""A person verifies a stored report: on a real index with the worker's own jobs, and by the command."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from conformance.conftest import MODEL, compose, full_findings, make_slices, make_volume, write_ct
from running import make_settings, pacs
from typer.testing import CliRunner
from web_samples import serving

from dicom_gateway import cli
from dicom_gateway.errors import NotFound, StudyHasChanged
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.pipeline import write_result
from dicom_gateway.report.content import Report, Verification
from dicom_gateway.report.instance import object_uid
from dicom_gateway.report.key_images import render_key_images
from dicom_gateway.report.outlines import outlines_of
from dicom_gateway.report.source_headers import read_source_headers
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.verification import ContradictoryVerdict, Question
from dicom_gateway.settings import Destination
from dicom_gateway.store import index, ledger
from dicom_gateway.store.files import StoredFile, result_path
from dicom_gateway.store.schema import DeliveryState, StudyState, open_database
from dicom_gateway.verify import verify_study
from dicom_gateway.web.app import create_app
from dicom_gateway.worker import Worker, finished_outcome
from models.findings import FindingKind

STUDY = "1.2.3.4"
CREATED = 1_768_048_205.125
READER = Verification(observer_name="Li^Wei", organization="Test Hospital")
EFFUSION = Question(FindingKind.PLEURAL_EFFUSION)


def analysed(files, folder, revision, created):
    """The made-up report in place of an analysis; of a verified revision, what stands there already."""
    if outcome := finished_outcome(folder, created):
        return outcome
    volume = make_volume()
    findings = full_findings(volume)
    result = StoredResult(
        report=compose(volume, findings, revision=revision, created=created, model=MODEL),
        headers=read_source_headers(files),
        outlines=outlines_of(findings, make_slices(volume)),
        key_images=render_key_images(findings, volume),
    )
    write_result(result, folder)
    return result.report.outcome


@pytest.fixture
def peer():
    with pacs() as receiving:
        yield receiving


@pytest.fixture
def worker(tmp_path, peer):
    destination = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=peer.port, objects=("sr",))
    elsewhere = destination.model_copy(update={"name": "elsewhere"})
    settings = make_settings(tmp_path, destinations=(destination, elsewhere))
    engine = open_database(settings.database)
    jobs = JobQueue(engine)
    working = Worker(settings=settings, engine=engine, jobs=jobs, analyse=analysed)
    receive(working, tmp_path)
    working.analyse_study(STUDY, 1, CREATED)
    yield working
    jobs.close()
    engine.dispose()


def receive(worker: Worker, tmp_path: Path) -> None:
    folder = worker.settings.studies_dir / STUDY / "1.2.3.4.1"
    with worker.engine.begin() as connection:
        for number, path in enumerate(write_ct(folder), start=1):
            record(connection, worker, path, number)
        assert ledger.close_study(connection, STUDY, revision=1, last_received=30.0, now=CREATED)
        ledger.record_rule(connection, STUDY, 1, rule="chests", destinations=("pacs",))


def record(connection, worker, path, number):
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
    file = StoredFile(path=path.relative_to(worker.settings.data_dir), sha256="0" * 64, size_bytes=1)
    return ledger.record_instance(
        connection, header, file, calling_ae_title="CT1", association_count=number, now=float(number)
    )


def stored(worker: Worker, revision: int) -> Report:
    folder = worker.settings.data_dir / result_path(STUDY, revision)
    return Report.model_validate_json((folder / "report.json").read_bytes())


def run_queued(worker: Worker, revision: int) -> None:
    """What the worker does with the job that was queued."""
    worker.analyse_study(STUDY, revision, stored(worker, revision).created.timestamp())


def test_the_verified_revision_is_delivered_and_the_automated_one_kept(worker, peer):
    before = stored(worker, 1)
    report = verify_study(worker.settings, STUDY, READER, {EFFUSION: "absent"})
    assert (report.revision, report.verification) == (2, READER)
    study = index.get_study(worker.engine, STUDY)
    assert (study.state, study.revision, study.rule) == (StudyState.QUEUED, 2, "chests")
    run_queued(worker, 2)
    assert index.get_study(worker.engine, STUDY).state is StudyState.REPORTED
    assert stored(worker, 1) == before
    assert stored(worker, 2) == report
    rows = {(row.destination, row.revision) for row in index.list_deliveries(worker.engine, STUDY)}
    assert rows == {("pacs", 1), ("pacs", 2)}, "the rule of the study holds for its verified report"
    worker.deliver_report(STUDY, 2, "pacs", 1, 0)
    assert index.get_delivery(worker.engine, STUDY, 2, "pacs").state is DeliveryState.DELIVERED
    assert dict(peer.received) == {object_uid(report, "sop", "SR-ALONE", "1"): 1}
    worker.deliver_report(STUDY, 1, "pacs", 1, 0)
    assert index.get_delivery(worker.engine, STUDY, 1, "pacs").state is DeliveryState.SUPERSEDED


def test_pictures_of_what_was_rejected_are_in_no_verified_result(worker):
    verify_study(worker.settings, STUDY, READER, {EFFUSION: "absent"})
    before, after = (worker.settings.data_dir / result_path(STUDY, number) for number in (1, 2))
    pictures = [{path.name for path in folder.glob("key_*.png")} for folder in (before, after)]
    assert pictures[1] < pictures[0]
    assert not list(after.parent.glob(".*")), "nothing half-done is left"


def test_a_late_image_makes_an_unverified_revision_again(worker, tmp_path):
    verify_study(worker.settings, STUDY, READER, {})
    run_queued(worker, 2)
    (late,) = write_ct(tmp_path / "late", 1, SOPInstanceUID="1.2.3.4.1.31")
    stored_late = worker.settings.studies_dir / STUDY / "1.2.3.4.1" / "late.dcm"
    late.replace(stored_late)
    with worker.engine.begin() as connection:
        assert record(connection, worker, stored_late, 31).revision == 3
    with pytest.raises(StudyHasChanged):
        verify_study(worker.settings, STUDY, READER, {})


def test_what_cannot_be_verified_changes_nothing(worker):
    with pytest.raises(NotFound):
        verify_study(worker.settings, "1.2.9", READER, {})
    with pytest.raises(ContradictoryVerdict):
        verify_study(worker.settings, STUDY, READER, {Question(FindingKind.EMPHYSEMA, 4): "absent"})
    assert index.get_study(worker.engine, STUDY).revision == 1
    assert not (worker.settings.data_dir / result_path(STUDY, 2)).exists()


def test_the_command(worker, tmp_path):
    config = tmp_path / "onescan.toml"
    config.write_text(f'data_dir = "{worker.settings.data_dir}"\n', encoding="utf-8")
    command = ["verify", STUDY, "--by", "李^伟", "--organization", "Test Hospital", "--config", str(config)]
    run = CliRunner().invoke
    for wrong in (
        [*command, "--absent", "pneumonia"],
        [*command, "--absent", "emphysema", "--present", "emphysema"],
        [*command, "--absent", "emphysema:x"],
        [*command[:3], "a\\b", *command[4:]],
    ):
        assert run(cli.app, wrong).exit_code == 2
    assert run(cli.app, ["verify", "1.2.9", *command[2:]]).exit_code == 1
    done = run(cli.app, [*command, "--absent", "pulmonary_nodule:2", "--present", "pneumothorax"])
    assert done.exit_code == 0
    assert "Revision 2" in done.stdout
    report = stored(worker, 2)
    assert report.verification.observer_name == "李^伟"
    assert report.created <= datetime.now(UTC)


def test_the_page_says_who_verified(worker):
    verify_study(worker.settings, STUDY, READER, {})
    run_queued(worker, 2)
    with serving(create_app(worker.settings)) as client:
        verified, automated = (client.get(f"/studies/{STUDY}?revision={number}").text for number in (2, 1))
    assert f"Verified by {READER.observer_name}, {READER.organization}" in verified
    assert "not verified by a physician" not in verified
    assert "not verified by a physician" in automated
