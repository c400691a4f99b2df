"""The pages over HTTP: what a reader is told, and that nothing hostile gets through."""

import html
import re
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_samples import (
    CONTRAST,
    NOW,
    UNTRAINED,
    deliver,
    fail,
    finding,
    open_site,
    publish,
    queue,
    receive,
    refused_report,
    sample_findings,
    sample_report,
    serving,
    site_settings,
)

from dicom_gateway.report.content import DISCLAIMER, Report
from dicom_gateway.settings import Settings
from dicom_gateway.store.schema import DeliveryState
from dicom_gateway.web import wording
from dicom_gateway.web.app import create_app
from dicom_gateway.web.findings import arrange, in_short
from dicom_gateway.web.pages import shown_settings
from models.findings import FindingKind
from models.manifest import load_manifest

REPORTED, REFUSED, FAILED, WAITING, AMENDED = "1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.4", "1.2.3.5"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"

_WHY = "presentation context refused"
OUTCOMES = [
    {"name": "sr", "sent_as": "sr_text", "instances": 1, "reason": _WHY},
    {"name": "seg", "sent_as": None, "instances": 0, "reason": _WHY},
    {"name": "sc", "sent_as": "sc", "instances": 1, "reason": None},
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A site that no test changes."""
    settings = site_settings(
        tmp_path_factory.mktemp("site"), database_url=None, calling_ae_titles=("SCANNER",), ae_title="LUNGBOX"
    )
    engine = open_site(settings)
    receive(engine, REPORTED, count=3, patient_name="Doe^Jane=王^小东")
    publish(settings, engine, sample_report(REPORTED))
    deliver(engine, REPORTED, "pacs", DeliveryState.PARKED, attempts=8, last_error="connection refused")
    deliver(engine, REPORTED, "archive", DeliveryState.DELIVERED, attempts=1, outcomes=OUTCOMES)
    receive(engine, REFUSED, now=NOW + 60)
    publish(settings, engine, refused_report(REFUSED), now=NOW + 60)
    receive(engine, FAILED, patient_name=HOSTILE, description=HOSTILE, patient_id=HOSTILE, accession_number=HOSTILE)
    fail(engine, FAILED, "InconsistentSeries")
    receive(engine, WAITING, now=NOW + 120, description="Waiting study")
    queue(engine, WAITING, now=NOW + 120)
    receive(engine, AMENDED, now=NOW + 180)
    negative = tuple(finding(kind, "absent", probability=0.02, operating_point=0.5) for kind in FindingKind)
    publish(settings, engine, sample_report(AMENDED, findings=negative), now=NOW + 180)
    receive(engine, AMENDED, count=2, now=NOW + 900)
    publish(settings, engine, sample_report(AMENDED, revision=2, urgent=("pneumothorax",)), now=NOW + 900)
    engine.dispose()
    return settings


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[httpx.Client]:
    """A client of that site."""
    with serving(create_app(settings)) as client:
        yield client


class _Text(HTMLParser):
    """The visible text of a page, cut at headings of the second level."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[str, str] = {"": ""}
        self._current = ""
        self._in_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "h2":
            self._in_heading, self._current = True, ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "h2":
            self._in_heading, self._current = False, self._current.strip()
            self.sections.setdefault(self._current, "")

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self._current += data
        else:
            self.sections[self._current] = f"{self.sections.get(self._current, '')} {data}"


class _Tags(HTMLParser):
    """Every start tag of a page with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def sections(page: httpx.Response) -> dict[str, str]:
    """Heading -> text under it, blanks collapsed; the text before the first heading under ""."""
    assert page.status_code == 200
    parser = _Text()
    parser.feed(page.text)
    return {re.sub(r"\s*\d+$", "", title): " ".join(text.split()) for title, text in parser.sections.items()}


def test_every_page_says_that_it_is_not_a_medical_device(client: httpx.Client) -> None:
    for path in (
        "/",
        f"/studies/{REPORTED}",
        f"/studies/{REFUSED}",
        "/deliveries",
        "/evidence",
        "/system",
        "/api",
        "/nowhere",
    ):
        assert DISCLAIMER in client.get(path).text


def test_the_list_shows_each_study_with_state_headline_and_deliveries(client: httpx.Client) -> None:
    text = sections(client.get("/"))[""]
    assert "Doe, Jane (王 小东)" in text
    for word in ("Reported", "Refused", "Failed", "Waiting", "Parked", "Delivered", "amended, revision 2"):
        assert word in text
    assert text.count("Urgent: pneumothorax") == 1
    assert "8.4 x 6.1 mm" in text
    assert "slices 41 to 44 are missing" in text


def test_the_list_is_searched_and_filtered(client: httpx.Client) -> None:
    found = client.get("/", params={"search": "waiting stu"}).text
    assert f"/studies/{WAITING}" in found and f"/studies/{REPORTED}" not in found
    found = client.get("/", params={"state": "refused"}).text
    assert f"/studies/{REFUSED}" in found and f"/studies/{REPORTED}" not in found
    assert "No study matches" in client.get("/", params={"search": "nobody"}).text


def test_a_choice_counts_at_once_on_every_page_that_offers_one(client: httpx.Client) -> None:
    pages = ("/", "/deliveries", f"/studies/{REPORTED}")
    assert all("/static/choose.js" in client.get(page).text for page in pages)
    assert 'matches("select[data-submit]")' in client.get("/static/choose.js").text


def test_the_list_is_paged(tmp_path: Path) -> None:
    settings = site_settings(tmp_path)
    engine = open_site(settings)
    uids = [f"1.2.9.{number}" for number in range(30)]
    for number, uid in enumerate(uids):
        receive(engine, uid, now=NOW + number)
    engine.dispose()
    with serving(create_app(settings)) as client:
        pages = [client.get("/", params={"page": page}).text for page in (1, 2)]
    listed = [re.findall(r'href="/studies/([\d.]+)"', page) for page in pages]
    assert listed[0] + listed[1] == uids[::-1]
    assert 'rel="next"' in pages[0] and 'rel="next"' not in pages[1]


def test_an_empty_list_says_how_to_connect_a_pacs(tmp_path: Path) -> None:
    settings = site_settings(tmp_path, ae_title="LUNGBOX", dicom_port=11999, calling_ae_titles=())
    with serving(create_app(settings)) as client:
        text = " ".join(sections(client.get("/")).values())
    assert "LUNGBOX" in text and "11999" in text
    assert "No calling AE title is allowed yet" in text


def test_the_report_page_tells_measurements_place_probability_and_evidence(client: httpx.Client) -> None:
    page = sections(client.get(f"/studies/{REPORTED}"))
    assert "8.4 x 6.1 mm" in page["In short"]
    present = page["Present"]
    for words in ("right upper lobe", "8.4 mm", "163 mm³", "Probability 0.91 (operating point 0.50)", "Evidence C"):
        assert words in present
    assert "simulated CT only" in present
    assert "Aortic dilatation" in page["Indeterminate"] and "40.2 mm" in page["Indeterminate"]
    assert "Pneumothorax" in page["Not found"]
    assert "the lowest slice lies above the hiatus" in page["Not found"]
    assert "Limited: noise 31 HU is above 25 HU." in page["In short"]
    assert "noise 31 HU is above 25 HU" in page["Image quality"]
    assert "localizer" in page["Series not analysed"]
    assert "onescan-chest" in page["Origin"]


def test_what_was_not_assessed_stands_apart_with_its_reasons(client: httpx.Client) -> None:
    page = sections(client.get(f"/studies/{REPORTED}"))
    for reason in (CONTRAST, UNTRAINED):
        assert wording.sentence(reason) in page["Not assessed"]
    unassessed = [f.kind for f in sample_findings() if f.presence == "not_assessed"]
    for kind in unassessed:
        assert wording.kind(kind) in page["Not assessed"]
        assert wording.kind(kind) not in page["Not found"] + page["Present"] + page["Indeterminate"]
    assert not re.search(r"absent|not found|negative|excluded|no sign", page["Not assessed"], re.IGNORECASE)


def test_a_refused_study_says_why_and_answers_nothing(client: httpx.Client) -> None:
    page = sections(client.get(f"/studies/{REFUSED}"))
    assert "Not analysed: slices 41 to 44 are missing" in page["In short"]
    assert not {"Present", "Not found", "Indeterminate"} & set(page)
    assert all(wording.kind(kind) in page["Not assessed"] for kind in FindingKind)


def test_a_failed_study_offers_the_replay_and_a_waiting_one_says_so(client: httpx.Client) -> None:
    failed = client.get(f"/studies/{FAILED}").text
    assert "InconsistentSeries" in failed
    assert f'action="/studies/{FAILED}/replay"' in failed
    waiting = client.get(f"/studies/{WAITING}").text
    assert "the analysis starts when the worker is free" in waiting
    assert "replay" not in waiting


def test_a_delivery_says_what_was_sent_in_place_of_what(client: httpx.Client) -> None:
    for path in (f"/studies/{REPORTED}", "/deliveries"):
        page = client.get(path).text
        assert "Structured report as Basic Text SR: presentation context refused" in page
        assert "Segmentation left out: presentation context refused" in page
        assert ">Summary page<" in page
    archive = next(d for d in client.get("/api/deliveries").json() if d["destination"] == "archive")
    assert archive["outcomes"] == OUTCOMES


def test_a_parked_delivery_has_its_button_and_no_other(client: httpx.Client) -> None:
    for path in (f"/studies/{REPORTED}", "/deliveries"):
        page = client.get(path).text
        assert f"/studies/{REPORTED}/reports/1/deliveries/pacs/replay" in page
        assert "deliveries/archive/replay" not in page
    assert page.index("Parked") < page.rindex("archive")


def test_an_earlier_revision_says_that_it_is_superseded(client: httpx.Client) -> None:
    newest, first = client.get(f"/studies/{AMENDED}").text, client.get(f"/studies/{AMENDED}?revision=1").text
    assert "superseded" not in newest and "superseded" in first
    assert "Urgent: pneumothorax" in newest and "Urgent" not in first
    assert "8.4 x 6.1 mm" in newest and "8.4 x 6.1 mm" not in first
    assert 'value="2" selected' in newest and 'value="1" selected' in first


def test_hostile_headers_are_shown_as_text(client: httpx.Client) -> None:
    for path in ("/", f"/studies/{FAILED}", "/?search=" + HOSTILE):
        page = client.get(path).text
        assert "<script>alert" not in page and "<img src=x" not in page
        assert "&lt;script&gt;alert(1)" in page


def test_pages_load_and_run_nothing_that_the_policy_forbids(client: httpx.Client) -> None:
    for path in ("/", f"/studies/{REPORTED}", f"/studies/{FAILED}", "/deliveries", "/evidence", "/system", "/api"):
        parser = _Tags()
        parser.feed(client.get(path).text)
        for tag, attributes in parser.tags:
            assert tag != "style" and (tag != "script" or "src" in attributes)
            assert not [name for name in attributes if name == "style" or name.startswith("on")]
            for address in (attributes.get(name) or "/" for name in ("src", "href", "action")):
                assert re.match(r"/(?!/)|#", address)
                if address.startswith("/static/"):
                    assert client.get(address).status_code == 200


def test_every_key_image_and_download_of_the_page_is_there(client: httpx.Client) -> None:
    page = client.get(f"/studies/{REPORTED}").text
    files = set(re.findall(rf'"(/api/studies/{REPORTED}/[^"]+)"', page))
    assert len(files) == 4 + 5  # key images; SR, summary page, two parts of the segments and JSON
    assert all(client.get(file).status_code == 200 for file in files)


def test_the_settings_shown_hide_the_password_of_the_database() -> None:
    shown = str(shown_settings(Settings(database_url="postgresql://onescan:hunter2@db/onescan")))
    assert "hunter2" not in shown and "onescan:***@db" in shown


def test_the_system_page_shows_health_settings_and_checks(client: httpx.Client) -> None:
    page = sections(client.get("/system"))
    assert "LUNGBOX" in page["Settings"] and "calling_ae_titles" in page["Settings"]
    assert "1 failed study" in page[""] and "1 parked delivery" in page[""]


def test_the_evidence_page_shows_what_was_measured_about_each_answer(settings: Settings, client: httpx.Client) -> None:
    manifest = load_manifest(settings.model_dir)
    page = client.get("/evidence")
    text = html.unescape(page.text)
    assert page.status_code == 200
    assert all(wording.kind(kind.value) in text for kind in FindingKind)
    assert all(reason in text for reason in manifest.withheld.values())
    assert all(source.name in text for source in manifest.training_data)
    assert text.count("<tr>") > sum(len(evidence.trials) for evidence in manifest.evidence.values())


def test_a_model_that_cannot_be_read_has_no_evidence_page(tmp_path: Path) -> None:
    with serving(create_app(site_settings(tmp_path, model_dir=tmp_path))) as client:
        page = client.get("/evidence")
    assert page.status_code == 404
    assert "model.json" in page.text and str(tmp_path) not in page.text


def test_the_checks_of_the_doctor_run_on_demand_only(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free_port = taken.getsockname()[1]
    settings = site_settings(tmp_path, destinations=(), dicom_host="127.0.0.1", dicom_port=free_port)
    with serving(create_app(settings)) as client:
        assert "<h3>Senders" not in client.get("/system").text
        assert client.post("/system/checks").status_code == 403
        answer = client.post("/system/checks", headers={"Sec-Fetch-Site": "same-origin"})
        checked = " ".join(sections(answer)["Checks of the installation"].split())
    assert "Senders Good SCANNER" in checked


@given(
    st.lists(
        st.tuples(
            st.sampled_from([kind.value for kind in FindingKind]),
            st.sampled_from(["present", "absent", "indeterminate", "not_assessed"]),
        ),
        unique_by=lambda answer: answer[0],
    )
)
def test_every_kind_is_shown_exactly_once_under_its_own_presence(answers: list[tuple[str, str]]) -> None:
    """Whatever is answered, no kind is lost, doubled or moved to another presence."""
    findings = tuple(
        finding(kind, presence, reason="because" if presence == "not_assessed" else None) for kind, presence in answers
    )
    reading = arrange(sample_report("1.2.3", findings=findings))
    shown = [
        (answer.kind, presence)
        for presence in ("present", "indeterminate", "absent")
        for answer in getattr(reading, presence)
    ]
    unassessed = [name for names in reading.not_assessed.values() for name in names]
    assert sorted(shown) == sorted(answer for answer in answers if answer[1] != "not_assessed")
    assert sorted(unassessed) == sorted(wording.kind(kind) for kind, presence in answers if presence == "not_assessed")


def test_a_lesion_outranks_an_absent_answer_about_the_study() -> None:
    findings = (finding("pulmonary_nodule", "absent"), finding("pulmonary_nodule", "present", lesion=1))
    reading = arrange(sample_report("1.2.3", findings=findings))
    assert [answer.kind for answer in reading.present] == ["pulmonary_nodule"]
    assert not reading.absent


@pytest.mark.parametrize("report", [sample_report("1.2"), refused_report("1.2")], ids=["reported", "refused"])
def test_the_short_version_never_names_what_was_not_assessed(report: Report) -> None:
    sentences = " ".join(in_short(report)).lower()
    for answer in report.findings:
        if answer.presence == "not_assessed":
            assert wording.kind(answer.kind).lower() not in sentences


@pytest.mark.parametrize(("presence", "words"), [("absent", "Nothing found"), ("indeterminate", "Nothing clearly")])
def test_the_short_version_tells_positives_and_limits_only(presence: str, words: str) -> None:
    findings = (finding("emphysema", "absent"), finding("cardiomegaly", presence), *sample_findings()[-1:])
    sentences = in_short(sample_report("1.2", findings=findings))
    assert sentences[0].startswith(words)
    assert sentences[1:-1] == (("Indeterminate: cardiomegaly.",) if presence == "indeterminate" else ())
    assert sentences[-1] == "Limited: noise 31 HU is above 25 HU."


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Doe^Jane", "Doe, Jane"),
        ("Doe", "Doe"),
        ("Smith^John^A^Dr.^Jr.", "Smith, John A Dr. Jr."),
        ("Wang^XiaoDong=王^小东", "Wang, XiaoDong (王 小东)"),
        ("=山田^太郎", "山田 太郎"),
        ("", "No name"),
        ("^^^^", "No name"),
        ("==", "No name"),
    ],
)
def test_names_of_persons_are_written_out(name: str, shown: str) -> None:
    assert wording.person(name) == shown


@given(st.text(max_size=64))
def test_any_text_in_a_name_or_a_date_is_shown_not_refused(text: str) -> None:
    assert wording.person(text)
    assert wording.day(text).replace("-", "") == text.strip().replace("-", "")
