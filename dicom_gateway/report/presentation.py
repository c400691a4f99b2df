"""Outlines and names on the key slices as Grayscale Softcopy Presentation States, for PACS workstations."""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
from highdicom import ModalityLUTTransformation
from highdicom.content import ReferencedImageSequence
from highdicom.pr import (
    AnnotationUnitsValues,
    GraphicAnnotation,
    GraphicLayer,
    GraphicObject,
    GraphicTypeValues,
    GrayscaleSoftcopyPresentationState,
    SoftcopyVOILUTTransformation,
    TextObject,
)
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_gateway.report import codes
from dicom_gateway.report.instance import described, finish, instance_arguments
from dicom_gateway.report.key_images import window_for
from dicom_gateway.report.key_slices import Mark, marks_of
from dicom_gateway.report.language import Language
from dicom_gateway.report.outlines import SliceGrid
from dicom_gateway.report.segmentation import tracking_identifier
from dicom_gateway.report.sr_items import concept
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.wording import finding_title, key_measurements
from models.findings import FindingKind

SERIES_NUMBER = 9006
SERIES_DESCRIPTION = "AI chest CT annotations"
CONTENT_LABEL = "AI_FINDINGS"
_LAYER = "AI_FINDINGS"
_SHORT_TEXT = 1024


def encode_presentation(result: StoredResult) -> tuple[Dataset, ...]:
    """Presentation states with an outline and a line of text for each outlined finding; none where there is none.

    One for all key slices in its kind's window, and another for those with another rescaling: a state has one.
    """
    grid = result.outlines.grid
    marks = marks_of(result)
    if grid is None or not marks:
        return ()
    by_rescaling: dict[tuple[float, float], list[Mark]] = {}
    for mark in marks:
        slope, intercept = grid.rescale[mark.slice_index].tolist()
        by_rescaling.setdefault((slope, intercept), []).append(mark)
    return tuple(
        _state(result, grid, shown, rescaling, number)
        for number, (rescaling, shown) in enumerate(by_rescaling.items(), start=1)
    )


def _state(
    result: StoredResult, grid: SliceGrid, marks: Sequence[Mark], rescaling: tuple[float, float], number: int
) -> Dataset:
    language = result.edition.language
    description = described(SERIES_DESCRIPTION, result.report.verification, language)
    images = {str(mark.source.SOPInstanceUID): _image(mark.source, grid) for mark in marks}
    layer = GraphicLayer(_LAYER, order=1, description=description, display_color=None)
    slope, intercept = rescaling
    shared = instance_arguments(result, "PR", SERIES_NUMBER, number)
    # Its IOD has a date of its own in place of these; finish() sets that.
    del shared["content_date"], shared["content_time"]
    ds = GrayscaleSoftcopyPresentationState(
        referenced_images=list(images.values()),
        content_label=CONTENT_LABEL,
        content_description=description,
        concept_name=concept(codes.OF_INTEREST),
        graphic_layers=[layer],
        graphic_annotations=[
            _annotation(mark, images[str(mark.source.SOPInstanceUID)], grid, layer, language) for mark in marks
        ],
        modality_lut_transformation=ModalityLUTTransformation(
            rescale_slope=slope, rescale_intercept=intercept, rescale_type="HU"
        ),
        voi_lut_transformations=_windows(marks, images),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **shared,
    )
    for shown in ds.DisplayedAreaSelectionSequence:
        # highdicom takes all pixels for square (PS3.3 C.10.4).
        del shown.PresentationPixelAspectRatio
        shown.PresentationPixelSpacing = list(grid.pixel_spacing_mm)
    # Makes Laterality (2C, PS3.3 C.7.3.1) not required: the chest is not a paired part.
    ds.BodyPartExamined = "CHEST"
    return finish(ds, result, SERIES_DESCRIPTION)


def _image(source: Dataset, grid: SliceGrid) -> Dataset:
    """As highdicom shall see it, of nobody (finish() names the persons)."""
    image = deepcopy(source)
    image.PatientName = image.ReferringPhysicianName = ""
    image.Rows, image.Columns = grid.rows, grid.columns
    image.SamplesPerPixel = 1
    frames = zip(grid.sop_instance_uids, grid.frame_numbers, strict=True)
    if numbers := [number for uid, number in frames if uid == image.SOPInstanceUID and number is not None]:
        image.NumberOfFrames = max(numbers)
    return image


def _annotation(
    mark: Mark, image: Dataset, grid: SliceGrid, layer: GraphicLayer, language: Language
) -> GraphicAnnotation:
    named = {
        "units": AnnotationUnitsValues.PIXEL,
        "tracking_id": tracking_identifier(mark.finding),
        "tracking_uid": mark.finding.tracking_uid,
    }
    lines = [
        GraphicObject(graphic_type=GraphicTypeValues.POLYLINE, graphic_data=polygon, **named)
        for polygon in mark.polygons
    ]
    corners = np.concatenate(mark.polygons)
    anchor = (float(corners[:, 0].max()), float(corners[:, 1].min()))
    # Beside the outline on the side where there is more room, as an eighth of the image's height.
    width, height = grid.columns / 3, grid.rows / 16
    left = anchor[0] + 4 if anchor[0] + 4 + width <= grid.columns else max(1.0, float(corners[:, 0].min()) - 4 - width)
    top = min(max(1.0, anchor[1] - height), grid.rows - height)
    text = TextObject(
        text_value=_words(mark, language),
        bounding_box=(left, top, left + width, top + height),
        text_justification="LEFT",
        **named,
    )
    return GraphicAnnotation(
        referenced_images=[image],
        referenced_frame_number=mark.frame_number,
        graphic_layer=layer,
        graphic_objects=lines,
        text_objects=[text],
    )


def _words(mark: Mark, language: Language) -> str:
    doubt = "?" if mark.finding.presence == "indeterminate" else ""
    told = (f"{finding_title(mark.finding, language)}{doubt}", key_measurements(mark.finding, language))
    return language.say("AI: {words}", words=language.comma.join(filter(None, told)))[:_SHORT_TEXT]


def _windows(marks: Sequence[Mark], images: dict[str, Dataset]) -> list[SoftcopyVOILUTTransformation]:
    """The window of the first finding on each slice; a slice can have but one."""
    slices: dict[tuple[str, int | None], Mark] = {}
    for mark in marks:
        slices.setdefault((str(mark.source.SOPInstanceUID), mark.frame_number), mark)
    transformations = []
    for (uid, frame), mark in slices.items():
        window = window_for(FindingKind(mark.finding.kind))
        transformations.append(
            SoftcopyVOILUTTransformation(
                window_center=window.centre_hu,
                window_width=window.width_hu,
                referenced_images=ReferencedImageSequence([images[uid]], referenced_frame_number=frame),
            )
        )
    return transformations
