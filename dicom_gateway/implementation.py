"""How this software identifies itself to DICOM peers (PS3.7 D.3.3.2) and in the files it keeps (PS3.10 7.1)."""

from imaging.uids import derive_uid

IMPLEMENTATION_CLASS_UID = derive_uid("onescan", "implementation", "1")
IMPLEMENTATION_VERSION_NAME = "ONESCAN_1"
