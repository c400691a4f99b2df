"""Rules at work: on the DICOM port, in the worker, and tried on what is stored from the command line and the web."""

import time
from functools import partial
from io import StringIO

import pytest
from factories import make_ct_dataset, save_ct
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage
from rich.console import Console
from running import make_settings, onescan, role, wait_until
from structlog.testing import capture_logs
from web_samples import refused_report, serving

from dicom_gateway import operate
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.receive.assembly import Assembly, QuietRules
from dicom_gateway.receive.header import read_header
from dicom_gateway.receive.listener import start_listener
from dicom_gateway.receive.reception import Reception
from dicom_gateway.report.source_headers import read_source_headers
from dicom_gateway.settings import Destination, Rule
from dicom_gateway.store import index
from dicom_gateway.store.files import REPORT_NAME
from dicom_gateway.store.schema import StudyState, open_database
from dicom_gateway.store.traits import read_traits, rule_of_study
from dicom_gateway.web.app import create_app
from dicom_gateway.worker import Worker
from imaging.source_text import in_unicode
from imaging.uids import derive_uid

QUIET = QuietRules(quiet_period_s=5.0, quiet_period_single_image_s=5.0)
CHILD, CHEST, HEAD = (derive_uid("rules", name) for name in ("child", "chest", "head"))
RULES = (
    Rule(name="children", maximum_age_years=17, analyse=False),
    Rule(name="chest_ct", modality="CT", body_part=("CHEST", "THORAX*"), destinations=("archive",)),
)


@pytest.fixture
def settings(tmp_path):
    peers = [Destination(name=name, ae_title="PACS", host="127.0.0.1", port=1) for name in ("pacs", "archive")]
    return make_settings(tmp_path, destinations=tuple(peers), rules=RULES)


@pytest.fixture
def engine(settings):
    opened = open_database(settings.database)
    yield opened
    opened.dispose()


@pytest.fixture
def jobs(engine):
    queue = JobQueue(engine)
    yield queue
    queue.close()


@pytest.fixture
def send(settings, engine, jobs):
    """Send an image through the port and close its study."""
    reception = Reception(settings=settings, engine=engine)
    listener = start_listener(reception)

    def send_and_close(uid, **header):
        image = make_ct_dataset(StudyInstanceUID=uid, **header)
        entity = AE(ae_title="CT1")
        entity.add_requested_context(CTImageStorage)
        association = entity.associate("127.0.0.1", settings.dicom_port, ae_title=settings.ae_title)
        assert association.send_c_store(image).Status == 0x0000
        association.release()
        wait_until(lambda: not reception.associations.studies(), "the end of the association")
        assembly = Assembly(engine=engine, jobs=jobs, rules=QUIET, rule_of=partial(rule_of_study, engine, settings))
        # Two seconds at most count from one look to the next, whatever the clock says.
        looks = [assembly.close_complete(open_studies=(), now=time.time(), clock_s=2.0 * look) for look in range(30)]
        assert sum(looks, ()) == (uid,)
        return index.get_study(engine, uid)

    yield send_and_close
    listener.shutdown()


def send_all(send):
    send(CHILD, PatientBirthDate="20100601", StationName="ROOM2")
    send(CHEST)
    send(HEAD, BodyPartExamined="HEAD", StudyDescription="CT HEAD")


@pytest.fixture
def worker(settings, engine, jobs):
    def analyse(_files, folder, revision, created):
        folder.mkdir(parents=True)
        report = refused_report(folder.parent.name, revision=revision, created=created)
        (folder / REPORT_NAME).write_text(report.model_dump_json(), encoding="utf-8")
        return "refused"

    return Worker(settings=settings, engine=engine, jobs=jobs, analyse=analyse)


def destinations(engine, uid, revision=1):
    return {row.destination for row in index.list_deliveries(engine, uid) if row.revision == revision}


@pytest.mark.parametrize(
    ("declared", "encoded"),
    [
        (["", "ISO 2022 IR 58"], b"\x1b$)A" + "胸部".encode("gb2312") + b"\x1b(BCT "),
        ("GB18030", "胸部CT".encode("gb18030")),
        (None, "胸部CT".encode("gb18030")),
        ("ISO_IR 100", "胸部CT".encode()),
    ],
)
def test_rules_and_lists_read_what_results_will_say(tmp_path, declared, encoded):
    """However the words are written: rules, the index, and DICOMweb have one text, that of the results."""
    encoded += b" " * (len(encoded) % 2)
    file = tmp_path / "image.dcm"
    save_ct(file, StudyDescription="D" * len(encoded), SpecificCharacterSet=declared)
    file.write_bytes(file.read_bytes().replace(b"D" * len(encoded), encoded))
    with file.open("rb") as opened:
        opened.seek(132)
        content = opened.read()
    ds = dcmread(file, stop_before_pixels=True)
    start = content.index(b"\x08\x00\x05\x00" if declared else b"\x08\x00\x08\x00")
    header = read_header(
        lambda at, count: content[start + at : start + at + count],
        len(content) - start,
        transfer_syntax=ExplicitVRLittleEndian,
        sop_class_uid=ds.SOPClassUID,
        sop_instance_uid=ds.SOPInstanceUID,
    )
    (result,) = read_source_headers([file]).instances
    assert header.description == result.StudyDescription == in_unicode(dcmread(file)).StudyDescription == "胸部CT"


def test_a_study_that_a_rule_excludes_is_kept_and_not_queued(send, jobs, engine, settings):
    with capture_logs() as logs:
        row = send(CHILD, PatientBirthDate="20100601")
    assert (row.state, row.rule, row.instance_count) == (StudyState.EXCLUDED, "children", 1)
    assert jobs.waiting() == {}
    assert index.count_excluded(engine) == {"children": 1}
    assert operate.list_parked(settings) == ()
    assert [log["rule"] for log in logs if log["event"] == "study_excluded"] == ["children"]
    assert "Patient" not in str(logs) and "2010" not in str([log for log in logs if log["event"] == "study_excluded"])
    told = Console(record=True, width=200, file=StringIO())
    operate.print_status(settings, told)
    assert "Not analysed: rule children (1)" in told.export_text()


def test_an_operator_has_an_excluded_study_analysed(send, jobs, engine, settings, worker):
    send(CHILD, PatientBirthDate="20100601")
    assert operate.replay(settings, None) == ()
    (job,) = operate.replay(settings, CHILD)
    assert job == f"study:{CHILD}:r1:0"
    assert jobs.waiting() == {"studies": 1}
    assert operate.replay(settings, CHILD) == ()
    worker.analyse_study(CHILD, 1, time.time())
    assert (index.get_study(engine, CHILD).state, index.get_study(engine, CHILD).rule) == ("refused", "children")
    assert destinations(engine, CHILD) == {"pacs", "archive"}


def test_a_report_goes_where_the_rule_says_that_decided(send, engine, worker, settings):
    assert send(CHEST).rule == "chest_ct"
    worker.analyse_study(CHEST, 1, time.time())
    assert destinations(engine, CHEST) == {"archive"}
    assert send(HEAD, BodyPartExamined="HEAD").rule is None
    worker.analyse_study(HEAD, 1, time.time())
    assert destinations(engine, HEAD) == {"pacs", "archive"}


def test_each_revision_is_decided_by_all_of_its_series(send, engine, worker):
    assert send(HEAD, BodyPartExamined="HEAD").rule is None
    worker.analyse_study(HEAD, 1, time.time())
    late = send(HEAD, SeriesInstanceUID=derive_uid("rules", "late"), BodyPartExamined="THORAX ABDOMEN")
    assert (late.revision, late.rule, late.state) == (2, "chest_ct", StudyState.QUEUED)
    worker.analyse_study(HEAD, 2, time.time())
    assert (destinations(engine, HEAD), destinations(engine, HEAD, 2)) == ({"pacs", "archive"}, {"archive"})


def test_a_report_that_is_out_is_amended_whatever_a_rule_says(send, worker):
    send(HEAD, BodyPartExamined="HEAD", PatientBirthDate=None)
    worker.analyse_study(HEAD, 1, time.time())
    late = send(HEAD, InstanceNumber=2, SeriesInstanceUID=derive_uid("rules", "age"), PatientAge="005Y")
    assert (late.rule, late.state) == ("children", StudyState.QUEUED)


def test_a_file_that_cannot_be_read_keeps_no_study_open(send, engine, settings):
    row = send(CHEST)
    (file,) = settings.studies_dir.glob("*/*/*.dcm")
    file.write_bytes(b"damaged")
    traits = read_traits(engine, settings.data_dir, row)
    assert (traits.calling_ae_title, traits.modality, traits.age_years) == ({"CT1"}, {""}, None)
    file.unlink()
    assert read_traits(engine, settings.data_dir, row) == traits


@pytest.mark.parametrize("vr", [b"ZZ", b"FD"])
def test_a_value_that_cannot_be_converted_counts_as_not_there(send, engine, settings, vr):
    """A VR that nobody knows, and a number cut short."""
    row = send(CHEST, StationName="ROOM", StudyDescription="CT 1", PatientAge="060Y", PatientBirthDate=None)
    (file,) = settings.studies_dir.glob("*/*/*.dcm")
    content = file.read_bytes()
    for element in (b"\x08\0\x60\0CS", b"\x08\0\x10\x10SH", b"\x08\0\x30\x10LO", b"\x10\0\x10\x10AS"):
        assert content.count(element) == 1
        content = content.replace(element, element[:4] + vr)
    file.write_bytes(content)
    traits = read_traits(engine, settings.data_dir, row)
    assert traits.modality == traits.station_name == traits.study_description == {""}
    assert (traits.age_years, traits.body_part) == (None, {"CHEST"})


@pytest.fixture
def config(settings, tmp_path):
    """Writes a settings file for the same data with other rules."""

    def write(*rules):
        path = tmp_path / "site.toml"
        lines = [f'data_dir = "{settings.data_dir}"', *rules]
        path.write_text("\n".join(lines))
        return path

    return write


def test_rules_are_tried_on_the_stored_studies_from_the_command_line(send, config, engine):
    send_all(send)
    before = index.list_studies(engine, limit=None)
    ran = onescan("rules", "--config", config('[[rules]]\nname = "rooms"\nstation_name = "room*"\nanalyse = false'))
    assert ran.returncode == 0, ran.stderr
    lines = {uid: line for uid in (CHILD, CHEST, HEAD) for line in ran.stdout.splitlines() if uid[:40] in line}
    assert "rooms" in lines[CHILD] and "Not analysed" in lines[CHILD]
    for uid in (CHEST, HEAD):
        assert "none" in lines[uid] and "Analysed, report to all destinations" in lines[uid]
    assert "3 studies since" in ran.stdout
    assert "Test" not in ran.stdout + ran.stderr and "CT HEAD" not in ran.stdout
    assert index.list_studies(engine, limit=None) == before


@pytest.mark.parametrize("since", ["yesterday", "7m"])
def test_a_time_that_is_none_is_wrong_usage(config, since):
    ran = onescan("rules", "--config", config(), f"--since={since}")
    assert (ran.returncode, "for example 7d" in ran.stderr) == (2, True)


def test_rules_are_tried_on_the_stored_studies_on_the_web(send, settings, engine):
    send_all(send)
    with serving(create_app(settings)) as client:
        page = client.get("/rules").text
        assert page.count("Not analysed</td>") == 2  # the rule, and its study
        for words in (
            "age up to 17",
            "modality CT, body part CHEST or THORAX*",
            "Analysed, report to archive",
            "ROOM2",
        ):
            assert words in page
        assert all(f"/studies/{uid}" in page for uid in (CHILD, CHEST, HEAD))
        assert 'aria-current="page">Rules' in page
        listed = client.get("/").text
        assert "Not analysed: rule children" in listed
        assert "chest_ct" in client.get("/system").text
        assert client.get(f"/api/studies/{CHILD}").json()["rule"] == "children"
        study = client.get(f"/studies/{CHILD}").text
        assert "Not analysed: rule children" in study and f'action="/studies/{CHILD}/replay"' in study
        asked = client.post(f"/studies/{CHILD}/replay", headers={"X-OneScan-Request": "1"})
        assert asked.status_code == 303
        assert index.get_study(engine, CHILD).state is StudyState.QUEUED


def test_without_rules_the_page_says_what_happens(settings):
    with serving(create_app(settings.model_copy(update={"rules": ()}))) as client:
        assert "Every study is analysed" in client.get("/rules").text


def test_the_listener_of_the_service_applies_the_rules(settings, engine):
    with role(settings, "listener"):
        entity = AE(ae_title="CT1")
        entity.add_requested_context(CTImageStorage)
        association = entity.associate("127.0.0.1", settings.dicom_port, ae_title=settings.ae_title)
        assert association.send_c_store(make_ct_dataset(StudyInstanceUID=CHILD, PatientAge="012Y")).Status == 0x0000
        association.release()
        row = wait_until(
            lambda: (row := index.get_study(engine, CHILD)) and row.state is not StudyState.RECEIVING and row,
            "the study is complete",
        )
    assert (row.state, row.rule) == (StudyState.EXCLUDED, "children")
