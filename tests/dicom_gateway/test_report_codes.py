import re

import pytest
from pydicom.sr._concepts_dict import concepts

from dicom_gateway.report import codes
from dicom_gateway.report.codes import CodeEntry, CodeStatus, every_code
from dicom_gateway.report.wording import KIND_NAMES, QUANTITY_NAMES
from models.findings import EvidenceGrade, FindingKind, Laterality, Presence, Quantity


def listed(entry: CodeEntry) -> list[tuple[str, list[int]]]:
    """What pydicom's copy of PS3.16 has under this code: names, and the context groups (CID) where it has them."""
    return [names[entry.value] for names in concepts.get(entry.scheme, {}).values() if entry.value in names]


# What pydicom's dictionaries lack or name differently, as its publisher has it.
NOT_IN_PYDICOM = {
    ("ml", "UCUM"): "ml",
    # As highdicom and PS3.16 TID 1601 have it; pydicom has it only as an attribute of SNOMED CT.
    ("260753009", "SCT"): "Source",
    # As highdicom writes it; PS3.16 has small letters.
    ("121232", "DCM"): "Source Series for Segmentation",
    # LOINC's own name; pydicom has the report title of CID 7000.
    ("24627-2", "LN"): "CT Chest",
    ("en-US", "RFC5646"): "English (United States)",
    ("zh-CN", "RFC5646"): "Chinese (China)",
    ("RID4650", "RADLEX"): "fracture",
    ("RID4658", "RADLEX"): "compression fracture",
    ("RID4799", "RADLEX"): "emphysema",
    ("RID5388", "RADLEX"): "osteopenia",
    ("RID5429", "RADLEX"): "implantable device",
    ("RID28493", "RADLEX"): "atelectasis",
    ("RID43255", "RADLEX"): "consolidation",
    ("RAD", "v2-0074"): "Radiology",
    ("CT", "v2-0074"): "CAT Scan",
    ("ACSN", "v2-0203"): "Accession ID",
    ("imaging", "observation-category"): "Imaging",
    ("POS", "v3-ObservationInterpretation"): "Positive",
    ("NEG", "v3-ObservationInterpretation"): "Negative",
    ("IND", "v3-ObservationInterpretation"): "Indeterminate",
    ("not-performed", "data-absent-reason"): "Not Performed",
    ("not-applicable", "data-absent-reason"): "Not Applicable",
    # The preferred terms of SNOMED CT; PS3.16 has no group with these.
    ("445512009", "SCT"): "Calcification of coronary artery",
    ("87433001", "SCT"): "Pulmonary emphysema",
    ("42942008", "SCT"): "Compression fracture of vertebral column",
    ("95436008", "SCT"): "Lung consolidation",
    ("8186001", "SCT"): "Cardiomegaly",
    ("46621007", "SCT"): "Atelectasis",
    ("52324001", "SCT"): "Mediastinal lymphadenopathy",
    ("12295008", "SCT"): "Bronchiectasis",
    ("312894000", "SCT"): "Osteopenia",
    ("197321007", "SCT"): "Steatosis of liver",
    ("33737001", "SCT"): "Fracture of rib",
    ("84089009", "SCT"): "Hiatal hernia",
}
PUBLISHED = [entry for entry in every_code() if entry.status is not CodeStatus.PRIVATE]


def test_every_member_of_the_vocabulary_has_a_code_and_a_name() -> None:
    assert set(codes.KIND_CODES) == set(KIND_NAMES) == set(FindingKind)
    assert set(codes.QUANTITY_CODES) == set(QUANTITY_NAMES) == set(Quantity)
    assert set(codes.PRESENCE_CODES) == set(Presence)
    assert set(codes.LATERALITY_CODES) == set(Laterality)
    assert set(codes.EVIDENCE_CODES) == set(EvidenceGrade)


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda e: f"{e.scheme}-{e.value}")
def test_published_codes_mean_what_their_publisher_says(entry: CodeEntry) -> None:
    """CONF-06"""
    if (entry.value, entry.scheme) in NOT_IN_PYDICOM:
        assert entry.meaning == NOT_IN_PYDICOM[entry.value, entry.scheme]
        return
    groups = [cids for meaning, cids in listed(entry) if meaning == entry.meaning]
    assert groups, f"not a name of this code: {listed(entry)}"
    if group := re.fullmatch(r"CID (\d+)", entry.source):
        assert any(int(group[1]) in cids for cids in groups), groups


def test_the_exceptions_are_used_and_are_exceptions() -> None:
    by_code = {(entry.value, entry.scheme): entry for entry in PUBLISHED}
    assert set(NOT_IN_PYDICOM) <= set(by_code)
    for key, meaning in NOT_IN_PYDICOM.items():
        assert meaning not in [name for name, _ in listed(by_code[key])]


@pytest.mark.parametrize("entry", every_code(), ids=lambda e: f"{e.scheme}-{e.value}")
def test_every_code_fits_its_elements_and_names_its_source(entry: CodeEntry) -> None:
    assert 0 < len(entry.value) <= 16 or entry.status is CodeStatus.HL7, "Code Value is an SH"
    assert 0 < len(entry.meaning) <= 64, "Code Meaning is an LO"
    assert entry.source
    assert (entry.status is CodeStatus.PRIVATE) == (entry.scheme == "99ONESCAN")


def test_snomed_codes_are_of_the_dicom_freeset() -> None:
    """A SNOMED code that stands in a PS3.16 context group or template is free to use."""
    for entry in every_code():
        if entry.status is CodeStatus.FREESET and not entry.source.startswith("TID"):
            assert any(cids for _, cids in listed(entry)), f"{entry.value} {entry.meaning} is in no context group"


def test_snomed_codes_that_need_a_licence_are_those_of_a_code_set_alone() -> None:
    licensed = {entry for entry in every_code() if entry.status is CodeStatus.SNOMED}
    assert licensed == set(codes.SNOMED_CODES.values())
    defaults = {entry for kind in codes.KIND_CODES.values() for entry in (kind.finding, kind.site)}
    assert not licensed & defaults
    assert len(licensed) == len(codes.SNOMED_CODES)


# Verhoeff's dihedral check, as SNOMED CT uses it for identifiers (SNOMED CT Release File Specification, 5.5).
_MULTIPLY = [[(i + j) % 5 + 5 * (j >= 5) if i < 5 else (i - j) % 5 + 5 * (j < 5) for j in range(10)] for i in range(10)]
_PERMUTE = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]


def is_snomed_identifier(value: str) -> bool:
    check = 0
    for place, digit in enumerate(reversed(value)):
        number = int(digit)
        for _ in range(place % 8):
            number = _PERMUTE[number]
        check = _MULTIPLY[check][number]
    return check == 0


@pytest.mark.parametrize("entry", [e for e in every_code() if e.scheme == "SCT"], ids=lambda e: e.value)
def test_a_snomed_identifier_has_its_check_digit(entry: CodeEntry) -> None:
    assert is_snomed_identifier(entry.value)
    wrong = entry.value[:-1] + str((int(entry.value[-1]) + 1) % 10)
    assert not is_snomed_identifier(wrong)


def test_no_two_codes_mean_different_things() -> None:
    by_value: dict[tuple[str, str], str] = {}
    for entry in every_code():
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
