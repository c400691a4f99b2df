"""DICOMweb beside a real server: Orthanc with its DICOMweb plugin."""

from pathlib import Path

import httpx
import pytest
from factories import make_ct_dataset
from orthanc import DICOMWEB, orthanc

from dicom_gateway.deliver.profile import SOP_CLASSES
from dicom_gateway.deliver.stow import ask, send
from dicom_gateway.settings import StowDestination
from dicom_gateway.store.schema import ObjectOutcome
from imaging.uids import derive_uid

pytestmark = pytest.mark.acceptance


def test_results_are_stored_by_orthanc_once(tmp_path: Path) -> None:
    """A repeated delivery is a success and nothing is there twice."""

    def encode(name):
        uid = derive_uid("dicomweb test", name)
        return (make_ct_dataset(SOPClassUID=SOP_CLASSES[name], SOPInstanceUID=uid, SeriesInstanceUID=uid),)

    with orthanc(tmp_path, Plugins=[str(DICOMWEB)]) as (rest, _):
        peer = StowDestination(name="web", kind="stow", url=rest + "/dicom-web/", objects=("sr", "seg", "sc"))
        ask(peer.url)
        for _ in range(2):
            outcomes = send(encode, peer)
            assert outcomes == tuple(ObjectOutcome(name=n, sent_as=n, instances=1) for n in ("sr", "seg", "sc"))
        instances = [httpx.get(f"{rest}/instances/{i}").json() for i in httpx.get(rest + "/instances").json()]
    stored = {instance["MainDicomTags"]["SOPInstanceUID"] for instance in instances}
    assert len(instances) == len(stored) == 3
    assert stored == {derive_uid("dicomweb test", name) for name in ("sr", "seg", "sc")}
