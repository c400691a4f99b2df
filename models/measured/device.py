"""Metal inside the body: what is brighter than any bone."""

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.morphology import bounds
from models.anatomy import Anatomy
from models.findings import Finding, FindingKind, Laterality, Measurement, Presence, Quantity, Region, few_of_many
from models.measure import region_of
from models.measured.answer import answer, not_assessed
from models.measured.outline import Box

Mask = npt.NDArray[np.bool_]

# Cortical bone and calcium stay below 2000 HU even in thin slices; metal mostly reaches the end of the scale.
METAL_HU = 2000
METAL_SHARP_KERNEL_HU = 2600
_SMALLEST_MM3 = 8.0
_JOINED_MM = 4.0
# Thin wires fade between slices, but stay brighter than nearly all bone.
_FADED_HU = 1200
# Electrodes and cables on the skin; what was implanted has skin and fat before it.
_SKIN_MM = 6.0
# A vein full of undiluted contrast is as large as a case, but longer.
_CASE_ML, _CASE_MM = 3.0, (18.0, 90.0)
_WIRE_MM, _WIRE_SLENDER = 25.0, 6.0
_MAXIMUM_LISTED = 10
_MAXIMUM_PIECES = 400
_PERHAPS_CONTRAST = "dense contrast in a vein can be as bright as metal"
_NO_PLASTIC = "only metal is recognised; tubes and grafts without metal are not"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Metal:
    region: Region
    mm3: float
    extent_mm: float
    shape: str


def medical_device(anatomy: Anatomy) -> tuple[Finding, ...]:
    """Metal in the body by its HU, each connected piece with a shape in words; what lies on the skin is left out.

    With contrast only a large piece, or one in the wall of the lower chest, is certain: undiluted contrast in the
    veins of the upper chest is as bright.
    """
    kind = FindingKind.MEDICAL_DEVICE
    pieces = _metal(anatomy)
    if pieces is None:
        return (not_assessed(anatomy, kind, "too much of the body is as bright as metal"),)
    parts = tuple(_piece(anatomy, piece, number) for number, piece in enumerate(pieces[:_MAXIMUM_LISTED], start=1))
    certain = any(part.presence is Presence.PRESENT for part in parts)
    presence = Presence.PRESENT if certain else Presence.INDETERMINATE if parts else Presence.ABSENT
    doubt = _PERHAPS_CONTRAST if presence is Presence.INDETERMINATE else None
    listed = few_of_many(len(parts), len(pieces))
    count = (Measurement(quantity=Quantity.LESION_COUNT, value=float(len(pieces)), unit="1"),) if pieces else ()
    study = answer(
        anatomy,
        kind,
        presence,
        method=f"pieces above {_threshold(anatomy)} HU inside the body",
        reason="; ".join(filter(None, (doubt, listed, _NO_PLASTIC))),
        site=parts[0].site if len(parts) == 1 else None,
        measurements=count,
        region=parts[0].region if parts else None,
    )
    return (study, *parts)


def _threshold(anatomy: Anatomy) -> int:
    return METAL_SHARP_KERNEL_HU if anatomy.sharp_kernel else METAL_HU


def _metal(anatomy: Anatomy) -> list[_Metal] | None:
    """Pieces of metal in the body, largest first; None where there are too many to be metal."""
    geometry = anatomy.volume.geometry
    threshold = _threshold(anatomy)
    bright = np.zeros(anatomy.volume.hu.shape, np.bool_)
    for z, plane in enumerate(anatomy.volume.hu):
        if plane.max() > threshold:
            bright[z] = (plane > threshold) & anatomy.lungs.body[z]
    box = bounds(bright)
    if box is None:
        return []
    # Parts of one device that artefacts and thick slices tear apart are counted as one.
    reach = [max(1, round(_JOINED_MM / 2 / mm)) for mm in geometry.spacing_mm]
    near = ndimage.maximum_filter(bright[box], [2 * n + 1 for n in reach])
    near |= anatomy.volume.hu[box] > _FADED_HU
    labels, count = cc3d.connected_components(near, connectivity=26, return_N=True)
    if count > _MAXIMUM_PIECES:
        return None
    labels *= bright[box]
    pieces = []
    for label, part in enumerate(ndimage.find_objects(labels), start=1):
        if part is None:
            continue
        mask = labels[part] == label
        mm3 = float(mask.sum()) * geometry.voxel_volume_mm3
        where: Box = tuple(slice(a.start + b.start, a.stop + b.start) for a, b in zip(part, box, strict=True))  # type: ignore[assignment]
        if mm3 >= _SMALLEST_MM3 and not _is_on_the_skin(anatomy, mask, where):
            pieces.append(_described(mask, where, mm3, anatomy))
    return sorted(pieces, key=lambda piece: -piece.mm3)


def _is_on_the_skin(anatomy: Anatomy, mask: Mask, box: Box) -> bool:
    """Whether no part of it, in the slice with most of it, lies deeper than skin."""
    key = int(np.argmax(mask.sum(axis=(1, 2))))
    spacing = anatomy.volume.geometry.spacing_mm[1:]
    margin = [round(2 * _SKIN_MM / mm) for mm in spacing]
    rows, columns = (slice(max(0, b.start - m), b.stop + m) for b, m in zip(box[1:], margin, strict=True))
    body = anatomy.lungs.body[box[0].start + key, rows, columns]
    depth = ndimage.distance_transform_edt(body, sampling=spacing) if not body.all() else np.full(body.shape, np.inf)
    inside = np.zeros_like(body)
    top, left = box[1].start - rows.start, box[2].start - columns.start
    inside[top : top + mask.shape[1], left : left + mask.shape[2]] = mask[key]
    return float(depth[inside].max()) < _SKIN_MM


def _described(mask: Mask, box: Box, mm3: float, anatomy: Anatomy) -> _Metal:
    geometry = anatomy.volume.geometry
    extent_mm = _greatest_extent_mm(mask, geometry.spacing_mm)
    # The diameter of a rod of this volume and length: a bent wire is longer than it reaches, so this is no less.
    thickness_mm = 2 * float(np.sqrt(mm3 / extent_mm / np.pi))
    if mm3 >= 1000 * _CASE_ML and _CASE_MM[0] <= extent_mm <= _CASE_MM[1]:
        shape = "case"
    elif extent_mm >= _WIRE_MM and thickness_mm < _WIRE_SLENDER:
        shape = "wire"
    else:
        shape = "metal"
    return _Metal(region=region_of(mask, box, geometry), mm3=mm3, extent_mm=extent_mm, shape=shape)


def _greatest_extent_mm(mask: Mask, spacing_mm: Sequence[float]) -> float:
    """Distance of the two parallel planes that are farthest apart and touch the voxels, to about 0.5 %."""
    ends = np.zeros_like(mask)
    # Nothing that lies between others of its row can be an end.
    ends[..., 1:] |= mask[..., 1:] & ~mask[..., :-1]
    ends[..., :-1] |= mask[..., :-1] & ~mask[..., 1:]
    ends[..., 0] |= mask[..., 0]
    ends[..., -1] |= mask[..., -1]
    along = (np.argwhere(ends) * np.array(spacing_mm)) @ _DIRECTIONS.T
    return float(np.ptp(along, axis=0).max() + min(spacing_mm))


def _half_sphere(count: int) -> npt.NDArray[np.float64]:
    """(count, 3) unit vectors, evenly spread by the golden angle."""
    height = (np.arange(count) + 0.5) / count
    angle = np.arange(count) * np.pi * (3 - np.sqrt(5))
    across = np.sqrt(1 - height**2)
    return np.stack([height, across * np.cos(angle), across * np.sin(angle)], axis=1)


_DIRECTIONS = _half_sphere(300)


def _piece(anatomy: Anatomy, piece: _Metal, number: int) -> Finding:
    kind = FindingKind.MEDICAL_DEVICE
    side, place, height = _place(anatomy, piece)
    beyond_veins = height < 0.5 and place in ("chest wall", "sternum", "ribs", "spine")
    certain = anatomy.blood_pool.contrast is False or piece.shape == "case" or beyond_veins
    words = {
        "case": "large piece of metal, as of a pacemaker or implant",
        "wire": "slender metal, as of a wire, lead or row of clips",
        "metal": "piece of metal",
    }
    return answer(
        anatomy,
        kind,
        Presence.PRESENT if certain else Presence.INDETERMINATE,
        method="connected piece brighter than bone",
        reason=None if certain else _PERHAPS_CONTRAST,
        site=f"{place}: {words[piece.shape]}",
        laterality=side,
        lesion=number,
        measurements=(
            Measurement(quantity=Quantity.MAXIMUM_DIAMETER, value=piece.extent_mm, unit="mm"),
            Measurement(quantity=Quantity.VOLUME, value=piece.mm3, unit="mm3"),
        ),
        region=piece.region,
    )


_PLACES = (
    (("vertebrae",), "spine"),
    (("sternum",), "sternum"),
    (("ribs",), "ribs"),
    (("heart", "aorta", "pulmonary_trunk", "oesophagus", "airways"), "mediastinum"),
    (("lung_left", "lung_right"), "lung"),
    (("liver", "spleen"), "upper abdomen"),
)


def _place(anatomy: Anatomy, piece: _Metal) -> tuple[Laterality | None, str, float]:
    """Side, neighbourhood by the outlines within 10 mm of a point of the piece, and height from bases (0) to apices."""
    grid = anatomy.grid.geometry
    centre = np.rint(grid.patient_to_index(piece.region.centre_mm)).astype(int)
    reach = round(10 / grid.spacing_mm[0])
    around = tuple(slice(max(0, int(c) - reach), max(0, int(c) + reach + 1)) for c in centre)
    names = np.bincount(anatomy.labels[around].ravel(), minlength=len(anatomy.names))
    found = [(sum(int(names[anatomy.names.index(n)]) for n in group), place) for group, place in _PLACES]
    most, place = max(found)
    lungs = anatomy.mask("lung_left", "lung_right")
    across, up = np.flatnonzero(lungs.any(axis=(0, 1))), np.flatnonzero(lungs.any(axis=(1, 2)))
    if not len(up):
        return None, "body", 0.5
    off_mm = (centre[2] - (across[0] + across[-1]) / 2) * grid.spacing_mm[2]
    side = None if abs(off_mm) < 15 else Laterality.LEFT if off_mm > 0 else Laterality.RIGHT
    height = float(centre[0] - up[0]) / max(1, int(up[-1] - up[0]))
    if most <= 0.03 * (2 * reach + 1) ** 3:
        place = "chest wall" if height > 0 else "abdomen"
    return side, place, height
