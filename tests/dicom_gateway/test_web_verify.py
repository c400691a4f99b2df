"""A person verifies a report on its page and by the API: who may, what is asked before it counts, what is refused."""

import html
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conformance.conftest import write_ct
from verify_samples import STUDY, analysed_study, record, run_queued, stored
from web_samples import serving

from dicom_gateway import verify as verifying
from dicom_gateway.report.content import Verification
from dicom_gateway.store import index
from dicom_gateway.store.files import result_path
from dicom_gateway.store.schema import StudyState
from dicom_gateway.users import Person, hash_line
from dicom_gateway.web.app import create_app
from dicom_gateway.worker import Worker

PAGE, FORM = f"/studies/{STUDY}", f"/studies/{STUDY}/reports/1/verification"
API = f"/api{FORM}"
OURS = {"X-OneScan-Request": "1"}
FROM_OUR_PAGE = {"Sec-Fetch-Site": "same-origin"}
LI = {"family_name": "Li", "given_name": "Wei", "organization": "Test Hospital"}
LI_JSON = {"observer_name": "Li^Wei", "organization": "Test Hospital"}
READER, LOOKER = ("reader", "pass word"), ("looker", "pass word")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with analysed_study(tmp_path) as working:
        yield working


@pytest.fixture
def client(worker: Worker) -> Iterator[httpx.Client]:
    with serving(create_app(worker.settings)) as client:
        yield client


@pytest.fixture
def guarded(worker: Worker, tmp_path: Path) -> Iterator[httpx.Client]:
    """The same site with a reader, who is Li Wei, and one who may only look."""
    users = tmp_path / "users"
    users.write_text(f"{hash_line(*READER, Person('Li^Wei', 'Test Hospital'))}\n{hash_line(*LOOKER)}\n")
    with serving(create_app(worker.settings.model_copy(update={"web_users_file": users}))) as client:
        yield client


def words(page: str) -> str:
    """The text of a page on one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def is_untouched(worker: Worker) -> bool:
    folder = worker.settings.data_dir / result_path(STUDY, 1)
    study = index.get_study(worker.engine, STUDY)
    assert study is not None
    return (study.revision, study.state) == (1, StudyState.REPORTED) and [*folder.parent.iterdir()] == [folder]


def test_one_click_confirms_everything_and_the_page_says_so_at_once(worker: Worker, client: httpx.Client) -> None:
    assert 'form="verify"' in client.get(PAGE).text
    answer = client.post(FORM, data=LI | {"comment": " ", "pleural_effusion": ""}, headers=FROM_OUR_PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, PAGE)
    for _ in range(2):
        page = client.get(PAGE).text
        assert "Verified by Li, Wei , Test Hospital" in words(page) and "Every automated answer was confirmed" in page
        assert f'href="?revision={1}"' in page and 'form="verify"' not in page
        assert "verified by Li, Wei" in client.get("/").text
        run_queued(worker, 2)
    assert {f.verdict.decision for f in stored(worker, 2).findings if f.verdict} == {"confirmed"}
    assert "Correct" in page and 'form="verify"' in client.get(f"{PAGE}?correct=true").text
    assert 'form="verify"' not in client.get(f"{PAGE}?revision=1").text


def test_changes_are_shown_before_they_count(worker: Worker, client: httpx.Client) -> None:
    given = LI | {"pleural_effusion": "absent", "pneumothorax": "present", "comment": "Seen\r\n<b>on</b> two slices."}
    review = client.post(FORM, data=given, headers=FROM_OUR_PAGE)
    assert review.status_code == 200 and is_untouched(worker)
    assert "Pleural effusion Present → becomes Not found" in words(review.text)
    assert "Pneumothorax Not found → becomes Present" in words(review.text)
    assert "Seen &lt;b&gt;on&lt;/b&gt; two slices." in review.text
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', review.text))
    assert set(hidden) == {*given, "reviewed"}
    again = {name: html.unescape(value) for name, value in hidden.items()}
    assert client.post(FORM, data=again, headers=FROM_OUR_PAGE).status_code == 303
    report = stored(worker, 2)
    assert report.verification == Verification(
        observer_name="Li^Wei", organization="Test Hospital", comment="Seen <b>on</b> two slices."
    )
    page = client.get(PAGE)
    assert "Against the automated report: Pneumothorax Not found → becomes Present" in words(page.text)
    assert "Comment of the verifying observer: Seen &lt;b&gt;on" in page.text


def test_a_kind_without_any_lesion_left_is_absent_and_that_is_shown(worker: Worker, client: httpx.Client) -> None:
    lesions = {"pulmonary_nodule:1": "absent", "pulmonary_nodule:2": "absent"}
    review = client.post(FORM, data=LI | lesions, headers=FROM_OUR_PAGE)
    assert "Pulmonary nodule Present → becomes Not found" in words(review.text)
    assert client.post(FORM, data=LI | lesions | {"reviewed": "yes"}, headers=FROM_OUR_PAGE).status_code == 303
    answers = {(f.kind, f.lesion): f.presence for f in stored(worker, 2).findings}
    assert answers["pulmonary_nodule", None] == "absent"


def test_of_more_lesions_than_are_described_others_can_be_present(worker: Worker, client: httpx.Client) -> None:
    assert "Others are present" not in client.get(PAGE).text
    record = worker.settings.data_dir / result_path(STUDY, 1) / "report.json"
    document = json.loads(record.read_text())
    nodules = next(f for f in document["findings"] if (f["kind"], f["lesion"]) == ("pulmonary_nodule", None))
    nodules["measurements"][0]["value"] = 5.0
    record.write_text(json.dumps(document))
    assert "Others are present" in client.get(PAGE).text
    rejected = {"pulmonary_nodule:1": "absent", "pulmonary_nodule:2": "absent"}
    form = LI | rejected | {"pulmonary_nodule": "present", "reviewed": "yes"}
    assert client.post(FORM, data=form, headers=FROM_OUR_PAGE).status_code == 303
    study = next(f for f in stored(worker, 2).findings if (f.kind, f.lesion) == ("pulmonary_nodule", None))
    assert (study.presence, [m.value for m in study.measurements]) == ("present", [4.0])


def test_the_api_does_the_same(worker: Worker, client: httpx.Client) -> None:
    body = LI_JSON | {"answers": {"pulmonary_nodule:2": "absent"}, "comment": "Scar."}
    answer = client.post(API, json=body, headers=OURS)
    assert answer.status_code == 200
    assert answer.json() == stored(worker, 2).model_dump(mode="json")
    assert answer.json()["verification"] == LI_JSON | {"comment": "Scar."}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"answers": {"pneumonia": "absent"}}, 422),
        ({"answers": {"emphysema": "perhaps"}}, 422),
        ({"answers": {"pulmonary_nodule:7": "absent"}}, 409),
        ({"answers": {"pulmonary_nodule:1": "absent", "pulmonary_nodule:2": "absent"}}, 409),
        ({"comment": "two\nlines"}, 422),
        ({"observer_name": "a\\b"}, 422),
        ({"observer_name": None}, 403),
        ({"unknown": 1}, 422),
    ],
)
def test_what_cannot_be_stated_changes_nothing(
    worker: Worker, client: httpx.Client, body: dict[str, object], status: int
) -> None:
    answer = client.post(API, json=LI_JSON | body, headers=OURS)
    assert answer.status_code == status and answer.json()["detail"]
    assert is_untouched(worker)


def test_the_page_explains_what_it_refuses(worker: Worker, client: httpx.Client) -> None:
    refused = [
        ({"pulmonary_nodule:7": "absent"}, 409, "The report has no pulmonary nodule:7"),
        ({"emphysema": "perhaps"}, 409, "neither present nor absent"),
        ({f"pulmonary_nodule:{'9' * 5000}": "absent"}, 409, "no finding kind"),
        ({"pulmonary_nodule:01": "absent"}, 409, "no finding kind"),
        ({f"{n}{'x' * 90}": "absent" for n in range(500)}, 409, "no finding kind"),
        ({"organization": ""}, 403, "say name and organisation"),
        ({"family_name": "a\\b"}, 422, "observer name cannot be taken"),
        ({"comment": "x" * 501}, 422, "comment cannot be taken"),
    ]
    for fields, status, why in refused:
        answer = client.post(FORM, data=LI | fields | {"reviewed": "yes"}, headers=FROM_OUR_PAGE)
        assert (answer.status_code, why in answer.text) == (status, True)
    assert client.post(FORM.replace("/1/", "/3/"), data=LI, headers=FROM_OUR_PAGE).status_code == 404
    assert is_untouched(worker)


def test_no_form_of_ours_has_a_file_or_a_field_twice(worker: Worker, client: httpx.Client) -> None:
    for more in ({"data": LI | {"pneumothorax": ["present", ""]}}, {"data": LI, "files": {"comment": b"x"}}):
        assert client.post(FORM, headers=FROM_OUR_PAGE, **more).status_code == 400
    assert is_untouched(worker)


_ONE_FIELD = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", b"family_name=%FF&organization=Hospital&reviewed=yes"),
        ("application/x-www-form-urlencoded", b"family_name=Li&organization=Hospital&comment=%ED%A0%80&reviewed=yes"),
        ("multipart/form-data; boundary=x; charset=utf-7", _ONE_FIELD % (b"comment", b"+2AA-")),
        ("multipart/form-data; boundary=x; charset=utf-7", _ONE_FIELD % (b"+2AA-", b"absent")),
    ],
)
def test_a_form_that_is_no_text_is_refused(worker: Worker, client: httpx.Client, kind: str, body: bytes) -> None:
    answer = client.post(FORM, content=body, headers=FROM_OUR_PAGE | {"Content-Type": kind})
    assert answer.status_code == 400
    assert "is not text" in answer.text
    assert is_untouched(worker)


@pytest.mark.parametrize("headers", [
    {}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "none"},
])  # fmt: skip
def test_a_foreign_page_verifies_nothing(worker: Worker, client: httpx.Client, headers: dict[str, str]) -> None:
    assert client.post(FORM, data=LI, headers=headers).status_code == 403
    assert client.post(API, json=LI_JSON, headers=headers).status_code == 403
    assert is_untouched(worker)


def test_a_report_that_was_verified_meanwhile_is_not_verified_again(worker: Worker, client: httpx.Client) -> None:
    assert client.post(API, json=LI_JSON, headers=OURS).status_code == 200
    for _ in range(2):
        late = client.post(API, json=LI_JSON | {"answers": {"pneumothorax": "present"}}, headers=OURS)
        assert late.status_code == 409
        page = client.post(FORM, data=LI | {"pneumothorax": "present"}, headers=FROM_OUR_PAGE)
        assert page.status_code == 409 and "Nothing was verified" in page.text and f'href="{PAGE}"' in page.text
        run_queued(worker, 2)
    assert not (worker.settings.data_dir / result_path(STUDY, 3)).exists()


def test_a_report_whose_study_grows_is_not_verified(worker: Worker, client: httpx.Client, tmp_path: Path) -> None:
    (late,) = write_ct(tmp_path / "late", 1, SOPInstanceUID="1.2.3.4.1.31")
    path = late.replace(worker.settings.studies_dir / STUDY / "1.2.3.4.1" / "late.dcm")
    with worker.engine.begin() as connection:
        record(connection, worker, path, 31)
    assert client.post(API, json=LI_JSON, headers=OURS).status_code == 409
    assert 'form="verify"' not in client.get(PAGE).text
    assert client.post(FORM, data=LI, headers=FROM_OUR_PAGE).status_code == 409


def test_of_two_persons_at_the_same_moment_one_verifies(
    worker: Worker, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have written their record before either is queued; what stands is whole and of the one who was told so."""
    both = threading.Barrier(2, timeout=30)
    queue = verifying._queue

    def meet(*arguments: object) -> None:
        both.wait()
        queue(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(verifying, "_queue", meet)
    statuses: dict[str, int] = {}

    def ask(name: str) -> None:
        body = LI_JSON | {"observer_name": name}
        statuses[name] = httpx.post(client.base_url.join(API), json=body, headers=OURS, timeout=60).status_code

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("Li^Wei", "Roe^Ann")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses.values()) == [200, 409]
    verification = stored(worker, 2).verification
    assert verification is not None and statuses[verification.observer_name] == 200
    results = (worker.settings.data_dir / result_path(STUDY, 1)).parent
    assert sorted(path.name for path in results.iterdir()) == ["r1", "r2"]


def test_a_login_vouches_in_no_other_name(worker: Worker, guarded: httpx.Client) -> None:
    assert "You verify as <b>Li, Wei</b>, Test Hospital" in guarded.get(PAGE, auth=READER).text
    for body in (LI_JSON | {"observer_name": "Roe^Ann"}, LI_JSON | {"organization": "Elsewhere"}):
        answer = guarded.post(API, json=body, headers=OURS, auth=READER)
        assert (answer.status_code, "in the name of another" in answer.text) == (403, True)
    form = {"family_name": "Roe", "given_name": "Ann", "organization": "Test Hospital"}
    assert guarded.post(FORM, data=form, headers=FROM_OUR_PAGE, auth=READER).status_code == 403
    assert is_untouched(worker)
    assert guarded.post(API, json={}, headers=OURS, auth=READER).status_code == 200
    verification = stored(worker, 2).verification
    assert verification == Verification(observer_name="Li^Wei", organization="Test Hospital")


def test_a_login_without_a_person_only_looks(worker: Worker, guarded: httpx.Client) -> None:
    page = guarded.get(PAGE, auth=LOOKER).text
    assert "This login is for looking only" in page and 'form="verify"' not in page
    for path, sent in ((API, {"json": LI_JSON, "headers": OURS}), (FORM, {"data": LI, "headers": FROM_OUR_PAGE})):
        answer = guarded.post(path, auth=LOOKER, **sent)
        assert (answer.status_code, "looking only" in answer.text) == (403, True)
    assert is_untouched(worker)


def test_a_verified_report_is_corrected_and_leads_to_the_automated_one(worker: Worker, client: httpx.Client) -> None:
    assert client.post(API, json=LI_JSON | {"answers": {"pneumothorax": "present"}}, headers=OURS).status_code == 200
    run_queued(worker, 2)
    second = {"family_name": "Roe^Ann", "organization": "Elsewhere", "pneumothorax": "absent", "reviewed": "yes"}
    assert client.post(FORM.replace("/1/", "/2/"), data=second, headers=FROM_OUR_PAGE).status_code == 303
    page = client.get(PAGE).text
    assert "Verified by Roe, Ann , Elsewhere" in words(page) and 'href="?revision=1"' in page
    assert "Every automated answer was confirmed" in page


def test_a_record_that_cannot_be_read_is_said(worker: Worker, client: httpx.Client) -> None:
    (worker.settings.data_dir / result_path(STUDY, 1) / "key_1.png").write_bytes(b"no picture")
    answer = client.post(API, json=LI_JSON, headers=OURS)
    assert (answer.status_code, "cannot be read" in answer.text) == (404, True)
    assert is_untouched(worker)
