"""Results to their destinations by C-STORE, and the question whether a destination is there by C-ECHO."""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import pydicom.uid
from pydicom.dataset import Dataset
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import AE, Association
from pynetdicom.sop_class import Verification

from dicom_gateway.deliver.profile import SOP_CLASSES, proposed_contexts, ways_of_sending
from dicom_gateway.errors import PeerRefused, PeerUnreachable
from dicom_gateway.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_gateway.settings import UNCOMPRESSED, Destination, ResultObject
from dicom_gateway.store.schema import ObjectOutcome

CONNECTION_TIMEOUT_S = 10
RESPONSE_TIMEOUT_S = 60
_REJECTED_PERMANENT = 1
_SUCCESS = 0x0000
_DUPLICATE_SOP_INSTANCE = 0x0111
SOP_CLASS_NOT_SUPPORTED = 0x0122
_OUT_OF_RESOURCES = range(0xA700, 0xA800)
_CONTEXT_REFUSED = "presentation context refused"
_NOTHING_TAKEN = "the destination takes none of the objects it is to be given"
_WARNING = range(0xB000, 0xC000)

Encode = Callable[[ResultObject], Sequence[Dataset]]
"""The objects of one kind, made when they are about to be sent; empty where the study has nothing of the kind."""


def send(encode: Encode, destination: Destination, *, calling_ae_title: str) -> tuple[ObjectOutcome, ...]:
    """Store what the destination's profile names on one association; it has acknowledged each when this returns.

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
    with _association(destination, calling_ae_title, contexts) as association:
        delivery = _Delivery(association, destination, encode)
        outcomes = tuple(map(delivery.outcome, destination.objects))
    if delivery.failures:
        raise PeerRefused("; ".join(f"{name}: {reason}" for name, reason in delivery.failures.items()))
    if all(outcome.sent_as is None for outcome in outcomes):
        reasons = dict.fromkeys(outcome.reason for outcome in outcomes if outcome.reason)
        raise PeerRefused(f"{_NOTHING_TAKEN}: {'; '.join(reasons)}")
    return outcomes


def echo(destination: Destination, *, calling_ae_title: str) -> None:
    """C-ECHO. Raises PeerUnreachable or PeerRefused when the destination does not answer with success."""
    with _association(destination, calling_ae_title, {str(Verification): (ImplicitVRLittleEndian,)}) as association:
        require_success(_asked(association.send_c_echo))


class _ClassRefused(Exception):
    """The destination does not take this SOP class."""


class _Delivery:
    """One attempt on one association: each kind at most once, whatever it stands in for."""

    def __init__(self, association: Association, destination: Destination, encode: Encode) -> None:
        self.failures: dict[ResultObject, str] = {}
        self._association = association
        self._destination = destination
        self._encode = encode
        self._stored: dict[ResultObject, int] = {}
        self._refused: dict[str, str] = {}
        self._accepted: dict[str, set[UID]] = {}
        for context in association.accepted_contexts:
            self._accepted.setdefault(str(context.abstract_syntax), set()).add(context.transfer_syntax[0])

    def outcome(self, name: ResultObject) -> ObjectOutcome:
        """Send a kind of the profile in the first way the destination takes it."""
        reason = None
        for way in ways_of_sending(name):
            try:
                return ObjectOutcome(name=name, sent_as=way, instances=self._store(way), reason=reason)
            except _ClassRefused as refusal:
                reason = reason or str(refusal)
            except PeerRefused as refusal:
                self.failures[name] = str(refusal)
                reason = str(refusal)
                break
        return ObjectOutcome(name=name, sent_as=None, instances=0, reason=reason)

    def _store(self, way: ResultObject) -> int:
        """How many objects of this kind the destination has now."""
        if way not in self._stored:
            sop_class = SOP_CLASSES[way]
            if sop_class not in self._accepted:
                raise _ClassRefused(self._refused.get(sop_class, _CONTEXT_REFUSED))
            data_sets = self._encode(way)
            for data_set in data_sets:
                self._store_one(data_set, sop_class)
            self._stored[way] = len(data_sets)
        return self._stored[way]

    def _store_one(self, data_set: Dataset, sop_class: str) -> None:
        wanted = (getattr(pydicom.uid, keyword) for keyword in self._destination.transfer_syntaxes)
        syntax = next(uid for uid in wanted if uid in self._accepted[sop_class])
        prepared = _prepared(data_set, syntax, self._destination.character_set)
        response = _asked(self._association.send_c_store, prepared)
        if response.get("Status") == SOP_CLASS_NOT_SUPPORTED:
            del self._accepted[sop_class]
            self._refused[sop_class] = f"status 0x{SOP_CLASS_NOT_SUPPORTED:04X}"
            raise _ClassRefused(self._refused[sop_class])
        require_success(response)


@contextmanager
def _association(
    destination: Destination, calling_ae_title: str, contexts: Mapping[str, Sequence[UID]]
) -> Iterator[Association]:
    """An association on which at least one of the SOP classes was accepted."""
    entity = AE(ae_title=calling_ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = entity.acse_timeout = CONNECTION_TIMEOUT_S
    entity.dimse_timeout = entity.network_timeout = RESPONSE_TIMEOUT_S
    for sop_class, transfer_syntaxes in contexts.items():
        # One context a syntax: with several in one, peers that know them all still choose implicit.
        for syntax in transfer_syntaxes:
            entity.add_requested_context(sop_class, syntax)
    try:
        association = entity.associate(destination.host, destination.port, ae_title=destination.ae_title)
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
        raise PeerUnreachable("no connection, or the association was aborted")
    answer = association.acceptor.primitive
    reason = f"association rejected (source {answer.result_source}, reason {answer.diagnostic})"
    raise PeerRefused(reason) if answer.result == _REJECTED_PERMANENT else PeerUnreachable(reason)


def _prepared(data_set: Dataset, transfer_syntax: UID, character_set: str) -> Dataset:
    """The same elements as the destination wants them encoded, without memory of how they were before."""
    prepared = Dataset()
    for element in data_set:
        # Not the element itself: assigning to a keyword changes the element that is there.
        prepared.add(copy(element))
    prepared.file_meta = deepcopy(data_set.file_meta)
    prepared.SpecificCharacterSet = character_set
    if transfer_syntax.keyword in UNCOMPRESSED:
        prepared.file_meta.TransferSyntaxUID = transfer_syntax
    else:
        prepared.compress(transfer_syntax, generate_instance_uid=False)
    return prepared


def _asked(request: Callable[..., Dataset], *arguments: Any) -> Dataset:
    """The peer's response; pynetdicom has a RuntimeError for an association that has ended by then."""
    try:
        return request(*arguments)
    except RuntimeError as error:
        raise PeerUnreachable("the association ended before everything was sent") from error


def require_success(response: Dataset) -> None:
    """Raises PeerUnreachable for a C-STORE or C-ECHO response that another attempt may better, else PeerRefused."""
    if "Status" not in response:
        raise PeerUnreachable("no answer, or an abort")
    status = int(response.Status)
    # "Duplicate" is success here: our UIDs are derived from the content, so it has this very object.
    if status in (_SUCCESS, _DUPLICATE_SOP_INSTANCE) or status in _WARNING:
        return
    if status in _OUT_OF_RESOURCES:
        raise PeerUnreachable(f"out of resources (status 0x{status:04X})")
    raise PeerRefused(f"status 0x{status:04X}")
