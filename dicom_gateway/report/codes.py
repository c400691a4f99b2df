"""The pinned table of codes: what each finding kind, quantity, unit, answer and side is called in DICOM.

Default codes need no licence: DICOM's own (DCM), the SNOMED CT concepts of the DICOM freeset (SCT), UCUM, LOINC,
RadLex, and `99ONESCAN` where none of them has the concept. A status says where each comes from.
"""

import enum
from dataclasses import dataclass

from imaging.uids import derive_uid
from models.findings import EvidenceGrade, FindingKind, Laterality, Presence, Quantity, Unit

PRIVATE_SCHEME = "99ONESCAN"
PRIVATE_SCHEME_NAME = "OneScan chest CT codes"
PRIVATE_SCHEME_VERSION = "1"
PRIVATE_SCHEME_UID = derive_uid("coding-scheme", PRIVATE_SCHEME)


class CodeStatus(enum.StrEnum):
    """Where a code comes from: STANDARD is PS3.16, UCUM or LOINC; RADLEX is by RadLex identifier; PRIVATE is ours."""

    STANDARD = "standard"
    RADLEX = "radlex"
    PRIVATE = "private"


@dataclass(frozen=True, slots=True)
class CodeEntry:
    """A coded concept (PS3.3 section 8): value, scheme designator, meaning."""

    value: str
    scheme: str
    meaning: str

    @property
    def status(self) -> CodeStatus:
        if self.scheme == PRIVATE_SCHEME:
            return CodeStatus.PRIVATE
        return CodeStatus.RADLEX if self.scheme == "RADLEX" else CodeStatus.STANDARD


def _sct(value: str, meaning: str) -> CodeEntry:
    return CodeEntry(value, "SCT", meaning)


def _dcm(value: str, meaning: str) -> CodeEntry:
    return CodeEntry(value, "DCM", meaning)


def _private(value: str, meaning: str) -> CodeEntry:
    return CodeEntry(value, PRIVATE_SCHEME, meaning)


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


_LUNG = _sct("39607008", "Lung")
_PLEURA = _sct("3120008", "Pleural structure")
_THORACIC_SPINE = _sct("122495006", "Thoracic spine")
_THORACIC_AORTA = _sct("113262008", "Thoracic aorta")
_PULMONARY_TRUNK = _sct("45341000", "Trunk of pulmonary artery")
_HEART = _sct("80891009", "Heart")
_ENLARGED = _sct("260376009", "Enlarged")
_VASCULAR_CALCIFICATION = _sct("237897009", "Vascular Calcification")
_MEAN = _sct("373098007", "Mean")
_MAXIMUM = _sct("56851009", "Maximum")
_DIAMETER = _sct("81827009", "Diameter")
_ATTENUATION = _dcm("112031", "Attenuation Coefficient")


def _radlex(value: str, meaning: str) -> CodeEntry:
    return CodeEntry(value, "RADLEX", meaning)


KIND_CODES: dict[FindingKind, KindCodes] = {
    FindingKind.PULMONARY_NODULE: KindCodes(_sct("27925004", "Nodule"), _LUNG),
    FindingKind.CORONARY_ARTERY_CALCIFICATION: KindCodes(_VASCULAR_CALCIFICATION, _sct("41801008", "Coronary artery")),
    FindingKind.EMPHYSEMA: KindCodes(_radlex("RID4799", "emphysema"), _LUNG),
    FindingKind.PLEURAL_EFFUSION: KindCodes(_sct("60046008", "Pleural effusion"), _PLEURA),
    FindingKind.AORTIC_DILATATION: KindCodes(_ENLARGED, _THORACIC_AORTA),
    FindingKind.VERTEBRAL_COMPRESSION_FRACTURE: KindCodes(_radlex("RID4658", "compression fracture"), _THORACIC_SPINE),
    FindingKind.CONSOLIDATION: KindCodes(_radlex("RID43255", "consolidation"), _LUNG),
    FindingKind.GROUND_GLASS_OPACITY: KindCodes(_dcm("112120", "Ground glass opacity"), _LUNG),
    FindingKind.PNEUMOTHORAX: KindCodes(_sct("36118008", "Pneumothorax"), _PLEURA),
    FindingKind.PERICARDIAL_EFFUSION: KindCodes(
        _sct("373945007", "Pericardial effusion"), _sct("76848001", "Pericardium")
    ),
    FindingKind.CARDIOMEGALY: KindCodes(_ENLARGED, _HEART),
    FindingKind.ATELECTASIS: KindCodes(_radlex("RID28493", "atelectasis"), _LUNG),
    FindingKind.LYMPHADENOPATHY: KindCodes(_sct("30746006", "Lymphadenopathy"), _sct("72410000", "Mediastinum")),
    FindingKind.INTERSTITIAL_ABNORMALITY: KindCodes(_dcm("112113", "Reticular pattern"), _LUNG),
    FindingKind.BRONCHIECTASIS: KindCodes(_private("BRONCHIECTASIS", "Bronchiectasis"), _sct("955009", "Bronchus")),
    FindingKind.PULMONARY_ARTERY_ENLARGEMENT: KindCodes(_ENLARGED, _PULMONARY_TRUNK),
    FindingKind.LOW_BONE_DENSITY: KindCodes(_radlex("RID5388", "osteopenia"), _THORACIC_SPINE),
    FindingKind.HEPATIC_STEATOSIS: KindCodes(_private("STEATOSIS", "Hepatic steatosis"), _sct("10200004", "Liver")),
    FindingKind.RIB_FRACTURE: KindCodes(_radlex("RID4650", "fracture"), _sct("113197003", "Rib")),
    FindingKind.HIATAL_HERNIA: KindCodes(
        _private("HIATAL_HERNIA", "Hiatal hernia"), _sct("280062008", "Esophageal Hiatus")
    ),
    FindingKind.ARTERIAL_WALL_CALCIFICATION: KindCodes(_VASCULAR_CALCIFICATION, _THORACIC_AORTA),
    FindingKind.MEDICAL_DEVICE: KindCodes(_radlex("RID5429", "implantable device"), _sct("816094009", "Chest")),
}

QUANTITY_CODES: dict[Quantity, QuantityCodes] = {
    Quantity.LONG_AXIS: QuantityCodes(_sct("103339001", "Long axis")),
    Quantity.SHORT_AXIS: QuantityCodes(_sct("103340004", "Short axis")),
    Quantity.MAXIMUM_DIAMETER: QuantityCodes(_DIAMETER, derivation=_MAXIMUM),
    Quantity.MAXIMUM_DEPTH: QuantityCodes(_sct("131197000", "Depth"), derivation=_MAXIMUM),
    Quantity.VOLUME: QuantityCodes(_sct("118565006", "Volume")),
    Quantity.MEAN_ATTENUATION: QuantityCodes(_ATTENUATION, derivation=_MEAN),
    Quantity.STANDARD_DEVIATION_OF_ATTENUATION: QuantityCodes(
        _ATTENUATION, derivation=_sct("386136009", "Standard Deviation")
    ),
    Quantity.LOW_ATTENUATION_AREA_950: QuantityCodes(_private("LAA950", "Lung below -950 HU (LAA-950)")),
    Quantity.PERCENTILE_15_OF_ATTENUATION: QuantityCodes(_private("PERC15", "15th percentile of lung attenuation")),
    Quantity.FRACTION_OF_LUNG: QuantityCodes(_private("FRACTION_OF_LUNG", "Fraction of lung volume")),
    Quantity.LUNG_VOLUME: QuantityCodes(_private("LUNG_VOLUME", "Lung volume")),
    Quantity.AGATSTON_SCORE: QuantityCodes(
        _sct("450360000", "Coronary artery calcium score"), method=_dcm("112055", "Agatston scoring method")
    ),
    Quantity.CARDIOTHORACIC_RATIO: QuantityCodes(_private("CTR", "Cardiothoracic ratio")),
    Quantity.HEART_WIDTH: QuantityCodes(_sct("103355008", "Width"), derivation=_MAXIMUM, site=_HEART),
    Quantity.THORAX_WIDTH: QuantityCodes(_private("THORAX_WIDTH", "Inner width of the thorax"), derivation=_MAXIMUM),
    Quantity.ASCENDING_AORTA_DIAMETER: QuantityCodes(
        _DIAMETER, derivation=_MAXIMUM, site=_sct("54247002", "Ascending aorta")
    ),
    Quantity.AORTIC_ARCH_DIAMETER: QuantityCodes(_DIAMETER, derivation=_MAXIMUM, site=_sct("57034009", "Aortic arch")),
    Quantity.DESCENDING_AORTA_DIAMETER: QuantityCodes(
        _DIAMETER, derivation=_MAXIMUM, site=_sct("32672002", "Descending aorta")
    ),
    Quantity.PULMONARY_TRUNK_DIAMETER: QuantityCodes(_DIAMETER, site=_PULMONARY_TRUNK),
    Quantity.PULMONARY_TRUNK_TO_AORTA_RATIO: QuantityCodes(
        _private("PA_AORTA_RATIO", "Pulmonary trunk to ascending aorta diameter ratio")
    ),
    Quantity.CALCIUM_VOLUME: QuantityCodes(_dcm("112197", "Volume of Vascular Calcification")),
    Quantity.ANTERIOR_HEIGHT: QuantityCodes(_private("HEIGHT_ANT", "Anterior height of vertebral body")),
    Quantity.MIDDLE_HEIGHT: QuantityCodes(_private("HEIGHT_MID", "Middle height of vertebral body")),
    Quantity.POSTERIOR_HEIGHT: QuantityCodes(_private("HEIGHT_POST", "Posterior height of vertebral body")),
    Quantity.VERTEBRAL_HEIGHT_RATIO: QuantityCodes(_private("HEIGHT_RATIO", "Vertebral height ratio")),
    Quantity.GENANT_GRADE: QuantityCodes(_private("GENANT_GRADE", "Genant grade")),
    Quantity.SPLEEN_ATTENUATION: QuantityCodes(_private("SPLEEN_HU", "Spleen attenuation"), derivation=_MEAN),
    Quantity.LIVER_SPLEEN_DIFFERENCE: QuantityCodes(_private("LIVER_SPLEEN", "Liver minus spleen attenuation")),
    Quantity.LESION_COUNT: QuantityCodes(_private("LESION_COUNT", "Number of lesions")),
}

UNIT_CODES: dict[Unit, CodeEntry] = {
    "mm": CodeEntry("mm", "UCUM", "mm"),
    "mm3": CodeEntry("mm3", "UCUM", "cubic millimeter"),
    "ml": CodeEntry("ml", "UCUM", "ml"),
    "%": CodeEntry("%", "UCUM", "Percent"),
    "1": CodeEntry("1", "UCUM", "no units"),
    "{ratio}": CodeEntry("{ratio}", "UCUM", "ratio"),
    "[hnsf'U]": CodeEntry("[hnsf'U]", "UCUM", "Hounsfield unit"),
}

# CID 240 has no answer for a question that was not asked, so that one is ours and unlike the other three.
PRESENCE_CODES: dict[Presence, CodeEntry] = {
    Presence.PRESENT: _sct("52101004", "Present"),
    Presence.ABSENT: _sct("272519000", "Absent"),
    Presence.INDETERMINATE: _sct("373068000", "Undetermined"),
    Presence.NOT_ASSESSED: _private("NOT_ASSESSED", "Not assessed"),
}

# CID 244
LATERALITY_CODES: dict[Laterality, CodeEntry] = {
    Laterality.LEFT: _sct("7771000", "Left"),
    Laterality.RIGHT: _sct("24028007", "Right"),
    Laterality.BILATERAL: _sct("51440002", "Bilateral"),
}

EVIDENCE_CODES: dict[EvidenceGrade, CodeEntry] = {
    EvidenceGrade.A: _private("EVIDENCE_A", "A: measured on labelled real CT"),
    EvidenceGrade.B: _private("EVIDENCE_B", "B: single or unlabelled real CT"),
    EvidenceGrade.C: _private("EVIDENCE_C", "C: simulation only"),
}

PRESENCE_OF_PROPERTY = _dcm("121052", "Presence of property")
CERTAINTY_OF_FINDING = _dcm("111012", "Certainty of Finding")
ARTIFICIAL_INTELLIGENCE = _dcm("123110", "Artificial Intelligence")
IMAGING_MEASUREMENT_REPORT = _dcm("126000", "Imaging Measurement Report")
DIAGNOSTIC_IMAGING_REPORT = CodeEntry("18748-4", "LN", "Diagnostic Imaging Report")
BEST_ILLUSTRATION = _dcm("121080", "Best illustration of finding")
FINDINGS = _dcm("121070", "Findings")
FINDING = _dcm("121071", "Finding")
IMPRESSIONS = _dcm("121072", "Impressions")
IMPRESSION = _dcm("121073", "Impression")
COMMENT = _dcm("121106", "Comment")
IMAGE_LIBRARY = _dcm("111028", "Image Library")
IMAGE_LIBRARY_GROUP = _dcm("126200", "Image Library Group")
SOURCE = _sct("260753009", "Source")
CENTER = _dcm("111010", "Center")
LATERALITY = _sct("272741003", "Laterality")
# CID 7010
OF_INTEREST = _dcm("113000", "Of Interest")
# CID 7150
ANATOMICAL_STRUCTURE = _sct("91723000", "Anatomical Structure")
ABNORMAL_STRUCTURE = _sct("49755003", "Morphologically Abnormal Structure")
PHYSICAL_OBJECT = _sct("260787004", "Physical object")
STUDY_INSTANCE_UID = _dcm("110180", "Study Instance UID")
TRACKING_UID = _dcm("112040", "Tracking Unique Identifier")
CT_CHEST = CodeEntry("24627-2", "LN", "CT Chest")
AI_CHEST_CT = _private("AI_CHEST_CT", "AI chest CT findings (unverified)")
EVIDENCE_GRADE = _private("EVIDENCE_GRADE", "Evidence grade")
REASON_NOT_ASSESSED = _private("WHY_NOT_ASSESSED", "Reason not assessed")
REASON = _private("REASON", "Reason for the answer")
METHOD = _private("METHOD", "Method")
SITE_IN_WORDS = _private("SITE_IN_WORDS", "Site in words")
FINDING_IN_WORDS = _private("FINDING_IN_WORDS", "Finding kind")
STUDY_RECORD = _private("STUDY_RECORD", "What was analysed")
REVISION = _private("REVISION", "Revision of the report")
ANALYSED_SERIES = _private("ANALYSED_SERIES", "Analysed series")
REFUSAL = _private("REFUSAL", "Study not analysed")
QUALITY_CHECK = _private("QUALITY_CHECK", "Quality check")
SERIES_NOT_ANALYSED = _private("SERIES_LEFT_OUT", "Series not analysed")
UNREADABLE_FILES = _private("UNREADABLE_FILES", "Unreadable files")
