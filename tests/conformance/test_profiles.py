"""What arrives at a destination, by its profile: each object of its class, and still content for the judges."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pydicom.uid
import pytest
from conformance.test_dicom_results import complaints
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pynetdicom import AE, evt
from running import end_peer, free_port

from dicom_gateway.deliver.dimse import send
from dicom_gateway.deliver.profile import SOP_CLASSES
from dicom_gateway.errors import PeerRefused
from dicom_gateway.report.edition import Edition
from dicom_gateway.report.language import CHINESE
from dicom_gateway.report.objects import ENCODERS, encode_beside
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.wording import OBJECT_NAMES
from dicom_gateway.settings import Destination, ResultObject, TransferSyntax

EVERYTHING = get_args(ResultObject)
NAME = "Wang^XiaoDong=王^小东"


def test_every_kind_of_object_can_be_named_encoded_and_sent() -> None:
    assert set(EVERYTHING) == set(ENCODERS) == set(SOP_CLASSES)
    assert set(EVERYTHING) <= set(OBJECT_NAMES)


@pytest.fixture(scope="module")
def chinese(make_case: Callable[..., StoredResult]) -> StoredResult:
    case = make_case("findings", PatientName=NAME, StudyDescription="胸部CT平扫")
    return replace(case, edition=Edition(CHINESE))


@pytest.mark.parametrize("name", EVERYTHING)
def test_objects_are_of_the_class_that_is_proposed_for_them(name: str, chinese: StoredResult) -> None:
    objects = ENCODERS[name](chinese)
    assert objects
    assert {str(ds.SOPClassUID) for ds in objects} == {SOP_CLASSES[name]}


def test_encoding_one_object_changes_no_other(chinese: StoredResult) -> None:
    for encode in ENCODERS.values():
        for ds in encode(chinese):
            assert str(ds.PatientName) == NAME


@contextmanager
def receiver(folder: Path, refused: Collection[str] = (), failing: Collection[str] = ()) -> Iterator[int]:
    """A peer that writes what it takes as it came: everything but SOP classes that it refuses or fails to store."""

    def keep(event: Any) -> int:
        if event.request.AffectedSOPClassUID in failing:
            return 0xC000
        path = folder / f"{event.request.AffectedSOPInstanceUID}.dcm"
        ds = event.dataset
        ds.file_meta = event.file_meta
        dcmwrite(path, ds, enforce_file_format=True)
        return 0x0000

    entity = AE(ae_title="PACS")
    for sop_class in set(SOP_CLASSES.values()) - set(refused):
        entity.add_supported_context(sop_class, [getattr(pydicom.uid, keyword) for keyword in get_args(TransferSyntax)])
    port = free_port()
    entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        yield port
    finally:
        end_peer(entity)


@pytest.mark.parametrize(
    ("syntaxes", "character_set"),
    [(("ImplicitVRLittleEndian",), "GB18030"), (("RLELossless", "ExplicitVRLittleEndian"), "ISO_IR 192")],
)
def test_what_arrives_is_content_for_the_judges(
    syntaxes: tuple[TransferSyntax, ...], character_set: Any, chinese: StoredResult, tmp_path: Path
) -> None:
    sent: list[Dataset] = []

    def encode(name: ResultObject, held: object) -> tuple[Dataset, ...]:
        objects = ENCODERS[name](chinese)
        sent.extend(objects)
        return objects

    with receiver(tmp_path) as port:
        profile = {"objects": EVERYTHING, "transfer_syntaxes": syntaxes, "character_set": character_set}
        peer = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, **profile)
        outcomes = send(encode, peer, calling_ae_title="ONESCAN")
    assert [(o.name, o.sent_as, o.reason) for o in outcomes] == [(name, name, None) for name in EVERYTHING]
    assert sum(o.instances for o in outcomes) == len(sent)
    for ds in sent:
        path = tmp_path / f"{ds.SOPInstanceUID}.dcm"
        assert complaints(path) == []
        arrived = dcmread(path)
        assert arrived.SpecificCharacterSet == character_set
        assert (str(arrived.PatientName), arrived.StudyDescription) == (NAME, "胸部CT平扫")
        is_labelmap = ds.SOPClassUID == SOP_CLASSES["seg_labelmap"]
        assert arrived.file_meta.TransferSyntaxUID.keyword in (("RLELossless",) if is_labelmap else syntaxes)
        if "PixelData" in ds:
            assert (arrived.pixel_array == ds.pixel_array).all()


def references(node: Dataset) -> set[str]:
    """SOP Instance UIDs that a data set names, but for the revision it supersedes."""
    found = set()
    for element in node:
        if element.VR == "SQ" and element.keyword != "PredecessorDocumentsSequence":
            found |= set().union(*map(references, element.value))
        elif element.keyword == "ReferencedSOPInstanceUID":
            found.add(str(element.value))
    return found


@pytest.mark.parametrize(
    ("objects", "refused", "failing"),
    [
        (("sr", "seg", "marks", "ko"), (), ()),
        (("sr", "seg_labelmap"), (), ()),
        (("sr", "sc"), (), ()),
        (("sr", "seg"), ("seg",), ()),
        (("sr", "seg"), ("seg", "sr"), ()),
        (("sr", "seg"), ("seg", "sr", "sr_comprehensive"), ()),
        (("sr", "seg"), ("seg", "sr", "sr_comprehensive", "sr_enhanced"), ()),
        (("sr", "seg"), (), ("seg",)),
    ],
)
def test_nothing_arrives_that_refers_to_what_did_not(
    objects: Any,
    refused: Collection[Any],
    failing: Collection[Any],
    make_case: Callable[..., StoredResult],
    tmp_path: Path,
) -> None:
    case = make_case("findings")
    peer_class = {"refused": [SOP_CLASSES[n] for n in refused], "failing": [SOP_CLASSES[n] for n in failing]}
    arrived: list[dict[str, bytes]] = []
    for attempt in ("first", "second"):
        folder = tmp_path / attempt
        folder.mkdir()
        with receiver(folder, **peer_class) as port:
            peer = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, objects=objects)
            with pytest.raises(PeerRefused) if failing else nullcontext():
                send(lambda name, held: encode_beside(held, name, case), peer, calling_ae_title="ONESCAN")
        arrived.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert arrived[0] == arrived[1]
    data_sets = [dcmread(path) for path in folder.iterdir()]
    there = {str(ds.SOPInstanceUID) for ds in (*data_sets, *case.headers.instances)}
    for ds in data_sets:
        assert references(ds) <= there, ds.SOPClassUID
    for path in folder.iterdir():
        assert complaints(path) == []
    segmented = {str(ds.SOPInstanceUID) for ds in data_sets if ds.Modality == "SEG"}
    referring = {ds.SOPClassUID for ds in data_sets if references(ds) & segmented}
    assert referring == ({SOP_CLASSES["sr"]} if "seg" in objects and not refused and not failing else set())
