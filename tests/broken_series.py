"""Series with the defects of real archives, and how each ends: reported with the right voxels in place, or refused.

What is reported is held against the phantom's own voxels and positions.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from io import SEEK_END, BytesIO
from pathlib import Path

import numpy as np
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
    XRayRadiationDoseSRStorage,
)

from dicom_gateway.pipeline import StageClock, first_series_through_the_gates
from imaging.headers import read_studies
from imaging.phantom import Phantom, make_phantom
from imaging.phantom_dicom import slice_dataset
from imaging.quality import Verdict
from imaging.uids import derive_uid
from imaging.volume import Volume

Images = list[Dataset]
Defect = Callable[[Images], Images | None]


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


def signed(padding: int, intercept: int = 0, said: bytes | None = None) -> Defect:
    """Two's complement with an offset of `intercept`, beside rows that were never reconstructed."""

    def change(image: Dataset, _: int) -> None:
        pixels = stored(image).astype(np.int16) - 1024 - intercept
        pixels[:PADDED] = padding
        image.PixelRepresentation, image.BitsStored, image.HighBit = 1, 16, 15
        image.RescaleIntercept, image.PixelData = intercept, pixels.tobytes()
        if said is not None:
            with_raw("PixelPaddingValue", "US", said)(image)

    return of_each(change)


def stored_with_offset(offset: int) -> Defect:
    def change(image: Dataset, _: int) -> None:
        put(image, np.clip(stored(image).astype(int) - 1024, -offset, None) + offset)
        image.BitsStored, image.HighBit, image.RescaleIntercept = 16, 15, -offset

    return of_each(change)


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


def is_of(image: Dataset, **patient: str) -> None:
    for keyword, value in patient.items():
        setattr(image, keyword, value)


def another_modality(image: Dataset, **values: str) -> Dataset:
    """What else a study holds, as a series of its own."""
    other = deepcopy(image)
    other.Modality, other.SOPClassUID = "SR", XRayRadiationDoseSRStorage
    another_series(other, "other")
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = derive_uid("other")
    is_of(other, **values)
    return other


def copied_by_another_program(image: Dataset) -> Dataset:
    copy = deepcopy(image)
    copy.file_meta.ImplementationVersionName = "ANOTHER"
    return copy


def changed(image: Dataset) -> Dataset:
    other = deepcopy(image)
    put(other, np.maximum(stored(other), 24))
    return other


def copied_into_another_series(images: Images) -> Images:
    copies = deepcopy(images)
    copies[40] = changed(copies[40])
    for image in copies:
        another_series(image, "copies")
        image.SeriesNumber = 99
    return copies


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


def closed_up(images: Images) -> Images:
    """Without eight images in the middle, the positions of those above moved down to be even."""
    for image in images[48:]:
        move(image, z_mm=8 * (images[0].ImagePositionPatient[2] - images[1].ImagePositionPatient[2]))
    return [*images[:40], *images[48:]]


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


REPORTED, SILENTLY_WRONG, UNREADABLE, NO_SERIES = "reported", "SILENTLY WRONG", "unreadable", "no series"
WARNED = "warned of orientation"
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
    "every file twice, under other file meta information": (
        lambda images: images + [copied_by_another_program(image) for image in images],
        REPORTED,
    ),
    "an image twice with other pixels": (lambda images: [*images, changed(images[40])], "sop_instance_uid"),
    "an image twice with other pixels, the other first": (
        lambda images: [changed(images[40]), *images],
        "sop_instance_uid",
    ),
    "the images again in another series, one with other pixels": (
        lambda images: copied_into_another_series(images) + images,
        REPORTED,
    ),
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
    "another series UID on every image": (of_each(lambda i, n: another_series(i, str(n))), NO_SERIES),
    "two frames of reference": (set_one(FrameOfReferenceUID="1.2.3"), "mixed_images"),
    "another matrix in one image": (of_one(lambda i: put(i, stored(i)[::2, ::2])), "mixed_images"),
    # The patient.
    "another patient in half of the images": (
        of_some(slice(39, None), lambda i, _: is_of(i, PatientID="OTHER", PatientName="Other^One")),
        NO_SERIES,
    ),
    "another patient in one image": (set_one(PatientID="OTHER"), NO_SERIES),
    "another patient's dose report": (
        lambda images: [*images, another_modality(images[0], PatientID="OTHER")],
        NO_SERIES,
    ),
    "one PatientID of two issuers": (
        of_each(lambda i, n: setattr(i, "IssuerOfPatientID", "A" if n % 2 else "B")),
        NO_SERIES,
    ),
    "no PatientID, another name in one image": (
        each(without("PatientID"), set_one(PatientName="Other^One")),
        NO_SERIES,
    ),
    "another name under the same PatientID": (set_one(PatientName="Other^One"), "patient"),
    "another birth date under the same PatientID": (set_one(PatientBirthDate="19700101"), "patient"),
    "another name in another series": (
        lambda images: [*images, another_modality(images[0], PatientName="PHANTOM 11")],
        REPORTED,
    ),
    "no PatientID in some images": (of_some(slice(0, 40), lambda i, _: is_of(i, PatientID="")), REPORTED),
    "the name in other case and padding": (set_one(PatientName="PHANTOM^11^^^ "), REPORTED),
    # Orientations that agree with each other.
    "left and right exchanged by the orientation": (
        set_all(ImageOrientationPatient=[-1, 0, 0, 0, 1, 0]),
        WARNED,
    ),
    "front and back exchanged by the orientation": (
        set_all(ImageOrientationPatient=[1, 0, 0, 0, -1, 0]),
        WARNED,
    ),
    "turned over by the orientation": (
        set_all(ImageOrientationPatient=[-1, 0, 0, 0, -1, 0]),
        WARNED,
    ),
    "head and feet exchanged by the positions": (
        of_each(
            lambda i, _: setattr(i, "ImagePositionPatient", [*i.ImagePositionPatient[:2], -i.ImagePositionPatient[2]])
        ),
        WARNED,
    ),
    # Positions.
    "a slice is missing": (lambda images: images[:40] + images[41:], "slice_gaps"),
    "a block is missing": (lambda images: images[:35] + images[45:], "slice_gaps"),
    "every second slice is missing": (lambda images: images[::2], "slice_spacing"),
    "a file cut off in its header": (Cut(16800), "slice_gaps"),
    "no position in one image": (of_one(lambda i: delattr(i, "ImagePositionPatient")), "headers"),
    "no positions": (without("ImagePositionPatient"), "headers"),
    "no orientations": (without("ImageOrientationPatient"), NO_SERIES),
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
        "slice_location",
    ),
    "positions half as far apart": (
        of_each(lambda i, _: i.ImagePositionPatient.__setitem__(2, i.ImagePositionPatient[2] / 2)),
        "slice_location",
    ),
    "images taken out and the others closed up": (closed_up, "slice_location"),
    "gantry tilt by the positions": (of_each(lambda i, n: move(i, y_mm=0.5 * n)), "gantry_tilt"),
    "gantry tilt by the orientation": (
        set_all(ImageOrientationPatient=[1, 0, 0, 0, 0.984808, -0.173648]),
        "gantry_tilt",
    ),
    "one image of another orientation": (set_one(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "orientation"),
    "orientations that are no unit vectors": (set_all(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), NO_SERIES),
    "sagittal by the orientation": (set_all(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), NO_SERIES),
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
    "PixelSpacing twice as large": (set_all(PixelSpacing=[8, 8]), "pixel_spacing"),
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
    "RescaleIntercept wrong in half of the images": (
        of_some(slice(None, 40), lambda i, _: setattr(i, "RescaleIntercept", -924)),
        "hu",
    ),
    "RescaleType of a map of iodine": (set_all(RescaleType="MGML"), NO_SERIES),
    "stored with an offset of 8192": (stored_with_offset(8192), REPORTED),
    # 24 HU too high: air of real series differs by more from one to the next, so nothing tells.
    "RescaleIntercept -1000 of values that have 1024": (set_all(RescaleIntercept=-1000), SILENTLY_WRONG),
    "signed, with padding of -2000": (signed(-2000), REPORTED),
    "signed, with padding of -2000 said to be 63536": (signed(-2000, -1024, b"\x30\xf8"), REPORTED),
    "signed, with padding of -3024": (signed(-3024), REPORTED),
    "signed, with RescaleIntercept -1000": (signed(-2000, -1000), REPORTED),
    "signed said to be unsigned": (each(signed(-2000), set_all(PixelRepresentation=0)), "lungs"),
    "unsigned said to be signed": (set_all(PixelRepresentation=1), REPORTED),
    "RescaleSlope -1": (set_all(RescaleSlope=-1), "lungs"),
    "HighBit 15 of 12 bits": (set_all(HighBit=15), REPORTED),
    "HighBit 15, as the bits are": (
        each(of_each(lambda i, _: put(i, stored(i) << 4)), set_all(HighBit=15)),
        "coverage",
    ),
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
    "said to be big endian": (mislabelled(ExplicitVRBigEndian), UNREADABLE),
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


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The phantom that is spoilt, and its images as files hold them."""

    phantom: Phantom
    encoded: tuple[bytes, ...]


def make_corpus() -> Corpus:
    phantom = make_phantom(11, (), spacing_mm=(4, 4, 4))
    encoded = []
    for index in range(phantom.volume.hu.shape[0]):
        image, stream = slice_dataset(phantom, index), BytesIO()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.save_as(stream, enforce_file_format=True)
        encoded.append(stream.getvalue())
    return Corpus(phantom=phantom, encoded=tuple(encoded))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`name` is one of the constants above or the check that refused; `said` is why, or what the report warns of."""

    name: str
    said: tuple[str, ...]


def outcome_of(name: str, corpus: Corpus, folder: Path) -> Outcome:
    """What becomes of one of CASES, whose files are written to `folder`."""
    images = [dcmread(BytesIO(content)) for content in corpus.encoded]
    images = CASES[name][0](images) or images
    studies, unreadable = read_studies(write(images, folder))
    if not studies:
        return Outcome(name=UNREADABLE, said=tuple({file.reason for file in unreadable}))
    (study,) = studies
    passed = first_series_through_the_gates(study, StageClock(lambda stage: None))
    if passed.selection.chosen is None:
        return Outcome(name=NO_SERIES, said=tuple({rejected.reason for rejected in passed.selection.rejected}))
    if passed.volume is None:
        rejects = [issue for issue in passed.quality if issue.verdict is Verdict.REJECT]
        return Outcome(name=rejects[0].check, said=tuple(issue.message for issue in rejects))
    warnings = [issue for issue in passed.quality if issue.verdict is Verdict.WARN]
    told = REPORTED
    if not _is_right(passed.volume, corpus.phantom.volume):
        told = WARNED if any(issue.check == "orientation" for issue in warnings) else SILENTLY_WRONG
    return Outcome(name=told, said=tuple(issue.message for issue in warnings))


def _is_right(volume: Volume, truth: Volume) -> bool:
    if volume.hu.shape != truth.hu.shape or not np.allclose(volume.geometry.affine, truth.geometry.affine, atol=0.01):
        return False
    # The first rows are padding in some cases.
    return not (volume.hu != truth.hu)[:, PADDED:].any()
