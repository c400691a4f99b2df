"""A peer that answers C-FIND as a test wants."""

from contextlib import contextmanager

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as FIND
from running import end_peer, free_port

from dicom_gateway.settings import Source


@contextmanager
def query_scp(answers, status=0x0000, sop_class=FIND, tls=None, **values):
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
    handlers = [(evt.EVT_C_FIND, on_find)]
    entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers, ssl_context=tls)
    try:
        yield Source(name="archive", ae_title="CT1", query_ae_title="ARCHIVE", host="127.0.0.1", port=port, **values)
    finally:
        end_peer(entity)


def series(uid, modality="CT", number=None, **values):
    counted = {} if number is None else {"NumberOfSeriesRelatedInstances": number}
    return {"SeriesInstanceUID": uid, "Modality": modality} | counted | values
