"""One chest CT volume to findings in patient coordinates: network grid, one run, decoding, measurement."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from imaging.lungs import Lungs
from imaging.preprocess import ModelInput, prepare
from imaging.quality import QualityIssue, Verdict
from imaging.uids import derive_uid
from imaging.volume import Volume
from models.agreement import MAXIMUM_SPREAD, averaged, perturbed
from models.anatomy import Anatomy, lung_z_mm
from models.contrast import LEAST_BLOOD_HU, MOST_FAT_HU, BloodPool, measure_blood_pool
from models.contrast_phase import Enhancement, contrast_phase
from models.findings import (
    LARGEST_NODULE_MM,
    EvidenceGrade,
    Finding,
    FindingKind,
    Laterality,
    Measurement,
    Presence,
    Quantity,
    Region,
    few_of_many,
)
from models.heads import (
    Candidate,
    joined_mask,
    lesion_candidates,
    not_lining,
    side_of,
    soft_tissue_radius_mm,
)
from models.manifest import ModelManifest, OperatingPoint
from models.measure import (
    EMPHYSEMA_HU,
    attenuation,
    axial_axes_mm,
    emphysema_indices,
    emphysema_slice,
    lung_zone,
    maximum_thickness_mm,
    region_of,
    shared_voxels,
    volume_mm3,
)
from models.measured import RULES
from models.nodules.detector import Judged, Nodule, described, judge_candidates, outline_nodules
from models.nodules.outline import NoduleType, type_of
from models.session import HeadOutputs, ModelSession

# %LAA-950 above 5 is the usual definition of emphysema on CT (COPDGene: Castaldi et al., Thorax 2014;69:415).
EMPHYSEMA_PRESENT_LAA_PERCENT = 5.0
EMPHYSEMA_ABSENT_LAA_PERCENT = 3.0
# Halfway between aerated lung (-850 HU) and soft tissue (50 HU): where partial volume puts a solid border.
_SOLID_BORDER_HU = -400
_MAXIMUM_LESIONS = 10
# A reader looks at a few marks that may be nothing, not at ten.
_MAXIMUM_DOUBTFUL = 3
_SEEN_LUNG_ML = 100.0
# A ball of 15 mm, six voxels of the network's grid: what is smaller is left to the network for nodules.
_SMALLEST_MASS_ML = 1.8
# Short over long axis: what is slimmer is collapsed lung or a fissure.
_LEAST_COMPACT = 0.4
# Of a ball of soft tissue that a mass holds somewhere, and vessels side by side do not.
_LEAST_MASS_RADIUS_MM = 4.0
_SOFT_TISSUE_HU = 50.0
# Between the median of lungs after a full breath (about -850) and of lungs at rest (about -700).
_EXPANDED_LUNG_HU = -750.0
_OPAQUE = 0.5
# Serous fluid, and muscle or blood without contrast medium; what is darker than fluid is fat. Voxels of 2.5 mm are
# smoothed against noise.
_FLUID_HU, _MUSCLE_HU, _FAT_HU = 10.0, 50.0, -30.0
_FLUID_SMOOTHING_VOXELS = 1.0
_LEAST_FLUID = 0.3
# Lung that a pleural effusion compresses is a rim of about this width.
_LINING_MM = 10.0
_LINING_SHARE = 0.7
_NETWORK_METHOD = "network"
_DOUBTFUL_NODULE = "what was found may be a nodule, a mass, a vessel or collapsed lung"
_MASS_OR_CONSOLIDATION = "also outlined as consolidation: the two look alike"
# Of kinds that exclude each other the network halves all but the likeliest, so a quarter was one half.
_ALSO_SEEN = 0.25
# Seen as both: 0.89 to 1.00 of the haze in 8 phantoms with an interstitial pattern and no ground glass, at most 0.71 in
# 12 with ground glass and in four real patients.
_CONTESTED = 0.8
_HAZE_OR_PATTERN = "nearly all of it is also outlined as an interstitial pattern: the two look alike"
_UNFAMILIAR = "the image is unlike those the model knows"
_PER_SIDE_KINDS = (FindingKind.PLEURAL_EFFUSION, FindingKind.PNEUMOTHORAX)
_FOCAL_KINDS = (FindingKind.PULMONARY_NODULE,)
_BESIDE_LUNG = ("heart", "aorta", "pulmonary_trunk", "vertebrae", "ribs", "sternum")
_OPACITIES = (FindingKind.CONSOLIDATION, FindingKind.GROUND_GLASS_OPACITY)
_AIRLESS = (FindingKind.CONSOLIDATION, FindingKind.ATELECTASIS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detection:
    """All findings about one volume, every kind at least once, in the order of FindingKind.

    `quality` holds what the model has to say about the image itself, `enhancement` the phase of an enhanced scan.
    """

    findings: tuple[Finding, ...]
    quality: tuple[QualityIssue, ...]
    blood_pool: BloodPool
    enhancement: Enhancement | None
    timings_s: dict[str, float]

    @property
    def contrast_evidence(self) -> str:
        """What was measured to tell contrast and its phase, in words."""
        organs = self.enhancement.evidence if self.enhancement else ""
        return "; ".join(filter(None, (self.blood_pool.evidence, organs)))


class Detector:
    """A loaded model that answers for volumes. The network looks at each of them twice, see `models.agreement`.

    `manifest` stands in for the session's own where the same weights shall answer otherwise, as with nothing withheld.
    """

    def __init__(self, session: ModelSession, manifest: ModelManifest | None = None) -> None:
        self.session = session
        self.manifest = manifest or session.manifest

    def detect(self, volume: Volume, lungs: Lungs, *, sharp_kernel: bool) -> Detection:
        """Findings of every kind. Raises models.errors.BadOutput when the network's answer is none."""
        started = time.perf_counter()
        # First, because MONAI may still be loading, and the network's grid waits for it.
        judged = self._judged(volume, lungs)
        sought = time.perf_counter()
        grid = self.network_grid(volume, lungs)
        prepared = time.perf_counter()
        looks = (self.session.run(grid.hu), self.session.run(perturbed(grid.hu)))
        inferred = time.perf_counter()
        reading = _Reading(self, volume, lungs, grid, looks)
        anatomy = reading.anatomy(sharp_kernel)
        found: dict[FindingKind, tuple[Finding, ...]] = {}
        with ThreadPoolExecutor(max_workers=1) as beside:
            by_rule = beside.submit(self._by_rule, anatomy, doubt=reading.doubt())
            if judged is not None:
                found[FindingKind.PULMONARY_NODULE] = reading.nodules(judged)
            for kind in self.manifest.lesions:
                if kind not in self.manifest.withheld and kind not in found:
                    found[kind] = reading.network_findings(kind)
            if FindingKind.EMPHYSEMA not in self.manifest.withheld:
                air = found.get(FindingKind.PNEUMOTHORAX, ())
                emphysema = (reading.emphysema(sharp_kernel, air),)
                found[FindingKind.EMPHYSEMA] = self._graded(_doubted(emphysema, reading.doubt()))
            found |= by_rule.result()
        findings = tuple(
            finding for kind in FindingKind for finding in found.get(kind) or (reading.not_assessed(kind),)
        )
        enhancement = contrast_phase(anatomy) if not reading.quality() else None
        measured = time.perf_counter()
        return Detection(
            findings=findings,
            quality=(*reading.quality(), *_scale_in_doubt(anatomy.blood_pool)),
            blood_pool=anatomy.blood_pool,
            enhancement=enhancement,
            timings_s={
                "nodules": sought - started,
                "preprocess": prepared - sought,
                "infer": inferred - prepared,
                "measure": measured - inferred,
            },
        )

    def network_grid(self, volume: Volume, lungs: Lungs) -> ModelInput:
        """The volume as the network wants it, with the way back."""
        wanted = self.manifest.input
        return prepare(
            volume,
            lungs,
            spacing_mm=wanted.spacing_mm,
            multiple_of=wanted.multiple_of,
            minimum_hu=wanted.minimum_hu,
            maximum_hu=wanted.maximum_hu,
        )

    def _judged(self, volume: Volume, lungs: Lungs) -> Judged | None:
        """The candidates for nodules; None where this model answers nothing about nodules of that size."""
        network = self.manifest.nodules
        if network is None or FindingKind.PULMONARY_NODULE in self.manifest.withheld:
            return None
        return judge_candidates(self.session, network, volume, lungs)

    def _by_rule(self, anatomy: Anatomy, *, doubt: str | None) -> dict[FindingKind, tuple[Finding, ...]]:
        """The kinds that are measured on the anatomy."""
        found = {kind: rule(anatomy) for kind, rule in RULES.items() if kind not in self.manifest.withheld}
        return {kind: self._graded(_doubted(answer, doubt)) for kind, answer in found.items()}

    def _graded(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        """With the grade of the kind's evidence; what was never tried on labelled studies is simulation at best."""
        graded = []
        for finding in findings:
            evidence = self.manifest.evidence.get(finding.kind)
            grade = EvidenceGrade.C if evidence is None else evidence.grade
            graded.append(
                finding if finding.presence is Presence.NOT_ASSESSED else replace(finding, evidence_grade=grade)
            )
        return tuple(graded)


class _Reading:
    """The network's answer about one volume, read kind by kind."""

    def __init__(
        self, detector: Detector, volume: Volume, lungs: Lungs, grid: ModelInput, looks: tuple[HeadOutputs, HeadOutputs]
    ) -> None:
        self._manifest = detector.manifest
        self._volume = volume
        self._lungs = lungs
        self._grid = grid
        self._looks = looks
        self._outputs = averaged(*looks)
        self._left_label = self._manifest.anatomy.index("lung_left")
        self._right_label = self._manifest.anatomy.index("lung_right")
        self._lung_z_mm = self._lung_height_mm()

    @cached_property
    def _aerated(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Left and right lung on the network grid."""
        return self._grid.from_source(self._lungs.left), self._grid.from_source(self._lungs.right)

    @cached_property
    def blood_pool(self) -> BloodPool:
        return measure_blood_pool(self._grid.hu[0, 0], *self._aerated)

    def anatomy(self, sharp_kernel: bool) -> Anatomy:
        return Anatomy(
            volume=self._volume,
            lungs=self._lungs,
            grid=self._grid,
            labels=self._outputs.anatomy,
            names=self._manifest.anatomy,
            blood_pool=self.blood_pool,
            sharp_kernel=sharp_kernel,
            model_sha256=self._manifest.sha256,
        )

    def not_assessed(self, kind: FindingKind) -> Finding:
        return Finding(
            kind=kind,
            presence=Presence.NOT_ASSESSED,
            tracking_uid=self._tracking_uid(kind),
            evidence_grade=None,
            method="none",
            reason=(self._manifest.not_assessed | self._manifest.withheld)[kind],
        )

    def emphysema(self, sharp_kernel: bool, pneumothorax: Sequence[Finding]) -> Finding:
        """By rule on the HU of the segmented lungs, without the air of an outlined pneumothorax; no network."""
        kind = FindingKind.EMPHYSEMA
        left, right = self._lungs.left, self._lungs.right
        outlined = [f.region for f in pneumothorax if f.lesion is not None and f.region is not None]
        if outlined:
            left, right = left.copy(), right.copy()
        outlined_voxels = 0
        for air in outlined:
            for lung in (left, right):
                outlined_voxels += int((lung[air.box] & air.mask).sum())
                lung[air.box] &= ~air.mask
        measurements = emphysema_indices(self._volume.hu, left, right, self._volume.geometry)
        if not measurements:
            return self.not_assessed(kind)
        presence, reason = _emphysema_presence(measurements[0].value, sharp_kernel)
        if presence is Presence.ABSENT and self._clear_lung_hu > _EXPANDED_LUNG_HU:
            presence, hu = Presence.INDETERMINATE, self._clear_lung_hu
            reason = f"lungs that hold little air hide emphysema; what is clear of opacities measures {hu:.0f} HU"
        low_voxels = int((self._volume.hu[left | right] < EMPHYSEMA_HU).sum()) if outlined else 0
        # An outline misses part of its pneumothorax, but hardly more than it holds.
        if outlined and presence is not Presence.ABSENT and low_voxels <= outlined_voxels:
            presence = Presence.INDETERMINATE
            reason = "; ".join(filter(None, (reason, "air of the pneumothorax may be counted as emphysema")))
        seen = [m.laterality for m in measurements if m.quantity is Quantity.LUNG_VOLUME and m.value >= _SEEN_LUNG_ML]
        if len(seen) < 2:
            unseen = "no lung is" if not seen else "only one lung is"
            reason = "; ".join(filter(None, (reason, f"{unseen} aerated enough to be assessed")))
        region = self._emphysema_region(left | right) if presence is not Presence.ABSENT else None
        return Finding(
            kind=kind,
            presence=presence,
            tracking_uid=self._tracking_uid(kind),
            evidence_grade=None,
            method=f"threshold at -950 HU in the segmented lungs; present from {EMPHYSEMA_PRESENT_LAA_PERCENT:g} %",
            reason=reason,
            site="both lungs" if len(seen) == 2 else f"{seen[0]} lung" if seen else None,
            laterality=Laterality.BILATERAL if len(seen) == 2 else seen[0] if seen else None,
            measurements=measurements,
            region=region,
        )

    def _emphysema_region(self, lung: npt.NDArray[np.bool_]) -> Region | None:
        key = emphysema_slice(self._volume.hu, lung)
        low = (self._volume.hu[key : key + 1] < EMPHYSEMA_HU) & lung[key : key + 1]
        if not low.any():
            return None
        rows, columns = self._volume.hu.shape[1:]
        return region_of(low, (slice(key, key + 1), slice(0, rows), slice(0, columns)), self._volume.geometry)

    def network_findings(self, kind: FindingKind) -> tuple[Finding, ...]:
        """The answer about the study, then one finding for each lesion of it."""
        point = self._manifest.operating_points[kind]
        channel = self._manifest.lesions.index(kind)
        probability = self._outputs.lesions[channel]
        candidates = lesion_candidates(
            probability,
            point.sure_threshold,
            self._grid.geometry.voxel_volume_mm3,
            _smallest_candidate_ml(kind, point),
        )
        kept = self._beside_no_fluid(kind, candidates)
        lesions = self._lesions(kind, kept, probability, point)
        study_probability = point.probability(float(self._outputs.study_logits[channel]))
        presence, reason = _study_presence(study_probability, bool(lesions), point)
        if presence is Presence.INDETERMINATE and not lesions and len(kept) < len(candidates):
            reason = "what was outlined lines a pleural effusion and may be compressed lung"
        candidates = kept
        doubt = self._doubt(channel, point)
        if doubt is None and kind is FindingKind.GROUND_GLASS_OPACITY and presence is Presence.PRESENT:
            if self._is_interstitial(kept):
                doubt, study_probability = _HAZE_OR_PATTERN, min(study_probability, point.absent_probability)
            else:
                doubt = self._breathed_out()
        if doubt is not None:
            presence, reason = Presence.INDETERMINATE, doubt
        if presence is Presence.ABSENT:
            candidates, lesions = (), ()
        parts = tuple(self._as_finding(kind, presence, n, lesion) for n, lesion in enumerate(lesions, start=1))
        if kind in _FOCAL_KINDS:
            reason = "; ".join(filter(None, (reason, few_of_many(len(parts), len(candidates))))) or None
        cut = point.present_probability
        study = self._study_finding(kind, presence, reason, study_probability, cut, parts, len(candidates))
        return (study, *parts)

    def nodules(self, judged: Judged) -> tuple[Finding, ...]:
        """What is found at about 1 mm, and the masses of the whole thorax.

        The study's answer, then the ten largest, then the likeliest of those that may as well be something else.
        """
        kind, network = FindingKind.PULMONARY_NODULE, self._manifest.nodules
        if network is None:
            raise ValueError("this model has no network for nodules")
        least, cut = network.absent_probability, network.present_probability
        masses, mass_cut = self._masses()
        small = outline_nodules(self._volume, self._lungs, judged, least, network.minimum_diameter_mm)
        small = tuple(
            replace(nodule, type=self._uncalcified(nodule.type))
            for nodule in small
            if not any(_mostly_within(nodule.region, m.region) for m in masses)
            and not self._is_beside_lung(nodule.region)
        )
        sure = [
            *(mass for mass in masses if mass.probability >= mass_cut),
            *(nodule for nodule in small if nodule.probability >= cut and not self._is_airless_lung(nodule.region)),
        ]
        doubtful = sorted((n for n in (*masses, *small) if n not in sure), key=lambda n: -n.probability)
        presence, reason = Presence.PRESENT if sure else Presence.ABSENT, None
        if self.quality():
            presence, reason, doubtful = Presence.INDETERMINATE, _UNFAMILIAR, []
        elif doubtful and not sure:
            presence, reason = Presence.INDETERMINATE, _DOUBTFUL_NODULE

        def cut_of(nodule: Nodule) -> float:
            return mass_cut if nodule in masses else cut

        parts = tuple(
            self._nodule_finding(
                presence, n, nodule, cut_of(nodule), self._likeness(nodule) if nodule in masses else None
            )
            for n, nodule in enumerate(sure[:_MAXIMUM_LESIONS], start=1)
        )
        open_parts = tuple(
            self._nodule_finding(Presence.INDETERMINATE, n, nodule, cut_of(nodule), "may be no nodule")
            for n, nodule in enumerate(doubtful[:_MAXIMUM_DOUBTFUL], start=len(parts) + 1)
        )
        reason = "; ".join(filter(None, (reason, few_of_many(len(parts), len(sure))))) or None
        surest = max(sure or doubtful, key=lambda nodule: nodule.probability, default=None)
        probability = surest.probability if surest else 0.0
        study_cut = cut_of(surest) if surest else cut
        study = self._study_finding(kind, presence, reason, probability, study_cut, parts or open_parts, len(sure))
        return (study, *parts, *open_parts)

    def _beside_no_fluid(self, kind: FindingKind, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Without the rim of an effusion: lung compressed by fluid is as dense as an opacity."""
        effusion = FindingKind.PLEURAL_EFFUSION
        if kind not in _OPACITIES or effusion not in self._manifest.lesions or not candidates:
            return tuple(candidates)
        point = self._manifest.operating_points[effusion]
        channel = self._manifest.lesions.index(effusion)
        if point.probability(float(self._outputs.study_logits[channel])) < point.present_probability:
            return tuple(candidates)
        fluid = self._outputs.lesions[channel] >= point.voxel_threshold
        return not_lining(candidates, fluid, round(_LINING_MM / self._grid.geometry.spacing_mm[0]), _LINING_SHARE)

    def _masses(self) -> tuple[tuple[Nodule, ...], float]:
        """Masses by the network for lesions, with the study's score for each, and from which score on they are present.

        Too large for the patches of the network for nodules. An unstable score is held to be none, and so is that of
        what may be vessels.
        """
        kind = FindingKind.PULMONARY_NODULE
        point, channel = self._manifest.operating_points[kind], self._manifest.lesions.index(kind)
        score = point.probability(float(self._outputs.study_logits[channel]))
        if score < point.absent_probability:
            return (), point.present_probability
        if self._doubt(channel, point) is not None:
            score = min(score, point.absent_probability)
        probability = self._outputs.lesions[channel]
        voxel_mm3 = self._grid.geometry.voxel_volume_mm3
        candidates = lesion_candidates(probability, point.sure_threshold, voxel_mm3, _SMALLEST_MASS_ML)
        masses = []
        for candidate in candidates:
            region = self._source_region(kind, (candidate,), probability, point)
            if region is None:
                continue
            found = self._mass_type(region)
            sure = found is NoduleType.GROUND_GLASS or self._holds_soft_tissue(candidate)
            mass = described(self._volume, region, score if sure else min(score, point.absent_probability), found)
            if mass.short_axis_mm >= _LEAST_COMPACT * mass.long_axis_mm:
                masses.append(mass)
        return tuple(masses), point.present_probability

    def _is_beside_lung(self, region: Region) -> bool:
        """Whether most of a region is a great vessel, heart or bone, which bulge into the lung."""
        labels = [n for n, name in enumerate(self._manifest.anatomy) if name in _BESIDE_LUNG]
        return self._lies_mostly_in(np.isin(self._outputs.anatomy, labels), region)

    def _is_airless_lung(self, region: Region) -> bool:
        """Whether most of a region is outlined as consolidation or atelectasis, in which nothing else can be seen."""
        kinds = [self._manifest.lesions.index(kind) for kind in _AIRLESS if kind in self._manifest.lesions]
        mass = self._manifest.lesions.index(FindingKind.PULMONARY_NODULE)
        airless = (self._outputs.lesions[kinds] >= _OPAQUE).any(axis=0) & (self._outputs.lesions[mass] < _OPAQUE)
        return self._lies_mostly_in(airless, region)

    def _likeness(self, mass: Nodule) -> str | None:
        """What else a mass may be: dense lung fills a round part of it as a tumour does."""
        consolidation = FindingKind.CONSOLIDATION
        if consolidation not in self._manifest.lesions or consolidation in self._manifest.withheld:
            return None
        outlined = self._outputs.lesions[self._manifest.lesions.index(consolidation)] >= _OPAQUE
        return _MASS_OR_CONSOLIDATION if self._lies_mostly_in(outlined, mass.region) else None

    def _lies_mostly_in(self, mask: npt.NDArray[np.bool_], region: Region) -> bool:
        """Whether most of a region of the source grid is in a mask of the network's."""
        return bool(self._grid.to_source(mask.astype(np.float32), region.box)[region.mask].mean() > 0.5)

    def _holds_soft_tissue(self, candidate: Candidate) -> bool:
        """Whether there is a ball of it, as vessels side by side have none; contrast medium makes them brighter."""
        blood = self.blood_pool
        brightest = (blood.hu + _SOFT_TISSUE_HU) / 2 if blood.contrast and blood.hu is not None else np.inf
        radius_mm = soft_tissue_radius_mm(
            candidate, self._grid.hu[0, 0], self._grid.geometry.spacing_mm, float(brightest)
        )
        return radius_mm >= _LEAST_MASS_RADIUS_MM

    def _mass_type(self, region: Region) -> NoduleType:
        """Its type by HU; vessels with contrast inside a mass are not calcium."""
        found = type_of(self._volume, region.box, region.mask)
        return NoduleType.SOLID if found is NoduleType.CALCIFIED else found

    def _uncalcified(self, found: NoduleType) -> NoduleType:
        """With contrast what enhances is as bright as calcium, which would be called benign."""
        enhances = self.blood_pool.contrast is not False
        return NoduleType.SOLID if enhances and found is NoduleType.CALCIFIED else found

    def _nodule_finding(
        self, presence: Presence, number: int, nodule: Nodule, cut: float, reason: str | None = None
    ) -> Finding:
        kind = FindingKind.PULMONARY_NODULE
        side = self._side_of(self._on_grid(nodule.region))
        return Finding(
            kind=kind,
            presence=presence,
            tracking_uid=self._tracking_uid(kind, str(number)),
            evidence_grade=self._manifest.evidence[kind].grade,
            method=_NETWORK_METHOD,
            probability=nodule.probability,
            operating_point=cut,
            reason=reason,
            laterality=side,
            site=f"{self._site(kind, side, nodule.region)}, {_words(nodule)}",
            lesion=number,
            measurements=self._measurements(kind, nodule.region),
            region=nodule.region,
        )

    def _side_of(self, voxels: npt.NDArray[np.intp]) -> Laterality:
        return side_of(voxels, self._outputs.anatomy, self._left_label, self._right_label)

    def _on_grid(self, region: Region) -> npt.NDArray[np.intp]:
        """(n, 3) indices into the network grid of the voxels of a region of the source grid."""
        source = np.argwhere(region.mask) + [part.start for part in region.box]
        places = self._grid.geometry.patient_to_index(self._volume.geometry.index_to_patient(source))
        return np.rint(places).astype(np.intp).clip(0, np.array(self._outputs.anatomy.shape) - 1)

    def _doubt(self, channel: int, point: OperatingPoint) -> str | None:
        """Why no answer to this kind can be trusted, whatever the score; None where nothing speaks against it."""
        if self.quality():
            return _UNFAMILIAR
        low, high = sorted(point.probability(float(look.study_logits[channel])) for look in self._looks)
        if high - low > MAXIMUM_SPREAD:
            return f"the score is not stable: {low:.2f} and {high:.2f} when the image is moved by one voxel"
        return None

    def _is_interstitial(self, haze: Sequence[Candidate]) -> bool:
        """Whether an interstitial pattern is present and seen in nearly all of what is outlined as ground glass."""
        kind = FindingKind.INTERSTITIAL_ABNORMALITY
        if kind not in self._manifest.lesions or kind in self._manifest.withheld:
            return False
        point, channel = self._manifest.operating_points[kind], self._manifest.lesions.index(kind)
        if point.probability(float(self._outputs.study_logits[channel])) < point.present_probability:
            return False
        pattern = self._outputs.lesions[channel]
        seen = np.concatenate([pattern[candidate.box][candidate.mask] >= _ALSO_SEEN for candidate in haze])
        return bool(seen.mean() >= _CONTESTED)

    def _breathed_out(self) -> str | None:
        """Why haze may be lung with little air in it: the lung beside all opacities is dense, too."""
        hu = self._clear_lung_hu
        if hu <= _EXPANDED_LUNG_HU:
            return None
        return f"lungs that hold little air look like ground glass; what is clear of it measures {hu:.0f} HU"

    @cached_property
    def _clear_lung_hu(self) -> float:
        """Median of the lungs beside all opacities, minus infinity where there is nothing beside them."""
        left, right = self._aerated
        opaque = (self._outputs.lesions >= _OPAQUE).any(axis=0)
        clear = self._grid.hu[0, 0][(left | right) & ~opaque]
        return float(np.median(clear)) if clear.size else -np.inf

    def doubt(self) -> str | None:
        """Why nothing that is measured in this image can be relied on; None where nothing speaks against it."""
        if self.quality():
            return _UNFAMILIAR
        return self.blood_pool.evidence if self.blood_pool.is_scale_in_doubt else None

    def quality(self) -> tuple[QualityIssue, ...]:
        return unfamiliar(self._manifest, self._outputs)

    def _lesions(
        self,
        kind: FindingKind,
        candidates: Sequence[Candidate],
        probability: npt.NDArray[np.float32],
        point: OperatingPoint,
    ) -> tuple["_Lesion", ...]:
        """Focal kinds: one lesion a candidate. Others: the candidates of one side together; the heart sac has none."""
        sides = [self._side_of(candidate.voxels) for candidate in candidates]
        groups: Sequence[tuple[Laterality | None, Sequence[Candidate]]]
        if kind is FindingKind.PERICARDIAL_EFFUSION:
            groups = [(None, candidates)]
        elif kind in _FOCAL_KINDS:
            groups = [(side, (c,)) for side, c in zip(sides, candidates, strict=True)][:_MAXIMUM_LESIONS]
        else:
            groups = [
                (wanted, tuple(c for side, c in zip(sides, candidates, strict=True) if side is wanted))
                for wanted in (Laterality.RIGHT, Laterality.LEFT)
            ]
        lesions = []
        for side, group in groups:
            if sum(c.volume_ml for c in group) < point.minimum_volume_ml or not group:
                continue
            region = self._source_region(kind, group, probability, point)
            if region is not None:
                lesions.append(_Lesion(side, max(c.peak for c in group), region))
        return tuple(lesions)

    def _source_region(
        self,
        kind: FindingKind,
        group: Sequence[Candidate],
        probability: npt.NDArray[np.float32],
        point: OperatingPoint,
    ) -> Region | None:
        """The candidates on the source grid, with what is less sure around them; None where nothing is left.

        The border of a nodule, and the fluid in the heart's sac, by their HU.
        """
        mask, threshold = joined_mask(group, probability.shape), point.voxel_threshold
        if threshold < point.sure_threshold:
            mask = ndimage.binary_propagation(mask, np.ones((3, 3, 3), np.bool_), probability >= threshold)
        (extent,) = ndimage.find_objects(mask.astype(np.int8))
        box = self._grid.source_box(extent)
        # One voxel more than the candidates, so that interpolation reaches their border.
        near = ndimage.binary_dilation(mask)
        inside = self._grid.to_source(np.where(near, probability, 0.0), box) >= threshold
        if kind is FindingKind.PERICARDIAL_EFFUSION:
            inside &= self._grid.to_source(self._fluid_in(mask).astype(np.float32), box) >= 0.5
        if kind is FindingKind.PULMONARY_NODULE:
            inside = self._solid_border(inside, box)
        return region_of(inside, box, self._volume.geometry) if inside.any() else None

    def _fluid_in(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Of an outlined sac, on the network's grid, what is darker than the heart beside it, whose muscle it takes in.

        All of it where hardly anything is: blood in the sac is as dense as the heart.
        """
        tissue_hu = min(_MUSCLE_HU, self.blood_pool.hu if self.blood_pool.hu is not None else _MUSCLE_HU)
        hu = ndimage.gaussian_filter(self._grid.hu[0, 0], _FLUID_SMOOTHING_VOXELS)
        fluid = mask & (hu < (_FLUID_HU + tissue_hu) / 2) & (hu > _FAT_HU)
        return fluid if fluid.sum() >= _LEAST_FLUID * mask.sum() else mask

    def _solid_border(self, inside: npt.NDArray[np.bool_], box: tuple[slice, slice, slice]) -> npt.NDArray[np.bool_]:
        """A solid nodule ends where its HU fall halfway to lung; one that is mostly ground glass keeps its outline."""
        dense = self._volume.hu[box] > _SOLID_BORDER_HU
        if not inside.any() or (dense & inside).sum() < 0.3 * inside.sum():
            return inside
        return dense & ndimage.binary_dilation(inside)

    def _as_finding(self, kind: FindingKind, presence: Presence, number: int, lesion: "_Lesion") -> Finding:
        region = lesion.region
        return Finding(
            kind=kind,
            presence=presence,
            tracking_uid=self._tracking_uid(kind, str(number)),
            evidence_grade=self._manifest.evidence[kind].grade,
            method=_NETWORK_METHOD,
            probability=lesion.peak,
            operating_point=self._manifest.operating_points[kind].voxel_threshold,
            laterality=lesion.side,
            site=self._site(kind, lesion.side, region),
            lesion=number,
            measurements=self._measurements(kind, region),
            region=region,
        )

    def _measurements(self, kind: FindingKind, region: Region) -> tuple[Measurement, ...]:
        geometry = self._volume.geometry
        mm3 = volume_mm3(region, geometry)
        mean, deviation = attenuation(self._volume.hu, region)
        if kind in _FOCAL_KINDS:
            long_mm, short_mm = axial_axes_mm(region, geometry)
            return (
                Measurement(quantity=Quantity.LONG_AXIS, value=long_mm, unit="mm"),
                Measurement(quantity=Quantity.SHORT_AXIS, value=short_mm, unit="mm"),
                Measurement(quantity=Quantity.VOLUME, value=mm3, unit="mm3"),
                mean,
                deviation,
            )
        volume = Measurement(quantity=Quantity.VOLUME, value=mm3 / 1000, unit="ml")
        if kind in _PER_SIDE_KINDS or kind is FindingKind.PERICARDIAL_EFFUSION:
            depth = maximum_thickness_mm(region, geometry)
            return (volume, Measurement(quantity=Quantity.MAXIMUM_DEPTH, value=depth, unit="mm"), mean)
        return (volume, mean)

    def _study_finding(
        self,
        kind: FindingKind,
        presence: Presence,
        reason: str | None,
        probability: float,
        cut: float,
        lesions: Sequence[Finding],
        count: int,
    ) -> Finding:
        sides = {lesion.laterality for lesion in lesions if lesion.laterality}
        largest = max(lesions, key=_size, default=None)
        return Finding(
            kind=kind,
            presence=presence,
            tracking_uid=self._tracking_uid(kind),
            evidence_grade=self._manifest.evidence[kind].grade,
            method=_NETWORK_METHOD,
            probability=probability,
            operating_point=cut,
            reason=reason,
            laterality=(Laterality.BILATERAL if len(sides) > 1 else next(iter(sides))) if sides else None,
            site=largest.site if largest and len(lesions) == 1 else None,
            measurements=self._totals(kind, lesions, count),
            region=largest.region if largest else None,
        )

    def _totals(self, kind: FindingKind, lesions: Sequence[Finding], count: int) -> tuple[Measurement, ...]:
        if not lesions or (kind in _FOCAL_KINDS and not count):
            return ()
        if kind in _FOCAL_KINDS:
            return (Measurement(quantity=Quantity.LESION_COUNT, value=float(count), unit="1"),)
        ml = sum(_size(lesion) for lesion in lesions)
        total = Measurement(quantity=Quantity.VOLUME, value=ml, unit="ml")
        if kind not in _OPACITIES:
            return (total,)
        percent = 100.0 * ml / max(self._lung_space_ml(), ml)
        return (total, Measurement(quantity=Quantity.FRACTION_OF_LUNG, value=percent, unit="%"))

    def _lung_space_ml(self) -> float:
        """Both lung spaces of the anatomy head, or the aerated lungs where those are larger."""
        space = np.isin(self._outputs.anatomy, (self._left_label, self._right_label)).sum()
        aerated = self._lungs.voxels_by_slice.sum() * self._volume.geometry.voxel_volume_mm3
        return max(float(space) * self._grid.geometry.voxel_volume_mm3, float(aerated)) / 1000

    def _site(self, kind: FindingKind, side: Laterality | None, region: Region) -> str:
        if kind in _PER_SIDE_KINDS:
            return f"{side} pleural space"
        if kind is FindingKind.PERICARDIAL_EFFUSION:
            return "pericardium"
        return f"{side} lung, {lung_zone(region.centre_mm, self._lung_z_mm)}"

    def _lung_height_mm(self) -> tuple[float, float]:
        geometry = self._volume.geometry
        last, rows, columns = (n - 1 for n in geometry.shape)
        low, high = sorted(float(geometry.index_to_patient((z, rows / 2, columns / 2))[2]) for z in (0, last))
        return lung_z_mm(self._lungs, geometry) or (low, high)

    def _tracking_uid(self, *parts: str) -> str:
        series = (self._volume.series_instance_uid, self._manifest.sha256)
        return derive_uid("tracking", *series, *map(str, parts))


def _doubted(findings: Sequence[Finding], doubt: str | None) -> tuple[Finding, ...]:
    """What was measured on an image that the model does not know, or in HU that are none: nobody should rely on it."""
    return tuple(
        finding
        if doubt is None or finding.presence is Presence.NOT_ASSESSED
        else replace(
            finding,
            presence=Presence.INDETERMINATE,
            reason="; ".join(dict.fromkeys(filter(None, (doubt, finding.reason)))),
        )
        for finding in findings
    )


def _scale_in_doubt(blood: BloodPool) -> tuple[QualityIssue, ...]:
    if not blood.is_scale_in_doubt:
        return ()
    measured, limit = (blood.fat_hu, MOST_FAT_HU) if blood.is_fat_too_dense else (blood.hu, LEAST_BLOOD_HU)
    return (QualityIssue(check="hu", verdict=Verdict.WARN, message=blood.evidence, measured=measured, limit=limit),)


def unfamiliar(manifest: ModelManifest, outputs: HeadOutputs) -> tuple[QualityIssue, ...]:
    """A warning where the image lies farther from those the model knows than the model's limit."""
    if manifest.familiarity is None or outputs.strangeness is None or outputs.strangeness <= manifest.familiarity.limit:
        return ()
    return (
        QualityIssue(
            check="familiarity",
            verdict=Verdict.WARN,
            message="the image is unlike those the model knows; its answers are not relied on",
            measured=outputs.strangeness,
            limit=manifest.familiarity.limit,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Lesion:
    side: Laterality | None
    peak: float
    region: Region


def _words(nodule: Nodule) -> str:
    """Its type, and whether it is large enough for a mass."""
    return f"{nodule.type} mass" if nodule.mean_diameter_mm > LARGEST_NODULE_MM else nodule.type.value


def _mostly_within(region: Region, other: Region) -> bool:
    return shared_voxels(region, other) > 0.5 * region.mask.sum()


def _size(finding: Finding) -> float:
    return next((m.value for m in finding.measurements if m.quantity is Quantity.VOLUME), 0.0)


def _smallest_candidate_ml(kind: FindingKind, point: OperatingPoint) -> float:
    """Specks below this are noise; a diffuse kind may be made of parts smaller than what makes it present."""
    return point.minimum_volume_ml if kind in _FOCAL_KINDS else point.minimum_volume_ml / 10


def _study_presence(probability: float, has_lesions: bool, point: OperatingPoint) -> tuple[Presence, str | None]:
    """The study's answer from the calibrated score and what could be outlined; the two must agree."""
    if probability < point.absent_probability:
        return Presence.ABSENT, None
    if has_lesions and probability >= point.present_probability:
        return Presence.PRESENT, None
    if probability >= point.present_probability:
        return Presence.INDETERMINATE, "the study score is high but no lesion large enough could be outlined"
    outlined = "" if has_lesions else "; nothing large enough could be outlined"
    return Presence.INDETERMINATE, f"the study score lies between the absent and present operating points{outlined}"


def _emphysema_presence(laa_percent: float, sharp_kernel: bool) -> tuple[Presence, str | None]:
    if laa_percent < EMPHYSEMA_ABSENT_LAA_PERCENT:
        return Presence.ABSENT, None
    if sharp_kernel:
        return Presence.INDETERMINATE, "a sharp kernel raises the low attenuation area"
    if laa_percent < EMPHYSEMA_PRESENT_LAA_PERCENT:
        return Presence.INDETERMINATE, "the low attenuation area lies between 3 and 5 %"
    return Presence.PRESENT, None
