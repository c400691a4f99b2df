"""Labelled volumes of one's own as training data: one folder a volume, named in a run's configuration.

    patient17/
      image.nii.gz       the CT in HU; or a folder `dicom` with the files of one series
      labels.toml        what is labelled, and by whose licence
      anatomy.nii.gz     optional: a whole number per voxel, 0 where nothing is said
      lesions.nii.gz     the same for lesions; none where `complete` and [lesions] are left out

`labels.toml`:

    version = 1
    name = "patient 17"
    licence = "in-house, not released"
    complete = ["pleural_effusion", "consolidation"]
    absent = ["pneumothorax"]

    [anatomy]                     # number in anatomy.nii.gz and class of the network
    1 = "lung_left"
    7 = "aorta"

    [lesions]                     # number in lesions.nii.gz and finding kind
    1 = "pleural_effusion"
    2 = "consolidation"

`complete` names the kinds of which every lesion of the volume is outlined: one that is not in lesions.nii.gz is not
there. `absent` names kinds that are nowhere in the volume and needs no mask: a healthy volume has all its kinds there.
Any other kind may or may not be there: it is left out of the loss where it is not outlined. Where anatomy.nii.gz says
nothing, thresholds label what they can tell, as in the volumes of the bundled run. Both masks may have any grid: their
headers place them. It is an error where a mask holds a number that labels.toml does not name, and where labels.toml
speaks of a mask, in `complete`, [lesions] or [anatomy], that is not there.
"""

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from models.evaluation.images import open_image
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
    absent: frozenset[FindingKind]
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
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        if table.pop("version", None) != 1:
            raise ValueError("version must be 1")
        labels = Labels(
            name=_text(table, "name"),
            licence=_text(table, "licence"),
            complete=frozenset(FindingKind(kind) for kind in table.pop("complete", ())),
            absent=frozenset(FindingKind(kind) for kind in table.pop("absent", ())),
            anatomy={int(number): name for number, name in table.pop("anatomy", {}).items()},
            lesions={int(number): FindingKind(kind) for number, kind in table.pop("lesions", {}).items()},
        )
        outlined = {*labels.complete, *labels.lesions.values()}
        unknown = {
            *table,
            *(name for name in labels.anatomy.values() if name not in ANATOMY),
            *(kind.value for kind in outlined | labels.absent if kind not in LESIONS),
        }
        if unknown:
            raise ValueError(f"not known to the network: {', '.join(sorted(unknown))}")
        if both := outlined & labels.absent:
            raise ValueError(f"absent, and in complete or [lesions], too: {', '.join(sorted(both))}")
        if min((*labels.anatomy, *labels.lesions), default=1) < 1:
            raise ValueError("numbers of a mask are 1 or more; 0 says nothing")
    except KeyError as error:
        raise ValueError(f"{path}: the key {error} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return labels


def _text(table: dict[str, Any], key: str) -> str:
    value = table.pop(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} must be text, and not empty")
    return value


def labelled_sample(folder: Path) -> Sample:
    """The volume of one folder on the network's grid. Raises ValueError where the folder is not as described above."""
    labels = read_labels(folder)
    image = folder / IMAGE_NAME
    if not image.exists():
        image = folder / DICOM_NAME
    if not image.exists():
        raise ValueError(f"{folder}: there is neither {IMAGE_NAME} nor {DICOM_NAME}")
    grid = to_grid(read_ct(image), -1024.0)
    numbers = _on_grid(folder / ANATOMY_NAME, grid, labels.anatomy, needed=bool(labels.anatomy))
    anatomy = np.full(grid.values.shape, Outlined.OPEN, np.uint8)
    for number, name in labels.anatomy.items():
        anatomy[numbers == number] = LABEL[name]
    numbers = _on_grid(folder / LESIONS_NAME, grid, labels.lesions, needed=bool(labels.complete or labels.lesions))
    lesions = np.zeros(grid.values.shape, np.uint8)
    for number, kind in labels.lesions.items():
        lesions[numbers == number] |= np.uint8(1 << LESIONS.index(kind))
    known = labels.complete | labels.absent
    open_bits = np.uint8(sum(1 << index for index, kind in enumerate(LESIONS) if kind not in known))
    outlined = Outlined(anatomy=anatomy, lesions=lesions, unknown=open_bits & ~lesions)
    try:
        return real_sample(grid, unlabelled_pneumonia=False, outlined=outlined)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _on_grid(path: Path, grid: Grid, named: Collection[int], *, needed: bool) -> npt.NDArray[np.int64]:
    """Whole numbers of a label file on the voxels of `grid`; 0 where there is no file and none is needed."""
    if not path.exists():
        if needed:
            raise ValueError(
                f"{path.parent}: {LABELS_NAME} speaks of {path.name}, which is not there; "
                "kinds that are nowhere in the volume go into absent"
            )
        return np.zeros(grid.values.shape, np.int64)
    mask = open_image(path)
    values = sitk.GetArrayViewFromImage(mask)
    if unnamed := sorted(set(values[~np.isin(values, [0, *named])].tolist())):
        raise ValueError(f"{path}: {LABELS_NAME} names no {', '.join(map(str, unnamed[:5]))}")
    placed = sitk.Resample(
        sitk.Cast(mask, sitk.sitkInt32), grid.image(), sitk.Transform(), sitk.sitkNearestNeighbor, -1
    )
    numbers: npt.NDArray[np.int64] = sitk.GetArrayFromImage(placed).astype(np.int64)
    if (numbers < 0).all():
        raise ValueError(f"{path}: by its header it lies beside the image")
    return np.maximum(numbers, 0)
