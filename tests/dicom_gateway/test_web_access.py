"""Names and passwords of the web port: who gets in, who does not, and that nothing is said of why."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import httpx
import pytest
import structlog
from running import ROOT
from typer.testing import CliRunner
from web_samples import open_site, publish, receive, sample_report, serving, site_settings

from dicom_gateway import cli, operate, wrong_attempts
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.events import configure_logging
from dicom_gateway.settings import Settings
from dicom_gateway.users import Person, hash_line, read_users, require_guarded
from dicom_gateway.web import access
from dicom_gateway.web.app import create_app

UID = "1.2.3.1"
READER = Person("Li^Wei=李^伟", "Test Hospital")
ALICE = ("alice", "correct horse: battery \u00fc")


def line(name: str, password: str, rounds: int = 10) -> str:
    """A line of the users file at the least cost it may have."""
    return f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds)).decode()}\n"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A site with one report and one user."""
    users = tmp_path / "users"
    users.write_text("# the readers\n\n" + line(*ALICE), encoding="utf-8")
    settings = site_settings(tmp_path, web_users_file=users)
    engine = open_site(settings)
    receive(engine, UID)
    publish(settings, engine, sample_report(UID))
    engine.dispose()
    return settings


@pytest.fixture
def client(settings: Settings) -> Iterator[httpx.Client]:
    with serving(create_app(settings)) as client:
        yield client


@pytest.mark.parametrize("path", [
    "/", f"/studies/{UID}", f"/api/studies/{UID}/report", f"/api/studies/{UID}/reports/1/key_1.png", "/system",
    "/api/health", "/api/openapi.json", "/static/onescan.css", "/nowhere", "/dicom-web/studies",
])  # fmt: skip
def test_nothing_is_answered_without_a_password(client: httpx.Client, path: str) -> None:
    for answer in (client.get(path), client.post(path), client.get(path, headers={"Authorization": "Bearer x"})):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == access.CHALLENGE
        assert answer.headers["cache-control"] == "no-store"
        assert "Doe" not in answer.text


def test_a_user_gets_in_and_stays_subject_to_the_rules_for_changes(client: httpx.Client) -> None:
    assert "Doe, Jane" in client.get("/", auth=ALICE).text
    assert client.get("/", auth=ALICE, headers={"Host": "any.example"}).status_code == 200
    assert client.post(f"/studies/{UID}/replay", auth=ALICE).status_code == 403
    document = client.get("/api/openapi.json", auth=ALICE).json()
    assert document["paths"]["/api/studies"]["get"]["security"] == [{"HTTPBasic": []}]
    assert {"401", "429"} <= set(document["paths"]["/dicom-web/studies"]["get"]["responses"])


@pytest.mark.parametrize("authorization", [
    "", "Basic", "Basic !", "Basic Og==", "Basic YWxpY2U6", "Basic YWxpY2U6d3Jvbmc=", "Basic bm9ib2R5OndpdGhvdXQ=",
    "Basic \xff\xfe", "Basic " + "A" * 4000, "Digest YWxpY2U6d3Jvbmc=", "Basic YWxpY2U6AAA=",
])  # fmt: skip
def test_whatever_else_is_said_is_refused(client: httpx.Client, authorization: str) -> None:
    assert client.get("/", headers={"Authorization": authorization.encode("latin-1")}).status_code == 401


def test_who_guesses_has_to_wait_and_who_is_in_stays_in(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wrong_attempts, "MOST_WRONG", 2)
    assert client.get("/", auth=ALICE).status_code == 200
    assert [client.get("/", auth=("alice", "SECRET-GUESS")).status_code for _ in range(3)] == [401, 401, 429]
    waiting = client.get("/", auth=("bob", "SECRET-GUESS"))
    assert waiting.status_code == 429 and 0 < int(waiting.headers["retry-after"]) <= 60
    assert client.get("/", auth=ALICE).status_code == 200
    logged = "".join(capsys.readouterr())
    assert logged.count("web_login_refused") == 2
    assert "SECRET-GUESS" not in logged and logged.count("alice") == logged.count("user") > 0


def test_who_looked_at_whom_is_in_the_log(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("error", sys.stdout)
    try:
        with serving(create_app(settings)) as client:
            assert client.get("/?search=Doe", auth=ALICE).status_code == 200
            for _ in range(3):
                assert client.get(f"/studies/{UID}", auth=ALICE).status_code == 200
            assert client.get("/rules", auth=ALICE).status_code == 200
            assert client.get("/api/health", auth=ALICE).status_code in (200, 503)
            assert client.get("/static/onescan.css", auth=ALICE).status_code == 200
            assert client.get("/nowhere", auth=ALICE).status_code == 404
            assert client.get("/dicom-web/studies/..%2F1", auth=ALICE).status_code == 404
            assert client.get(f"/dicom-web/studies/{UID}/metadata").status_code == 401
            assert client.post(f"/api/studies/{UID}/replay", auth=ALICE).status_code == 403
    finally:
        structlog.reset_defaults()
    logged = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {entry["logger"] for entry in logged} == {"onescan.audit"}
    assert {entry["address"] for entry in logged} == {"127.0.0.1"}
    assert [(e["event"], e["user"], e.get("action"), e.get("study_instance_uid"), e.get("status")) for e in logged] == [
        ("web_login_accepted", "alice", None, None, None),
        ("web_looked_at", "alice", "studies_page", None, 200),
        ("web_looked_at", "alice", "study_page", UID, 200),
        ("web_looked_at", "alice", "rules_page", None, 200),
        ("web_change_asked_for", "alice", "post_study_replay", UID, 403),
    ]


def test_a_changed_file_counts_at_once(client: httpx.Client, settings: Settings) -> None:
    assert client.get("/", auth=ALICE).status_code == 200
    users = settings.web_users_file
    assert users is not None
    users.write_text(line("alice", "another"))
    assert client.get("/", auth=ALICE).status_code == 401
    assert client.get("/", auth=("alice", "another")).status_code == 200
    users.write_text("not a line of a users file")
    assert client.get("/", auth=("alice", "another")).status_code == 401
    users.unlink()
    assert client.get("/", auth=("alice", "another")).status_code == 401
    users.write_text(line("alice", "another"))
    assert client.get("/", auth=("alice", "another")).status_code == 200


def test_what_was_right_is_forgotten_in_time(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[bytes] = []
    monkeypatch.setattr(access, "matches", lambda password, expected: hashed.append(password) or True)
    monkeypatch.setattr(access, "_REMEMBERED_S", 0.0)
    for _ in range(3):
        assert client.get("/", auth=("alice", "any")).status_code == 200
    assert len(hashed) == 3


def test_a_right_password_is_hashed_once(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[bytes] = []
    monkeypatch.setattr(access, "matches", lambda password, expected: hashed.append(password) or True)
    for _ in range(3):
        assert client.get("/", auth=("alice", "any")).status_code == 200
    assert hashed == [b"any"]


def test_a_line_that_is_made_is_read(tmp_path: Path) -> None:
    users = tmp_path / "users"
    lines = hash_line("Dr. A. Reader", "pass word"), hash_line("li", "pass word", READER)
    users.write_text("\n".join(lines), encoding="utf-8")
    read = read_users(users)
    assert [read[name].vouches_as for name in ("Dr. A. Reader", "li")] == [None, READER]
    assert all(bcrypt.checkpw(b"pass word", user.password_hash) for user in read.values())


def test_the_command_prints_the_line_and_nothing_else() -> None:
    asked = CliRunner().invoke(cli.app, ["password", "alice"], input="pass word\npass word\n")
    assert asked.exit_code == 0
    name, _, stored = asked.stdout.strip().partition(":")
    assert name == "alice" and bcrypt.checkpw(b"pass word", stored.encode())
    who = ["--vouches-as", READER.name, "--organization", READER.organization]
    named = CliRunner().invoke(cli.app, ["password", "li", *who], input="pass word\npass word\n")
    assert named.stdout.strip().split(":")[2:] == [READER.name, READER.organization]
    assert CliRunner().invoke(cli.app, ["password", "li", *who[:2]], input="x\nx\n").exit_code == 2
    assert (
        CliRunner().invoke(cli.app, ["password", "li", "--vouches-as", "a\\b", *who[2:]], input="x\nx\n").exit_code == 2
    )
    assert "pass word" not in asked.output
    assert CliRunner().invoke(cli.app, ["password", "a:b"], input="x\nx\n").exit_code == 2


@pytest.mark.parametrize("name", ["", "a:b", " a", "#a", "a\nb", "a" * 65])
def test_a_name_that_cannot_stand_in_the_file_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        hash_line(name, "password")


@pytest.mark.parametrize("password", ["", "a" * 73, "\u00fc" * 37, "a\0b"])
def test_a_password_that_bcrypt_would_cut_is_refused(password: str) -> None:
    with pytest.raises(ValueError, match="72 bytes"):
        hash_line("alice", password)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "# nobody\n",
        "alice\n",
        "alice:SECRET\n",
        line("alice", "x", 5),
        2 * line("alice", "x"),
        line("alice", "x").strip() + ":SECRET^Name",
        line("alice", "x").strip() + ":SECRET\\Name:Hospital",
        line("alice", "x").strip() + ":SECRET: ",
    ],
    # Not the content itself: a hash is another one in each process that runs tests.
    ids=[
        "empty",
        "comment",
        "no hash",
        "plain password",
        "cheap hash",
        "the same name twice",
        "no place",
        "no name",
        "blank",
    ],
)
def test_a_file_that_protects_nothing_is_refused_and_not_quoted(tmp_path: Path, content: str) -> None:
    users = tmp_path / "users"
    users.write_text(content)
    with pytest.raises(ConfigurationError, match="web_users_file") as refused:
        create_app(site_settings(tmp_path, web_users_file=users))
    assert "SECRET" not in str(refused.value) and "$2" not in str(refused.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "onescan.example"])
def test_other_machines_are_not_let_in_unasked(tmp_path: Path, host: str) -> None:
    settings = site_settings(tmp_path, web_host=host)
    with pytest.raises(ConfigurationError, match="web_users_file"):
        create_app(settings)
    checks = {check.name: check for check in operate.doctor(settings)}
    assert not checks["web access"].ok and "onescan password" in str(checks["web access"].advice)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_is_let_in_by_default(host: str) -> None:
    require_guarded(Settings(web_host=host))


def test_the_service_does_not_start_open_to_others(tmp_path: Path) -> None:
    config = tmp_path / "onescan.toml"
    config.write_text(f'data_dir = "{tmp_path / "data"}"\nweb_host = "0.0.0.0"\n')
    ended = subprocess.run(
        [sys.executable, "-m", "dicom_gateway", "web", "--config", str(config)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (78, "")
    assert "web_users_file" in ended.stderr and "Traceback" not in ended.stderr


def test_the_doctor_warns_of_a_file_that_others_can_read(settings: Settings) -> None:
    users = settings.web_users_file
    assert users is not None
    for mode, ok in ((0o644, False), (0o640, True)):
        users.chmod(mode)
        assert {check.name: check.ok for check in operate.doctor(settings)}["web access"] is ok
