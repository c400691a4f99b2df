"""Results by DICOMweb: a client finds the objects that the judges have seen, and gets their bytes."""

import io
from collections.abc import Callable
from pathlib import Path

from pydicom import Dataset, dcmread
from web_samples import NOW, open_site, queue, receive, serving, site_settings

from dicom_gateway.deliver import shelf
from dicom_gateway.pipeline import write_result
from dicom_gateway.report.objects import ENCODERS, part_10
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.settings import DicomwebDestination
from dicom_gateway.store.files import result_path
from dicom_gateway.store.ledger import record_report
from dicom_gateway.web.app import create_app


def test_results_are_found_and_retrieved_as_they_are_encoded(
    tmp_path: Path, make_case: Callable[..., StoredResult]
) -> None:
    case = make_case("findings")
    study, every = case.report.study_instance_uid, tuple(name for name in ENCODERS if not name.startswith("sr_"))
    encoded = {name: [part_10(ds) for ds in encode(case)] for name, encode in ENCODERS.items()}
    settings = site_settings(tmp_path)
    engine = open_site(settings)
    receive(engine, study)
    queue(engine, study)
    folder = result_path(study, 1)
    write_result(case, settings.data_dir / folder)
    with engine.begin() as connection:
        record_report(connection, study, 1, folder=folder, created=NOW, outcome="reported")
    engine.dispose()
    with serving(create_app(settings)) as client:

        def retrieved() -> list[bytes]:
            found = client.get(f"/dicom-web/studies/{study}/instances").json()
            addresses = [Dataset.from_json(one).RetrieveURL for one in found]
            return sorted(client.get(one, headers={"Accept": "application/dicom"}).content for one in addresses)

        assert retrieved() == sorted(content for name in ("sr", "sc", "seg") for content in encoded[name])
        profile = DicomwebDestination(name="viewer", kind="dicomweb", objects=every)
        shelf.send(lambda name, held: ENCODERS[name](case), profile, settings.data_dir / folder)
        assert retrieved() == sorted(content for name in every for content in encoded[name])
        (listed,) = client.get("/dicom-web/studies").json()
        told = client.get(f"/dicom-web/studies/{study}/metadata").json()
    modalities = {dcmread(io.BytesIO(content)).Modality for name in every for content in encoded[name]}
    assert set(listed["00080061"]["Value"]) == modalities
    assert {Dataset.from_json(header).Modality for header in told} == modalities
