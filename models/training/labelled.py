"""Labelled volumes of one's own as training data: one folder a volume, named in a run's configuration.

    patient17/
      image.nii.gz       the CT in HU; or a folder `dicom` with the files of one series
      labels.toml        what is labelled, and by whose licence
      anatomy.nii.gz     optional: a whole number per voxel, 0 where nothing is said
      lesions.nii.gz     optional: the same for lesions

`labels.toml`:

    version = 1
    name = "patient 17"
    licence = "in-house, not released"
    complete = ["pleural_effusion", "pneumothorax"]

    [anatomy]                     # number in anatomy.nii.gz and class of the network
    1 = "lung_left"
    7 = "aorta"

    [lesions]                     # number in lesions.nii.gz and finding kind
    1 = "pleural_effusion"

`complete` names the kinds of which every lesion of the volume is outlined, also where there is none. Any other kind may
or may not be there: it is left out of the loss where it is not outlined. Where anatomy.nii.gz says nothing, thresholds
label what they can tell, as in the volumes of the bundled run. Both masks may have any grid: their headers place them.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from models.findings import FindingKind
from models.training.labels import LABEL
from models.training.network import ANATOMY, LESIONS
from models.training.sources import Grid, Outlined, Sample, read_ct, real_sample, to_grid

LABELS_NAME, IMAGE_NAME, DICOM_NAME = "labels.toml", "image.nii.gz", "dicom"
ANATOMY_NAME, LESIONS_NAME = "anatomy.nii.gz", "lesions.nii.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The content of a `labels.toml`."""

    name: str
    licence: str
    complete: frozenset[FindingKind]
    anatomy: Mapping[int, str]
    lesions: Mapping[int, FindingKind]


def find_labelled(folder: Path) -> tuple[Path, ...]:
    """The folders in `folder` that hold a `labels.toml`. Raises ValueError when there is none."""
    found = tuple(sorted(file.parent for file in folder.glob(f"*/{LABELS_NAME}")))
    if not found:
        raise ValueError(f"no folder in {folder} holds a {LABELS_NAME}")
    return found


def read_labels(folder: Path) -> Labels:
    """Raises ValueError naming the file and what is wrong with it."""
    path = folder / LABELS_NAME
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    if table.pop("version", None) != 1:
        raise ValueError(f"{path}: version must be 1")
    try:
        labels = Labels(
            name=table.pop("name"),
            licence=table.pop("licence"),
            complete=frozenset(FindingKind(kind) for kind in table.pop("complete", ())),
            anatomy={int(number): name for number, name in table.pop("anatomy", {}).items()},
            lesions={int(number): FindingKind(kind) for number, kind in table.pop("lesions", {}).items()},
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    unknown = {
        *table,
        *(name for name in labels.anatomy.values() if name not in ANATOMY),
        *(kind.value for kind in (*labels.complete, *labels.lesions.values()) if kind not in LESIONS),
    }
    if unknown:
        raise ValueError(f"{path}: not known to the network: {', '.join(sorted(unknown))}")
    return labels


def labelled_sample(folder: Path) -> Sample:
    """The volume of one folder on the network's grid. Raises ValueError where the folder is not as described above."""
    labels = read_labels(folder)
    image = folder / IMAGE_NAME
    if not image.exists():
        image = folder / DICOM_NAME
    if not image.exists():
        raise ValueError(f"{folder}: there is neither {IMAGE_NAME} nor {DICOM_NAME}")
    grid = to_grid(read_ct(image), -1024.0)
    numbers = _on_grid(folder / ANATOMY_NAME, grid)
    anatomy = np.full(grid.values.shape, Outlined.OPEN, np.uint8)
    for number, name in labels.anatomy.items():
        anatomy[numbers == number] = LABEL[name]
    numbers = _on_grid(folder / LESIONS_NAME, grid)
    lesions = np.zeros(grid.values.shape, np.uint8)
    for number, kind in labels.lesions.items():
        lesions[numbers == number] |= np.uint8(1 << LESIONS.index(kind))
    open_bits = np.uint8(sum(1 << index for index, kind in enumerate(LESIONS) if kind not in labels.complete))
    return real_sample(
        grid,
        unlabelled_pneumonia=False,
        outlined=Outlined(anatomy=anatomy, lesions=lesions, unknown=open_bits & ~lesions),
    )


def _on_grid(path: Path, grid: Grid) -> npt.NDArray[np.int64]:
    """Whole numbers of a label file on the voxels of `grid`; 0 where there is no file."""
    if not path.exists():
        return np.zeros(grid.values.shape, np.int64)
    placed = sitk.Resample(
        sitk.ReadImage(str(path), sitk.sitkInt32), grid.image(), sitk.Transform(), sitk.sitkNearestNeighbor, 0
    )
    numbers: npt.NDArray[np.int64] = sitk.GetArrayFromImage(placed).astype(np.int64)
    return numbers
