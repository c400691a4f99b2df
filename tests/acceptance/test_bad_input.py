"""A full disk: refused with the right status, nothing half-kept, nothing acknowledged lost."""

import os
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
from factories import make_ct_dataset
from pydicom import dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from running import make_settings, role

from dicom_gateway.receive.statuses import StoreStatus
from dicom_gateway.store import files, index
from dicom_gateway.store.schema import open_database

pytestmark = pytest.mark.acceptance


@contextmanager
def small_disk(folder, megabytes):
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def image(number):
    pixels = np.random.default_rng(number).integers(0, 2000, (512, 512), np.int16)
    return make_ct_dataset(InstanceNumber=number, Rows=512, Columns=512, PixelData=pixels.tobytes())


def send(settings, data_sets):
    entity = AE(ae_title="CT1")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", settings.dicom_port, ae_title=settings.ae_title)
    try:
        return [association.send_c_store(data_set).Status for data_set in data_sets]
    finally:
        association.release()


def test_full_disk(tmp_path):
    with small_disk(tmp_path / "disk", 16) as disk:
        settings = make_settings(tmp_path, data_dir=disk / "data", minimum_free_space_mb=0)
        images = [image(number) for number in range(1, 41)]
        with role(settings, "listener"):
            statuses = send(settings, images)
        assert set(statuses) == {StoreStatus.SUCCESS, StoreStatus.REFUSED_OUT_OF_RESOURCES}
        acknowledged = {
            image.SOPInstanceUID for image, status in zip(images, statuses, strict=True) if status == 0x0000
        }
        assert list(settings.incoming_dir.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        # Nothing acknowledged is lost, nothing else is there, and the rest is taken once there is room.
        with role(settings, "listener"):
            engine = open_database(settings.database)
            uid = images[0].StudyInstanceUID
            stored = index.list_instances(engine, uid, 1)
            assert {row.sop_instance_uid for row in stored} == acknowledged
            assert {row.path for row in stored} == set(files.stored_paths(settings.data_dir))
            sent = {image.SOPInstanceUID: image.PixelData for image in images}
            for row in stored:
                assert dcmread(settings.data_dir / row.path).PixelData == sent[row.sop_instance_uid]
            assert set(send(settings, images)) == {StoreStatus.SUCCESS}
            assert index.get_study(engine, uid).instance_count == len(images)
            engine.dispose()
