"""PDUs of the DICOM upper layer (PS3.8 section 9.3) and command sets (PS3.7 section 6.3), as an acceptor needs them.

Pure functions of bytes. Whatever a peer may not send raises ProtocolError, which names the A-ABORT to answer with.
"""

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from dicom_gateway.errors import GatewayError

HEADER_BYTES = 6
PDV_HEADER_BYTES = 6
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
NO_DATA_SET = 0x0101
# In a presentation data value's control header (PS3.8 E.2).
COMMAND_FRAGMENT, LAST_FRAGMENT = 1, 2
_FIXED_REQUEST_BYTES = 68
_LARGEST_SENT_PDU_BYTES = 16384
_LEAST_FRAGMENT_BYTES = 128
_TITLES = slice(4, 68)


class PduType(enum.IntEnum):
    """PS3.8 section 9.3.1."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


class AbortReason(enum.IntEnum):
    """Reasons of the service provider, PS3.8 Table 9-26."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class Rejection(enum.Enum):
    """Result, source and reason of an A-ASSOCIATE-RJ, PS3.8 Table 9-21."""

    NOT_RECOGNIZED_USER = (1, 1, 1)
    APPLICATION_CONTEXT_NOT_SUPPORTED = (1, 1, 2)
    CALLING_AE_TITLE_NOT_RECOGNIZED = (1, 1, 3)
    CALLED_AE_TITLE_NOT_RECOGNIZED = (1, 1, 7)
    PROTOCOL_VERSION_NOT_SUPPORTED = (1, 2, 2)
    TEMPORARY_CONGESTION = (2, 3, 1)
    LOCAL_LIMIT_EXCEEDED = (2, 3, 2)


class ContextResult(enum.IntEnum):
    """Result of a proposed presentation context, PS3.8 Table 9-18."""

    ACCEPTANCE = 0
    ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
    TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


class Command(enum.IntEnum):
    """Command Field of the requests that are answered, PS3.7 Table E.1-1."""

    C_STORE_RQ = 0x0001
    C_ECHO_RQ = 0x0030
    N_EVENT_REPORT_RQ = 0x0100
    N_SET_RQ = 0x0120
    N_ACTION_RQ = 0x0130
    N_CREATE_RQ = 0x0140
    C_CANCEL_RQ = 0x0FFF


RESPONSE = 0x8000


class ProtocolError(GatewayError):
    """The peer broke the protocol; the association is aborted with `reason`. The message quotes nothing it sent."""

    def __init__(self, reason: AbortReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """The fixed part of an A-ASSOCIATE-RQ; `titles` goes back as it came, `items` is for `parse_proposal`."""

    protocol_version: int
    called_ae_title: str
    calling_ae_title: str
    titles: bytes
    items: bytes


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """One presentation context of a request."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """User identity negotiation item (PS3.7 D.3.3.7): type 1 is a name, 2 a name with a passcode, 3 to 5 tokens."""

    kind: int
    wants_answer: bool
    primary: bytes
    secondary: bytes


@dataclass(frozen=True, slots=True)
class Role:
    """SCP/SCU role selection item (PS3.7 D.3.3.4): the roles that the requestor wants for itself."""

    sop_class_uid: str
    scu: int
    scp: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """The variable part of an A-ASSOCIATE-RQ; a `maximum_pdu_bytes` of 0 means any."""

    application_context: str
    contexts: tuple[ProposedContext, ...]
    maximum_pdu_bytes: int
    roles: tuple[Role, ...]
    user_identity: UserIdentity | None


@dataclass(frozen=True, slots=True)
class CommandSet:
    """What a request's command set says. UIDs are as sent, which may be anything."""

    command: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    has_data_set: bool
    action_type_id: int


def parse_associate_request(body: bytes) -> AssociateRequest:
    """The bytes after the header of an A-ASSOCIATE-RQ (PS3.8 Table 9-11). Raises ProtocolError."""
    if len(body) < _FIXED_REQUEST_BYTES:
        raise ProtocolError(AbortReason.INVALID_PARAMETER, "the association request is too short")
    (version,) = struct.unpack_from(">H", body)
    return AssociateRequest(
        protocol_version=version,
        called_ae_title=_title(body[4:20]),
        calling_ae_title=_title(body[20:36]),
        titles=body[_TITLES],
        items=body[_FIXED_REQUEST_BYTES:],
    )


def parse_proposal(items: bytes) -> Proposal:
    """Items of an A-ASSOCIATE-RQ; unknown ones are ignored (PS3.8 9.3.1). Raises ProtocolError."""
    application_context, maximum_pdu_bytes, identity = "", 0, None
    contexts: dict[int, ProposedContext] = {}
    roles: list[Role] = []
    for kind, value in _items(items):
        if kind == 0x10:
            application_context = _uid(value)
        elif kind == 0x20:
            context = _proposed_context(value)
            if context.context_id in contexts:
                raise ProtocolError(AbortReason.INVALID_PARAMETER, "a presentation context id comes twice")
            contexts[context.context_id] = context
        elif kind == 0x50:
            for sub_kind, sub_value in _items(value):
                if sub_kind == 0x51 and len(sub_value) == 4:
                    (maximum_pdu_bytes,) = struct.unpack(">I", sub_value)
                elif sub_kind == 0x54:
                    roles.append(_role(sub_value))
                elif sub_kind == 0x58:
                    identity = _user_identity(sub_value)
    return Proposal(application_context, tuple(contexts.values()), maximum_pdu_bytes, tuple(roles), identity)


def parse_command_set(encoded: bytes) -> CommandSet:
    """A command set: implicit VR little endian, group 0000 (PS3.7 6.3.1). Raises ProtocolError."""
    values: dict[int, bytes] = {}
    at = 0
    while at < len(encoded):
        if at + 8 > len(encoded):
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "a command element is cut off")
        group, element, length = struct.unpack_from("<HHI", encoded, at)
        at += 8
        if group != 0 or at + length > len(encoded):
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "a command element is not well formed")
        values[element] = encoded[at : at + length]
        at += length
    return CommandSet(
        command=_number(values, 0x0100),
        message_id=_number(values, 0x0110),
        sop_class_uid=_uid(values.get(0x0002) or values.get(0x0003, b"")),
        sop_instance_uid=_uid(values.get(0x1000) or values.get(0x1001, b"")),
        has_data_set=_number(values, 0x0800, NO_DATA_SET) != NO_DATA_SET,
        action_type_id=_number(values, 0x1008),
    )


def encode_context_result(context_id: int, result: ContextResult, transfer_syntax: str) -> bytes:
    """One presentation context item of an A-ASSOCIATE-AC (PS3.8 Table 9-18)."""
    syntax = _item(0x40, transfer_syntax.encode("ascii"))
    return _item(0x21, struct.pack(">BBBB", context_id, 0, result, 0) + syntax)


def encode_user_information(
    maximum_pdu_bytes: int,
    implementation_class_uid: str,
    version_name: str,
    roles: Sequence[Role] = (),
    *,
    confirms_identity: bool = False,
) -> bytes:
    """User information item of an A-ASSOCIATE-AC. GDCM's sender asserts that the version name (0x55) is there.

    `roles` are those that are granted. To a name with a passcode the confirmation is empty (PS3.7 Table D.3-15).
    """
    return _item(
        0x50,
        _item(0x51, struct.pack(">I", maximum_pdu_bytes))
        + _item(0x52, implementation_class_uid.encode("ascii"))
        + b"".join(_item(0x54, _encode_role(role)) for role in roles)
        + _item(0x55, version_name.encode("ascii"))
        + (_item(0x59, struct.pack(">H", 0)) if confirms_identity else b""),
    )


def encode_associate_accept(request: AssociateRequest, context_results: bytes, user_information: bytes) -> bytes:
    """A-ASSOCIATE-AC PDU; the titles are returned as they came (PS3.8 Table 9-17)."""
    items = _item(0x10, APPLICATION_CONTEXT.encode("ascii")) + context_results + user_information
    return _pdu(PduType.ASSOCIATE_AC, struct.pack(">HH", 1, 0) + request.titles + items)


def encode_associate_reject(rejection: Rejection) -> bytes:
    """A-ASSOCIATE-RJ PDU."""
    return _pdu(PduType.ASSOCIATE_RJ, struct.pack(">BBBB", 0, *rejection.value))


def encode_release_response() -> bytes:
    """A-RELEASE-RP PDU."""
    return _pdu(PduType.RELEASE_RP, bytes(4))


def encode_abort(reason: AbortReason) -> bytes:
    """A-ABORT PDU of the service provider."""
    return _pdu(PduType.ABORT, struct.pack(">BBBB", 0, 0, 2, reason))


def encode_response(request: CommandSet, context_id: int, status: int, comment: str = "") -> bytes:
    """P-DATA-TF PDU with the response to `request`, which has no data set (PS3.7 sections 9.3 and 10.3)."""
    sop_class, instance = (
        uid.encode("ascii", "replace") if len(uid) <= 64 else b""
        for uid in (request.sop_class_uid, request.sop_instance_uid)
    )
    elements = [
        _element(0x0002, sop_class),
        _element(0x0100, struct.pack("<H", (request.command | RESPONSE) & 0xFFFF)),
        _element(0x0120, struct.pack("<H", request.message_id)),
        _element(0x0800, struct.pack("<H", NO_DATA_SET)),
        _element(0x0900, struct.pack("<H", status)),
    ]
    if comment:
        elements.append(_element(0x0902, comment.encode("ascii", "replace")[:64]))
    if instance and request.command != Command.C_ECHO_RQ:
        elements.append(_element(0x1000, instance))
    if request.command == Command.N_ACTION_RQ:
        elements.append(_element(0x1008, struct.pack("<H", request.action_type_id)))
    return _data_pdu(context_id, COMMAND_FRAGMENT | LAST_FRAGMENT, _command(elements))


def encode_event_report(
    context_id: int,
    *,
    sop_class_uid: str,
    sop_instance_uid: str,
    event_type_id: int,
    message_id: int,
    information: bytes,
    maximum_pdu_bytes: int,
) -> list[bytes]:
    """P-DATA-TF PDUs of an N-EVENT-REPORT request (PS3.7 Table 10.3-1), none longer than the peer takes."""
    command = _command(
        [
            _element(0x0002, sop_class_uid.encode("ascii")),
            _element(0x0100, struct.pack("<H", Command.N_EVENT_REPORT_RQ)),
            _element(0x0110, struct.pack("<H", message_id)),
            _element(0x0800, struct.pack("<H", 0)),
            _element(0x1000, sop_instance_uid.encode("ascii")),
            _element(0x1002, struct.pack("<H", event_type_id)),
        ]
    )
    room = max(_LEAST_FRAGMENT_BYTES, (maximum_pdu_bytes or _LARGEST_SENT_PDU_BYTES) - PDV_HEADER_BYTES)
    fragments = [information[at : at + room] for at in range(0, len(information), room)]
    values = [_data_pdu(context_id, COMMAND_FRAGMENT | LAST_FRAGMENT, command)]
    for number, fragment in enumerate(fragments, start=1):
        values.append(_data_pdu(context_id, LAST_FRAGMENT if number == len(fragments) else 0, fragment))
    return values


def _command(elements: list[bytes]) -> bytes:
    body = b"".join(elements)
    return _element(0x0000, struct.pack("<I", len(body))) + body


def _data_pdu(context_id: int, control: int, fragment: bytes) -> bytes:
    return _pdu(PduType.DATA, struct.pack(">IBB", len(fragment) + 2, context_id, control) + fragment)


def _pdu(kind: PduType, body: bytes) -> bytes:
    return struct.pack(">BBI", kind, 0, len(body)) + body


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _element(element: int, value: bytes) -> bytes:
    # UIDs are padded with NUL, a comment with a blank (PS3.5 6.2).
    padded = value if len(value) % 2 == 0 else value + (b" " if element == 0x0902 else b"\0")
    return struct.pack("<HHI", 0, element, len(padded)) + padded


def _items(content: bytes) -> list[tuple[int, bytes]]:
    items = []
    at = 0
    while at < len(content):
        if at + 4 > len(content):
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "an item of the association request is cut off")
        kind, _, length = struct.unpack_from(">BBH", content, at)
        at += 4
        if at + length > len(content):
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "an item of the association request is too long")
        items.append((kind, content[at : at + length]))
        at += length
    return items


def _proposed_context(value: bytes) -> ProposedContext:
    if len(value) < 4 or value[0] % 2 == 0:
        raise ProtocolError(AbortReason.INVALID_PARAMETER, "a presentation context is not well formed")
    abstract_syntax, transfer_syntaxes = "", []
    for kind, name in _items(value[4:]):
        if kind == 0x30:
            abstract_syntax = _uid(name)
        elif kind == 0x40:
            transfer_syntaxes.append(_uid(name))
    return ProposedContext(value[0], abstract_syntax, tuple(transfer_syntaxes))


def _role(value: bytes) -> Role:
    if len(value) < 4 or len(value) != int.from_bytes(value[:2], "big") + 4:
        raise ProtocolError(AbortReason.INVALID_PARAMETER, "a role selection is not well formed")
    return Role(_uid(value[2:-2]), value[-2], value[-1])


def _encode_role(role: Role) -> bytes:
    uid = role.sop_class_uid.encode("ascii")
    return struct.pack(">H", len(uid)) + uid + bytes((role.scu, role.scp))


def _user_identity(value: bytes) -> UserIdentity:
    try:
        kind, wants_answer, length = struct.unpack_from(">BBH", value)
        (second_length,) = struct.unpack_from(">H", value, 4 + length)
    except struct.error as error:
        raise ProtocolError(AbortReason.INVALID_PARAMETER, "the user identity is cut off") from error
    return UserIdentity(kind, bool(wants_answer), value[4 : 4 + length], value[6 + length : 6 + length + second_length])


def _title(value: bytes) -> str:
    """An AE title without its padding; what may not stand in one (PS3.5 6.2 AE) is shown as a question mark."""
    text = value.decode("ascii", "replace").strip(" \0")
    return "".join(character if character.isprintable() and character != "\ufffd" else "?" for character in text)


def _uid(value: bytes) -> str:
    return value.decode("ascii", "replace").rstrip("\0 ")


def _number(values: dict[int, bytes], element: int, default: int = 0) -> int:
    value = values.get(element)
    if value is None:
        return default
    if len(value) != 2:
        raise ProtocolError(AbortReason.INVALID_PARAMETER, "a command element has a wrong length")
    return int.from_bytes(value, "little")
