"""What training images are made from: real CT volumes labelled by thresholds, and organ label maps.

Everything is brought to the network's grid: `SPACING_MM` isotropic, (z superior, y posterior, x left), which is the
array SimpleITK gives for an image of identity direction in LPS.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage as ndi

from imaging.errors import ImagingError
from imaging.files import find_files
from imaging.headers import Series, read_studies
from imaging.quality import Verdict, check_headers
from imaging.volume import Volume, load_volume
from models.evaluation.images import open_image
from models.training.labels import LABEL
from models.training.network import LESIONS, SPACING_MM

MARGIN_MM = 40.0
_ORGAN_MARGIN_MM = 5.0
_HEART_OPEN_MM = 20.0
_NO_LUNGS = "no lungs are found; are these HU, and is it a chest?"

_LUNG_BITS = sum(
    1 << index
    for index, kind in enumerate(LESIONS)
    if kind in {"pulmonary_nodule", "consolidation", "ground_glass_opacity", "atelectasis", "interstitial_abnormality"}
)
_CONSOLIDATION_BIT = 1 << LESIONS.index("consolidation")
_GROUND_GLASS_BIT = 1 << LESIONS.index("ground_glass_opacity")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One labelled grid (D, H, W).

    `hu` float32; `anatomy` uint8 values of `labels.LABEL`; `lesions` uint8, bit k set where `LESIONS[k]` is;
    `unknown` uint8, bit k set where it is not known whether `LESIONS[k]` is there.
    """

    hu: npt.NDArray[np.float32]
    anatomy: npt.NDArray[np.uint8]
    lesions: npt.NDArray[np.uint8]
    unknown: npt.NDArray[np.uint8]


def read_ct(path: Path) -> sitk.Image:
    """A CT as an image in HU: a folder with one DICOM series, or a file SimpleITK reads.

    Raises OSError where it cannot be read, ValueError where the folder has no series or several (masks belong to one
    of them, and which is not said), or one that `onescan analyze` refuses by its headers: images that are missing.
    """
    if not path.is_dir():
        return open_image(path, sitk.sitkFloat32)
    with tempfile.TemporaryDirectory(prefix="onescan-") as unpacked:
        studies, _ = read_studies(find_files([path], Path(unpacked)).files)
        found = [series for study in studies for series in study.series]
        if len(found) != 1:
            raise ValueError(f"{path}: {len(found)} DICOM series instead of one")
        try:
            return _image(gated_volume(found[0]))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        except ImagingError as error:
            raise OSError(f"{path} cannot be read as one volume: {error}") from error


def gated_volume(series: Series) -> Volume:
    """A series that passes the product's gate on headers. Raises ValueError where it does not, or ImagingError."""
    issues = [issue.message for issue in check_headers(series) if issue.verdict is Verdict.REJECT]
    if issues:
        raise ValueError("; ".join(issues))
    return load_volume(series)


def _image(volume: Volume) -> sitk.Image:
    affine = volume.geometry.affine
    image = sitk.GetImageFromArray(volume.hu.astype(np.float32))
    image.SetOrigin([float(v) for v in affine[:3, 3]])
    image.SetSpacing(volume.geometry.spacing_mm[::-1])
    direction = (affine[:3, :3] / volume.geometry.spacing_mm)[:, ::-1]
    image.SetDirection([float(v) for v in direction.ravel()])
    return image


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Values on the network's spacing; `origin_mm` is (x, y, z) of the first voxel."""

    values: npt.NDArray[np.float32]
    origin_mm: tuple[float, float, float]

    def indices(self, point_mm: Sequence[float]) -> tuple[float, float, float]:
        """(z, y, x) indices, with fractions, of a point (x, y, z)."""
        x, y, z = ((p - o) / SPACING_MM for p, o in zip(point_mm, self.origin_mm, strict=True))
        return z, y, x

    def image(self) -> sitk.Image:
        """An empty image with the voxels of this grid, to place others on."""
        z, y, x = self.values.shape
        image = sitk.Image(x, y, z, sitk.sitkUInt8)
        image.SetOrigin(self.origin_mm)
        image.SetSpacing([SPACING_MM] * 3)
        return image


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlined:
    """What a reader outlined on a grid, values as in `Sample`; anatomy is `OPEN` where nothing was said."""

    OPEN: ClassVar[int] = 255

    anatomy: npt.NDArray[np.uint8]
    lesions: npt.NDArray[np.uint8]
    unknown: npt.NDArray[np.uint8]


def to_grid(image: sitk.Image, outside: float, *, labels: bool = False) -> Grid:
    """The image on the network's spacing, axis-aligned LPS, covering its whole extent."""
    corners = np.array(
        [
            image.TransformIndexToPhysicalPoint((x, y, z))
            for x in (0, image.GetWidth() - 1)
            for y in (0, image.GetHeight() - 1)
            for z in (0, image.GetDepth() - 1)
        ]
    )
    origin = corners.min(axis=0)
    size = np.ceil((corners.max(axis=0) - origin) / SPACING_MM).astype(int) + 1
    if not labels:
        # half the target spacing as full width at half maximum: less aliasing, noise as a thick slice has it
        for axis, spacing in enumerate(image.GetSpacing()):
            if spacing < SPACING_MM:
                image = sitk.RecursiveGaussian(image, sigma=0.35 * SPACING_MM, direction=axis)
    resampled = sitk.Resample(
        image,
        [int(n) for n in size],
        sitk.Transform(),
        sitk.sitkNearestNeighbor if labels else sitk.sitkLinear,
        [float(v) for v in origin],
        [SPACING_MM] * 3,
        np.eye(3).ravel().tolist(),
        outside,
    )
    x, y, z = (float(v) for v in origin)
    return Grid(sitk.GetArrayFromImage(resampled).astype(np.float32), (x, y, z))


def largest(mask: npt.NDArray[np.bool_], count: int = 1) -> npt.NDArray[np.bool_]:
    """The `count` largest connected components of a mask."""
    components, found = ndi.label(mask)
    if found <= count:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    keep: npt.NDArray[np.bool_] = np.isin(components, np.argsort(sizes)[::-1][:count])
    return keep


def body_mask(hu: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Body without table: opened tissue, largest component, holes filled slice by slice."""
    tissue = largest(ndi.binary_opening(hu > -300, iterations=1))
    tissue = ndi.binary_dilation(tissue, iterations=1) & (hu > -400)
    padded = np.pad(tissue, ((0, 0), (4, 4), (4, 4)))
    disk = ndi.iterate_structure(ndi.generate_binary_structure(2, 1), 3)
    planes = [ndi.binary_fill_holes(ndi.binary_closing(plane, disk)) for plane in padded]
    body = np.stack(planes)[:, 4:-4, 4:-4]
    # a plane whose thin wall let the fill leak out is closed by its neighbours
    return body | ndi.binary_closing(np.pad(body, ((10, 10), (0, 0), (0, 0)), mode="edge"), np.ones((15, 1, 1)))[10:-10]


def lung_labels(
    hu: npt.NDArray[np.float32], body: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(aerated left lung, aerated right lung, airways) by thresholds; x grows to the patient's left.

    Raises ValueError where there are no lungs.
    """
    air = (hu < -450) & body
    if not air.any():
        raise ValueError(_NO_LUNGS)
    airways = _airways(hu, body)
    lungs = ndi.binary_opening(air & ~ndi.binary_dilation(airways, iterations=1))
    lungs = largest(lungs, 2) & air
    if not lungs.any():
        raise ValueError(_NO_LUNGS)
    components, found = ndi.label(ndi.binary_erosion(lungs, iterations=2))
    sizes = np.bincount(components.ravel(), minlength=3)
    sizes[0] = 0
    order = np.argsort(sizes)[::-1][:2]
    if found >= 2 and sizes[order[1]] > 0.15 * sizes[order[0]]:
        seeds = [components == label for label in order]
    else:  # joined at the front: cut at the middle of the pair
        middle = np.average(np.arange(hu.shape[2]), weights=lungs.sum(axis=(0, 1)) + 1e-6)
        right_of = np.arange(hu.shape[2])[None, None, :] < middle
        seeds = [lungs & right_of, lungs & ~right_of]
    seeds.sort(key=lambda seed: float(np.nonzero(seed)[2].mean()))
    nearest = ndi.distance_transform_edt(~seeds[1]) < ndi.distance_transform_edt(~seeds[0])
    return lungs & nearest, lungs & ~nearest, airways


def _airways(hu: npt.NDArray[np.float32], body: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Trachea and main bronchi: dark air grown downwards from the topmost closed lumen, stopped before it leaks."""
    dark = (hu < -880) & body
    centre = np.array(ndi.center_of_mass(body))[2]
    seeds = np.zeros_like(dark)
    for z in range(hu.shape[0] - 1, hu.shape[0] // 2, -1):
        planes, count = ndi.label(dark[z])
        for label in range(1, count + 1):
            ys, xs = np.nonzero(planes == label)
            if 8 <= ys.size <= 120 and abs(xs.mean() - centre) < 14 and np.ptp(ys) < 14 and np.ptp(xs) < 14:
                seeds[z][planes == label] = True
    trachea = largest(seeds)
    grown = trachea
    for _ in range(14):
        larger = ndi.binary_dilation(grown) & dark
        if larger.sum() > max(4500, 1.6 * grown.sum()):
            break
        grown = larger
    return grown


def real_sample(
    grid: Grid,
    *,
    unlabelled_pneumonia: bool,
    nodules: Sequence[Sequence[float]] = (),
    structures: Mapping[str, npt.NDArray[np.bool_]] | None = None,
    outlined: Outlined | None = None,
) -> Sample:
    """A real volume: anatomy by thresholds, partial where thresholds cannot tell, and what was outlined by hand.

    `structures` are masks on the grid as `annotations.rasterise` gives them; heart, aorta and pulmonary trunk are then
    taken for outlined completely, save where `open` is. With `unlabelled_pneumonia` what is dense in the lungs becomes
    clear ground glass or consolidation where its HU leave no doubt, and unknown elsewhere. `nodules` are
    (x, y, z, diameter) in mm of real ones, left out of the loss. `outlined` stands above all that thresholds say.
    Raises ValueError where thresholds find no lungs.
    """
    hu = grid.values
    nodule = np.zeros(hu.shape, np.bool_)
    for *centre, diameter_mm in nodules:
        nodule |= _ball(hu.shape, grid.indices(centre), 0.75 * diameter_mm / SPACING_MM)
    body = body_mask(hu)
    left, right, airways = lung_labels(hu, body)
    keep = _thorax_box(body, left | right)
    hu = hu[keep]
    body, left, right, airways, nodule = (mask[keep] for mask in (body, left, right, airways, nodule))
    anatomy = np.full(hu.shape, LABEL["background"], np.uint8)
    anatomy[body] = LABEL["soft_tissue"]
    anatomy[body & (hu > -140) & (hu < -60)] = LABEL["body"]
    anatomy[body & (ndi.gaussian_filter(hu, 0.6) > 330)] = LABEL["bone"]
    _hint_organs(anatomy, hu, left, right)
    for lung, name in ((left, "left"), (right, "right")):
        closed = ndi.binary_closing(np.pad(lung, 6), iterations=5)[6:-6, 6:-6, 6:-6] & body
        anatomy[closed & (hu < 330)] = LABEL[f"{name}_or_soft"]
        small = ndi.binary_fill_holes(ndi.binary_closing(lung, iterations=1))
        anatomy[small & body] = LABEL[f"lung_{name}"]
    anatomy[ndi.binary_dilation(airways, iterations=2) & body] = LABEL["inside"]
    anatomy[airways] = LABEL["airways"]
    if structures is not None:
        _outlined_organs(anatomy, hu, {name: mask[keep] for name, mask in structures.items()})
    edge = body ^ ndi.binary_erosion(body, iterations=1)
    anatomy[edge] = LABEL["anything"]
    lesions = np.zeros(hu.shape, np.uint8)
    unknown = np.zeros(hu.shape, np.uint8)
    if unlabelled_pneumonia:
        lesions, unknown = _pneumonia(hu, anatomy)
    unknown[nodule] |= np.uint8(_LUNG_BITS)
    if outlined is not None:
        anatomy = np.where(outlined.anatomy[keep] == Outlined.OPEN, anatomy, outlined.anatomy[keep])
        lesions, unknown = outlined.lesions[keep].copy(), outlined.unknown[keep].copy()
    return Sample(hu=hu, anatomy=anatomy, lesions=lesions, unknown=unknown)


def _hint_organs(
    anatomy: npt.NDArray[np.uint8],
    hu: npt.NDArray[np.float32],
    left: npt.NDArray[np.bool_],
    right: npt.NDArray[np.bool_],
) -> None:
    """Narrow the partial labels where the place leaves little doubt: between the lungs and below the right one.

    Without this the network may call every organ of a real volume "body" and still be right.
    """
    beside = np.maximum.accumulate(right, axis=2) & np.maximum.accumulate(left[:, :, ::-1], axis=2)[:, :, ::-1]
    bone = anatomy == LABEL["bone"]
    middle = int(np.average(np.arange(hu.shape[2]), weights=(left | right).sum(axis=(0, 1))))
    spine = np.zeros_like(bone)
    spine[:, :, middle - 14 : middle + 14] = (ndi.gaussian_filter(hu, 1.0) > 150)[:, :, middle - 14 : middle + 14]
    spine[:, : hu.shape[1] // 2] = False
    anatomy[spine & beside & bone] = LABEL["spine"]
    front = np.where(spine.any(axis=1), spine.argmax(axis=1), hu.shape[1])[:, middle - 6 : middle + 6].min(axis=1)
    front = ndi.median_filter(np.where(front < hu.shape[1], front, int(np.median(front))), 9) - 2
    ahead = np.arange(hu.shape[1])[None, :, None] < front[:, None, None]
    soft = ndi.gaussian_filter(hu, 1.0) > 0
    ball = ndi.iterate_structure(ndi.generate_binary_structure(3, 2), 4)
    core = ndi.binary_opening(soft & ~bone & beside & ahead, ball)
    anatomy[core] = LABEL["heart_or_great_vessel"]
    above = np.zeros_like(right)
    for step in range(3, 15):  # lung within 35 mm above, with a margin for the diaphragm
        above[:-step] |= right[step:]
    below_none = ~np.maximum.accumulate(right, axis=0)
    liver = ndi.binary_opening(above & below_none & soft & ~bone & ~beside, ball)
    anatomy[liver] = LABEL["liver"]


def _outlined_organs(
    anatomy: npt.NDArray[np.uint8], hu: npt.NDArray[np.float32], structures: Mapping[str, npt.NDArray[np.bool_]]
) -> None:
    """Full labels inside what is outlined, an open border of one voxel, and no heart or great vessel far from it."""
    nowhere = np.zeros(hu.shape, np.bool_)
    doubtful = structures.get("open", nowhere)
    smooth = ndi.gaussian_filter(hu, 0.6)
    aerated = np.isin(anatomy, [LABEL[name] for name in ("background", "lung_left", "lung_right", "airways")])
    solid = (smooth > -20) & ~aerated
    organs = {name: structures.get(name, nowhere) for name in ("aorta", "pulmonary_trunk", "heart")}
    drawn = np.logical_or.reduce(list(organs.values()))
    # the atria and outflow tracts above the first heart outline and the apex below the last one are not drawn
    reach = round(_HEART_OPEN_MM / SPACING_MM)
    heart = ndi.binary_dilation(organs["heart"], np.ones((2 * reach + 1, 1, 1)))
    near = ndi.distance_transform_edt(~(drawn | heart | doubtful)) * SPACING_MM <= _ORGAN_MARGIN_MM
    planes = np.nonzero(drawn.any(axis=(1, 2)))[0]
    known = np.zeros_like(drawn)
    known[planes[0] : planes[-1] + 1] = True
    soft = np.isin(anatomy, [LABEL["soft_tissue"], LABEL["heart_or_great_vessel"]])
    anatomy[soft] = LABEL["soft_tissue"]
    anatomy[soft & known & ~near] = LABEL["elsewhere"]
    spine = structures.get("vertebrae", nowhere) & (ndi.gaussian_filter(hu, 1.0) > 150) & ~aerated
    anatomy[spine & ~drawn] = LABEL["vertebrae"]
    taken = doubtful.copy()
    anatomy[doubtful & drawn & solid] = LABEL["soft_tissue"]
    for name, mask in organs.items():
        own = mask & ~taken & solid
        taken |= mask
        anatomy[own] = LABEL["soft_tissue"]
        anatomy[own & ndi.binary_erosion(own | ~solid)] = LABEL[name]


def _ball(shape: tuple[int, ...], centre: Sequence[float], radius: float) -> npt.NDArray[np.bool_]:
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    z, y, x = ((a - c) ** 2 for a, c in zip(axes, centre, strict=True))
    inside: npt.NDArray[np.bool_] = z + y + x <= radius**2
    return inside


def _thorax_box(body: npt.NDArray[np.bool_], lungs: npt.NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    margin = round(MARGIN_MM / SPACING_MM)
    z = np.nonzero(lungs.any(axis=(1, 2)))[0]
    y = np.nonzero(body.any(axis=(0, 2)))[0]
    x = np.nonzero(body.any(axis=(0, 1)))[0]
    return (
        slice(max(0, int(z[0]) - margin), int(z[-1]) + margin + 1),
        slice(max(0, int(y[0]) - 4), int(y[-1]) + 5),
        slice(max(0, int(x[0]) - 4), int(x[-1]) + 5),
    )


def _pneumonia(
    hu: npt.NDArray[np.float32], anatomy: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    left, right = LABEL["lung_left"], LABEL["lung_right"]
    space = np.isin(anatomy, (left, right, LABEL["left_or_soft"], LABEL["right_or_soft"]))
    inner = ndi.binary_erosion(np.isin(anatomy, (left, right)), iterations=2)
    smooth = ndi.gaussian_filter(hu, 1.5)
    # wider than a vessel with its partial volume
    glass = ndi.binary_opening(inner & (smooth > -680) & (smooth < -300), iterations=2)
    solid = ndi.binary_opening(inner & (smooth > -150), iterations=2)
    lesions = np.zeros(hu.shape, np.uint8)
    lesions[glass] |= _GROUND_GLASS_BIT
    lesions[solid] |= _CONSOLIDATION_BIT
    unknown = np.where(space & (smooth > -790) & (lesions == 0), np.uint8(_LUNG_BITS), np.uint8(0))
    return lesions, unknown.astype(np.uint8)


_ORGAN_PREFIXES = {
    "lung_": None,
    "trachea": "airways",
    "heart": "heart",
    "atrial_appendage": "heart",
    "aorta": "aorta",
    "esophagus": "oesophagus",
    "vertebrae_": "vertebrae",
    "rib_": "ribs",
    "sternum": "sternum",
    "liver": "liver",
    "spleen": "spleen",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OrganMap:
    """Organs of one trunk without its CT: `anatomy` as in `Sample`, `organ` uint8 of its own numbering (0 = none).

    `names[i]` is the name of organ i; the synthesis draws one HU per organ.
    """

    anatomy: npt.NDArray[np.uint8]
    organ: npt.NDArray[np.uint8]
    names: dict[int, str]


def read_organ_map(path: Path) -> OrganMap:
    """A TotalSegmentator label map with its names in a JSON file of the same stem; body outline is added."""
    names = {int(k): v for k, v in json.loads(path.with_name(path.name.split(".")[0] + ".json").read_text()).items()}
    organ = to_grid(open_image(path), 0, labels=True).values.astype(np.uint8)
    lungs = np.isin(organ, [label for label, name in names.items() if name.startswith("lung_")])
    margin = round(MARGIN_MM / SPACING_MM)
    z = np.nonzero(lungs.any(axis=(1, 2)))[0]
    organ = np.pad(organ[max(0, z[0] - margin) : z[-1] + margin + 1], ((0, 0), (14, 14), (14, 14)))
    wall = ndi.binary_closing(np.pad(organ > 0, ((20, 20), (20, 20), (20, 20)), mode="edge"), iterations=14)
    body = ndi.gaussian_filter(ndi.binary_dilation(wall, iterations=6).astype(np.float32), 4) > 0.5
    body = body[20:-20, 20:-20, 20:-20]
    body = np.stack([ndi.binary_fill_holes(plane) for plane in body])
    anatomy = np.where(body, LABEL["body"], LABEL["background"]).astype(np.uint8)
    for label, name in names.items():
        anatomy[organ == label] = LABEL[_anatomy_name(name)]
    return OrganMap(anatomy=anatomy, organ=organ, names=names)


def _anatomy_name(organ: str) -> str:
    if organ.startswith("lung_"):
        return "lung_left" if organ.endswith("left") else "lung_right"
    for prefix, name in _ORGAN_PREFIXES.items():
        if organ.startswith(prefix) and name is not None:
            return name
    # the label set has no pulmonary trunk: it may hide in the vein label or in unlabelled mediastinum
    return "blood" if organ == "pulmonary_vein" else "body"
