"""The report: the record of one analysis, from which every other output is made.

The classes are the published JSON form (`report.schema.json`); `dicom_gateway.report.compose` fills them from the
values the pipeline produced. No patient identity stands in a report: it stays in the source headers.
"""

import hashlib
import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

DISCLAIMER = "Research use only. Not a medical device. Automated result, not verified by a physician."
VERIFIED_DISCLAIMER = "Research use only. Not a medical device. Automated result, verified by the person it names."

Answer = Literal["present", "absent", "indeterminate", "not_assessed"]


# What a DICOM PN or LO of one value holds (PS3.5 6.2), whichever is shorter.
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=r"^[^\\\x00-\x1f\x7f]+$")
]
# One line, so that it is the same in every standard.
Comment = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")
]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReportedModel(_Record):
    """The model that answered; `sha256` is of the ONNX file's bytes."""

    name: str
    version: str
    sha256: str


class ReportedQuality(_Record):
    """One quality check with what it measured and the limit it was held against."""

    check: str
    verdict: Literal["pass", "warn", "reject"]
    message: str
    measured: float | None = None
    limit: float | None = None


class RejectedSeries(_Record):
    """A series of the study that was not analysed, and why."""

    series_instance_uid: str
    series_number: int | None = None
    modality: str | None = None
    series_description: str | None = None
    instance_count: int
    reason: str


class AnalysedSeries(_Record):
    """What was analysed. Spacing is (slice, row, column) in mm; `contrast` None where it could not be told.

    `contrast_phase` is a value of models.contrast_phase.ContrastPhase where contrast was given; records of versions
    before it have none.
    """

    series_number: int | None = None
    series_description: str | None = None
    slice_count: int
    spacing_mm: tuple[float, float, float]
    slice_thickness_mm: float | None = None
    convolution_kernel: str | None = None
    contrast: bool | None = None
    contrast_evidence: str | None = None
    contrast_phase: str | None = None


class ReportedMeasurement(_Record):
    """A number with its UCUM unit; `quantity` is a value of models.findings.Quantity."""

    quantity: str
    value: float
    unit: str
    laterality: str | None = None


class Verdict(_Record):
    """What a person made of one answer; `automated` and `automated_probability` are those of the model before it.

    An answer is edited where the person says another one, but rejected where the model's was not absent and theirs is.
    """

    decision: Literal["confirmed", "rejected", "edited"]
    automated: Answer
    automated_probability: float | None = None


class Verification(_Record):
    """Who vouches for a report, since it was created: a person's name (PS3.5 6.2.1), organisation, and own words."""

    observer_name: Name
    organization: Name
    comment: Comment | None = None


class ReportedFinding(_Record):
    """One answer: about a kind in the whole study (`lesion` null) or about one lesion of it (1, 2, ...).

    `key_image` names a PNG beside the report; `key_slice` is the 0-based index of the analysed slice,
    `key_frame_number` the 1-based frame of an Enhanced CT; `centre_mm` is LPS. `verdict` stands in a verified report
    only, and there with every answer that the model or the person gave.
    """

    kind: str
    presence: Answer
    probability: float | None
    operating_point: float | None
    reason: str | None
    laterality: str | None
    site: str | None
    evidence_grade: Literal["A", "B", "C"] | None
    method: str
    tracking_uid: str
    lesion: int | None
    measurements: tuple[ReportedMeasurement, ...]
    key_sop_instance_uid: str | None
    key_frame_number: int | None
    key_slice: int | None
    key_image: str | None
    centre_mm: tuple[float, float, float] | None
    verdict: Verdict | None = None

    @property
    def is_by_a_person(self) -> bool:
        """Whether it is the answer of who verified the report, against that of the model."""
        return self.verdict is not None and self.verdict.automated != self.presence


class SupersededReport(_Record):
    """The earlier report of the same study in whose place another one stands; what the UIDs of its results follow from.

    `marked` says whether it had outlines on key slices, and so an SR of marks; `verified`, whether a person vouched
    for it.
    """

    revision: int
    report_uid: str
    content_sha256: str
    marked: bool
    verified: bool = False


class Report(_Record):
    """The whole answer about one study. `outcome` is "refused" when no series passed; `refusal` then says why.

    `supersedes` is null for a first report, and where no earlier one was ever finished. `urgent` holds the kinds that
    are present and cannot wait, by what the site's settings were when the study was analysed. `verification` is null
    until a person has verified it, which makes another revision.
    """

    schema_version: Literal["1.0"] = "1.0"
    disclaimer: str = DISCLAIMER
    report_uid: str
    study_instance_uid: str
    series_instance_uid: str | None
    revision: int
    supersedes: SupersededReport | None = None
    verification: Verification | None = None
    created: datetime
    software_version: str
    model: ReportedModel
    outcome: Literal["reported", "refused"]
    refusal: str | None
    analysed_series: AnalysedSeries | None
    quality: tuple[ReportedQuality, ...]
    rejected_series: tuple[RejectedSeries, ...]
    unreadable_file_count: int
    findings: tuple[ReportedFinding, ...]
    urgent: tuple[str, ...] = ()
    timings_s: dict[str, float]

    @property
    def content_sha256(self) -> str:
        """Digest of all that the report says: of everything but the seconds that the analysis took."""
        # Records from before these were kept have the digest that they had then.
        silent: dict[str, Any] = {"timings_s": True}
        silent |= {name: True for name in ("supersedes", "urgent", "verification") if not getattr(self, name)}
        if self.supersedes is not None and not self.supersedes.verified:
            silent["supersedes"] = {"verified"}
        if self.analysed_series is not None and self.analysed_series.contrast_phase is None:
            silent["analysed_series"] = {"contrast_phase"}
        if self.verification is None:
            silent["findings"] = {"__all__": {"verdict"}}
        elif self.verification.comment is None:
            silent["verification"] = {"comment"}
        return hashlib.sha256(self.model_dump_json(exclude=silent).encode()).hexdigest()


def report_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of report.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema()}


if __name__ == "__main__":
    print(json.dumps(report_schema(), indent=2))
