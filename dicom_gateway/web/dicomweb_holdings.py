"""What DICOMweb has: the received images, and the objects of each study's newest report, all files of the store."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from dicom_gateway.deliver import shelf
from dicom_gateway.events import Event, emit
from dicom_gateway.store import index
from dicom_gateway.web.dicomweb_query import Query, SearchTooBroad, matches
from dicom_gateway.web.results import dicom_objects, result_file
from dicom_gateway.web.site import Site
from imaging.source_text import in_unicode

# Always told (PS3.18 Tables 10.6.3-3 to 10.6.3-5), beside what is counted and where it is retrieved.
STUDY_ATTRIBUTES = [
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
    "TimezoneOffsetFromUTC",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
]
SERIES_ATTRIBUTES = [
    "Modality",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "RequestAttributesSequence",
]
INSTANCE_ATTRIBUTES = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "InstanceNumber",
    "Rows",
    "Columns",
    "BitsAllocated",
    "NumberOfFrames",
    "TimezoneOffsetFromUTC",
]
# Told beside them where includefield is "all".
MORE_ATTRIBUTES = {
    "study": [
        "PatientAge",
        "PatientSize",
        "PatientWeight",
        "IssuerOfPatientID",
        "OtherPatientIDs",
        "NameOfPhysiciansReadingStudy",
    ],
    "series": [
        "BodyPartExamined",
        "Laterality",
        "ProtocolName",
        "SeriesDate",
        "SeriesTime",
        "Manufacturer",
        "ManufacturerModelName",
        "StationName",
        "InstitutionName",
        "SoftwareVersions",
        "KVP",
        "SliceThickness",
        "ConvolutionKernel",
        "FrameOfReferenceUID",
    ],
    "instance": [
        "ImageType",
        "AcquisitionNumber",
        "AcquisitionDate",
        "AcquisitionTime",
        "ContentDate",
        "ContentTime",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceLocation",
        "InstanceCreationDate",
        "InstanceCreationTime",
        "CompletionFlag",
        "VerificationFlag",
    ],
}
LONGEST_SEARCH_S = 30.0
_BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_LONGEST_BINARY_BYTES = 1024
# What the index itself knows of a study, by its columns.
_INDEXED = {
    "StudyInstanceUID": "study_instance_uid",
    "PatientName": "patient_name",
    "PatientID": "patient_id",
    "StudyDate": "study_date",
    "StudyDescription": "description",
    "AccessionNumber": "accession_number",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One instance and its file."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An answer to a search: its attributes, and what it is of; the UIDs below its level are None."""

    attributes: Dataset
    study_instance_uid: str
    series_instance_uid: str | None = None
    sop_instance_uid: str | None = None


def held_instances(
    site: Site, study: index.StudyRow, series_instance_uid: str | None = None, sop_instance_uid: str | None = None
) -> list[Held]:
    """The instances of a study, of one of its series, or one of them, by series; only such whose file is there."""

    def chosen(instances: Iterable[Held]) -> list[Held]:
        wanted = {"series_instance_uid": series_instance_uid, "sop_instance_uid": sop_instance_uid}
        fitting = (h for h in instances if all(uid in (None, getattr(h, level)) for level, uid in wanted.items()))
        return [held for held in fitting if held.path.is_file()]

    received = chosen(_received(site, study))
    # Their UIDs are in the files alone.
    return received if received and sop_instance_uid is not None else received + chosen(_results(site, study))


def find_studies(site: Site, query: Query) -> Iterator[Found]:
    """Studies that match, the one heard of last first."""
    for study in _candidates(site, query):
        if by_series := _by_series(held_instances(site, study)):
            attributes = _study_attributes(by_series, query)
            if matches(attributes, query.keys):
                yield Found(attributes=attributes, study_instance_uid=study.study_instance_uid)


def find_series(site: Site, query: Query, study: index.StudyRow | None) -> Iterator[Found]:
    """Series of a study that match; of all studies for None, each then with the attributes of its study."""
    for row in _candidates(site, query) if study is None else (study,):
        by_series = _by_series(held_instances(site, row))
        above = _study_attributes(by_series, _alone(query)) if study is None and by_series else Dataset()
        for uid, held in by_series.items():
            attributes = _merged(above, _series_attributes(held, query))
            if matches(attributes, query.keys):
                yield Found(attributes=attributes, study_instance_uid=row.study_instance_uid, series_instance_uid=uid)


def find_instances(
    site: Site, query: Query, study: index.StudyRow | None, series_instance_uid: str | None = None
) -> Iterator[Found]:
    """Instances of a study, or of one of its series, that match; of all studies for None.

    Each has the attributes of its series and study where the search is not within one.
    """
    for row in _candidates(site, query) if study is None else (study,):
        by_series = _by_series(held_instances(site, row, series_instance_uid))
        above = _study_attributes(by_series, _alone(query)) if study is None and by_series else Dataset()
        for uid, held in by_series.items():
            of_series = _series_attributes(held, _alone(query)) if series_instance_uid is None else Dataset()
            for instance in held:
                attributes = _merged(above, of_series, _instance_attributes(instance, query))
                if matches(attributes, query.keys):
                    yield Found(
                        attributes=attributes,
                        study_instance_uid=row.study_instance_uid,
                        series_instance_uid=uid,
                        sop_instance_uid=instance.sop_instance_uid,
                    )


def read_metadata(held: Held) -> Dataset | None:
    """Every attribute but long binary ones such as the pixels; None where the file cannot be read."""
    header = _read(held.path, None)
    if header is None:
        return None
    for element in [e for e in header if e.VR in _BINARY and e.value and len(e.value) > _LONGEST_BINARY_BYTES]:
        del header[element.tag]
    return header


def read_transfer_syntax(held: Held) -> str | None:
    """Transfer Syntax UID of the file; None where it cannot be read."""
    try:
        return str(read_file_meta_info(held.path).TransferSyntaxUID)
    except (OSError, InvalidDicomError, AttributeError) as error:
        emit(Event.STORED_FILE_UNREADABLE, level="error", error=type(error).__name__)
        return None


def _alone(query: Query) -> Query:
    """The same for a level that is not searched: what is looked for must not be found in another instance."""
    return Query(all_fields=query.all_fields)


def _merged(*levels: Dataset) -> Dataset:
    merged = Dataset()
    for attributes in levels:
        merged.update(attributes)
    return merged


def _received(site: Site, study: index.StudyRow) -> Iterator[Held]:
    for row in index.list_instances(site.engine, study.study_instance_uid, study.revision):
        yield Held(
            study_instance_uid=row.study_instance_uid,
            series_instance_uid=row.series_instance_uid,
            sop_instance_uid=row.sop_instance_uid,
            path=site.settings.data_dir / row.path,
        )


def _results(site: Site, study: index.StudyRow) -> Iterator[Held]:
    """The objects of the newest report: those kept for DICOMweb by its profile, else those that every report has."""
    report = index.get_report(site.engine, study.study_instance_uid)
    if report is None:
        return
    kept = shelf.kept_files(site.settings.data_dir / report.folder)
    files = kept or [result_file(site.settings, report, name) for name in dicom_objects(site.settings, report)]
    found: set[str] = set()
    for path in files:
        header = _read(path, ["SeriesInstanceUID", "SOPInstanceUID"])
        sop_instance_uid = "" if header is None else str(header.get("SOPInstanceUID", ""))
        # Two profiles may want the same object.
        if header is not None and sop_instance_uid not in found:
            found.add(sop_instance_uid)
            yield Held(
                study_instance_uid=study.study_instance_uid,
                series_instance_uid=str(header.get("SeriesInstanceUID", "")),
                sop_instance_uid=sop_instance_uid,
                path=path,
            )


def _candidates(site: Site, query: Query) -> Iterator[index.StudyRow]:
    """Studies that the index does not exclude, so that no header is read of those.

    Raises SearchTooBroad when reading what it does not exclude has taken LONGEST_SEARCH_S.
    """
    ends = time.monotonic() + LONGEST_SEARCH_S
    exact = {
        column: key.values()[0]
        for keyword, column in _INDEXED.items()
        if column in ("patient_id", "accession_number") and (key := query.key(keyword)) and key.is_exact
    }
    uids = query.key("StudyInstanceUID")
    keys = [key for key in query.keys if key.keyword in _INDEXED]
    for row in index.match_studies(site.engine, study_instance_uid=uids.values() if uids else None, **exact):
        if time.monotonic() > ends:
            raise SearchTooBroad
        if matches(_indexed(row), keys):
            yield row


def _indexed(row: index.StudyRow) -> Dataset:
    known = Dataset()
    with disable_value_validation():
        for keyword, column in _INDEXED.items():
            setattr(known, keyword, getattr(row, column))
    return known


def _by_series(instances: Sequence[Held]) -> dict[str, list[Held]]:
    by_series: dict[str, list[Held]] = {}
    for held in instances:
        by_series.setdefault(held.series_instance_uid, []).append(held)
    return by_series


def _study_attributes(by_series: dict[str, list[Held]], query: Query) -> Dataset:
    firsts = [_header(held[0], (*_wanted("study", STUDY_ATTRIBUTES, query), "Modality")) for held in by_series.values()]
    attributes = next((first for first in firsts if "PatientID" in first), firsts[0])
    modalities = sorted({str(first.get("Modality") or "") for first in firsts} - {""})
    if "Modality" in attributes:
        del attributes.Modality
    attributes.ModalitiesInStudy = modalities
    attributes.NumberOfStudyRelatedSeries = len(by_series)
    attributes.NumberOfStudyRelatedInstances = sum(map(len, by_series.values()))
    attributes.InstanceAvailability = "ONLINE"
    return attributes


def _series_attributes(held: Sequence[Held], query: Query) -> Dataset:
    attributes = _header(held[0], _wanted("series", SERIES_ATTRIBUTES, query))
    attributes.NumberOfSeriesRelatedInstances = len(held)
    return attributes


def _instance_attributes(held: Held, query: Query) -> Dataset:
    attributes = _header(held, _wanted("instance", INSTANCE_ATTRIBUTES, query))
    attributes.InstanceAvailability = "ONLINE"
    return attributes


def _wanted(level: str, always: Sequence[str], query: Query) -> tuple[str, ...]:
    searched = (key.keyword for key in query.keys)
    more = MORE_ATTRIBUTES[level] if query.all_fields else ()
    return tuple(dict.fromkeys((*always, *searched, *query.fields, *more)))


def _header(held: Held, keywords: Sequence[str]) -> Dataset:
    """The wanted attributes; of a file that cannot be read, its UIDs."""
    header = _read(held.path, keywords)
    if header is None:
        header = Dataset()
        header.StudyInstanceUID, header.SeriesInstanceUID = held.study_instance_uid, held.series_instance_uid
        header.SOPInstanceUID = held.sop_instance_uid
    return header


def _read(path: Path, keywords: Sequence[str] | None) -> Dataset | None:
    """The attributes that are there, all but the pixels for None, in Unicode; None where the file cannot be read."""
    wanted = None if keywords is None else list(keywords)
    # What senders wrote is told as it is, valid or not.
    with disable_value_validation():
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=wanted)
        except Exception as error:  # noqa: BLE001  # edge: one damaged file must not hide the others
            emit(Event.STORED_FILE_UNREADABLE, level="error", error=type(error).__name__)
            return None
        # Unicode, which DICOM JSON is in (PS3.18 F.2.1.1).
        return in_unicode(header)
