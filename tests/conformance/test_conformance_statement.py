"""The conformance statement against the code and its results. CONF-nn are requirements of CONFORMANCE.md."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conformance.test_dicom_results import MakeCase, groups, named, read_back
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    ModalityPerformedProcedureStep,
    SecondaryCaptureImageStorage,
    StorageCommitmentPushModel,
    Verification,
)
from running import free_port, make_settings

from dicom_gateway.conformance import ATTRIBUTES, OBJECTS, STATEMENT, tables, write_tables
from dicom_gateway.deliver import dimse
from dicom_gateway.deliver.profile import SOP_CLASSES
from dicom_gateway.receive.admission import SOP_CLASSES as RECEIVED
from dicom_gateway.receive.admission import TRANSFER_SYNTAXES
from dicom_gateway.receive.listener import start_listener
from dicom_gateway.receive.reception import Reception
from dicom_gateway.receive.statuses import StoreStatus
from dicom_gateway.report import codes, content, fhir
from dicom_gateway.report.codes import PRIVATE_SCHEME, PRIVATE_SCHEME_UID
from dicom_gateway.report.hl7 import encode_oru
from dicom_gateway.report.objects import ENCODERS
from dicom_gateway.settings import Destination
from dicom_gateway.store.schema import open_database
from models.findings import FindingKind, Quantity

Code = tuple[str, str, str]

SIDES = ("", ".left", ".right", ".bilateral")
LOCAL_CODES = {kind.value for kind in FindingKind} | {q.value + side for q in Quantity for side in SIDES}


def test_the_statement_is_what_the_code_says(tmp_path: Path) -> None:
    """CONF-01"""
    fresh = tmp_path / STATEMENT.name
    fresh.write_text(STATEMENT.read_text(encoding="utf-8"), encoding="utf-8")
    write_tables(fresh)
    assert fresh.read_text(encoding="utf-8") == STATEMENT.read_text(encoding="utf-8"), (
        "run python -m dicom_gateway.conformance"
    )


def test_a_statement_without_its_marks_is_refused(tmp_path: Path) -> None:
    without = tmp_path / "statement.md"
    without.write_text("nothing")
    with pytest.raises(ValueError, match="once each"):
        write_tables(without)


def test_every_requirement_of_the_statement_has_a_test() -> None:
    stated = set(re.findall(r"CONF-\d\d", STATEMENT.read_text(encoding="utf-8")))
    tests = Path(__file__).parents[1]
    tested = {
        requirement
        for file in (Path(__file__), tests / "dicom_gateway" / "test_report_codes.py")
        for requirement in re.findall(r'"""(CONF-\d\d)', file.read_text(encoding="utf-8"))
    }
    assert stated == tested


def test_every_status_that_is_answered_is_stated() -> None:
    stated = "".join(tables()[f"{kind} statuses"] for kind in ("store", "commitment", "step"))
    assert all(f"| 0x{status:04X} | {status.name} |" in stated for status in StoreStatus)


def test_the_stated_contexts_are_accepted_and_no_others(tmp_path: Path) -> None:
    """CONF-02"""
    settings = make_settings(tmp_path)
    engine = open_database(settings.database)
    entity = start_listener(Reception(settings=settings, engine=engine))
    try:
        peer = AE(ae_title="CT1")
        stated = [(sop_class, syntax) for sop_class in RECEIVED for syntax in TRANSFER_SYNTAXES]
        stated += [(Verification, ImplicitVRLittleEndian), (StorageCommitmentPushModel, ExplicitVRLittleEndian)]
        stated.append((ModalityPerformedProcedureStep, ImplicitVRLittleEndian))
        others = [(RECEIVED[0], ExplicitVRBigEndian), (MRImageStorage, ImplicitVRLittleEndian)]
        for sop_class, syntax in (*stated, *others):
            peer.add_requested_context(sop_class, syntax)
        association = peer.associate("127.0.0.1", settings.dicom_port, ae_title=settings.ae_title)
        accepted = [(c.abstract_syntax, c.transfer_syntax[0]) for c in association.accepted_contexts]
        ours = (association.acceptor.implementation_class_uid, association.acceptor.implementation_version_name)
        maximum_pdu = association.acceptor.maximum_length
        association.release()
    finally:
        entity.shutdown()
        engine.dispose()
    assert set(accepted) == {(str(sop_class), str(syntax)) for sop_class, syntax in stated}
    assert_stated_as_ours(*ours)
    assert f"| {maximum_pdu} |" in tables()["association policies"]


def assert_stated_as_ours(class_uid: str | None, version_name: str | None) -> None:
    policies = tables()["association policies"]
    assert f"| Implementation Class UID | {class_uid} | {class_uid} |" in policies
    assert f"| Implementation Version Name | {version_name} | {version_name} |" in policies


def test_destinations_learn_who_we_are(make_case: MakeCase) -> None:
    """CONF-03"""
    seen = []

    def on_accepted(event: evt.Event) -> None:
        requestor = event.assoc.requestor
        seen.append((requestor.implementation_class_uid, requestor.implementation_version_name))

    peer, port = AE(ae_title="PACS"), free_port()
    peer.add_supported_context(SecondaryCaptureImageStorage)
    server = peer.start_server(
        ("127.0.0.1", port),
        block=False,
        evt_handlers=[(evt.EVT_ACCEPTED, on_accepted), (evt.EVT_C_STORE, lambda event: 0x0000)],
    )
    case = make_case("refused")
    destination = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, objects=("sc",))
    try:
        dimse.send(lambda name, held: ENCODERS[name](case), destination, calling_ae_title="ONESCAN")
    finally:
        server.shutdown()
    assert_stated_as_ours(*seen[0])


@pytest.mark.parametrize("name", ENCODERS)
def test_objects_have_the_stated_attributes_and_no_others(name: str, make_case: MakeCase) -> None:
    """CONF-04"""
    stated = {keyword for keywords, objects, _ in ATTRIBUTES for keyword in keywords.split() if name in objects}
    number, description, template, absent_when = OBJECTS[name]
    case = make_case("findings", IssuerOfPatientID="HOSPITAL", TimezoneOffsetFromUTC="+0800")
    earlier = content.SupersededReport(revision=1, report_uid="1.2.9", content_sha256="0", marked=True)
    reader = content.Verification(observer_name="Li^Wei", organization="Test Hospital")
    verified = case.report.model_copy(update={"revision": 2, "supersedes": earlier, "verification": reader})
    data_sets = ENCODERS[name](replace(case, report=verified))
    description = description.replace("(unverified)", "(verified)")
    assert {element.keyword for ds in data_sets for element in ds} == stated
    for ds in map(read_back, data_sets):
        assert ds.SOPClassUID == SOP_CLASSES[name]
        assert (ds.SeriesNumber, ds.SeriesDescription) == (number, f"{description}, revision 2")
        templates = [f"TID {item.TemplateIdentifier}" for item in ds.get("ContentTemplateSequence", ())]
        assert templates == ([] if template == "-" else [template])
        assert not any(element.tag.is_private for element in ds.iterall())
    assert bool(ENCODERS[name](make_case("refused"))) == (absent_when == "never")


def test_every_object_is_stated() -> None:
    assert set(OBJECTS) == set(ENCODERS) == set(SOP_CLASSES)


def coded(ds: Dataset) -> Iterator[Code]:
    """(value, scheme, meaning) of every code below `ds`."""
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                if "CodeMeaning" in item:
                    yield item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning
                yield from coded(item)


def codings(node: Any) -> Iterator[Code]:
    if isinstance(node, list):
        for item in node:
            yield from codings(item)
    elif isinstance(node, dict):
        if {"system", "code", "display"} <= node.keys():
            yield node["code"], node["system"], node["display"]
        for value in node.values():
            yield from codings(value)


def elements(message: str) -> Iterator[Code]:
    """The codes of an ORU^R01: OBR-4, OBX-3, OBX-6 and coded OBX-5."""
    for segment in message.split("\r"):
        fields = segment.split("|")
        chosen = {"OBR": [4], "OBX": [3, 6, 5] if fields[2:3] == ["CE"] else [3, 6]}.get(fields[0], [])
        for number in chosen:
            parts = fields[number].split("^") if fields[number:] and fields[number] else []
            for at in range(0, len(parts), 3):
                value, meaning, scheme = parts[at : at + 3]
                yield value, scheme, meaning


@pytest.mark.parametrize("scenario", ["all outlined", "findings", "refused"])
def test_every_code_of_every_result_is_in_the_table(scenario: str, make_case: MakeCase) -> None:
    """CONF-05"""
    known = {(entry.value, entry.scheme, entry.meaning) for entry in codes.every_code()}
    case = make_case(scenario)
    in_dicom = {found for encode in ENCODERS.values() for ds in encode(case) for found in coded(ds)}
    assert in_dicom
    assert in_dicom - known == set()

    schemes = {system: scheme for scheme, system in fhir._SYSTEMS.items()}
    in_fhir = {(v, schemes[s], m) for v, s, m in codings(json.loads(fhir.encode_bundle(case)))}
    escaped = encode_oru(case).decode()
    in_hl7 = set(elements(escaped))
    assert in_fhir
    assert in_hl7
    rest = {found for found in in_fhir | in_hl7 if not (found[1] == PRIVATE_SCHEME and found[0] in LOCAL_CODES)}
    assert rest - known == set()


@pytest.mark.parametrize("name", ENCODERS)
def test_private_codes_are_declared(name: str, make_case: MakeCase) -> None:
    """CONF-07"""
    for ds in ENCODERS[name](make_case("findings")):
        declared = {
            (item.CodingSchemeDesignator, item.CodingSchemeUID)
            for item in ds.get("CodingSchemeIdentificationSequence", ())
        }
        if PRIVATE_SCHEME in {scheme for _, scheme, _ in coded(ds)}:
            assert declared == {(PRIVATE_SCHEME, PRIVATE_SCHEME_UID)}


def test_a_finding_has_one_tracking_uid_in_all_objects(make_case: MakeCase) -> None:
    """CONF-08"""
    case = make_case("findings")
    of = {name: ENCODERS[name](case) for name in ("sr", "seg", "marks", "gsps")}
    (sr,) = of["sr"]
    in_sr = {named(group, "112040")[0].UID for group in groups(sr)}
    assert in_sr == {finding.tracking_uid for finding in case.report.findings}
    in_others = {
        "seg": {segment.TrackingUID for ds in of["seg"] for segment in ds.SegmentSequence},
        "marks": {named(group, "112040")[0].UID for ds in of["marks"] for group in groups(ds)},
        "gsps": {
            text.TrackingUID
            for ds in of["gsps"]
            for annotation in ds.GraphicAnnotationSequence
            for text in annotation.TextObjectSequence
        },
    }
    for name, uids in in_others.items():
        assert uids, name
        assert uids <= in_sr, name
