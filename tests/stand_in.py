"""A service whose worker answers at once with a stand-in analysis, and what became of its studies."""

from pathlib import Path

from factories import save_ct
from running import ROOT

from dicom_gateway.report.content import Report
from dicom_gateway.report.instance import object_uid
from dicom_gateway.settings import Destination
from dicom_gateway.store import index
from dicom_gateway.store.files import REPORT_NAME, result_path
from dicom_gateway.store.schema import DeliveryState, open_database
from imaging.uids import derive_uid

WORKER = ROOT / "tests" / "worker_with_own_analysis.py"


def to(peer, name="pacs"):
    return Destination(name=name, ae_title="PACS", host="127.0.0.1", port=peer.port)


def own_worker(tmp_path, *arguments):
    return [str(WORKER), str(tmp_path / "analyses.log"), *map(str, arguments)]


def analyses(tmp_path):
    log = tmp_path / "analyses.log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def write_study(folder: Path, name: str, count: int = 3) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    uid = derive_uid("durability", name)
    for number in range(1, count + 1):
        save_ct(folder / f"{name}-{number}.dcm", StudyInstanceUID=uid, InstanceNumber=number)
    return uid


def results(settings, uid: str, revision: int = 1) -> dict[str, int]:
    """What a destination without Segmentations must have received: SR and summary page of a study, each once."""
    record = Report.model_validate_json((settings.data_dir / result_path(uid, revision) / REPORT_NAME).read_bytes())
    return {object_uid(record, "sop", kind, "1"): 1 for kind in ("SR-ALONE", "SC")}


def in_state(settings, state, count=1):
    engine = open_database(settings.database)
    try:
        return len(index.list_studies(engine, limit=100, state=state)) >= count
    finally:
        engine.dispose()


def delivery_states(settings):
    engine = open_database(settings.database)
    try:
        return [row.state for row in index.list_deliveries(engine)]
    finally:
        engine.dispose()


def all_delivered(settings, count):
    return delivery_states(settings) == count * [DeliveryState.DELIVERED]
