"""A phantom as one multi-frame Enhanced CT Image (PS3.3 A.38)."""

from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian

from imaging.phantom import Phantom, phantom_uid
from imaging.phantom_dicom import DATE, TIME, add_pixels, study_dataset

_FRAME_TYPE = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]


def write_enhanced_phantom(phantom: Phantom, path: Path, *, study_tag: str = "") -> Path:
    """Write the volume as one Enhanced CT file, frames from the lowest slice up, and return `path`."""
    dataset = study_dataset(phantom, study_tag, "enhanced series", series_number=3, description="Chest enhanced")
    for keyword in ("AcquisitionDate", "AcquisitionTime"):
        delattr(dataset, keyword)
    dataset.SOPClassUID = EnhancedCTImageStorage
    dataset.SOPInstanceUID = phantom_uid(phantom.seed, study_tag, "enhanced instance")
    dataset.InstanceNumber = 1
    _add_image(dataset, phantom)
    _add_dimensions(dataset, phantom, study_tag)
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(phantom)]
    dataset.PerFrameFunctionalGroupsSequence = [_frame_groups(phantom, i) for i in range(len(phantom.volume.hu))]
    add_pixels(dataset, phantom.volume.hu)
    dataset.NumberOfFrames = len(phantom.volume.hu)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _add_image(dataset: Dataset, phantom: Phantom) -> None:
    """Enhanced CT Image module (PS3.3 C.8.15.2) and acquisition context."""
    dataset.ImageType = _FRAME_TYPE
    dataset.AcquisitionNumber = 1
    dataset.AcquisitionDateTime = DATE + TIME
    dataset.AcquisitionDuration = 5.0
    dataset.PixelPresentation = "MONOCHROME"
    dataset.VolumetricProperties = "VOLUME"
    dataset.VolumeBasedCalculationTechnique = "NONE"
    dataset.ContentQualification = "RESEARCH"
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.AcquisitionContextSequence = []
    dataset.MultienergyCTAcquisition = "NO"
    if phantom.contrast:
        agent = _code("385420005", "SCT", "Contrast agent")
        agent.ContrastBolusAgentNumber = 1
        agent.ContrastBolusAdministrationRouteSequence = [_code("47625008", "SCT", "Intravenous route")]
        agent.ContrastBolusIngredientCodeSequence = [_code("44588005", "SCT", "Iodine")]
        agent.ContrastBolusVolume = 80.0
        agent.ContrastBolusIngredientConcentration = 300.0
        dataset.ContrastBolusAgentSequence = [agent]


def _add_dimensions(dataset: Dataset, phantom: Phantom, study_tag: str) -> None:
    """Multi-frame Dimension module (PS3.3 C.7.6.17): frames are ordered by position in the stack."""
    organization = phantom_uid(phantom.seed, study_tag, "dimensions")
    dataset.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    dataset.DimensionOrganizationType = "3D"
    dataset.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=organization,
            DimensionIndexPointer=pointer,
            FunctionalGroupPointer=0x00209111,
            DimensionDescriptionLabel=label,
        )
        for pointer, label in ((0x00209056, "Stack ID"), (0x00209057, "In-Stack Position Number"))
    ]


def _shared_groups(phantom: Phantom) -> Dataset:
    slice_mm, row_mm, column_mm = phantom.volume.geometry.spacing_mm
    shared = Dataset()
    shared.PixelMeasuresSequence = [
        _item(PixelSpacing=[row_mm, column_mm], SliceThickness=slice_mm, SpacingBetweenSlices=slice_mm)
    ]
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    shared.FrameAnatomySequence = [
        _item(FrameLaterality="U", AnatomicRegionSequence=[_code("51185008", "SCT", "Chest")])
    ]
    shared.PixelValueTransformationSequence = [_item(RescaleIntercept=-1024, RescaleSlope=1, RescaleType="HU")]
    shared.FrameVOILUTSequence = [_item(WindowCenter=[-600, 40], WindowWidth=[1500, 400])]
    shared.CTImageFrameTypeSequence = [
        _item(
            FrameType=_FRAME_TYPE,
            PixelPresentation="MONOCHROME",
            VolumetricProperties="VOLUME",
            VolumeBasedCalculationTechnique="NONE",
        )
    ]
    _add_acquisition(shared, phantom)
    if phantom.contrast:
        usage = _item(
            ContrastBolusAgentNumber=1, ContrastBolusAgentAdministered="YES", ContrastBolusAgentDetected="YES"
        )
        usage.ContrastBolusAgentPhase = "IMMEDIATE"
        shared.ContrastBolusUsageSequence = [usage]
    return shared


def _add_acquisition(shared: Dataset, phantom: Phantom) -> None:
    """How an ORIGINAL frame was acquired (CT functional group macros, PS3.3 C.8.15.3)."""
    _, row_mm, column_mm = phantom.volume.geometry.spacing_mm
    _, rows, columns = phantom.volume.geometry.shape
    shared.CTAcquisitionTypeSequence = [_item(AcquisitionType="SPIRAL", ConstantVolumeFlag="NO", FluoroscopyFlag="NO")]
    shared.CTAcquisitionDetailsSequence = [
        _item(
            RotationDirection="CW", RevolutionTime=0.5, SingleCollimationWidth=0.6, TotalCollimationWidth=38.4,
            TableHeight=150.0, GantryDetectorTilt=0.0, DataCollectionDiameter=500.0,
        )
    ]  # fmt: skip
    shared.CTTableDynamicsSequence = [_item(TableSpeed=60.0, TableFeedPerRotation=30.0, SpiralPitchFactor=0.78125)]
    shared.CTGeometrySequence = [_item(DistanceSourceToDetector=1040.0, DistanceSourceToDataCollectionCenter=570.0)]
    shared.CTReconstructionSequence = [
        _item(
            ReconstructionAlgorithm="FILTER_BACK_PROJ", ConvolutionKernel="B30f", ConvolutionKernelGroup="SOFT_TISSUE",
            ReconstructionFieldOfView=[column_mm * columns, row_mm * rows], ReconstructionAngle=360.0,
            ReconstructionPixelSpacing=[row_mm, column_mm], ImageFilter="NONE",
        )
    ]  # fmt: skip
    shared.CTExposureSequence = [
        _item(
            ExposureTimeInms=500.0, XRayTubeCurrentInmA=200.0, ExposureInmAs=100.0,
            ExposureModulationType="NONE", CTDIvol=6.7,
            CTDIPhantomTypeCodeSequence=[_code("113691", "DCM", "IEC Body Dosimetry Phantom")],
        )
    ]  # fmt: skip
    shared.CTXRayDetailsSequence = [
        _item(
            KVP=120,
            FocalSpots=[1.2],
            FilterType="FLAT",
            FilterMaterial="ALUMINUM",
            CalciumScoringMassFactorPatient=0.743,
        )
    ]


def _frame_groups(phantom: Phantom, index: int) -> Dataset:
    corner = [round(float(v), 6) for v in phantom.volume.geometry.index_to_patient((index, 0, 0))]
    frame = Dataset()
    frame.FrameContentSequence = [
        _item(
            FrameAcquisitionNumber=1, FrameReferenceDateTime=DATE + TIME, FrameAcquisitionDateTime=DATE + TIME,
            FrameAcquisitionDuration=500.0, StackID="1", InStackPositionNumber=index + 1,
            DimensionIndexValues=[1, index + 1],
        )
    ]  # fmt: skip
    frame.PlanePositionSequence = [_item(ImagePositionPatient=corner)]
    frame.CTPositionSequence = [
        _item(TablePosition=corner[2], ReconstructionTargetCenterPatient=[0.0, 10.0, corner[2]],
              DataCollectionCenterPatient=[0.0, 10.0, corner[2]])
    ]  # fmt: skip
    frame.IrradiationEventIdentificationSequence = [
        _item(IrradiationEventUID=phantom_uid(phantom.seed, "", "irradiation"))
    ]
    return frame
