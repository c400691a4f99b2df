"""The key slices as a Key Object Selection (TID 2010), by which a PACS shows them first."""

from copy import deepcopy

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_gateway.report import codes
from dicom_gateway.report.headline import positives
from dicom_gateway.report.instance import finish, instance_arguments
from dicom_gateway.report.key_slices import key_slices_of
from dicom_gateway.report.sr_items import concept, device_observer
from dicom_gateway.report.stored import StoredResult

SERIES_NUMBER = 9005
SERIES_DESCRIPTION = "AI chest CT key slices"


def encode_key_objects(result: StoredResult) -> tuple[Dataset, ...]:
    """Key Object Selection of the slices that show a finding, described by the headline; none without such a slice."""
    report, language = result.report, result.edition.language
    shown = key_slices_of(result)
    if not shown:
        return ()
    images = [_image(source) for source, _ in shown]
    content = KeyObjectSelection(
        document_title=concept(codes.OF_INTEREST),
        referenced_objects=images,
        observer_device_context=device_observer(report),
        description=language.after_stop.join((*positives(report, language), language.told(report.disclaimer))),
    )
    ds = KeyObjectSelectionDocument(
        evidence=images,
        content=content,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **instance_arguments(result, "KO", SERIES_NUMBER),
    )
    frames = {str(source.SOPInstanceUID): numbers for source, numbers in shown}
    for item in ds.ContentSequence:
        if item.ValueType == "IMAGE":
            # TID 2010 gives them no name; highdicom calls all of them "Source".
            del item.ConceptNameCodeSequence
            (reference,) = item.ReferencedSOPSequence
            if numbers := frames[reference.ReferencedSOPInstanceUID]:
                reference.ReferencedFrameNumber = list(numbers)
    return (finish(ds, result, SERIES_DESCRIPTION),)


def _image(source: Dataset) -> Dataset:
    """As highdicom shall see it: an image (which it tells by these two), of nobody (finish() names the persons)."""
    image = deepcopy(source)
    image.Rows = image.Columns = 1
    image.PatientName = image.ReferringPhysicianName = ""
    return image
