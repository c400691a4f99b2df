"""Reports of made-up studies, with CT headers made here, for the judges from outside."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_gateway.report.compose import compose_report
from dicom_gateway.report.content import Report, ReportedModel
from dicom_gateway.report.key_images import render_key_images
from dicom_gateway.report.outlines import Outlines, outlines_of
from dicom_gateway.report.source_headers import read_source_headers
from dicom_gateway.report.stored import StoredResult
from imaging.geometry import Geometry
from imaging.headers import Series, Slice
from imaging.quality import QualityIssue, Verdict
from imaging.render import Rgb
from imaging.selection import Rejection, Selection
from imaging.volume import Volume
from models.findings import (
    EvidenceGrade,
    Finding,
    FindingKind,
    Laterality,
    Measurement,
    Presence,
    Quantity,
    Region,
)

STUDY_UID, SERIES_UID, FRAME_UID = "1.2.3.4", "1.2.3.4.1", "1.2.3.4.9"
MODEL = ReportedModel(name="onescan-chest", version="0.1.0", sha256="ab" * 32)
SLICES = 30


def ct_dataset(index: int, **overrides: Any) -> Dataset:
    """A CT Image header of slice `index`; an override of None leaves the element out."""
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"{SERIES_UID}.{index + 1}",
        "StudyInstanceUID": STUDY_UID,
        "SeriesInstanceUID": SERIES_UID,
        "FrameOfReferenceUID": FRAME_UID,
        "PatientName": "Test^Patient",
        "PatientID": "P-1",
        "PatientBirthDate": "19600131",
        "PatientSex": "F",
        "PatientAge": "066Y",
        "StudyDate": "20260110",
        "StudyTime": "093005.250",
        "AccessionNumber": "A-77",
        "StudyID": "1",
        "ReferringPhysicianName": "",
        "StudyDescription": "CT chest",
        "Modality": "CT",
        "SeriesNumber": 3,
        "InstanceNumber": index + 1,
        "Rows": 96,
        "Columns": 96,
        "PixelSpacing": [4.0, 4.0],
        "SliceThickness": 10.0,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [-190.0, -190.0, -310.0 + 10 * index],
    }
    ds = Dataset()
    for keyword, value in (values | overrides).items():
        if value is not None:
            setattr(ds, keyword, value)
    return ds


def write_ct(folder: Path, count: int = SLICES, **overrides: Any) -> list[Path]:
    """`count` headers of one series as DICOM files without pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        ds = ct_dataset(index, **overrides)
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        paths.append(folder / f"{index:03}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def make_volume() -> Volume:
    """An elliptic body with two lungs; the right one (patient) is 60 HU denser, so that sides can be told apart."""
    z, y, x = np.mgrid[0:SLICES, 0:96, 0:96].astype(np.float64)
    hu = np.full(z.shape, -1000, dtype=np.int16)
    hu[((x - 47.5) / 42) ** 2 + ((y - 47.5) / 30) ** 2 < 1] = 40
    hu[((x - 26) / 14) ** 2 + ((y - 46) / 20) ** 2 < 1] = -800
    hu[((x - 69) / 14) ** 2 + ((y - 46) / 20) ** 2 < 1] = -860
    hu[((x - 47.5) / 6) ** 2 + ((y - 66) / 6) ** 2 < 1] = 300
    hu[10:13, 40:44, 66:70] = 30
    affine = np.array([[0, 0, 4.0, -190], [0, 4.0, 0, -190], [10.0, 0, 0, -310], [0, 0, 0, 1]])
    uids = tuple(f"{SERIES_UID}.{i + 1}" for i in range(SLICES))
    return Volume(hu, Geometry(affine, hu.shape, FRAME_UID), SERIES_UID, uids, (None,) * SLICES)


def region(box: tuple[slice, slice, slice], volume: Volume) -> Region:
    shape = tuple(s.stop - s.start for s in box)
    centre = volume.geometry.index_to_patient([(s.start + s.stop - 1) / 2 for s in box])
    return Region(
        centre_mm=tuple(map(float, centre)),  # type: ignore[arg-type]
        box=box,
        mask=np.ones(shape, dtype=np.bool_),
        key_slice=(box[0].start + box[0].stop) // 2,
    )


def finding(kind: FindingKind, presence: Presence, number: int = 0, **more: Any) -> Finding:
    values: dict[str, Any] = {
        "tracking_uid": f"1.2.3.5.{list(FindingKind).index(kind) + 1}.{number}",
        "evidence_grade": EvidenceGrade.C,
        "method": "multi-head network, then measured on the source voxels",
        "lesion": number or None,
    }
    return Finding(kind=kind, presence=presence, **(values | more))


def _m(quantity: Quantity, value: float, unit: Any, side: Laterality | None = None) -> Measurement:
    return Measurement(quantity=quantity, value=value, unit=unit, laterality=side)


NOT_YET = "the model does not answer this kind yet"


def full_findings(volume: Volume) -> list[Finding]:
    """All four answers, several lesions, sides, every unit, key images, numbers that need rounding."""
    kinds = FindingKind
    by_kind = {k: finding(k, Presence.NOT_ASSESSED, reason=NOT_YET, evidence_grade=None) for k in kinds}
    lungs = [
        _m(Quantity.LUNG_VOLUME, 2310.46, "ml", Laterality.LEFT),
        _m(Quantity.LUNG_VOLUME, 2651.12, "ml", Laterality.RIGHT),
        _m(Quantity.LOW_ATTENUATION_AREA_950, 12.3456, "%"),
        _m(Quantity.LOW_ATTENUATION_AREA_950, 9.04, "%", Laterality.LEFT),
        _m(Quantity.PERCENTILE_15_OF_ATTENUATION, -936.7, "[hnsf'U]"),
    ]
    sure = {"probability": 0.93719, "operating_point": 0.35}
    by_kind |= {
        kinds.PULMONARY_NODULE: finding(
            kinds.PULMONARY_NODULE,
            Presence.PRESENT,
            **sure,
            measurements=(_m(Quantity.LESION_COUNT, 1, "1"),),
        ),
        kinds.EMPHYSEMA: finding(
            kinds.EMPHYSEMA,
            Presence.PRESENT,
            evidence_grade=EvidenceGrade.B,
            laterality=Laterality.BILATERAL,
            reason="the left lung was not assessed (hardly aerated)",
            measurements=tuple(lungs),
            region=region((slice(4, 9), slice(30, 60), slice(14, 38)), volume),
        ),
        kinds.PLEURAL_EFFUSION: finding(
            kinds.PLEURAL_EFFUSION, Presence.PRESENT, probability=0.99, operating_point=0.5
        ),
        kinds.PERICARDIAL_EFFUSION: finding(
            kinds.PERICARDIAL_EFFUSION, Presence.PRESENT, measurements=(_m(Quantity.VOLUME, 120.4, "ml"),)
        ),
        kinds.HIATAL_HERNIA: finding(
            kinds.HIATAL_HERNIA, Presence.ABSENT, reason="the lowest slices lie above the diaphragm"
        ),
        kinds.CORONARY_ARTERY_CALCIFICATION: finding(
            kinds.CORONARY_ARTERY_CALCIFICATION,
            Presence.INDETERMINATE,
            probability=0.31,
            operating_point=0.35,
            reason="the score is near the operating point",
            measurements=(_m(Quantity.AGATSTON_SCORE, 3.4, "1"), _m(Quantity.VOLUME, 5.2, "mm3")),
        ),
        kinds.AORTIC_DILATATION: finding(
            kinds.AORTIC_DILATATION,
            Presence.ABSENT,
            evidence_grade=EvidenceGrade.A,
            site="ascending aorta",
            measurements=(
                _m(Quantity.MAXIMUM_DIAMETER, 34.449, "mm"),
                _m(Quantity.ASCENDING_AORTA_DIAMETER, 34.449, "mm"),
                _m(Quantity.AORTIC_ARCH_DIAMETER, 30.1, "mm"),
                _m(Quantity.DESCENDING_AORTA_DIAMETER, 25.7, "mm"),
            ),
        ),
        kinds.CARDIOMEGALY: finding(
            kinds.CARDIOMEGALY,
            Presence.ABSENT,
            measurements=(
                _m(Quantity.CARDIOTHORACIC_RATIO, 0.4567, "{ratio}"),
                _m(Quantity.HEART_WIDTH, 128.4, "mm"),
                _m(Quantity.THORAX_WIDTH, 281.2, "mm"),
            ),
        ),
        kinds.PULMONARY_ARTERY_ENLARGEMENT: finding(
            kinds.PULMONARY_ARTERY_ENLARGEMENT,
            Presence.ABSENT,
            measurements=(
                _m(Quantity.PULMONARY_TRUNK_DIAMETER, 24.4, "mm"),
                _m(Quantity.PULMONARY_TRUNK_TO_AORTA_RATIO, 0.708, "{ratio}"),
            ),
        ),
        kinds.ARTERIAL_WALL_CALCIFICATION: finding(
            kinds.ARTERIAL_WALL_CALCIFICATION,
            Presence.PRESENT,
            measurements=(_m(Quantity.CALCIUM_VOLUME, 76.3, "mm3"),),
        ),
        kinds.PNEUMOTHORAX: finding(kinds.PNEUMOTHORAX, Presence.ABSENT, probability=0.01, operating_point=0.5),
        kinds.LOW_BONE_DENSITY: finding(
            kinds.LOW_BONE_DENSITY,
            Presence.NOT_ASSESSED,
            evidence_grade=None,
            reason="contrast medium is present",
        ),
    }
    lesions = [
        finding(
            kinds.PULMONARY_NODULE,
            Presence.PRESENT,
            1,
            **sure,
            laterality=Laterality.LEFT,
            site="left upper lobe",
            measurements=(
                _m(Quantity.LONG_AXIS, 16.0499, "mm"),
                _m(Quantity.SHORT_AXIS, 11.95, "mm"),
                _m(Quantity.VOLUME, 1123.4, "mm3"),
                _m(Quantity.MEAN_ATTENUATION, 29.6, "[hnsf'U]"),
                _m(Quantity.STANDARD_DEVIATION_OF_ATTENUATION, 14.2, "[hnsf'U]"),
            ),
            region=region((slice(10, 13), slice(40, 44), slice(66, 70)), volume),
        ),
        finding(
            kinds.PULMONARY_NODULE,
            Presence.INDETERMINATE,
            2,
            probability=0.4,
            operating_point=0.35,
            laterality=Laterality.RIGHT,
            site="right lower lobe",
            measurements=(_m(Quantity.LONG_AXIS, 4.0, "mm"), _m(Quantity.SHORT_AXIS, 3.2, "mm")),
            region=region((slice(20, 22), slice(50, 52), slice(24, 26)), volume),
        ),
        finding(
            kinds.PLEURAL_EFFUSION,
            Presence.PRESENT,
            1,
            probability=0.99,
            operating_point=0.5,
            laterality=Laterality.RIGHT,
            measurements=(
                _m(Quantity.VOLUME, 7.26, "ml"),
                _m(Quantity.MAXIMUM_DEPTH, 8.0, "mm"),
                _m(Quantity.FRACTION_OF_LUNG, 0.27, "%"),
            ),
            region=region((slice(2, 6), slice(58, 66), slice(14, 36)), volume),
        ),
    ]
    return [*by_kind.values(), *lesions]


_REJECTED = (
    Rejection(
        series_instance_uid="1.2.3.4.2",
        series_number=1,
        modality="CT",
        series_description="Topogram",
        instance_count=1,
        reason="localizer (scout)",
    ),
    Rejection(
        series_instance_uid="1.2.3.4.3",
        series_number=None,
        modality="SR",
        series_description=None,
        instance_count=2,
        reason="modality SR is not CT",
    ),
)


def _selection(is_chosen: bool) -> Selection:
    series = Series(
        series_instance_uid=SERIES_UID,
        modality="CT",
        series_number=3,
        series_description="Thorax 1.0",
        body_part_examined="CHEST",
        protocol_name=None,
        convolution_kernel="Br40",
        contrast_bolus_agent=None,
        files=tuple(Path(f"{i}.dcm") for i in range(SLICES)),
        slices=(),
    )
    return Selection(chosen=series if is_chosen else None, alternatives=(), unsuitable=_REJECTED)


def compose(volume: Volume | None, findings: Sequence[Finding], **more: Any) -> Report:
    values: dict[str, Any] = {
        "study_instance_uid": STUDY_UID,
        "selection": _selection(is_chosen=volume is not None),
        "quality": (
            QualityIssue(check="slice_gaps", verdict=Verdict.PASS, message="no gaps", measured=10.0),
            QualityIssue(check="noise", verdict=Verdict.WARN, message="noise of 31 HU", measured=31.234, limit=25.0),
        ),
        "findings": findings,
        "volume": volume,
        "contrast": False if volume else None,
        "contrast_evidence": "aorta 41 HU" if volume else None,
        "model": MODEL,
        "revision": 1,
        "created": datetime(2026, 1, 10, 12, 30, 5, 123456, tzinfo=UTC),
        "software_version": "0.1.0",
        "unreadable_file_count": 1,
        "timings_s": {"read": 1.23456},
    }
    return compose_report(**(values | more))


def all_kinds_outlined(volume: Volume) -> list[Finding]:
    """Every kind present and outlined, every third with two lesions; some outlines overlap."""
    found = []
    for n, kind in enumerate(FindingKind):
        z, y, x = 1 + n, 20 + 2 * n, 60 - n
        first = region((slice(z, z + 4), slice(y, y + 9), slice(x, x + 12)), volume)
        second = region((slice(z + 2, z + 5), slice(y - 12, y - 3), slice(x + 14, x + 18)), volume)
        is_sided = kind in (FindingKind.PULMONARY_NODULE, FindingKind.PLEURAL_EFFUSION)
        side = Laterality.LEFT if is_sided else None
        found.append(finding(kind, Presence.PRESENT, region=first, laterality=side))
        if n % 3 == 0:
            lesions = enumerate((first, second), start=1)
            found += [finding(kind, Presence.PRESENT, i, region=r, laterality=side) for i, r in lesions]
    return found


def make_findings(scenario: str, volume: Volume) -> list[Finding]:
    if scenario == "all outlined":
        return all_kinds_outlined(volume)
    if scenario == "negative":
        return [finding(kind, Presence.ABSENT, probability=0.02, operating_point=0.5) for kind in FindingKind]
    return full_findings(volume)


SCENARIOS = ("findings", "negative", "refused")


@pytest.fixture(scope="session")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., StoredResult]:
    """make_case(scenario, **header overrides) -> StoredResult."""

    def make(scenario: str, count: int = SLICES, **overrides: Any) -> StoredResult:
        headers = read_source_headers(write_ct(tmp_path_factory.mktemp("ct"), count, **overrides))
        if scenario == "refused":
            return StoredResult(report=compose(None, (), quality=()), headers=headers)
        report, outlines, key_images = reported(scenario)
        if outlines.grid is not None:
            thickness = overrides.get("SliceThickness", 10.0) or None
            frame_uid = overrides.get("FrameOfReferenceUID", FRAME_UID)
            grid = replace(outlines.grid, slice_thickness_mm=thickness, frame_of_reference_uid=frame_uid)
            outlines = replace(outlines, grid=grid)
        return StoredResult(report=report, headers=headers, outlines=outlines, key_images=key_images)

    return make


def make_slices(volume: Volume) -> list[Slice]:
    """The headers that say where the slices of `volume` lie."""
    affine, (_, rows, columns) = volume.geometry.affine, volume.hu.shape
    spacing_mm = volume.geometry.spacing_mm
    return [
        Slice(
            path=Path(f"{index}.dcm"),
            sop_instance_uid=uid,
            sop_class_uid=CTImageStorage,
            frame_number=frame,
            instance_number=index + 1,
            image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
            acquisition_number=1,
            frame_of_reference_uid=volume.geometry.frame_of_reference_uid,
            image_position_patient=tuple(map(float, volume.geometry.index_to_patient((index, 0, 0)))),  # type: ignore[arg-type]
            image_orientation_patient=(*affine[:3, 2] / spacing_mm[2], *affine[:3, 1] / spacing_mm[1]),
            pixel_spacing_mm=spacing_mm[1:],
            rows=rows,
            columns=columns,
            slice_thickness_mm=spacing_mm[0],
            rescale_slope=1.0,
            rescale_intercept=0.0,
        )
        for index, (uid, frame) in enumerate(zip(volume.sop_instance_uids, volume.frame_numbers, strict=True))
    ]


@cache
def reported(scenario: str) -> tuple[Report, Outlines, dict[str, Rgb]]:
    volume = make_volume()
    findings = make_findings(scenario, volume)
    outlines = outlines_of(findings, make_slices(volume))
    return compose(volume, findings), outlines, render_key_images(findings, volume)


@pytest.fixture(scope="session", params=SCENARIOS)
def case(request: pytest.FixtureRequest, make_case: Callable[..., StoredResult]) -> StoredResult:
    return make_case(request.param)
