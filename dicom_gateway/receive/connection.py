"""One connection of the DICOM port from its first byte to its last: association, C-ECHO, C-STORE, N-ACTION, release.

Image bytes go from the socket's buffer into the file; no data set is ever held in memory. Every wait has a deadline
for the whole of what is waited for, so that a peer that sends a byte now and then holds its place no longer than one
that is silent.
"""

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NoReturn

from pydicom.dataset import Dataset

from dicom_gateway.errors import GatewayError
from dicom_gateway.events import Event, emit
from dicom_gateway.receive import commitment, pdu, performed
from dicom_gateway.receive.admission import MAXIMUM_PDU_BYTES, Accepted, Admission
from dicom_gateway.receive.commitment import Commitments
from dicom_gateway.receive.pdu import AbortReason, Command, CommandSet, PduType, ProtocolError
from dicom_gateway.receive.performed import PerformedSteps
from dicom_gateway.receive.reception import LONGEST_PAUSE_S, Incoming, Reception, refusal_of, release_study
from dicom_gateway.receive.statuses import StoreRefused, StoreStatus

HALF_OPEN_TIMEOUT_S = 10.0
PDU_TIMEOUT_S = 30.0
# Until its first image; after that a scanner may be between two acquisitions.
IDLE_TIMEOUT_S = 60.0
IDLE_AFTER_AN_IMAGE_S = LONGEST_PAUSE_S
# Slower than this over a whole image, after the first minute, is no network of a hospital.
LEAST_BYTES_PER_S = 1000
_MAXIMUM_REQUEST_BYTES = 1 << 20
_MAXIMUM_COMMAND_BYTES = 1 << 16
_BUFFER_BYTES = 256 << 10
_WITH_A_DATA_SET = (Command.N_ACTION_RQ, Command.N_EVENT_REPORT_RQ, Command.N_CREATE_RQ, Command.N_SET_RQ)


class PeerGone(GatewayError):
    """The connection ended, or a deadline passed."""


class Stream:
    """Bytes of a socket, read through one buffer. Deadlines are monotonic seconds; PeerGone when one has passed."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._end = 0

    @property
    def is_empty(self) -> bool:
        """Whether the next byte must come from the network."""
        return self._start == self._end

    def wait(self, deadline: float) -> None:
        """Return when a byte is there."""
        if self.is_empty:
            self._fill(deadline)

    def take(self, count: int, deadline: float) -> bytes:
        """The next `count` bytes."""
        if count <= self._end - self._start:
            return bytes(self.chunk(count, deadline))
        content = bytearray()
        while len(content) < count:
            content += self.chunk(count - len(content), deadline)
        return bytes(content)

    def chunk(self, most: int, deadline: float) -> memoryview:
        """Between 1 and `most` of the next bytes, valid until the next call."""
        if self._start == self._end:
            self._fill(deadline)
        count = min(most, self._end - self._start)
        self._start += count
        return self._buffer[self._start - count : self._start]

    def send(self, content: bytes) -> None:
        """Send one PDU in one write."""
        self._socket.settimeout(PDU_TIMEOUT_S)
        try:
            self._socket.sendall(content)
            # Senders that leave Nagle's algorithm on wait up to 40 ms for an acknowledgement before they send the
            # rest of an image. The kernel forgets this option, hence again each time.
            if hasattr(socket, "TCP_QUICKACK"):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except OSError as error:
            raise PeerGone("nobody reads the answer") from error

    def _fill(self, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise PeerGone("a deadline has passed")
        self._socket.settimeout(left_s)
        try:
            received = self._socket.recv_into(self._buffer)
        except TimeoutError as error:
            raise PeerGone("a deadline has passed") from error
        except OSError as error:
            raise PeerGone("the connection broke") from error
        if received == 0:
            raise PeerGone("the peer closed the connection")
        self._start, self._end = 0, received


@dataclass(slots=True)
class _Image:
    """A C-STORE request whose data set is coming; `refusal` once it is not kept: the rest is read past."""

    context_id: int
    command: CommandSet
    started: float
    received_bytes: int = 0
    incoming: Incoming | None = None
    refusal: StoreRefused | None = None


@dataclass(slots=True)
class _Message:
    """A request whose data set is coming: storage commitment's N-ACTION, N-EVENT-REPORT; a step's N-CREATE, N-SET."""

    context_id: int
    command: CommandSet
    data_set: bytearray = field(default_factory=bytearray)


class Association:
    """The acceptor's side of one association (PS3.8 section 7), as the one who `serve`s its connection."""

    def __init__(
        self,
        stream: Stream,
        address: str,
        reception: Reception,
        admission: Admission,
        commitments: Commitments,
        steps: PerformedSteps,
        *,
        on_established: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._address = address
        self._reception = reception
        self._admission = admission
        self._commitments = commitments
        self._steps = steps
        self._on_established = on_established
        self._accepted: Accepted | None = None
        self._image: _Image | None = None
        self._idle_timeout_s = IDLE_TIMEOUT_S
        self._message: _Message | None = None
        self._command = bytearray()

    def serve(self, half_open_deadline: float) -> None:
        """Answer until the peer releases, aborts, breaks the protocol or is too slow. Never raises for a peer's fault.

        `half_open_deadline` is when the association must have been requested, in monotonic seconds.
        """
        try:
            if self._associate(half_open_deadline):
                while self._answer_pdu():
                    pass
        except ProtocolError as error:
            self._aborted(error)
            with suppress(PeerGone):
                self._stream.send(pdu.encode_abort(error.reason))
        except PeerGone as error:
            if self._accepted is not None:
                self._aborted(error)
                with suppress(PeerGone):
                    self._stream.send(pdu.encode_abort(AbortReason.NOT_SPECIFIED))
        finally:
            if self._image is not None and self._image.incoming is not None:
                self._image.incoming.discard()
            try:
                release_study(self._reception, self, broke=True)
            finally:
                self._reception.associations.close(self)
                self._admission.end(self)

    def _aborted(self, error: GatewayError) -> None:
        emit(
            Event.ASSOCIATION_ABORTED,
            level="warning",
            calling_ae_title=self._accepted.calling_ae_title if self._accepted else None,
            address=self._address,
            reason=str(error),
        )

    def _associate(self, deadline: float) -> bool:
        kind, length = self._pdu_header(deadline)
        if kind == PduType.ABORT:
            return False
        if kind != PduType.ASSOCIATE_RQ:
            self._refuse_pdu(kind)
        if length > _MAXIMUM_REQUEST_BYTES:
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "the association request is too long")
        request = pdu.parse_associate_request(self._stream.take(length, deadline))
        answer = self._admission.answer(self, request, self._address)
        if isinstance(answer, pdu.Rejection):
            self._stream.send(pdu.encode_associate_reject(answer))
            return False
        self._accepted = answer
        self._on_established()
        self._stream.send(answer.encoded)
        return True

    def _answer_pdu(self) -> bool:
        """Read one PDU and do what it asks for; whether the association goes on."""
        self._stream.wait(time.monotonic() + self._idle_timeout_s)
        deadline = time.monotonic() + PDU_TIMEOUT_S
        kind, length = self._pdu_header(deadline)
        if kind == PduType.DATA:
            if length > MAXIMUM_PDU_BYTES:
                raise ProtocolError(AbortReason.INVALID_PARAMETER, "a PDU is longer than agreed")
            while length:
                length -= self._answer_value(length, deadline)
            return True
        if kind == PduType.RELEASE_RQ:
            # Released before it is answered: who sees the answer may ask for the result at once.
            release_study(self._reception, self)
            self._reception.associations.close(self)
            self._stream.send(pdu.encode_release_response())
            return False
        if kind == PduType.ABORT:
            raise PeerGone("the peer aborted")
        self._refuse_pdu(kind)

    def _pdu_header(self, deadline: float) -> tuple[int, int]:
        kind, _, length = struct.unpack(">BBI", self._stream.take(pdu.HEADER_BYTES, deadline))
        return kind, length

    def _refuse_pdu(self, kind: int) -> NoReturn:
        known = kind in list(PduType)
        reason = AbortReason.UNEXPECTED_PDU if known else AbortReason.UNRECOGNIZED_PDU
        raise ProtocolError(reason, f"a PDU of type {kind} where none may be")

    def _answer_value(self, left: int, deadline: float) -> int:
        """Read one presentation data value (PS3.8 Table 9-23); its bytes, at most the `left` ones of its PDU."""
        if left < pdu.PDV_HEADER_BYTES:
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "a presentation data value is cut off")
        length, context_id, control = struct.unpack(">IBB", self._stream.take(pdu.PDV_HEADER_BYTES, deadline))
        if not 2 <= length <= left - 4:
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "a presentation data value has a wrong length")
        is_last = bool(control & pdu.LAST_FRAGMENT)
        if control & pdu.COMMAND_FRAGMENT:
            self._command_fragment(self._stream.take(length - 2, deadline), context_id, is_last)
        else:
            self._data_fragment(length - 2, context_id, is_last, deadline)
        return int(length) + 4

    def _command_fragment(self, content: bytes, context_id: int, is_last: bool) -> None:
        if self._image or self._message or len(self._command) + len(content) > _MAXIMUM_COMMAND_BYTES:
            raise ProtocolError(AbortReason.UNEXPECTED_PARAMETER, "a command inside a message, or one without an end")
        self._command += content
        if is_last:
            command = pdu.parse_command_set(bytes(self._command))
            self._command.clear()
            self._answer_command(command, context_id)

    def _answer_command(self, command: CommandSet, context_id: int) -> None:
        assert self._accepted is not None
        context = self._accepted.contexts.get(context_id)
        if context is None:
            raise ProtocolError(AbortReason.UNEXPECTED_PARAMETER, "a presentation context that was not accepted")
        if command.command in _WITH_A_DATA_SET and command.has_data_set:
            self._message = _Message(context_id, command)
        elif command.command == Command.C_STORE_RQ and command.has_data_set:
            self._image = self._begin_image(command, context_id)
        elif command.command == Command.C_ECHO_RQ and not command.has_data_set:
            self._stream.send(pdu.encode_response(command, context_id, StoreStatus.SUCCESS))
        elif command.command == Command.N_EVENT_REPORT_RQ | pdu.RESPONSE and not command.has_data_set:
            return
        elif command.has_data_set or command.command & pdu.RESPONSE:
            raise ProtocolError(AbortReason.UNEXPECTED_PARAMETER, "a command that nobody asked for")
        elif command.command != Command.C_CANCEL_RQ:
            self._stream.send(pdu.encode_response(command, context_id, StoreStatus.UNRECOGNIZED_OPERATION))

    def _begin_image(self, command: CommandSet, context_id: int) -> _Image:
        assert self._accepted is not None
        abstract_syntax, transfer_syntax = self._accepted.contexts[context_id]
        image = _Image(context_id, command, time.monotonic())
        with self._refusing(image):
            if command.sop_class_uid != abstract_syntax:
                raise StoreRefused(StoreStatus.REFUSED_SOP_CLASS_NOT_SUPPORTED, "SOP Class differs from the context's")
            image.incoming = Incoming(
                self._reception,
                sop_class_uid=command.sop_class_uid,
                sop_instance_uid=command.sop_instance_uid,
                transfer_syntax=transfer_syntax,
                calling_ae_title=self._accepted.calling_ae_title,
                association=self,
            )
        return image

    def _data_fragment(self, count: int, context_id: int, is_last: bool, deadline: float) -> None:
        image = self._image
        if self._message is not None:
            self._message_fragment(self._message, self._stream.take(count, deadline), context_id, is_last)
            return
        if image is None or image.context_id != context_id:
            raise ProtocolError(AbortReason.UNEXPECTED_PARAMETER, "data without a request")
        image.received_bytes += count
        slow_s = time.monotonic() - image.started - IDLE_TIMEOUT_S
        if slow_s > 0 and image.received_bytes < slow_s * LEAST_BYTES_PER_S:
            raise PeerGone("the image comes too slowly")
        if image.incoming is not None:
            with self._refusing(image):
                while count:
                    chunk = self._stream.chunk(count, deadline)
                    count -= len(chunk)
                    image.incoming.write(chunk)
        while count:
            count -= len(self._stream.chunk(count, deadline))
        if is_last:
            if image.incoming is not None:
                with self._refusing(image):
                    image.incoming.keep()
                    self._idle_timeout_s = IDLE_AFTER_AN_IMAGE_S
            self._image = None
            status, comment = StoreStatus.SUCCESS, ""
            if image.refusal is not None:
                status, comment = image.refusal.status, image.refusal.comment
            self._stream.send(pdu.encode_response(image.command, context_id, status, comment))
            self._admission.pace(self, image.received_bytes)

    def _message_fragment(self, message: _Message, content: bytes, context_id: int, is_last: bool) -> None:
        if message.context_id != context_id:
            raise ProtocolError(AbortReason.UNEXPECTED_PARAMETER, "data without a request")
        message.data_set += content
        is_step = message.command.command in (Command.N_CREATE_RQ, Command.N_SET_RQ)
        if len(message.data_set) > (performed.MAXIMUM_STEP_BYTES if is_step else commitment.MAXIMUM_REQUEST_BYTES):
            raise ProtocolError(AbortReason.UNEXPECTED_PARAMETER, "a request without an end")
        if is_last:
            self._message = None
            self._answer_message(message)

    def _answer_message(self, message: _Message) -> None:
        """The response, and to an N-ACTION the result where it is told on this association."""
        assert self._accepted is not None
        command, context_id = message.command, message.context_id
        abstract_syntax, transfer_syntax = self._accepted.contexts[context_id]
        calling = self._accepted.calling_ae_title
        result: tuple[int, Dataset] | None = None
        status, comment = StoreStatus.SUCCESS, ""
        try:
            match abstract_syntax, command.command:
                case commitment.SOP_CLASS_UID, Command.N_ACTION_RQ:
                    request = commitment.parse_request(command, bytes(message.data_set), transfer_syntax, calling)
                    result = self._commitments.take(request)
                case commitment.SOP_CLASS_UID, Command.N_EVENT_REPORT_RQ:
                    self._commitments.told(commitment.parse_report(bytes(message.data_set), transfer_syntax), calling)
                case performed.SOP_CLASS_UID, Command.N_CREATE_RQ | Command.N_SET_RQ:
                    self._steps.take(command, bytes(message.data_set), transfer_syntax, calling)
                case _:
                    raise StoreRefused(StoreStatus.UNRECOGNIZED_OPERATION, "Not an operation of this SOP class")
        except Exception as error:  # noqa: BLE001  # edge: the sender always gets an answer
            refusal = refusal_of(error, calling)
            status, comment = refusal.status, refusal.comment
        self._stream.send(pdu.encode_response(command, context_id, status, comment))
        if result is not None:
            event_type, information = result
            for encoded in pdu.encode_event_report(
                context_id,
                sop_class_uid=commitment.SOP_CLASS_UID,
                sop_instance_uid=commitment.SOP_INSTANCE_UID,
                event_type_id=event_type,
                message_id=1,
                information=commitment.encode_information(information, transfer_syntax),
                maximum_pdu_bytes=self._accepted.maximum_pdu_bytes,
            ):
                self._stream.send(encoded)

    @contextmanager
    def _refusing(self, image: _Image) -> Iterator[None]:
        """Whatever goes wrong with an image becomes its refusal: the sender always gets an answer."""
        assert self._accepted is not None
        try:
            yield
        except PeerGone:
            raise
        except Exception as error:  # noqa: BLE001  # edge
            image.refusal = refusal_of(error, self._accepted.calling_ae_title)
            image.incoming = None
