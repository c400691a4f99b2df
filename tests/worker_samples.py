"""A study in the index with its files, and an analysis that refuses it, for a Worker whose jobs a test calls itself."""

from factories import save_ct
from web_samples import refused_report

from dicom_gateway.store import ledger
from dicom_gateway.store.files import StoredFile, instance_path
from imaging.uids import derive_uid

STUDY = derive_uid("worker")
CREATED = 1_750_000_000.123456


def reported(files, folder, revision, created):
    folder.mkdir(parents=True)
    report_uid = derive_uid("worker result", str(revision))
    report = refused_report(STUDY, report_uid=report_uid, series_instance_uid=None, revision=revision, created=created)
    (folder / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
    return "refused"


def receive(worker, number=1, study=STUDY):
    """One more image, and the study queued."""
    header = ledger.InstanceHeader(
        sop_instance_uid=derive_uid("worker", study, str(number)),
        series_instance_uid="1.2",
        study_instance_uid=study,
        patient_name="Test^Patient",
        patient_id="",
        study_date="",
        description="",
        accession_number="",
    )
    path = instance_path(study, "1.2", header.sop_instance_uid)
    file = StoredFile(path=path, size_bytes=1)
    stored = worker.settings.data_dir / path
    stored.parent.mkdir(parents=True, exist_ok=True)
    save_ct(stored, StudyInstanceUID=study, SeriesInstanceUID="1.2", SOPInstanceUID=header.sop_instance_uid)
    now = float(number)
    with worker.engine.begin() as connection:
        receipt = ledger.record_instance(
            connection, header, file, calling_ae_title="CT1", association_count=number, now=now
        )
        assert ledger.close_study(connection, study, revision=receipt.revision, last_received=now, now=CREATED)
    return receipt.revision
