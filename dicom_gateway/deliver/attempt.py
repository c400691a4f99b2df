"""One attempt at a destination of DICOM objects, whatever the protocol: each kind in the first way it is taken."""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy, deepcopy

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_gateway.deliver.profile import SOP_CLASSES, is_segmentation, refers_to_segmentations, ways_of_sending
from dicom_gateway.errors import PeerRefused, PeerUnreachable
from dicom_gateway.settings import UNCOMPRESSED, ResultObject
from dicom_gateway.store.schema import ObjectOutcome

SOP_CLASS_NOT_SUPPORTED = 0x0122
_SUCCESS = 0x0000
_DUPLICATE_SOP_INSTANCE = 0x0111
_OUT_OF_RESOURCES = range(0xA700, 0xA800)
_WARNING = range(0xB000, 0xC000)
_NOTHING_TAKEN = "the destination takes none of the objects it is to be given"

Encode = Callable[[ResultObject, Collection[ResultObject]], Sequence[Dataset]]
"""The objects of one kind for a destination that has those of the other kinds, made when they are about to be sent.

Empty where the study has nothing of the kind. They may refer to nothing that the destination does not have.
"""

Store = Callable[[Dataset], None]
"""Sends one object, which the destination has when this returns.

Raises ClassRefused, PeerRefused or PeerUnreachable.
"""


class ClassRefused(PeerRefused):
    """The destination does not take this SOP class."""


def store_all(
    names: Sequence[ResultObject], encode: Encode, store: Store, refused: Mapping[str, str]
) -> tuple[ObjectOutcome, ...]:
    """Store the kinds in their order, a kind whose class is refused as the first fallback that is taken, else not.

    Segmentations come before an SR, which refers to them where the destination has taken them.
    `refused` holds SOP classes that are known to be refused, with the reason. The outcomes are one for each kind.
    Raises PeerUnreachable as `store` does, and PeerRefused when nothing at all is taken, and, after the other kinds
    were sent, for every other "no" to one of them.
    """
    attempt = _Attempt(encode, store, refused)
    by_name = {name: attempt.outcome(name) for name in _segmentations_before_sr(names)}
    outcomes = tuple(by_name[name] for name in names)
    if attempt.failures:
        raise PeerRefused("; ".join(f"{name}: {reason}" for name, reason in attempt.failures.items()))
    if all(outcome.sent_as is None for outcome in outcomes):
        reasons = dict.fromkeys(outcome.reason for outcome in outcomes if outcome.reason)
        raise PeerRefused(f"{_NOTHING_TAKEN}: {'; '.join(reasons)}")
    return outcomes


def require_taken(status: int, told: str) -> None:
    """Judge a status of PS3.4 Table B.2-1 or PS3.7 Annex C, `told` in the words of the protocol.

    Raises ClassRefused for 0x0122, PeerUnreachable where another attempt may succeed, PeerRefused for every other "no".
    """
    # "Duplicate" is success here: our UIDs are derived from the content, so it has this very object.
    if status in (_SUCCESS, _DUPLICATE_SOP_INSTANCE) or status in _WARNING:
        return
    if status == SOP_CLASS_NOT_SUPPORTED:
        raise ClassRefused(told)
    if status in _OUT_OF_RESOURCES:
        raise PeerUnreachable(f"out of resources ({told})")
    raise PeerRefused(told)


def prepared(data_set: Dataset, transfer_syntax: UID, character_set: str) -> Dataset:
    """The same elements as the destination wants them encoded, without memory of how they were before.

    What is compressed already stays so: a label map, which would be too large.
    """
    changed = Dataset()
    for element in data_set:
        # Not the element itself: assigning to a keyword changes the element that is there.
        changed.add(copy(element))
    changed.file_meta = deepcopy(data_set.file_meta)
    changed.SpecificCharacterSet = character_set
    if changed.file_meta.TransferSyntaxUID.is_compressed:
        return changed
    if transfer_syntax.keyword in UNCOMPRESSED:
        changed.file_meta.TransferSyntaxUID = transfer_syntax
    else:
        changed.compress(transfer_syntax, generate_instance_uid=False)
    return changed


def _segmentations_before_sr(names: Sequence[ResultObject]) -> list[ResultObject]:
    first_sr = next((n for n, name in enumerate(names) if refers_to_segmentations(name)), len(names))
    late = [name for name in names[first_sr:] if is_segmentation(name)]
    return [*names[:first_sr], *late, *(name for name in names[first_sr:] if name not in late)]


class _Attempt:
    """Each kind is sent at most once, whatever it stands in for."""

    def __init__(self, encode: Encode, store: Store, refused: Mapping[str, str]) -> None:
        self.failures: dict[ResultObject, str] = {}
        self._encode = encode
        self._store = store
        self._refused = dict(refused)
        self._stored: dict[ResultObject, int] = {}

    def outcome(self, name: ResultObject) -> ObjectOutcome:
        """Send a kind in the first way the destination takes it."""
        reason = None
        for way in ways_of_sending(name):
            try:
                return ObjectOutcome(name=name, sent_as=way, instances=self._send(way), reason=reason)
            except ClassRefused as refusal:
                self._refused[SOP_CLASSES[way]] = str(refusal)
                reason = reason or str(refusal)
            except PeerRefused as refusal:
                self.failures[name] = str(refusal)
                reason = str(refusal)
                break
        return ObjectOutcome(name=name, sent_as=None, instances=0, reason=reason)

    def _send(self, way: ResultObject) -> int:
        """How many objects of this kind the destination has now."""
        if way not in self._stored:
            sop_class = SOP_CLASSES[way]
            if sop_class in self._refused:
                raise ClassRefused(self._refused[sop_class])
            data_sets = self._encode(way, tuple(self._stored))
            for data_set in data_sets:
                self._store(data_set)
            self._stored[way] = len(data_sets)
        return self._stored[way]
