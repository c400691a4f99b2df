"""Reading files: layouts, transfer syntaxes, padding, damaged bytes; SimpleITK is the second opinion."""

import gc
import zipfile
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from factories import make_ct_dataset
from pydicom.encaps import encapsulate
from pydicom.fileset import FileSet
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from imaging.errors import InconsistentSeries, UnreadableInstance
from imaging.files import find_files
from imaging.headers import read_studies
from imaging.phantom import make_phantom
from imaging.phantom_dicom import write_phantom
from imaging.phantom_enhanced import write_enhanced_phantom
from imaging.quality import check_headers, is_rejected
from imaging.volume import AIR_HU, load_volume

SLICES, ROWS, COLUMNS = 6, 48, 64
STEP_MM = 2.0
_ENCODERS = {
    JPEGLosslessSV1: lambda a: imagecodecs.ljpeg_encode(a, bitspersample=16),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEG2000Lossless: lambda a: imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k", reversible=True),
}


def _stored(index: int, signed: bool) -> np.ndarray:
    generator = np.random.default_rng(index)
    values = generator.integers(0, 3000, (ROWS, COLUMNS))
    return (values - 1500 if signed else values).astype(np.int16 if signed else np.uint16)


def _write(folder: Path, syntax: str = ExplicitVRLittleEndian, *, signed: bool = False, **overrides) -> list[Path]:
    """A small axial series in files named against their order; gives the files in slice order."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(SLICES):
        stored = _stored(index, signed)
        ds = make_ct_dataset(
            SOPInstanceUID=f"1.2.826.0.1.3680043.10.1.{index + 1}",
            InstanceNumber=index + 1,
            ImagePositionPatient=[-20.0, -30.0, -50.0 + STEP_MM * index],
            Rows=ROWS,
            Columns=COLUMNS,
            PixelSpacing=[0.75, 0.5],
            BitsAllocated=16,
            BitsStored=16,
            HighBit=15,
            PixelRepresentation=int(signed),
            RescaleSlope=1,
            RescaleIntercept=0 if signed else -1024,
            PixelData=stored.tobytes(),
            **overrides,
        )
        ds.file_meta.TransferSyntaxUID = syntax
        if syntax in _ENCODERS:
            encoded = _ENCODERS[syntax](stored.view(np.uint16) if syntax != JPEG2000Lossless else stored)
            ds.PixelData = encapsulate([encoded])
            ds["PixelData"].is_undefined_length = True
        elif syntax == RLELossless:
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.compress(RLELossless, generate_instance_uid=False)
        file = folder / f"{SLICES - index}.dcm"
        ds.save_as(file, enforce_file_format=True)
        files.append(file)
    return files


def _load(folder: Path):
    studies, unreadable = read_studies(find_files([folder], folder / "unpacked").files)
    assert not unreadable
    return load_volume(studies[0].series[0])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLosslessSV1,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
def test_every_transfer_syntax_gives_the_voxels_and_the_grid(tmp_path: Path, syntax: str, signed: bool) -> None:
    """Bit-equal to what was stored, in slice order, and equal to SimpleITK's own reading of voxels and space."""
    files = _write(tmp_path, syntax, signed=signed)
    volume = _load(tmp_path)
    expected = np.stack([_stored(i, signed).astype(np.int32) - (0 if signed else 1024) for i in range(SLICES)])
    np.testing.assert_array_equal(volume.hu, np.maximum(expected, AIR_HU))
    assert volume.sop_instance_uids == tuple(f"1.2.826.0.1.3680043.10.1.{i + 1}" for i in range(SLICES))

    if syntax == DeflatedExplicitVRLittleEndian:
        return  # GDCM reads no deflated file
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    image = reader.Execute()
    np.testing.assert_array_equal(volume.hu, np.maximum(sitk.GetArrayFromImage(image), AIR_HU))
    for index in ((0, 0, 0), (5, 3, 7), (2, 40, 11)):
        physical = image.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose(volume.geometry.index_to_patient(index), physical, atol=1e-4)


def test_padding_becomes_air(tmp_path: Path) -> None:
    """Declared padding, in range form and as US in a signed image, and values no CT can have."""
    stored = np.full((ROWS, COLUMNS), 50, np.int16)
    stored[:5], stored[5:10] = -2000, -1990
    padded = {"PixelData": stored.tobytes(), "PixelRepresentation": 1, "RescaleIntercept": 0, "Rows": ROWS}
    for index in range(2):
        ds = make_ct_dataset(
            SOPInstanceUID=f"1.2.3.{index + 1}",
            ImagePositionPatient=[0, 0, index],
            Columns=COLUMNS,
            BitsStored=16,
            HighBit=15,
            **padded,
        )
        ds.add_new("PixelPaddingValue", "US", 65536 - 2000)
        ds.add_new("PixelPaddingRangeLimit", "US", 65536 - 1990)
        ds.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    volume = _load(tmp_path)
    assert set(np.unique(volume.hu[:, :10])) == {AIR_HU}
    assert set(np.unique(volume.hu[:, 10:])) == {50}


def test_zip_folder_and_single_files_are_the_same_study(tmp_path: Path) -> None:
    """The archive's names choose no path, and a text file beside the images is listed, not fatal."""
    files = _write(tmp_path / "series")
    (tmp_path / "series" / "notes.txt").write_text("not an image")
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for number, file in enumerate(files):
            archive.write(file, f"../../escape{number}.dcm")
    for source in ([tmp_path / "study.zip"], files):
        (study,), unreadable = read_studies(find_files(source, tmp_path / "unpacked").files)
        assert len(study.series[0].slices) == SLICES
        assert not unreadable
    assert not list(tmp_path.parent.glob("escape*"))
    (study,), unreadable = read_studies(find_files([tmp_path / "series"], tmp_path / "unpacked").files)
    assert [(f.path.name, f.reason) for f in unreadable] == [("notes.txt", "not a DICOM file")]


def test_the_same_instance_twice_counts_once(tmp_path: Path) -> None:
    files = _write(tmp_path)
    (tmp_path / "copy.dcm").write_bytes(files[0].read_bytes())
    (study,), _ = read_studies(find_files([tmp_path], tmp_path / "unpacked").files)
    assert len(study.series[0].slices) == SLICES


def test_a_path_that_does_not_exist_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_files([tmp_path / "nowhere"], tmp_path)


def test_a_broken_archive_is_said(tmp_path: Path) -> None:
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("1.dcm", b"x" * 5000)
    content = bytearray(archive.read_bytes())
    content[2000] ^= 0xFF
    archive.write_bytes(bytes(content))
    (missed,) = find_files([archive], tmp_path / "unpacked").missed
    assert (missed.path, missed.reason) == (archive, "the archive cannot be unpacked: BadZipFile")


@pytest.mark.parametrize("keep", [200, 600, 0.5])
def test_a_truncated_file_is_refused_not_filled(tmp_path: Path, keep: float) -> None:
    """Cut in the header: listed as unreadable. Cut in the pixels: the volume is refused."""
    files = _write(tmp_path)
    content = files[2].read_bytes()
    files[2].write_bytes(content[: int(len(content) * keep) if keep < 1 else int(keep)])
    studies, unreadable = read_studies(find_files([tmp_path], tmp_path / "unpacked").files)
    if not unreadable:
        with pytest.raises((UnreadableInstance, InconsistentSeries)):
            load_volume(studies[0].series[0])


def test_pixels_that_do_not_fit_the_header_are_refused(tmp_path: Path) -> None:
    files = _write(tmp_path, JPEGLSLossless)
    ds = pydicom.dcmread(files[1])
    ds.PixelData = encapsulate([imagecodecs.jpegls_encode(np.zeros((10, 10), np.uint16))])
    ds.save_as(files[1])
    studies, _ = read_studies(find_files([tmp_path], tmp_path / "unpacked").files)
    with pytest.raises(InconsistentSeries, match="pixels"):
        load_volume(studies[0].series[0])


# pydicom's FileSet leaves its temporary folder to the garbage collector.
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_a_dicomdir_leads_to_its_files_and_to_no_others(tmp_path: Path) -> None:
    """The media directory of PS3.3 F.3, as another library wrote it; a record that points outside is left alone."""
    files = _write(tmp_path / "source")
    media = FileSet()
    for file in files:
        media.add(file)
    media.write(tmp_path / "media")
    del media
    gc.collect()
    (study,), unreadable = read_studies(find_files([tmp_path / "media" / "DICOMDIR"], tmp_path / "unpacked").files)
    assert len(study.series[0].slices) == SLICES
    assert not unreadable

    directory = pydicom.dcmread(tmp_path / "media" / "DICOMDIR")
    for record in directory.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.ReferencedFileID = ["..", "source", "1.dcm"]
    directory.save_as(tmp_path / "media" / "DICOMDIR")
    assert find_files([tmp_path / "media" / "DICOMDIR"], tmp_path / "unpacked").files == ()


def test_an_enhanced_ct_is_the_same_volume_as_its_single_images(tmp_path: Path) -> None:
    phantom = make_phantom(2, spacing_mm=(5.0, 2.8, 2.8))
    write_phantom(phantom, tmp_path / "single")
    write_enhanced_phantom(phantom, tmp_path / "enhanced.dcm")
    single, enhanced = (
        read_studies(find_files([source], tmp_path / "unpacked").files)[0][0].series[0]
        for source in (tmp_path / "single", tmp_path / "enhanced.dcm")
    )
    assert not is_rejected(check_headers(enhanced))
    expected, found = load_volume(single), load_volume(enhanced)
    np.testing.assert_array_equal(found.hu, expected.hu)
    np.testing.assert_allclose(found.geometry.affine, expected.geometry.affine, atol=1e-6)
    assert sorted(n for n in found.frame_numbers if n) == list(range(1, len(found.frame_numbers) + 1))


def test_a_header_cut_anywhere_is_listed_never_a_crash(tmp_path: Path) -> None:
    file = _write(tmp_path / "whole")[0]
    content = file.read_bytes()
    cut = tmp_path / "cut.dcm"
    for size in range(0, len(content) - ROWS * COLUMNS * 2, 3):
        cut.write_bytes(content[:size])
        studies, unreadable = read_studies([cut])
        assert len(studies) + len(unreadable) == 1


def test_descriptive_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    """A scanner's "1,25" or "A1" must not cost the image."""
    file = tmp_path / "odd.dcm"
    ds = make_ct_dataset()
    with pydicom.config.disable_value_validation():
        for keyword, value in (("SliceThickness", b"1,25"), ("SeriesNumber", b"A1")):
            ds[keyword] = pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(keyword), pydicom.datadict.dictionary_VR(keyword), len(value), value, 0, False, True
            )
        ds.save_as(file, enforce_file_format=True)
    ((study,), unreadable) = read_studies([file])
    assert not unreadable
    (plane,) = study.series[0].slices
    assert (study.series[0].series_number, plane.slice_thickness_mm) == (None, None)
    assert plane.image_position_patient is not None
