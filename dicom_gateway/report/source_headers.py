"""The source headers that results repeat: complete, plausible and in Unicode, whatever the scanner wrote.

Geometry is not among them: results refer to the source images by UID.

A result must carry the patient and study of its source to reach the same study in the PACS, yet ordinary hospital
data lack elements, hold values outside their VR and declare the wrong character set.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import HTJ2K, JPEG2000, UID, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from imaging.errors import UnreadableInstance
from imaging.patients import is_one_patient, patient_of
from imaging.source_text import UNICODE, declared_character_sets, decode_text
from imaging.uids import is_safe_uid

CHARACTER_SET = UNICODE

# Type 2 of the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): present in every result, empty if unknown.
_REQUIRED_TEXT = ("PatientName", "PatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName")
_OPTIONAL_TEXT = (
    "IssuerOfPatientID",
    "StudyDescription",
    "Modality",
    "TimezoneOffsetFromUTC",
)
_DATES = ("StudyDate", "PatientBirthDate")
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_OTHER = ("StudyTime", "PatientSex", "PatientAge", "SpecificCharacterSet")
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
# Defined terms of (0028,2114) for those syntaxes that may lose something.
_LOSSY_METHODS = {
    JPEGBaseline8Bit: "ISO_10918_1",
    JPEGExtended12Bit: "ISO_10918_1",
    JPEGLSNearLossless: "ISO_14495_1",
    JPEG2000: "ISO_15444_1",
    HTJ2K: "ISO_15444_15",
}
_REQUIRED_OF_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
_OPTIONAL_OF_PATIENT = ("IssuerOfPatientID", "PatientAge")
_REQUIRED_OF_STUDY = ("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName")
_OPTIONAL_OF_STUDY = ("StudyDescription", "TimezoneOffsetFromUTC")
# -1200 to +1400, and never -0000 (PS3.5 6.2, PS3.3 C.12.1.1.8).
_UTC_OFFSET = re.compile(r"(\+(0[0-9]|1[0-3])|-(?!0000)(0[0-9]|1[01]))[0-5][0-9]|-1200|\+1400")
_RATIO, _TERM = re.compile(r"\d{1,6}(\.\d{1,8})?"), re.compile(r"[A-Z0-9_ ]{1,16}")
_READ = (*_REQUIRED_TEXT, *_OPTIONAL_TEXT, *_DATES, *_UIDS, *_OTHER, *_LOSSY)


@dataclass(frozen=True, slots=True, eq=False)
class SourceHeaders:
    """Sanitised headers of one study's instances, in Unicode (ISO_IR 192), without pixels; at least one.

    All name one patient, or none where the files name several.
    """

    instances: tuple[Dataset, ...]

    @property
    def first(self) -> Dataset:
        return self.instances[0]

    @property
    def lossy_compression(self) -> Dataset:
        """What images derived from these must say of it (PS3.3 C.7.6.1.1.5): once lossy, always lossy; else empty."""
        lossy = next((header for header in self.instances if "LossyImageCompression" in header), Dataset())
        return Dataset({element.tag: element for element in lossy if element.keyword in _LOSSY})


def read_source_headers(
    paths: Iterable[Path], series_instance_uid: str | None = None, instances: Collection[str] | None = None
) -> SourceHeaders:
    """Sanitised headers of the readable DICOM files among `paths` of one series, or of the first one's study.

    In the order of their SOP Instance UIDs, whatever the order of the files: results shall not depend on it, nor on
    what arrived later, so `instances` limits them to what was analysed. For a refused study any of its files will do.
    Raises UnreadableInstance when one of `instances` or, without them, every file cannot be used.
    """
    # What breaks the standard but names patient or study stays as the PACS knows it; pydicom would warn of it.
    with disable_value_validation():
        headers = [header for path in paths if (header := _read(path)) is not None]
    if series_instance_uid is not None:
        headers = [header for header in headers if header.SeriesInstanceUID == series_instance_uid]
    if instances is not None:
        headers = [header for header in headers if header.SOPInstanceUID in instances]
    if not headers:
        raise UnreadableInstance("no file has the headers a result needs")
    study_instance_uid = headers[0].StudyInstanceUID
    headers = sorted(
        (header for header in headers if header.StudyInstanceUID == study_instance_uid),
        key=lambda header: str(header.SOPInstanceUID),
    )
    _name_one_patient_and_study(headers)
    of_study = {str(header.SOPInstanceUID): header for header in headers}
    if instances is not None and len(of_study) < len(instances):
        raise UnreadableInstance("not every image that was analysed can be read again")
    return SourceHeaders(tuple(of_study.values()))


def text_of(header: Dataset, keyword: str) -> str:
    r"""The text of a header, empty where it is missing.

    An element of one value holds no backslash (PS3.5 6.2); where a sender wrote one, pydicom takes it for two values.
    """
    value = header.get(keyword)
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")


def _name_one_patient_and_study(headers: Collection[Dataset]) -> None:
    """What some images leave out the others tell. Of several patients none is named: their study is refused.

    Its results hold nothing that belonged to one of them, and shall not reach the wrong one.
    """
    one = is_one_patient({patient_of(header) for header in headers})
    for keyword in (*_REQUIRED_OF_PATIENT, *_OPTIONAL_OF_PATIENT):
        told = next((header[keyword].value for header in headers if one and header.get(keyword)), "")
        for header in headers:
            if told or keyword not in _OPTIONAL_OF_PATIENT:
                setattr(header, keyword, told)
            else:
                header.pop(keyword, None)
    for keyword in (*_REQUIRED_OF_STUDY, *_OPTIONAL_OF_STUDY):
        told = next((header[keyword].value for header in headers if one and header.get(keyword)), None)
        for header in headers:
            if told is not None and not header.get(keyword):
                setattr(header, keyword, told)


def _read(path: Path) -> Dataset | None:
    """The sanitised header, or None for a file that no result can refer to."""
    try:
        ds = dcmread(path, stop_before_pixels=True, specific_tags=list(_READ))
        named = all(is_safe_uid(str(ds.get(keyword, ""))) for keyword in _UIDS[:4])
        # A result can only refer to an instance whose class a PACS knows.
        return _sanitised(ds) if named and UID(ds.SOPClassUID).name != ds.SOPClassUID else None
    # Where bytes are damaged pydicom raises nearly anything (struct.error, BytesLengthException, TypeError), often only
    # when a value is looked at. Such a file is no source; the others of its study are.
    except Exception:  # noqa: BLE001  # edge: bytes that anybody may have sent
        return None


def _sanitised(source: Dataset) -> Dataset:
    header = Dataset()
    declared = declared_character_sets(source)
    for keyword in _UIDS:
        if is_safe_uid(uid := str(source.get(keyword, ""))):
            setattr(header, keyword, uid)
    for keyword in (*_REQUIRED_TEXT, *_OPTIONAL_TEXT):
        value = decode_text(_raw_bytes(source, keyword), declared)
        if value or keyword in _REQUIRED_TEXT:
            setattr(header, keyword, value)
    header.Modality = header.get("Modality") or "OT"
    for keyword in _DATES:
        setattr(header, keyword, _date(_ascii(source, keyword)))
    header.StudyTime = _time(_ascii(source, "StudyTime"))
    # Defined terms of (0010,0040); others ("U", "MALE") make a result invalid.
    sex = _ascii(source, "PatientSex").upper()
    header.PatientSex = sex if sex in {"M", "F", "O"} else ""
    if re.fullmatch(r"\d{3}[DWMY]", age := _ascii(source, "PatientAge")):
        header.PatientAge = age
    if not _UTC_OFFSET.fullmatch(header.get("TimezoneOffsetFromUTC", "")):
        header.pop("TimezoneOffsetFromUTC", None)
    header.update(_lossy(source))
    header.SpecificCharacterSet = CHARACTER_SET
    return header


def _lossy(source: Dataset) -> Dataset:
    """Whether the image ever lost anything by compression, how often and how much (PS3.3 C.7.6.1.1.5); empty if not.

    Ratios and methods stand beside each other; what was done in the file itself the transfer syntax tells.
    """
    told = Dataset()
    method = _LOSSY_METHODS.get(UID(str(source.file_meta.get("TransferSyntaxUID", ""))))
    if _ascii(source, "LossyImageCompression") != "01" and method is None:
        return told
    told.LossyImageCompression = "01"
    ratios = _parts(source, "LossyImageCompressionRatio")
    methods = _parts(source, "LossyImageCompressionMethod") or [method or ""]
    if all(_RATIO.fullmatch(ratio) for ratio in ratios) and len(ratios) == len(methods):
        told.LossyImageCompressionRatio = ratios
    if all(_TERM.fullmatch(term) for term in methods):
        told.LossyImageCompressionMethod = methods
    return told


def _parts(source: Dataset, keyword: str) -> list[str]:
    return [part for part in map(str.strip, _ascii(source, keyword).split("\\")) if part]


def _raw_bytes(source: Dataset, keyword: str) -> bytes:
    """The value field as it stands in the file, before pydicom decodes it by the declared character set."""
    if keyword not in source:
        return b""
    value = source.get_item(Tag(keyword)).value
    return value if isinstance(value, bytes) else str(value or "").encode()


def _ascii(source: Dataset, keyword: str) -> str:
    return _raw_bytes(source, keyword).decode("ascii", errors="replace").strip(" \0")


def _date(text: str) -> str:
    """YYYYMMDD, or empty where the text is no date of the calendar; the old form YYYY.MM.DD is understood."""
    text = text.replace(".", "")
    # Eight digits, which strptime does not ask for.
    if not re.fullmatch(r"\d{8}", text):
        return ""
    try:
        datetime.strptime(text, "%Y%m%d")  # noqa: DTZ007 - a DICOM date has no zone
    except ValueError:
        return ""
    return text


def _time(text: str) -> str:
    """HH[MM[SS[.FFFFFF]]] (PS3.5 6.2), or empty; the old form with colons is understood."""
    text = text.replace(":", "")
    return text if re.fullmatch(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", text) else ""
