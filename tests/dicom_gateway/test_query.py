"""How many images a source has, asked of a peer that answers queries as a test wants."""

import pytest
from pynetdicom.sop_class import Verification
from query_scp import query_scp, series
from running import free_port, make_settings

from dicom_gateway.errors import DeliveryError, PeerRefused, PeerUnreachable
from dicom_gateway.operate import doctor
from dicom_gateway.query import SourceCount, ask
from dicom_gateway.settings import Settings, Source
from dicom_gateway.web.pages import shown_settings

STUDY = "1.2.3"


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


def test_a_source_among_the_settings_that_are_shown():
    source = Source(name="archive", ae_title="CT1", host="h", port=104)
    assert ("archive (CT1, asked as CT1 at h:104)") in [
        shown for _, shown, _ in shown_settings(Settings(sources=[source]))
    ]


def test_doctor_asks_the_sources(tmp_path):
    with query_scp({}) as good, query_scp({}, sop_class=Verification) as unwilling:
        sources = (good, unwilling.model_copy(update={"name": "unwilling", "ae_title": "CT2"}))
        settings = make_settings(tmp_path, sources=sources, calling_ae_titles=("CT1", "CT2"))
        checks = {check.name: check for check in doctor(settings)}
        assert (checks["source archive"].ok, checks["source unwilling"].ok) == (True, False)
        assert "ONESCAN" in checks["source unwilling"].advice
        settings = make_settings(tmp_path, sources=sources, calling_ae_titles=("CT2",))
        assert not {check.name: check for check in doctor(settings)}["source archive"].ok
