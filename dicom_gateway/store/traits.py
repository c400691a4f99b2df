"""What the rules of the site look at, read from the stored headers of a study: one image of each series."""

from pathlib import Path

import sqlalchemy as sa
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_gateway.rules import StudyTraits, age_in_years, first_match
from dicom_gateway.settings import Rule, Settings
from dicom_gateway.store import index
from imaging.source_text import in_unicode

_KEYWORDS = {
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "study_description": "StudyDescription",
    "station_name": "StationName",
}
_READ = [*_KEYWORDS.values(), "PatientAge", "PatientBirthDate", "StudyDate"]


def rule_of_study(engine: sa.Engine, settings: Settings, study_instance_uid: str) -> Rule | None:
    """The first rule that fits a received study as it is now; None where none does."""
    row = index.get_study(engine, study_instance_uid) if settings.rules else None
    return None if row is None else first_match(settings.rules, read_traits(engine, settings.data_dir, row))


def read_traits(engine: sa.Engine, data_dir: Path, study: index.StudyRow) -> StudyTraits:
    """Traits of a study at its revision. A file that cannot be read has no values, nor has an element that cannot."""
    paths = index.list_series_samples(engine, study.study_instance_uid, study.revision)
    # Rules read what senders wrote, valid or not; pydicom's warnings would quote it.
    with disable_value_validation():
        headers = [_header(data_dir / path) for path in paths]
        ages = [age_in_years(*(_one(header, keyword) for keyword in _READ[-3:])) for header in headers]
        values = {
            trait: frozenset(value for header in headers for value in _values(header, keyword))
            for trait, keyword in _KEYWORDS.items()
        }
    return StudyTraits(
        calling_ae_title=frozenset({study.calling_ae_title}),
        age_years=next((age for age in ages if age is not None), None),
        **values,
    )


def _header(path: Path) -> Dataset:
    try:
        return in_unicode(dcmread(path, stop_before_pixels=True, specific_tags=_READ))
    except Exception:  # noqa: BLE001  # edge: one damaged file must not keep every study from being closed
        return Dataset()


def _values(header: Dataset, keyword: str) -> list[str]:
    value = header.get(keyword)
    parts = list(value) if isinstance(value, MultiValue) and value else [value]
    return ["" if part is None else str(part).strip() for part in parts]


def _one(header: Dataset, keyword: str) -> str:
    return _values(header, keyword)[0]
