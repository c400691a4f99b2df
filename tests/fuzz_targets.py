"""What reads bytes of strangers, as functions that raise only where they are wrong, with inputs to begin from.

`python tests/fuzz/run.py TARGET` tries one of them under atheris; fuzz/test_targets.py tries all for a moment.
"""

import contextlib
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import structlog
from factories import make_ct_dataset
from modality import begun, ended
from peers import CT_EXPLICIT, associate_request, echo_request, encoded_data_set, message, store_request
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from pynetdicom.dimse_primitives import N_ACTION, N_CREATE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import Verification
from web_samples import fail, open_site, publish, receive, sample_report, site_settings

from dicom_gateway.operate import prepare_data
from dicom_gateway.receive import commitment, pdu, performed
from dicom_gateway.receive.admission import Admission
from dicom_gateway.receive.commitment import Commitments
from dicom_gateway.receive.connection import Association, Stream
from dicom_gateway.receive.header import read_header
from dicom_gateway.receive.pdu import ProtocolError
from dicom_gateway.receive.performed import PerformedSteps
from dicom_gateway.receive.reception import Reception
from dicom_gateway.receive.statuses import StoreRefused
from dicom_gateway.settings import Settings
from dicom_gateway.store.schema import open_database
from dicom_gateway.web.app import create_app
from dicom_gateway.web.dicomweb_store import BadUpload, Upload
from dicom_gateway.web.server import web_server
from imaging.elements import scan_elements
from imaging.errors import BrokenDataSet, UnreadableInstance
from imaging.geometry import geometry_of_stack
from imaging.headers import Series, Slice, Study, read_instance
from imaging.quality import check_headers, is_rejected
from imaging.selection import select_series
from imaging.uids import derive_uid
from imaging.volume import order_slices

_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless)
_BOUNDARY = b"frontier"
_PATIENCE_S = 30.0
_SHORT_S = 2.0


def association_request(content: bytes) -> None:
    """Association requests and command sets: ProtocolError or a value."""
    with contextlib.suppress(ProtocolError):
        pdu.parse_proposal(pdu.parse_associate_request(content).items)
    try:
        command = pdu.parse_command_set(content)
    except ProtocolError:
        return
    pdu.encode_response(command, 1, 0x0110, "comment")


def data_set_header(content: bytes) -> None:
    """The header of a received data set; the first byte chooses the transfer syntax: StoreRefused or a value."""
    if not content:
        return
    encoded, image = content[1:], make_ct_dataset()
    with contextlib.suppress(StoreRefused):
        read_header(
            lambda offset, count: encoded[offset : offset + count],
            len(encoded),
            transfer_syntax=_SYNTAXES[content[0] % len(_SYNTAXES)],
            sop_class_uid=image.SOPClassUID,
            sop_instance_uid=image.SOPInstanceUID,
        )


def elements(content: bytes) -> None:
    """The scanner of data sets: BrokenDataSet or a value."""
    for implicit_vr in (False, True):
        try:
            scanned = scan_elements(content, implicit_vr=implicit_vr, wanted=frozenset({0x00080018, 0x00100010}))
        except BrokenDataSet:
            continue
        assert scanned.cut or scanned.pixel_data_tag is not None or scanned.end == len(content)


def file_header(content: bytes) -> None:
    """A file that may be a DICOM image: UnreadableInstance or a value."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as file:
        file.write(content)
        file.flush()
        with contextlib.suppress(UnreadableInstance):
            read_instance(Path(file.name))


def commitment_information(content: bytes) -> None:
    """Requests and reports of storage commitment: StoreRefused or a value."""
    command = pdu.CommandSet(
        command=pdu.Command.N_ACTION_RQ,
        message_id=1,
        sop_class_uid=commitment.SOP_CLASS_UID,
        sop_instance_uid=commitment.SOP_INSTANCE_UID,
        has_data_set=True,
        action_type_id=1,
    )
    for syntax in _SYNTAXES[:2]:
        for parse in (
            lambda: commitment.parse_request(command, content, syntax, "CT1"),  # noqa: B023
            lambda: commitment.parse_report(content, syntax),  # noqa: B023
        ):
            with contextlib.suppress(StoreRefused):
                parse()


def performed_step(content: bytes) -> None:
    """What a modality tells of a step: StoreRefused or a value."""
    for syntax in _SYNTAXES[:2]:
        with contextlib.suppress(StoreRefused):
            performed.parse_step(content, syntax)


def association(content: bytes) -> None:
    """A whole connection: it ends, and nothing in it fails that is not the peer's fault."""
    reception, admission, commitments, steps = _receiver()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.sendall(content[: 1 << 17])
        theirs.shutdown(socket.SHUT_WR)
        stream, answers = Stream(ours), (commitments, steps)
        peer = Association(stream, "127.0.0.1", reception, admission, *answers, on_established=lambda: None)
        peer.serve(time.monotonic() + _PATIENCE_S)
    assert not list(reception.settings.incoming_dir.iterdir())


def stow_body(content: bytes) -> None:
    """The body of a STOW-RS request, in pieces; the first byte says how long these are."""
    reception, *_ = _receiver()
    upload = Upload(reception, _BOUNDARY, None)
    step = (content[0] if content else 0) * 16 + 1
    try:
        for at in range(1, len(content), step):
            upload.feed(content[at : at + step])
        upload.require_whole()
    except BadUpload:
        pass
    finally:
        upload.end()
    assert not list(reception.settings.incoming_dir.iterdir())


def http_request(content: bytes) -> None:
    """A request in bytes, without Host and Content-Length, which are added: any answer but a server error."""
    head, _, body = content.partition(b"\r\n\r\n")
    line, _, fields = head.partition(b"\r\n")
    address = _website()
    added = b"Host: %b:%d\r\nConnection: close\r\nContent-Length: %d\r\n" % (*address, len(body))
    # A server that was told of more than there is waits for it, which is no fault.
    waited_for = (ConnectionError, TimeoutError)
    with socket.create_connection(address, timeout=_SHORT_S) as stream, contextlib.suppress(*waited_for):
        stream.sendall(line + b" HTTP/1.1\r\n" + added + fields + b"\r\n\r\n" + body)
        answer = stream.recv(12)
        assert answer[9:10] != b"5", answer
        while stream.recv(65536):
            pass


@cache
def _website() -> tuple[bytes, int]:
    """Address of a site with a report and a study that failed; never closed."""
    settings = site_settings(_folder(), stow_networks=("127.0.0.0/8",), minimum_free_space_mb=0)
    engine = open_site(settings)
    receive(engine, "1.2.3.1", count=3)
    publish(settings, engine, sample_report("1.2.3.1"))
    receive(engine, "1.2.3.2")
    fail(engine, "1.2.3.2", "InconsistentSeries")
    listening = socket.create_server(("127.0.0.1", 0))
    server = web_server(create_app(settings), settings, log_level="critical")
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    return b"127.0.0.1", listening.getsockname()[1]


def _folder() -> Path:
    return Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None, prefix="onescan-fuzz-"))


@cache
def _receiver() -> tuple[Reception, Admission, Commitments, PerformedSteps]:
    settings = Settings(data_dir=_folder() / "data", calling_ae_titles=("*",), minimum_free_space_mb=0)
    prepare_data(settings)
    engine = open_database(settings.database)
    reception = Reception(settings=settings, engine=engine)
    structlog.configure(processors=[_no_fault_of_ours])
    return reception, Admission(reception), Commitments(engine, settings), PerformedSteps(engine)


def _no_fault_of_ours(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    assert event["event"] not in ("instance_handler_failed", "connection_failed"), event
    raise structlog.DropEvent


_SLICE = struct.Struct("<3h6b2h2BbB")
_ODD = (float("nan"), float("inf"), -0.0, 1e300)


def series_of_slices(content: bytes) -> None:
    """Series selection, gate and grid of planes with any geometry: a refusal, or a grid on which every plane lies."""
    described = _SLICE.iter_unpack(content[: len(content) // _SLICE.size * _SLICE.size])
    planes = tuple(_plane(number, values) for number, values in enumerate(described))
    # Selection wants 20 images; the bytes describe some of them, the others follow from the last.
    planes += tuple(_plane(number, None) for number in range(len(planes), 130 if len(content) % 2 else 0))
    series = Series(
        series_instance_uid="1.2",
        modality="CT",
        series_number=1,
        series_description=None,
        body_part_examined="CHEST",
        protocol_name=None,
        convolution_kernel=None,
        contrast_bolus_agent=None,
        files=tuple(plane.path for plane in planes),
        slices=planes,
    )
    chosen = select_series(Study(study_instance_uid="1.1", study_description=None, series=(series,))).chosen
    if chosen is None or is_rejected(check_headers(chosen)):
        return
    ordered = order_slices(chosen.slices)
    first, positions_mm = ordered[0], np.array([plane.image_position_patient for plane in ordered], np.float64)
    geometry = geometry_of_stack(
        positions_mm, first.image_orientation_patient, first.pixel_spacing_mm, first.rows, first.columns, None
    )
    grid_mm = geometry.index_to_patient([(index, 0, 0) for index in range(len(ordered))])
    assert np.abs(grid_mm - positions_mm).max() <= max(geometry.spacing_mm), "a plane does not lie where the grid says"


def _plane(number: int, values: tuple[int, ...] | None) -> Slice:
    x, y, z, *rest = values or (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    cosines, (row_mm, column_mm, odd, rows, thickness, uid) = rest[:6], rest[6:]
    numbers = [x / 100, y / 100, number + z / 100]
    orientation = [ideal + value / 1e4 for ideal, value in zip((1, 0, 0, 0, 1, 0), cosines, strict=True)]
    spacing = [0.7 + row_mm / 1e3, 0.7 + column_mm / 1e3]
    for bit, target in enumerate((numbers, orientation, spacing)):
        if odd >> (2 * bit) & 3 == 3:
            target[odd % len(target)] = _ODD[odd >> 6 & 3]
    missing = odd in range(60, 64)
    return Slice(
        path=Path(f"{number}.dcm"),
        sop_instance_uid=f"1.3.{number - uid % 2}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        frame_number=None,
        instance_number=number,
        image_type=("ORIGINAL", "PRIMARY", "LOCALIZER" if uid > 250 else "AXIAL"),
        acquisition_number=uid // 64,
        frame_of_reference_uid=None if uid == 99 else "1.4",
        image_position_patient=None if missing else (numbers[0], numbers[1], numbers[2]),
        image_orientation_patient=tuple(orientation),
        pixel_spacing_mm=(spacing[0], spacing[1]),
        rows=512 - rows % 2,
        columns=512,
        slice_thickness_mm=thickness / 10 if thickness else None,
        rescale_slope=1.0,
        rescale_intercept=-1024.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A function to be tried and inputs that reach into it."""

    function: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def _encoded(syntax: str) -> bytes:
    image = make_ct_dataset(PatientName="Test^Päti", SpecificCharacterSet="ISO_IR 192")
    if syntax == RLELossless:
        image.compress(RLELossless, generate_instance_uid=False)
    elif syntax == ImplicitVRLittleEndian:
        image.file_meta.TransferSyntaxUID = syntax
    encoded = encoded_data_set(image)
    if syntax == DeflatedExplicitVRLittleEndian:
        deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        return deflater.compress(encoded) + deflater.flush()
    return encoded


def _files() -> list[bytes]:
    image, stream = make_ct_dataset(), BytesIO()
    image.save_as(stream, enforce_file_format=True)
    return [stream.getvalue(), _enhanced()]


def _enhanced() -> bytes:
    image, stream = make_ct_dataset(NumberOfFrames=1), BytesIO()
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    measures, position, frame = make_ct_dataset(), make_ct_dataset(), make_ct_dataset()
    for item in (measures, position, frame):
        for keyword in [element.keyword for element in item]:
            if keyword not in ("PixelSpacing", "ImagePositionPatient", "SliceThickness"):
                delattr(item, keyword)
    frame.PlanePositionSequence, frame.PixelMeasuresSequence = [position], [measures]
    image.PerFrameFunctionalGroupsSequence = [frame]
    image.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _conversations() -> list[bytes]:
    contexts = (
        *CT_EXPLICIT,
        (Verification, (ImplicitVRLittleEndian,)),
        (commitment.SOP_CLASS_UID, (ExplicitVRLittleEndian,)),
        (performed.SOP_CLASS_UID, (ExplicitVRLittleEndian,)),
    )
    request = associate_request(contexts)
    action = N_ACTION()
    action.MessageID, action.ActionTypeID, action.ActionInformation = 3, 1, BytesIO(_references()[0])
    action.RequestedSOPClassUID, action.RequestedSOPInstanceUID = commitment.SOP_CLASS_UID, commitment.SOP_INSTANCE_UID
    asked = b"".join(message(action, context_id=5))
    begin = N_CREATE()
    begin.MessageID, begin.AttributeList = 5, BytesIO(_steps()[0])
    begin.AffectedSOPClassUID, begin.AffectedSOPInstanceUID = performed.SOP_CLASS_UID, derive_uid("step")
    told = b"".join(message(begin, context_id=7))
    store = b"".join(message(store_request(make_ct_dataset())))
    echo = b"".join(message(echo_request(), context_id=3))
    released = b"\x05\0\0\0\0\x04" + bytes(4)
    short = [request + echo + released, request + store[:-200], request + asked + released, request + told + released]
    return [*short, request + store + store]


def _commands() -> list[bytes]:
    return [message(echo_request())[0][12:], message(store_request(make_ct_dataset()))[0][12:]]


def _references() -> list[bytes]:
    item = b"\x08\0\x50\x11UI\x06\x001.2.3\0\x08\0\x55\x11UI\x06\x001.2.4\0\x08\0\x97\x11US\x02\0\x10\x01"
    sequence = b"\xfe\xff\0\xe0" + struct.pack("<I", len(item)) + item
    return [b"\x08\0\x95\x11UI\x06\x001.2.5\0\x08\0\x99\x11SQ\0\0" + struct.pack("<I", len(sequence)) + sequence]


def _steps() -> list[bytes]:
    told = (begun(derive_uid("study")), ended({"1.2.3": ["1.2.3.1", "1.2.3.2"]}))
    return [bytes(encode(step, False, True) or b"") for step in told]


def _bodies() -> list[bytes]:
    part = b"--frontier\r\nContent-Type: application/dicom\r\n\r\n" + _files()[0] + b"\r\n"
    return [b"\xff" + part + b"--frontier--", b"\x03" + part[:60] + b"\r\n" + part + b"--frontier--\r\n"]


def _requests() -> list[bytes]:
    """Queries, Accept, Authorization, forms and documents."""
    form = b"Content-Type: application/x-www-form-urlencoded\r\nX-OneScan-Request: 1"
    document = b"Content-Type: application/json\r\nX-OneScan-Request: 1"
    verdict = b'{"verified": true, "verdicts": [{"finding": "1.2", "verdict": "rejected"}], "comment": "x"}'
    return [
        b"GET /dicom-web/studies?PatientName=A*&StudyDate=20200101-&00080061=CT&limit=3&offset=1&fuzzymatching=true"
        b"&includefield=all\r\nAccept: application/dicom+json;q=0.5, */*;q=0.1",
        b"GET /dicom-web/studies/1.2.3.1/series?accept=multipart/related;type=%22application/dicom%22",
        b"GET /dicom-web/studies/1.2.3.1/series/1.2/instances/1.2.3/frames/1,2\r\nAccept: multipart/related;"
        b' type="application/octet-stream"; transfer-syntax=*\r\nRange: bytes=0-10',
        b"GET /?page=2&search=x&state=reported\r\nAuthorization: Basic dXNlcjpwYXNz\r\nAccept-Language: zh,en;q=0.5",
        b"GET /studies/1.2.3.1\r\nCookie: session=abc",
        b"POST /api/studies/1.2.3.2/replay\r\n" + document + b"\r\n\r\n{}",
        b"POST /api/studies/1.2.3.1/reports/1/verification\r\n" + document + b"\r\n\r\n" + verdict,
        b"POST /login\r\n" + form + b"\r\n\r\nname=a&password=b&next=%2F",
        b'POST /dicom-web/studies\r\nContent-Type: multipart/related; type="application/dicom"; boundary=frontier'
        b"\r\nX-OneScan-Request: 1\r\n\r\n" + _bodies()[0][1:],
    ]


TARGETS = {
    "association_request": Target(function=association_request, seeds=lambda: [associate_request()[6:], *_commands()]),
    "data_set_header": Target(
        function=data_set_header,
        seeds=lambda: [bytes([number]) + _encoded(syntax) for number, syntax in enumerate(_SYNTAXES)],
    ),
    "elements": Target(function=elements, seeds=lambda: [_encoded(syntax) for syntax in _SYNTAXES[:2]] + _references()),
    "file_header": Target(function=file_header, seeds=_files),
    "commitment_information": Target(function=commitment_information, seeds=_references),
    "performed_step": Target(function=performed_step, seeds=_steps),
    "association": Target(function=association, seeds=_conversations),
    "stow_body": Target(function=stow_body, seeds=_bodies),
    "http_request": Target(function=http_request, seeds=_requests),
    "series_of_slices": Target(
        function=series_of_slices, seeds=lambda: [b"", b"\0", bytes(20 * 130), bytes(20 * 5 + 1), bytes(range(20)) * 30]
    ),
}
