"""Studies, reports and deliveries for the web tests, put into a real store by the store's own functions."""

import contextlib
import io
import socket
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from fastapi import FastAPI
from PIL import Image

from dicom_gateway.report.content import (
    AnalysedSeries,
    RejectedSeries,
    Report,
    ReportedFinding,
    ReportedMeasurement,
    ReportedModel,
    ReportedQuality,
)
from dicom_gateway.settings import Destination, Settings
from dicom_gateway.store.files import StoredFile, instance_path, result_path
from dicom_gateway.store.ledger import (
    InstanceHeader,
    change_delivery,
    change_study,
    close_study,
    open_delivery,
    record_instance,
    record_report,
)
from dicom_gateway.store.schema import DeliveryState, StudyState, create_tables, open_database
from dicom_gateway.web.server import web_server
from imaging.uids import derive_uid
from models.findings import FindingKind

NOW = datetime(2026, 11, 20, 9, 30, tzinfo=UTC).timestamp()
CONTRAST = "intravenous contrast hides calcium"
UNTRAINED = "the model has not been trained for this kind"

_NODULE_MM = (
    ("long_axis", 8.4, "mm"),
    ("short_axis", 6.1, "mm"),
    ("volume", 163.0, "mm3"),
    ("mean_attenuation", 24.0, "[hnsf'U]"),
)
_SECOND_MM = (("long_axis", 5.2, "mm"), ("short_axis", 4.4, "mm"), ("volume", 52.0, "mm3"))
_EFFUSION = (("volume", 240.0, "ml"), ("maximum_depth", 21.5, "mm"))
_EMPHYSEMA = (("low_attenuation_area_950", 9.3, "%"), ("percentile_15_of_attenuation", -932.0, "[hnsf'U]"))


def site_settings(tmp_path: Path, **values: Any) -> Settings:
    """Settings of a site with one destination, its data below `tmp_path`."""
    pacs = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=4242)
    given = {"data_dir": tmp_path / "data", "destinations": (pacs,), "calling_ae_titles": ("SCANNER",)}
    return Settings(**{**given, **values})


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[httpx.Client]:
    """The application behind a real HTTP server on a free loopback port, and a client for it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = web_server(app, Settings(), log_level="critical")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def open_site(settings: Settings) -> sa.Engine:
    """The site's database with its tables."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = open_database(settings.database)
    create_tables(engine)
    return engine


def receive(engine: sa.Engine, uid: str, *, count: int = 1, now: float = NOW, **header: str) -> None:
    """Index `count` instances of a study, as the listener does."""
    described = {
        "patient_name": "Doe^Jane",
        "patient_id": "4711",
        "study_date": "20261120",
        "description": "CT Thorax",
        "accession_number": "A-100",
        **header,
    }
    with engine.begin() as connection:
        for number in range(count):
            sop = f"{uid}.1.{number + 1}"
            file = StoredFile(path=instance_path(uid, f"{uid}.1", sop), size_bytes=1)
            record_instance(
                connection,
                InstanceHeader(
                    sop_instance_uid=sop, series_instance_uid=f"{uid}.1", study_instance_uid=uid, **described
                ),
                file,
                calling_ae_title="SCANNER",
                association_count=number + 1,
                now=now,
            )


def queue(engine: sa.Engine, uid: str, *, revision: int = 1, now: float = NOW) -> None:
    """Close a study whose last instance came at `now`."""
    with engine.begin() as connection:
        assert close_study(connection, uid, revision=revision, last_received=now, now=now + 5)


def fail(engine: sa.Engine, uid: str, error: str) -> None:
    """A study whose analysis ended with `error`."""
    queue(engine, uid)
    with engine.begin() as connection:
        assert change_study(connection, uid, 1, to=StudyState.FAILED, since=(StudyState.QUEUED,), error=error)


def publish(
    settings: Settings,
    engine: sa.Engine,
    report: Report,
    *,
    images: Mapping[str, bytes] | None = None,
    now: float = NOW,
) -> Path:
    """Close the study, write its result folder and note the report, as the worker does."""
    uid, revision = report.study_instance_uid, report.revision
    queue(engine, uid, revision=revision, now=now)
    folder = settings.data_dir / result_path(uid, revision)
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
    for name in ("findings.sr.dcm", "summary.sc.dcm", "segments.seg.dcm", "2_segments.seg.dcm"):
        (folder / name).write_bytes(b"\0" * 128 + b"DICM" + name.encode())
    for finding in report.findings:
        if finding.key_image:
            (folder / finding.key_image).write_bytes((images or {}).get(finding.key_image, png()))
    with engine.begin() as connection:
        record_report(
            connection,
            uid,
            revision,
            folder=result_path(uid, revision),
            created=report.created.timestamp(),
            outcome=report.outcome,
        )
        assert change_study(connection, uid, revision, to=StudyState(report.outcome), since=(StudyState.QUEUED,))
    return folder


def deliver(
    engine: sa.Engine, uid: str, destination: str, state: DeliveryState, *, revision: int = 1, **values: Any
) -> None:
    """A delivery in the given state."""
    with engine.begin() as connection:
        open_delivery(connection, uid, revision, destination, objects=("sr", "sc"), now=NOW)
        assert change_delivery(connection, uid, revision, destination, to=state, now=NOW + 20, **values)


def png() -> bytes:
    """A small grey picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (70, 70, 70)).save(buffer, "PNG")
    return buffer.getvalue()


def finding(kind: str, presence: str, **values: Any) -> ReportedFinding:
    """One answer with the fields that do not matter filled in; `measurements` as (quantity, value, unit)."""
    measured = [ReportedMeasurement(quantity=q, value=v, unit=u) for q, v, u in values.pop("measurements", ())]
    given = dict.fromkeys(ReportedFinding.model_fields) | {
        "kind": kind,
        "presence": presence,
        "method": "anatomy head, threshold",
        "tracking_uid": derive_uid("sample", kind, str(values.get("lesion"))),
        "evidence_grade": None if presence == "not_assessed" else "C",
        "measurements": tuple(measured),
    }
    return ReportedFinding(**{**given, **values})


def sample_findings() -> tuple[ReportedFinding, ...]:
    """Every kind once: three present (one with two lesions), one indeterminate, some absent, the rest not assessed."""
    seen = [
        finding(
            "pulmonary_nodule",
            "present",
            probability=0.91,
            operating_point=0.5,
            measurements=(("lesion_count", 2.0, "1"),),
        ),
        finding(
            "pulmonary_nodule",
            "present",
            lesion=1,
            probability=0.91,
            operating_point=0.5,
            laterality="right",
            site="right upper lobe",
            measurements=_NODULE_MM,
            key_slice=141,
            key_image="key_1.png",
        ),
        finding(
            "pulmonary_nodule",
            "present",
            lesion=2,
            probability=0.63,
            operating_point=0.5,
            laterality="left",
            site="left lower lobe",
            measurements=_SECOND_MM,
            key_slice=88,
            key_image="key_2.png",
        ),
        finding("coronary_artery_calcification", "not_assessed", reason=CONTRAST),
        finding(
            "emphysema",
            "present",
            evidence_grade="B",
            site="lungs",
            measurements=_EMPHYSEMA,
            key_slice=180,
            key_image="key_3.png",
            method="share of lung voxels below -950 HU",
        ),
        finding(
            "pleural_effusion",
            "present",
            probability=0.97,
            operating_point=0.4,
            laterality="left",
            measurements=_EFFUSION,
            key_slice=61,
            key_image="key_4.png",
        ),
        finding(
            "aortic_dilatation",
            "indeterminate",
            probability=0.44,
            operating_point=0.5,
            site="ascending aorta",
            measurements=(("maximum_diameter", 40.2, "mm"),),
            reason="within the error of measurement of 40 mm",
        ),
        *(
            finding(kind, "absent", probability=0.04, operating_point=0.5)
            for kind in (
                "consolidation",
                "ground_glass_opacity",
                "pneumothorax",
                "pericardial_effusion",
                "cardiomegaly",
            )
        ),
        finding("hiatal_hernia", "absent", reason="the lowest slice lies above the hiatus"),
    ]
    done = {answer.kind for answer in seen}
    return (*seen, *(finding(kind, "not_assessed", reason=UNTRAINED) for kind in FindingKind if kind not in done))


def sample_report(uid: str, **values: Any) -> Report:
    """A report about a study with something of everything."""
    given = {
        "report_uid": "2.25.1",
        "study_instance_uid": uid,
        "series_instance_uid": f"{uid}.1",
        "revision": 1,
        "created": datetime(2026, 11, 20, 9, 31, tzinfo=UTC),
        "software_version": "0.1.0",
        "model": ReportedModel(name="onescan-chest", version="0.1", sha256="7f" * 32),
        "outcome": "reported",
        "refusal": None,
        "analysed_series": AnalysedSeries(
            series_number=3,
            series_description="Thorax 1.0 B40f",
            slice_count=312,
            spacing_mm=(1.0, 0.742, 0.742),
            slice_thickness_mm=1.25,
            convolution_kernel="B40f",
            contrast=True,
            contrast_evidence="aorta 214 HU, header names iohexol",
            contrast_phase="systemic_arterial",
        ),
        "quality": (
            ReportedQuality(check="slice_spacing", verdict="pass", message="slices are evenly spaced, 1.0 mm"),
            ReportedQuality(check="lung_coverage", verdict="pass", message="both lungs are covered"),
            ReportedQuality(
                check="noise", verdict="warn", message="noise 31 HU is above 25 HU", measured=31.0, limit=25.0
            ),
        ),
        "rejected_series": (
            RejectedSeries(
                series_instance_uid=f"{uid}.2",
                series_number=1,
                modality="CT",
                series_description="Topogram",
                instance_count=2,
                reason="localizer",
            ),
            RejectedSeries(
                series_instance_uid=f"{uid}.4",
                series_number=4,
                modality="CT",
                series_description="Thorax 3.0 cor",
                instance_count=88,
                reason="coronal reformat",
            ),
        ),
        "unreadable_file_count": 0,
        "findings": sample_findings(),
        "timings_s": {"read": 1.2, "infer": 5.4},
    }
    return Report(**{**given, **values})


def refused_report(uid: str, refusal: str = "slices 41 to 44 are missing", **values: Any) -> Report:
    """A report that refuses the study."""
    reason = f"study not analysed: {refusal}"
    given = {
        "outcome": "refused",
        "refusal": refusal,
        "analysed_series": None,
        "quality": (ReportedQuality(check="slice_gaps", verdict="reject", message=refusal),),
        "findings": tuple(finding(kind, "not_assessed", reason=reason) for kind in FindingKind),
    }
    return sample_report(uid, **{**given, **values})
