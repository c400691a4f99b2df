"""Volumes and outlines that are no DICOM: files that SimpleITK reads, placed by their own header."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from imaging.geometry import Geometry
from imaging.volume import AIR_HU, Volume
from models.evaluation.truth import LabelledStudy, TruthMismatch
from models.findings import FindingKind

# Where a mask has no voxel; within it values are 0 to 1.
_BESIDE = -1.0


def read_image(path: Path) -> Volume:
    """A volume in HU from NIfTI, NRRD or MetaImage, its slices axial. Raises OSError when SimpleITK cannot read it."""
    image = sitk.DICOMOrient(open_image(path, sitk.sitkFloat32), "LPS")
    # Beyond the field of view some write NaN, of which a NIfTI reader makes 0.
    values = np.nan_to_num(sitk.GetArrayFromImage(image), nan=AIR_HU)
    hu = np.rint(np.clip(values, AIR_HU, np.iinfo(np.int16).max)).astype(np.int16)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = (direction * np.array(image.GetSpacing()))[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    count = hu.shape[0]
    return Volume(hu, Geometry(affine, hu.shape), path.stem, tuple(str(i) for i in range(count)), (None,) * count)


def read_masks(study: LabelledStudy, geometry: Geometry) -> dict[FindingKind, npt.NDArray[np.bool_]]:
    """The true outlines of a study on the voxels of `geometry`, its image.

    Raises OSError where one cannot be read, TruthMismatch where one lies beside the image or denies the presence.
    """
    masks = {}
    for kind in FindingKind:
        if (path := study.mask_path(kind)) is None:
            continue
        masks[kind] = read_mask(path, geometry)
        presence = study.truth.of(kind).presence
        if presence == "present" and not masks[kind].any():
            raise TruthMismatch(f"{path}: it outlines nothing in the image, although {kind.value} is present")
        if presence == "absent" and masks[kind].any():
            raise TruthMismatch(f"{path}: it outlines something, although {kind.value} is absent")
    return masks


def read_mask(path: Path, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """An outline on the voxels of `geometry`, (slice, row, column): inside where the file is not 0.

    Raises OSError where it cannot be read, TruthMismatch where it has no voxel of `geometry`.
    """
    affine = geometry.affine
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    slices, rows, columns = geometry.shape
    direction = (affine[:3, :3] / steps)[:, ::-1]
    outline = open_image(path, sitk.sitkFloat32) != 0
    resampled = sitk.Resample(
        sitk.Cast(outline, sitk.sitkFloat32),
        [columns, rows, slices],
        sitk.Transform(),
        sitk.sitkLinear,
        [float(v) for v in affine[:3, 3]],
        [float(v) for v in steps[::-1]],
        [float(v) for v in direction.ravel()],
        _BESIDE,
    )
    values = sitk.GetArrayViewFromImage(resampled)
    if (values == _BESIDE).all():
        raise TruthMismatch(f"{path}: by its header it lies beside the image")
    inside: npt.NDArray[np.bool_] = values >= 0.5
    return inside


def open_image(path: Path, pixel_type: int = sitk.sitkUnknown) -> sitk.Image:
    """A volume of single numbers that SimpleITK reads, by default with the file's pixel type. Raises OSError else."""
    try:
        image = sitk.ReadImage(str(path), pixel_type)
    except RuntimeError as error:
        raise OSError(f"{path} cannot be read as an image") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise OSError(f"{path} is no volume of single numbers")
    return image
