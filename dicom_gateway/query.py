"""How many images of a study a sender has, asked by C-FIND."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pynetdicom import Association
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as FIND

from dicom_gateway.errors import PeerRefused, PeerUnreachable
from dicom_gateway.requestor import HANDLERS, requestor, tls_arguments
from dicom_gateway.settings import Source

CONNECTION_TIMEOUT_S = 5
RESPONSE_TIMEOUT_S = 10
# Of the whole question, both levels, however slowly the responses drip.
ANSWER_WITHIN_S = 15.0
_MAXIMUM_MATCHES = 10_000
_SUCCESS = 0x0000
_PENDING = (0xFF00, 0xFF01)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCount:
    """What a source says of a study: CT images by Series Instance UID, or where it counts no series, all instances.

    `total` counts whatever the source has, also what we never take; `modalities` are those of the study, where told.
    """

    series: Mapping[str, int] = field(default_factory=dict)
    total: int | None = None
    modalities: frozenset[str] = frozenset()


def ask(source: Source, study_instance_uid: str, *, calling_ae_title: str) -> SourceCount:
    """C-FIND at SERIES level, at IMAGE level for series that are not counted there; at STUDY level without any series.

    PS3.4 C.6.2.1: only the unique keys must be supported, the numbers are optional. Raises PeerUnreachable or
    PeerRefused when there is no answer.
    """
    end = time.monotonic() + ANSWER_WITHIN_S
    with _association(source, calling_ae_title) as association:

        def find(level: str, **keys: str) -> list[Dataset]:
            return list(_find(association, level, study_instance_uid, keys, end))

        found = find("SERIES", SeriesInstanceUID="", Modality="", NumberOfSeriesRelatedInstances="")
        ct = {_text(one, "SeriesInstanceUID"): one for one in found if _text(one, "Modality") in ("CT", "")}
        series = {
            uid: _number(one, "NumberOfSeriesRelatedInstances")
            or len(find("IMAGE", SeriesInstanceUID=uid, SOPInstanceUID=""))
            for uid, one in ct.items()
            if uid
        }
        if any(series.values()):
            return SourceCount(series=series)
        studies = find("STUDY", ModalitiesInStudy="", NumberOfStudyRelatedInstances="")
    if len(studies) != 1:
        return SourceCount()
    modalities = frozenset(_text(studies[0], "ModalitiesInStudy").split("\\"))
    return SourceCount(total=_number(studies[0], "NumberOfStudyRelatedInstances") or None, modalities=modalities)


@contextmanager
def _association(source: Source, calling_ae_title: str) -> Iterator[Association]:
    entity = requestor(
        calling_ae_title, connection_timeout_s=CONNECTION_TIMEOUT_S, response_timeout_s=RESPONSE_TIMEOUT_S
    )
    entity.add_requested_context(FIND)
    try:
        association = entity.associate(
            source.host,
            source.port,
            ae_title=source.called_ae_title,
            tls_args=tls_arguments(source),
            evt_handlers=HANDLERS,
        )
    except (OSError, UnicodeError) as error:
        raise PeerUnreachable("the host name cannot be resolved") from error
    if association.is_rejected:
        raise PeerRefused("association rejected")
    if not association.is_established:
        raise PeerUnreachable("no connection, or no query is accepted")
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _find(
    association: Association, level: str, study_instance_uid: str, keys: Mapping[str, str], end: float
) -> Iterator[Dataset]:
    """Matches of one study. Raises PeerUnreachable when they do not all come before `end`, monotonic s."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    identifier.StudyInstanceUID = study_instance_uid
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    try:
        responses = association.send_c_find(identifier, FIND)
        for number, (response, match) in enumerate(responses):
            if time.monotonic() > end or number > _MAXIMUM_MATCHES:
                association.abort()
                raise PeerUnreachable("the answer takes too long")
            status = response.get("Status")
            if status is None:
                raise PeerUnreachable("no answer, or an abort")
            if status in _PENDING and match is not None and _text(match, "StudyInstanceUID") == study_instance_uid:
                yield match
            elif status not in (*_PENDING, _SUCCESS):
                raise PeerRefused(f"status 0x{int(status):04X}")
    except (RuntimeError, ValueError) as error:
        raise PeerUnreachable("the association ended before the answer") from error


def _text(match: Dataset, keyword: str) -> str:
    """The value as text, several parted by a backslash; pydicom raises for some values that are no such value."""
    try:
        value = match.get(keyword)
    except (ValueError, TypeError, NotImplementedError):
        return ""
    parts = value if isinstance(value, MultiValue) else [value]
    return "\\".join("" if part is None else str(part).strip() for part in parts)


def _number(match: Dataset, keyword: str) -> int:
    """The number; 0 where it is missing or none."""
    text = _text(match, keyword)
    return int(text) if re.fullmatch("[0-9]{1,12}", text) else 0
