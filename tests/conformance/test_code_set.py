"""The codes of findings for a destination that may use all of SNOMED CT."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conformance.test_dicom_results import MakeCase, code, complaints, encoded, group_by_tracking_uid, named
from pydicom.dataset import Dataset

from dicom_gateway.report import codes
from dicom_gateway.report.edition import PLAIN, Edition, edition_for
from dicom_gateway.report.fhir import encode_bundle
from dicom_gateway.report.hl7 import encode_oru
from dicom_gateway.report.language import CHINESE
from dicom_gateway.report.objects import ENCODERS
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.settings import Destination
from models.findings import FindingKind

EXACT = Edition(code_set="snomed")
LICENSED = {entry.value for entry in codes.SNOMED_CODES.values()}


def every_code_value(ds: Dataset) -> set[str]:
    return {str(element.value) for element in ds.iterall() if element.keyword == "CodeValue"}


def exact(case: StoredResult) -> StoredResult:
    return replace(case, edition=EXACT)


@pytest.mark.parametrize("name", ENCODERS)
def test_licensed_codes_are_written_only_where_they_are_asked_for(
    name: str, make_case: MakeCase, tmp_path: Path
) -> None:
    case = make_case("all outlined")
    plain, asked = ENCODERS[name](case), ENCODERS[name](exact(case))
    assert plain
    for before, after in zip(plain, asked, strict=True):
        assert not every_code_value(before) & LICENSED
        assert before.SOPInstanceUID != after.SOPInstanceUID
        path = tmp_path / "object.dcm"
        path.write_bytes(encoded(after))
        assert complaints(path) == []
        if name in ("sr", "sr_comprehensive", "sr_enhanced"):
            assert every_code_value(after) >= LICENSED


def test_a_finding_is_named_by_the_exact_concept_or_as_ever(make_case: MakeCase) -> None:
    case = exact(make_case("findings"))
    groups = group_by_tracking_uid(ENCODERS["sr"](case)[0])
    for finding in case.report.findings:
        kind = FindingKind(finding.kind)
        entry = codes.SNOMED_CODES.get(kind, codes.KIND_CODES[kind].finding)
        (item,) = named(groups[finding.tracking_uid], "121071")
        assert code(item.ConceptCodeSequence) == (entry.value, entry.scheme)


def test_fhir_and_hl7_name_it_so_too(make_case: MakeCase) -> None:
    case = make_case("findings")
    for encode in (encode_bundle, encode_oru):
        plain, asked = encode(case).decode(), encode(exact(case)).decode()
        assert not any(f'"{value}"' in plain or f"^{value}^" in plain for value in LICENSED)
        assert all(f'"{value}"' in asked or f"^{value}^" in asked for value in LICENSED)
    assert json.loads(encode_bundle(exact(case)))["resourceType"] == "Bundle"


def test_editions_have_uids_of_their_own() -> None:
    editions = (PLAIN, EXACT, Edition(CHINESE), Edition(CHINESE, "snomed"))
    assert len({edition.uid_parts for edition in editions}) == len(editions)
    assert PLAIN.uid_parts == ()


def test_a_destination_gets_its_code_set() -> None:
    peer = {"name": "pacs", "ae_title": "PACS", "host": "pacs", "port": 104}
    assert edition_for(Destination(**peer)) == PLAIN
    assert edition_for(Destination(**peer, code_set="snomed")) == EXACT
