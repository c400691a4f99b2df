"""The pinned table of codes: what each finding kind, quantity, unit, answer and side is called in DICOM, FHIR and HL7.

By default no code needs a licence that somebody would have to ask for: DICOM's own (DCM), the SNOMED CT concepts of the
DICOM freeset (SCT), UCUM, LOINC, RadLex, HL7's, and `99ONESCAN` where none of them has the concept. A destination may
ask for the exact SNOMED CT concepts. A status says which it is, a source where it stands. CONFORMANCE.md lists all.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from imaging.uids import derive_uid
from models.findings import EvidenceGrade, FindingKind, Laterality, Presence, Quantity, Unit

PRIVATE_SCHEME = "99ONESCAN"
PRIVATE_SCHEME_NAME = "OneScan chest CT codes"
PRIVATE_SCHEME_VERSION = "1"
PRIVATE_SCHEME_UID = derive_uid("coding-scheme", PRIVATE_SCHEME)


class CodeStatus(enum.StrEnum):
    """What allows the use of a code. FREESET: a SNOMED CT concept that is free to whoever implements DICOM; SNOMED: one
    that is free in the member countries of SNOMED International, and elsewhere to who has a licence."""

    DICOM = "DICOM"
    FREESET = "freeset"
    SNOMED = "SNOMED CT licence"
    LOINC = "LOINC"
    UCUM = "UCUM"
    RADLEX = "RadLex"
    HL7 = "HL7"
    IETF = "IETF"
    PRIVATE = "private"


# As terminology.hl7.org names them; only FHIR and HL7 v2 use them.
HL7_SCHEMES = ("v2-0074", "v2-0203", "v3-ObservationInterpretation", "observation-category", "data-absent-reason")

_SNOMED_CT = "SNOMED CT"
_STATUSES = {
    "DCM": CodeStatus.DICOM,
    # Of the freeset but for SNOMED_CODES; a test asks whether a context group of PS3.16 has each.
    "SCT": CodeStatus.FREESET,
    "LN": CodeStatus.LOINC,
    "UCUM": CodeStatus.UCUM,
    "RADLEX": CodeStatus.RADLEX,
    "RFC5646": CodeStatus.IETF,
    PRIVATE_SCHEME: CodeStatus.PRIVATE,
    **dict.fromkeys(HL7_SCHEMES, CodeStatus.HL7),
}


@dataclass(frozen=True, slots=True)
class CodeEntry:
    """A coded concept (PS3.3 section 8): value, scheme designator, meaning.

    `source` is where it is taken from: a context group (CID) or template (TID) of PS3.16, or whoever publishes it.
    """

    value: str
    scheme: str
    meaning: str
    source: str = field(compare=False)

    @property
    def status(self) -> CodeStatus:
        return CodeStatus.SNOMED if self.source == _SNOMED_CT else _STATUSES[self.scheme]


def private_code(value: str, meaning: str) -> CodeEntry:
    """A concept that no scheme above has."""
    return CodeEntry(value, PRIVATE_SCHEME, meaning, "this software")


def _sct(value: str, meaning: str, source: str) -> CodeEntry:
    return CodeEntry(value, "SCT", meaning, source)


def _snomed(value: str, meaning: str) -> CodeEntry:
    return CodeEntry(value, "SCT", meaning, _SNOMED_CT)


def _dcm(value: str, meaning: str, source: str = "PS3.16 Annex D") -> CodeEntry:
    return CodeEntry(value, "DCM", meaning, source)


def _ucum(value: str, meaning: str, source: str = "UCUM") -> CodeEntry:
    return CodeEntry(value, "UCUM", meaning, source)


def _radlex(value: str, meaning: str) -> CodeEntry:
    return CodeEntry(value, "RADLEX", meaning, "RadLex")


def _hl7(scheme: str, value: str, meaning: str) -> CodeEntry:
    return CodeEntry(value, scheme, meaning, "terminology.hl7.org")


@dataclass(frozen=True, slots=True)
class KindCodes:
    """How a finding kind is said: the finding and the anatomy it is sought in."""

    finding: CodeEntry
    site: CodeEntry


@dataclass(frozen=True, slots=True)
class QuantityCodes:
    """How a quantity is said (TID 300): its name with derivation (CID 7464), method or site where it needs one."""

    name: CodeEntry
    derivation: CodeEntry | None = None
    method: CodeEntry | None = None
    site: CodeEntry | None = None


_LUNG = _sct("39607008", "Lung", "CID 6100")
_PLEURA = _sct("3120008", "Pleural structure", "CID 6100")
_THORACIC_SPINE = _sct("122495006", "Thoracic spine", "CID 4030")
_THORACIC_AORTA = _sct("113262008", "Thoracic aorta", "CID 4030")
_PULMONARY_TRUNK = _sct("45341000", "Trunk of pulmonary artery", "CID 7151")
_HEART = _sct("80891009", "Heart", "CID 4030")
_ENLARGED = _sct("260376009", "Enlarged", "CID 6107")
_VASCULAR_CALCIFICATION = _sct("237897009", "Vascular Calcification", "CID 3491")
_MEAN = _sct("373098007", "Mean", "CID 7464")
_MAXIMUM = _sct("56851009", "Maximum", "CID 7464")
_DIAMETER = _sct("81827009", "Diameter", "CID 7470")
_ATTENUATION = _dcm("112031", "Attenuation Coefficient", "CID 7469")


KIND_CODES: dict[FindingKind, KindCodes] = {
    FindingKind.PULMONARY_NODULE: KindCodes(_sct("27925004", "Nodule", "CID 6104"), _LUNG),
    FindingKind.CORONARY_ARTERY_CALCIFICATION: KindCodes(
        _VASCULAR_CALCIFICATION, _sct("41801008", "Coronary artery", "CID 4030")
    ),
    FindingKind.EMPHYSEMA: KindCodes(_radlex("RID4799", "emphysema"), _LUNG),
    FindingKind.PLEURAL_EFFUSION: KindCodes(_sct("60046008", "Pleural effusion", "CID 8134"), _PLEURA),
    FindingKind.AORTIC_DILATATION: KindCodes(_ENLARGED, _THORACIC_AORTA),
    FindingKind.VERTEBRAL_COMPRESSION_FRACTURE: KindCodes(_radlex("RID4658", "compression fracture"), _THORACIC_SPINE),
    FindingKind.CONSOLIDATION: KindCodes(_radlex("RID43255", "consolidation"), _LUNG),
    FindingKind.GROUND_GLASS_OPACITY: KindCodes(_dcm("112120", "Ground glass opacity", "CID 6104"), _LUNG),
    FindingKind.PNEUMOTHORAX: KindCodes(_sct("36118008", "Pneumothorax", "CID 6105"), _PLEURA),
    FindingKind.PERICARDIAL_EFFUSION: KindCodes(
        _sct("373945007", "Pericardial effusion", "CID 12236"), _sct("76848001", "Pericardium", "CID 7151")
    ),
    FindingKind.CARDIOMEGALY: KindCodes(_ENLARGED, _HEART),
    FindingKind.ATELECTASIS: KindCodes(_radlex("RID28493", "atelectasis"), _LUNG),
    FindingKind.LYMPHADENOPATHY: KindCodes(
        _sct("30746006", "Lymphadenopathy", "CID 6347"), _sct("72410000", "Mediastinum", "CID 4030")
    ),
    FindingKind.INTERSTITIAL_ABNORMALITY: KindCodes(_dcm("112004", "Abnormal interstitial pattern", "CID 6104"), _LUNG),
    FindingKind.BRONCHIECTASIS: KindCodes(
        private_code("BRONCHIECTASIS", "Bronchiectasis"), _sct("955009", "Bronchus", "CID 4030")
    ),
    FindingKind.PULMONARY_ARTERY_ENLARGEMENT: KindCodes(_ENLARGED, _PULMONARY_TRUNK),
    FindingKind.LOW_BONE_DENSITY: KindCodes(_radlex("RID5388", "osteopenia"), _THORACIC_SPINE),
    FindingKind.HEPATIC_STEATOSIS: KindCodes(
        private_code("STEATOSIS", "Hepatic steatosis"), _sct("10200004", "Liver", "CID 4030")
    ),
    FindingKind.RIB_FRACTURE: KindCodes(_radlex("RID4650", "fracture"), _sct("113197003", "Rib", "CID 4030")),
    FindingKind.HIATAL_HERNIA: KindCodes(
        private_code("HIATAL_HERNIA", "Hiatal hernia"), _sct("280062008", "Esophageal Hiatus", "CID 6102")
    ),
    FindingKind.ARTERIAL_WALL_CALCIFICATION: KindCodes(_VASCULAR_CALCIFICATION, _THORACIC_AORTA),
    FindingKind.MEDICAL_DEVICE: KindCodes(
        _radlex("RID5429", "implantable device"), _sct("816094009", "Chest", "CID 4030")
    ),
}

# The finding in one concept of SNOMED CT, where that says no more and no less than what is assessed: a nodule need not
# be solitary, a dilated aorta is no aneurysm yet.
SNOMED_CODES: dict[FindingKind, CodeEntry] = {
    FindingKind.CORONARY_ARTERY_CALCIFICATION: _snomed("445512009", "Calcification of coronary artery"),
    FindingKind.EMPHYSEMA: _snomed("87433001", "Pulmonary emphysema"),
    FindingKind.VERTEBRAL_COMPRESSION_FRACTURE: _snomed("42942008", "Compression fracture of vertebral column"),
    FindingKind.CONSOLIDATION: _snomed("95436008", "Lung consolidation"),
    FindingKind.CARDIOMEGALY: _snomed("8186001", "Cardiomegaly"),
    FindingKind.ATELECTASIS: _snomed("46621007", "Atelectasis"),
    FindingKind.LYMPHADENOPATHY: _snomed("52324001", "Mediastinal lymphadenopathy"),
    FindingKind.BRONCHIECTASIS: _snomed("12295008", "Bronchiectasis"),
    FindingKind.LOW_BONE_DENSITY: _snomed("312894000", "Osteopenia"),
    FindingKind.HEPATIC_STEATOSIS: _snomed("197321007", "Steatosis of liver"),
    FindingKind.RIB_FRACTURE: _snomed("33737001", "Fracture of rib"),
    FindingKind.HIATAL_HERNIA: _snomed("84089009", "Hiatal hernia"),
}

QUANTITY_CODES: dict[Quantity, QuantityCodes] = {
    Quantity.LONG_AXIS: QuantityCodes(_sct("103339001", "Long axis", "CID 7470")),
    Quantity.SHORT_AXIS: QuantityCodes(_sct("103340004", "Short axis", "CID 7470")),
    Quantity.MAXIMUM_DIAMETER: QuantityCodes(_DIAMETER, derivation=_MAXIMUM),
    Quantity.MAXIMUM_DEPTH: QuantityCodes(_sct("131197000", "Depth", "CID 7470"), derivation=_MAXIMUM),
    Quantity.VOLUME: QuantityCodes(_sct("118565006", "Volume", "CID 7472")),
    Quantity.MEAN_ATTENUATION: QuantityCodes(_ATTENUATION, derivation=_MEAN),
    Quantity.STANDARD_DEVIATION_OF_ATTENUATION: QuantityCodes(
        _ATTENUATION, derivation=_sct("386136009", "Standard Deviation", "CID 7464")
    ),
    Quantity.LOW_ATTENUATION_AREA_950: QuantityCodes(private_code("LAA950", "Lung below -950 HU (LAA-950)")),
    Quantity.PERCENTILE_15_OF_ATTENUATION: QuantityCodes(private_code("PERC15", "15th percentile of lung attenuation")),
    Quantity.FRACTION_OF_LUNG: QuantityCodes(private_code("FRACTION_OF_LUNG", "Fraction of lung volume")),
    Quantity.LUNG_VOLUME: QuantityCodes(private_code("LUNG_VOLUME", "Lung volume")),
    Quantity.AGATSTON_SCORE: QuantityCodes(
        _sct("450360000", "Coronary artery calcium score", "CID 6142"),
        method=_dcm("112055", "Agatston scoring method", "CID 6140"),
    ),
    Quantity.CARDIOTHORACIC_RATIO: QuantityCodes(private_code("CTR", "Cardiothoracic ratio")),
    Quantity.HEART_WIDTH: QuantityCodes(_sct("103355008", "Width", "CID 7470"), derivation=_MAXIMUM, site=_HEART),
    Quantity.THORAX_WIDTH: QuantityCodes(
        private_code("THORAX_WIDTH", "Inner width of the thorax"), derivation=_MAXIMUM
    ),
    Quantity.ASCENDING_AORTA_DIAMETER: QuantityCodes(
        _DIAMETER, derivation=_MAXIMUM, site=_sct("54247002", "Ascending aorta", "CID 4042")
    ),
    Quantity.AORTIC_ARCH_DIAMETER: QuantityCodes(
        _DIAMETER, derivation=_MAXIMUM, site=_sct("57034009", "Aortic arch", "CID 4030")
    ),
    Quantity.DESCENDING_AORTA_DIAMETER: QuantityCodes(
        _DIAMETER, derivation=_MAXIMUM, site=_sct("32672002", "Descending aorta", "CID 4042")
    ),
    Quantity.PULMONARY_TRUNK_DIAMETER: QuantityCodes(_DIAMETER, site=_PULMONARY_TRUNK),
    Quantity.PULMONARY_TRUNK_TO_AORTA_RATIO: QuantityCodes(
        private_code("PA_AORTA_RATIO", "Pulmonary trunk to ascending aorta diameter ratio")
    ),
    Quantity.CALCIUM_VOLUME: QuantityCodes(_dcm("112197", "Volume of Vascular Calcification", "CID 6142")),
    Quantity.ANTERIOR_HEIGHT: QuantityCodes(private_code("HEIGHT_ANT", "Anterior height of vertebral body")),
    Quantity.MIDDLE_HEIGHT: QuantityCodes(private_code("HEIGHT_MID", "Middle height of vertebral body")),
    Quantity.POSTERIOR_HEIGHT: QuantityCodes(private_code("HEIGHT_POST", "Posterior height of vertebral body")),
    Quantity.VERTEBRAL_HEIGHT_RATIO: QuantityCodes(private_code("HEIGHT_RATIO", "Vertebral height ratio")),
    Quantity.GENANT_GRADE: QuantityCodes(private_code("GENANT_GRADE", "Genant grade")),
    Quantity.SPLEEN_ATTENUATION: QuantityCodes(private_code("SPLEEN_HU", "Spleen attenuation"), derivation=_MEAN),
    Quantity.LIVER_SPLEEN_DIFFERENCE: QuantityCodes(private_code("LIVER_SPLEEN", "Liver minus spleen attenuation")),
    Quantity.LESION_COUNT: QuantityCodes(private_code("LESION_COUNT", "Number of lesions")),
}

UNIT_CODES: dict[Unit, CodeEntry] = {
    "mm": _ucum("mm", "mm", "CID 7460"),
    "mm3": _ucum("mm3", "cubic millimeter", "CID 7462"),
    "ml": _ucum("ml", "ml"),
    "%": _ucum("%", "Percent", "CID 7181"),
    "1": _ucum("1", "no units", "CID 7181"),
    "{ratio}": _ucum("{ratio}", "ratio", "CID 7181"),
    "[hnsf'U]": _ucum("[hnsf'U]", "Hounsfield unit", "CID 7181"),
}

# CID 240 has no answer for a question that was not asked, so that one is ours and unlike the other three.
PRESENCE_CODES: dict[Presence, CodeEntry] = {
    Presence.PRESENT: _sct("52101004", "Present", "CID 240"),
    Presence.ABSENT: _sct("272519000", "Absent", "CID 240"),
    Presence.INDETERMINATE: _sct("373068000", "Undetermined", "CID 240"),
    Presence.NOT_ASSESSED: private_code("NOT_ASSESSED", "Not assessed"),
}

INTERPRETATION_CODES: dict[Presence, CodeEntry] = {
    Presence.PRESENT: _hl7("v3-ObservationInterpretation", "POS", "Positive"),
    Presence.ABSENT: _hl7("v3-ObservationInterpretation", "NEG", "Negative"),
    Presence.INDETERMINATE: _hl7("v3-ObservationInterpretation", "IND", "Indeterminate"),
}

LATERALITY_CODES: dict[Laterality, CodeEntry] = {
    Laterality.LEFT: _sct("7771000", "Left", "CID 244"),
    Laterality.RIGHT: _sct("24028007", "Right", "CID 244"),
    Laterality.BILATERAL: _sct("51440002", "Bilateral", "CID 244"),
}

EVIDENCE_CODES: dict[EvidenceGrade, CodeEntry] = {
    EvidenceGrade.A: private_code("EVIDENCE_A", "A: measured on labelled real CT"),
    EvidenceGrade.B: private_code("EVIDENCE_B", "B: single or unlabelled real CT"),
    EvidenceGrade.C: private_code("EVIDENCE_C", "C: simulation only"),
}

# By Verdict.decision.
VERDICT_CODES: dict[str, CodeEntry] = {
    "confirmed": private_code("CONFIRMED", "Confirmed"),
    "rejected": private_code("REJECTED", "Rejected"),
    "edited": private_code("EDITED", "Answered otherwise"),
}

PRESENCE_OF_PROPERTY = _dcm("121052", "Presence of property")
CERTAINTY_OF_FINDING = _dcm("111012", "Certainty of Finding", "CID 6048")
ARTIFICIAL_INTELLIGENCE = _dcm("123110", "Artificial Intelligence", "CID 7162")
IMAGING_MEASUREMENT_REPORT = _dcm("126000", "Imaging Measurement Report", "CID 7021")
DIAGNOSTIC_IMAGING_REPORT = CodeEntry("18748-4", "LN", "Diagnostic Imaging Report", "CID 7000")
BEST_ILLUSTRATION = _dcm("121080", "Best illustration of finding", "CID 7003")
FINDINGS = _dcm("121070", "Findings")
FINDING = _dcm("121071", "Finding", "CID 7002")
IMPRESSIONS = _dcm("121072", "Impressions")
IMPRESSION = _dcm("121073", "Impression", "CID 7002")
COMMENT = _dcm("121106", "Comment", "CID 12101")
IMAGE_LIBRARY = _dcm("111028", "Image Library", "TID 1600")
IMAGE_LIBRARY_GROUP = _dcm("126200", "Image Library Group", "TID 1600")
SOURCE = _sct("260753009", "Source", "TID 1601")
CENTER = _dcm("111010", "Center", "CID 219")
LATERALITY = _sct("272741003", "Laterality", "CID 210")
OF_INTEREST = _dcm("113000", "Of Interest", "CID 7010")
ANATOMICAL_STRUCTURE = _sct("91723000", "Anatomical Structure", "CID 7150")
ABNORMAL_STRUCTURE = _sct("49755003", "Morphologically Abnormal Structure", "CID 7150")
PHYSICAL_OBJECT = _sct("260787004", "Physical object", "CID 7150")
STUDY_INSTANCE_UID = _dcm("110180", "Study Instance UID", "CID 404")
TRACKING_UID = _dcm("112040", "Tracking Unique Identifier", "TID 4108")
CT_CHEST = CodeEntry("24627-2", "LN", "CT Chest", "LOINC")
CT_MODALITY = _dcm("CT", "Computed Tomography", "CID 29")
ENGLISH = CodeEntry("en-US", "RFC5646", "English (United States)", "RFC 5646")
CHINESE = CodeEntry("zh-CN", "RFC5646", "Chinese (China)", "RFC 5646")
ACCESSION_ID = _hl7("v2-0203", "ACSN", "Accession ID")
RADIOLOGY = _hl7("v2-0074", "RAD", "Radiology")
CT_SCAN = _hl7("v2-0074", "CT", "CAT Scan")
IMAGING = _hl7("observation-category", "imaging", "Imaging")
NOT_PERFORMED = _hl7("data-absent-reason", "not-performed", "Not Performed")
NOT_APPLICABLE = _hl7("data-absent-reason", "not-applicable", "Not Applicable")
AI_CHEST_CT = private_code("AI_CHEST_CT", "AI chest CT findings")
EVIDENCE_GRADE = private_code("EVIDENCE_GRADE", "Evidence grade")
VERDICT = private_code("VERDICT", "Verdict of the verifying observer")
REASON_NOT_ASSESSED = private_code("WHY_NOT_ASSESSED", "Reason not assessed")
REASON = private_code("REASON", "Reason for the answer")
METHOD = private_code("METHOD", "Method")
SITE_IN_WORDS = private_code("SITE_IN_WORDS", "Site in words")
FINDING_IN_WORDS = private_code("FINDING_IN_WORDS", "Finding kind")
STUDY_RECORD = private_code("STUDY_RECORD", "What was analysed")
REVISION = private_code("REVISION", "Revision of the report")
ANALYSED_SERIES = private_code("ANALYSED_SERIES", "Analysed series")
REFUSAL = private_code("REFUSAL", "Study not analysed")
QUALITY_CHECK = private_code("QUALITY_CHECK", "Quality check")
SERIES_NOT_ANALYSED = private_code("SERIES_LEFT_OUT", "Series not analysed")
UNREADABLE_FILES = private_code("UNREADABLE_FILES", "Unreadable files")

# What the templates and macros themselves say; highdicom writes these.
TEMPLATE_CODES = (
    _dcm("109102", "Processing Equipment", "CID 7005"),
    _dcm("111000", "Algorithm Family", "TID 4019"),
    _dcm("111001", "Algorithm Name", "TID 4019"),
    _dcm("111002", "Algorithm Parameters", "TID 4019"),
    _dcm("111003", "Algorithm Version", "TID 4019"),
    _dcm("122405", "Algorithm Manufacturer", "TID 4019"),
    _dcm("111030", "Image Region", "TID 1410"),
    _dcm("112039", "Tracking Identifier", "TID 4108"),
    _dcm("113012", "Key Object Description", "TID 2010"),
    _dcm("113076", "Segmentation", "CID 7203"),
    _dcm("125040", "Background", "CID 7151"),
    _dcm("121322", "Source image for image processing operation", "CID 7202"),
    _dcm("121005", "Observer Type", "TID 1002"),
    _dcm("121006", "Person", "CID 270"),
    _dcm("121008", "Person Observer Name", "TID 1003"),
    _dcm("121009", "Person Observer's Organization Name", "TID 1003"),
    _dcm("121007", "Device", "CID 270"),
    _dcm("121012", "Device Observer UID", "TID 1004"),
    _dcm("121013", "Device Observer Name", "TID 1004"),
    _dcm("121014", "Device Observer Manufacturer", "TID 1004"),
    _dcm("121015", "Device Observer Model Name", "TID 1004"),
    _dcm("121016", "Device Observer Serial Number", "TID 1004"),
    _dcm("121049", "Language of Content Item and Descendants", "TID 1204"),
    _dcm("121058", "Procedure reported", "TID 1500"),
    _dcm("126010", "Imaging Measurements", "TID 1500"),
    _dcm("125007", "Measurement Group", "TID 1501"),
    _dcm("121112", "Source of Measurement", "CID 7003"),
    _dcm("121191", "Referenced Segment", "TID 1411"),
    _dcm("121232", "Source Series for Segmentation", "TID 1411"),
    _dcm("121401", "Derivation", "TID 300"),
    _sct("370129005", "Measurement Method", "TID 300"),
    _sct("363698007", "Finding Site", "TID 300"),
)


def every_code() -> tuple[CodeEntry, ...]:
    """Each entry of this module once, in the order in which it is written here."""
    return tuple(dict.fromkeys(_entries()))


def _entries() -> Iterator[CodeEntry]:
    for kind in KIND_CODES.values():
        yield from (kind.finding, kind.site)
    for quantity in QUANTITY_CODES.values():
        yield from filter(None, (quantity.name, quantity.derivation, quantity.method, quantity.site))
    for table in (
        SNOMED_CODES,
        UNIT_CODES,
        PRESENCE_CODES,
        INTERPRETATION_CODES,
        LATERALITY_CODES,
        EVIDENCE_CODES,
        VERDICT_CODES,
    ):
        yield from table.values()
    yield from (entry for entry in globals().values() if isinstance(entry, CodeEntry))
    yield from TEMPLATE_CODES
