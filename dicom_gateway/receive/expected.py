"""How many images of a study its source has, compared with what is here."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from dicom_gateway.query import SourceCount


class Standing(enum.Enum):
    """What is here of a study, compared with what its source has."""

    UNKNOWN = enum.auto()
    """The source was not asked, did not answer, or counts what cannot be compared."""
    ASKED = enum.auto()
    """The answer is outstanding."""
    ALL = enum.auto()
    """Every CT image the source has."""
    BEGUN_ARE_WHOLE = enum.auto()
    """Every series that is here is here whole; the source has others, which it may or may not be about to send."""
    PART = enum.auto()
    """A series that is here lacks images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A standing with its numbers; `expected` counts the series that are here, None where nothing is known."""

    standing: Standing
    received: int = 0
    expected: int | None = None


def compare(held: Mapping[str, int], count: SourceCount) -> Comparison:
    """`held` is the number of images here by Series Instance UID.

    A source may have series that it was never told to send, so that only a series that has begun is waited for. It
    may also lack a series that another sender gave us: then its count does not say when the study is whole.
    """
    received = sum(held.values())
    if count.series:
        expected = sum(count.series.get(uid, number) for uid, number in held.items())
        if any(number < count.series.get(uid, 0) for uid, number in held.items()):
            standing = Standing.PART
        elif held.keys() == count.series.keys():
            standing = Standing.ALL
        else:
            standing = Standing.BEGUN_ARE_WHOLE
        return Comparison(standing=standing, received=received, expected=expected)
    if count.total is None:
        return Comparison(standing=Standing.UNKNOWN, received=received)
    standing = Standing.UNKNOWN
    if received == count.total:
        standing = Standing.ALL
    # Reports and pictures in the study would be in the total, and are never sent to us.
    elif received < count.total and count.modalities == {"CT"}:
        standing = Standing.PART
    return Comparison(standing=standing, received=received, expected=count.total)
