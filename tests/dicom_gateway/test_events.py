"""What reaches the log, and what must not."""

import highdicom
import pytest
import structlog
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dicom_gateway.events import configure_logging


def make_object():
    return highdicom.SOPClass(
        study_instance_uid="1.2.3",
        series_instance_uid="1.2.3.4",
        series_number=1,
        sop_instance_uid="1.2.3.4.5",
        instance_number=1,
        sop_class_uid=SecondaryCaptureImageStorage,
        modality="OT",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        patient_name="Singlename",
    )


def test_names_are_not_quoted_in_warnings_of_libraries():
    with pytest.warns(UserWarning, match="Singlename"):
        make_object()
    try:
        configure_logging("info")
        # Every warning that is left is an error under pytest.
        make_object()
    finally:
        structlog.reset_defaults()
