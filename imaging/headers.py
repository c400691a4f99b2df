"""The one place where DICOM headers of source images are read.

Reading is tolerant: what is absent is None and what is broken is listed, so that the gates can say why.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from imaging.errors import UnreadableInstance
from imaging.geometry import Point

# Hospital headers break value rules all the time; pydicom's warnings would quote patient data.
config.settings.reading_validation_mode = config.IGNORE

_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One CT image plane: a CT Image instance, or one frame (1-based `frame_number`) of an Enhanced CT."""

    path: Path
    sop_instance_uid: str
    sop_class_uid: str
    frame_number: int | None
    instance_number: int | None
    image_type: tuple[str, ...]
    acquisition_number: int | None
    frame_of_reference_uid: str | None
    image_position_patient: Point | None
    image_orientation_patient: tuple[float, ...] | None
    pixel_spacing_mm: tuple[float, float] | None
    rows: int
    columns: int
    slice_thickness_mm: float | None
    rescale_slope: float | None
    rescale_intercept: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A series with its CT planes in file order; of other instances (SR, SEG ...) only the files are known.

    `left_out_localizers` counts localizer planes that selection removed from among axial ones.
    """

    series_instance_uid: str
    modality: str
    series_number: int | None
    series_description: str | None
    body_part_examined: str | None
    protocol_name: str | None
    convolution_kernel: str | None
    contrast_bolus_agent: str | None
    files: tuple[Path, ...]
    slices: tuple[Slice, ...]
    manufacturer: str | None = None
    left_out_localizers: int = 0

    @property
    def instance_count(self) -> int:
        return len(self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The series of one Study Instance UID. Patient identity is left in the files on purpose."""

    study_instance_uid: str
    study_description: str | None
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableFile:
    """A file that is no DICOM instance of a study, with the reason in words free of patient data."""

    path: Path
    reason: str


def read_studies(
    files: Iterable[Path], on_file: Callable[[Path], None] | None = None
) -> tuple[tuple[Study, ...], tuple[UnreadableFile, ...]]:
    """Headers of `files` grouped by study and series, both in order of first appearance.

    The same instance found twice (same SOP Instance UID at the same position) counts once.
    """
    studies: dict[str, _StudyParts] = {}
    unreadable: list[UnreadableFile] = []
    for file in files:
        try:
            instance = read_instance(file)
        except UnreadableInstance as error:
            unreadable.append(UnreadableFile(path=file, reason=str(error)))
        else:
            studies.setdefault(instance.study_instance_uid, _StudyParts(instance)).add(instance)
        if on_file is not None:
            on_file(file)
    return tuple(parts.study() for parts in studies.values()), tuple(unreadable)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHeader:
    """What one file says: to which study and series it belongs, and the CT planes in it (none for an SR)."""

    study_instance_uid: str
    study_description: str | None
    sop_instance_uid: str
    series: Series


def read_instance(file: Path) -> InstanceHeader:
    """Header of one DICOM file. Raises UnreadableInstance when it is not one or lacks its identifying UIDs."""
    try:
        ds = pydicom.dcmread(file, stop_before_pixels=True)
    except InvalidDicomError as error:
        raise UnreadableInstance("not a DICOM file") from error
    except Exception as error:
        # The parser fails in many ways on damaged bytes, and its messages may quote them.
        raise UnreadableInstance(f"damaged DICOM file ({type(error).__name__})") from error
    try:
        return _instance_header(file, ds)
    except UnreadableInstance:
        raise
    except Exception as error:
        raise UnreadableInstance(f"damaged DICOM header ({type(error).__name__})") from error


def _instance_header(file: Path, ds: Dataset) -> InstanceHeader:
    uids = {k: _text(_value(ds, k)) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")}
    if missing := [keyword for keyword, value in uids.items() if not value]:
        raise UnreadableInstance(f"no {', '.join(missing)} in the header")
    planes: tuple[Slice, ...] = ()
    if uids["SOPClassUID"] == CTImageStorage:
        planes = (_plane(file, ds),)
    elif uids["SOPClassUID"] == EnhancedCTImageStorage:
        planes = tuple(_enhanced_planes(file, ds))
    series = Series(
        series_instance_uid=str(uids["SeriesInstanceUID"]),
        modality=_text(_value(ds, "Modality")) or "",
        series_number=_integer(_value(ds, "SeriesNumber")),
        series_description=_text(_value(ds, "SeriesDescription")),
        body_part_examined=_text(_value(ds, "BodyPartExamined")),
        protocol_name=_text(_value(ds, "ProtocolName")),
        convolution_kernel=_kernel(ds),
        contrast_bolus_agent=_text(_value(ds, "ContrastBolusAgent")),
        manufacturer=_text(_value(ds, "Manufacturer")),
        files=(file,),
        slices=planes,
    )
    return InstanceHeader(
        study_instance_uid=str(uids["StudyInstanceUID"]),
        study_description=_text(_value(ds, "StudyDescription")),
        sop_instance_uid=str(uids["SOPInstanceUID"]),
        series=series,
    )


def _plane(file: Path, ds: Dataset) -> Slice:
    return Slice(
        path=file,
        sop_instance_uid=str(ds.SOPInstanceUID),
        sop_class_uid=str(ds.SOPClassUID),
        frame_number=None,
        instance_number=_integer(_value(ds, "InstanceNumber")),
        image_type=_strings(_value(ds, "ImageType")),
        acquisition_number=_integer(_value(ds, "AcquisitionNumber")),
        frame_of_reference_uid=_text(_value(ds, "FrameOfReferenceUID")),
        image_position_patient=_point(_value(ds, "ImagePositionPatient")),
        image_orientation_patient=_floats(_value(ds, "ImageOrientationPatient"), 6),
        pixel_spacing_mm=_pair(_value(ds, "PixelSpacing")),
        rows=_integer(_value(ds, "Rows")) or 0,
        columns=_integer(_value(ds, "Columns")) or 0,
        slice_thickness_mm=_number(_value(ds, "SliceThickness")),
        rescale_slope=_number(_value(ds, "RescaleSlope")),
        rescale_intercept=_number(_value(ds, "RescaleIntercept")),
    )


def _enhanced_planes(file: Path, ds: Dataset) -> Iterable[Slice]:
    """One plane a frame; a functional group is taken from the frame, else from the shared ones (PS3.3 C.7.6.16)."""
    shared = _first(_value(ds, "SharedFunctionalGroupsSequence"))
    base = _plane(file, ds)
    for number, frame in enumerate(_value(ds, "PerFrameFunctionalGroupsSequence") or (), start=1):

        def macro(keyword: str, frame: Dataset = frame) -> Dataset:
            return _first(_value(frame, keyword)) or _first(_value(shared, keyword))

        measures = macro("PixelMeasuresSequence")
        transformation = macro("PixelValueTransformationSequence")
        yield replace(
            base,
            frame_number=number,
            image_type=_strings(_value(macro("CTImageFrameTypeSequence"), "FrameType")) or base.image_type,
            acquisition_number=_integer(_value(macro("FrameContentSequence"), "FrameAcquisitionNumber")),
            image_position_patient=_point(_value(macro("PlanePositionSequence"), "ImagePositionPatient")),
            image_orientation_patient=_floats(_value(macro("PlaneOrientationSequence"), "ImageOrientationPatient"), 6),
            pixel_spacing_mm=_pair(_value(measures, "PixelSpacing")),
            slice_thickness_mm=_number(_value(measures, "SliceThickness")),
            rescale_slope=_number(_value(transformation, "RescaleSlope")),
            rescale_intercept=_number(_value(transformation, "RescaleIntercept")),
        )


def _kernel(ds: Dataset) -> str | None:
    groups = [_first(_value(ds, name)) for name in _FUNCTIONAL_GROUPS]
    reconstruction = next((_first(_value(g, "CTReconstructionSequence")) for g in groups if g), Dataset())
    kernel = _strings(_value(ds, "ConvolutionKernel")) or _strings(_value(reconstruction, "ConvolutionKernel"))
    return "/".join(kernel) or None


class _StudyParts:
    """Collects the instances of one study."""

    def __init__(self, first: InstanceHeader) -> None:
        self._first = first
        self._series: dict[str, list[Series]] = {}
        self._seen: set[tuple[str, Point | None]] = set()

    def add(self, instance: InstanceHeader) -> None:
        planes = instance.series.slices
        key = (instance.sop_instance_uid, planes[0].image_position_patient if planes else None)
        if key not in self._seen:
            self._seen.add(key)
            self._series.setdefault(instance.series.series_instance_uid, []).append(instance.series)

    def study(self) -> Study:
        return Study(
            study_instance_uid=self._first.study_instance_uid,
            study_description=self._first.study_description,
            series=tuple(_joined(parts) for parts in self._series.values()),
        )


def _joined(parts: Sequence[Series]) -> Series:
    return replace(
        parts[0],
        files=tuple(file for part in parts for file in part.files),
        slices=tuple(plane for part in parts for plane in part.slices),
    )


def _value(ds: Dataset, keyword: str) -> Any:
    """The element's value, None where it is absent or its bytes are no value of its kind."""
    try:
        return ds.get(keyword)
    except Exception:  # noqa: BLE001
        # pydicom converts on access and fails in many ways; a gate refuses the series where the value is needed.
        return None


def _first(sequence: Any) -> Dataset:
    return sequence[0] if sequence else Dataset()


def _text(value: Any) -> str | None:
    text = "" if value is None else str(value).replace("\x00", "").strip()
    return text or None


def _strings(value: Any) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    return (value.strip(),) if isinstance(value, str) else tuple(str(v).strip() for v in value)


def _number(value: Any) -> float | None:
    if value is None or value == "" or (hasattr(value, "__len__") and not isinstance(value, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _integer(value: Any) -> int | None:
    number = _number(value)
    return None if number is None or not math.isfinite(number) else int(number)


def _floats(value: Any, count: int) -> tuple[float, ...] | None:
    if value is None or isinstance(value, str) or len(value) != count:
        return None
    return tuple(float(v) for v in value)


def _point(value: Any) -> Point | None:
    numbers = _floats(value, 3)
    return None if numbers is None else (numbers[0], numbers[1], numbers[2])


def _pair(value: Any) -> tuple[float, float] | None:
    numbers = _floats(value, 2)
    return None if numbers is None else (numbers[0], numbers[1])
