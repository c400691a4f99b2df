"""Series with the defects of real archives: each is reported with the right voxels in the right place, or refused.

What is reported is held against the phantom's own voxels and positions: a report of anything else is a failure here.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from io import SEEK_END, BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from dicom_gateway.pipeline import StageClock, first_series_through_the_gates
from imaging.headers import read_studies
from imaging.phantom import Phantom, make_phantom
from imaging.phantom_dicom import slice_dataset
from imaging.quality import Verdict, is_rejected
from imaging.uids import derive_uid

pytestmark = pytest.mark.acceptance

Images = list[Dataset]
Defect = Callable[[Images], Images | None]


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(11, (), spacing_mm=(4, 4, 4))


@pytest.fixture(scope="module")
def encoded(phantom: Phantom) -> list[bytes]:
    images = []
    for index in range(phantom.volume.hu.shape[0]):
        image, stream = slice_dataset(phantom, index), BytesIO()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.save_as(stream, enforce_file_format=True)
        images.append(stream.getvalue())
    return images


def of_some(which: slice, change: Callable[[Dataset, int], object]) -> Defect:
    def defect(images: Images) -> None:
        for index, image in list(enumerate(images))[which]:
            change(image, index)

    return defect


def of_each(change: Callable[[Dataset, int], object]) -> Defect:
    """A change of every image, which is told its index."""
    return of_some(slice(None), change)


def of_one(change: Callable[[Dataset], object], index: int = 40) -> Defect:
    def defect(images: Images) -> None:
        change(images[index])

    return defect


def each(*defects: Defect) -> Defect:
    """One defect after the other."""

    def defect(images: Images) -> None:
        for one in defects:
            one(images)

    return defect


def set_all(**values: object) -> Defect:
    return of_each(lambda image, _: [setattr(image, keyword, deepcopy(value)) for keyword, value in values.items()])


def set_one(**values: object) -> Defect:
    return of_one(lambda image: [setattr(image, keyword, value) for keyword, value in values.items()])


def without(*keywords: str) -> Defect:
    return of_each(lambda image, _: [delattr(image, keyword) for keyword in keywords if keyword in image])


def with_raw(keyword: str, vr: str, value: bytes) -> Callable[[Dataset], None]:
    """An element whose bytes no encoder would write."""

    def change(image: Dataset) -> None:
        tag = Tag(keyword)
        image[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)

    return change


def move(image: Dataset, x_mm: float = 0, y_mm: float = 0, z_mm: float = 0) -> None:
    x, y, z = image.ImagePositionPatient
    image.ImagePositionPatient = [round(float(x) + x_mm, 4), round(float(y) + y_mm, 4), round(float(z) + z_mm, 4)]


def swap(keyword: str, one: int, other: int) -> Defect:
    def defect(images: Images) -> None:
        here, there = getattr(images[one], keyword), getattr(images[other], keyword)
        setattr(images[one], keyword, there)
        setattr(images[other], keyword, here)

    return defect


def shuffled(keyword: str) -> Defect:
    """The values of the keyword in random order."""

    def defect(images: Images) -> None:
        values = [getattr(image, keyword) for image in images]
        for image, index in zip(images, np.random.default_rng(3).permutation(len(images)), strict=True):
            setattr(image, keyword, values[index])

    return defect


def stored(image: Dataset) -> np.ndarray:
    return np.frombuffer(image.PixelData, "<u2").reshape(image.Rows, image.Columns)


def put(image: Dataset, pixels: np.ndarray) -> None:
    image.Rows, image.Columns = pixels.shape
    image.PixelData = pixels.astype("<u2").tobytes()


def signed_with_padding(image: Dataset, _: int) -> None:
    """Stored HU, two's complement, beside rows that were never reconstructed."""
    pixels = stored(image).astype(np.int16) - 1024
    pixels[:PADDED] = -2000
    image.PixelRepresentation, image.BitsStored, image.HighBit = 1, 16, 15
    image.RescaleIntercept, image.PixelData = 0, pixels.tobytes()


def stored_with_offset_8192(image: Dataset, _: int) -> None:
    put(image, stored(image) + 7168)
    image.BitsStored, image.HighBit, image.RescaleIntercept = 16, 15, -8192


def with_chinese_name(image: Dataset, _: int) -> None:
    image.SpecificCharacterSet = "ISO_IR 100"
    with_raw("PatientName", "PN", "张^伟".encode("gb18030"))(image)


def position_as(vr: str) -> Defect:
    def change(image: Dataset, _: int) -> None:
        position = [float(value) for value in image.ImagePositionPatient]
        text = "\\".join(map(str, position)).encode()
        with_raw("ImagePositionPatient", vr, np.array(position, "<f8").tobytes() if vr == "FD" else text)(image)

    return of_each(change)


def another_series(image: Dataset, name: str) -> None:
    image.SeriesInstanceUID = derive_uid("another series", name)


def compressed(images: Images) -> None:
    for image in images:
        image.compress(RLELossless, generate_instance_uid=False)


def duplicated(images: Images) -> Images:
    twin = deepcopy(images[40])
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = derive_uid("twin")
    return [*images, twin]


def second_acquisition(images: Images, shift_mm: float) -> Images:
    others = deepcopy(images)
    for number, image in enumerate(others):
        move(image, z_mm=shift_mm)
        image.AcquisitionNumber = 2
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = derive_uid("second", str(number))
    return images + others


def with_localizer(images: Images) -> Images:
    localizer = deepcopy(images[0])
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    localizer.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    localizer.SOPInstanceUID = localizer.file_meta.MediaStorageSOPInstanceUID = derive_uid("localizer")
    return [localizer, *images]


def unnumbered(images: Images) -> Images:
    for image in images:
        del image.AcquisitionNumber, image.InstanceNumber
    return images


def private_sequences(image: Dataset, _: int) -> None:
    image.add_new(0x00290010, "LO", "ONESCAN TESTS")
    inner = Dataset()
    inner.add_new(0x00290010, "LO", "ONESCAN TESTS")
    inner.add_new(0x00291001, "OB", bytes(20_000))
    for _depth in range(20):
        outer = Dataset()
        outer.add_new(0x00290010, "LO", "ONESCAN TESTS")
        outer.add_new(0x00291002, "SQ", Sequence([inner]))
        inner = outer
    image.add_new(0x00291003, "SQ", Sequence([inner]))


def mislabelled(syntax: str) -> Defect:
    """The file meta information names another transfer syntax than the data set has."""

    def change(image: Dataset, _: int) -> None:
        image.said_syntax = syntax

    return of_each(change)


@dataclass(frozen=True)
class Cut:
    """Leave out the last bytes of some files."""

    count: int
    index: int = 40

    def __call__(self, images: Images) -> None:
        images[self.index].cut_bytes = self.count


REPORTED = "reported"
PADDED = 4
CASES: dict[str, tuple[Defect, str]] = {
    "nothing wrong": (lambda images: None, REPORTED),
    # Order and identity.
    "files in any order": (lambda images: images[1::3] + images[::3][::-1] + images[2::3], REPORTED),
    "every file twice": (lambda images: images + deepcopy(images), REPORTED),
    "no InstanceNumber": (without("InstanceNumber"), REPORTED),
    "InstanceNumber the same everywhere": (set_all(InstanceNumber=1), REPORTED),
    "InstanceNumber from the other end": (of_each(lambda i, n: setattr(i, "InstanceNumber", n + 1)), REPORTED),
    "a localizer among the images": (with_localizer, REPORTED),
    "an image twice under two UIDs": (duplicated, "duplicate_positions"),
    "one SOPInstanceUID on every slice": (set_all(SOPInstanceUID="1.2.3"), "sop_instance_uid"),
    "UIDs that are no UIDs": (of_each(lambda i, n: setattr(i, "SOPInstanceUID", f"image-{n}.ä")), REPORTED),
    "half of the images under another series": (
        of_some(slice(39, None), lambda i, _: another_series(i, "half")),
        "coverage",
    ),
    "every second image under another series": (
        of_some(slice(None, None, 2), lambda i, _: another_series(i, "second")),
        "slice_spacing",
    ),
    "another series UID on every image": (of_each(lambda i, n: another_series(i, str(n))), "no series"),
    "two frames of reference": (set_one(FrameOfReferenceUID="1.2.3"), "mixed_images"),
    "another matrix in one image": (of_one(lambda i: put(i, stored(i)[::2, ::2])), "mixed_images"),
    # Positions.
    "a slice is missing": (lambda images: images[:40] + images[41:], "slice_gaps"),
    "a block is missing": (lambda images: images[:35] + images[45:], "slice_gaps"),
    "every second slice is missing": (lambda images: images[::2], "slice_spacing"),
    "a file cut off in its header": (Cut(16800), "slice_gaps"),
    "no position in one image": (of_one(lambda i: delattr(i, "ImagePositionPatient")), "headers"),
    "no positions": (without("ImagePositionPatient"), "headers"),
    "no orientations": (without("ImageOrientationPatient"), "no series"),
    "one position for all": (set_all(ImagePositionPatient=[0, 0, 0]), "duplicate_positions"),
    "a position that is no number": (of_one(with_raw("ImagePositionPatient", "DS", b"a\\b\\c ")), "slice_gaps"),
    "a position of two numbers": (set_one(ImagePositionPatient=[0, 0]), "headers"),
    "a position that is not finite": (of_one(with_raw("ImagePositionPatient", "DS", b"0\\0\\nan ")), "headers"),
    "positions of two images exchanged": (swap("ImagePositionPatient", 30, 50), "image_order"),
    "positions of two neighbours exchanged": (swap("ImagePositionPatient", 40, 41), "image_order"),
    "pixels of two images exchanged": (swap("PixelData", 30, 50), "image_order"),
    "positions in random order": (shuffled("ImagePositionPatient"), "image_order"),
    "positions in random order, without numbers": (
        each(shuffled("ImagePositionPatient"), without("InstanceNumber")),
        "image_order",
    ),
    "numbers in random order": (shuffled("InstanceNumber"), REPORTED),
    "a slice shifted along": (of_one(lambda i: move(i, z_mm=1.5)), "slice_gaps"),
    "a slice shifted sideways": (of_one(lambda i: move(i, x_mm=9)), "alignment"),
    "spacing that changes half way": (
        of_some(slice(40, None), lambda i, n: move(i, z_mm=2.0 * (n - 39))),
        "slice_gaps",
    ),
    "spacing that drifts": (of_each(lambda i, n: move(i, z_mm=0.004 * n * n)), "slice_gaps"),
    "positions in centimetres": (
        of_each(lambda i, _: setattr(i, "ImagePositionPatient", [v / 10 for v in i.ImagePositionPatient])),
        "coverage",
    ),
    "gantry tilt by the positions": (of_each(lambda i, n: move(i, y_mm=0.5 * n)), "gantry_tilt"),
    "gantry tilt by the orientation": (
        set_all(ImageOrientationPatient=[1, 0, 0, 0, 0.984808, -0.173648]),
        "gantry_tilt",
    ),
    "one image of another orientation": (set_one(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "orientation"),
    "orientations that are no unit vectors": (set_all(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "no series"),
    "sagittal by the orientation": (set_all(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "no series"),
    "another acquisition far below": (lambda images: second_acquisition(images, -900.0), "acquisition"),
    "another acquisition far below, unnumbered": (
        lambda images: unnumbered(second_acquisition(images, -900.0)),
        "slice_gaps",
    ),
    "another acquisition between the slices": (lambda images: second_acquisition(images, 2.0), "acquisition"),
    "another acquisition at the same place": (lambda images: second_acquisition(images, 0.0), "acquisition"),
    # Spacing.
    "no PixelSpacing": (without("PixelSpacing"), "headers"),
    "PixelSpacing 0": (set_all(PixelSpacing=[0, 0]), "headers"),
    "PixelSpacing below 0": (set_all(PixelSpacing=[-4, 4]), "headers"),
    "PixelSpacing not finite": (of_each(lambda i, _: with_raw("PixelSpacing", "DS", b"nan\\nan ")(i)), "headers"),
    "PixelSpacing infinite": (of_each(lambda i, _: with_raw("PixelSpacing", "DS", b"inf\\inf ")(i)), "headers"),
    "PixelSpacing of another image": (set_one(PixelSpacing=[2, 2]), "mixed_images"),
    "PixelSpacing in centimetres": (set_all(PixelSpacing=[0.4, 0.4]), "lungs"),
    "PixelSpacing twice as large": (set_all(PixelSpacing=[8, 8]), "lungs"),
    "PixelSpacing in micrometres": (set_all(PixelSpacing=[4000, 4000]), "pixel_spacing"),
    "PixelSpacing ten times too large": (set_all(PixelSpacing=[40, 40]), "pixel_spacing"),
    # Values.
    "no RescaleSlope": (without("RescaleSlope"), "headers"),
    "no RescaleIntercept": (without("RescaleIntercept"), "headers"),
    "RescaleSlope 0": (set_all(RescaleSlope=0), "headers"),
    "RescaleSlope not finite": (of_each(lambda i, _: with_raw("RescaleSlope", "DS", b"nan ")(i)), "headers"),
    "RescaleIntercept not finite": (of_each(lambda i, _: with_raw("RescaleIntercept", "DS", b"inf ")(i)), "headers"),
    "RescaleIntercept 0 of values that have 1024": (set_all(RescaleIntercept=0), "lungs"),
    "RescaleIntercept of the wrong sign": (set_all(RescaleIntercept=1024), "lungs"),
    "RescaleIntercept twice": (set_all(RescaleIntercept=-2048), "lungs"),
    "RescaleSlope of 2": (set_all(RescaleSlope=2), "hu"),
    "RescaleIntercept wrong in one image": (set_one(RescaleIntercept=0), "image_order"),
    "stored with an offset of 8192": (of_each(stored_with_offset_8192), REPORTED),
    "signed, with padding of -2000": (of_each(signed_with_padding), REPORTED),
    "bits beyond BitsStored": (of_each(lambda i, _: put(i, stored(i) | 0x8000)), REPORTED),
    "RGB": (set_all(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "pixels"),
    # Pixels.
    "pixels cut off": (Cut(2000), "pixels"),
    "no pixels": (of_one(lambda i: delattr(i, "PixelData")), "pixels"),
    "more rows said than there are": (set_all(Rows=120), "pixels"),
    "fewer rows said than there are": (set_all(Rows=60), "pixels"),
    "fewer rows said than there are, RLE": (each(compressed, set_all(Rows=60)), "pixels"),
    "a blank image among the others": (of_one(lambda i: put(i, np.zeros((90, 90)))), "blank_images"),
    "the same pixels at two positions": (lambda images: put(images[40], stored(images[41])), "repeated_images"),
    "RLE, one image cut": (each(compressed, Cut(500)), "pixels"),
    "RLE": (compressed, REPORTED),
    # Encoding.
    "said to be implicit VR": (mislabelled(ImplicitVRLittleEndian), REPORTED),
    "said to be big endian": (mislabelled(ExplicitVRBigEndian), "unreadable"),
    "said to be JPEG 2000": (mislabelled(JPEG2000Lossless), "pixels"),
    "said to be of no known syntax": (mislabelled("1.2.3.4"), "pixels"),
    "positions with a wrong VR": (position_as("LO"), REPORTED),
    "positions as numbers of a wrong VR": (position_as("FD"), REPORTED),
    "rows with a wrong VR": (of_each(lambda i, _: with_raw("Rows", "IS", b"90")(i)), REPORTED),
    "Chinese names under a wrong character set": (of_each(with_chinese_name), REPORTED),
    "a character set nobody knows": (set_all(SpecificCharacterSet="ISO_IR 999"), REPORTED),
    "large private sequences": (of_each(private_sequences), REPORTED),
    "hardly any description": (
        without(
            *("SliceThickness", "PatientSex", "AccessionNumber", "FrameOfReferenceUID", "SeriesNumber", "ImageType"),
            *("KVP", "PatientAge", "StudyDate", "SeriesDescription", "AcquisitionNumber", "ConvolutionKernel"),
        ),
        REPORTED,
    ),
}


def write(images: Images, folder: Path) -> list[Path]:
    paths = []
    for number, image in enumerate(images):
        stream = BytesIO()
        image.save_as(stream, implicit_vr=False, little_endian=True, enforce_file_format=True)
        content = stream.getvalue()
        if said := getattr(image, "said_syntax", None):
            data_set = content[144 + int.from_bytes(content[140:144], "little") :]
            image.file_meta.TransferSyntaxUID = said
            head = BytesIO(bytes(128) + b"DICM")
            head.seek(0, SEEK_END)
            write_file_meta_info(head, image.file_meta)
            content = head.getvalue() + data_set
        paths.append(folder / f"{number:04d}")
        paths[-1].write_bytes(content[: len(content) - getattr(image, "cut_bytes", 0)])
    return paths


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")
@pytest.mark.parametrize("name", CASES)
def test_reported_right_or_refused_by_name(name: str, phantom: Phantom, encoded: list[bytes], tmp_path: Path) -> None:
    defect, expected = CASES[name]
    images = [dcmread(BytesIO(content)) for content in encoded]
    images = defect(images) or images
    studies, unreadable = read_studies(write(images, tmp_path))
    if not studies:
        assert expected == "unreadable" and len(unreadable) == len(images)
        return
    (study,) = studies
    passed = first_series_through_the_gates(study, StageClock(lambda stage: None))
    outcome = REPORTED
    if passed.selection.chosen is None:
        outcome = "no series"
    elif passed.volume is None:
        assert is_rejected(passed.quality)
        outcome = next(issue.check for issue in passed.quality if issue.verdict is Verdict.REJECT)
    else:
        truth = phantom.volume
        right = passed.volume.hu.shape == truth.hu.shape and np.allclose(
            passed.volume.geometry.affine, truth.geometry.affine, atol=0.01
        )
        # The first rows are padding in one case.
        right = right and not (passed.volume.hu != truth.hu)[:, PADDED:].any()
        outcome = REPORTED if right else "SILENTLY WRONG"
    assert outcome == expected, [i.message for i in passed.quality if i.verdict is not Verdict.PASS]
