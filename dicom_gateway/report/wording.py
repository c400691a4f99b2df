"""Finding kinds, quantities and numbers in plain words, for every output a person reads; English unless asked."""

from typing import TYPE_CHECKING

from dicom_gateway.report.content import Report, ReportedFinding, ReportedMeasurement
from dicom_gateway.report.language import ENGLISH, Language
from dicom_gateway.settings import TEXT_CONDITIONS, Rule
from models.findings import FindingKind, Laterality, Quantity

if TYPE_CHECKING:  # `onescan analyze` has no database, and does not wait for its library
    from dicom_gateway.store.schema import ObjectOutcome

KIND_NAMES: dict[FindingKind, str] = {
    FindingKind.PULMONARY_NODULE: "Pulmonary nodule",
    FindingKind.CORONARY_ARTERY_CALCIFICATION: "Coronary artery calcification",
    FindingKind.EMPHYSEMA: "Emphysema",
    FindingKind.PLEURAL_EFFUSION: "Pleural effusion",
    FindingKind.AORTIC_DILATATION: "Aortic dilatation",
    FindingKind.VERTEBRAL_COMPRESSION_FRACTURE: "Vertebral compression fracture",
    FindingKind.CONSOLIDATION: "Consolidation",
    FindingKind.GROUND_GLASS_OPACITY: "Ground glass opacity",
    FindingKind.PNEUMOTHORAX: "Pneumothorax",
    FindingKind.PERICARDIAL_EFFUSION: "Pericardial effusion",
    FindingKind.CARDIOMEGALY: "Cardiomegaly",
    FindingKind.ATELECTASIS: "Atelectasis",
    FindingKind.LYMPHADENOPATHY: "Lymphadenopathy",
    FindingKind.INTERSTITIAL_ABNORMALITY: "Interstitial abnormality",
    FindingKind.BRONCHIECTASIS: "Bronchiectasis",
    FindingKind.PULMONARY_ARTERY_ENLARGEMENT: "Pulmonary artery enlargement",
    FindingKind.LOW_BONE_DENSITY: "Low bone density",
    FindingKind.HEPATIC_STEATOSIS: "Hepatic steatosis",
    FindingKind.RIB_FRACTURE: "Rib fracture",
    FindingKind.HIATAL_HERNIA: "Hiatal hernia",
    FindingKind.ARTERIAL_WALL_CALCIFICATION: "Arterial wall calcification",
    FindingKind.MEDICAL_DEVICE: "Medical device",
}

QUANTITY_NAMES: dict[Quantity, str] = {
    Quantity.LONG_AXIS: "long axis",
    Quantity.SHORT_AXIS: "short axis",
    Quantity.MAXIMUM_DIAMETER: "maximum diameter",
    Quantity.MAXIMUM_DEPTH: "maximum depth",
    Quantity.VOLUME: "volume",
    Quantity.MEAN_ATTENUATION: "mean attenuation",
    Quantity.STANDARD_DEVIATION_OF_ATTENUATION: "standard deviation of attenuation",
    Quantity.LOW_ATTENUATION_AREA_950: "lung below -950 HU",
    Quantity.PERCENTILE_15_OF_ATTENUATION: "15th percentile of attenuation",
    Quantity.FRACTION_OF_LUNG: "fraction of lung",
    Quantity.LUNG_VOLUME: "lung volume",
    Quantity.AGATSTON_SCORE: "Agatston score",
    Quantity.CARDIOTHORACIC_RATIO: "cardiothoracic ratio",
    Quantity.HEART_WIDTH: "heart width",
    Quantity.THORAX_WIDTH: "inner thoracic width",
    Quantity.ASCENDING_AORTA_DIAMETER: "ascending aorta",
    Quantity.AORTIC_ARCH_DIAMETER: "aortic arch",
    Quantity.DESCENDING_AORTA_DIAMETER: "descending aorta",
    Quantity.PULMONARY_TRUNK_DIAMETER: "pulmonary trunk",
    Quantity.PULMONARY_TRUNK_TO_AORTA_RATIO: "pulmonary trunk to ascending aorta",
    Quantity.CALCIUM_VOLUME: "calcium volume",
    Quantity.ANTERIOR_HEIGHT: "anterior height",
    Quantity.MIDDLE_HEIGHT: "middle height",
    Quantity.POSTERIOR_HEIGHT: "posterior height",
    Quantity.VERTEBRAL_HEIGHT_RATIO: "height ratio",
    Quantity.GENANT_GRADE: "Genant grade",
    Quantity.SPLEEN_ATTENUATION: "spleen attenuation",
    Quantity.LIVER_SPLEEN_DIFFERENCE: "liver minus spleen",
    Quantity.LESION_COUNT: "count",
}

PRESENCE_NAMES = {
    "present": "Present",
    "absent": "Not found",
    "indeterminate": "Indeterminate",
    "not_assessed": "Not assessed",
}

# By the values of models.contrast_phase.ContrastPhase, whose module is slow to load.
PHASE_NAMES = {
    "pulmonary_arterial": "pulmonary arterial phase",
    "systemic_arterial": "systemic arterial phase",
    "arterial": "arterial phase (pulmonary and systemic)",
    "venous": "venous phase or later",
    "not_told": "phase not told",
}

# The kinds of result objects by the names that settings use.
OBJECT_NAMES = {
    "sr": "structured report",
    "seg": "segmentation",
    "seg_labelmap": "segmentation as label maps",
    "sc": "summary page",
    "marks": "marks",
    "key_images": "key images",
    "ko": "key object selection",
    "gsps": "presentation states",
    "pdf": "PDF",
    "sr_comprehensive": "Comprehensive SR",
    "sr_enhanced": "Enhanced SR",
    "sr_text": "Basic Text SR",
    "fhir": "FHIR transaction",
    "hl7": "HL7 message",
}

_UNIT_NAMES = {"mm3": "mm³", "1": "", "{ratio}": "", "[hnsf'U]": "HU"}
_DECIMALS = {"mm": 1, "mm3": 0, "ml": 0, "%": 1, "1": 0, "{ratio}": 2, "[hnsf'U]": 0}
# What a radiologist wants to hear first of a finding.
_KEY_QUANTITIES = (
    Quantity.LONG_AXIS,
    Quantity.SHORT_AXIS,
    Quantity.MAXIMUM_DIAMETER,
    Quantity.AGATSTON_SCORE,
    Quantity.CARDIOTHORACIC_RATIO,
    Quantity.PULMONARY_TRUNK_DIAMETER,
    Quantity.PULMONARY_TRUNK_TO_AORTA_RATIO,
    Quantity.CALCIUM_VOLUME,
    Quantity.LOW_ATTENUATION_AREA_950,
    Quantity.VERTEBRAL_HEIGHT_RATIO,
    Quantity.GENANT_GRADE,
    Quantity.VOLUME,
    Quantity.MAXIMUM_DEPTH,
    Quantity.FRACTION_OF_LUNG,
    Quantity.MEAN_ATTENUATION,
)


def object_name(name: str) -> str:
    return OBJECT_NAMES.get(name, name)


_CONDITION_NAMES = {
    "calling_ae_title": "calling AE title",
    "modality": "modality",
    "body_part": "body part",
    "study_description": "study description",
    "station_name": "station",
}


def outcome_in_words(outcome: "ObjectOutcome") -> str:
    """What became of a kind of object: "Summary page", "Structured report as Enhanced SR: ...", "Marks left out"."""
    words = object_name(outcome.name)
    if outcome.sent_as is None:
        words += " left out"
    elif not outcome.instances:
        words += ": nothing of this study"
    elif outcome.sent_as != outcome.name:
        words += f" as {object_name(outcome.sent_as)}"
    if outcome.reason:
        words += f": {outcome.reason}"
    return words[:1].upper() + words[1:]


def excluded_in_words(rule: str) -> str:
    """Why a study is not analysed."""
    return f"Not analysed: rule {rule}"


def rule_conditions(rule: Rule) -> str:
    """When a rule fits: "body part CHEST or THORAX*, age 18 to 80"."""
    words = [
        f"{_CONDITION_NAMES[name]} {' or '.join(pattern or 'missing' for pattern in patterns)}"
        for name in TEXT_CONDITIONS
        if (patterns := getattr(rule, name)) is not None
    ]
    least, greatest = rule.minimum_age_years, rule.maximum_age_years
    if least is not None and greatest is not None:
        words.append(f"age {least} to {greatest}")
    elif least is not None:
        words.append(f"age {least} or more")
    elif greatest is not None:
        words.append(f"age up to {greatest}")
    return ", ".join(words)


def rule_outcome(rule: Rule | None) -> str:
    """What is done with a study that a rule fits, or that none does: "Analysed, report to pacs, ehr"."""
    if rule is None or rule.destinations is None:
        return "Analysed, report to all destinations" if rule is None or rule.analyse else "Not analysed"
    names = ", ".join(rule.destinations) or "no destination"
    return f"Analysed, report to {names}" if rule.analyse else f"Not analysed; on request report to {names}"


def decimals(unit: str, value: float) -> int:
    """How many decimals a number in `unit` is reported with; below 10 ml one more."""
    return 1 if unit == "ml" and abs(value) < 9.95 else _DECIMALS[unit]


def finding_title(finding: ReportedFinding, language: Language = ENGLISH) -> str:
    """The kind in plain words, with the lesion's number where it is one lesion."""
    name = language.say(KIND_NAMES[FindingKind(finding.kind)])
    return name if finding.lesion is None else f"{name} {finding.lesion}"


def finding_in_words(finding: ReportedFinding, language: Language = ENGLISH) -> str:
    """The whole answer in a paragraph: "Pulmonary nodule 1: present (91.0 %), left upper lobe. 8.2 x 6.1 mm. ..."."""
    answer = presence_in_words(finding, language)
    if finding.probability is not None:
        answer = language.say("{answer} ({percent} %)", answer=answer, percent=percentage(finding.probability))
    words = language.comma.join(filter(None, (answer, place(finding, language))))
    sentences = [
        language.say("{title}: {words}", title=finding_title(finding, language), words=words),
        format_measurements(finding.measurements, language),
        language.told(finding.reason or ""),
        language.say("Method: {method}", method=language.told(finding.method)),
        "" if finding.evidence_grade is None else language.say("Evidence grade {grade}", grade=finding.evidence_grade),
    ]
    return language.paragraph(f"{sentence[:1].upper()}{sentence[1:]}" for sentence in sentences if sentence)


def presence_in_words(finding: ReportedFinding, language: Language = ENGLISH) -> str:
    """The answer within a sentence: "not found"."""
    return language.say(PRESENCE_NAMES[finding.presence]).lower()


def percentage(probability: float) -> str:
    return f"{probability * 100:.1f}"


def format_number(measurement: ReportedMeasurement) -> str:
    """The value with its unit, as rounded in the report: "8.2 mm", "350 ml", "-856 HU", "210"."""
    value = f"{measurement.value:.{decimals(measurement.unit, measurement.value)}f}"
    return f"{value} {_UNIT_NAMES.get(measurement.unit, measurement.unit)}".rstrip()


def format_measurement(measurement: ReportedMeasurement, language: Language = ENGLISH) -> str:
    """The number with what it measures and the side: "left lung below -950 HU 3.4 %"."""
    words = {"name": language.say(QUANTITY_NAMES[Quantity(measurement.quantity)]), "number": format_number(measurement)}
    if measurement.laterality is None:
        return language.say("{name} {number}", **words)
    return language.say("{side} {name} {number}", side=language.told(measurement.laterality), **words)


def format_measurements(measurements: tuple[ReportedMeasurement, ...], language: Language = ENGLISH) -> str:
    """All measurements in one line; a long and a short axis become "8.2 x 6.1 mm"."""
    by_quantity = {m.quantity: m for m in measurements if m.laterality is None}
    long_axis, short_axis = by_quantity.get(Quantity.LONG_AXIS), by_quantity.get(Quantity.SHORT_AXIS)
    if long_axis is None or short_axis is None:
        return language.comma.join(format_measurement(m, language) for m in measurements)
    axes = language.say("{x} x {y} mm", x=f"{long_axis.value:.1f}", y=f"{short_axis.value:.1f}")
    others = [m for m in measurements if m is not long_axis and m is not short_axis]
    return language.comma.join([axes, *(format_measurement(m, language) for m in others)])


def key_measurements(finding: ReportedFinding, language: Language = ENGLISH) -> str:
    """The one or two numbers that matter most, of the whole finding rather than of one side."""
    order = {quantity.value: i for i, quantity in enumerate(_KEY_QUANTITIES)}
    telling = [m for m in finding.measurements if m.quantity in order]
    whole = [m for m in telling if m.laterality is None]
    return format_measurements(tuple(sorted(whole or telling, key=lambda m: order[m.quantity])[:2]), language)


def place(finding: ReportedFinding, language: Language = ENGLISH) -> str:
    """Where the finding is, in words: "right upper lobe", "left", or empty."""
    side, site = finding.laterality or "", finding.site or ""
    if (site and side == Laterality.BILATERAL) or side in site:
        return language.told(site)
    return language.told(f"{side} {site}".strip())


def revision_in_words(report: Report, language: Language = ENGLISH) -> str:
    """ "Revision 1", "Revision 3, supersedes revision 2"."""
    if report.supersedes is None:
        return language.say("Revision {n}", n=report.revision)
    return language.say("Revision {n}, supersedes revision {m}", n=report.revision, m=report.supersedes.revision)


def describe_series(report: Report, language: Language = ENGLISH) -> str:
    """The analysed series in words: number, description, slices, spacing, thickness, kernel, contrast."""
    series = report.analysed_series
    if series is None:
        return language.say("no series")
    z, y, x = (f"{mm:g}" for mm in series.spacing_mm)
    thickness_mm, kernel = series.slice_thickness_mm, series.convolution_kernel
    contrast = {True: "contrast-enhanced", False: "unenhanced", None: "contrast unknown"}[series.contrast]
    phase = series.contrast_phase and PHASE_NAMES[series.contrast_phase]
    parts = [
        _numbered(series.series_number, language),
        series.series_description,
        language.say("{n} slices", n=series.slice_count),
        language.say("spacing {x} x {y} x {z} mm", x=z, y=y, z=x),
        None if thickness_mm is None else language.say("thickness {n} mm", n=f"{thickness_mm:g}"),
        kernel and language.say("kernel {name}", name=kernel),
        language.say(contrast),
        phase and language.say(phase),
    ]
    words = language.comma.join(part for part in parts if part)
    if not series.contrast_evidence:
        return words
    return language.say("{series} ({evidence})", series=words, evidence=language.told(series.contrast_evidence))


def _numbered(series_number: int | None, language: Language) -> str:
    if series_number is None:
        return language.say("series without number")
    return language.say("series {n}", n=series_number)
