"""Hostile archives, media and folders: nothing is read or written outside, nothing fills the disk."""

import os
import struct
import zipfile
from pathlib import Path

import pydicom
import pytest
from factories import save_ct
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from imaging import files
from imaging.files import find_files
from imaging.headers import read_studies


def unpacked_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_an_archive_that_grows_without_measure_is_refused_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_NEGLIGIBLE_BYTES", 1 << 20)
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("1.dcm", bytes(64 << 20))
    found = find_files([bomb], tmp_path / "unpacked")
    assert (found.files, found.missed[0].path) == ((), bomb)
    assert "unpacks to more than" in found.missed[0].reason
    assert unpacked_bytes(tmp_path / "unpacked") < 10 << 20


def test_members_that_share_their_bytes_are_counted_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many entries of the central directory that point to one member, as in David Fifield's bomb."""
    monkeypatch.setattr(files, "_NEGLIGIBLE_BYTES", 1 << 20)
    one = tmp_path / "one.zip"
    with zipfile.ZipFile(one, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("1", os.urandom(4096) + bytes(200_000))
    content = one.read_bytes()
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entries = 500
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, entries, entries, entries * (end - start), start, 0)
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(content[:start] + content[start:end] * entries + tail)
    assert len(find_files([bomb], tmp_path / "unpacked").missed) == 1
    assert unpacked_bytes(tmp_path / "unpacked") < 10 << 20


def test_a_link_in_an_archive_is_a_file_like_any_other(tmp_path: Path) -> None:
    archive = tmp_path / "study.zip"
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(link, "/etc/passwd")
        opened.writestr("/absolute", b"x")
    found = find_files([archive], tmp_path / "unpacked").files
    assert [path.read_bytes() for path in found] == [b"/etc/passwd", b"x"]
    assert not any(path.is_symlink() for path in found)
    assert all(path.is_relative_to(tmp_path / "unpacked") for path in found)


def test_a_dicom_file_that_also_looks_like_an_archive_is_a_dicom_file(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    begins, ends = (folder / name for name in ("begins.dcm", "ends.dcm"))
    save_ct(begins)
    begins.write_bytes(b"PK\x03\x04" + begins.read_bytes()[4:])
    save_ct(ends)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    ends.write_bytes(ends.read_bytes() + (tmp_path / "empty.zip").read_bytes())
    assert zipfile.is_zipfile(ends)
    assert set(find_files([folder], tmp_path / "unpacked").files) == {begins, ends}
    assert set(find_files([begins, ends], tmp_path / "unpacked").files) == {begins, ends}


@pytest.mark.parametrize("damage", ["encrypted", "truncated", "method"])
def test_a_damaged_archive_is_said(tmp_path: Path, damage: str) -> None:
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("1.dcm", os.urandom(5000))
    content = bytearray(archive.read_bytes())
    directory = content.index(b"PK\x01\x02")
    if damage == "encrypted":
        content[6] |= 1
        content[directory + 8] |= 1
    elif damage == "method":
        content[8:10] = content[directory + 10 : directory + 12] = b"\x63\x00"
    archive.write_bytes(bytes(content[:3000] if damage == "truncated" else content))
    found = find_files([archive], tmp_path / "unpacked")
    assert (found.files, [missed.path for missed in found.missed]) == ((), [archive])
    assert "cannot be unpacked" in found.missed[0].reason
    assert unpacked_bytes(tmp_path / "unpacked") == 0


def test_what_cannot_be_opened_keeps_none_of_the_others_from_being_read(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    (folder / "below").mkdir(parents=True)
    save_ct(folder / "below" / "1.dcm")
    (folder / "notes.zip").write_bytes(b"PK\x03\x04cut")
    found = find_files([folder, tmp_path / "archive" / "notes.zip"], tmp_path / "unpacked")
    assert {missed.path for missed in found.missed} == {folder / "notes.zip"}
    studies, unreadable = read_studies(found.files)
    assert [study.series[0].files for study in studies] == [(folder / "below" / "1.dcm",)]
    assert not unreadable


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_nobody_may_open_is_said(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    found = find_files([tmp_path], tmp_path / "unpacked")
    assert [missed.path for missed in found.missed] == [tmp_path / "locked"]


def test_linked_folders_are_walked(tmp_path: Path) -> None:
    save_ct(tmp_path / "1.dcm")
    (tmp_path / "given").mkdir()
    (tmp_path / "elsewhere").mkdir()
    save_ct(tmp_path / "elsewhere" / "2.dcm")
    (tmp_path / "given" / "linked").symlink_to(tmp_path / "elsewhere")
    assert find_files([tmp_path / "given"], tmp_path / "unpacked").files == (tmp_path / "given" / "linked" / "2.dcm",)


def test_a_folder_with_links_to_itself_and_to_devices_ends(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "loop").symlink_to(folder)
    (folder / "device").symlink_to("/dev/zero")
    (folder / "gone").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe")
    (folder / "1.dcm").write_bytes(b"x")
    found = find_files([folder], tmp_path / "unpacked")
    assert found.files == (folder / "1.dcm",)
    assert [missed.path for missed in found.missed] == [folder / "gone"]


@pytest.mark.parametrize(
    "file_id", [["..", "SECRET"], ["/etc/hostname"], ["A\0B"], ["X" * 5000], ["LINK"], ["."], ["X" * 300, "Y"]]
)
def test_a_dicomdir_leads_to_files_of_its_own_folder_alone(tmp_path: Path, file_id: list[str]) -> None:
    (tmp_path / "SECRET").write_bytes(b"secret")
    media = tmp_path / "media"
    media.mkdir()
    (media / "LINK").symlink_to(tmp_path / "SECRET")
    (media / "IMAGE").write_bytes(b"image")
    write_dicomdir(media / "DICOMDIR", [file_id, ["IMAGE"]])
    found = find_files([media / "DICOMDIR"], tmp_path / "unpacked")
    assert found.files == (media / "IMAGE",)
    assert [missed.reason for missed in found.missed] == ["1 of its 2 files are not there"]


def test_a_medium_may_be_shown_in_small_letters(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "im1").write_bytes(b"image")
    write_dicomdir(tmp_path / "dicomdir", [["IMAGES", "IM1"]])
    assert find_files([tmp_path / "dicomdir"], tmp_path / "unpacked").files == (tmp_path / "images" / "im1",)


def test_a_deflated_or_senseless_dicomdir_is_said(tmp_path: Path) -> None:
    write_dicomdir(tmp_path / "DICOMDIR", [["IMAGE"]], syntax=DeflatedExplicitVRLittleEndian)
    (missed,) = find_files([tmp_path / "DICOMDIR"], tmp_path / "unpacked").missed
    assert missed.reason == "the DICOMDIR is deflated"
    write_dicomdir(tmp_path / "DICOMDIR", [])
    directory = pydicom.dcmread(tmp_path / "DICOMDIR")
    directory.add_new(0x00041220, "LO", "no sequence")
    directory.save_as(tmp_path / "DICOMDIR")
    (missed,) = find_files([tmp_path / "DICOMDIR"], tmp_path / "unpacked").missed
    assert missed.reason.startswith("the DICOMDIR cannot be read")


def write_dicomdir(path: Path, file_ids: list[list[str]], syntax: str = ExplicitVRLittleEndian) -> None:
    """A DICOMDIR of image records, written element by element: its writers refuse such file IDs."""
    directory = Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = syntax
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    records = []
    for file_id in file_ids:
        record = Dataset()
        record.DirectoryRecordType = "IMAGE"
        record.add_new(0x00041500, "UC", file_id)
        records.append(record)
    directory.DirectoryRecordSequence = records
    directory.save_as(path, enforce_file_format=True)
