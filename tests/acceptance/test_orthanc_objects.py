"""All result objects of a study with every finding through a real PACS and back, with Chinese words in them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from conformance.conftest import make_case as make_case  # the fixture
from conformance.conftest import write_ct
from conformance.test_dicom_results import complaints, read_back
from conformance.test_whole_studies import contradictions
from orthanc import orthanc
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_gateway.deliver.dimse import send
from dicom_gateway.report.edition import edition_for
from dicom_gateway.report.objects import ENCODERS, encode_beside
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.settings import Destination
from models.findings import FindingKind

pytestmark = pytest.mark.acceptance

NAME = "Wang^XiaoDong=王^小东"


def test_every_object_comes_back_as_it_was_sent(make_case: Callable[..., StoredResult], tmp_path: Path) -> None:
    source = {"PatientName": NAME, "StudyDescription": "胸部CT平扫"}
    sent: dict[str, Dataset] = {}
    with orthanc(tmp_path) as (rest, port):
        peer = Destination.model_validate(
            {
                "name": "pacs",
                "ae_title": "ORTHANC",
                "host": "127.0.0.1",
                "port": port,
                "objects": tuple(ENCODERS),
                "language": "zh",
            }
        )
        case = replace(make_case("all outlined", **source), edition=edition_for(peer))
        assert {f.kind for f in case.report.findings if f.presence == "present"} == set(FindingKind)

        def encode(name, held):
            data_sets = encode_beside(held, name, case)
            sent.update({str(ds.SOPInstanceUID): ds for ds in data_sets})
            return data_sets

        outcomes = send(encode, peer, calling_ae_title="ONESCAN")
        # What Orthanc is today does not know label maps.
        assert {o.name: o.sent_as for o in outcomes if o.sent_as != o.name} in ({}, {"seg_labelmap": "seg"})
        stored = httpx.get(f"{rest}/instances").json()
        files = [httpx.get(f"{rest}/instances/{one}/file").content for one in stored]
        shown = [httpx.get(f"{rest}/instances/{one}/simplified-tags").json() for one in stored]
    assert Counter(dcmread(BytesIO(file)).SOPInstanceUID for file in files) == Counter(sent.keys())
    assert {(tags["PatientName"], tags["StudyDescription"]) for tags in shown} == {(NAME, "胸部CT平扫")}
    paths = write_ct(tmp_path / "ct", **source)
    for number, file in enumerate(files):
        paths.append(tmp_path / f"{number}.dcm")
        paths[-1].write_bytes(file)
        back = dcmread(paths[-1])
        assert back == read_back(sent[back.SOPInstanceUID])
        assert complaints(paths[-1]) == []
    assert contradictions(paths) == []
