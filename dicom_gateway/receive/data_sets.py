"""Data sets that requests carry beside images, as of storage commitment and of performed procedure steps."""

from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from dicom_gateway.receive.statuses import StoreRefused, StoreStatus

# What is told of a step or a commitment nests a few levels deep. Each costs a copy of all that is inside it.
_MOST_LEVELS = 32


def parse_data_set(encoded: bytes, transfer_syntax: str, otherwise: StoreStatus) -> Dataset:
    """All of a data set in one of the uncompressed little endian syntaxes. Raises StoreRefused with `otherwise`."""
    try:
        data_set = read_dataset(BytesIO(encoded), bool(UID(transfer_syntax).is_implicit_VR), True)
        # Now, not when a value is wanted: the parser fails in many ways on damaged bytes, and its messages quote them.
        _read_values(data_set)
    except Exception as error:
        raise StoreRefused(otherwise, "Not a data set of the agreed syntax") from error
    return data_set


def _read_values(data_set: Dataset) -> None:
    """Every value at every level. Raises ValueError for too many levels, for damaged bytes nearly anything.

    Not by Dataset.walk: at each level it raises anew, quoting all it raised below, which doubles the text.
    """
    pending = [(data_set, 1)]
    while pending:
        one, level = pending.pop()
        if level > _MOST_LEVELS:
            raise ValueError("sequences nested too deep")
        for element in one:
            if element.VR == "SQ":
                pending.extend((item, level + 1) for item in element.value)


def items_of(data_set: Dataset, keyword: str, otherwise: StoreStatus) -> Sequence:
    """The items of a sequence, none where it is missing. Raises StoreRefused with `otherwise` for what is none."""
    items = data_set.get(keyword)
    if items is not None and not isinstance(items, Sequence):
        raise StoreRefused(otherwise, "A sequence that is none")
    return items or Sequence()
