"""Source headers as hospitals write them."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_gateway.report.source_headers import read_source_headers
from imaging.errors import UnreadableInstance
from imaging.source_text import decode_text, in_unicode

NAME = "王^小东"


def write(path: Path, **values: Any) -> Path:
    ds = Dataset()
    required = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": "1.2.3.1",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.0",
    }
    for keyword, value in (required | values).items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(path, enforce_file_format=True)
    return path


def replace_value(path: Path, keyword_bytes: bytes, placeholder: bytes, value: bytes) -> Path:
    """Puts raw bytes of even length into an element, which pydicom would not write."""
    content = path.read_bytes()
    old = keyword_bytes + len(placeholder).to_bytes(2, "little") + placeholder
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, keyword_bytes + len(value).to_bytes(2, "little") + value))
    return path


@pytest.mark.parametrize(
    ("value", "declared", "text"),
    [
        (b"Doe^John ", (), "Doe^John"),
        (NAME.encode(), ("ISO_IR 192",), NAME),
        (NAME.encode("gb18030"), ("GB18030",), NAME),
        (NAME.encode("gbk"), ("GBK",), NAME),
        (b"\x1b$)A" + NAME.encode("gb2312"), ("", "ISO 2022 IR 58"), NAME),
        (b"\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1\xb6\xab", ("", "ISO 2022 IR 58"), NAME),
        (NAME.encode("gbk"), ("ISO_IR 100",), NAME),
        (NAME.encode("gbk"), (), NAME),
        (NAME.encode("gbk"), ("ISO_IR 192",), NAME),
        (NAME.encode(), (), NAME),
        (NAME.encode(), ("ISO_IR 100",), NAME),
        ("胸部CT平扫".encode("gbk"), ("ISO_IR 100",), "胸部CT平扫"),
        ("朱镕基".encode("gbk"), (), "朱镕基"),
        ("Müller^Jürgen".encode("latin-1"), ("ISO_IR 100",), "Müller^Jürgen"),
        ("Conceição^João".encode("latin-1"), ("ISO_IR 100",), "Conceição^João"),
        ("Éric^Zoë".encode("latin-1"), ("ISO_IR 100",), "Éric^Zoë"),
        ("Иванов".encode("iso8859_5"), ("ISO_IR 144",), "Иванов"),
        ("Œuvre^Žofie".encode("iso8859_15"), ("ISO_IR 203",), "Œuvre^Žofie"),
        (b"A\x00B\x07", (), "AB"),
    ],
)
def test_text_is_decoded_also_under_a_wrong_label(value: bytes, declared: tuple[str, ...], text: str) -> None:
    assert decode_text(value, declared) == text


@given(value=st.binary(max_size=40), declared=st.sampled_from([(), ("ISO_IR 192",), ("GBK",), ("ISO_IR 100",)]))
def test_any_bytes_become_text_that_utf_8_can_hold(value: bytes, declared: tuple[str, ...]) -> None:
    text = decode_text(value, declared)
    assert text.encode("utf-8").decode("utf-8") == text
    assert not any(ord(c) < 32 for c in text)


@given(text=st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), min_size=2, max_size=20))
def test_utf_8_chinese_survives_under_every_honest_or_missing_label(text: str) -> None:
    assert decode_text(text.encode(), ("ISO_IR 192",)) == text
    assert decode_text(text.encode(), ()) == text
    assert decode_text(text.encode("gb18030"), ("GB18030",)) == text


def test_mislabelled_gbk_in_a_file_is_repaired(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", SpecificCharacterSet="ISO_IR 100", PatientName="AAAAAA")
    replace_value(path, b"\x10\x00\x10\x00PN", b"AAAAAA", "王小东".encode("gbk"))
    header = read_source_headers([path]).first
    assert header.PatientName == "王小东"
    assert header.SpecificCharacterSet == "ISO_IR 192"


def test_text_in_items_and_paragraphs_is_decoded_too(tmp_path: Path) -> None:
    item = Dataset()
    item.PatientID, item.TypeOfPatientID = "AAAAAA", "TEXT"
    path = write(
        tmp_path / "a.dcm",
        SpecificCharacterSet=["", "ISO 2022 IR 58"],
        ImageComments="BBBBBBBBBBBBBBBBBB",
        OtherPatientIDsSequence=[item],
        BodyPartExamined="CHEST",
    )
    replace_value(path, b"\x10\x00\x20\x00LO", b"AAAAAA", "王小".encode("gb2312") + b"  ")
    replace_value(path, b"\x20\x00\x00\x40LT", b"B" * 18, "  ".join(("王", "小")).encode("gb2312") + b"\r\n1\r\nCT..  ")
    with path.open("rb") as file:
        header = in_unicode(dcmread(file))
    assert header.OtherPatientIDsSequence[0].PatientID == "王小"
    assert header.ImageComments.splitlines() == ["王  小", "1", "CT.."]
    assert (header.BodyPartExamined, header.SpecificCharacterSet) == ("CHEST", "ISO_IR 192")


def test_missing_elements_are_present_and_empty(tmp_path: Path) -> None:
    header = read_source_headers([write(tmp_path / "a.dcm")]).first
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        assert not header[keyword].value
    assert header.StudyDate == header.StudyTime == header.ReferringPhysicianName == ""
    assert "FrameOfReferenceUID" not in header


@pytest.mark.parametrize(
    ("keyword", "value", "kept"),
    [
        ("PatientSex", "U", ""),
        ("PatientSex", "f", "F"),
        ("PatientAge", "066Y", "066Y"),
        ("PatientAge", "66", None),
        ("StudyDate", "20260230", ""),
        ("StudyDate", "20260228", "20260228"),
        ("StudyTime", "2561", ""),
        ("StudyTime", "093005.25", "093005.25"),
        ("StudyDate", "2026.02.28", "20260228"),
        ("StudyDate", "2026.2.28", ""),
        ("StudyDate", "202621", ""),
        ("PatientBirthDate", "1960113", ""),
        ("TimezoneOffsetFromUTC", "+0800", "+0800"),
        ("TimezoneOffsetFromUTC", "-1200", "-1200"),
        ("TimezoneOffsetFromUTC", "+1400", "+1400"),
        ("TimezoneOffsetFromUTC", "+0545", "+0545"),
        ("TimezoneOffsetFromUTC", "-1201", None),
        ("TimezoneOffsetFromUTC", "-2400", None),
        ("TimezoneOffsetFromUTC", "+1401", None),
        ("TimezoneOffsetFromUTC", "+9999", None),
        ("TimezoneOffsetFromUTC", "+0860", None),
        ("TimezoneOffsetFromUTC", "-0000", None),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_implausible_values_are_left_out(tmp_path: Path, keyword: str, value: str, kept: str | None) -> None:
    header = read_source_headers([write(tmp_path / "a.dcm", **{keyword: value})]).first
    assert header.get(keyword) == kept


def test_files_that_cannot_be_used_are_passed_over(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("not DICOM")
    private = write(tmp_path / "p.dcm", SOPClassUID="1.2.3.4.5.6", SOPInstanceUID="1.2.3.8")
    good = write(tmp_path / "g.dcm")
    other = write(tmp_path / "o.dcm", StudyInstanceUID="1.2.9", SOPInstanceUID="1.2.9.1")
    headers = read_source_headers([text, tmp_path / "missing.dcm", private, good, other])
    assert [ds.SOPInstanceUID for ds in headers.instances] == ["1.2.3.1"]
    with pytest.raises(UnreadableInstance):
        read_source_headers([text, private])


def test_what_some_images_leave_out_of_the_study_the_others_tell(tmp_path: Path) -> None:
    told = {"AccessionNumber": "A7", "StudyDate": "20260102", "StudyTime": "0730", "TimezoneOffsetFromUTC": "+0800"}
    bare = write(tmp_path / "1.dcm", SOPInstanceUID="1.2.3.1", PatientID="P", AccessionNumber="")
    full = write(tmp_path / "2.dcm", SOPInstanceUID="1.2.3.2", PatientID="P", StudyID="S1", **told)
    first = read_source_headers([full, bare]).first
    assert first.SOPInstanceUID == "1.2.3.1"
    assert {keyword: first[keyword].value for keyword in told} == told
    assert first.StudyID == "S1"


def test_headers_name_one_patient_or_none(tmp_path: Path) -> None:
    """What one image leaves out another tells; of two patients neither is named, whichever file came first."""
    known = {"PatientName": "Doe^Jane", "PatientID": "4711", "PatientBirthDate": "19600131", "PatientSex": "F"}
    paths = [
        write(tmp_path / "a.dcm", SOPInstanceUID="1.2.3.1"),
        write(tmp_path / "b.dcm", SOPInstanceUID="1.2.3.2", IssuerOfPatientID="A", PatientAge="066Y", **known),
    ]
    for header in read_source_headers(paths).instances:
        assert (header.PatientName, header.PatientID, header.IssuerOfPatientID) == ("Doe^Jane", "4711", "A")
    paths.append(write(tmp_path / "c.dcm", SOPInstanceUID="1.2.3.2", **{**known, "PatientID": "4712"}))
    for files in (paths, paths[::-1]):
        for header in read_source_headers(files).instances:
            assert not any(header[keyword].value for keyword in known)
            assert "IssuerOfPatientID" not in header and "PatientAge" not in header


def test_damaged_files_are_passed_over_and_the_others_kept(tmp_path: Path) -> None:
    """Every length and every value of a header in turn replaced by what no writer would write."""
    good = write(tmp_path / "good.dcm", SpecificCharacterSet="ISO_IR 100", PatientName="Doe^John", StudyID="7")
    content = good.read_bytes()
    damaged = []
    for offset in range(132, len(content)):
        damaged.append(tmp_path / f"{offset}.dcm")
        damaged[-1].write_bytes(content[:offset] + b"\xff\x01"[offset % 2 :] + content[offset + 2 - offset % 2 :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom thinks of the damage
        headers = read_source_headers([good, *damaged])
    assert "1.2.3.1" in {header.SOPInstanceUID for header in headers.instances}
    assert {header.StudyInstanceUID for header in headers.instances} == {"1.2.3"}
    assert len(headers.instances) < len(damaged)


@pytest.mark.parametrize("vr", [b"FD", b"US"])
def test_a_study_that_is_named_by_no_uid_is_no_source(tmp_path: Path, vr: bytes) -> None:
    """Six bytes are no double, which pydicom says with an exception of its own; as three integers they are no UID."""
    path = write(tmp_path / "a.dcm", StudyID="7777")
    content = path.read_bytes()
    study_uid = b"\x20\x00\x0d\x00UI"
    assert content.count(study_uid) == 1
    path.write_bytes(content.replace(study_uid, b"\x20\x00\x0d\x00" + vr))
    with pytest.raises(UnreadableInstance):
        read_source_headers([path])


def test_an_overlong_identifier_is_kept_without_a_warning(tmp_path: Path) -> None:
    """It is what the PACS knows the study by, although it breaks the standard; a warning would print it."""
    with disable_value_validation():
        path = write(tmp_path / "a.dcm", AccessionNumber="2026-01-10/CT/0000077", PatientID="P" * 70)
    header = read_source_headers([path]).first
    assert header.AccessionNumber == "2026-01-10/CT/0000077"
    assert header.PatientID == "P" * 70
