"""Finding kinds, quantities and numbers in plain words, for every output a person reads."""

from dicom_gateway.report.content import Report, ReportedFinding, ReportedMeasurement
from dicom_gateway.settings import TEXT_CONDITIONS, Rule
from dicom_gateway.store.schema import ObjectOutcome
from models.findings import FindingKind, Laterality, Quantity

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

# The kinds of result objects by the names that settings use.
OBJECT_NAMES = {
    "sr": "structured report",
    "seg": "segmentation",
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


def outcome_in_words(outcome: ObjectOutcome) -> str:
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


def finding_title(finding: ReportedFinding) -> str:
    """The kind in plain words, with the lesion's number where it is one lesion."""
    name = KIND_NAMES[FindingKind(finding.kind)]
    return name if finding.lesion is None else f"{name} {finding.lesion}"


def finding_in_words(finding: ReportedFinding) -> str:
    """The whole answer in a paragraph: "Pulmonary nodule 1: present (91.0 %), left upper lobe. 8.2 x 6.1 mm. ..."."""
    answer = PRESENCE_NAMES[finding.presence].lower()
    if finding.probability is not None:
        answer += f" ({finding.probability * 100:.1f} %)"
    sentences = [
        f"{finding_title(finding)}: {', '.join(filter(None, (answer, place(finding))))}",
        format_measurements(finding.measurements),
        finding.reason or "",
        f"Method: {finding.method}",
        "" if finding.evidence_grade is None else f"Evidence grade {finding.evidence_grade}",
    ]
    return " ".join(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in sentences if sentence)


def format_number(measurement: ReportedMeasurement) -> str:
    """The value with its unit, as rounded in the report: "8.2 mm", "350 ml", "-856 HU", "210"."""
    value = f"{measurement.value:.{decimals(measurement.unit, measurement.value)}f}"
    return f"{value} {_UNIT_NAMES.get(measurement.unit, measurement.unit)}".rstrip()


def format_measurement(measurement: ReportedMeasurement) -> str:
    """The number with what it measures and the side: "left lung below -950 HU 3.4 %"."""
    side = f"{measurement.laterality} " if measurement.laterality else ""
    return f"{side}{QUANTITY_NAMES[Quantity(measurement.quantity)]} {format_number(measurement)}"


def format_measurements(measurements: tuple[ReportedMeasurement, ...]) -> str:
    """All measurements in one line; a long and a short axis become "8.2 x 6.1 mm"."""
    by_quantity = {m.quantity: m for m in measurements if m.laterality is None}
    long_axis, short_axis = by_quantity.get(Quantity.LONG_AXIS), by_quantity.get(Quantity.SHORT_AXIS)
    if long_axis is None or short_axis is None:
        return ", ".join(map(format_measurement, measurements))
    others = [m for m in measurements if m is not long_axis and m is not short_axis]
    return ", ".join([f"{long_axis.value:.1f} x {short_axis.value:.1f} mm", *map(format_measurement, others)])


def key_measurements(finding: ReportedFinding) -> str:
    """The one or two numbers that matter most, of the whole finding rather than of one side."""
    order = {quantity.value: i for i, quantity in enumerate(_KEY_QUANTITIES)}
    telling = [m for m in finding.measurements if m.quantity in order]
    whole = [m for m in telling if m.laterality is None]
    return format_measurements(tuple(sorted(whole or telling, key=lambda m: order[m.quantity])[:2]))


def place(finding: ReportedFinding) -> str:
    """Where the finding is, in words: "right upper lobe", "left", or empty."""
    side, site = finding.laterality or "", finding.site or ""
    if site and side == Laterality.BILATERAL:
        return site
    return site if side in site else f"{side} {site}".strip()


def revision_in_words(report: Report) -> str:
    """ "Revision 1", "Revision 3, supersedes revision 2"."""
    words = f"Revision {report.revision}"
    return words if report.supersedes is None else f"{words}, supersedes revision {report.supersedes.revision}"


def describe_series(report: Report) -> str:
    """The analysed series in words: number, description, slices, spacing, thickness, kernel, contrast."""
    series = report.analysed_series
    if series is None:
        return "no series"
    slice_mm, row_mm, column_mm = series.spacing_mm
    parts = [
        "series without number" if series.series_number is None else f"series {series.series_number}",
        series.series_description,
        f"{series.slice_count} slices",
        f"spacing {slice_mm:g} x {row_mm:g} x {column_mm:g} mm",
        None if series.slice_thickness_mm is None else f"thickness {series.slice_thickness_mm:g} mm",
        series.convolution_kernel and f"kernel {series.convolution_kernel}",
        {True: "contrast-enhanced", False: "unenhanced", None: "contrast unknown"}[series.contrast],
        series.contrast_evidence and f"({series.contrast_evidence})",
    ]
    return ", ".join(part for part in parts if part).replace(", (", " (")
