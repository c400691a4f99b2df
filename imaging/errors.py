"""What can go wrong with a CT study as data.

ImagingError
├── UnreadableInstance    not DICOM, or a header or pixel element we need is missing or broken
└── InconsistentSeries    the slices do not form one geometrically right volume

Messages name elements, counts and kinds of damage, never values of the header: they may be logged and shown.

"No suitable series" and "poor quality" are not errors: they are values that end in a report that says so.
"""


class ImagingError(Exception):
    """The CT study cannot be used as it is."""


class UnreadableInstance(ImagingError):
    """A file is not a DICOM instance that can be read."""


class InconsistentSeries(ImagingError):
    """The slices of a series do not form one volume."""
