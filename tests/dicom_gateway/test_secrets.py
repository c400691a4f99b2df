"""Passwords and tokens are read where they are needed and said nowhere."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from running import ROOT, free_port
from web_samples import site_settings

from dicom_gateway.deliver import fhir
from dicom_gateway.errors import ConfigurationError, PeerUnreachable
from dicom_gateway.settings import Settings
from dicom_gateway.web.pages import shown_settings

SECRET = "s3cret-word"


def url(port: int) -> str:
    return f"postgresql://onescan:{SECRET}@127.0.0.1:{port}/onescan"


@pytest.mark.parametrize("command", ["doctor", "status", "serve", "rules", "replay"])
def test_no_command_says_the_password_of_a_database_that_does_not_answer(tmp_path: Path, command: str) -> None:
    (tmp_path / "data").mkdir()
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from dicom_gateway.cli import main; main()",
            command,
            *(["--all"] if command == "replay" else []),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={
            "PATH": "",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            "ONESCAN_DATA_DIR": str(tmp_path / "data"),
            "ONESCAN_DATABASE_URL": url(free_port()),
            "ONESCAN_DICOM_PORT": str(free_port()),
            "ONESCAN_WEB_PORT": str(free_port()),
        },
    )
    said = run.stdout + run.stderr
    assert run.returncode in (1, 2)
    assert "database" in said
    assert SECRET not in said and "Traceback" not in said


@pytest.mark.parametrize("wrong", [
    f"postgresql://onescan:{SECRET}@word@host:port/onescan", f"postgresql://onescan:a:{SECRET}/onescan",
    f"mysql://onescan:{SECRET}@host/onescan", SECRET, f"postgresql://u:{SECRET}@host:99999/x",
])  # fmt: skip
def test_a_wrong_address_of_the_database_is_not_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONESCAN_DATABASE_URL", wrong)
    with pytest.raises(ConfigurationError, match=r"database_url: .*%40 for @") as refused:
        Settings.load(None)
    assert SECRET not in str(refused.value)


def test_pages_and_reprs_leave_the_password_out(tmp_path: Path) -> None:
    settings = site_settings(tmp_path, database_url=url(5432))
    assert SECRET not in repr(settings) and SECRET not in str(settings)
    assert SECRET not in str(shown_settings(settings))


@pytest.mark.parametrize("kind", ["fhir", "stow"])
def test_an_address_with_a_password_is_refused_and_not_quoted(tmp_path: Path, kind: str) -> None:
    config = tmp_path / "onescan.toml"
    config.write_text(f'[[destinations]]\nname = "x"\nkind = "{kind}"\nurl = "https://user:{SECRET}@host/r4"\n')
    with pytest.raises(ConfigurationError, match=r"destinations\.0\.url") as refused:
        Settings.load(config)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("token", [f"{SECRET}\nX-Injected: 1", f"{SECRET}\0"])
def test_a_token_that_no_header_can_hold_is_not_quoted(token: str) -> None:
    with pytest.raises(PeerUnreachable) as failed:
        fhir.ask(f"http://127.0.0.1:{free_port()}/r4", bearer_token=token)
    assert SECRET not in str(failed.value)


def test_a_token_goes_to_its_server_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[httpx.Request] = []

    def elsewhere(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(307, headers={"Location": "http://elsewhere.example/"})

    client = httpx.Client(transport=httpx.MockTransport(elsewhere))
    monkeypatch.setattr(httpx, "request", lambda method, address, **given: client.request(method, address, **given))
    with pytest.raises(Exception, match="307"):
        fhir.ask("https://fhir.example/r4", bearer_token=SECRET)
    assert [request.url.host for request in asked] == ["fhir.example"]
