"""What is kept of one analysis: everything that a result object is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicom_gateway.report.content import Report
from dicom_gateway.report.edition import PLAIN, Edition
from dicom_gateway.report.outlines import Outlines
from dicom_gateway.report.source_headers import SourceHeaders


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredResult:
    """What is kept of an analysis, with the headers of its source images, and how it is to be told.

    Key images are RGB uint8 (rows, columns, 3) by file name. A document refers to the (BINARY) Segmentations only with
    `beside_segmentations`: where it goes, they are.
    """

    report: Report
    headers: SourceHeaders
    outlines: Outlines = field(default_factory=Outlines)
    key_images: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    edition: Edition = PLAIN
    beside_segmentations: bool = True


Encoder = Callable[[StoredResult], tuple[Dataset, ...]]
"""Result objects of one kind, a pure function of the stored result; empty where this study has nothing of the kind."""
