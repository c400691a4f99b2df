"""Results sent to real peers: what is negotiated, what stands in for what is refused, which "no" is worth a retry."""

import socket
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import pytest
from factories import make_ct_dataset
from pydicom import dcmread
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import LabelMapSegmentationStorage
from running import end_peer, free_port, pacs, restricted_storescp

from dicom_gateway.deliver.dimse import association_with, echo, send
from dicom_gateway.deliver.profile import SOP_CLASSES
from dicom_gateway.errors import PeerRefused, PeerUnreachable
from dicom_gateway.settings import Destination
from dicom_gateway.store.schema import ObjectOutcome
from imaging.uids import derive_uid

SR_CLASSES = (Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage, BasicTextSRStorage)
SC_CLASS = SecondaryCaptureImageStorage
RLE_TOO = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless]
REFUSED = "presentation context refused"
NAME = "Wang^XiaoDong=王^小东"


def encode(name, held=()):
    """An object of the kind's class with pixels and Chinese text, also in a sequence."""
    inner = make_ct_dataset(StudyDescription="胸部")
    data_set = make_ct_dataset(
        SpecificCharacterSet="ISO_IR 192",
        PatientName=NAME,
        SOPClassUID=SOP_CLASSES[name],
        SOPInstanceUID=uid_of(name),
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        PixelData=bytes(range(256)),
    )
    inner.PixelData = None
    if name == "seg_labelmap":
        data_set.compress(RLELossless, generate_instance_uid=False)
    data_set.RelatedSeriesSequence = [inner]
    return (data_set,)


def uid_of(name):
    return derive_uid("deliver test", name)


def at(port, *objects, **profile):
    objects = objects or ("sr", "sc")
    return Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, objects=objects, **profile)


def deliver(destination):
    return send(encode, destination, calling_ae_title="ONESCAN")


def sent(name, sent_as=None, reason=None):
    return ObjectOutcome(name=name, sent_as=sent_as or name, instances=1, reason=reason)


def left_out(name, reason=REFUSED):
    return ObjectOutcome(name=name, sent_as=None, instances=0, reason=reason)


@contextmanager
def scp(handlers=(), sop_classes=(Comprehensive3DSRStorage, SC_CLASS), **attributes):
    """A peer that knows its name, with more of pynetdicom's AE attributes."""
    entity = AE(ae_title="PACS")
    for sop_class in sop_classes:
        entity.add_supported_context(sop_class, attributes.get("transfer_syntax"))
    attributes.pop("transfer_syntax", None)
    for name, value in attributes.items():
        setattr(entity, name, value)
    port = free_port()
    entity.start_server(("127.0.0.1", port), block=False, evt_handlers=list(handlers))
    try:
        yield port
    finally:
        end_peer(entity)


def keeping(files, status=lambda number, request: 0x0000):
    """A C-STORE handler that keeps (data set, its bytes) and answers `status(number of the request, request)`."""

    def keep(event):
        content = event.request.DataSet.getvalue()
        answer = status(len(files), event.request)
        meta = BytesIO()
        write_file_meta_info(meta, event.file_meta)
        files.append((dcmread(BytesIO(bytes(128) + b"DICM" + meta.getvalue() + content)), content, answer))
        return answer

    return [(evt.EVT_C_STORE, keep)]


def test_delivered():
    with pacs() as peer:
        assert deliver(at(peer.port)) == (sent("sr"), sent("sc"))
        echo(at(peer.port), calling_ae_title="ONESCAN")
    assert peer.received == {uid_of("sr"): 1, uid_of("sc"): 1}


@pytest.mark.parametrize(
    ("objects", "order"),
    [
        (("sc", "seg", "sr"), ("sc", "seg", "sr")),
        (("sc", "sr", "pdf", "seg"), ("sc", "seg", "sr", "pdf")),
        (("sr_text", "sc", "seg", "sr"), ("seg", "sr_text", "sc", "sr")),
        (("sc", "pdf", "seg"), ("sc", "pdf", "seg")),
    ],
)
def test_in_the_order_of_the_profile_but_no_sr_before_the_segmentation_that_it_refers_to(objects, order):
    files = []
    with scp(keeping(files), (SC_CLASS, SegmentationStorage, *SR_CLASSES, EncapsulatedPDFStorage)) as port:
        assert deliver(at(port, *objects)) == tuple(map(sent, objects))
    assert [file.SOPInstanceUID for file, _, _ in files] == [uid_of(name) for name in order]


def test_each_kind_is_encoded_for_what_the_destination_has_by_then():
    told = {}

    def noted(name, held):
        told[name] = set(held)
        return encode(name)

    refuses_segmentations = keeping([], lambda _, request: 0xC000 if "66.4" in request.AffectedSOPClassUID else 0x0000)
    with (
        scp(refuses_segmentations, (Comprehensive3DSRStorage, SegmentationStorage, SC_CLASS)) as port,
        pytest.raises(PeerRefused, match=r"^seg: status 0xC000$"),
    ):
        send(noted, at(port, "sc", "seg", "marks", "sr"), calling_ae_title="ONESCAN")
    assert told == {"sc": set(), "seg": {"sc"}, "sr": {"sc"}}


@pytest.mark.parametrize(
    ("taken", "way"),
    [
        (SR_CLASSES[1:], "sr_comprehensive"),
        (SR_CLASSES[2:], "sr_enhanced"),
        (SR_CLASSES[3:], "sr_text"),
        ((SR_CLASSES[3], SR_CLASSES[1]), "sr_comprehensive"),
    ],
)
def test_a_refused_sr_falls_back_to_the_next_class_that_is_taken(taken, way):
    with pacs(sop_classes=(*taken, SC_CLASS)) as peer:
        assert deliver(at(peer.port)) == (sent("sr", way, REFUSED), sent("sc"))
    assert peer.received == {uid_of(way): 1, uid_of("sc"): 1}


@pytest.mark.parametrize("objects", [("sr", "sc"), ("sc", "sr"), ("sr",)])
def test_the_summary_page_is_the_last_fallback_and_is_sent_once(objects):
    with pacs(sop_classes=(SC_CLASS,)) as peer:
        outcomes = deliver(at(peer.port, *objects))
    assert set(outcomes) == {sent(name, "sc", REFUSED if name == "sr" else None) for name in objects}
    assert peer.received == {uid_of("sc"): 1}


def test_another_refused_object_is_left_out():
    with pacs(sop_classes=(Comprehensive3DSRStorage, SC_CLASS)) as peer:
        outcomes = deliver(at(peer.port, "seg", "sr", "gsps", "sc", "marks"))
    assert outcomes == (left_out("seg"), sent("sr"), left_out("gsps"), sent("sc"), left_out("marks"))


def test_a_label_map_is_sent_compressed_or_as_a_binary_segmentation():
    """Also where the profile offers no compression: uncompressed it would be too large."""
    files = []
    with scp(keeping(files), (LabelMapSegmentationStorage, SegmentationStorage), transfer_syntax=RLE_TOO) as port:
        assert deliver(at(port, "seg_labelmap")) == (sent("seg_labelmap"),)
    ((file, _, _),) = files
    assert file.file_meta.TransferSyntaxUID == RLELossless
    assert np.array_equal(file.pixel_array.ravel(), np.arange(256))
    for classes in ((SegmentationStorage,), (LabelMapSegmentationStorage, SegmentationStorage)):
        # The second peer knows label maps, but not compressed.
        with scp(keeping([]), classes, transfer_syntax=ExplicitVRLittleEndian) as port:
            outcomes = deliver(at(port, "seg_labelmap", "sr"))
            assert outcomes == (sent("seg_labelmap", "seg", REFUSED), left_out("sr"))
    with pacs(sop_classes=(SC_CLASS,)) as peer:
        assert deliver(at(peer.port, "seg_labelmap", "sc")) == (left_out("seg_labelmap"), sent("sc"))


def test_a_class_refused_only_when_it_is_stored_is_refused_too():
    files = []

    def status(_, request):
        return 0x0122 if request.AffectedSOPClassUID == Comprehensive3DSRStorage else 0x0000

    with scp(keeping(files, status), (*SR_CLASSES, SC_CLASS)) as port:
        assert deliver(at(port)) == (sent("sr", "sr_comprehensive", "status 0x0122"), sent("sc"))


def test_what_a_study_has_nothing_of_is_no_refusal():
    with pacs() as peer:
        destination = at(peer.port, "sc")
        assert send(lambda name, held: (), destination, calling_ae_title="ONESCAN") == (
            ObjectOutcome(name="sc", sent_as="sc", instances=0),
        )


def test_nothing_is_encoded_for_a_peer_that_is_not_there():
    def encode_nothing(name, held):
        raise AssertionError("encoded in vain")

    with pytest.raises(PeerUnreachable):
        send(encode_nothing, at(free_port()), calling_ae_title="ONESCAN")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_peer_that_knows_one_transfer_syntax_only(syntax):
    files = []
    with scp(keeping(files), transfer_syntax=syntax) as port:
        deliver(at(port))
    for file, _, _ in files:
        assert file.file_meta.TransferSyntaxUID == syntax
        assert (str(file.PatientName), file.PixelData) == (NAME, bytes(range(256)))


def test_the_profiles_transfer_syntax_is_preferred():
    files = []
    syntaxes = ("RLELossless", "ImplicitVRLittleEndian", "ExplicitVRLittleEndian")
    with scp(keeping(files), transfer_syntax=RLE_TOO) as port:
        deliver(at(port, transfer_syntaxes=syntaxes))
    sr, sc = (file for file, _, _ in files)
    assert sr.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert sc.file_meta.TransferSyntaxUID == RLELossless
    assert sc.SOPInstanceUID == uid_of("sc")
    assert np.array_equal(sc.pixel_array.ravel(), np.arange(256))


def test_a_peer_without_the_profiles_transfer_syntax_takes_nothing():
    with (
        scp(transfer_syntax=ImplicitVRLittleEndian) as port,
        pytest.raises(PeerRefused, match="context"),
    ):
        deliver(at(port, transfer_syntaxes=("ExplicitVRLittleEndian",)))


@pytest.mark.parametrize(("character_set", "codec"), [("ISO_IR 192", "utf-8"), ("GB18030", "gb18030")])
def test_text_is_in_the_profiles_character_set(character_set, codec):
    files = []
    with scp(keeping(files)) as port:
        deliver(at(port, "sr", character_set=character_set))
    ((file, content, _),) = files
    assert file.SpecificCharacterSet == character_set
    assert str(file.PatientName) == NAME
    assert file.RelatedSeriesSequence[0].StudyDescription == "胸部"
    assert NAME.encode(codec) in content
    assert "胸部".encode(codec) in content


@pytest.mark.parametrize("status", [0xA700, 0xA7FF])
def test_out_of_resources_is_tried_again(status):
    with pacs() as peer:
        peer.status = status
        with pytest.raises(PeerUnreachable, match=f"0x{status:04X}"):
            deliver(at(peer.port))


@pytest.mark.parametrize("status", [0xA900, 0xC000, 0x0110, 0x0122])
def test_failure_is_refusal(status):
    with pacs() as peer:
        peer.status = status
        with pytest.raises(PeerRefused, match=f"0x{status:04X}"):
            deliver(at(peer.port))


def test_an_object_that_fails_keeps_no_other_from_being_sent():
    files = []
    first_fails = keeping(files, lambda number, _: 0xC000 if number == 0 else 0x0000)
    with scp(first_fails) as port, pytest.raises(PeerRefused, match=r"^sr: status 0xC000$"):
        deliver(at(port))
    assert [(file.SOPInstanceUID, answer) for file, _, answer in files] == [
        (uid_of("sr"), 0xC000),
        (uid_of("sc"), 0x0000),
    ]


@pytest.mark.parametrize("status", [0xB000, 0xB007, 0x0111])
def test_warning_and_duplicate_are_success(status):
    with pacs() as peer:
        peer.status = status
        assert deliver(at(peer.port)) == (sent("sr"), sent("sc"))


def test_nobody_there():
    with pytest.raises(PeerUnreachable):
        deliver(at(free_port()))


@pytest.mark.parametrize("host", ["no-such-host.invalid", "not..a.name"])
def test_name_that_cannot_be_resolved_is_tried_again(host):
    peer = Destination(name="pacs", ae_title="PACS", host=host, port=104)
    with pytest.raises(PeerUnreachable, match="cannot be resolved"):
        deliver(peer)
    with pytest.raises(PeerUnreachable, match="cannot be resolved"):
        echo(peer, calling_ae_title="ONESCAN")


@pytest.mark.parametrize("sop_classes", [(CTImageStorage,), (BasicTextSRStorage,)])
def test_a_peer_that_takes_nothing_of_the_profile(sop_classes):
    with pacs(sop_classes=sop_classes) as peer, pytest.raises(PeerRefused, match="context"):
        deliver(at(peer.port, "seg", "sc"))


def test_unknown_calling_title_is_refusal():
    with scp(require_calling_aet=["OTHER"]) as port, pytest.raises(PeerRefused, match="rejected"):
        deliver(at(port))


def test_abort_is_tried_again():
    with pacs() as peer:
        peer.answers = [None]
        with pytest.raises(PeerUnreachable):
            deliver(at(peer.port))


def test_the_same_bytes_after_a_broken_association_and_a_full_disk():
    """The destination drops the association after the first object, then is full, then well again."""
    with pacs() as peer:
        peer.answers = [0x0000, None, 0xA700]
        for _ in range(2):
            with pytest.raises(PeerUnreachable):
                deliver(at(peer.port))
        deliver(at(peer.port))
    assert peer.received == {uid_of("sr"): 2, uid_of("sc"): 1}
    assert {uid: len(digests) for uid, digests in peer.digests.items()} == {uid_of("sr"): 1, uid_of("sc"): 1}


def test_dcmtk_with_a_restricted_profile_gets_the_fallback(tmp_path):
    classes = ("EnhancedSRStorage", "SecondaryCaptureImageStorage")
    with restricted_storescp(tmp_path, *classes) as (port, received):
        outcomes = deliver(at(port, "sr", "seg_labelmap", "sc"))
    assert outcomes == (sent("sr", "sr_enhanced", REFUSED), left_out("seg_labelmap"), sent("sc"))
    files = [dcmread(path) for path in received.iterdir()]
    assert {file.SOPInstanceUID for file in files} == {uid_of("sr_enhanced"), uid_of("sc")}
    assert {str(file.PatientName) for file in files} == {NAME}


def test_nothing_waits_for_an_acknowledgement_of_tcp():
    with pacs() as peer:
        destination = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=peer.port)
        with association_with(destination, "ONESCAN", {str(SC_CLASS): (ExplicitVRLittleEndian,)}) as association:
            connection = association.dul.socket.socket
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
