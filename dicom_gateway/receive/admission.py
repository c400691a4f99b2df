"""Who may open an association, how many at a time, and which presentation contexts they get."""

import hmac
import ipaddress
import threading
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from pydicom.uid import ExplicitVRBigEndian
from pynetdicom.sop_class import CTImageStorage, EnhancedCTImageStorage, Verification

from dicom_gateway.errors import StorageFull
from dicom_gateway.events import Event, emit
from dicom_gateway.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_gateway.origin import origin_of
from dicom_gateway.receive import commitment, pdu, performed
from dicom_gateway.receive.pdu import AssociateRequest, ContextResult, Rejection, UserIdentity
from dicom_gateway.receive.reception import Reception
from dicom_gateway.settings import ANY_AE_TITLE
from dicom_gateway.wrong_attempts import WrongAttempts
from imaging.volume import TRANSFER_SYNTAXES as DECODED_SYNTAXES

SOP_CLASSES: tuple[str, ...] = (str(CTImageStorage), str(EnhancedCTImageStorage))
# What the pipeline decodes, uncompressed first; big endian is retired and nobody should start to send it.
TRANSFER_SYNTAXES = tuple(str(uid) for uid in DECODED_SYNTAXES if uid != ExplicitVRBigEndian)
MAXIMUM_PDU_BYTES = 131072
# Of what carries no image.
MESSAGE_SOP_CLASSES = (str(Verification), commitment.SOP_CLASS_UID, performed.SOP_CLASS_UID)
MESSAGE_SYNTAXES = TRANSFER_SYNTAXES[:2]
# 128 contexts of three syntaxes each fit; what is longer was sent to fill the memory.
_REMEMBERED, _LONGEST_REMEMBERED_BYTES = 64, 16 << 10


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted association: abstract and transfer syntax of each context id, and the PDU that says so.

    `maximum_pdu_bytes` is what the peer takes, 0 for any.
    """

    calling_ae_title: str
    contexts: Mapping[int, tuple[str, str]]
    maximum_pdu_bytes: int
    encoded: bytes


@dataclass(frozen=True, slots=True)
class _Negotiated:
    """What matters of the items of a request, with the encoded results of its contexts and our user information."""

    application_context: str
    user_identity: UserIdentity | None
    maximum_pdu_bytes: int
    contexts: Mapping[int, tuple[str, str]]
    results: bytes
    user_information: bytes


class Admission:
    """Decides about association requests and knows which associations are open."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._settings = reception.settings
        # Origin and calling AE title of each.
        self._open: dict[Hashable, tuple[str, str]] = {}
        self._free_at: dict[str, float] = {}
        self._wrong_passcodes = WrongAttempts()
        # A sender asks for the same each time.
        self._negotiated: dict[bytes, _Negotiated] = {}
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def answer(self, association: Hashable, request: AssociateRequest, address: str) -> Accepted | Rejection:
        """Accept or reject a request; an accepted `association` counts until `end`.

        Raises ProtocolError for a request that is not well formed.
        """
        # First, as what strangers propose may take a tenth of a second to read.
        refused = self._unwelcome(request, address)
        if refused is None:
            checks_identity = self._settings.dicom_passcodes_file is not None
            answer = self._negotiated.get(request.items) or _negotiate(request.items, checks_identity)
            stores = any(abstract_syntax in SOP_CLASSES for abstract_syntax, _ in answer.contexts.values())
            refused = (
                self._wrong_protocol(request, answer.application_context)
                or self._unknown_user(answer.user_identity, address)
                or (self._no_room() if stores else None)
                or self._too_many(association, request.calling_ae_title, origin_of(address))
            )
            if refused is None:
                self._remember(request.items, answer)
                accepted = pdu.encode_associate_accept(request, answer.results, answer.user_information)
                return Accepted(request.calling_ae_title, answer.contexts, answer.maximum_pdu_bytes, accepted)
        rejection, reason = refused
        emit(
            Event.ASSOCIATION_REFUSED,
            level="warning",
            calling_ae_title=request.calling_ae_title,
            called_ae_title=request.called_ae_title,
            address=address,
            reason=reason,
        )
        return rejection

    def end(self, association: Hashable) -> None:
        """The association is over, whether it was accepted or not."""
        with self._lock:
            self._open.pop(association, None)

    def pace(self, association: Hashable, received_bytes: int) -> None:
        """Let an address that sends faster than it may wait; the others are read meanwhile."""
        limit_mb_per_s = self._settings.maximum_mb_per_s_per_address
        if limit_mb_per_s is None:
            return
        with self._lock:
            origin, _ = self._open[association]
            now = time.monotonic()
            self._free_at = {other: free_at for other, free_at in self._free_at.items() if free_at > now}
            free_at = self._free_at.get(origin, now) + received_bytes / (limit_mb_per_s * 1e6)
            self._free_at[origin] = free_at
        self._closed.wait(min(free_at - now, threading.TIMEOUT_MAX))

    def close(self) -> None:
        """Let nobody wait any longer: the port is closed."""
        self._closed.set()

    def may_come_from(self, address: str) -> bool:
        """Whether any AE title may send from there; this machine asks whether the port is open."""
        settings, there = self._settings, ipaddress.ip_address(address)
        if there.is_loopback:
            return True
        titles = set(settings.calling_ae_titles) or {ANY_AE_TITLE}
        if ANY_AE_TITLE in titles:
            titles |= settings.calling_ae_networks.keys()
        allowed = [settings.calling_ae_networks.get(title, settings.calling_networks) for title in titles]
        return any(not networks or any(there in network for network in networks) for networks in allowed)

    def _remember(self, items: bytes, answer: _Negotiated) -> None:
        if len(items) <= _LONGEST_REMEMBERED_BYTES and items not in self._negotiated:
            with self._lock:
                self._negotiated[items] = answer
                if len(self._negotiated) > _REMEMBERED:
                    del self._negotiated[next(iter(self._negotiated))]

    def _wrong_protocol(self, request: AssociateRequest, application_context: str) -> tuple[Rejection, str] | None:
        if not request.protocol_version & 1:
            return Rejection.PROTOCOL_VERSION_NOT_SUPPORTED, "another version of the protocol"
        if application_context != pdu.APPLICATION_CONTEXT:
            return Rejection.APPLICATION_CONTEXT_NOT_SUPPORTED, "another application context"
        return None

    def _unwelcome(self, request: AssociateRequest, address: str) -> tuple[Rejection, str] | None:
        settings, calling = self._settings, request.calling_ae_title
        if request.called_ae_title != settings.ae_title:
            return Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED, "called by another AE title"
        if not settings.accepts(calling):
            return Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED, "calling AE title is not in calling_ae_titles"
        networks = settings.calling_ae_networks.get(calling, settings.calling_networks)
        if networks and not any(ipaddress.ip_address(address) in network for network in networks):
            return Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED, "the address is not one that may send"
        return None

    def _unknown_user(self, identity: UserIdentity | None, address: str) -> tuple[Rejection, str] | None:
        passcodes = self._settings.dicom_passcodes()
        if passcodes is None:
            return None
        now = time.monotonic()
        if self._wrong_passcodes.wait_s(address, now):
            return Rejection.LOCAL_LIMIT_EXCEEDED, "too many wrong user identities from this address"
        if not _is_known(identity, passcodes):
            self._wrong_passcodes.add(address, now)
            return Rejection.NOT_RECOGNIZED_USER, "user identity is missing or wrong"
        return None

    def _no_room(self) -> tuple[Rejection, str] | None:
        try:
            self._reception.require_space()
        except StorageFull:
            return Rejection.TEMPORARY_CONGESTION, "no free space for images"
        return None

    def _too_many(self, association: Hashable, calling: str, origin: str) -> tuple[Rejection, str] | None:
        settings = self._settings
        with self._lock:
            titles = [title for other, title in self._open.values() if other == origin]
            # So that a program that opens ever more keeps no other out of the same machine. Not for titles that anybody
            # could invent: they would be no limit.
            is_its_first = calling in settings.calling_ae_titles and calling not in {ANY_AE_TITLE, *titles}
            if len(self._open) >= settings.maximum_associations:
                return Rejection.LOCAL_LIMIT_EXCEEDED, "too many associations"
            if len(titles) >= settings.maximum_associations_per_address and not is_its_first:
                return Rejection.LOCAL_LIMIT_EXCEEDED, "too many associations of this address"
            self._open[association] = (origin, calling)
        return None


def _is_known(identity: UserIdentity | None, passcodes: Mapping[str, str]) -> bool:
    """Whether the name and passcode (PS3.7 D.3.3.7, type 2) are right."""
    if identity is None or identity.kind != 2:
        return False
    expected = passcodes.get(identity.primary.decode("utf-8", "replace"))
    return expected is not None and hmac.compare_digest(expected.encode(), identity.secondary)


def _negotiate(items: bytes, checks_identity: bool) -> _Negotiated:
    """The answer to what a request proposes. Who does not check an identity confirms none (PS3.7 D.3.3.7.2)."""
    proposal = pdu.parse_proposal(items)
    contexts: dict[int, tuple[str, str]] = {}
    encoded = []
    for context in proposal.contexts:
        supported = TRANSFER_SYNTAXES if context.abstract_syntax in SOP_CLASSES else MESSAGE_SYNTAXES
        if context.abstract_syntax not in (*SOP_CLASSES, *MESSAGE_SOP_CLASSES):
            result, chosen = ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED, TRANSFER_SYNTAXES[1]
        elif syntax := next((syntax for syntax in supported if syntax in context.transfer_syntaxes), None):
            result, chosen = ContextResult.ACCEPTANCE, syntax
            contexts[context.context_id] = (context.abstract_syntax, syntax)
        else:
            result, chosen = ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED, TRANSFER_SYNTAXES[1]
        encoded.append(pdu.encode_context_result(context.context_id, result, chosen))
    # A destination that tells us what it has committed is the provider though it opens the association.
    granted = [role for role in proposal.roles if role.sop_class_uid == commitment.SOP_CLASS_UID]
    identity = proposal.user_identity
    return _Negotiated(
        application_context=proposal.application_context,
        user_identity=identity,
        maximum_pdu_bytes=proposal.maximum_pdu_bytes,
        contexts=contexts,
        results=b"".join(encoded),
        user_information=pdu.encode_user_information(
            MAXIMUM_PDU_BYTES,
            IMPLEMENTATION_CLASS_UID,
            IMPLEMENTATION_VERSION_NAME,
            granted,
            confirms_identity=checks_identity and identity is not None and identity.wants_answer,
        ),
    )
