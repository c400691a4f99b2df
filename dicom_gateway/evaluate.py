"""Studies with known truth through the product's own path, one record a study: what `onescan evaluate` does."""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dicom_gateway.pipeline import StageClock, first_series_through_the_gates
from imaging.errors import ImagingError
from imaging.files import find_files
from imaging.geometry import Geometry
from imaging.headers import Series, read_studies
from imaging.kernel import recognise_kernel
from imaging.lungs import Lungs, segment_lungs
from imaging.quality import QualityIssue, Verdict, check_voxels, is_rejected
from imaging.volume import Volume
from models.detect import Detection, Detector
from models.errors import ModelError
from models.evaluation.card import write_tables as write_card
from models.evaluation.evidence import evidence_of, with_evidence
from models.evaluation.images import read_image, read_masks
from models.evaluation.outlined import outlined_lesions
from models.evaluation.phantoms import PhantomPlan, make_planned, plan_suite
from models.evaluation.record import SORTED_BY_SIZE, Acquisition, Record, read_answers
from models.evaluation.truth import (
    KindTruth,
    KnownPresence,
    LabelledStudy,
    StudyTruth,
    TruthMismatch,
    check_places,
)
from models.findings import FindingKind
from models.manifest import MANIFEST_NAME, ModelManifest, load_manifest
from models.session import ModelSession

if TYPE_CHECKING:
    from models.training.nodule_studies import NoduleStudy
    from models.training.studies import Study as TrainingStudy

_INSERTED_FIRST_SEED = 200_000
# Studies of one seed; those of the next begin there.
MOST_INSERTED = 1000
_INSERTED_SPACING_MM = 2.5  # that of models.training.network
_SMALLEST_MASS_ML = 14.1  # a ball of 30 mm
_NAMED = 5
_ROOT = Path(__file__).parents[1]
_CODE = ("imaging/**/*.py", "models/**/*.py", "dicom_gateway/pipeline.py", "dicom_gateway/evaluate.py")
_ONLY_READS_RECORDS = (
    *("card", "evidence", "nodule_figures", "page", "patches", "plots", "statistics", "summary", "tables"),
)

OnStage = Callable[[str], None]
Masks = Mapping[FindingKind, npt.NDArray[np.bool_]]


class Refused(Exception):
    """No series of the study may be analysed."""


class NothingMeasured(Exception):
    """No study got an answer about a kind whose truth is known."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scan:
    """A volume that passed the gates, with its truth; true outlines are on the volume's grid."""

    truth: StudyTruth
    volume: Volume
    lungs: Lungs
    sharp_kernel: bool
    acquisition: Acquisition
    masks: Masks


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A study to be evaluated; `read` raises Refused.

    `identity` changes whenever the truth does, or the name, size or time of change of a data or mask file.
    """

    name: str
    source: str
    simulated: bool
    trained_on: bool
    identity: str
    read: Callable[[OnStage], Scan]


def labelled_case(study: LabelledStudy) -> Case:
    """A study on disk: DICOM takes the way of the product; of other volumes only the voxels are checked.

    Raises OSError where its data or masks are not there.
    """
    truth = study.truth
    return Case(
        name=truth.name,
        source=truth.source,
        simulated=truth.simulated,
        trained_on=truth.trained_on,
        identity=f"{_state(study.paths)} {truth.model_dump_json()}",
        read=lambda on_stage: _read_labelled(study, on_stage),
    )


def phantom_cases(count: int, seed: int) -> Iterator[Case]:
    """The phantoms of a suite; each is made when it is read."""
    for plan in plan_suite(count, seed):
        yield Case(
            name=plan.name,
            source="phantoms",
            simulated=True,
            trained_on=False,
            identity=repr(plan),
            read=lambda on_stage, plan=plan: _read_phantom(plan, on_stage),  # type: ignore[misc]
        )


def inserted_cases(training: Path, count: int, seed: int) -> Iterator[Case]:
    """Lesions put into the held-out patients of a training configuration: `count` studies of each of two sorts.

    Those of all kinds are on the network's own spacing, which is too coarse for nodules; nodules alone are put into
    the scans as they are. There are `MOST_INSERTED` of each at most. Seeds are none that calibration uses. Raises
    OSError or ValueError for a file that is no configuration, OSError where the patients' volumes are not there, and
    ValueError where there are no patients.
    """
    from models.training.dataset import read_config
    from models.training.nodule_studies import SOURCE, nodule_hosts, nodule_study
    from models.training.nodules import SHAPES
    from models.training.studies import HELD_OUT_SOURCE, held_out_hosts, held_out_study

    config = read_config(training)
    if not config.held_out:
        raise ValueError("it names no held_out patients")
    files = [config.data_root / volume.path for volume in config.held_out]
    files += [volume.annotations for volume in config.held_out if volume.annotations is not None]
    files += [folder for folder in (config.data_root / SHAPES,) if folder.is_dir()]
    state = f"{training.read_text()} {_state(files)} {_contents(_ROOT.glob('models/training/*.py'))}"
    hosts, scans = cache(lambda: held_out_hosts(config)), cache(lambda: nodule_hosts(config))
    first = _INSERTED_FIRST_SEED + seed * MOST_INSERTED

    def of_all_kinds(index: int, on_stage: OnStage) -> Scan:
        on_stage("insert lesions")
        return _read_inserted(held_out_study(hosts(), config, index), on_stage)

    def of_nodules(index: int, on_stage: OnStage) -> Scan:
        on_stage("insert nodules")
        return _read_nodules(nodule_study(scans(), config, index), on_stage)

    sorts = (("held out", HELD_OUT_SOURCE, of_all_kinds), ("nodules", SOURCE, of_nodules))
    for name, source, read in sorts:
        for index in range(first, first + count):
            yield Case(
                name=f"{name} {index}",
                source=source,
                simulated=True,
                trained_on=False,
                identity=f"{state} {index}",
                read=partial(read, index),
            )


def _state(paths: Sequence[Path]) -> str:
    """Digest of names, sizes and times of change of files and of all files in folders; OSError where one is missing."""
    listed = []
    for path in paths:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        listed += [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _read_inserted(study: "TrainingStudy", on_stage: OnStage) -> Scan:
    hu = np.rint(study.hu[0, 0]).astype(np.int16)
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = _INSERTED_SPACING_MM
    affine[3, 3] = 1.0
    count = len(hu)
    names = tuple(str(index) for index in range(count))
    volume = Volume(hu, Geometry(affine, hu.shape), study.name, names, (None,) * count)
    outlined = {}
    if study.masks[SORTED_BY_SIZE].any():
        lesions = outlined_lesions(
            study.masks[SORTED_BY_SIZE], study.unknown[SORTED_BY_SIZE], volume.geometry, _SMALLEST_MASS_ML
        )
        known = any(lesion.counts for lesion in lesions)
        outlined[SORTED_BY_SIZE] = KindTruth(presence="present" if known else "unknown", lesions=lesions)
    return Scan(
        truth=StudyTruth(
            name=study.name,
            source=study.source,
            simulated=True,
            present=tuple(kind for kind, present in study.present.items() if present and kind not in outlined),
            absent=tuple(kind for kind, present in study.present.items() if not present),
            findings=outlined,
        ),
        volume=volume,
        lungs=_checked_lungs(volume, on_stage),
        sharp_kernel=False,
        acquisition=Acquisition(slice_spacing_mm=_INSERTED_SPACING_MM),
        masks={kind: mask for kind, mask in study.masks.items() if kind in _OUTLINED and study.present.get(kind)},
    )


def _read_nodules(study: "NoduleStudy", on_stage: OnStage) -> Scan:
    """What else the patient has is not known here: it would be counted again in every study of the same patient."""
    known = any(nodule.counts for nodule in study.nodules)
    presence: KnownPresence = "present" if known else "unknown" if study.nodules else "absent"
    nodules = KindTruth(presence=presence, lesions=study.nodules)
    return Scan(
        truth=StudyTruth(name=study.name, source=study.source, simulated=True, findings={SORTED_BY_SIZE: nodules}),
        volume=study.volume,
        lungs=_checked_lungs(study.volume, on_stage),
        sharp_kernel=False,
        acquisition=Acquisition(slice_spacing_mm=study.volume.geometry.spacing_mm[0]),
        masks={},
    )


def _read_labelled(study: LabelledStudy, on_stage: OnStage) -> Scan:
    if study.data.is_dir():
        volume, lungs, acquisition, sharp = _read_dicom(study.data, on_stage)
    else:
        on_stage("read")
        volume = read_image(study.data)
        lungs = _checked_lungs(volume, on_stage)
        acquisition = Acquisition(slice_spacing_mm=volume.geometry.spacing_mm[0])
        sharp = recognise_kernel(None, volume, lungs, is_original=True).sharp is not False
    check_places(study.truth, volume.geometry)
    masks = read_masks(study, volume.geometry)
    return Scan(truth=study.truth, volume=volume, lungs=lungs, sharp_kernel=sharp, acquisition=acquisition, masks=masks)


def _read_dicom(folder: Path, on_stage: OnStage) -> tuple[Volume, Lungs, Acquisition, bool]:
    with tempfile.TemporaryDirectory(prefix="onescan-") as unpacked:
        studies, _ = read_studies(find_files([folder], Path(unpacked)).files)
        if len(studies) != 1:
            raise Refused(f"the folder holds {len(studies)} studies, not one")
        passed = first_series_through_the_gates(studies[0], StageClock(on_stage))
    chosen = passed.selection.chosen
    if passed.volume is None or passed.lungs is None or chosen is None:
        rejections = [rejection.reason for rejection in passed.selection.rejected]
        raise Refused(_why(passed.quality) or "; ".join(rejections) or "no series of a chest CT")
    acquisition = _acquisition(chosen, passed.volume, passed.sharp_kernel)
    return passed.volume, passed.lungs, acquisition, passed.sharp_kernel is not False


def _acquisition(series: Series, volume: Volume, sharp_kernel: bool | None) -> Acquisition:
    return Acquisition(
        slice_spacing_mm=volume.geometry.spacing_mm[0],
        sharp_kernel=sharp_kernel,
        contrast=True if series.contrast_bolus_agent else None,
        manufacturer=series.manufacturer,
    )


def _read_phantom(plan: PhantomPlan, on_stage: OnStage) -> Scan:
    on_stage("make the phantom")
    phantom, truth = make_planned(plan)
    return Scan(
        truth=truth,
        volume=phantom.volume,
        lungs=_checked_lungs(phantom.volume, on_stage),
        sharp_kernel=plan.sharp_kernel,
        acquisition=Acquisition(
            slice_spacing_mm=plan.spacing_mm[0],
            sharp_kernel=plan.sharp_kernel,
            contrast=plan.contrast,
            manufacturer="phantom",
        ),
        masks={FindingKind(kind): mask for kind, mask in phantom.lesions.items() if FindingKind(kind) in _OUTLINED},
    )


# Kinds whose phantom mask is the lesion itself, as the product would outline it.
_OUTLINED = (
    FindingKind.PLEURAL_EFFUSION,
    FindingKind.CONSOLIDATION,
    FindingKind.GROUND_GLASS_OPACITY,
    FindingKind.PNEUMOTHORAX,
    FindingKind.PERICARDIAL_EFFUSION,
    FindingKind.ATELECTASIS,
)


def _checked_lungs(volume: Volume, on_stage: OnStage) -> Lungs:
    on_stage("lungs")
    lungs = segment_lungs(volume)
    issues = check_voxels(volume, lungs)
    if is_rejected(issues):
        raise Refused(_why(issues))
    return lungs


def _why(issues: Sequence[QualityIssue]) -> str:
    return "; ".join(issue.message for issue in issues if issue.verdict is Verdict.REJECT)


def answering_everything(session: ModelSession) -> Detector:
    """A detector that answers the withheld kinds, too: whether they should be is what the evaluation shows."""
    return Detector(session, session.manifest.model_copy(update={"withheld": {}}))


def evaluate_cases(
    cases: Sequence[Case], detector: Detector, folder: Path, on_stage: OnStage = lambda stage: None
) -> Iterator[Record]:
    """One record a case, kept in `folder` as JSON; a case that was evaluated or refused there is not run again.

    A study that cannot be read or analysed gives a record with the problem and does not stop the others; the next run
    tries it again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        key = _key(case, detector.manifest)
        path = folder / f"{key}.json"
        if path.exists():
            record = Record.model_validate_json(path.read_bytes())
            if record.outcome != "failed":
                yield record
                continue
        started = time.perf_counter()
        record = _evaluated(case, key, detector, on_stage)
        record = record.model_copy(update={"seconds": round(time.perf_counter() - started, 2)})
        part = path.with_suffix(".part")
        part.write_text(record.model_dump_json(indent=1), encoding="utf-8")
        part.replace(path)
        yield record


def _evaluated(case: Case, key: str, detector: Detector, on_stage: OnStage) -> Record:
    empty = Record(
        key=key,
        name=case.name,
        source=case.source,
        simulated=case.simulated,
        trained_on=case.trained_on,
        outcome="failed",
    )
    try:
        scan = case.read(on_stage)
        on_stage("analyse")
        detection = detector.detect(scan.volume, scan.lungs, sharp_kernel=scan.sharp_kernel)
    except Refused as refusal:
        return empty.model_copy(update={"outcome": "refused", "problem": str(refusal)})
    except Exception as error:  # noqa: BLE001  # edge: one study must not end the evaluation
        known = isinstance(error, (ImagingError, ModelError, OSError, TruthMismatch))
        return empty.model_copy(update={"problem": str(error) if known else f"unexpected {type(error).__name__}"})
    return empty.model_copy(
        update={
            "outcome": "evaluated",
            "acquisition": _with_contrast(scan.acquisition, detection),
            "answers": read_answers(
                scan.truth,
                detection.findings,
                scan.volume,
                scan.masks,
                np.asarray((scan.lungs.left | scan.lungs.right).any(axis=(1, 2))),
            ),
        }
    )


def _with_contrast(acquisition: Acquisition, detection: Detection) -> Acquisition:
    """Where the header is silent the blood tells: many headers leave the agent out."""
    if acquisition.contrast is not None:
        return acquisition
    return acquisition.model_copy(update={"contrast": detection.blood_pool.contrast})


def _key(case: Case, manifest: ModelManifest) -> str:
    parts = [case.name, case.identity, manifest.model_dump_json(exclude={"evidence", "withheld"}), _software()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


@cache
def _software() -> str:
    """Digest of the code that makes records: the version of the package stays between releases."""
    files = (file for pattern in _CODE for file in _ROOT.glob(pattern))
    return _contents(f for f in files if f.stem not in _ONLY_READS_RECORDS and f.parent.name != "training")


def _contents(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def training_doubts(cases: Sequence[Case], manifest: ModelManifest) -> list[str]:
    """Warnings where cases that are not marked as trained on share name or data set with a training volume.

    Volumes are those of the manifest; a data set is shared where a case's source stands in a volume's name or licence.
    The cuts were fitted to volumes for validation: cases of their names are told, too.
    """
    asked = [case for case in cases if not (case.trained_on or case.simulated)]
    doubts = []
    fitted = {volume.name for volume in manifest.training_data if volume.use == "validation"}
    if again := [case.name for case in asked if case.name in fitted]:
        doubts.append(f"{_some(again)}: not trained on, but the model's cuts were fitted to keep them clean")
    for volume in manifest.training_data:
        if volume.use != "training":
            continue
        said = f"{volume.name} {volume.licence}"
        alike = [case.name for case in asked if case.name == volume.name or _stands_in(case.source, said)]
        if alike:
            doubts.append(f'{_some(alike)}: not marked trained_on, but the weights were trained on "{volume.name}"')
    return doubts


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _stands_in(source: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(source)}(?![\w-])", text, re.IGNORECASE) is not None


def write_evidence_into(folder: Path, records: Sequence[Record], card: Path | None) -> ModelManifest:
    """Write what `records` say into the folder's `model.json`, and into the tables of a model card.

    Raises NothingMeasured before anything is written, ManifestMismatch when the folder holds no model, ValueError when
    the card lacks its marks.
    """
    evaluated = [r for r in records if r.outcome == "evaluated"]
    if not evidence_of(evaluated):
        raise NothingMeasured("no study got an answer about a kind whose truth is known")
    manifest = with_evidence(load_manifest(folder), evaluated)
    if card is not None:
        write_card(manifest, card)
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest
