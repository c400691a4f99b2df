"""Results to their destinations by C-STORE, and the question whether a destination is there by C-ECHO."""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pydicom.uid
from pydicom.dataset import Dataset
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import Association
from pynetdicom.sop_class import Verification

from dicom_gateway.deliver.attempt import Encode, prepared, require_taken, store_all
from dicom_gateway.deliver.profile import proposed_contexts
from dicom_gateway.errors import PeerRefused, PeerUnreachable
from dicom_gateway.requestor import HANDLERS, requestor, tls_arguments
from dicom_gateway.settings import Destination
from dicom_gateway.store.schema import ObjectOutcome

CONNECTION_TIMEOUT_S = 10
RESPONSE_TIMEOUT_S = 60
_REJECTED_PERMANENT = 1
_CONTEXT_REFUSED = "presentation context refused"


def send(
    encode: Encode,
    destination: Destination,
    *,
    calling_ae_title: str,
    on_stored: Callable[[Dataset], None] = lambda _data_set: None,
) -> tuple[ObjectOutcome, ...]:
    """Store what the destination's profile names on one association; it has acknowledged each when this returns.

    `on_stored` is given each object that it has acknowledged, as it was sent.

    A kind whose class it refuses is sent as the first fallback that it takes, else left out: the outcomes say so, one
    for each kind of the profile. `encode` must give the same objects each time: another attempt sends all of them
    again, and the destination knows them by their UIDs.

    Raises PeerUnreachable where another attempt may succeed: a host name that cannot be resolved, no connection, a
    transient rejection, an abort or silence, out of resources (0xA7xx). Raises PeerRefused when it takes nothing at
    all, and, after the other kinds were sent, for every other "no" to one of them.
    """
    contexts = {
        sop_class: tuple(getattr(pydicom.uid, keyword) for keyword in keywords)
        for sop_class, keywords in proposed_contexts(destination).items()
    }
    with association_with(destination, calling_ae_title, contexts) as association:
        accepted: dict[str, set[UID]] = {}
        for context in association.accepted_contexts:
            accepted.setdefault(str(context.abstract_syntax), set()).add(context.transfer_syntax[0])

        def store(data_set: Dataset) -> None:
            sop_class = str(data_set.SOPClassUID)
            syntax = next(uid for uid in contexts[sop_class] if uid in accepted[sop_class])
            changed = prepared(data_set, syntax, destination.character_set)
            require_success(_asked(association.send_c_store, changed))
            on_stored(changed)

        refused = {sop_class: _CONTEXT_REFUSED for sop_class in contexts if sop_class not in accepted}
        return store_all(destination.objects, encode, store, refused)


def echo(destination: Destination, *, calling_ae_title: str) -> None:
    """C-ECHO. Raises PeerUnreachable or PeerRefused when the destination does not answer with success."""
    with association_with(destination, calling_ae_title, {str(Verification): (ImplicitVRLittleEndian,)}) as association:
        require_success(_asked(association.send_c_echo))


@contextmanager
def association_with(
    destination: Destination, calling_ae_title: str, contexts: Mapping[str, Sequence[UID]]
) -> Iterator[Association]:
    """An association on which at least one of the SOP classes was accepted.

    Raises PeerUnreachable or PeerRefused where there is none, ConfigurationError for TLS files that cannot be used.
    """
    entity = requestor(
        calling_ae_title, connection_timeout_s=CONNECTION_TIMEOUT_S, response_timeout_s=RESPONSE_TIMEOUT_S
    )
    for sop_class, transfer_syntaxes in contexts.items():
        # One context a syntax: with several in one, peers that know them all still choose implicit.
        for syntax in transfer_syntaxes:
            entity.add_requested_context(sop_class, syntax)
    try:
        association = entity.associate(
            destination.host,
            destination.port,
            ae_title=destination.ae_title,
            tls_args=tls_arguments(destination),
            evt_handlers=HANDLERS,
        )
    except (socket.gaierror, UnicodeError) as error:
        raise PeerUnreachable("the host name cannot be resolved") from error
    if not association.is_established:
        _raise_why_not(association)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _raise_why_not(association: Association) -> None:
    if association.rejected_contexts:
        # Where every context is refused, pynetdicom ends the association by itself.
        raise PeerRefused(f"every {_CONTEXT_REFUSED}")
    if not association.is_rejected:
        raise PeerUnreachable("no connection (or no TLS with it), or the association was aborted")
    answer = association.acceptor.primitive
    reason = f"association rejected (source {answer.result_source}, reason {answer.diagnostic})"
    raise PeerRefused(reason) if answer.result == _REJECTED_PERMANENT else PeerUnreachable(reason)


def _asked(request: Callable[..., Dataset], *arguments: Any) -> Dataset:
    """The peer's response; pynetdicom has a RuntimeError for an association that has ended by then."""
    try:
        return request(*arguments)
    except RuntimeError as error:
        raise PeerUnreachable("the association ended before everything was sent") from error


def require_success(response: Dataset) -> None:
    """Judge a C-STORE or C-ECHO response as `require_taken` does. Raises PeerUnreachable where there is none."""
    if "Status" not in response:
        raise PeerUnreachable("no answer, or an abort")
    status = int(response.Status)
    require_taken(status, f"status 0x{status:04X}")
