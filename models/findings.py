"""The vocabulary of what OneScan can say about a chest CT: kinds, presence, measurements, regions."""

import enum
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from imaging.geometry import Point

# Above it a nodule is a mass (Fleischner Society glossary, Radiology 2008;246:697): the mean of both axial axes.
LARGEST_NODULE_MM = 30.0


class FindingKind(enum.StrEnum):
    """Every finding kind OneScan reports on, assessed or not, in the order of the report."""

    PULMONARY_NODULE = "pulmonary_nodule"
    CORONARY_ARTERY_CALCIFICATION = "coronary_artery_calcification"
    EMPHYSEMA = "emphysema"
    PLEURAL_EFFUSION = "pleural_effusion"
    AORTIC_DILATATION = "aortic_dilatation"
    VERTEBRAL_COMPRESSION_FRACTURE = "vertebral_compression_fracture"
    CONSOLIDATION = "consolidation"
    GROUND_GLASS_OPACITY = "ground_glass_opacity"
    PNEUMOTHORAX = "pneumothorax"
    PERICARDIAL_EFFUSION = "pericardial_effusion"
    CARDIOMEGALY = "cardiomegaly"
    ATELECTASIS = "atelectasis"
    LYMPHADENOPATHY = "lymphadenopathy"
    INTERSTITIAL_ABNORMALITY = "interstitial_abnormality"
    BRONCHIECTASIS = "bronchiectasis"
    PULMONARY_ARTERY_ENLARGEMENT = "pulmonary_artery_enlargement"
    LOW_BONE_DENSITY = "low_bone_density"
    HEPATIC_STEATOSIS = "hepatic_steatosis"
    RIB_FRACTURE = "rib_fracture"
    HIATAL_HERNIA = "hiatal_hernia"
    ARTERIAL_WALL_CALCIFICATION = "arterial_wall_calcification"
    MEDICAL_DEVICE = "medical_device"


class Presence(enum.StrEnum):
    """NOT_ASSESSED always comes with a reason and is never shown as ABSENT."""

    PRESENT = "present"
    ABSENT = "absent"
    INDETERMINATE = "indeterminate"
    NOT_ASSESSED = "not_assessed"


class Laterality(enum.StrEnum):
    """The patient's side."""

    LEFT = "left"
    RIGHT = "right"
    BILATERAL = "bilateral"


class EvidenceGrade(enum.StrEnum):
    """What stands behind an answer: A labelled real CT with figures, B single or unlabelled real CT, C simulation."""

    A = "A"
    B = "B"
    C = "C"


class Quantity(enum.StrEnum):
    """What a measurement measures."""

    LONG_AXIS = "long_axis"
    SHORT_AXIS = "short_axis"
    MAXIMUM_DIAMETER = "maximum_diameter"
    MAXIMUM_DEPTH = "maximum_depth"
    VOLUME = "volume"
    MEAN_ATTENUATION = "mean_attenuation"
    STANDARD_DEVIATION_OF_ATTENUATION = "standard_deviation_of_attenuation"
    LOW_ATTENUATION_AREA_950 = "low_attenuation_area_950"
    PERCENTILE_15_OF_ATTENUATION = "percentile_15_of_attenuation"
    FRACTION_OF_LUNG = "fraction_of_lung"
    LUNG_VOLUME = "lung_volume"
    AGATSTON_SCORE = "agatston_score"
    CARDIOTHORACIC_RATIO = "cardiothoracic_ratio"
    HEART_WIDTH = "heart_width"
    THORAX_WIDTH = "thorax_width"
    ASCENDING_AORTA_DIAMETER = "ascending_aorta_diameter"
    AORTIC_ARCH_DIAMETER = "aortic_arch_diameter"
    DESCENDING_AORTA_DIAMETER = "descending_aorta_diameter"
    PULMONARY_TRUNK_DIAMETER = "pulmonary_trunk_diameter"
    PULMONARY_TRUNK_TO_AORTA_RATIO = "pulmonary_trunk_to_aorta_ratio"
    CALCIUM_VOLUME = "calcium_volume"
    ANTERIOR_HEIGHT = "anterior_height"
    MIDDLE_HEIGHT = "middle_height"
    POSTERIOR_HEIGHT = "posterior_height"
    VERTEBRAL_HEIGHT_RATIO = "vertebral_height_ratio"
    GENANT_GRADE = "genant_grade"
    SPLEEN_ATTENUATION = "spleen_attenuation"
    LIVER_SPLEEN_DIFFERENCE = "liver_spleen_difference"
    LESION_COUNT = "lesion_count"


Unit = Literal["mm", "mm3", "ml", "%", "1", "{ratio}", "[hnsf'U]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A number with its UCUM unit, as DICOM TID 300 takes it. `laterality` where it is of one side only."""

    quantity: Quantity
    value: float
    unit: Unit
    laterality: Laterality | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """Where a finding is, on the source series' grid (never the network's).

    `mask` is the boolean content of `box` (slices along (slice, row, column) of the source volume);
    `centre_mm` is a point inside the finding, LPS; `key_slice` the index of the slice that shows it best.
    """

    centre_mm: Point
    box: tuple[slice, slice, slice]
    mask: npt.NDArray[np.bool_]
    key_slice: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finding:
    """One answer: about a kind in the whole study (`lesion` is None) or about one lesion of it (1, 2, ...).

    `probability` and `operating_point` are None where no network stands behind the answer.
    `reason` is required for NOT_ASSESSED; it explains INDETERMINATE and limits any other answer.
    `site` names the anatomy in plain words; `method` says how the answer was reached.
    """

    kind: FindingKind
    presence: Presence
    tracking_uid: str
    evidence_grade: EvidenceGrade | None
    method: str
    probability: float | None = None
    operating_point: float | None = None
    reason: str | None = None
    laterality: Laterality | None = None
    site: str | None = None
    lesion: int | None = None
    measurements: tuple[Measurement, ...] = ()
    region: Region | None = None

    def __post_init__(self) -> None:
        if self.presence is Presence.NOT_ASSESSED and not self.reason:
            raise ValueError(f"{self.kind}: not assessed needs a reason")


def few_of_many(described: int, found: int) -> str | None:
    """What is to be said where not all lesions that were found are described."""
    return f"the {described} largest of {found} are described" if found > described else None
