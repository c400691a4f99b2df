"""How many images a source has, asked of a peer that answers queries as a test wants."""

from contextlib import contextmanager

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification
from running import free_port

from dicom_gateway.errors import DeliveryError, PeerRefused, PeerUnreachable
from dicom_gateway.receive.expected import SourceCount, ask
from dicom_gateway.settings import Source

STUDY = "1.2.3"
FIND = StudyRootQueryRetrieveInformationModelFind


@contextmanager
def query_scp(answers, status=0x0000, sop_class=FIND):
    """`answers` has matches, as dictionaries of keywords, by (level, Series Instance UID asked for)."""

    def on_find(event):
        asked = event.identifier
        assert event.assoc.requestor.ae_title == "ONESCAN"
        for values in answers.get((asked.QueryRetrieveLevel, asked.get("SeriesInstanceUID", "")), []):
            match = Dataset()
            for keyword, value in ({"StudyInstanceUID": asked.StudyInstanceUID} | values).items():
                setattr(match, keyword, value)
            yield 0xFF00, match
        yield status, None

    entity = AE(ae_title="ARCHIVE")
    entity.require_called_aet = True
    entity.add_supported_context(sop_class)
    port = free_port()
    entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, on_find)])
    try:
        yield Source(name="archive", ae_title="SENDER", query_ae_title="ARCHIVE", host="127.0.0.1", port=port)
    finally:
        entity.shutdown()


def series(uid, modality="CT", number=None, **values):
    counted = {} if number is None else {"NumberOfSeriesRelatedInstances": number}
    return {"SeriesInstanceUID": uid, "Modality": modality} | counted | values


@pytest.mark.parametrize(
    ("answers", "count"),
    [
        (
            {("SERIES", ""): [series("1.1", number=300), series("1.2", number=2), series("1.3", "SR", 9)]},
            SourceCount(series={"1.1": 300, "1.2": 2}),
        ),
        (
            {
                ("SERIES", ""): [series("1.1"), series("1.2", number=1)],
                ("IMAGE", "1.1"): [{"SOPInstanceUID": "5.1"}, {"SOPInstanceUID": "5.2"}],
            },
            SourceCount(series={"1.1": 2, "1.2": 1}),
        ),
        (
            {("STUDY", ""): [{"NumberOfStudyRelatedInstances": 7, "ModalitiesInStudy": ["CT", "SR"]}]},
            SourceCount(total=7, modalities=frozenset({"CT", "SR"})),
        ),
        ({("STUDY", ""): [{"ModalitiesInStudy": "CT"}]}, SourceCount(modalities=frozenset({"CT"}))),
        ({}, SourceCount()),
        # An archive that knows no key gives what it has of everybody.
        ({("SERIES", ""): [series("1.1", number=300, StudyInstanceUID="9.9")]}, SourceCount()),
        ({("STUDY", ""): 2 * [{"NumberOfStudyRelatedInstances": 7}]}, SourceCount()),
    ],
)
def test_count(answers, count):
    with query_scp(answers) as source:
        assert ask(source, STUDY, calling_ae_title="ONESCAN") == count


def test_no_answer_is_a_delivery_error():
    with query_scp({}, status=0xA700) as source, pytest.raises(PeerRefused, match="0xA700"):
        ask(source, STUDY, calling_ae_title="ONESCAN")
    with query_scp({}, sop_class=Verification) as source, pytest.raises(DeliveryError):
        ask(source, STUDY, calling_ae_title="ONESCAN")
    nobody = Source(name="nobody", ae_title="X", host="127.0.0.1", port=free_port())
    with pytest.raises(PeerUnreachable):
        ask(nobody, STUDY, calling_ae_title="ONESCAN")
