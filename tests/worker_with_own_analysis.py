"""The real worker process with a small analysis of the tests' own: refused studies, without a network.

Usage: worker_with_own_analysis.py LOG [SECONDS] [fail|die]. Each start of an analysis adds a line to LOG; `fail`
raises, `die` kills the process, while the file LOG.mend does not exist.
"""

import os
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

from pydicom import dcmread
from web_samples import refused_report

from dicom_gateway.events import configure_logging
from dicom_gateway.service import end_with_parent
from dicom_gateway.settings import Settings
from dicom_gateway.store.files import REPORT_NAME
from dicom_gateway.worker import run_worker
from imaging.uids import derive_uid

LOG = Path(sys.argv[1])
SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
MODE = sys.argv[3] if len(sys.argv) > 3 else ""


def analyse(files, folder: Path, revision: int, created: datetime) -> str:
    study = str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
    with LOG.open("a") as log:
        log.write(f"{study} {revision} {len(files)} {created.isoformat()}\n")
    if MODE and not LOG.with_suffix(".mend").exists():
        if MODE == "die":
            os._exit(9)
        raise ArithmeticError("Test^Patient must not appear anywhere")
    time.sleep(SECONDS)
    folder.mkdir(parents=True, exist_ok=True)
    report_uid = derive_uid(study, str(revision))
    report = refused_report(study, report_uid=report_uid, series_instance_uid=None, revision=revision, created=created)
    (folder / REPORT_NAME).write_text(report.model_dump_json(), encoding="utf-8")
    return "refused"


settings = Settings.model_validate_json(sys.stdin.buffer.readline())
end_with_parent()
configure_logging("info", process="worker")
run_worker(settings, threading.Event(), lambda: print("ready", flush=True), analyse)
