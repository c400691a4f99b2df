"""The DICOM port: C-ECHO and C-STORE of CT images, each durable before it is acknowledged."""

import secrets
from typing import Any

from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, EnhancedCTImageStorage, Verification

from dicom_gateway.errors import ConflictingInstance, StorageFull
from dicom_gateway.events import Event, emit
from dicom_gateway.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_gateway.receive.reception import Reception, release_study, take
from dicom_gateway.receive.statuses import StoreRefused, StoreStatus
from dicom_gateway.settings import ANY_AE_TITLE, Settings
from imaging.volume import TRANSFER_SYNTAXES as DECODED_SYNTAXES

SOP_CLASSES = (CTImageStorage, EnhancedCTImageStorage)
# What the pipeline decodes, uncompressed first; big endian is retired and nobody should start to send it.
TRANSFER_SYNTAXES = tuple(uid for uid in DECODED_SYNTAXES if uid != ExplicitVRBigEndian)
MAXIMUM_PDU_BYTES = 131072
HALF_OPEN_TIMEOUT_S = 10
IDLE_TIMEOUT_S = 60


def start_listener(reception: Reception) -> AE:
    """Start answering on the DICOM port, in threads. `shutdown()` of what it returns stops it.

    Raises OSError when the address cannot be bound.
    """
    # We keep bytes as received; whether values are nice is asked when the study is read.
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    settings = reception.settings
    entity = AE(ae_title=settings.ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_pdu_size = MAXIMUM_PDU_BYTES
    entity.maximum_associations = settings.maximum_associations
    entity.network_timeout = IDLE_TIMEOUT_S
    entity.acse_timeout = HALF_OPEN_TIMEOUT_S
    entity.dimse_timeout = IDLE_TIMEOUT_S
    entity.require_called_aet = True
    entity.require_calling_aet = _allowed_titles(settings)
    entity.add_supported_context(Verification)
    for sop_class in SOP_CLASSES:
        entity.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
    entity.start_server(
        (settings.dicom_host, settings.dicom_port),
        block=False,
        evt_handlers=[
            (evt.EVT_CONN_OPEN, _on_connection),
            (evt.EVT_REJECTED, _on_rejected, [settings]),
            (evt.EVT_C_STORE, on_store, [reception]),
            (evt.EVT_RELEASED, _on_end, [reception]),
            (evt.EVT_ABORTED, _on_end, [reception]),
            (evt.EVT_CONN_CLOSE, _on_end, [reception]),
        ],
    )
    return entity


def end_lost_associations(reception: Reception) -> None:
    """Treat associations that ended without any event as released now."""
    for association in reception.associations.ended():
        _note_end(association, reception)


def on_store(event: Any, reception: Reception) -> Dataset:
    """Answer one C-STORE request with a status of PS3.4 Table B.2-1; success only once the image is durable."""
    calling = event.assoc.requestor.ae_title.strip()
    try:
        take(event, reception, calling)
    except StoreRefused as refusal:
        return _refuse(refusal.status, refusal.comment, calling, Event.INSTANCE_REFUSED)
    except ConflictingInstance:
        return _refuse(
            StoreStatus.DUPLICATE_SOP_INSTANCE, "Stored already, with other bytes", calling, Event.INSTANCE_REFUSED
        )
    except StorageFull as full:
        return _refuse(StoreStatus.REFUSED_OUT_OF_RESOURCES, str(full), calling, Event.STORAGE_FULL)
    except Exception as error:  # noqa: BLE001  # edge: the sender always gets an answer
        emit(
            Event.INSTANCE_HANDLER_FAILED,
            level="error",
            calling_ae_title=calling,
            error=type(error).__name__,
        )
        return _answer(StoreStatus.PROCESSING_FAILURE, "Internal error")
    return _answer(StoreStatus.SUCCESS)


def _answer(status: StoreStatus, comment: str = "") -> Dataset:
    response = Dataset()
    response.Status = int(status)
    if comment:
        response.ErrorComment = comment[:64]
    return response


def _refuse(status: StoreStatus, comment: str, calling: str, event: Event) -> Dataset:
    emit(event, level="warning", calling_ae_title=calling, status=status.name, reason=comment)
    return _answer(status, comment)


def _allowed_titles(settings: Settings) -> list[str]:
    if ANY_AE_TITLE in settings.calling_ae_titles:
        return []
    if not settings.calling_ae_titles:
        emit(Event.NOBODY_MAY_SEND, level="warning", setting="calling_ae_titles")
        # pynetdicom takes an empty list for "anybody"; a title nobody can guess means nobody.
        return [secrets.token_hex(8)]
    return list(settings.calling_ae_titles)


def _on_connection(event: Any) -> None:
    # pynetdicom sets no timeout on a half-sent PDU; a silent peer would hold its place for ever.
    event.assoc.dul.socket.socket.settimeout(HALF_OPEN_TIMEOUT_S)


def _on_rejected(event: Any, settings: Settings) -> None:
    calling = str(event.assoc.requestor.primitive.calling_ae_title).strip()
    called = str(event.assoc.requestor.primitive.called_ae_title).strip()
    if called != settings.ae_title:
        reason = "called by another AE title"
    elif not settings.accepts(calling):
        reason = "calling AE title is not in calling_ae_titles"
    else:
        reason = "too many associations"
    emit(
        Event.ASSOCIATION_REFUSED,
        level="warning",
        calling_ae_title=calling,
        called_ae_title=called,
        reason=reason,
    )


def _on_end(event: Any, reception: Reception) -> None:
    _note_end(event.assoc, reception)


def _note_end(association: Any, reception: Reception) -> None:
    release_study(reception, association)
    reception.associations.close(association)
