"""The one place where DICOM headers of source images are read.

Reading is tolerant: what is absent is None and what is broken is listed, so that the gates can say why.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import file_digest
from io import BytesIO
from pathlib import Path
from struct import pack
from typing import Any

import pydicom
from pydicom import config
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from imaging.elements import ElementScanner, scan_file_meta
from imaging.errors import BrokenDataSet, UnreadableInstance
from imaging.file_scan import PixelPlace, ScannedFile, scan_file
from imaging.files import UnreadableFile
from imaging.geometry import Point
from imaging.odd_pixels import padding_range
from imaging.patients import PATIENT_KEYWORDS, PatientIdentity, patient_of
from imaging.pixels import StoredPixels

# Hospital headers break value rules all the time; pydicom's warnings would quote patient data.
config.settings.reading_validation_mode = config.IGNORE

_LONGEST_TEXT = 64
_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def _tags(*keywords: str) -> frozenset[int]:
    return frozenset(int(tag_for_keyword(keyword) or 0) for keyword in keywords)


# Every element that is asked of a CT image below.
_WANTED = _tags(
    "SpecificCharacterSet",
    *PATIENT_KEYWORDS,
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality", "SeriesNumber"),
    *("StudyDescription", "SeriesDescription", "BodyPartExamined", "ProtocolName", "ConvolutionKernel"),
    *("ContrastBolusAgent", "Manufacturer", "InstanceNumber", "ImageType", "AcquisitionNumber"),
    *("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
    *("RescaleSlope", "RescaleIntercept", "Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("RescaleType", "SliceLocation", "ReconstructionDiameter", "KVP"),
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *_FUNCTIONAL_GROUPS,
)
_SCANNER = ElementScanner(_WANTED)
_SOP_CLASS_UID, _SOP_INSTANCE_UID, _IMAGE_POSITION_PATIENT = 0x00080016, 0x00080018, 0x00200032
_ACQUISITION_NUMBER, _INSTANCE_NUMBER, _SLICE_LOCATION = 0x00200012, 0x00200013, 0x00201041
# The elements that differ among the images of a series, with their VR.
_OF_EACH_IMAGE = {
    _SOP_INSTANCE_UID: b"UI",
    _IMAGE_POSITION_PATIENT: b"DS",
    _ACQUISITION_NUMBER: b"IS",
    _INSTANCE_NUMBER: b"IS",
    _SLICE_LOCATION: b"DS",
}
_CT_IMAGE_STORAGE = CTImageStorage.encode() + bytes(len(CTImageStorage) % 2)
# More than file meta information has, unless it holds private information.
_FILE_META_BYTES = 1 << 14
_OWN_GROUPS = _tags(*_FUNCTIONAL_GROUPS)
_LONGEST_KERNEL = 64
_SEQUENCE_END = b"\xfe\xff\xdd\xe0"
# What of these pydicom and we are sure to read alike.
_UID = re.compile(rb"([0-9.]{1,64})\0?").fullmatch
_INTEGER = re.compile(rb" {0,9}([+-]?[0-9]{1,9})? {0,9}").fullmatch
_DECIMAL = rb" {0,9}([+-]?[0-9]{1,16}(?:\.[0-9]{0,16})?(?:[eE][+-]?[0-9]{1,2})?) {0,9}"
_NUMBER = re.compile(rb"(?:" + _DECIMAL + rb")?").fullmatch
_POINT = re.compile(rb"\\".join([_DECIMAL] * 3)).fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One CT image plane: a CT Image instance, or one frame (1-based `frame_number`) of an Enhanced CT.

    `pixels` is known where they are written in one of the usual ways.
    """

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
    pixels: StoredPixels | None = None
    rescale_type: str | None = None
    slice_location_mm: float | None = None
    reconstruction_diameter_mm: float | None = None
    kvp: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A series with its CT planes in file order; of other instances (SR, SEG ...) only the files are known.

    `left_out_localizers` counts localizer planes that selection removed from among axial ones. `patients` holds each
    patient that its files name.
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
    patients: frozenset[PatientIdentity] = frozenset()

    @property
    def instance_count(self) -> int:
        return len(self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The series of one Study Instance UID. What names the patient is left in the files on purpose."""

    study_instance_uid: str
    study_description: str | None
    series: tuple[Series, ...]


def read_studies(
    files: Iterable[Path], on_file: Callable[[Path], None] | None = None
) -> tuple[tuple[Study, ...], tuple[UnreadableFile, ...]]:
    """Headers of `files` grouped by study and series, both in order of first appearance.

    The same instance found twice in its series counts once; other data under the same SOP Instance UID stay beside it,
    for a gate to see.
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
        scanned = scan_file(file, _SCANNER)
        if scanned and (header := _header_like_one_before(file, scanned)):
            return header
        return _instance_header(file, _read_by_pydicom(file), scanned.place if scanned else None)
    except UnreadableInstance:
        raise
    except Exception as error:
        raise UnreadableInstance(f"damaged DICOM header ({type(error).__name__})") from error


def _read_by_pydicom(file: Path) -> Dataset:
    try:
        # What is not asked for is not kept: a header may hold millions of elements.
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_WANTED))
    except InvalidDicomError as error:
        raise UnreadableInstance("not a DICOM file") from error
    except Exception as error:
        # The parser fails in many ways on damaged bytes, and its messages may quote them.
        raise UnreadableInstance(f"damaged DICOM header ({type(error).__name__})") from error


def _instance_header(file: Path, ds: Dataset, place: PixelPlace | None) -> InstanceHeader:
    uids = {k: _uid(_value(ds, k)) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")}
    if missing := [keyword for keyword, value in uids.items() if not value]:
        raise UnreadableInstance(f"no {', '.join(missing)} in the header")
    planes: tuple[Slice, ...] = ()
    if uids["SOPClassUID"] == CTImageStorage:
        planes = (_plane(file, ds, place),)
    elif uids["SOPClassUID"] in (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage):
        planes = tuple(_enhanced_planes(file, ds, place))
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
        patients=frozenset({patient_of(ds)}),
    )
    return InstanceHeader(
        study_instance_uid=str(uids["StudyInstanceUID"]),
        study_description=_text(_value(ds, "StudyDescription")),
        sop_instance_uid=str(uids["SOPInstanceUID"]),
        series=series,
    )


def _header_like_one_before(file: Path, scanned: ScannedFile) -> InstanceHeader | None:
    """Header of a CT image whose own values are plainly written; what it shares with others was read with the first."""
    values = scanned.values
    uid, point = _UID(values.get(_SOP_INSTANCE_UID, b"")), _POINT(values.get(_IMAGE_POSITION_PATIENT, b""))
    number, acquisition = (_INTEGER(values.get(tag, b"")) for tag in (_INSTANCE_NUMBER, _ACQUISITION_NUMBER))
    location = _NUMBER(values.get(_SLICE_LOCATION, b"").rstrip(b"\0"))
    if not (uid and point and number and acquisition and location) or values.get(_SOP_CLASS_UID) != _CT_IMAGE_STORAGE:
        return None
    if any(scanned.vrs.get(tag, vr) not in (vr, b"UN") for tag, vr in _OF_EACH_IMAGE.items()):
        return None
    place = scanned.place
    shared = tuple((tag, scanned.vrs.get(tag), value) for tag, value in values.items() if tag not in _OF_EACH_IMAGE)
    like = _read_shared(scanned.implicit_vr, shared, replace(place, offset=0) if place else None)
    if like is None:
        return None
    (plane,) = like.series.slices
    sop_instance_uid = uid[1].decode("ascii")
    plane = replace(
        plane,
        path=file,
        sop_instance_uid=sop_instance_uid,
        instance_number=int(number[1]) if number[1] else None,
        acquisition_number=int(acquisition[1]) if acquisition[1] else None,
        image_position_patient=(float(point[1]), float(point[2]), float(point[3])),
        slice_location_mm=float(location[1]) if location[1] else None,
        pixels=replace(plane.pixels, offset=place.offset) if plane.pixels and place else None,
    )
    return replace(like, sop_instance_uid=sop_instance_uid, series=replace(like.series, files=(file,), slices=(plane,)))


@lru_cache(maxsize=64)
def _read_shared(
    implicit_vr: bool, elements: tuple[tuple[int, bytes | None, bytes], ...], place: PixelPlace | None
) -> InstanceHeader | None:
    """Header of a CT image that is these elements; None where they alone do not tell it."""
    if any(tag in _OWN_GROUPS or value[-8:-4] == _SEQUENCE_END for tag, _, value in elements):
        return None
    identity = (_SOP_INSTANCE_UID, None if implicit_vr else b"UI", b"0")
    encoded = b"".join(_encoded(*element) for element in (*elements, identity))
    return _instance_header(Path(), read_dataset(BytesIO(encoded), implicit_vr, True), place)


def _encoded(tag: int, vr: bytes | None, value: bytes) -> bytes:
    """One element of a little-endian data set (PS3.5 section 7.1)."""
    if vr is None:
        return pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value
    if vr.decode() in EXPLICIT_VR_LENGTH_32:
        return pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value
    return pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def _plane(file: Path, ds: Dataset, place: PixelPlace | None) -> Slice:
    return Slice(
        path=file,
        sop_instance_uid=str(ds.SOPInstanceUID),
        sop_class_uid=str(ds.SOPClassUID),
        frame_number=None,
        instance_number=_integer(_value(ds, "InstanceNumber")),
        image_type=_strings(_value(ds, "ImageType")),
        acquisition_number=_integer(_value(ds, "AcquisitionNumber")),
        frame_of_reference_uid=_uid(_value(ds, "FrameOfReferenceUID")),
        image_position_patient=_point(_value(ds, "ImagePositionPatient")),
        image_orientation_patient=_floats(_value(ds, "ImageOrientationPatient"), 6),
        pixel_spacing_mm=_pair(_value(ds, "PixelSpacing")),
        rows=_integer(_value(ds, "Rows")) or 0,
        columns=_integer(_value(ds, "Columns")) or 0,
        slice_thickness_mm=_number(_value(ds, "SliceThickness")),
        rescale_slope=_number(_value(ds, "RescaleSlope")),
        rescale_intercept=_number(_value(ds, "RescaleIntercept")),
        pixels=_stored_pixels(ds, place) if place else None,
        rescale_type=_text(_value(ds, "RescaleType")),
        slice_location_mm=_number(_value(ds, "SliceLocation")),
        reconstruction_diameter_mm=_number(_value(ds, "ReconstructionDiameter")),
        kvp=_number(_value(ds, "KVP")),
    )


def _stored_pixels(ds: Dataset, place: PixelPlace) -> StoredPixels | None:
    """How the pixels of `ds` are written; None where that is not the usual way, or not known."""
    rows, columns, allocated, bits_stored, representation, samples = (
        _integer(_value(ds, keyword))
        for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel")
    )
    frames = 1 if _value(ds, "NumberOfFrames") is None else _integer(_value(ds, "NumberOfFrames"))
    if not (rows and columns and bits_stored and frames) or representation not in (0, 1):
        return None
    if (allocated, samples) != (16, 1) or not 1 <= bits_stored <= 16 or frames < 1:
        return None
    if _value(ds, "PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    if place.length is not None and place.length != rows * columns * frames * 2:
        return None
    try:
        padding = padding_range(ds)
    except Exception:  # noqa: BLE001
        # As in _value: decoding will say what is wrong.
        return None
    return StoredPixels(
        codec=place.codec,
        offset=place.offset,
        number_of_frames=frames,
        bits_stored=bits_stored,
        signed=representation == 1,
        padding=padding,
    )


def _enhanced_planes(file: Path, ds: Dataset, place: PixelPlace | None) -> Iterable[Slice]:
    """One plane a frame; a functional group is taken from the frame, else from the shared ones (PS3.3 C.7.6.16)."""
    shared = _first(_value(ds, "SharedFunctionalGroupsSequence"))
    base = _plane(file, ds, place)
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
            rescale_type=_text(_value(transformation, "RescaleType")),
            # It has no meaning in an object of many planes.
            slice_location_mm=None,
        )


def _kernel(ds: Dataset) -> str | None:
    groups = [_first(_value(ds, name)) for name in _FUNCTIONAL_GROUPS]
    reconstruction = next((_first(_value(g, "CTReconstructionSequence")) for g in groups if g), Dataset())
    kernel = _strings(_value(ds, "ConvolutionKernel")) or _strings(_value(reconstruction, "ConvolutionKernel"))
    # It is quoted in reports.
    return "".join(filter(str.isprintable, "/".join(kernel)))[:_LONGEST_KERNEL] or None


class _StudyParts:
    """Collects the instances of one study."""

    def __init__(self, first: InstanceHeader) -> None:
        self._first = first
        self._series: dict[str, list[Series]] = {}
        self._files: dict[tuple[str, str], Path] = {}
        self._digests: dict[tuple[str, str], set[bytes]] = {}

    def add(self, instance: InstanceHeader) -> None:
        (file,) = instance.series.files
        series_instance_uid = instance.series.series_instance_uid
        if self._is_new((series_instance_uid, instance.sop_instance_uid), file):
            self._series.setdefault(series_instance_uid, []).append(instance.series)

    def _is_new(self, key: tuple[str, str], file: Path) -> bool:
        """Whether no file of these UIDs held the same; only where one comes again are the bytes read."""
        if key not in self._files:
            self._files[key] = file
            return True
        if key not in self._digests:
            self._digests[key] = {_digest_of_data_set(self._files[key])}
        digest = _digest_of_data_set(file)
        is_new = digest not in self._digests[key]
        self._digests[key].add(digest)
        return is_new

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
        patients=frozenset().union(*(part.patients for part in parts)),
    )


def _digest_of_data_set(file: Path) -> bytes:
    """Without preamble and file meta information, which every program that copies a file writes anew."""
    with file.open("rb") as opened:
        try:
            _, start = scan_file_meta(opened.read(_FILE_META_BYTES))
        except BrokenDataSet:
            start = 0
        opened.seek(start)
        return file_digest(opened, "sha256").digest()


def _value(ds: Dataset, keyword: str) -> Any:
    """The element's value, None where it is absent or its bytes are no value of its kind."""
    try:
        return ds.get(keyword)
    except Exception:  # noqa: BLE001
        # pydicom converts on access and fails in many ways; a gate refuses the series where the value is needed.
        return None


def _first(sequence: Any) -> Dataset:
    return sequence[0] if sequence else Dataset()


def _uid(value: Any) -> str | None:
    return str(value or "").replace("\x00", "").strip() or None


def _text(value: Any) -> str | None:
    """What a report may quote: no control characters, and no more than a Long String has (PS3.5 6.2)."""
    if value is None:
        return None
    text = value if isinstance(value, str) or not isinstance(value, Sequence) else "\\".join(map(str, value))
    printable = "".join(character for character in str(text) if character.isprintable())
    return printable.strip()[:_LONGEST_TEXT] or None


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
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != count:
        return None
    return tuple(float(v) for v in value)


def _point(value: Any) -> Point | None:
    numbers = _floats(value, 3)
    return None if numbers is None else (numbers[0], numbers[1], numbers[2])


def _pair(value: Any) -> tuple[float, float] | None:
    numbers = _floats(value, 2)
    return None if numbers is None else (numbers[0], numbers[1])
