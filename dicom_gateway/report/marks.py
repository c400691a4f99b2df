"""Outlines on the key slices as a Comprehensive SR of TID 1410 groups alone, for viewers that draw those.

It is a series of its own: OHIF draws only groups that have coordinates and trips over others. A group has the tracking
UID of its finding in the findings SR, by which a viewer joins the two; the numbers stand there.
"""

import numpy as np
from highdicom.sr import (
    ComprehensiveSR,
    ImageRegion,
    MeasurementReport,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    SourceImageForRegion,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian

from dicom_gateway.report import codes
from dicom_gateway.report.content import Report
from dicom_gateway.report.edition import Edition
from dicom_gateway.report.instance import (
    finish,
    instance_arguments,
    predecessors,
    private_coding_scheme,
    state_verification,
)
from dicom_gateway.report.key_slices import Mark, marks_of
from dicom_gateway.report.segmentation import tracking_identifier
from dicom_gateway.report.sr_items import (
    algorithm_identification,
    concept,
    evaluations,
    finding_site,
    image_library,
    insert_before_measurements,
    language_of,
    nameless,
    observation_context,
)
from dicom_gateway.report.stored import StoredResult
from imaging.contour import Polygon
from models.findings import FindingKind

SERIES_NUMBER = 9004
SERIES_DESCRIPTION = "AI chest CT marks"


def encode_marks(result: StoredResult) -> tuple[Dataset, ...]:
    """Comprehensive SR with a TID 1410 group for each outline on a key slice; none where nothing is outlined.

    A finding of several parts has a group for each, under one tracking UID. Holes are not drawn. The marks of the
    revision that the report supersedes are named as its predecessor (PS3.3 C.17.2).
    """
    report, edition = result.report, result.edition
    was_marked = report.supersedes is not None and report.supersedes.marked
    earlier = predecessors(result, ComprehensiveSRStorage, "MARKS", "1") if was_marked else []
    marks = marks_of(result)
    if not marks:
        return ()
    content = MeasurementReport(
        observation_context=observation_context(report),
        procedure_reported=concept(codes.CT_CHEST),
        imaging_measurements=[_group(mark, polygon, report, edition) for mark in marks for polygon in mark.polygons],
        title=concept(codes.IMAGING_MEASUREMENT_REPORT),
        language_of_content_item_and_descendants=language_of(edition.language),
    )
    # Older releases of OHIF read no report without one.
    sources = {str(mark.source.SOPInstanceUID): mark.source for mark in marks}
    insert_before_measurements(content[0].ContentSequence, [image_library(list(sources.values()))])
    ds = ComprehensiveSR(
        evidence=nameless(result.headers),
        content=content,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=earlier or None,
        coding_schemes=[private_coding_scheme()],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **instance_arguments(result, "MARKS", SERIES_NUMBER),
    )
    state_verification(ds, result)
    return (finish(ds, result, SERIES_DESCRIPTION),)


def _group(
    mark: Mark, polygon: Polygon, report: Report, edition: Edition
) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    finding, source = mark.finding, mark.source
    kind = FindingKind(finding.kind)
    frames = None if mark.frame_number is None else [mark.frame_number]
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=finding.tracking_uid, identifier=tracking_identifier(finding)),
        referenced_region=ImageRegion(
            graphic_type="POLYLINE",
            graphic_data=polygon.astype(np.float32),
            source_image=SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID, frames),
        ),
        finding_type=concept(edition.finding_code(kind)),
        finding_sites=[finding_site(kind, finding.laterality)],
        algorithm_id=algorithm_identification(finding, report, edition.language),
        qualitative_evaluations=evaluations(finding),
    )
