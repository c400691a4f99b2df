"""Simulated studies of every finding kind: phantoms whose number and findings follow from a seed alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from imaging.geometry import Point
from imaging.phantom import LesionRequest, Phantom, make_phantom, truth_document
from models.evaluation.truth import StudyTruth, phantom_truth
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
# Of the studies of a suite this share holds each kind: some four findings a study.
PREVALENCE = 0.2
_CONTRAST_SHARE = 0.3
_SHARP_SHARE = 0.25
_COUNTS = (FindingKind.BRONCHIECTASIS, FindingKind.RIB_FRACTURE, FindingKind.MEDICAL_DEVICE)
_PIXEL_MM = 1.2
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
    """`count` phantoms; each kind is put into the same number of them, whatever the others hold."""
    chosen = np.random.default_rng([seed, 1])
    holders = {kind: chosen.permutation(count)[: max(1, round(PREVALENCE * count))] for kind in SIZES}
    for index in range(count):
        rng = np.random.default_rng([seed, 2, index])
        requests = tuple(_request(kind, rng) for kind, where in holders.items() if index in where)
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


def _request(kind: FindingKind, rng: np.random.Generator) -> LesionRequest:
    low, high = SIZES[kind]
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
            return phantom, _without_natural(phantom_truth(truth_document(phantom), name=plan.name))


def _without_natural(truth: StudyTruth) -> StudyTruth:
    """Without "absent" where the phantom has some of a finding unasked.

    Phantoms' own hearts measure 0.46 to 0.51 of the chest, and an effusion presses the lung beside it.
    """
    natural = {FindingKind.CARDIOMEGALY}
    if FindingKind.PLEURAL_EFFUSION in truth.findings:
        natural.add(FindingKind.ATELECTASIS)
    return truth.model_copy(update={"absent": tuple(kind for kind in truth.absent if kind not in natural)})
