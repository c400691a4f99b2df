"""The supervised service as a user starts it: ready, kept alive, stopped, and gone with its parent."""

import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from running import ROOT, free_port, make_settings, wait_until

from dicom_gateway import operate
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.service import EXIT_CONFIGURATION
from dicom_gateway.settings import Settings

pytestmark = pytest.mark.acceptance
SERVE = (
    "import sys; from dicom_gateway.service import serve; from dicom_gateway.settings import Settings;"
    "sys.exit(serve(Settings.model_validate_json(sys.argv[1])))"
)


@contextmanager
def serving(settings):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, settings.model_dump_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    children: list[psutil.Process] = []
    try:
        yield process, lambda: children.extend(psutil.Process(process.pid).children()) or children
    finally:
        process.kill()
        for child in children:
            if child.is_running():
                child.kill()
        process.communicate()


def child_of(children, role):
    return next(child for child in children if role in child.cmdline())


def echoes(settings):
    entity = AE(ae_title="ECHO")
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", settings.dicom_port, ae_title=settings.ae_title)
    if association.is_established:
        association.release()
        return True
    return False


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_one_line_when_ready_then_kept_alive_then_stopped(tmp_path):
    settings = make_settings(tmp_path)
    with serving(settings) as (process, children):
        line = process.stdout.readline()
        for part in (settings.ae_title, str(settings.dicom_port), f"http://127.0.0.1:{settings.web_port}/"):
            assert part in line
        assert echoes(settings)
        with urllib.request.urlopen(f"http://127.0.0.1:{settings.web_port}/") as page:
            assert page.status == 200
        assert {check.name: check.ok for check in operate.doctor(settings)}["DICOM port"]
        first = child_of(children(), "listener")
        first.kill()
        wait_until(lambda: echoes(settings), "the listener to be back")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert is_free(settings.dicom_port)
        assert is_free(settings.web_port)


def test_children_end_with_a_parent_that_is_killed(tmp_path):
    settings = make_settings(tmp_path)
    with serving(settings) as (process, children):
        process.stdout.readline()
        running = list(children())
        assert len(running) == 3
        process.kill()
        _, alive = psutil.wait_procs(running, timeout=30)
        assert alive == []


def test_port_that_is_taken_is_said(tmp_path):
    settings = make_settings(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.dicom_port))
        taken.listen()
        with serving(settings) as (process, _):
            _, said = process.communicate(timeout=60)
            assert process.returncode == 1
            assert "the listener cannot have its port" in said
        checks = {check.name: check for check in operate.doctor(settings)}
        assert not checks["DICOM port"].ok
        assert "dicom_port" in checks["DICOM port"].advice


def test_doctor_names_what_is_wrong(tmp_path):
    destination = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": free_port()}
    settings = make_settings(tmp_path, calling_ae_titles=(), model_dir=tmp_path / "none", destinations=[destination])
    checks = {check.name: check for check in operate.doctor(settings)}
    assert {name for name, check in checks.items() if not check.ok} == {"senders", "model", "destination pacs"}
    assert all(check.advice for check in checks.values() if not check.ok)


def test_an_address_that_is_none_is_said_and_ends_the_service(tmp_path):
    settings = make_settings(tmp_path, dicom_host="no.such.host.invalid")
    with serving(settings) as (process, _):
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the listener cannot have its port" in said
    (port,) = (check for check in operate.doctor(settings) if check.name == "DICOM port")
    assert (port.ok, port.advice) == (False, "It is no address of this machine.")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dicom_passcodes_file": Path("gone")}, "cannot read dicom_passcodes_file"),
        ({"stat_calling_ae_titles": ("ER",)}, "ER of stat_calling_ae_titles may not send images"),
        (
            {"destinations": [{"name": "p", "ae_title": "P", "host": "h", "port": 1, "storage_commitment": True}]},
            "no answer about storage commitment can come from p",
        ),
    ],
)
def test_doctor_names_who_would_not_get_in(tmp_path, wrong, said):
    settings = make_settings(tmp_path, **{"calling_ae_titles": ("CT1",), **wrong})
    senders = operate._check_senders(settings)
    assert (senders.ok, senders.detail) == (False, said)


def test_doctor_tries_the_execution_provider(tmp_path):
    settings = make_settings(tmp_path)
    assert {check.name: check for check in operate.doctor(settings)}["model"].ok
    wrong = settings.model_copy(update={"execution_provider": "cann"})
    model = {check.name: check for check in operate.doctor(wrong)}["model"]
    assert not model.ok
    assert "CANNExecutionProvider" in model.detail
    assert "execution_provider" in model.advice


def test_worker_does_not_start_without_its_execution_provider(tmp_path):
    config = tmp_path / "onescan.toml"
    config.write_text(f'data_dir = "{tmp_path / "data"}"\nexecution_provider = "cann"\n')
    ended = subprocess.run(
        [sys.executable, "-m", "dicom_gateway", "worker", "--config", str(config)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (EXIT_CONFIGURATION, "")
    assert "CANNExecutionProvider" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_status_where_no_service_ran_makes_nothing(tmp_path):
    settings = Settings(data_dir=tmp_path / "elsewhere")
    for ask in (operate.service_status, operate.list_parked, lambda s: operate.replay(s, None)):
        with pytest.raises(ConfigurationError, match="elsewhere"):
            ask(settings)
    assert list(tmp_path.iterdir()) == []


def test_status_of_a_new_service(tmp_path):
    settings = make_settings(tmp_path)
    status = operate.service_status(settings)
    assert (status.worker_seen_s, status.waiting_jobs, status.parked) == (None, {}, ())
    assert operate.replay(settings, "1.2.3") == ()
