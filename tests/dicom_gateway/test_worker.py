"""The worker's two jobs and its start, on a real index and with real peers; the engine runs in the durability tests."""

import json
import shutil
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
import sqlalchemy as sa
from certificates import Hospital
from pydicom import dcmread
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from receivers import acknowledgement, fhir_server, hl7_engine, stow_server
from rich.console import Console
from running import make_settings, pacs
from structlog.testing import capture_logs
from typer.testing import CliRunner
from web_samples import sample_report
from worker_samples import CREATED, STUDY, receive, reported

from dicom_gateway import cli, operate
from dicom_gateway.jobs.housekeeping import park_given_up
from dicom_gateway.jobs.queue import ROUTINE, JobQueue
from dicom_gateway.report.content import Report
from dicom_gateway.report.objects import part_10
from dicom_gateway.settings import (
    Destination,
    DicomwebDestination,
    FhirDestination,
    Hl7Destination,
    Settings,
    StowDestination,
    WebhookDestination,
)
from dicom_gateway.store import index, ledger
from dicom_gateway.store.files import result_path
from dicom_gateway.store.schema import DeliveryState, StudyState, open_database
from dicom_gateway.worker import (
    Worker,
    encoder_of,
    finished_outcome,
    model_analysis,
    park_unconfigured,
    retry_delay_s,
)
from imaging.errors import InconsistentSeries
from imaging.uids import derive_uid
from models.errors import BadOutput


@pytest.fixture
def peer():
    with pacs() as receiving:
        yield receiving


@pytest.fixture
def worker(tmp_path, peer):
    destination = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=peer.port)
    settings = make_settings(tmp_path, destinations=(destination,))
    engine = open_database(settings.database)
    jobs = JobQueue(engine)
    yield Worker(settings=settings, engine=engine, jobs=jobs, analyse=reported)
    jobs.close()
    engine.dispose()


def only_delivery(worker, revision=1):
    return index.get_delivery(worker.engine, STUDY, revision, "pacs")


def test_delivery_of_a_destination_that_was_away_is_not_lost(worker, peer):
    worker.analyse_study(STUDY, receive(worker), CREATED)
    park_unconfigured(worker.engine, worker.settings.model_copy(update={"destinations": ()}), worker.notices)
    assert only_delivery(worker).state is DeliveryState.PARKED
    # It is configured again: the job that waited all the time ends without sending.
    worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    assert not peer.received
    before = worker.jobs.waiting()
    assert operate.replay(worker.settings, STUDY) == (f"deliver:{STUDY}:r1:pacs",)
    assert worker.jobs.waiting() == {"deliver-pacs": before["deliver-pacs"] + 1}
    worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    assert not peer.received
    worker.deliver_report(STUDY, 1, "pacs", 2, 3)
    assert only_delivery(worker).state is DeliveryState.DELIVERED
    assert sum(peer.received.values()) == 2


def test_a_delivery_to_a_destination_that_is_gone_stays_parked_and_its_replay_says_why(worker, tmp_path):
    worker.analyse_study(STUDY, receive(worker), CREATED)
    gone = worker.settings.model_copy(update={"destinations": ()})
    park_unconfigured(worker.engine, gone, worker.notices)
    config = tmp_path / "onescan.toml"
    config.write_text(f'data_dir = "{worker.settings.data_dir}"\n', encoding="utf-8")
    before = worker.jobs.waiting()
    delivery = f"deliver:{STUDY}:r1:pacs"
    for what in (STUDY, delivery, "--all"):
        ran = CliRunner().invoke(cli.app, ["replay", what, "--config", str(config)])
        assert (ran.exit_code, ran.stdout) == (1, "")
        assert ran.stderr == f"{delivery} stays parked: the destination is no longer configured\n"
    assert only_delivery(worker).state is DeliveryState.PARKED
    assert worker.jobs.waiting() == before
    failed = derive_uid("worker", "failed")
    revision = receive(worker, study=failed)
    with worker.engine.begin() as connection:
        assert ledger.change_study(connection, failed, revision, to=StudyState.FAILED, since=(StudyState.QUEUED,))
    ran = CliRunner().invoke(cli.app, ["replay", "--all", "--config", str(config)])
    assert (ran.exit_code, ran.stdout.split()[-1]) == (0, f"study:{failed}:r1:0")
    assert delivery in ran.stderr


def test_an_earlier_revision_never_arrives_after_a_later_one(worker):
    """The later one is made, and its delivery begun, while the destination has not answered to the earlier."""
    later, states = threading.Thread(target=lambda: deliver(worker, "pacs", 2)), []

    def on_store(_event):
        if later.ident is None:
            worker.analyse_study(STUDY, receive(worker, 2), CREATED + 1)
            later.start()
            # Where nothing keeps it from overtaking, it ends in here.
            later.join(1.0)
            states.append(only_delivery(worker, 2).state)
        return 0x0000

    entity = AE("PACS")
    entity.add_supported_context(SecondaryCaptureImageStorage)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    peer = worker.settings.destinations[0].model_copy(
        update={"port": server.socket.getsockname()[1], "objects": ("sc",)}
    )
    worker = sending_to(worker, peer)
    try:
        worker.analyse_study(STUDY, receive(worker), CREATED)
        assert deliver(worker, "pacs").state is DeliveryState.DELIVERED
        later.join()
    finally:
        server.shutdown()
    assert states == [DeliveryState.PENDING]
    assert only_delivery(worker, 2).state is DeliveryState.DELIVERED


def sending_to(worker, peer):
    return replace(worker, settings=worker.settings.model_copy(update={"destinations": (peer,)}))


def test_a_report_goes_to_a_fhir_server_as_a_transaction(worker, tmp_path):
    (tmp_path / "token").write_text("secret")
    with fhir_server(200) as server:
        peer = FhirDestination(name="pacs", kind="fhir", url=server.url, bearer_token_file=tmp_path / "token")
        worker = sending_to(worker, peer)
        worker.analyse_study(STUDY, receive(worker), CREATED)
        worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    ((_, headers, body),) = server.posted
    assert headers["Authorization"] == "Bearer secret"
    assert f"urn:oid:{STUDY}".encode() in body
    row = only_delivery(worker)
    assert (row.state, row.objects) == (DeliveryState.DELIVERED, ("fhir",))
    assert [(o.name, o.sent_as, o.instances) for o in row.outcomes] == [("fhir", "fhir", 1)]


def test_a_report_goes_to_a_dicomweb_server_as_the_objects_of_the_profile(worker):
    with stow_server(refused={Comprehensive3DSRStorage: 0x0122}) as server:
        worker = sending_to(worker, StowDestination(name="pacs", kind="stow", url=server.url))
        worker.analyse_study(STUDY, receive(worker), CREATED)
        worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    assert [ds.SOPClassUID for ds in server.stored] == [ComprehensiveSRStorage, SecondaryCaptureImageStorage]
    row = only_delivery(worker)
    assert (row.state, row.objects) == (DeliveryState.DELIVERED, ("sr", "seg", "sc"))
    outcomes = [(o.name, o.sent_as, o.instances) for o in row.outcomes]
    assert outcomes == [("sr", "sr_comprehensive", 1), ("seg", "seg", 0), ("sc", "sc", 1)]


def test_a_report_is_kept_for_our_own_dicomweb_server(worker):
    worker = sending_to(worker, DicomwebDestination(name="pacs", kind="dicomweb", objects=("sr", "pdf")))
    worker.analyse_study(STUDY, receive(worker), CREATED)
    worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    row = only_delivery(worker)
    assert (row.state, row.objects) == (DeliveryState.DELIVERED, ("sr", "pdf"))
    files = sorted((worker.settings.data_dir / result_path(STUDY, 1)).glob("dicomweb/pacs/*"))
    assert {dcmread(file).SOPClassUID for file in files} == {Comprehensive3DSRStorage, EncapsulatedPDFStorage}


def test_a_report_goes_to_an_hl7_engine_as_a_message(worker):
    with hl7_engine(acknowledgement("AA")) as engine:
        host, port = engine.server_address
        worker = sending_to(worker, Hl7Destination(name="pacs", kind="hl7", host=host, port=port))
        worker.analyse_study(STUDY, receive(worker), CREATED)
        worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    (message,) = engine.received
    assert f"|{STUDY}|".encode() in message
    row = only_delivery(worker)
    assert (row.state, row.objects) == (DeliveryState.DELIVERED, ("hl7",))


def test_tls_of_a_destination_with_certificates_that_come_later(worker, tmp_path):
    """Files that cannot be read park the delivery; when they are there, a replay delivers over TLS."""
    hospital = Hospital(tmp_path)
    tls = {f"tls_{name}_file": file for name, file in hospital.files.items()}
    key = hospital.files["key"].read_bytes()
    hospital.files["key"].unlink()
    with hl7_engine(acknowledgement("AA"), hospital.server()) as engine:
        host, port = engine.server_address
        worker = sending_to(worker, Hl7Destination(name="pacs", kind="hl7", host=host, port=port, **tls))
        worker.analyse_study(STUDY, receive(worker), CREATED)
        worker.deliver_report(STUDY, 1, "pacs", 1, 3)
        row = only_delivery(worker)
        assert (row.state, row.last_error) == (
            DeliveryState.PARKED,
            "the tls files of pacs cannot be used (FileNotFoundError)",
        )
        hospital.files["key"].write_bytes(key)
        operate.replay(worker.settings, STUDY)
        worker.deliver_report(STUDY, 1, "pacs", 2, 3)
    assert only_delivery(worker).state is DeliveryState.DELIVERED
    assert len(engine.received) == 1


@pytest.mark.parametrize("kind", ["fhir", "stow", "hl7"])
def test_a_message_is_tried_again_and_parked_like_a_dicom_delivery(worker, kind):
    def answering(status, code):
        if kind == "stow":
            return stow_server(status=status, told=b"no Wang XiaoDong")
        return fhir_server(status, {}) if kind == "fhir" else hl7_engine(code and acknowledgement(code))

    def at(server):
        host, port = server.server_address
        if kind == "fhir":
            return FhirDestination(name="pacs", kind="fhir", url=f"http://{host}:{port}/r4")
        if kind == "stow":
            return StowDestination(name="pacs", kind="stow", url=f"http://{host}:{port}/dicom-web", objects=("sr",))
        return Hl7Destination(name="pacs", kind="hl7", host=host, port=port)

    with answering(503, None) as busy:
        worker = sending_to(worker, at(busy))
        worker.analyse_study(STUDY, receive(worker), CREATED)
        worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    assert only_delivery(worker).state is DeliveryState.DELAYED
    worker.deliver_report(STUDY, 1, "pacs", 2, 2)
    assert (only_delivery(worker).state, only_delivery(worker).attempts) == (DeliveryState.DELAYED, 2)
    with answering(422, "AE") as refusing, capture_logs() as logs:
        worker = sending_to(worker, at(refusing))
        worker.deliver_report(STUDY, 1, "pacs", 3, 1)
    row = only_delivery(worker)
    assert row.state is DeliveryState.PARKED
    told = {"fhir": "HTTP status 422", "stow": "sr: HTTP status 422", "hl7": "acknowledgement AE"}
    assert row.last_error == told[kind]
    assert "Wang" not in str(logs)
    assert operate.replay(worker.settings, STUDY) == (f"deliver:{STUDY}:r1:pacs",)


def test_a_transaction_cancels_what_only_an_earlier_revision_reported(worker):
    with fhir_server(200) as server:
        worker = sending_to(worker, FhirDestination(name="pacs", kind="fhir", url=server.url))
        worker.analyse_study(STUDY, receive(worker), CREATED)
        first = worker.settings.data_dir / result_path(STUDY, 1) / "report.json"
        record = Report.model_validate_json(first.read_bytes())
        lesion = record.findings[0].model_copy(update={"lesion": 1})
        first.write_text(record.model_copy(update={"findings": (*record.findings, lesion)}).model_dump_json())
        worker.analyse_study(STUDY, receive(worker, 2), CREATED + 1)
        worker.deliver_report(STUDY, 2, "pacs", 1, 3)
    ((_, _, body),) = server.posted
    assert [e["resource"]["status"] for e in json.loads(body)["entry"]].count("cancelled") == 1


@pytest.mark.parametrize("is_there", [True, False])
def test_the_doctor_calls_destinations_of_every_kind(worker, is_there):
    capable = {"resourceType": "CapabilityStatement"}
    with fhir_server(200, capable) as server, hl7_engine(None) as engine, stow_server() as web:
        host, port = engine.server_address
        peers = (
            StowDestination(name="web", kind="stow", url=web.url),
            FhirDestination(name="ehr", kind="fhir", url=server.url),
            Hl7Destination(name="engine", kind="hl7", host=host, port=port),
        )
        settings = worker.settings.model_copy(update={"destinations": peers})
        if is_there:
            checks = operate.doctor(settings)
    if not is_there:
        checks = operate.doctor(settings)
    called = {check.name: check.ok for check in checks if check.name.startswith("destination ")}
    assert called == {f"destination {name}": is_there for name in ("web", "ehr", "engine")}


def urgent(files, folder, revision, created):
    """The first report is urgent, its amendment is not."""
    folder.mkdir(parents=True)
    kinds = ("pneumothorax",) if revision == 1 else ()
    report = sample_report(STUDY, revision=revision, created=created, urgent=kinds)
    (folder / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
    return "reported"


def hook(server, *events, name="hook"):
    return WebhookDestination(name=name, kind="webhook", url=server.url, events=events)


def told(server):
    return [json.loads(body) for _, _, body in server.posted]


def deliver(worker, name, revision=1):
    """The next attempt, as the queue would make it; nothing where none is due."""
    row = index.get_delivery(worker.engine, STUDY, revision, name)
    if row is not None and row.state in (DeliveryState.PENDING, DeliveryState.DELAYED):
        worker.deliver_report(STUDY, revision, name, row.attempts + 1, 3)
    return index.get_delivery(worker.engine, STUDY, revision, name)


def test_who_wants_to_hear_of_reports_hears_of_each_and_who_of_urgent_ones_of_their_amendments_too(worker):
    with fhir_server(200) as every, fhir_server(200) as some:
        peers = (hook(every, "report", name="every"), hook(some, "urgent", name="some"))
        worker = replace(worker, settings=worker.settings.model_copy(update={"destinations": peers}), analyse=urgent)
        for revision in (1, 2):
            worker.analyse_study(STUDY, receive(worker, revision), CREATED + revision)
            assert deliver(worker, "every", revision).state is DeliveryState.DELIVERED
            assert deliver(worker, "some", revision).state is DeliveryState.DELIVERED
    assert [(n["revision"], n["state"], n["urgent"]) for n in told(every)] == [
        (1, "reported", True),
        (2, "reported", False),
    ]
    assert told(some) == told(every)


def test_who_wants_to_hear_of_urgent_reports_hears_of_no_other(worker):
    with fhir_server(200) as server:
        worker = sending_to(worker, hook(server, "urgent", "parked"))
        worker.analyse_study(STUDY, receive(worker), CREATED)
        assert deliver(worker, "hook") is None


def test_a_delivery_that_is_given_up_is_told_of_and_so_is_a_failed_analysis(worker, peer):
    peer.status = 0xC000
    with fhir_server(200) as server:
        peers = (*worker.settings.destinations, hook(server, "report", "parked"))
        worker = replace(worker, settings=worker.settings.model_copy(update={"destinations": peers}))
        worker.analyse_study(STUDY, receive(worker), CREATED)
        deliver(worker, "hook")
        assert deliver(worker, "pacs").state is DeliveryState.PARKED
        assert deliver(worker, "hook").state is DeliveryState.DELIVERED
        failing = replace(worker, analyse=lambda *_: 1 / 0)
        failing.analyse_study(STUDY, receive(worker, 2), CREATED + 1)
        deliver(worker, "hook", 2)
    assert [(n["revision"], n["state"], n["parked"]) for n in told(server)] == [
        (1, "refused", []),
        (1, "refused", ["pacs"]),
        (2, "failed", []),
    ]


def test_what_no_worker_can_do_is_told_of(worker):
    with fhir_server(200) as server:
        told_too = hook(server, "parked")
        peers = (*worker.settings.destinations, told_too)
        worker = replace(worker, settings=worker.settings.model_copy(update={"destinations": peers}))
        worker.analyse_study(STUDY, receive(worker), CREATED)
        give_up(worker)
        deliver(worker, "hook")
        receive(worker, 2)
        with worker.engine.begin() as connection:
            worker.jobs.submit_analysis(connection, STUDY, 2, created=CREATED, priority=ROUTINE)
        give_up(worker)
        deliver(worker, "hook", 2)
        worker.analyse_study(STUDY, receive(worker, 3), CREATED)
        park_unconfigured(
            worker.engine, worker.settings.model_copy(update={"destinations": (told_too,)}), worker.notices
        )
        deliver(worker, "hook", 3)
    assert [(n["revision"], n["state"], n["parked"]) for n in told(server)] == [
        (1, "refused", ["pacs"]),
        (2, "failed", []),
        (3, "refused", ["pacs"]),
    ]


def give_up(worker):
    """As the engine leaves jobs that have taken their worker with them too often, and what a worker then does."""
    with worker.engine.begin() as connection:
        connection.execute(sa.text("update workflow_status set status = 'MAX_RECOVERY_ATTEMPTS_EXCEEDED'"))
    park_given_up(worker.engine, worker.jobs, worker.notices.queue_parked)


def test_what_is_parked_while_a_notice_is_on_its_way_is_told_after_it(worker, peer):
    peer.status = 0xC000
    with fhir_server(200) as server:
        peers = (*worker.settings.destinations, hook(server, "report", "parked"))
        worker = replace(worker, settings=worker.settings.model_copy(update={"destinations": peers}))
        worker.analyse_study(STUDY, receive(worker), CREATED)
        server.meanwhile = lambda: deliver(worker, "pacs")
        deliver(worker, "hook")
        deliver(worker, "hook")
    assert [n["parked"] for n in told(server)] == [[], ["pacs"]]


def test_attempts_at_one_notice_share_their_id_and_another_notice_of_the_same_has_its_own(worker, peer):
    with fhir_server(503) as server:
        peers = (*worker.settings.destinations, hook(server, "parked"))
        worker = replace(worker, settings=worker.settings.model_copy(update={"destinations": peers}))
        worker.analyse_study(STUDY, receive(worker), CREATED)
        peer.status = 0xC000
        deliver(worker, "pacs")
        worker.deliver_report(STUDY, 1, "hook", 1, 3)
        server.status = 200
        worker.deliver_report(STUDY, 1, "hook", 2, 2)
        operate.replay(worker.settings, STUDY)
        deliver(worker, "pacs")
        worker.deliver_report(STUDY, 1, "hook", 3, 3)
    bodies, ids = {body for _, _, body in server.posted}, [headers["webhook-id"] for _, headers, _ in server.posted]
    assert (len(bodies), len(ids)) == (1, 3)
    assert ids[0] == ids[1] != ids[2]


def test_a_notice_is_tried_again_and_parked_and_nobody_is_told_of_that(worker):
    with fhir_server(503) as busy, fhir_server(404) as wrong, fhir_server(200) as other:
        peers = (hook(busy, "report", name="busy"), hook(wrong, "report", name="wrong"), hook(other, "parked"))
        worker = replace(worker, settings=worker.settings.model_copy(update={"destinations": peers}))
        worker.analyse_study(STUDY, receive(worker), CREATED)
        assert deliver(worker, "busy").state is DeliveryState.DELAYED
        assert deliver(worker, "wrong").state is DeliveryState.PARKED
        assert deliver(worker, "hook") is None
    assert operate.replay(worker.settings, STUDY) == (f"deliver:{STUDY}:r1:wrong",)


def test_a_delivery_notes_what_was_sent_and_in_place_of_what(worker):
    worker.analyse_study(STUDY, receive(worker), CREATED)
    with pacs(sop_classes=(BasicTextSRStorage,)) as other, capture_logs() as logs:
        peer = worker.settings.destinations[0].model_copy(update={"port": other.port, "objects": ("sr", "sc")})
        worker = replace(worker, settings=worker.settings.model_copy(update={"destinations": (peer,)}))
        worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    row = only_delivery(worker)
    assert (row.state, row.objects) == (DeliveryState.DELIVERED, ("sr", "sc"))
    assert [(o.name, o.sent_as, o.instances) for o in row.outcomes] == [("sr", "sr_text", 1), ("sc", None, 0)]
    (event,) = [log for log in logs if log["event"] == "delivered"]
    assert (event["sent"], event["not_as_asked"]) == (["sr_text"], {"sr": "sr_text", "sc": None})
    told = Console(record=True, width=300, file=StringIO())
    operate.print_status(worker.settings, told)
    text = told.export_text()
    assert "pacs: Structured report as Basic Text SR: presentation context refused" in text
    assert "pacs: Summary page left out: presentation context refused" in text


@pytest.mark.parametrize("status", [0xA700, 0xC000])
def test_the_same_bytes_at_every_attempt(worker, peer, status):
    worker.analyse_study(STUDY, receive(worker), CREATED)
    peer.status = status
    worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    if status == 0xC000:
        assert only_delivery(worker).state is DeliveryState.PARKED
        operate.replay(worker.settings, STUDY)
    peer.status = 0x0000
    worker.deliver_report(STUDY, 1, "pacs", 2, 3)
    assert only_delivery(worker).state is DeliveryState.DELIVERED
    assert list(peer.received.values()) == [1, 1]
    assert [len(digests) for digests in peer.digests.values()] == [1, 1]


def test_a_destination_is_given_what_its_profile_names_now(worker, peer):
    """Objects are made of the stored record when they are sent: no new analysis for another profile."""
    worker.analyse_study(STUDY, receive(worker), CREATED)
    asked_later = worker.settings.destinations[0].model_copy(update={"objects": ("sc",)})
    worker = replace(worker, settings=worker.settings.model_copy(update={"destinations": (asked_later,)}))
    worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    assert [o.name for o in only_delivery(worker).outcomes] == ["sc"]
    assert sum(peer.received.values()) == 1


def test_a_damaged_record_parks_the_delivery(worker, peer):
    worker.analyse_study(STUDY, receive(worker), CREATED)
    (worker.settings.data_dir / result_path(STUDY, 1) / "report.json").write_text("{}")
    worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    row = only_delivery(worker)
    assert (row.state, row.last_error) == (DeliveryState.PARKED, "ValidationError")
    assert not peer.received


def test_older_report_does_not_arrive_after_a_newer_one(worker, peer):
    worker.analyse_study(STUDY, receive(worker, 1), CREATED)
    worker.analyse_study(STUDY, receive(worker, 2), CREATED)
    worker.deliver_report(STUDY, 2, "pacs", 1, 3)
    arrived = dict(peer.received)
    worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    assert peer.received == arrived
    states = [only_delivery(worker, revision).state for revision in (1, 2)]
    assert states == [DeliveryState.SUPERSEDED, DeliveryState.DELIVERED]
    assert operate.list_parked(worker.settings) == ()


def test_a_newer_report_that_goes_elsewhere_takes_the_place_of_none(worker, peer):
    """A late image makes a rule fit that sends the report to another destination only."""
    worker.analyse_study(STUDY, receive(worker, 1), CREATED)
    revision = receive(worker, 2)
    with worker.engine.begin() as connection:
        ledger.record_rule(connection, STUDY, revision, rule="elsewhere", destinations=("elsewhere",))
    worker.analyse_study(STUDY, revision, CREATED)
    worker.deliver_report(STUDY, 1, "pacs", 1, 3)
    assert index.get_delivery(worker.engine, STUDY, 1, "pacs").state is DeliveryState.DELIVERED
    assert peer.received


def test_the_report_of_a_study_with_a_late_image_names_the_one_before_it(worker, peer):
    """The site's own analysis, of a study that it refuses; the image that came late is no part of the first report."""
    worker = replace(worker, analyse=model_analysis(worker.settings))
    for number in (1, 2):
        worker.analyse_study(STUDY, receive(worker, number), CREATED + number)
    folders = [worker.settings.data_dir / result_path(STUDY, revision) for revision in (1, 2)]
    first, second = (dcmread(folder / "findings.sr.dcm") for folder in folders)
    assert "PredecessorDocumentsSequence" not in first
    (series,) = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    assert [s.ReferencedSOPInstanceUID for s in series.ReferencedSOPSequence] == [first.SOPInstanceUID]
    # What is sent is made of the record again, whether the earlier one is still kept or not.
    shutil.rmtree(folders[0])
    files = [worker.settings.data_dir / image.path for image in index.list_instances(worker.engine, STUDY, 2)]
    encode = encoder_of(folders[1], files)
    (again,) = encode("sr", ("seg",))
    assert part_10(again) == (folders[1] / "findings.sr.dcm").read_bytes()
    # This destination takes no Segmentations.
    worker.deliver_report(STUDY, 2, "pacs", 1, 3)
    (sent,) = encode("sr", ())
    assert sent.SOPInstanceUID in peer.received


def test_a_study_is_analysed_again_on_request_and_the_report_that_was_out_is_superseded(worker, peer, tmp_path):
    worker = replace(worker, analyse=model_analysis(worker.settings))
    config = tmp_path / "onescan.toml"
    config.write_text(f'data_dir = "{worker.settings.data_dir}"\n', encoding="utf-8")
    again = ["replay", STUDY, "--again", "--config", str(config)]
    assert CliRunner().invoke(cli.app, again).exit_code == 1, "nobody knows the study"
    revision = receive(worker)
    assert CliRunner().invoke(cli.app, again).exit_code == 1, "it has no report yet"
    worker.analyse_study(STUDY, revision, CREATED)
    first, second = (worker.settings.data_dir / result_path(STUDY, number) for number in (1, 2))
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    with worker.engine.begin() as connection:
        ledger.record_rule(connection, STUDY, 1, rule="chests", destinations=("pacs",))
    done = CliRunner().invoke(cli.app, again)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "queued: revision 2")
    assert CliRunner().invoke(cli.app, again).exit_code == 1, "it is queued already"
    study = index.get_study(worker.engine, STUDY)
    assert (study.state, study.revision, study.rule) == (StudyState.QUEUED, 2, "chests")
    worker.analyse_study(STUDY, 2, CREATED + 9)
    assert index.get_study(worker.engine, STUDY).state is StudyState.REFUSED
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    old, new = (dcmread(folder / "findings.sr.dcm") for folder in (first, second))
    (series,) = new.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert [s.ReferencedSOPInstanceUID for s in series.ReferencedSOPSequence] == [old.SOPInstanceUID]
    assert deliver(worker, "pacs", 2).state is DeliveryState.DELIVERED


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BadOutput("output is not finite"), "output is not finite"),
        (InconsistentSeries("two spacings"), "two spacings"),
        (ValueError("Test^Patient"), "ValueError"),
        (BadOutput(), "BadOutput"),
    ],
)
def test_what_a_failed_study_tells(worker, error, told):
    def fail(*_):
        raise error

    with capture_logs() as logs:
        replace(worker, analyse=fail).analyse_study(STUDY, receive(worker), CREATED)
    study = index.get_study(worker.engine, STUDY)
    assert (study.state, study.error) == (StudyState.FAILED, told)
    assert "Test^Patient" not in str(logs)


def test_everything_parked_is_listed_and_replayed(worker):
    studies = [derive_uid("worker", "parked", str(number)) for number in range(3)]
    for uid in studies:
        revision = receive(worker, study=uid)
        with worker.engine.begin() as connection:
            assert ledger.change_study(connection, uid, revision, to=StudyState.FAILED, since=(StudyState.QUEUED,))
    assert operate.replay(worker.settings, studies[0]) == (f"study:{studies[0]}:r1:0",)
    assert len(operate.replay(worker.settings, f"study:{studies[1]}:r1:0")) == 1
    assert operate.replay(worker.settings, studies[1]) == ()
    assert operate.replay(worker.settings, None) == (f"study:{studies[2]}:r1:0",)
    assert operate.replay(worker.settings, None) == ()


def test_more_than_a_page_of_parked_work_is_seen(worker):
    worker.analyse_study(STUDY, receive(worker), CREATED)
    with worker.engine.begin() as connection:
        row = connection.execute(sa.text("select * from delivery")).mappings().one()
        columns = ", ".join(f":{name}" for name in row)
        many = [{**row, "revision": number, "destination": "gone"} for number in range(2, 1203)]
        connection.execute(sa.text(f"insert into delivery values ({columns})"), many)
    assert len(index.list_deliveries(worker.engine, state=DeliveryState.PENDING)) == 1202
    with worker.engine.begin() as connection:
        connection.execute(sa.text("update delivery set state = 'parked' where destination = 'gone'"))
    assert len(operate.list_parked(worker.settings)) == 1201


def test_only_the_jobs_own_record_is_its_result(tmp_path):
    created = datetime.fromtimestamp(CREATED, UTC)
    folder = tmp_path / result_path(STUDY, 1)
    assert finished_outcome(folder, created) is None
    folder.mkdir(parents=True)
    report = sample_report(STUDY).model_copy(update={"created": created})
    (folder / "report.json").write_text(report.model_dump_json())
    assert finished_outcome(folder, created) == report.outcome
    assert finished_outcome(folder, created + timedelta(seconds=1)) is None
    (folder / "report.json").write_text("{}")
    assert finished_outcome(folder, created) is None


def test_default_attempts_go_on_for_about_a_day():
    settings = Settings()
    delays_s = [retry_delay_s(settings, left) for left in range(settings.delivery_attempts - 1, 0, -1)]
    assert delays_s == sorted(delays_s)
    assert (delays_s[0], delays_s[-1]) == (settings.delivery_backoff_s, 3600.0)
    assert 20 * 3600 < sum(delays_s) < 28 * 3600


def test_pauses_of_very_many_attempts():
    settings = Settings(delivery_attempts=100_000)
    assert retry_delay_s(settings, 1) == 3600.0
