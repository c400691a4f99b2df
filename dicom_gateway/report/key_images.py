"""Which findings get a key image, under which name, and how it is shown."""

from collections.abc import Mapping, Sequence

import numpy as np

from dicom_gateway.report.headline import URGENCY
from imaging.lungs import Mask
from imaging.render import (
    BONE_WINDOW,
    LUNG_WINDOW,
    MEDIASTINUM_WINDOW,
    Colour,
    Crop,
    Outline,
    Rgb,
    Window,
    render_slice,
)
from imaging.volume import Volume
from models.findings import Finding, FindingKind, Presence, Region

MAXIMUM_KEY_IMAGES = 8

_LUNG_KINDS = frozenset(
    {
        FindingKind.PULMONARY_NODULE,
        FindingKind.EMPHYSEMA,
        FindingKind.CONSOLIDATION,
        FindingKind.GROUND_GLASS_OPACITY,
        FindingKind.PNEUMOTHORAX,
        FindingKind.ATELECTASIS,
        FindingKind.INTERSTITIAL_ABNORMALITY,
        FindingKind.BRONCHIECTASIS,
    }
)
_BONE_KINDS = frozenset(
    {
        FindingKind.VERTEBRAL_COMPRESSION_FRACTURE,
        FindingKind.LOW_BONE_DENSITY,
        FindingKind.RIB_FRACTURE,
        FindingKind.MEDICAL_DEVICE,
    }
)
_COLOURS: Mapping[Presence, Colour] = {
    Presence.PRESENT: (255, 150, 50),
    Presence.INDETERMINATE: (250, 220, 90),
}
_SMALL_MM = 40.0
_CROPPED_FIELD_MM = 120.0


def key_image_names(findings: Sequence[Finding]) -> dict[str, str]:
    """Tracking UID -> file name "key_<n>.png" of the findings that get a key image, at most MAXIMUM_KEY_IMAGES.

    Only what is present or indeterminate and has a region. Each kind, the most urgent first, has its turn
    before any has a second one; the answer about the study has no image where a lesion of the kind has one.
    """
    shown = [f for f in findings if f.region is not None and f.presence in _COLOURS]
    with_lesions = {f.kind for f in shown if f.lesion is not None}
    by_kind: dict[FindingKind, list[Finding]] = {kind: [] for kind in sorted(FindingKind, key=URGENCY.__getitem__)}
    for finding in sorted(shown, key=lambda f: f.lesion or 0):
        if finding.lesion is not None or finding.kind not in with_lesions:
            by_kind[finding.kind].append(finding)
    longest = max(map(len, by_kind.values()))
    turns = [queue[turn] for turn in range(longest) for queue in by_kind.values() if turn < len(queue)]
    chosen = turns[:MAXIMUM_KEY_IMAGES]
    return {finding.tracking_uid: f"key_{n}.png" for n, finding in enumerate(chosen, start=1)}


def render_key_images(findings: Sequence[Finding], volume: Volume) -> dict[str, Rgb]:
    """File name (as in `ReportedFinding.key_image`) -> (rows, columns, 3) uint8 picture of the key slice."""
    names = key_image_names(findings)
    return {
        names[finding.tracking_uid]: _key_image(finding, finding.region, volume)
        for finding in findings
        if finding.region is not None and finding.tracking_uid in names
    }


def window_for(kind: FindingKind) -> Window:
    """The window in which a radiologist looks for this kind."""
    if kind in _LUNG_KINDS:
        return LUNG_WINDOW
    return BONE_WINDOW if kind in _BONE_KINDS else MEDIASTINUM_WINDOW


def _key_image(finding: Finding, region: Region, volume: Volume) -> Rgb:
    outline = Outline(_slice_mask(region, volume), _COLOURS[finding.presence])
    return render_slice(volume, region.key_slice, window_for(finding.kind), [outline], _crop(region, volume))


def _slice_mask(region: Region, volume: Volume) -> Mask:
    """The region's mask on the whole key slice, (rows, columns)."""
    slices, rows, columns = region.box
    mask = np.zeros(volume.hu.shape[1:], dtype=np.bool_)
    mask[rows, columns] = region.mask[region.key_slice - (slices.start or 0)]
    return mask


def _crop(region: Region, volume: Volume) -> Crop | None:
    """A small lesion is shown enlarged, with enough around it to tell where it is; anything else whole."""
    _, row_mm, column_mm = volume.geometry.spacing_mm
    centre, size_mm = [], []
    for span, mm, length in zip(region.box[1:], (row_mm, column_mm), volume.hu.shape[1:], strict=True):
        start, stop, _ = span.indices(length)
        centre.append((start + stop) / 2)
        size_mm.append((stop - start) * mm)
    if max(size_mm) > _SMALL_MM:
        return None
    half_rows, half_columns = _CROPPED_FIELD_MM / 2 / row_mm, _CROPPED_FIELD_MM / 2 / column_mm
    return Crop(
        (round(centre[0] - half_rows), round(centre[0] + half_rows)),
        (round(centre[1] - half_columns), round(centre[1] + half_columns)),
    )
