"""The JSON API over HTTP, on a real SQLite store filled by the store's functions."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from web_samples import (
    NOW,
    deliver,
    fail,
    open_site,
    png,
    publish,
    receive,
    refused_report,
    sample_report,
    serving,
    site_settings,
)

from dicom_gateway.report.content import Report, report_schema
from dicom_gateway.settings import Settings
from dicom_gateway.store.schema import DeliveryState
from dicom_gateway.web import security, server
from dicom_gateway.web.app import create_app
from dicom_gateway.web.health import check_health
from dicom_gateway.web.security import MAXIMUM_BODY_BYTES

REPORTED, REFUSED, FAILED, WAITING = "1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.4"


def make_site(tmp_path: Path) -> Settings:
    """A site with one study in each of four states."""
    settings = site_settings(tmp_path)
    engine = open_site(settings)
    receive(engine, REPORTED, count=3, patient_name="Doe^Jane", accession_number="A-100")
    publish(settings, engine, sample_report(REPORTED))
    deliver(engine, REPORTED, "pacs", DeliveryState.PARKED, attempts=8, last_error="connection refused")
    receive(engine, REFUSED, now=NOW + 60, patient_name="Roe^Richard")
    publish(settings, engine, refused_report(REFUSED), now=NOW + 60)
    receive(engine, FAILED, patient_name="Poe^Paul")
    fail(engine, FAILED, "InconsistentSeries")
    receive(engine, WAITING, now=NOW + 120, patient_name="100%^Ann")
    engine.dispose()
    return settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A site that no test changes."""
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[httpx.Client]:
    """A client of the site that no test changes."""
    with serving(create_app(settings)) as client:
        yield client


def raw_get(client: httpx.Client, target: str) -> tuple[int, str]:
    """Status and body of a GET whose target is sent as it stands; clients would tidy up dots first."""
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
    connection.request("GET", quote(target, safe="/%;'.<>"))
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_studies_are_listed_latest_first_with_counts_of_every_state(client: httpx.Client) -> None:
    page = client.get("/api/studies").json()
    assert [study["study_instance_uid"] for study in page["studies"]][:2] == [WAITING, REFUSED]
    assert page["counts"] == {
        "receiving": 1, "excluded": 0, "queued": 0, "analysing": 0, "reported": 1, "refused": 1, "failed": 1,
    }  # fmt: skip
    assert not page["more"]


def test_studies_are_paged_without_loss_or_repeat(client: httpx.Client) -> None:
    pages = [client.get("/api/studies", params={"limit": 3, "offset": offset}).json() for offset in (0, 3)]
    assert [page["more"] for page in pages] == [True, False]
    uids = [study["study_instance_uid"] for page in pages for study in page["studies"]]
    assert sorted(uids) == sorted([REPORTED, REFUSED, FAILED, WAITING])


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"state": "failed"}, [FAILED]),
        ({"search": "jane"}, [REPORTED]),
        ({"search": "a-100", "state": "reported"}, [REPORTED]),
        ({"search": "100%"}, [WAITING]),
        ({"search": "DOE, Jane"}, [REPORTED]),
        ({"search": "doe^\0jane"}, [REPORTED]),
        ({"search": "jane waiting"}, []),
        ({"search": "%' or 1=1 --"}, []),
    ],
)
def test_studies_are_filtered(client: httpx.Client, params: dict[str, str], expected: list[str]) -> None:
    found = client.get("/api/studies", params=params).json()["studies"]
    assert [study["study_instance_uid"] for study in found] == expected


def test_a_study_comes_with_its_reports_and_deliveries(client: httpx.Client) -> None:
    study = client.get(f"/api/studies/{REPORTED}").json()
    assert (study["state"], study["patient_name"], study["instance_count"]) == ("reported", "Doe^Jane", 3)
    assert [(report["revision"], report["outcome"]) for report in study["reports"]] == [(1, "reported")]
    assert [(delivery["destination"], delivery["state"]) for delivery in study["deliveries"]] == [("pacs", "parked")]


def test_the_report_is_the_stored_bytes(client: httpx.Client, settings: Settings) -> None:
    stored = (settings.results_dir / REPORTED / "r1" / "report.json").read_bytes()
    for path in (f"/api/studies/{REPORTED}/report", f"/api/studies/{REPORTED}/reports/1"):
        answer = client.get(path)
        assert answer.headers["content-type"] == "application/json"
        assert answer.content == stored
    assert Report.model_validate_json(stored) == sample_report(REPORTED)


def test_key_images_and_dicom_objects_are_served_with_their_types(client: httpx.Client) -> None:
    image = client.get(f"/api/studies/{REPORTED}/reports/1/key_1.png")
    assert (image.headers["content-type"], image.content) == ("image/png", png())
    for name in ("findings.sr.dcm", "summary.sc.dcm", "segments.seg.dcm", "2_segments.seg.dcm"):
        answer = client.get(f"/api/studies/{REPORTED}/reports/1/{name}")
        assert answer.headers["content-type"] == "application/dicom"
        assert name in answer.headers["content-disposition"]
        assert answer.content[128:132] == b"DICM"


def test_deliveries_are_filtered_by_state(client: httpx.Client) -> None:
    parked = client.get("/api/deliveries", params={"state": "parked"}).json()
    assert [(row["study_instance_uid"], row["last_error"]) for row in parked] == [(REPORTED, "connection refused")]
    assert client.get("/api/deliveries", params={"state": "delivered"}).json() == []


def test_the_report_schema_is_the_published_one(client: httpx.Client) -> None:
    assert client.get("/api/report-schema").json() == json.loads(json.dumps(report_schema()))


def test_every_operation_is_documented_with_a_typed_answer(client: httpx.Client) -> None:
    document = client.get("/api/openapi.json").json()
    operations = {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert {("get", "/api/health"), ("get", "/api/studies"), ("post", "/api/studies/{uid}/replay")} <= set(operations)
    for (_, path), operation in operations.items():
        assert path.startswith(("/api/", "/dicom-web/"))
        assert operation["summary"]
        content = operation["responses"]["200"]["content"]
        assert path.startswith("/dicom-web/") or content.get("application/json", {"schema": "a file"})["schema"]


def test_health_names_every_part_and_what_waits_for_a_person(client: httpx.Client) -> None:
    answer = client.get("/api/health")
    health = answer.json()
    assert [part["name"] for part in health["parts"]] == ["listener", "worker", "web", "database", "disk"]
    states = {part["name"]: part["ok"] for part in health["parts"]}
    assert states["web"] and states["database"]
    assert not states["worker"]  # no worker ever ran on this site
    assert (answer.status_code, health["ok"]) == (503, False)
    assert (health["failed_studies"], health["parked_deliveries"]) == (1, 1)


def test_health_of_a_site_whose_data_folder_is_gone(tmp_path: Path) -> None:
    settings = site_settings(tmp_path, database_url=f"sqlite:///{tmp_path / 'elsewhere.sqlite'}")
    engine = open_site(settings)
    settings.data_dir.rename(tmp_path / "elsewhere")
    disk = {part.name: part for part in check_health(settings, engine).parts}["disk"]
    engine.dispose()
    assert (disk.ok, disk.detail) == (False, "The data folder cannot be read: No such file or directory.")


HOSTILE = [
    "..", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e", "1.2.3.", ".1.2", "1..2", "1.2.3.1%00", "1.2.3.1%0a",
    "abc", "1" * 65, "1." * 40, "9" * 5000, "1.2/3", "%c0%ae", "1.2.3.1;x", "' or 1=1", "💣", "<script>",
]  # fmt: skip


@pytest.mark.parametrize("uid", HOSTILE)
@pytest.mark.parametrize(
    "path", ["/api/studies/{}", "/api/studies/{}/report", "/api/studies/{}/reports/1/key_1.png", "/studies/{}"]
)
def test_a_hostile_uid_is_a_client_error(client: httpx.Client, path: str, uid: str) -> None:
    status, text = raw_get(client, path.format(uid))
    assert status in (404, 422)
    assert "/data" not in text and "Traceback" not in text


@pytest.mark.parametrize("name", [
    "report.json", "../r1/key_1.png", "..%2f..%2fonescan.sqlite", "key_1.png%00.dcm", "key_.png", "key_1.png%0a",
    "key_99999999.png", "KEY_1.PNG", "findings.sr.dcm.part", "%2fetc%2fpasswd",
])  # fmt: skip
def test_only_names_of_result_files_are_served(client: httpx.Client, name: str) -> None:
    status, _ = raw_get(client, f"/api/studies/{REPORTED}/reports/1/{name}")
    assert status in (404, 422)


@pytest.mark.parametrize("revision", ["0", "-1", "2", "999999999999999999999999", "x", "1.5"])
def test_a_revision_that_is_not_there_is_a_client_error(client: httpx.Client, revision: str) -> None:
    assert client.get(f"/api/studies/{REPORTED}/reports/{revision}").status_code in (404, 422)
    assert client.get(f"/studies/{REPORTED}", params={"revision": revision}).status_code in (404, 422)


@pytest.mark.parametrize("params", [
    {"limit": "0"}, {"limit": "100000"}, {"offset": "-1"}, {"offset": str(2**70)}, {"state": "cured"},
    {"search": "x" * 65},
])  # fmt: skip
def test_a_malformed_query_is_refused_with_the_reason(client: httpx.Client, params: dict[str, str]) -> None:
    answer = client.get("/api/studies", params=params)
    assert answer.status_code == 422
    assert next(iter(params)) in answer.json()["detail"]


def test_a_link_out_of_the_results_is_not_followed(tmp_path: Path) -> None:
    settings = make_site(tmp_path)
    secret = settings.data_dir / "secret"
    secret.mkdir()
    (secret / "key_9.png").write_bytes(b"secret")
    (settings.results_dir / REPORTED / "r1" / "key_9.png").symlink_to(secret / "key_9.png")
    with serving(create_app(settings)) as client:
        assert client.get(f"/api/studies/{REPORTED}/reports/1/key_9.png").status_code == 404


def test_a_missing_or_damaged_record_is_said(tmp_path: Path) -> None:
    settings = make_site(tmp_path)
    record = settings.results_dir / REPORTED / "r1" / "report.json"
    with serving(create_app(settings)) as client:
        record.write_text("{}", encoding="utf-8")
        page = client.get(f"/studies/{REPORTED}")
        assert page.status_code == 200
        assert "missing or cannot be read" in page.text
        record.unlink()
        assert client.get(f"/api/studies/{REPORTED}/report").status_code == 404


@pytest.mark.parametrize("path", [
    "/", "/deliveries", "/api/studies", "/nowhere", "/api/studies/x", "/static/onescan.css",
    f"/api/studies/{REPORTED}/reports/1/key_1.png",
])  # fmt: skip
def test_every_answer_has_the_security_headers(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers
    assert "access-control-allow-origin" not in headers


def test_an_error_of_ours_has_the_headers_and_tells_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = make_site(tmp_path)
    app = create_app(settings)
    app.state.site.engine.dispose()
    (settings.data_dir / "onescan.sqlite").unlink()
    (settings.data_dir / "onescan.sqlite").mkdir()
    with serving(app) as client:
        answers = [client.get("/api/studies"), client.get("/")]
    for answer in answers:
        assert answer.status_code == 500
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert "sqlite" not in answer.text.lower()
    logged = capsys.readouterr().out
    assert "OperationalError" in logged and "unable to open" not in logged


def test_a_loopback_service_answers_to_loopback_names_only(client: httpx.Client) -> None:
    assert client.get("/api/studies", headers={"Host": "rebound.example"}).status_code == 400
    assert client.get("/api/studies", headers={"Host": "localhost:8080"}).status_code == 200


def test_a_proxy_may_pass_on_the_names_that_the_settings_list(tmp_path: Path) -> None:
    with serving(create_app(site_settings(tmp_path, web_host_names=("onescan.example",)))) as client:
        hosts = ("onescan.example", "onescan.example:8443", "evil.example", "www.onescan.example")
        assert [client.get("/", headers={"Host": host}).status_code for host in hosts] == [200, 200, 400, 400]


OURS = {"X-OneScan-Request": "1"}


def test_a_parked_delivery_is_replayed_once(tmp_path: Path) -> None:
    path = f"/api/deliveries/{REPORTED}/1/pacs/replay"
    with serving(create_app(make_site(tmp_path))) as client:
        assert len(client.post(path, headers=OURS).json()["started"]) == 1
        assert [row["state"] for row in client.get("/api/deliveries").json()] == ["pending"]
        assert client.post(path, headers=OURS).status_code == 409


@pytest.mark.parametrize("path", [f"/deliveries/{REPORTED}/1/pacs/replay", f"/studies/{REPORTED}/replay"])
def test_a_delivery_to_a_destination_that_is_gone_stays_parked_and_the_answer_says_why(
    tmp_path: Path, path: str
) -> None:
    settings = make_site(tmp_path).model_copy(update={"destinations": ()})
    with serving(create_app(settings)) as client:
        answer = client.post(f"/api{path}", headers=OURS)
        told = f"deliver:{REPORTED}:r1:pacs stays parked: the destination is no longer configured"
        assert (answer.status_code, answer.json()) == (409, {"detail": told})
        page = client.post(f"/studies/{REPORTED}/reports/1/deliveries/pacs/replay", headers=OURS)
        assert (page.status_code, told in page.text) == (409, True)
        assert [row["state"] for row in client.get("/api/deliveries").json()] == ["parked"]


def test_a_failed_study_is_replayed_and_waits_again(tmp_path: Path) -> None:
    with serving(create_app(make_site(tmp_path))) as client:
        answer = client.post(f"/studies/{FAILED}/replay", headers={"Origin": str(client.base_url).rstrip("/")})
        assert (answer.status_code, answer.headers["location"]) == (303, f"/studies/{FAILED}")
        assert client.get(f"/api/studies/{FAILED}").json()["state"] == "queued"
        assert client.post(f"/api/studies/{FAILED}/replay", headers=OURS).status_code == 409
        assert client.post("/api/studies/1.2.9/replay", headers=OURS).status_code == 404


@pytest.mark.parametrize("headers", [
    {}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1"}, {"Sec-Fetch-Site": "none"}, {"Origin": "http://["},
])  # fmt: skip
@pytest.mark.parametrize("path", [
    f"/api/studies/{FAILED}/replay", f"/studies/{FAILED}/replay", f"/api/deliveries/{REPORTED}/1/pacs/replay",
    f"/studies/{REPORTED}/reports/1/deliveries/pacs/replay",
])  # fmt: skip
def test_a_change_from_a_foreign_page_is_refused(client: httpx.Client, path: str, headers: dict[str, str]) -> None:
    assert client.post(path, headers=headers).status_code == 403
    assert client.get(f"/api/studies/{FAILED}").json()["state"] == "failed"


def test_a_foreign_page_changes_nothing_whatever_the_path(client: httpx.Client) -> None:
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        assert client.put("/of-tomorrow", headers=headers | OURS).status_code == 403
    assert client.put("/of-tomorrow").status_code == 404


def test_a_change_needs_a_post(client: httpx.Client) -> None:
    answer = client.get(f"/api/studies/{FAILED}/replay")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_body_is_bounded(client: httpx.Client) -> None:
    path, most = f"/api/studies/{REPORTED}/replay", MAXIMUM_BODY_BYTES
    assert client.post(path, headers=OURS, content=b"x" * (most + 1)).status_code == 413
    assert client.post(path, headers=OURS, content=b"x" * most).status_code == 200


def test_a_body_that_drips_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "BODY_GRACE_S", 0.5)
    settings = site_settings(tmp_path, stow_networks=("127.0.0.0/8",), minimum_free_space_mb=0)
    head = 'Content-Type: multipart/related; type="application/dicom"; boundary=x\r\nContent-Length: 100000'
    with (
        serving(create_app(settings)) as client,
        socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as peer,
    ):
        peer.sendall(f"POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n\r\n--x".encode())
        assert peer.recv(65536).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("accept", ["," * 60_000, '",' * 30_000, ";" * 60_000, "*/*;q=" * 10_000])
def test_an_accept_header_of_any_length_is_read_in_time(client: httpx.Client, accept: str) -> None:
    """Splitting it with a look ahead at each comma took three quarters of a minute, and every other request waited."""
    assert client.get("/dicom-web/studies", headers={"Accept": accept}).status_code in (200, 204, 406)


def test_a_peer_that_does_not_say_what_it_wants_is_let_go(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_HEAD_S", 0.5)
    said = [b"", b"GET / HTTP/1.1\r\nHost: 127", b"GET /api/studies HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /"]
    for beginning in said:
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as peer:
            peer.sendall(beginning)
            answered = b""
            with contextlib.suppress(ConnectionResetError):
                while block := peer.recv(65536):
                    answered += block
        assert answered.startswith(b"HTTP/1.1 200") == beginning.endswith(b"GET /")
