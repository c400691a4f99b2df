"""Compressed images are decoded while their study is still coming."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest
from compressed import compressed
from factories import make_ct_dataset
from peers import listening
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless
from pynetdicom import AE
from running import make_settings, wait_until
from structlog.testing import capture_logs

from dicom_gateway import early_decoder
from dicom_gateway.early_decoder import EarlyDecoder
from dicom_gateway.settings import Rule
from dicom_gateway.store import index, ledger
from dicom_gateway.store.schema import StudyState
from imaging.headers import read_studies
from imaging.volume import load_volume

# Fewer than twenty are chosen for nothing.
IMAGES = [compressed(JPEGLSLossless, number) for number in range(1, 25)]
STUDY = IMAGES[0].StudyInstanceUID


@contextmanager
def decoding(settings, engine):
    stop = threading.Event()
    thread = threading.Thread(target=EarlyDecoder(settings=settings, engine=engine).run, args=[stop], daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def send(settings, *images, syntax=JPEGLSLossless):
    entity = AE("CT1")
    entity.add_requested_context(CTImageStorage, syntax)
    association = entity.associate("127.0.0.1", settings.dicom_port, ae_title=settings.ae_title)
    assert [association.send_c_store(image).Status for image in images] == [0x0000] * len(images)
    return association


def decoded(settings):
    return sorted(path.stem.partition("_")[2] for path in settings.decoded_dir.glob("*/*.hu"))


def uids(*images):
    return sorted(str(image.SOPInstanceUID) for image in images)


def test_images_are_decoded_before_their_association_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(early_decoder, "LOOK_EVERY_S", 0.1)
    settings = make_settings(tmp_path)
    with listening(settings) as engine, decoding(settings, engine):
        association = send(settings, *IMAGES[:21])
        wait_until(lambda: decoded(settings) == uids(*IMAGES[:21]), "those that are here are decoded")
        assert [association.send_c_store(image).Status for image in IMAGES[21:]] == [0x0000] * 3
        wait_until(lambda: decoded(settings) == uids(*IMAGES), "all are decoded")
        assert association.is_established
        association.release()
        ((study,), _) = read_studies(list(settings.studies_dir.glob("*/*/*")))
        expected, found = (load_volume(study.series[0], folder) for folder in (None, settings.decoded_dir / STUDY))
        np.testing.assert_array_equal(found.hu, expected.hu)
        with engine.begin() as connection:
            assert ledger.change_study(connection, STUDY, 1, to=StudyState.REPORTED, since=(StudyState.RECEIVING,))
        wait_until(lambda: not list(settings.decoded_dir.iterdir()), "they are forgotten")


def test_what_was_decoded_before_a_restart_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(early_decoder, "LOOK_EVERY_S", 0.1)
    settings = make_settings(tmp_path)
    stale = settings.decoded_dir / STUDY / "torn.hu"
    stale.parent.mkdir(parents=True)
    stale.touch()
    with listening(settings) as engine:
        EarlyDecoder(settings=settings, engine=engine).clear()
        assert not stale.exists()
        with decoding(settings, engine):
            send(settings, *IMAGES).release()
            wait_until(lambda: decoded(settings) == uids(*IMAGES), "all are decoded")
            # Another worker that starts beside this one.
            EarlyDecoder(settings=settings, engine=engine).clear()
            assert decoded(settings) == uids(*IMAGES)


@pytest.mark.parametrize(
    ("images", "values"),
    [
        ([make_ct_dataset(InstanceNumber=number) for number in range(1, 25)], {}),
        (IMAGES, {"rules": (Rule(name="none", modality="CT", analyse=False),)}),
        (IMAGES, {"minimum_free_space_mb": 10**9}),
    ],
    ids=["uncompressed", "not analysed", "no space"],
)
def test_what_is_not_decoded_early(tmp_path, images, values):
    settings = make_settings(tmp_path)
    syntax = images[0].file_meta.TransferSyntaxUID
    assert syntax in (ExplicitVRLittleEndian, JPEGLSLossless)
    with listening(settings) as engine:
        send(settings, *images, syntax=syntax).release()
        early = EarlyDecoder(settings=settings.model_copy(update=values), engine=engine)
        if "minimum_free_space_mb" in values:
            with pytest.raises(early_decoder.files.StorageFull):
                early.once()
        assert not early.once()
    assert decoded(settings) == []


def test_a_damaged_image_is_tried_once_and_keeps_no_other_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(early_decoder, "_AT_ONCE", 6)
    monkeypatch.setattr(early_decoder, "LOOK_EVERY_S", 0.1)
    damaged = compressed(JPEGLSLossless, 1, damage=lambda frame: frame[:40] + frame[-2:])
    settings = make_settings(tmp_path)
    with listening(settings) as engine, capture_logs() as logs:
        send(settings, damaged, *IMAGES[1:]).release()
        with decoding(settings, engine):
            wait_until(lambda: len(decoded(settings)) == 18, "the others are decoded")
        assert index.get_study(engine, STUDY).state is StudyState.RECEIVING
    assert [log["error"] for log in logs if log["event"] == "early_decoding_failed"] == ["UnreadableInstance"]
