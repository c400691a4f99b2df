"""Codes of our own that tell every kind and every number of a report apart, for systems that match on one code.

The standard's codes do not: "Enlarged" is said of the heart and of the aorta, with the site in another place.
"""

from dicom_gateway.report.codes import CodeEntry, private_code
from dicom_gateway.report.content import ReportedMeasurement
from dicom_gateway.report.language import ENGLISH, Language
from dicom_gateway.report.wording import KIND_NAMES, QUANTITY_NAMES
from models.findings import FindingKind, Quantity


def kind_code(kind: FindingKind) -> CodeEntry:
    return private_code(kind.value, KIND_NAMES[kind])


def measurement_code(measurement: ReportedMeasurement, language: Language = ENGLISH) -> CodeEntry:
    """The quantity, with the side where it is of one side: "lung_volume.left"."""
    quantity, side = Quantity(measurement.quantity), measurement.laterality
    name = language.say(QUANTITY_NAMES[quantity])
    if side is None:
        return private_code(quantity.value, name)
    return private_code(f"{quantity.value}.{side}", language.say("{side} {name}", side=language.told(side), name=name))
