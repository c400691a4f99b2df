"""Data sets that requests carry beside images, as of storage commitment and of performed procedure steps."""

from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from dicom_gateway.receive.statuses import StoreRefused, StoreStatus


def parse_data_set(encoded: bytes, transfer_syntax: str, otherwise: StoreStatus) -> Dataset:
    """All of a data set in one of the uncompressed little endian syntaxes. Raises StoreRefused with `otherwise`."""
    try:
        data_set = read_dataset(BytesIO(encoded), bool(UID(transfer_syntax).is_implicit_VR), True)
        # Now, not when a value is wanted: the parser fails in many ways on damaged bytes, and its messages quote them.
        data_set.walk(lambda _data_set, _element: None)
    except Exception as error:
        raise StoreRefused(otherwise, "Not a data set of the agreed syntax") from error
    return data_set


def items_of(data_set: Dataset, keyword: str, otherwise: StoreStatus) -> Sequence:
    """The items of a sequence, none where it is missing. Raises StoreRefused with `otherwise` for what is none."""
    items = data_set.get(keyword)
    if items is not None and not isinstance(items, Sequence):
        raise StoreRefused(otherwise, "A sequence that is none")
    return items or Sequence()
