"""Results to their destinations by C-STORE, and the question whether a destination is there by C-ECHO."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import AE, Association
from pynetdicom.sop_class import Verification

from dicom_gateway.errors import PeerRefused, PeerUnreachable
from dicom_gateway.settings import Destination

CONNECTION_TIMEOUT_S = 10
RESPONSE_TIMEOUT_S = 60
_REJECTED_PERMANENT = 1
_SUCCESS = 0x0000
_DUPLICATE_SOP_INSTANCE = 0x0111
_OUT_OF_RESOURCES = range(0xA700, 0xA800)
_CONTEXT_REFUSED = "the destination does not take this kind of object (presentation context refused)"
_WARNING = range(0xB000, 0xC000)


def send(files: Sequence[Path], destination: Destination, *, calling_ae_title: str) -> None:
    """Store `files` (PS3.10) at the destination on one association; it has acknowledged each when this returns.

    Raises PeerUnreachable where another attempt may succeed: a host name that cannot be resolved, no connection, a
    transient rejection, an abort or silence, out of resources (0xA7xx). Raises PeerRefused for every other "no".
    """
    data_sets = [dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID"]) for file in files]
    classes = {
        str(data_set.file_meta.MediaStorageSOPClassUID): data_set.file_meta.TransferSyntaxUID for data_set in data_sets
    }
    with _association(destination, calling_ae_title, classes) as association:
        for file, data_set in zip(files, data_sets, strict=True):
            _store(association, file, str(data_set.file_meta.MediaStorageSOPClassUID))


def echo(destination: Destination, *, calling_ae_title: str) -> None:
    """C-ECHO. Raises PeerUnreachable or PeerRefused when the destination does not answer with success."""
    with _association(destination, calling_ae_title, {str(Verification): ImplicitVRLittleEndian}) as association:
        _require_success(_asked(association.send_c_echo))


@contextmanager
def _association(destination: Destination, calling_ae_title: str, classes: dict[str, Any]) -> Iterator[Association]:
    entity = AE(ae_title=calling_ae_title)
    entity.connection_timeout = entity.acse_timeout = CONNECTION_TIMEOUT_S
    entity.dimse_timeout = entity.network_timeout = RESPONSE_TIMEOUT_S
    for sop_class, transfer_syntax in classes.items():
        # One context a syntax: with both in one, peers that know both still choose implicit and make us convert.
        for syntax in dict.fromkeys([transfer_syntax, ImplicitVRLittleEndian]):
            entity.add_requested_context(sop_class, syntax)
    try:
        association = entity.associate(destination.host, destination.port, ae_title=destination.ae_title)
    except (socket.gaierror, UnicodeError) as error:
        raise PeerUnreachable("the host name cannot be resolved") from error
    if not association.is_established:
        _raise_why_not(association)
    try:
        accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
        if not accepted.issuperset(classes):
            raise PeerRefused(_CONTEXT_REFUSED)
        yield association
    finally:
        if association.is_established:
            association.release()


def _raise_why_not(association: Association) -> None:
    if association.rejected_contexts:
        # Where every context is refused, pynetdicom ends the association by itself.
        raise PeerRefused(_CONTEXT_REFUSED)
    if not association.is_rejected:
        raise PeerUnreachable("no connection, or the association was aborted")
    answer = association.acceptor.primitive
    reason = f"association rejected (source {answer.result_source}, reason {answer.diagnostic})"
    raise PeerRefused(reason) if answer.result == _REJECTED_PERMANENT else PeerUnreachable(reason)


def _store(association: Association, file: Path, sop_class_uid: str) -> None:
    data_set = dcmread(file)
    accepted = {
        context.transfer_syntax[0]
        for context in association.accepted_contexts
        if str(context.abstract_syntax) == sop_class_uid
    }
    if data_set.file_meta.TransferSyntaxUID not in accepted:
        data_set = _with_syntax(data_set, ImplicitVRLittleEndian)
    _require_success(_asked(association.send_c_store, data_set))


def _asked(request: Callable[..., Dataset], *arguments: Any) -> Dataset:
    """The peer's response; pynetdicom has a RuntimeError for an association that has ended by then."""
    try:
        return request(*arguments)
    except RuntimeError as error:
        raise PeerUnreachable("the association ended before everything was sent") from error


def _with_syntax(data_set: Dataset, transfer_syntax: UID) -> Dataset:
    """The same elements without memory of how they were read, so that they are encoded anew."""
    converted = Dataset(data_set)
    converted.file_meta = data_set.file_meta
    converted.file_meta.TransferSyntaxUID = transfer_syntax
    return converted


def _require_success(response: Dataset) -> None:
    if "Status" not in response:
        raise PeerUnreachable("no answer, or an abort")
    status = int(response.Status)
    # "Duplicate" is success here: our UIDs are derived from the content, so it has this very object.
    if status in (_SUCCESS, _DUPLICATE_SOP_INSTANCE) or status in _WARNING:
        return
    if status in _OUT_OF_RESOURCES:
        raise PeerUnreachable(f"out of resources (status 0x{status:04X})")
    raise PeerRefused(f"status 0x{status:04X}")
