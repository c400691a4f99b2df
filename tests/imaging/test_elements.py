"""The scanner of encoded data sets: pydicom is the second opinion on what is whole, hostile bytes end in one error."""

from io import BytesIO
from struct import pack

import pytest
from factories import make_ct_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset, read_sequence
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from imaging.elements import (
    MAXIMUM_NESTING,
    PIXEL_DATA,
    UNDEFINED_LENGTH,
    ElementScanner,
    ScannedElements,
    scan_elements,
)
from imaging.errors import BrokenDataSet

_UNDEFINED = pack("<I", UNDEFINED_LENGTH)
_ITEM = b"\xfe\xff\x00\xe0" + _UNDEFINED
_ITEM_END, _SEQUENCE_END = b"\xfe\xff\x0d\xe0" + bytes(4), b"\xfe\xff\xdd\xe0" + bytes(4)
_EXPLICIT_SEQUENCE = b"\x08\x00\x40\x11SQ\x00\x00" + _UNDEFINED
_MODALITY = b"\x08\x00\x60\x00CS\x02\x00CT"
_TEXT = st.text("abcXYZ 019.^", max_size=40)


def _elements(children: st.SearchStrategy[Dataset] | None) -> st.SearchStrategy[list[DataElement]]:
    """Elements of standard and private groups, sequences of both kinds of length among them."""
    values = [
        st.tuples(st.sampled_from([0x00080060, 0x00180015]), st.just("CS"), st.sampled_from(["CT", "CHEST", ""])),
        st.tuples(st.sampled_from([0x00081030, 0x0008103E, 0x00181030]), st.just("LO"), _TEXT),
        st.tuples(st.just(0x00280010), st.just("US"), st.integers(0, 65535)),
        st.tuples(st.just(0x00200032), st.just("DS"), st.lists(st.integers(-999, 999), min_size=3, max_size=3)),
        st.tuples(st.integers(0x00291010, 0x00291020), st.just("OB"), st.binary(max_size=300)),
        st.tuples(st.integers(0x00291021, 0x00291030), st.just("UN"), st.binary(max_size=300)),
        st.tuples(st.just(0x00420011), st.just("OB"), st.binary(max_size=300)),
        st.tuples(st.just(0x00204000), st.just("LT"), _TEXT),
    ]
    if children is not None:
        tags = st.sampled_from([0x00081140, 0x00082112, 0x00400275, 0x00409096, 0x00291041])
        values.append(st.tuples(tags, st.just("SQ"), st.lists(children, max_size=3).map(Sequence)))
    one = st.one_of(values).map(lambda v: DataElement(Tag(v[0]), v[1], v[2]))
    return st.lists(one, max_size=8, unique_by=lambda e: e.tag)


@st.composite
def _data_sets(draw: st.DrawFn, depth: int = 3) -> Dataset:
    ds = Dataset()
    for element in draw(_elements(_data_sets(depth - 1) if depth else None)):
        if element.VR == "SQ":
            element.is_undefined_length = draw(st.booleans())
            for item in element.value:
                item.is_undefined_length_sequence_item = draw(st.booleans())
        ds.add(element)
    if any(element.tag.group == 0x0029 for element in ds):
        ds.add_new(Tag(0x00290010), "LO", "OneScan tests")
    return ds


def _encoded(ds: Dataset, implicit_vr: bool) -> bytes:
    sink = DicomBytesIO()
    sink.is_little_endian, sink.is_implicit_VR = True, implicit_vr
    write_dataset(sink, ds)
    return sink.getvalue()


def _scan(head: bytes, implicit_vr: bool = False, wanted: frozenset[int] = frozenset()) -> ScannedElements:
    return scan_elements(head, implicit_vr=implicit_vr, wanted=wanted)


@settings(deadline=None)
@given(ds=_data_sets(), implicit_vr=st.booleans(), data=st.data())
def test_values_and_the_place_of_the_pixels_are_those_pydicom_finds(ds: Dataset, implicit_vr: bool, data) -> None:
    tags = frozenset(ds.keys())
    header = _encoded(ds, implicit_vr)
    pixels = pack("<HHI", 0x7FE0, 0x10, 6) if implicit_vr else pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 6)
    encoded = header + pixels + b"pixels"
    scanned = _scan(encoded, implicit_vr, tags)
    assert (scanned.pixel_data_tag, scanned.pixel_data_length, scanned.cut) == (PIXEL_DATA, 6, False)
    assert scanned.pixel_data_offset == scanned.end == len(encoded) - 6
    for raw in read_dataset(BytesIO(header), implicit_vr, True).elements():
        value = scanned.values[raw.tag].removesuffix(_SEQUENCE_END)
        if isinstance(raw.value, Sequence):  # of undefined length, which pydicom reads at once
            assert _item_count(DicomBytesIO(value + _SEQUENCE_END), implicit_vr) == len(raw.value)
        else:
            assert value == (raw.value or b"").removesuffix(_SEQUENCE_END)
    assert scanned.values.keys() == tags

    size = data.draw(st.integers(0, len(header)))
    part = _scan(header[:size], implicit_vr, tags)
    assert part.pixel_data_tag is None
    assert part.values.items() <= scanned.values.items()
    assert part.cut or part.end == size
    rest = _scan(header[part.end :], implicit_vr, tags)
    assert part.values | rest.values == scanned.values
    assert _scan(header, implicit_vr, tags).cut is False


def _item_count(value: DicomBytesIO, implicit_vr: bool) -> int:
    sequence = read_sequence(value, implicit_vr, True, UNDEFINED_LENGTH, "iso8859")
    assert value.tell() == len(value.getvalue())
    return len(sequence)


def test_a_buffer_that_ends_in_an_element_is_told_from_one_without_pixels() -> None:
    whole = _scan(_MODALITY, wanted=frozenset({0x00080060}))
    assert (whole.pixel_data_tag, whole.cut, whole.values) == (None, False, {0x00080060: b"CT"})
    cut = _scan(_MODALITY[:-1], wanted=frozenset({0x00080060}))
    assert (cut.cut, cut.end, cut.values) == (True, 0, {})
    skipped = _scan(_MODALITY[:-1])
    assert (skipped.cut, skipped.end) == (True, len(_MODALITY))


def test_a_sequence_that_was_unknown_to_its_writer_is_implicit_inside() -> None:
    """PS3.5 section 6.2.2: UN of undefined length, and the fragments of a picture inside an item."""
    inside = _ITEM + pack("<HHI", 0x0008, 0x0104, 4) + b"lung" + pack("<HHI", 0x0009, 0x1001, 0) + _ITEM_END
    unknown = b"\x09\x00\x10\x10UN\x00\x00" + _UNDEFINED + inside + _SEQUENCE_END
    fragments = pack("<HHI", 0xFFFE, 0xE000, 0) + pack("<HHI", 0xFFFE, 0xE000, 4) + _SEQUENCE_END[:4] + _SEQUENCE_END
    picture = b"\xe0\x7f\x10\x00OB\x00\x00" + _UNDEFINED + fragments
    icon = b"\x88\x00\x00\x02SQ\x00\x00" + _UNDEFINED + _ITEM + _MODALITY + picture + _ITEM_END + _SEQUENCE_END
    scanned = _scan(_MODALITY + unknown + icon + picture, wanted=frozenset({0x00880200}))
    assert scanned.pixel_data_offset == len(_MODALITY + unknown + icon) + 12
    assert scanned.pixel_data_length == UNDEFINED_LENGTH
    assert scanned.values == {0x00880200: icon[12:]}


def _nested(levels: int) -> bytes:
    return (_EXPLICIT_SEQUENCE + _ITEM) * levels + (_ITEM_END + _SEQUENCE_END) * levels


def test_nesting_has_a_limit() -> None:
    assert _scan(_nested(MAXIMUM_NESTING)).cut is False
    for levels in (MAXIMUM_NESTING + 1, 100_000):
        with pytest.raises(BrokenDataSet, match="nested"):
            _scan(_nested(levels))


@pytest.mark.parametrize(
    ("hostile", "implicit_vr"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", False),
        (bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI\x02\x001\x00", True),
        (bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI\x02\x001\x00", False),
        (_MODALITY, True),
        (pack("<HHI", 0x0008, 0x0060, 2) + b"CT", False),
        (_MODALITY + _MODALITY, False),
        (_ITEM_END + _MODALITY, False),
        (_SEQUENCE_END + _MODALITY, False),
        (_EXPLICIT_SEQUENCE + _MODALITY, False),
        (_EXPLICIT_SEQUENCE + _ITEM + _SEQUENCE_END, False),
        (_EXPLICIT_SEQUENCE + _ITEM_END, False),
        (b"\x08\x00\x60\x00UT\x00\x00" + _UNDEFINED + _SEQUENCE_END, False),
        (_MODALITY.replace(b"CS", b"ZZ"), False),
    ],
)
def test_what_is_no_such_data_set_is_refused_by_name(hostile: bytes, implicit_vr: bool) -> None:
    with pytest.raises(BrokenDataSet):
        _scan(hostile, implicit_vr, frozenset({0x00080060}))


@settings(deadline=None)
@given(st.binary(max_size=2000), st.booleans())
def test_random_bytes_end_in_an_answer_or_the_one_error(content: bytes, implicit_vr: bool) -> None:
    _answer_or_refusal(content, implicit_vr)


@settings(deadline=None)
@given(ds=_data_sets(), implicit_vr=st.booleans(), data=st.data())
def test_damaged_data_sets_end_in_an_answer_or_the_one_error(ds: Dataset, implicit_vr: bool, data) -> None:
    content = bytearray(_encoded(ds, implicit_vr) + _nested(2))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    _answer_or_refusal(bytes(content), implicit_vr)


def _answer_or_refusal(content: bytes, implicit_vr: bool) -> None:
    try:
        scanned = _scan(content, implicit_vr, frozenset({0x00080060, 0x00080005, 0x00080018}))
    except BrokenDataSet:
        return
    for value in scanned.values.values():
        assert value in content
    assert scanned.cut or scanned.pixel_data_tag is not None or scanned.end == len(content)


@settings(deadline=None)
@given(ds=_data_sets(), implicit_vr=st.booleans(), data=st.data())
def test_what_is_known_of_one_data_set_never_changes_the_reading_of_another(
    ds: Dataset, implicit_vr: bool, data
) -> None:
    """The scanner that remembers gives what the one without memory gives, error or not, for all single-byte changes."""
    pixels = pack("<HHI", 0x7FE0, 0x10, 6) if implicit_vr else pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 6)
    encoded = _encoded(ds, implicit_vr) + _MODALITY[: 0 if implicit_vr else None] + pixels + b"pixels"
    wanted = frozenset({0x00080060, 0x00081140, 0x00280010, 0x00200032, 0x00291010})
    scanner = ElementScanner(wanted)
    changes = data.draw(st.lists(st.tuples(st.integers(0, len(encoded) - 1), st.integers(0, 255)), max_size=20))
    for at, value in [(0, encoded[0]), (0, encoded[0]), *changes]:
        changed = encoded[:at] + bytes([value]) + encoded[at + 1 :]
        for content in (changed, changed[:at]):
            assert _outcome(lambda c=content: scanner.scan(c, implicit_vr=implicit_vr)) == _outcome(
                lambda c=content: _scan(c, implicit_vr, wanted)
            )


def _outcome(scan) -> ScannedElements | str:
    try:
        return scan()
    except BrokenDataSet as error:
        return str(error)


@pytest.mark.parametrize("implicit_vr", [False, True])
def test_a_memoryview_reads_as_bytes_do(implicit_vr: bool) -> None:
    ds = make_ct_dataset()
    del ds.file_meta
    encoded = _encoded(ds, implicit_vr)
    wanted = frozenset({0x00080018, 0x00200032})
    scanned = _scan(encoded, implicit_vr, wanted)
    assert scanned == scan_elements(memoryview(encoded), implicit_vr=implicit_vr, wanted=wanted)
    assert scanned.values[0x00080018].rstrip(b"\0").decode() == ds.SOPInstanceUID
    assert encoded[scanned.end :] == ds.PixelData
