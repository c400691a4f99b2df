"""Which rule of the site fits a study: pure matching."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase

from dicom_gateway.settings import TEXT_CONDITIONS, Rule

# Age String (PS3.5 Table 6.2-1, AS): how many of its units make a year.
_UNITS_A_YEAR = {"Y": 1, "M": 12, "W": 52, "D": 365}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTraits:
    """What rules look at. Of each text the values that any series of the study has, "" where one has none."""

    calling_ae_title: frozenset[str]
    modality: frozenset[str]
    body_part: frozenset[str]
    study_description: frozenset[str]
    station_name: frozenset[str]
    age_years: int | None


def first_match(rules: Sequence[Rule], traits: StudyTraits) -> Rule | None:
    """The first rule whose conditions the study meets, or None."""
    return next((rule for rule in rules if matches(rule, traits)), None)


def matches(rule: Rule, traits: StudyTraits) -> bool:
    """Whether the study meets every condition of the rule."""
    for name in TEXT_CONDITIONS:
        patterns = getattr(rule, name)
        if patterns is not None and not any(_fits(pattern, v) for pattern in patterns for v in getattr(traits, name)):
            return False
    least, greatest, age = rule.minimum_age_years, rule.maximum_age_years, traits.age_years
    if least is None and greatest is None:
        return True
    return age is not None and (least is None or age >= least) and (greatest is None or age <= greatest)


def age_in_years(patient_age: str, birth_date: str, study_date: str) -> int | None:
    """Completed years at the study by Patient's Age, else by the two dates (DA); None where neither says."""
    if told := re.fullmatch(r"(\d{1,3})([DWMY])", patient_age.strip().upper()):
        return int(told[1]) // _UNITS_A_YEAR[told[2]]
    born, studied = _day(birth_date), _day(study_date)
    if born is None or studied is None or studied < born:
        return None
    return studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day))


def _fits(pattern: str, value: str) -> bool:
    """Wild card matching of PS3.4 C.2.2.2.4: '*' and '?' only, so that brackets mean themselves."""
    return fnmatchcase(value.strip().casefold(), pattern.casefold().replace("[", "[[]"))


def _day(value: str) -> date | None:
    try:
        return date.fromisoformat(value.strip())
    except ValueError:
        return None
