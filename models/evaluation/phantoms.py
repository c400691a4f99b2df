"""Simulated studies of every finding kind: phantoms whose number and findings follow from a seed alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from imaging.geometry import Point
from imaging.phantom import LesionRequest, Phantom, make_phantom, truth_document
from models.evaluation.truth import KindTruth, StudyTruth, phantom_truth
from models.findings import FindingKind

# Smallest and largest size in the phantom's unit, drawn log-uniformly (uniformly where a size may be negative); every
# size counts as present by `PHANTOM_COUNTS_FROM`.
SIZES: Mapping[FindingKind, tuple[float, float]] = {
    FindingKind.PULMONARY_NODULE: (6.0, 30.0),
    FindingKind.CORONARY_ARTERY_CALCIFICATION: (30.0, 1500.0),
    FindingKind.EMPHYSEMA: (8.0, 40.0),
    FindingKind.PLEURAL_EFFUSION: (60.0, 1200.0),
    FindingKind.AORTIC_DILATATION: (42.0, 65.0),
    FindingKind.VERTEBRAL_COMPRESSION_FRACTURE: (25.0, 60.0),
    FindingKind.CONSOLIDATION: (15.0, 400.0),
    FindingKind.GROUND_GLASS_OPACITY: (40.0, 800.0),
    FindingKind.PNEUMOTHORAX: (60.0, 1500.0),
    FindingKind.PERICARDIAL_EFFUSION: (90.0, 600.0),
    FindingKind.CARDIOMEGALY: (0.53, 0.63),
    FindingKind.ATELECTASIS: (20.0, 300.0),
    FindingKind.LYMPHADENOPATHY: (11.0, 30.0),
    FindingKind.INTERSTITIAL_ABNORMALITY: (4.0, 30.0),
    FindingKind.BRONCHIECTASIS: (3.0, 10.0),
    FindingKind.PULMONARY_ARTERY_ENLARGEMENT: (31.0, 42.0),
    FindingKind.LOW_BONE_DENSITY: (30.0, 100.0),
    FindingKind.HEPATIC_STEATOSIS: (-10.0, 35.0),
    FindingKind.RIB_FRACTURE: (1.0, 5.0),
    FindingKind.HIATAL_HERNIA: (30.0, 65.0),
    FindingKind.ARTERIAL_WALL_CALCIFICATION: (100.0, 5000.0),
    FindingKind.MEDICAL_DEVICE: (1.0, 2.0),
}
# A pulmonary nodule above 30 mm is a mass; masses are a share of their own.
MASSES_MM = (32.0, 60.0)
# Of the studies of a suite this share holds each kind: some four findings a study.
PREVALENCE = 0.2
_CONTRAST_SHARE = 0.3
_SHARP_SHARE = 0.25
_PAINTED_OVER_NODULES = (FindingKind.PLEURAL_EFFUSION.value, FindingKind.PNEUMOTHORAX.value)
_COUNTS = (FindingKind.BRONCHIECTASIS, FindingKind.RIB_FRACTURE, FindingKind.MEDICAL_DEVICE)
_PIXEL_MM = 1.2
_DISC_MM = 8.0
_SLICE_SPACINGS_MM = (1.5, 2.5, 2.5, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomPlan:
    """Study `index` of a suite before it is made."""

    suite_seed: int
    index: int
    requests: tuple[LesionRequest, ...]
    spacing_mm: Point
    contrast: bool
    sharp_kernel: bool

    @property
    def name(self) -> str:
        return f"phantom {self.suite_seed}-{self.index}"


def plan_suite(count: int, seed: int) -> Iterator[PhantomPlan]:
    """`count` phantoms; each kind, and masses, are put into the same number of them, whatever the others hold."""
    chosen = np.random.default_rng([seed, 1])
    each = max(1, round(PREVALENCE * count))
    holders = {kind: chosen.permutation(count)[:each] for kind in SIZES}
    # Generators of their own: masses move no other draw of a seed.
    with_mass = np.random.default_rng([seed, 4]).permutation(count)[:each]
    for index in range(count):
        rng = np.random.default_rng([seed, 2, index])
        requests = tuple(_request(kind, SIZES[kind], rng) for kind, where in holders.items() if index in where)
        if index in with_mass:
            mass = _request(FindingKind.PULMONARY_NODULE, MASSES_MM, np.random.default_rng([seed, 5, index]))
            requests = (*requests, mass)
        # calcium of the coronary arteries is scored without contrast medium only
        scored = any(request.kind == FindingKind.CORONARY_ARTERY_CALCIFICATION for request in requests)
        yield PhantomPlan(
            suite_seed=seed,
            index=index,
            requests=requests,
            spacing_mm=(float(rng.choice(_SLICE_SPACINGS_MM)), _PIXEL_MM, _PIXEL_MM),
            contrast=bool(rng.random() < _CONTRAST_SHARE) and not scored,
            sharp_kernel=bool(rng.random() < _SHARP_SHARE),
        )


def _request(kind: FindingKind, sizes: tuple[float, float], rng: np.random.Generator) -> LesionRequest:
    low, high = sizes
    size = float(rng.uniform(low, high) if low <= 0 else np.exp(rng.uniform(np.log(low), np.log(high))))
    return LesionRequest(kind=kind.value, size=float(round(size)) if kind in _COUNTS else size)


def make_planned(plan: PhantomPlan) -> tuple[Phantom, StudyTruth]:
    """The phantom and its truth. Findings that do not fit together are dropped, the last one first."""
    requests = list(plan.requests)
    # Seeds of patients that neither training nor calibration uses.
    patient = int(np.random.SeedSequence([plan.suite_seed, 3, plan.index]).generate_state(1)[0]) + 1_000_000
    while True:
        try:
            phantom = make_phantom(
                patient,
                requests,
                spacing_mm=plan.spacing_mm,
                contrast=plan.contrast,
                kernel="sharp" if plan.sharp_kernel else "soft",
            )
        except ValueError:
            if not requests:
                raise
            requests.pop()
        else:
            truth = phantom_truth(truth_document(phantom), name=plan.name)
            truth = _without_hidden_nodules(truth, phantom)
            truth = _without_pressed_lung(truth)
            return phantom, _without_cut_vertebra(truth, phantom)


def _without_hidden_nodules(truth: StudyTruth, phantom: Phantom) -> StudyTruth:
    """Nodules and masses in the pleura's fluid or air, which is painted over them, cannot be asked for."""
    kind = FindingKind.PULMONARY_NODULE
    over = [phantom.lesions[name] for name in _PAINTED_OVER_NODULES if name in phantom.lesions]
    if kind not in truth.findings or not over:
        return truth
    covered = np.logical_or.reduce(over)
    known, lesions = truth.findings[kind], []
    for lesion in truth.findings[kind].lesions:
        z, y, x = np.rint(phantom.volume.geometry.patient_to_index(lesion.centre_lps_mm)).astype(int)
        lesions.append(lesion.model_copy(update={"counts": not covered[z, y, x]}))
    seen = KindTruth(presence=known.presence if any(l.counts for l in lesions) else "unknown", lesions=tuple(lesions))
    return truth.model_copy(update={"findings": {**truth.findings, kind: seen}})


def _without_pressed_lung(truth: StudyTruth) -> StudyTruth:
    """An effusion presses the lung beside it: that there is no atelectasis is not known then."""
    if FindingKind.PLEURAL_EFFUSION not in truth.findings:
        return truth
    absent = tuple(kind for kind in truth.absent if kind is not FindingKind.ATELECTASIS)
    return truth.model_copy(update={"absent": absent})


def _without_cut_vertebra(truth: StudyTruth, phantom: Phantom) -> StudyTruth:
    """A fractured body without a disc above and below it in the scan cannot be asked for."""
    kind = FindingKind.VERTEBRAL_COMPRESSION_FRACTURE
    if kind not in truth.findings:
        return truth
    slices = np.flatnonzero(phantom.lesions[kind.value].any(axis=(1, 2)))
    margin = _DISC_MM / phantom.volume.geometry.spacing_mm[0]
    if len(slices) and slices[0] >= margin and len(phantom.volume.hu) - 1 - slices[-1] >= margin:
        return truth
    return truth.model_copy(update={"findings": {**truth.findings, kind: KindTruth(presence="unknown")}})
