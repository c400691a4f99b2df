"""Rules as pure matching: what a pattern, an age and an order mean."""

import re
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_gateway.report.wording import rule_conditions, rule_outcome
from dicom_gateway.rules import StudyTraits, age_in_years, first_match, matches
from dicom_gateway.settings import TEXT_CONDITIONS, Rule

texts = st.text(st.sampled_from("aB1 [].^$\\"), max_size=6)
patterns = st.text(st.sampled_from("aB1 [].^$\\*?"), max_size=6)
ages = st.none() | st.integers(0, 120)


def traits(age_years=None, **values):
    given = {name: frozenset({values[name]} if isinstance(values.get(name), str) else values.get(name, {""}))
             for name in TEXT_CONDITIONS}  # fmt: skip
    return StudyTraits(**given, age_years=age_years)


def rule(**conditions):
    return Rule(**{"name": "rule"} | conditions)


@st.composite
def rules(draw):
    """A rule with at least one condition."""
    names = draw(st.sets(st.sampled_from(TEXT_CONDITIONS), min_size=1))
    return rule(**{name: tuple(draw(st.lists(patterns, min_size=1, max_size=2))) for name in names})


studies = st.builds(
    StudyTraits,
    **{name: st.frozensets(texts, min_size=1, max_size=2) for name in TEXT_CONDITIONS},
    age_years=ages,
)


@pytest.mark.parametrize(
    ("pattern", "value", "fits"),
    [
        ("CHEST", "CHEST", True),
        ("chest", "Chest ", True),
        ("CHEST", "CHEST ABD", False),
        ("CHEST*", "CHEST ABD", True),
        ("*low dose*", "CT Thorax Low Dose 1.0", True),
        ("CT?", "CT1", True),
        ("CT?", "CT", False),
        ("CT?", "CT12", False),
        ("[low] *", "[Low] chest", True),
        ("[low] *", "l chest", False),
        ("", "", True),
        ("", "CHEST", False),
        ("*", "", True),
        ("胸部*", "胸部平扫", True),
    ],
)
def test_patterns(pattern, value, fits):
    assert matches(rule(study_description=pattern), traits(study_description=value)) is fits


@given(patterns, texts)
def test_patterns_are_those_of_dicom_queries(pattern, value):
    wild = {"*": ".*", "?": "."}
    expression = "".join(wild.get(character) or re.escape(character) for character in pattern.strip())
    expected = re.fullmatch(expression, value.strip(), re.IGNORECASE) is not None
    assert matches(rule(body_part=pattern), traits(body_part=value)) is expected


@given(rules(), studies)
def test_every_condition_must_be_met(whole, study):
    conditions = {name: getattr(whole, name) for name in TEXT_CONDITIONS if getattr(whole, name) is not None}
    each = [matches(rule(**{name: value}), study) for name, value in conditions.items()]
    assert matches(whole, study) is all(each)


@given(rules(), studies)
def test_one_of_several_patterns_and_one_of_several_series_is_enough(whole, study):
    for name in TEXT_CONDITIONS:
        if getattr(whole, name) is None:
            continue
        each = [
            matches(rule(**{name: pattern}), traits(**{name: value}))
            for pattern in getattr(whole, name)
            for value in getattr(study, name)
        ]
        assert matches(rule(**{name: getattr(whole, name)}), study) is any(each)


@given(st.lists(rules(), max_size=5), studies)
def test_the_first_rule_that_fits_decides(listed, study):
    fitting = [candidate for candidate in listed if matches(candidate, study)]
    assert first_match(listed, study) is (fitting[0] if fitting else None)


@given(st.lists(rules(), max_size=5), studies)
def test_a_last_rule_for_every_study_leaves_none_undecided(listed, study):
    assert first_match([*listed, rule(modality="*")], study) is not None


@given(ages, ages, ages)
def test_an_age_lies_between_both_ends_or_is_unknown(least, greatest, age):
    if (least is None and greatest is None) or (None not in (least, greatest) and least > greatest):
        return
    low, high = 0 if least is None else least, 999 if greatest is None else greatest
    expected = age is not None and low <= age <= high
    assert matches(rule(minimum_age_years=least, maximum_age_years=greatest), traits(age_years=age)) is expected


@pytest.mark.parametrize(
    ("told", "born", "studied", "years"),
    [
        ("066Y", "19000101", "20260101", 66),
        ("011M", "", "", 0),
        ("030M", "", "", 2),
        ("400D", "", "", 1),
        ("051W", "", "", 0),
        ("", "20080102", "20260101", 17),
        ("", "20080101", "20260101", 18),
        ("nonsense", "20080101", "20260101", 18),
        ("", "20270101", "20260101", None),
        ("", "", "20260101", None),
        ("", "20080231", "20260101", None),
        ("", "", "", None),
    ],
)
def test_age(told, born, studied, years):
    assert age_in_years(told, born, studied) == years


@given(st.dates(date(1900, 1, 1), date(2020, 1, 1)), st.integers(0, 36_000))
def test_age_by_dates_grows_on_birthdays_alone(born, days):
    def age(day):
        return age_in_years("", f"{born:%Y%m%d}", f"{day:%Y%m%d}")

    studied = born + timedelta(days)
    is_birthday = (studied.month, studied.day) == (born.month, born.day)
    if (born.month, born.day) != (2, 29) and days:
        assert age(studied) - age(studied - timedelta(1)) == is_birthday


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_any_header_has_an_age_or_none(told, born, studied):
    years = age_in_years(told, born, studied)
    assert years is None or years >= 0


def test_rules_in_words():
    some = rule(body_part=("CHEST", ""), minimum_age_years=18, maximum_age_years=80, destinations=("pacs", "ehr"))
    assert rule_conditions(some) == "body part CHEST or missing, age 18 to 80"
    assert rule_outcome(some) == "Analysed, report to pacs, ehr"
    assert rule_outcome(None) == "Analysed, report to all destinations"
    assert rule_outcome(rule(modality="*", destinations=())) == "Analysed, report to no destination"
    assert rule_outcome(rule(modality="*", analyse=False)) == "Not analysed"
    excluded = rule(modality="*", analyse=False, destinations=("pacs",))
    assert rule_outcome(excluded) == "Not analysed; on request report to pacs"
