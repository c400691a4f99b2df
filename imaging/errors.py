"""What can go wrong with a CT study as data.

ImagingError
├── UnreadableInstance    not DICOM, or a header or pixel element we need is missing or broken
│   └── BrokenDataSet     bytes that are no data set of the encoding announced, or one that is refused as hostile
└── InconsistentSeries    the slices do not form one geometrically right volume

Messages name elements, counts and kinds of damage, never values of the header: they may be logged and shown.

"No suitable series" and "poor quality" are not errors: they are values that end in a report that says so.
"""


class ImagingError(Exception):
    """The CT study cannot be used as it is."""


class UnreadableInstance(ImagingError):
    """A file is not a DICOM instance that can be read."""


class BrokenDataSet(UnreadableInstance):
    """Bytes are not the data set they should be."""


class InconsistentSeries(ImagingError):
    """The slices of a series do not form one volume."""
