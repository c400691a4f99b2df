"""The report page in a real browser: Chromium loads it from a real server, runs its scripts and obeys its policy."""

import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fastapi import Request, Response
from verify_samples import STUDY, analysed_study
from web_samples import NOW, deliver, open_site, publish, receive, sample_report, serving, site_settings

from dicom_gateway import web
from dicom_gateway.store import index
from dicom_gateway.store.schema import DeliveryState
from dicom_gateway.web.app import create_app
from models.findings import FindingKind

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
STATIC = Path(web.__file__).parent / "static"
UID = "1.2.840.4711.1"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--dump-dom",
    # Virtual time now and then stands still for good while a form is being sent: the page is shown as it is then.
    "--timeout=45000",
)  # fmt: skip

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]


def dump_dom(url: str, profile: Path, seconds: int = 3) -> tuple[str, str]:
    """The page's DOM after its scripts ran for so many virtual seconds, and what the browser complained about."""
    budget = f"--virtual-time-budget={seconds * 1000}"
    command = [str(CHROMIUM), *FLAGS, budget, f"--user-data-dir={profile}", url]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return run.stdout, "\n".join(line for line in run.stderr.splitlines() if "CONSOLE" in line)


def test_the_report_page_renders_without_a_complaint_of_the_browser(tmp_path: Path) -> None:
    """Headline, cards, key images and the parked delivery are in the DOM; no policy violation, no script error."""
    settings = site_settings(tmp_path)
    engine = open_site(settings)
    receive(engine, UID, count=3)
    publish(settings, engine, sample_report(UID))
    deliver(engine, UID, "pacs", DeliveryState.PARKED, attempts=8, last_error="connection refused")
    engine.dispose()
    with serving(create_app(settings)) as client:
        dom, complaints = dump_dom(str(client.base_url.join(f"/studies/{UID}")), tmp_path / "profile")
    assert complaints == ""
    for words in ("8.4 x 6.1 mm", "Pulmonary nodule", "Not assessed", "Send again", "Research use only"):
        assert words in dom
    assert dom.count("data-enlarge") == 4


def test_the_study_list_is_refreshed_in_place(tmp_path: Path) -> None:
    """A study that arrives while the page is open appears without a reload."""
    settings = site_settings(tmp_path)
    engine = open_site(settings)
    receive(engine, UID, patient_name="First^Patient")
    app = create_app(settings)
    served = 0

    @app.middleware("http")
    async def arrive_after_the_first_page(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        nonlocal served
        answer = await call_next(request)
        if request.url.path == "/":
            served += 1
            if served == 1:
                receive(engine, "1.2.840.4711.2", patient_name="Second^Patient")
        return answer

    with serving(app) as client:
        dom, complaints = dump_dom(str(client.base_url), tmp_path / "profile", seconds=12)
    engine.dispose()
    assert served >= 2
    assert complaints == ""
    assert "First, Patient" in dom and "Second, Patient" in dom


def test_a_waiting_page_becomes_the_report_and_a_read_one_only_says_that_it_is_superseded(tmp_path: Path) -> None:
    """What a person is reading is not exchanged under their eyes, and never passes for the newest."""
    settings = site_settings(tmp_path)
    engine = open_site(settings)
    receive(engine, UID)
    app = create_app(settings)
    served = 0

    @app.middleware("http")
    async def publish_after_the_page(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        nonlocal served
        answer = await call_next(request)
        if request.url.path == f"/studies/{UID}":
            served += 1
            if served == 1:
                publish(settings, engine, sample_report(UID))
            if served == 4:
                receive(engine, UID, count=2, now=NOW + 600)
                publish(settings, engine, sample_report(UID, revision=2), now=NOW + 600)
        return answer

    with serving(app) as client:
        url = str(client.base_url.join(f"/studies/{UID}"))
        dom, complaints = dump_dom(url, tmp_path / "profile", seconds=40)
    engine.dispose()
    assert complaints == ""
    assert served >= 5
    assert 'data-revision="1"' in dom and "8.4 x 6.1 mm" in dom
    announced = re.findall(r'<a id="newer"[^>]*>', dom)
    assert len(announced) == 1 and "hidden" not in announced[0]


SET = "const set = (id, value) => { document.getElementById(id).value = value; };"
REJECTS = 'document.querySelector("input[name=pleural_effusion][value=absent]").click();'
NAMES = 'set("family_name", "Li"); set("given_name", "Wei"); set("organization", "Hospital");'
VERIFIES = 'setTimeout(() => document.getElementById("verify-button").click(), 200);'


@pytest.mark.parametrize(
    ("acts", "then", "shown", "revisions"),
    [
        ("", "", ["Confirms every answer as reported."], 1),
        (REJECTS + VERIFIES, "", ["1 answer changed, all others confirmed as reported."], 1),
        (NAMES + REJECTS + VERIFIES, "", ["This is what you verify", "Verify as Li, Wei, Hospital"], 1),
        (NAMES + REJECTS + VERIFIES, VERIFIES, ["Against the automated report:", "<b>Pleural effusion</b>"], 2),
        (NAMES + VERIFIES, "", ["Every automated answer was confirmed."], 2),
    ],
    ids=["looks", "names nobody", "rejects an answer", "rejects an answer for good", "confirms"],
)
def test_a_person_verifies_on_the_page(tmp_path: Path, acts: str, then: str, shown: list[str], revisions: int) -> None:
    """What the page's own script does is followed by clicks; forms are sent by the browser, under the page's policy."""
    with analysed_study(tmp_path) as worker:
        app = create_app(worker.settings)

        @app.middleware("http")
        async def act(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
            if request.url.path != "/static/verify.js":
                return await call_next(request)
            script = (STATIC / "verify.js").read_text(encoding="utf-8")
            acting = f'if (document.getElementById("verify-note")) {{ {SET} {acts} }} else {{ {then} }}'
            acting = f'addEventListener("pageshow", () => {{ {acting} }});'
            return Response(f"{script}\n{acting}", media_type="text/javascript")

        with serving(app) as client:
            dom, complaints = dump_dom(str(client.base_url.join(f"/studies/{STUDY}")), tmp_path / "profile")
        assert complaints == ""
        assert all(words in dom for words in shown)
        assert len(index.list_reports(worker.engine, STUDY)) == revisions


def test_the_evidence_page_renders_without_a_complaint_of_the_browser(tmp_path: Path) -> None:
    """Every finding has its row, grades are explained, and the policy is kept."""
    settings = site_settings(tmp_path)
    open_site(settings).dispose()
    with serving(create_app(settings)) as client:
        dom, complaints = dump_dom(str(client.base_url.join("/evidence")), tmp_path / "profile")
    assert complaints == ""
    assert all(f'id="{kind.value}"' in dom for kind in FindingKind)
    assert "measured on real CT with reference labels" in dom
