"""`model.json`: what the weights beside it are, what they answer, and what stands behind each answer."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import ManifestMismatch
from models.findings import EvidenceGrade, FindingKind

MANIFEST_NAME = "model.json"

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Interval = tuple[Probability, Probability]
Text = Annotated[str, Field(min_length=1)]
WeightsName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+\.onnx$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpecification(_Record):
    """The grid the network wants: isotropic, axis-aligned LPS, (1, 1, D, H, W) float32 in HU.

    Every axis is a multiple of `multiple_of`, padded with `minimum_hu`; values are clipped to the HU range.
    """

    name: Text
    spacing_mm: Positive
    multiple_of: Annotated[int, Field(gt=0)]
    minimum_hu: float
    maximum_hu: float


class OperatingPoint(_Record):
    """Where probabilities of one kind are cut.

    A voxel belongs to the finding at `voxel_threshold`, where that is below one half only if it hangs together with
    voxels that reach one half; a finding of which less than `minimum_volume_ml` reaches both does not count.
    The study is present at `present_probability` and above, absent below `absent_probability`,
    indeterminate between. `chosen_on` says which data decided it.
    """

    voxel_threshold: Probability
    minimum_volume_ml: NotNegative
    present_probability: Probability
    absent_probability: Probability
    temperature: Positive
    bias: Annotated[float, Field(allow_inf_nan=False)]
    chosen_on: Text

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.absent_probability > self.present_probability:
            raise ValueError("absent_probability is above present_probability")
        return self

    @property
    def sure_threshold(self) -> float:
        """Where a voxel makes a finding: what only extends one, below one half, makes none."""
        return max(0.5, self.voxel_threshold)

    def probability(self, logit: float) -> float:
        """Calibrated probability of a study logit: sigmoid((logit + bias) / temperature)."""
        scaled = (logit + self.bias) / self.temperature
        return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, scaled))))


class Agreement(_Record):
    """Measured minus true value of one quantity (Bland and Altman): mean, and mean -/+ 1.96 standard deviations."""

    quantity: Text
    unit: Text
    n: Count
    bias: Finite
    lower: Finite
    upper: Finite


class LesionTrial(_Record):
    """Single lesions, of every size that the truth names: how many there were, how many were described, and false
    descriptions per study. In a row by size only lesions of that size, but false descriptions of every size.

    `competition_metric` is the mean sensitivity at 1/8 to 8 false descriptions a study, `sensitivity_at_two` that at 2.
    """

    lesions: Count
    found: Count
    false_per_study: NotNegative
    competition_metric: Probability | None = None
    sensitivity_at_two: Probability | None = None


class OutlineTrial(_Record):
    """Overlap with known outlines: how many studies, mean and least Dice coefficient."""

    n: Count
    mean_dice: Probability
    least_dice: Probability


class SliceTrial(_Record):
    """Slices through the lungs whose label is known: those with the finding that its outline reaches, those without
    that it leaves alone. Neighbouring slices are alike, so there is no interval."""

    positive: Count
    negative: Count
    sensitivity: Probability | None
    specificity: Probability | None


class CalibrationTrial(_Record):
    """Whether 0.8 means 0.8: how far the probabilities of `n` studies lie from the share with the finding.

    `expected_error` is the mean distance over ten bins of equal width (Naeini et al., AAAI 2015), `brier` the mean
    squared error.
    """

    n: Count
    expected_error: Probability
    brier: Probability


class Trial(_Record):
    """One measured row of evidence. Counts are studies that got an answer; rates are None where there were none.

    An indeterminate answer is neither a find nor a false alarm; `indeterminate` counts them, `indeterminate_positive`
    those about studies with the finding, `not_assessed` the studies that got no answer. Intervals are of 95 %.
    """

    data: Text
    simulated: bool
    positive: Count
    negative: Count
    sensitivity: Probability | None
    specificity: Probability | None
    auroc: Probability | None = None
    note: str = ""
    sensitivity_interval: Interval | None = None
    specificity_interval: Interval | None = None
    auroc_interval: Interval | None = None
    indeterminate: Count = 0
    indeterminate_positive: Count = 0
    not_assessed: Count = 0
    agreement: tuple[Agreement, ...] = ()
    lesions: LesionTrial | None = None
    outlines: OutlineTrial | None = None
    slices: SliceTrial | None = None
    calibration: CalibrationTrial | None = None


class Evidence(_Record):
    """What is known about the answers to one kind: its grade and the trials behind the grade.

    `by_size` holds the same for its lesions of one size, as "mass above 30 mm"; empty where that was not measured.
    """

    grade: EvidenceGrade
    trials: tuple[Trial, ...]
    by_size: dict[Text, tuple[Trial, ...]] = {}

    @property
    def rows(self) -> tuple[tuple[str, Trial], ...]:
        """Every trial with the size it is of, "" for the kind as a whole."""
        sized = ((size, trial) for size, trials in self.by_size.items() for trial in trials)
        return (*(("", trial) for trial in self.trials), *sized)


class Familiarity(_Record):
    """Above `limit` of the graph's `strangeness` an image is unlike those the model knows; `fitted_on` names those."""

    limit: Positive
    fitted_on: Text


class NoduleNetwork(_Record):
    """The second network: patches of nodule candidates, uint8 (n, 2, 24, 24, 24) named `input`, to logits (n,).

    A candidate is described at `present_probability` and above, from `minimum_diameter_mm` up; where none reaches
    it, one at `absent_probability` or above leaves the study indeterminate. `chosen_on` says what decided them.
    """

    weights: WeightsName
    sha256: Digest
    input: Text
    minimum_diameter_mm: Positive
    present_probability: Probability
    absent_probability: Probability
    temperature: Positive
    bias: Finite
    chosen_on: Text


class TrainingSource(_Record):
    """Data the weights were trained or checked with."""

    name: Text
    licence: Text
    use: Literal["training", "validation"]


class ModelManifest(_Record):
    """The whole of `model.json`.

    `anatomy[i]` is class i of the anatomy head, `lesions[k]` channel k of the lesion head and of the study
    logits. Every other kind has its reason in `not_assessed`; a rule on HU may still answer it, and its evidence
    stands here, too. A kind in `withheld` is not answered, since its own evidence speaks against it. With `nodules`
    these are found by a network of their own instead of a lesion channel.
    """

    name: Text
    version: Text
    weights: WeightsName
    sha256: Digest
    input: InputSpecification
    anatomy: Annotated[tuple[Text, ...], Field(min_length=2)]
    lesions: Annotated[tuple[FindingKind, ...], Field(min_length=1)]
    calibration: Text
    operating_points: dict[FindingKind, OperatingPoint]
    evidence: dict[FindingKind, Evidence]
    not_assessed: dict[FindingKind, Text]
    withheld: dict[FindingKind, Text] = {}
    familiarity: Familiarity | None = None
    nodules: NoduleNetwork | None = None
    training_data: tuple[TrainingSource, ...]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        lesions = set(self.lesions)
        if len(lesions) != len(self.lesions) or len(set(self.anatomy)) != len(self.anatomy):
            raise ValueError("a class is named twice")
        if set(self.operating_points) != lesions:
            raise ValueError("operating_points must name exactly the lesion kinds")
        if not set(self.evidence) >= lesions:
            raise ValueError("evidence must name every lesion kind")
        if not set(self.withheld) <= set(self.evidence):
            raise ValueError("withheld may name kinds with evidence only")
        if set(self.not_assessed) != set(FindingKind) - lesions:
            raise ValueError("not_assessed must name every kind that is not a lesion kind, and no other")
        return self


def load_manifest(folder: Path) -> ModelManifest:
    """The checked manifest of a model folder. Raises ManifestMismatch naming every field that is wrong."""
    path = folder / MANIFEST_NAME
    try:
        return ModelManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ManifestMismatch(f"no readable {MANIFEST_NAME} in {folder}") from error
    except ValidationError as error:
        fields = "; ".join(
            f"{'.'.join(map(str, entry['loc'])) or MANIFEST_NAME}: {entry['msg']}" for entry in error.errors()
        )
        raise ManifestMismatch(f"{path} is no valid manifest: {fields}") from error
