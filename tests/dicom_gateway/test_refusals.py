"""What was not taken is counted by study and reason, and shown to the operator."""

import numpy as np
from factories import make_ct_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from running import make_settings
from web_samples import serving

from dicom_gateway.operate import service_status
from dicom_gateway.receive.listener import start_listener
from dicom_gateway.receive.reception import Reception
from dicom_gateway.receive.statuses import StoreStatus
from dicom_gateway.store import index, ledger
from dicom_gateway.store.schema import open_database
from dicom_gateway.web.app import create_app

DUPLICATE = "Stored already, with other bytes"


def test_other_bytes_under_one_uid(tmp_path):
    """One SOP Instance UID on every slice: the first stays, the others are told to sender and operator."""
    settings = make_settings(tmp_path)
    first = make_ct_dataset(InstanceNumber=1)
    slices = [make_ct_dataset(InstanceNumber=n, SOPInstanceUID=first.SOPInstanceUID) for n in (2, 3)]
    broken = make_ct_dataset(InstanceNumber=4, PixelData=np.zeros(10, np.int16).tobytes())
    engine = open_database(settings.database)
    listener = start_listener(Reception(settings=settings, engine=engine))
    try:
        entity = AE(ae_title="CT1")
        entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        association = entity.associate("127.0.0.1", settings.dicom_port, ae_title=settings.ae_title)
        sent = [association.send_c_store(image).Status for image in (broken, first, *slices, first)]
        association.release()
        refusals = index.list_refusals(engine, first.StudyInstanceUID)
        assert index.get_study(engine, first.StudyInstanceUID).instance_count == 1
    finally:
        listener.shutdown()
        engine.dispose()
    success, duplicate = StoreStatus.SUCCESS, StoreStatus.DUPLICATE_SOP_INSTANCE
    assert sent == [StoreStatus.CANNOT_UNDERSTAND, success, duplicate, duplicate, success]
    assert [(r.status, r.reason, r.count, r.calling_ae_title) for r in refusals] == [(duplicate, DUPLICATE, 2, "CT1")]
    assert service_status(settings).refused == {"Pixel Data is truncated": 1, DUPLICATE: 2}
    with serving(create_app(settings)) as client:
        page = client.get(f"/studies/{first.StudyInstanceUID}").text
        system = client.get("/system").text
        of_the_study = client.get(f"/api/studies/{first.StudyInstanceUID}").json()["not_taken"]
        of_others = client.get("/api/not-taken").json()
    assert "Not taken: 2 images from" in page
    assert f"{DUPLICATE} (status 0x0111)" in page
    assert "Not taken: 1 image of studies of which nothing was taken" in system and DUPLICATE not in system
    assert [(one["reason"], one["count"]) for one in of_the_study] == [(DUPLICATE, 2)]
    assert [(one["reason"], one["count"]) for one in of_others] == [("Pixel Data is truncated", 1)]


def test_a_sender_cannot_make_ever_more_rows(tmp_path):
    engine = open_database(make_settings(tmp_path).database)
    for number in range(5):
        with engine.begin() as connection:
            ledger.record_refusal(
                connection, f"1.2.{number}", status=0xC000, reason="No Pixel Data", calling_ae_title="CT1", now=number
            )
    (refusal,) = index.list_refusals(engine, None)
    assert (refusal.count, refusal.last_seen.timestamp()) == (5, 4)
    engine.dispose()
