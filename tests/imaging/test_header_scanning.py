"""Headers that are scanned are those pydicom reads.

Each file is read twice: as it is, and spoilt by a private sequence that is nested too deeply to be scanned, so that
pydicom reads the same elements.
"""

import zlib
from dataclasses import replace
from pathlib import Path
from struct import pack

import pytest
from factories import save_ct
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from imaging.elements import MAXIMUM_NESTING, scan_file_meta
from imaging.errors import UnreadableInstance
from imaging.headers import InstanceHeader, read_instance, read_studies

REAL_CT = Path(__file__).parents[3] / "shared" / "ct"
# pydicom warns of a character set it does not know.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

_PLAIN = {
    "ImageType": b"ORIGINAL\\PRIMARY\\AXIAL ",
    "SOPClassUID": b"1.2.840.10008.5.1.4.1.1.2\0",
    "SOPInstanceUID": b"1.2.3.4\0",
    "Modality": b"CT",
    "Manufacturer": b"OneScan tests ",
    "StudyDescription": b"CT CHEST",
    "SeriesDescription": b"Thorax 1.0",
    "PatientName": b"Doe^Jane",
    "PatientID": b"4711",
    "PatientSex": b"F ",
    "ContrastBolusAgent": b"Iohexol ",
    "BodyPartExamined": b"CHEST ",
    "SliceThickness": b"1.25",
    "ProtocolName": b"5.1 Thorax",
    "ConvolutionKernel": b"I70f\\3",
    "StudyInstanceUID": b"1.2.3",
    "SeriesInstanceUID": b"1.2.3.5\0",
    "SeriesNumber": b"3 ",
    "AcquisitionNumber": b"1 ",
    "InstanceNumber": b"17",
    "ImagePositionPatient": b"-180.25\\-177.5\\ 1e2 ",
    "ImageOrientationPatient": b"1\\0\\0\\0\\1\\0 ",
    "FrameOfReferenceUID": b"1.2.3.6\0",
    "SamplesPerPixel": pack("<H", 1),
    "PhotometricInterpretation": b"MONOCHROME2 ",
    "Rows": pack("<H", 2),
    "Columns": pack("<H", 3),
    "PixelSpacing": b"0.7\\0.7 ",
    "BitsAllocated": pack("<H", 16),
    "BitsStored": pack("<H", 12),
    "PixelRepresentation": pack("<H", 0),
    "PixelPaddingValue": pack("<H", 63536),
    "RescaleIntercept": b"-1024 ",
    "RescaleSlope": b"1 ",
}
_UNDEFINED = b"\xff\xff\xff\xff"


def _element(tag: int, vr: str, value: bytes, implicit_vr: bool) -> bytes:
    lead = pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit_vr:
        return lead + pack("<I", len(value)) + value
    if vr in EXPLICIT_VR_LENGTH_32:
        return lead + vr.encode() + pack("<HI", 0, len(value)) + value
    return lead + vr.encode() + pack("<H", len(value)) + value


def _nested(implicit_vr: bool) -> bytes:
    begin = b"\x09\x00\x10\x10" + (b"" if implicit_vr else b"SQ\0\0") + _UNDEFINED + b"\xfe\xff\x00\xe0" + _UNDEFINED
    end = b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)
    return begin * (MAXIMUM_NESTING + 1) + end * (MAXIMUM_NESTING + 1)


def _write(file: Path, values: dict[str, bytes], vrs: dict[str, str], *, implicit_vr: bool, spoilt: bool) -> None:
    syntax = ImplicitVRLittleEndian if implicit_vr else ExplicitVRLittleEndian
    meta = _element(0x00020010, "UI", syntax.encode() + bytes(len(syntax) % 2), False)
    content = bytes(128) + b"DICM" + _element(0x00020000, "UL", pack("<I", len(meta)), False) + meta
    elements = {int(tag_for_keyword(k)): (vrs.get(k) or dictionary_VR(k).split(" ")[0], v) for k, v in values.items()}
    for tag in sorted(elements):
        if spoilt and tag > 0x00090000:
            content += _nested(implicit_vr)
            spoilt = False
        content += _element(tag, *elements[tag], implicit_vr)
    file.write_bytes(content + _element(0x7FE00010, "OW", bytes(12), implicit_vr))


def _read(file: Path) -> InstanceHeader | str:
    try:
        return read_instance(file)
    except UnreadableInstance as error:
        return str(error)


def _without_place(header: InstanceHeader | str) -> InstanceHeader | str:
    if isinstance(header, str):
        return header
    slices = tuple(replace(plane, path=Path(), pixels=None) for plane in header.series.slices)
    return replace(header, series=replace(header.series, files=(), slices=slices))


def _assert_alike(folder: Path, values: dict[str, bytes], vrs: dict[str, str], *, implicit_vr: bool) -> None:
    """The same header, also for an image that is read by what was learnt of one before."""
    for of_image in (values, {**values, "InstanceNumber": b"18"}, values):
        found = []
        for spoilt in (False, True):
            _write(folder / f"{spoilt}.dcm", of_image, vrs, implicit_vr=implicit_vr, spoilt=spoilt)
            found.append(_read(folder / f"{spoilt}.dcm"))
        # As text, in which NaN is NaN.
        assert repr(_without_place(found[0])) == repr(_without_place(found[1]))


def test_a_plain_header_is_scanned_and_a_spoilt_one_is_not(tmp_path: Path) -> None:
    """What the other tests stand on; and the place and encoding of the pixels."""
    for implicit_vr in (False, True):
        for spoilt in (False, True):
            _write(tmp_path / "a.dcm", _PLAIN, {}, implicit_vr=implicit_vr, spoilt=spoilt)
            (plane,) = read_instance(tmp_path / "a.dcm").series.slices
            assert (plane.pixels is None) is spoilt
            if plane.pixels:
                assert plane.pixels.offset == (tmp_path / "a.dcm").stat().st_size - 12
                assert (plane.pixels.bits_stored, plane.pixels.padding) == (12, (63536, 63536))


_CHINESE = "胸部平扫"
_CASES: list[tuple[dict[str, bytes | None], dict[str, str]]] = [
    ({}, {}),
    ({"SpecificCharacterSet": b"GB18030 ", "SeriesDescription": _CHINESE.encode("gb18030")}, {}),
    ({"SpecificCharacterSet": b"ISO_IR 192", "StudyDescription": _CHINESE.encode()}, {}),
    ({"SpecificCharacterSet": b"ISO_IR 100", "StudyDescription": _CHINESE.encode("gb18030")}, {}),
    ({"SpecificCharacterSet": b"ISO_IR 192", "StudyDescription": _CHINESE.encode("gb18030")}, {}),
    ({"SpecificCharacterSet": b"\\ISO 2022 IR 58", "StudyDescription": b"\x1b$)A\xd0\xd8\xb2\xbf"}, {}),
    ({"SpecificCharacterSet": b"NONSENSE", "StudyDescription": b"Thorax \xe4\xf6"}, {}),
    ({"StudyDescription": _CHINESE.encode("gb18030"), "ProtocolName": b"a\0b\\c "}, {}),
    ({"SliceThickness": b"1,25", "SeriesNumber": b"A1"}, {}),
    ({"RescaleSlope": b"one ", "RescaleIntercept": b""}, {}),
    *(
        ({"InstanceNumber": value}, {})
        for value in (b"1.5 ", b"12345678901 ", b"", b"  ", b"+5", b"1\\2 ", b"5\0", None)
    ),
    *(({"AcquisitionNumber": value}, {}) for value in (b"-1", b"", b"x ", b"007 ", None)),
    *(
        ({"ImagePositionPatient": value}, {})
        for value in (
            b"1\\2 ",
            b"1\\2\\3\\4 ",
            b"",
            b"NaN\\1\\2 ",
            b"1e400\\0\\0 ",
            b"1,5\\2\\3 ",
            b"1\\2\\3\0",
            b"1\\\\3",
            None,
        )
    ),
    *(({"PixelSpacing": value}, {}) for value in (b"0.7 ", b"", b"0.7\\0.7\\1", None)),
    *(({"StudyInstanceUID": value}, {}) for value in (b"", b"1.2.abc ", b" 1.2 ", b"1.2\\3 ", None)),
    *(({"SOPInstanceUID": value}, {}) for value in (b"", b"1.2.abc ", b" 1.2 ", b"1.2\\3 ", b"1.2 ", None)),
    *(
        ({"SOPClassUID": value}, {})
        for value in (EnhancedCTImageStorage.encode(), b"1.2.840.10008.5.1.4.1.1.7\0", None)
    ),
    *(({"PatientName": value}, {}) for value in (b"", b"\0 ", _CHINESE.encode("gb18030"), b"Doe=\\Jane", None)),
    *(({"PatientID": value}, {}) for value in (b"", b"12\\34 ", b"\xff\xfe", None)),
    ({}, {"PatientID": "UN", "PatientName": "SH"}),
    *(({"Rows": value}, {}) for value in (b"\2", b"\2\0\2\0", b"", None)),
    ({"Rows": pack("<I", 2)}, {"Rows": "UL"}),
    ({"Rows": b"2 "}, {"Rows": "IS"}),
    ({"Rows": pack("<H", 2)}, {"Rows": "UN"}),
    ({"InstanceNumber": pack("<H", 2)}, {"InstanceNumber": "US"}),
    ({}, {"InstanceNumber": "UN", "SOPInstanceUID": "UN", "SeriesDescription": "UN"}),
    ({"PixelPaddingValue": pack("<h", -2000)}, {"PixelPaddingValue": "SS"}),
    ({"PixelPaddingValue": b""}, {}),
    ({"PixelPaddingValue": bytes(4), "PixelPaddingRangeLimit": b"12"}, {}),
    ({"BitsStored": pack("<H", 17)}, {}),
    ({"PixelRepresentation": pack("<H", 1)}, {}),
    ({"PhotometricInterpretation": b"RGB "}, {}),
    *(({"NumberOfFrames": value}, {}) for value in (b"1 ", b"3 ", b"0 ", b"x ", b"")),
    *(({"ImageType": value}, {}) for value in (b"ORIGINAL", b"", b"A\\\\B ", None)),
    ({"ConvolutionKernel": b""}, {}),
    ({"Modality": None, "Manufacturer": None, "FrameOfReferenceUID": None}, {}),
]


@pytest.mark.parametrize(("changes", "vrs"), _CASES)
def test_odd_headers_are_read_as_pydicom_reads_them(tmp_path: Path, changes, vrs) -> None:
    values = {keyword: value for keyword, value in {**_PLAIN, **changes}.items() if value is not None}
    for implicit_vr in (False, True):
        _assert_alike(tmp_path, values, vrs, implicit_vr=implicit_vr)


_NUMBERS = st.text("0123456789.+-eE \\\0,x", max_size=20).map(str.encode)


@given(
    changes=st.dictionaries(
        st.sampled_from(
            ["InstanceNumber", "AcquisitionNumber", "ImagePositionPatient", "SOPInstanceUID", "SliceThickness"]
        ),
        _NUMBERS,
    )
    | st.dictionaries(st.sampled_from([*_PLAIN, "SpecificCharacterSet", "NumberOfFrames"]), st.binary(max_size=20)),
    implicit_vr=st.booleans(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_values_are_read_as_pydicom_reads_them(tmp_path: Path, changes, implicit_vr: bool) -> None:
    _assert_alike(tmp_path, {**_PLAIN, **changes}, {}, implicit_vr=implicit_vr)


def test_what_the_scanner_leaves_to_pydicom_is_read(tmp_path: Path) -> None:
    """A deflated file of the same elements; damaged, it is refused."""
    _write(tmp_path / "plain.dcm", _PLAIN, {}, implicit_vr=False, spoilt=False)
    content = (tmp_path / "plain.dcm").read_bytes()
    syntax = _element(0x00020010, "UI", ExplicitVRLittleEndian.encode() + b"\0", False)
    deflated_syntax = _element(0x00020010, "UI", DeflatedExplicitVRLittleEndian.encode(), False)
    meta, data_set = content.split(syntax)
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = deflate.compress(data_set) + deflate.flush()
    (tmp_path / "deflated.dcm").write_bytes(meta + deflated_syntax + deflated)
    assert _without_place(_read(tmp_path / "deflated.dcm")) == _without_place(_read(tmp_path / "plain.dcm"))
    (tmp_path / "damaged.dcm").write_bytes(meta + deflated_syntax + b"\xff" + deflated)
    assert _read(tmp_path / "damaged.dcm") == "damaged DICOM header (error)"


def test_a_deflate_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    meta = _element(0x00020010, "UI", DeflatedExplicitVRLittleEndian.encode(), False)
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = 17 * (deflate.compress(bytes(1 << 26)) + deflate.flush(zlib.Z_FULL_FLUSH))
    (tmp_path / "bomb.dcm").write_bytes(bytes(128) + b"DICM" + meta + bomb)
    assert _read(tmp_path / "bomb.dcm") == "it inflates to more than 1024 MiB"


@pytest.mark.real_ct
def test_real_headers_are_read_as_pydicom_reads_them(tmp_path: Path) -> None:
    if not REAL_CT.is_dir():
        pytest.skip("no real CT beside the project (../shared/ct)")
    for file in sorted(REAL_CT.glob("*/*.dcm"))[::10]:
        found = read_instance(file)
        assert found.series.slices[0].pixels is not None
        content = file.read_bytes()
        _, start = scan_file_meta(content)
        spoilt = tmp_path / "spoilt.dcm"
        # At the front it is out of order, which neither minds.
        implicit_vr = b"1.2.840.10008.1.2\0" in content[:start]
        spoilt.write_bytes(content[:start] + _nested(implicit_vr) + content[start:])
        assert _without_place(read_instance(spoilt)) == _without_place(found)


@pytest.mark.parametrize(
    ("keyword", "name"),
    [
        ("PixelSpacing", "pixel_spacing_mm"),
        ("ImagePositionPatient", "image_position_patient"),
        ("ImageOrientationPatient", "image_orientation_patient"),
    ],
)
def test_one_number_where_several_belong_is_for_a_gate_to_see(tmp_path: Path, keyword: str, name: str) -> None:
    save_ct(tmp_path / "1.dcm", **{keyword: 0.5})
    (study,), unreadable = read_studies([tmp_path / "1.dcm"])
    (plane,) = study.series[0].slices
    assert (getattr(plane, name), unreadable) == (None, ())
