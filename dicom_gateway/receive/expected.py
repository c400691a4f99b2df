"""The images of a study that its source has, or its modality has made, compared with what is here."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dicom_gateway.query import SourceCount
from dicom_gateway.receive.performed import Step, StepState


class Standing(enum.Enum):
    """What is here of a study, compared with what its source has."""

    UNKNOWN = enum.auto()
    """The source was not asked, did not answer, or counts what cannot be compared."""
    ASKED = enum.auto()
    """The answer is outstanding."""
    IN_PROGRESS = enum.auto()
    """The modality is still at it."""
    ALL_MADE = enum.auto()
    """Every CT image that the modality has made, which makes no more."""
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


def compare_made(held: Mapping[str, frozenset[str]], steps: Sequence[Step]) -> Comparison:
    """`held` has the SOP Instance UIDs that are here by Series Instance UID, `steps` are all of the study.

    Images of a step that was discontinued may be sent or not: they are not waited for. A series that is not here at
    all may be one that this sender was never told to send to us.
    """
    received = sum(map(len, held.values()))
    if any(step.state is StepState.IN_PROGRESS for step in steps):
        return Comparison(standing=Standing.IN_PROGRESS, received=received)
    made: dict[str, set[str]] = {}
    for step in steps:
        if step.state is StepState.COMPLETED:
            for series, uids in step.made.items():
                made.setdefault(series, set()).update(uids)
    if not made:
        return Comparison(standing=Standing.UNKNOWN, received=received)
    lacking = sum(len(made.get(series, set()) - uids) for series, uids in held.items())
    if lacking:
        standing = Standing.PART
    elif held == made and all(step.state is StepState.COMPLETED for step in steps):
        standing = Standing.ALL_MADE
    else:
        standing = Standing.BEGUN_ARE_WHOLE
    return Comparison(standing=standing, received=received, expected=received + lacking)
