"""Whether a destination has results for good: storage commitment (PS3.4 Annex J) asked for, its answer noted.

The answer comes to our DICOM port, on an association that the destination opens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.sop_class import StorageCommitmentPushModel

from dicom_gateway.deliver.dimse import association_with
from dicom_gateway.errors import PeerRefused, PeerUnreachable
from dicom_gateway.settings import Destination

# PS3.4 J.4: the one well-known instance of the class.
SOP_INSTANCE_UID = "1.2.840.10008.1.20.1.1"
_REQUEST_ACTION_TYPE = 1


@dataclass(frozen=True, slots=True)
class Reference:
    """An object that was stored."""

    sop_class_uid: str
    sop_instance_uid: str


def request(
    destination: Destination, references: Sequence[Reference], *, transaction_uid: str, calling_ae_title: str
) -> None:
    """N-ACTION. Raises PeerUnreachable or PeerRefused when the destination does not take the request."""
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = [_item(reference) for reference in references]
    contexts = {str(StorageCommitmentPushModel): (ImplicitVRLittleEndian,)}
    with association_with(destination, calling_ae_title, contexts) as association:
        try:
            response, _ = association.send_n_action(
                information, _REQUEST_ACTION_TYPE, StorageCommitmentPushModel, SOP_INSTANCE_UID
            )
        except RuntimeError as error:
            raise PeerUnreachable("the association ended before the request was sent") from error
    if "Status" not in response:
        raise PeerUnreachable("no answer, or an abort")
    if response.Status != 0x0000:
        raise PeerRefused(f"status 0x{response.Status:04X}")


def _item(reference: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    return item
