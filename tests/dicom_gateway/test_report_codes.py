from collections.abc import Iterator

import pytest
from pydicom.sr._concepts_dict import concepts

from dicom_gateway.report import codes
from dicom_gateway.report.codes import CodeEntry, CodeStatus
from dicom_gateway.report.wording import KIND_NAMES, QUANTITY_NAMES
from models.findings import EvidenceGrade, FindingKind, Laterality, Presence, Quantity


def all_codes() -> Iterator[CodeEntry]:
    for kind in codes.KIND_CODES.values():
        yield from (kind.finding, kind.site)
    for quantity in codes.QUANTITY_CODES.values():
        yield from filter(None, (quantity.name, quantity.derivation, quantity.method, quantity.site))
    for table in (codes.UNIT_CODES, codes.PRESENCE_CODES, codes.LATERALITY_CODES, codes.EVIDENCE_CODES):
        yield from table.values()
    yield from (value for value in vars(codes).values() if isinstance(value, CodeEntry))


def meanings(entry: CodeEntry) -> set[str]:
    """What pydicom's copy of PS3.16 calls this code; a code may have several names there."""
    return {names[entry.value][0] for names in concepts.get(entry.scheme, {}).values() if entry.value in names}


# Codes that pydicom's dictionaries lack or name differently, each with its source.
NOT_IN_PYDICOM = {
    ("UCUM", "ml"): "UCUM; PS3.16 CID 7181 lists only derived units of it",
    ("SCT", "260753009"): "the name as highdicom and PS3.16 TID 1601 have it; pydicom has it only as an attribute",
    ("LN", "24627-2"): "LOINC's own name; pydicom has the report title of CID 7000",
}


def test_every_member_of_the_vocabulary_has_a_code_and_a_name() -> None:
    assert set(codes.KIND_CODES) == set(KIND_NAMES) == set(FindingKind)
    assert set(codes.QUANTITY_CODES) == set(QUANTITY_NAMES) == set(Quantity)
    assert set(codes.PRESENCE_CODES) == set(Presence)
    assert set(codes.LATERALITY_CODES) == set(Laterality)
    assert set(codes.EVIDENCE_CODES) == set(EvidenceGrade)


@pytest.mark.parametrize("entry", sorted(set(all_codes()), key=str), ids=lambda e: f"{e.scheme}-{e.value}")
def test_standard_codes_agree_with_pydicoms_dictionaries(entry: CodeEntry) -> None:
    assert 0 < len(entry.value) <= 16, "Code Value is an SH"
    assert 0 < len(entry.meaning) <= 64, "Code Meaning is an LO"
    if entry.status is CodeStatus.STANDARD and (entry.scheme, entry.value) not in NOT_IN_PYDICOM:
        assert entry.meaning in meanings(entry)


def test_only_known_schemes_are_used() -> None:
    schemes = {entry.scheme for entry in all_codes()}
    assert schemes == {"SCT", "DCM", "UCUM", "LN", "RADLEX", "99ONESCAN"}


def test_snomed_codes_are_of_the_dicom_freeset() -> None:
    """A SNOMED code that stands in a PS3.16 context group is free to use."""
    for entry in all_codes():
        if entry.scheme == "SCT" and (entry.scheme, entry.value) not in NOT_IN_PYDICOM:
            groups = [g for names in concepts["SCT"].values() for g in names.get(entry.value, ("", []))[1]]
            assert groups, f"{entry.value} {entry.meaning} is in no context group"


def test_no_two_codes_mean_different_things() -> None:
    by_value: dict[tuple[str, str], str] = {}
    for entry in all_codes():
        assert by_value.setdefault((entry.scheme, entry.value), entry.meaning) == entry.meaning


def test_each_kind_and_each_quantity_is_told_apart_by_its_codes() -> None:
    # Aortic enlargement and aortic wall calcification share a site, cardiac and aortic enlargement a finding.
    assert len(set(codes.KIND_CODES.values())) == len(FindingKind)
    assert len(set(codes.QUANTITY_CODES.values())) == len(Quantity)


def test_not_assessed_is_unlike_every_answer_of_cid_240() -> None:
    not_assessed = codes.PRESENCE_CODES[Presence.NOT_ASSESSED]
    assert not_assessed.scheme == codes.PRIVATE_SCHEME
    assert not_assessed.meaning == "Not assessed"
    assert len(set(codes.PRESENCE_CODES.values())) == len(Presence)
