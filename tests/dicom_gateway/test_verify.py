"""A person verifies a stored report: on a real index with the worker's own jobs, and by the command."""

import shutil
from datetime import UTC, datetime

import pytest
from conformance.conftest import write_ct
from running import pacs
from typer.testing import CliRunner
from verify_samples import STUDY, analysed_study, record, run_queued, stored
from web_samples import serving

from dicom_gateway import cli
from dicom_gateway.errors import NotFound, StudyHasChanged
from dicom_gateway.report.content import Verification
from dicom_gateway.report.instance import object_uid
from dicom_gateway.report.verification import ContradictoryVerdict, Question
from dicom_gateway.settings import Destination
from dicom_gateway.store import index, ledger
from dicom_gateway.store.files import result_path
from dicom_gateway.store.schema import DeliveryState, StudyState
from dicom_gateway.verify import verify_study
from dicom_gateway.web.app import create_app
from models.findings import FindingKind

READER = Verification(observer_name="Li^Wei", organization="Test Hospital")
EFFUSION = Question(FindingKind.PLEURAL_EFFUSION)


@pytest.fixture
def peer():
    with pacs() as receiving:
        yield receiving


@pytest.fixture
def worker(tmp_path, peer):
    destination = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=peer.port, objects=("sr",))
    elsewhere = destination.model_copy(update={"name": "elsewhere"})
    with analysed_study(tmp_path, destinations=(destination, elsewhere)) as working:
        yield working


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


def test_what_a_verified_revision_lacks_is_still_missing(worker):
    with worker.engine.begin() as connection:
        ledger.record_shortfall(connection, STUDY, 1, received=30, expected=120)
    verify_study(worker.settings, STUDY, READER, {})
    missing = index.get_shortfall(worker.engine, STUDY, 2)
    assert (missing.received, missing.expected) == (30, 120)


def test_a_correction_is_made_of_the_automated_report(worker):
    verify_study(worker.settings, STUDY, READER, {EFFUSION: "absent"})
    run_queued(worker, 2)
    report = verify_study(worker.settings, STUDY, READER, {EFFUSION: "present"})
    run_queued(worker, 3)
    pictures = [{f.name for f in (worker.settings.data_dir / result_path(STUDY, n)).glob("key_*.png")} for n in (1, 3)]
    assert pictures[0] == pictures[1]
    assert [f.verdict for f in report.findings if f.is_by_a_person] == []
    shutil.rmtree(worker.settings.data_dir / result_path(STUDY, 1))
    with pytest.raises(NotFound):
        verify_study(worker.settings, STUDY, READER, {})


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
    assert "by <b>Li, Wei</b>, Test Hospital" in verified
    assert "not verified by a physician" not in verified
    assert "not verified by a physician" in automated
