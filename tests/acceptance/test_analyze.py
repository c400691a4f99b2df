"""`onescan analyze` and `onescan phantom` as a user runs them: files in, results, tables and exit codes out."""

import csv
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from factories import save_ct
from running import ROOT, onescan

from dicom_gateway.report.content import Report, report_schema
from imaging.phantom import LesionRequest, Phantom, make_phantom
from imaging.phantom_dicom import write_localizer, write_phantom

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(
        11, [LesionRequest(kind="pleural_effusion", size=500.0, laterality="left")], spacing_mm=(5, 2, 2)
    )


def _report(out: Path, uid: str) -> Report:
    return Report.model_validate_json((out / uid / "report.json").read_bytes())


def test_a_folder_of_studies_becomes_reports_and_a_table(tmp_path: Path, phantom: Phantom) -> None:
    """One good study, one with a missing slice, one without a chest, beside a text file: each ends as it must."""
    source, out = tmp_path / "in", tmp_path / "out"
    good = write_phantom(phantom, source / "good")
    write_localizer(phantom, source / "good")
    gap = write_phantom(phantom, source / "gap", study_tag="gap")
    gap[40].unlink()
    _write_head(source / "head")
    (source / "readme.txt").write_text("no image")

    run = onescan("analyze", source, "--out", out)
    assert run.returncode == 1, run.stderr
    assert "readme.txt: not a DICOM file" in run.stderr
    assert "1 of 3 studies reported" in run.stdout
    assert "Traceback" not in run.stderr

    good_uid, gap_uid = (str(pydicom.dcmread(files[0]).StudyInstanceUID) for files in (good, gap))
    reported = _report(out, good_uid)
    assert reported.outcome == "reported"
    assert [r.reason for r in reported.rejected_series] == ["localizer (scout)"]
    assert {p.name for p in (out / good_uid).iterdir()} >= {"report.json", "findings.sr.dcm", "summary.sc.dcm"}
    for name, modality in (("findings.sr.dcm", "SR"), ("summary.sc.dcm", "OT")):
        assert pydicom.dcmread(out / good_uid / name).Modality == modality

    refused = _report(out, gap_uid)
    assert (refused.outcome, refused.analysed_series) == ("refused", None)
    assert "missing" in (refused.refusal or "")
    assert {f.presence for f in refused.findings} == {"not_assessed"}
    assert (out / gap_uid / "findings.sr.dcm").exists()

    (head_uid,) = {p.name for p in out.iterdir() if p.is_dir()} - {good_uid, gap_uid}
    assert "not a chest CT" in (_report(out, head_uid).refusal or "")

    rows = list(csv.DictReader((out / "findings.csv").read_text().splitlines()))
    assert {row["outcome"] for row in rows} == {"reported", "refused"}
    effusion = [r for r in rows if r["kind"] == "pleural_effusion" and r["study_instance_uid"] == good_uid]
    assert effusion


def _write_head(folder: Path) -> None:
    """Bone around brain, no lung, sent as CHEST."""
    folder.mkdir()
    y, x = np.mgrid[-64:64, -64:64] * 1.8
    hu = np.where(np.hypot(x, y) < 80, 35, np.where(np.hypot(x, y) < 88, 900, -1000)).astype(np.int16)
    for index in range(80):
        save_ct(
            folder / f"{index}.dcm",
            InstanceNumber=index + 1,
            ImagePositionPatient=[-115, -115, 2.0 * index],
            PixelSpacing=[1.8, 1.8],
            SliceThickness=2,
            Rows=128,
            Columns=128,
            RescaleIntercept=0,
            PixelData=hu.tobytes(),
        )


def test_images_of_two_patients_are_refused_and_nobody_is_named(tmp_path: Path) -> None:
    for number in range(1, 41):
        patient = {"PatientID": f"MARKED-{number % 2}", "PatientName": f"Marked^{'AB'[number % 2]}"}
        image = save_ct(tmp_path / f"{number}.dcm", InstanceNumber=number, **patient)
    run = onescan("analyze", *sorted(tmp_path.glob("*.dcm")), "--out", tmp_path / "out")
    report = _report(tmp_path / "out", image.StudyInstanceUID)
    assert report.outcome == "refused"
    assert "name more than one patient" in (report.refusal or "")
    result = pydicom.dcmread(tmp_path / "out" / image.StudyInstanceUID / "findings.sr.dcm")
    assert (result.PatientID, str(result.PatientName), result.PatientBirthDate) == ("", "", "")
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"MARKED" not in (written + (run.stdout + run.stderr).encode()).upper()


def test_no_header_and_no_archive_keeps_the_others_from_being_analysed(tmp_path: Path) -> None:
    """What a header says is no markup and steers no terminal; what cannot be opened is named, and is no success."""
    given = tmp_path / "in"
    for number, body_part in enumerate(("HEAD[/X]", "ABDOMEN\x1b[31m"), start=1):
        study = {"StudyInstanceUID": f"1.2.3.{number}", "SeriesInstanceUID": f"1.2.3.{number}.1"}
        folder = given / str(number)
        folder.mkdir(parents=True)
        for image in range(20):
            save_ct(folder / f"{image}.dcm", InstanceNumber=image + 1, BodyPartExamined=body_part, **study)
    (given / "1" / "notes.txt").write_text("no image")
    (given / "old.zip").write_bytes(b"PK\x03\x04cut")
    run = onescan("analyze", given, "--out", tmp_path / "out")
    assert run.returncode == 1
    said = run.stdout + run.stderr
    assert "HEAD[/X]" in said and "\x1b[31m" not in said and "Traceback" not in said
    assert f"{given / 'old.zip'}: the archive cannot be unpacked" in said.replace("\n", "")
    rows = list(csv.DictReader((tmp_path / "out" / "findings.csv").read_text().splitlines()))
    assert [(row["study_instance_uid"], row["outcome"]) for row in rows] == [
        ("1.2.3.1", "refused"),
        ("1.2.3.2", "refused"),
    ]
    counted = [_report(tmp_path / "out", f"1.2.3.{number}").unreadable_file_count for number in (1, 2)]
    assert counted == [1, 0]


def test_every_report_follows_the_published_schema(tmp_path: Path, phantom: Phantom) -> None:
    out = tmp_path / "out"
    assert onescan("analyze", *write_phantom(phantom, tmp_path / "in"), "--out", out).returncode == 0
    (folder,) = [p for p in out.iterdir() if p.is_dir()]
    document = json.loads((folder / "report.json").read_text())
    assert set(document) == set(report_schema()["properties"])
    published = json.loads((ROOT / "dicom_gateway" / "report" / "report.schema.json").read_text())
    assert set(published["properties"]) == set(document)
    names = {finding["key_image"] for finding in document["findings"]} - {None}
    assert names == {p.name for p in folder.glob("key_*.png")}


def test_a_truncated_image_is_refused_with_a_report(tmp_path: Path, phantom: Phantom) -> None:
    files = write_phantom(phantom, tmp_path / "in")
    files[30].write_bytes(files[30].read_bytes()[:-5000])
    run = onescan("analyze", tmp_path / "in", "--out", tmp_path / "out")
    assert run.returncode == 1
    assert "cannot be decoded" in run.stderr + run.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("analyze",), 2, "Missing argument"),
        (("analyze", "nowhere", "--out", "{tmp}"), 2, "No such file or folder"),
        (("analyze", "{tmp}", "--out", "{tmp}/out"), 1, "No DICOM study found"),
        (("analyze", "{tmp}", "--out", "/proc/nowhere"), 2, "Cannot write to"),
        (("phantom", "{tmp}/p", "--finding", "gallstone=3"), 2, "pleural_effusion"),
        (("phantom", "{tmp}/p", "--finding", "pleural_effusion"), 2, "KIND=SIZE"),
        (("phantom", "{tmp}/p", "--finding", "pleural_effusion=much"), 2, "must be a number"),
        (("serve", "--config", "{tmp}/nowhere.toml"), 2, "cannot read"),
        (("status", "--config", "{tmp}/new.toml"), 2, "no service has run"),
        (("replay",), 2, "--all"),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_wrong_use_is_told_clearly(tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    (tmp_path / "new.toml").write_text(f'data_dir = "{tmp_path}/data"')
    run = onescan(*(a.format(tmp=tmp_path) for a in arguments))
    assert run.returncode == code, run.stderr
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_a_phantom_is_written_with_its_truth(tmp_path: Path) -> None:
    run = onescan("phantom", tmp_path, "--finding", "left:pleural_effusion=300", "--slice-spacing-mm", "5")
    assert run.returncode == 0, run.stderr
    truth = json.loads((tmp_path / "truth.json").read_text())
    (finding,) = truth["findings"]
    assert (finding["kind"], finding["laterality"]) == ("pleural_effusion", "left")
    assert finding["volume_ml"] == pytest.approx(300, rel=0.05)
    assert len(list(tmp_path.glob("*.dcm"))) > 50
