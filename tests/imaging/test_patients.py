"""Whose images they are: told apart by what they say differently, without keeping what names anybody."""

from pathlib import Path

import pytest
from factories import save_ct

from imaging.headers import Study, read_studies
from imaging.quality import check_headers
from imaging.selection import select_series
from imaging.uids import derive_uid

PATIENT = {
    "PatientID": "MRN-4711",
    "IssuerOfPatientID": "HOSPITAL",
    "PatientName": "Doe^Jane",
    "PatientBirthDate": "19600131",
    "PatientSex": "F",
}


def study_of(folder: Path, *patients: dict[str, str | None], one_series: bool = True) -> Study:
    """Images of the patients by turns, in one series or in one for each."""
    for number in range(40):
        turn = number % len(patients)
        series = derive_uid("series", "0" if one_series else str(turn))
        values = {**PATIENT, **patients[turn], "InstanceNumber": number + 1, "SeriesInstanceUID": series}
        save_ct(folder / f"{number}.dcm", **values)
    (study,), unreadable = read_studies(sorted(folder.iterdir()))
    assert not unreadable
    return study


def told_apart(study: Study) -> str:
    """Where the difference is seen: in the study, in the series, or nowhere."""
    if any("more than one patient" in rejected.reason for rejected in select_series(study).rejected):
        return "study"
    return "series" if any(i.check == "patient" for s in study.series for i in check_headers(s)) else "nowhere"


@pytest.mark.parametrize(
    ("other", "seen_in"),
    [
        ({}, "nowhere"),
        ({"PatientID": "MRN-4712"}, "study"),
        ({"PatientID": " mrn-4711 "}, "nowhere"),
        ({"PatientID": ""}, "nowhere"),
        ({"PatientID": None, "PatientName": None, "PatientBirthDate": None, "PatientSex": None}, "nowhere"),
        ({"PatientID": "", "PatientName": "Doe^John"}, "study"),
        ({"IssuerOfPatientID": "ANOTHER"}, "study"),
        ({"IssuerOfPatientID": None}, "nowhere"),
        ({"PatientName": "DOE^JANE^^^"}, "nowhere"),
        ({"PatientName": "Doe, Jane "}, "nowhere"),
        ({"PatientName": "Doe^John"}, "series"),
        ({"PatientBirthDate": "19600201"}, "series"),
        ({"PatientBirthDate": "1960.01.31"}, "nowhere"),
        ({"PatientBirthDate": "1960"}, "nowhere"),
        ({"PatientSex": "M"}, "series"),
        ({"PatientSex": "O"}, "nowhere"),
        ({"PatientName": "Doe^John", "PatientSex": "M"}, "study"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_what_tells_two_patients_apart(tmp_path: Path, other: dict[str, str | None], seen_in: str) -> None:
    assert told_apart(study_of(tmp_path, {}, other)) == seen_in


@pytest.mark.parametrize(
    ("other", "seen_in"),
    [
        ({"PatientID": "MRN-4712"}, "study"),
        # As one device spells it, and another.
        ({"PatientName": "JANE DOE"}, "nowhere"),
        ({"PatientName": "Doe^John", "PatientBirthDate": "19700101"}, "study"),
    ],
)
def test_series_of_a_study_are_of_one_patient_too(tmp_path: Path, other: dict[str, str], seen_in: str) -> None:
    assert told_apart(study_of(tmp_path, {}, other, one_series=False)) == seen_in


def test_nothing_that_names_the_patient_is_kept(tmp_path: Path) -> None:
    study = study_of(tmp_path, {}, {"PatientID": "MRN-4712"})
    said = repr((study, select_series(study), check_headers(study.series[0]))).upper()
    for value in ("MRN-", "DOE", "JANE", "HOSPITAL", "19600131"):
        assert value not in said
