"""What is known about a study: the format of truth files, and their reader.

A study's truth is a `truth.json` in the folder of its DICOM files, or an entry of an index file (TOML) that names many
studies and leaves the data where they are. Both hold the fields of `StudyTruth`:

    {"version": 1, "name": "patient 17", "source": "PleThora", "licence": "CC BY-NC 3.0",
     "present": ["consolidation"], "absent": ["pneumothorax"],
     "findings": {"pleural_effusion": {
        "measurements": [{"quantity": "volume", "value": 759.4, "unit": "ml", "laterality": "left"}],
        "lesions": [{"centre_lps_mm": [45.0, 60.0, -120.0], "diameter_mm": 30.0, "short_axis_mm": 24.0}],
        "positive_slices": [12, 13, 14], "mask": "effusion.nii.gz"},
       "pulmonary_nodule": {"presence": "unknown", "none_above_mm": 30}}}

A kind that is named nowhere is unknown and counts neither as present nor as absent. `none_above_mm` of nodules says
that none has a mean axial diameter above it, whatever smaller ones there are: 30 where there is no mass; below 6 there
is no nodule of 6 to 30 mm either. Quantities and units are those of `models.findings`; volumes may be in ml or mm3.
Slices are counted from 0 at the lowest one (feet); a mask is a NIfTI file, not 0 inside, placed by its own header.
Where points, slices or masks miss the image, or a mask is empty though the kind is present, the study fails. `path` and
`mask` are relative to the folder of a `truth.json`, in an index file to its `root`, and what they name must be there.
An index file has

    version = 1
    root = "../archive"          # relative to the index file's folder; that folder when left out
    [[studies]]
    name = "patient 17"
    path = "ct/patient17"        # a folder of DICOM files, or a volume in HU that SimpleITK reads (NIfTI, NRRD)
    ...

The `truth.json` that `onescan phantom` writes is read, too.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from imaging.geometry import Geometry, Point
from models.findings import FindingKind, Laterality, Quantity, Unit

TRUTH_NAME = "truth.json"
KnownPresence = Literal["present", "absent", "unknown"]

_NAMED = 5
_HALF_A_VOXEL = 0.5 + 1e-3  # rounding in headers and truth files


class UnreadableTruth(ValueError):
    """A truth or index file cannot be read."""


class TruthMismatch(ValueError):
    """What is said to be true of a study cannot be true of its image."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_MM3: Mapping[Unit, float] = {"mm3": 1.0, "ml": 1000.0}
_UNITS: Mapping[tuple[Unit, ...], tuple[Quantity, ...]] = {
    tuple(_MM3): (Quantity.VOLUME, Quantity.LUNG_VOLUME, Quantity.CALCIUM_VOLUME),
    ("[hnsf'U]",): (
        Quantity.MEAN_ATTENUATION,
        Quantity.STANDARD_DEVIATION_OF_ATTENUATION,
        Quantity.PERCENTILE_15_OF_ATTENUATION,
        Quantity.SPLEEN_ATTENUATION,
        Quantity.LIVER_SPLEEN_DIFFERENCE,
    ),
    ("%",): (Quantity.LOW_ATTENUATION_AREA_950, Quantity.FRACTION_OF_LUNG),
    ("1",): (Quantity.AGATSTON_SCORE, Quantity.GENANT_GRADE, Quantity.LESION_COUNT),
    ("{ratio}",): (
        Quantity.CARDIOTHORACIC_RATIO,
        Quantity.PULMONARY_TRUNK_TO_AORTA_RATIO,
        Quantity.VERTEBRAL_HEIGHT_RATIO,
    ),
}


def units_of(quantity: Quantity) -> tuple[Unit, ...]:
    """The units a quantity may be known in: those that it is measured in, or that can be converted into them."""
    return next((units for units, quantities in _UNITS.items() if quantity in quantities), ("mm",))


class TrueMeasurement(_Record):
    """A number that is known, of the whole study or of one side of it."""

    quantity: Quantity
    value: float = Field(allow_inf_nan=False)
    unit: Unit
    laterality: Laterality | None = None

    @model_validator(mode="after")
    def _in_a_unit_it_is_measured_in(self) -> Self:
        if self.unit not in (units := units_of(self.quantity)):
            raise ValueError(f"{self.quantity.value} is measured in {' or '.join(units)}, not in {self.unit}")
        return self

    def value_in(self, unit: Unit) -> float:
        """The value in one of `units_of` its quantity."""
        return self.value if unit == self.unit else self.value * _MM3[self.unit] / _MM3[unit]


class TrueLesion(_Record):
    """One lesion: a point in it (LPS, mm), and where known its largest axial diameter and the width across that.

    One that does not `count` is there, but cannot be asked for (hidden, too faint): neither missed nor named wrongly.
    """

    centre_lps_mm: Point
    diameter_mm: float | None = Field(None, gt=0)
    short_axis_mm: float | None = Field(None, gt=0)
    laterality: Laterality | None = None
    counts: bool = True

    @property
    def mean_diameter_mm(self) -> float | None:
        """Of both axes (Lung-RADS v2022), the largest diameter where the other is not known."""
        if self.diameter_mm is None or self.short_axis_mm is None:
            return self.diameter_mm
        return (self.diameter_mm + self.short_axis_mm) / 2


class KindTruth(_Record):
    """What is known about one kind. `lesions`, where given, are all lesions of the kind that a reader would name.

    No lesion has a mean axial diameter above `none_above_mm`; whether there are smaller ones is for `presence` to say.
    What is absent has neither positive slices nor lesions that count.
    """

    presence: KnownPresence = "present"
    none_above_mm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    measurements: tuple[TrueMeasurement, ...] = ()
    lesions: tuple[TrueLesion, ...] = ()
    positive_slices: tuple[Annotated[int, Field(ge=0)], ...] = ()
    mask: str | None = None

    @model_validator(mode="after")
    def _absent_is_nowhere(self) -> Self:
        if self.presence != "absent":
            return self
        if any(lesion.counts for lesion in self.lesions):
            raise ValueError("it has lesions, although presence is absent")
        if self.positive_slices:
            raise ValueError("it has positive_slices, although presence is absent")
        return self

    @model_validator(mode="after")
    def _none_is_larger(self) -> Self:
        if self.none_above_mm is None:
            return self
        if "presence" not in self.model_fields_set and not self.lesions:
            raise ValueError("none_above_mm does not say whether there are smaller ones: presence must")
        if any((lesion.mean_diameter_mm or 0.0) > self.none_above_mm for lesion in self.lesions):
            raise ValueError("a lesion is larger than none_above_mm")
        return self


class StudyTruth(_Record):
    """The truth about one study; see the module's docstring for the file."""

    version: Literal[1] = 1
    name: str = Field(min_length=1)
    source: str = Field(min_length=1)
    licence: str = ""
    simulated: bool = False
    trained_on: bool = False
    path: str | None = None
    present: tuple[FindingKind, ...] = ()
    absent: tuple[FindingKind, ...] = ()
    findings: dict[FindingKind, KindTruth] = {}

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        named = [*self.present, *self.absent, *self.findings]
        if twice := {kind.value for kind in named if named.count(kind) > 1}:
            raise ValueError(f"named more than once: {', '.join(sorted(twice))}")
        return self

    @model_validator(mode="after")
    def _absent_is_not_measured(self) -> Self:
        for kind, known in self.findings.items():
            sizes = [m.quantity.value for m in known.measurements if m.value > 0 and _is_of_a_lesion(kind, m.quantity)]
            if known.presence == "absent" and sizes:
                raise ValueError(f"{kind.value} has a {', '.join(sizes)}, although presence is absent")
        return self

    @model_validator(mode="after")
    def _sorted_by_size(self) -> Self:
        limited = [kind for kind, known in self.findings.items() if known.none_above_mm is not None]
        if any(kind is not FindingKind.PULMONARY_NODULE for kind in limited):
            raise ValueError("none_above_mm is for pulmonary_nodule: no other kind is sorted by size")
        return self

    def of(self, kind: FindingKind) -> KindTruth:
        """What is known about `kind`."""
        if kind in self.findings:
            return self.findings[kind]
        named: KnownPresence = "present" if kind in self.present else "absent" if kind in self.absent else "unknown"
        return KindTruth(presence=named)


_OF_A_LESION = (
    Quantity.LONG_AXIS,
    Quantity.SHORT_AXIS,
    Quantity.MAXIMUM_DEPTH,
    Quantity.VOLUME,
    Quantity.FRACTION_OF_LUNG,
    Quantity.LESION_COUNT,
)


def _is_of_a_lesion(kind: FindingKind, quantity: Quantity) -> bool:
    """Any heart has a volume."""
    return quantity in _OF_A_LESION and (kind, quantity) != (FindingKind.CARDIOMEGALY, Quantity.VOLUME)


def check_places(truth: StudyTruth, geometry: Geometry) -> None:
    """Raises TruthMismatch naming the lesions and positive slices that lie outside the image."""
    for kind, known in truth.findings.items():
        points = [lesion.centre_lps_mm for lesion in known.lesions if not _holds(geometry, lesion.centre_lps_mm)]
        if points:
            raise TruthMismatch(f"{kind.value}: centre_lps_mm outside the image: {_some(points)}")
        last = geometry.shape[0] - 1
        if slices := [index for index in known.positive_slices if index > last]:
            raise TruthMismatch(f"{kind.value}: positive_slices go to {last} in the image: {_some(slices)}")


def _holds(geometry: Geometry, point_mm: Point) -> bool:
    index = geometry.patient_to_index(point_mm)
    return bool(np.all((index >= -_HALF_A_VOXEL) & (index <= np.array(geometry.shape) - 1 + _HALF_A_VOXEL)))


def _some(items: Sequence[object]) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return f"{', '.join(map(str, items[:_NAMED]))}{more}"


class _Index(_Record):
    version: Literal[1]
    root: str = "."
    studies: tuple[StudyTruth, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledStudy:
    """A study on disk with its truth; masks are relative to `folder`."""

    truth: StudyTruth
    data: Path
    folder: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """Everything that is read of the study: its data, then its masks."""
        return (self.data, *(mask for kind in FindingKind if (mask := self.mask_path(kind)) is not None))

    def mask_path(self, kind: FindingKind) -> Path | None:
        mask = self.truth.of(kind).mask
        return None if mask is None else self.folder / mask


def find_labelled_studies(paths: Sequence[Path]) -> tuple[LabelledStudy, ...]:
    """Studies of index files (TOML) and of every folder below `paths` that holds a `truth.json`.

    Raises UnreadableTruth naming the file and the field, or the data and masks that are not there.
    """
    found: list[LabelledStudy] = []
    for path in paths:
        if path.is_file():
            found += _of_index(path)
        else:
            found += [_of_folder(file) for file in sorted(path.rglob(TRUTH_NAME))]
    names = [study.truth.name for study in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UnreadableTruth(f"more than one study is named {', '.join(twice)}")
    return tuple(found)


def _of_folder(file: Path) -> LabelledStudy:
    try:
        document = json.loads(file.read_bytes())
        truth = (
            phantom_truth(document, name=f"phantom {file.parent.name}")
            if isinstance(document, dict) and "seed" in document
            else StudyTruth.model_validate(document)
        )
        study = LabelledStudy(truth=truth, data=file.parent / (truth.path or "."), folder=file.parent)
        _check_paths([study])
    except (OSError, ValueError, KeyError) as error:
        raise UnreadableTruth(f"{file}: {_said(error)}") from error
    except (AttributeError, TypeError) as error:
        raise UnreadableTruth(f"{file}: not as `onescan phantom` writes it: {error}") from error
    return study


def _of_index(file: Path) -> list[LabelledStudy]:
    try:
        index = _Index.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        root = (file.parent / index.root).resolve()
        if nameless := [truth.name for truth in index.studies if truth.path is None]:
            raise ValueError(f"no path: {', '.join(nameless)}")
        studies = [LabelledStudy(truth=truth, data=root / str(truth.path), folder=root) for truth in index.studies]
        _check_paths(studies)
    except (OSError, ValueError) as error:
        raise UnreadableTruth(f"{file}: {_said(error)}") from error
    return studies


def _check_paths(studies: Sequence[LabelledStudy]) -> None:
    missing = [f"{path} ({study.truth.name})" for study in studies for path in study.paths if not path.exists()]
    if missing:
        raise ValueError(f"no such file or folder: {_some(missing)}")


def _said(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


# A placed lesion below this (above it for attenuations), in the phantom's own unit, is no reason to call a study
# positive nor a mistake when it is named: unknown.
PHANTOM_COUNTS_FROM: Mapping[FindingKind, float] = {
    FindingKind.PULMONARY_NODULE: 6.0,
    FindingKind.PLEURAL_EFFUSION: 50.0,
    FindingKind.AORTIC_DILATATION: 40.0,
    FindingKind.VERTEBRAL_COMPRESSION_FRACTURE: 20.0,
    FindingKind.CONSOLIDATION: 10.0,
    FindingKind.GROUND_GLASS_OPACITY: 25.0,
    FindingKind.PNEUMOTHORAX: 50.0,
    FindingKind.PERICARDIAL_EFFUSION: 80.0,
    FindingKind.ATELECTASIS: 15.0,
    FindingKind.LYMPHADENOPATHY: 10.0,
}
_EMPHYSEMA_FROM_LAA_PERCENT = 5.0
# On both sides of 0.5, as far as the ratio can be measured again; hearts of healthy phantoms are 0.42 to 0.54 wide.
_HEART_ABSENT_TO, _HEART_PRESENT_FROM = 0.48, 0.52

_SIZE_IS: Mapping[FindingKind, tuple[Quantity, Unit]] = {
    FindingKind.CORONARY_ARTERY_CALCIFICATION: (Quantity.AGATSTON_SCORE, "1"),
    FindingKind.AORTIC_DILATATION: (Quantity.ASCENDING_AORTA_DIAMETER, "mm"),
    FindingKind.PULMONARY_ARTERY_ENLARGEMENT: (Quantity.PULMONARY_TRUNK_DIAMETER, "mm"),
    FindingKind.LOW_BONE_DENSITY: (Quantity.MEAN_ATTENUATION, "[hnsf'U]"),
    FindingKind.HEPATIC_STEATOSIS: (Quantity.MEAN_ATTENUATION, "[hnsf'U]"),
    FindingKind.ARTERIAL_WALL_CALCIFICATION: (Quantity.CALCIUM_VOLUME, "mm3"),
}
_MEASURED_IN_ML = (
    FindingKind.PLEURAL_EFFUSION,
    FindingKind.CONSOLIDATION,
    FindingKind.GROUND_GLASS_OPACITY,
    FindingKind.PNEUMOTHORAX,
    FindingKind.PERICARDIAL_EFFUSION,
    FindingKind.ATELECTASIS,
)
_COUNTED = (FindingKind.PULMONARY_NODULE, FindingKind.LYMPHADENOPATHY, FindingKind.RIB_FRACTURE)


def phantom_truth(document: Mapping[str, Any], *, name: str) -> StudyTruth:
    """The truth of a phantom from `imaging.phantom.truth_document`: a kind that was not placed is absent.

    Every phantom has a heart: how wide it is says whether it is enlarged, asked for or not.
    """
    placed: dict[FindingKind, list[Mapping[str, Any]]] = {}
    for finding in document["findings"]:
        placed.setdefault(FindingKind(finding["kind"]), []).append(finding)
    findings = {kind: _placed_truth(kind, parts) for kind, parts in placed.items()}
    findings[FindingKind.CARDIOMEGALY] = _heart_truth(document.get("cardiothoracic_ratio"))
    return StudyTruth(
        name=name,
        source="phantoms",
        licence="Apache-2.0",
        simulated=True,
        absent=tuple(kind for kind in FindingKind if kind not in findings),
        findings=findings,
    )


def _heart_truth(ratio: float | None) -> KindTruth:
    if ratio is None:
        return KindTruth(presence="unknown")
    clear = ratio <= _HEART_ABSENT_TO or ratio >= _HEART_PRESENT_FROM
    known = TrueMeasurement(quantity=Quantity.CARDIOTHORACIC_RATIO, value=ratio, unit="{ratio}")
    said: KnownPresence = "unknown" if not clear else "present" if ratio >= _HEART_PRESENT_FROM else "absent"
    return KindTruth(presence=said, measurements=(known,))


def _placed_truth(kind: FindingKind, parts: Sequence[Mapping[str, Any]]) -> KindTruth:
    measurements: list[TrueMeasurement] = []
    counts = max(part["size"] for part in parts) >= PHANTOM_COUNTS_FROM.get(kind, -1e9)
    if kind is FindingKind.EMPHYSEMA:
        laa = max(part["measurements"]["laa_950_percent"] for part in parts)
        counts = laa >= _EMPHYSEMA_FROM_LAA_PERCENT
        measurements.append(TrueMeasurement(quantity=Quantity.LOW_ATTENUATION_AREA_950, value=laa, unit="%"))
    if kind in _SIZE_IS and len(parts) == 1:
        quantity, unit = _SIZE_IS[kind]
        measurements.append(TrueMeasurement(quantity=quantity, value=parts[0]["size"], unit=unit))
    if kind in _MEASURED_IN_ML:
        total = sum(part["volume_ml"] for part in parts)
        measurements.append(TrueMeasurement(quantity=Quantity.VOLUME, value=total, unit="ml"))
    lesions = [
        TrueLesion(
            centre_lps_mm=part["centre_mm"],
            diameter_mm=part["long_axis_mm"],
            short_axis_mm=part["measurements"].get("short_axis_mm"),
            laterality=part["laterality"],
        )
        for part in parts
        if kind in _COUNTED
    ]
    return KindTruth(
        presence="present" if counts else "unknown", measurements=tuple(measurements), lesions=tuple(lesions)
    )
