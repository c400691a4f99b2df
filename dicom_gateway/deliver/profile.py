"""What the kinds of result objects are to a DICOM peer, and what stands in for one whose class it refuses."""

from collections.abc import Iterable

from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom.sop_class import LabelMapSegmentationStorage

from dicom_gateway.settings import UNCOMPRESSED, Destination, ResultObject

# SOP class of each kind (PS3.4 Annex B.5): contexts are proposed before anything is encoded.
SOP_CLASSES: dict[ResultObject, str] = {
    "sr": str(Comprehensive3DSRStorage),
    "seg": str(SegmentationStorage),
    "seg_labelmap": str(LabelMapSegmentationStorage),
    "sc": str(SecondaryCaptureImageStorage),
    "marks": str(ComprehensiveSRStorage),
    "key_images": str(SecondaryCaptureImageStorage),
    "ko": str(KeyObjectSelectionDocumentStorage),
    "gsps": str(GrayscaleSoftcopyPresentationStateStorage),
    "pdf": str(EncapsulatedPDFStorage),
    "sr_comprehensive": str(ComprehensiveSRStorage),
    "sr_enhanced": str(EnhancedSRStorage),
    "sr_text": str(BasicTextSRStorage),
}

# The findings must arrive somehow, and the segments in one form; whatever else a peer refuses is left out.
_SR_IN_LESS_AND_LESS: tuple[ResultObject, ...] = ("sr", "sr_comprehensive", "sr_enhanced", "sr_text", "sc")
_SEGMENTATIONS: tuple[ResultObject, ...] = ("seg_labelmap", "seg")

# The other kinds are text, or a 1 bit segmentation, which this syntax cannot hold (PS3.5 8.2.2).
_RLE_HOLDS = str(SecondaryCaptureImageStorage)


def ways_of_sending(name: ResultObject) -> tuple[ResultObject, ...]:
    """`name` itself, then what stands in for it, the most telling first."""
    if name in _SR_IN_LESS_AND_LESS[:-1]:
        return _SR_IN_LESS_AND_LESS[_SR_IN_LESS_AND_LESS.index(name) :]
    return _SEGMENTATIONS if name == "seg_labelmap" else (name,)


def is_segmentation(name: ResultObject) -> bool:
    """Whether this kind, or what stands in for it, is what an SR may refer to."""
    return name in _SEGMENTATIONS


def refers_to_segmentations(name: ResultObject) -> bool:
    """Whether objects of this kind, or what stands in for them, refer to the Segmentations."""
    return name in _SR_IN_LESS_AND_LESS[:-1]


def proposed_contexts(destination: Destination) -> dict[str, tuple[str, ...]]:
    """SOP class -> transfer syntaxes (keywords), the preferred one first, for everything that may have to be sent."""
    return {
        SOP_CLASSES[way]: _syntaxes(SOP_CLASSES[way], destination.transfer_syntaxes)
        for name in destination.objects
        for way in ways_of_sending(name)
    }


def _syntaxes(sop_class: str, keywords: Iterable[str]) -> tuple[str, ...]:
    if sop_class == SOP_CLASSES["seg_labelmap"]:
        return ("RLELossless",)
    return tuple(keyword for keyword in keywords if keyword in UNCOMPRESSED or sop_class == _RLE_HOLDS)
