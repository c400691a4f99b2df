"""The Encapsulated PDF as dciodvfy and poppler see it."""

import io
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conformance.test_dicom_results import HEADERS, complaints, encoded, tool
from pydicom import dcmread

from dicom_gateway.report.pdf import encode_pdf
from dicom_gateway.report.printed import person_name
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.wording import format_measurements, format_number

MakeCase = Callable[..., StoredResult]


def stored(result: StoredResult, folder: Path) -> tuple[Path, Path]:
    """The object as a DICOM file, and the document that is read out of it."""
    (ds,) = encode_pdf(result)
    dicom, document = folder / "report.dcm", folder / "report.pdf"
    dicom.write_bytes(encoded(ds))
    back = dcmread(io.BytesIO(dicom.read_bytes()))
    document.write_bytes(back.EncapsulatedDocument[: back.EncapsulatedDocumentLength])
    return dicom, document


def poppler(program: str, *arguments: str) -> str:
    return subprocess.run([tool(program), *arguments], capture_output=True, check=True).stdout.decode()


def words(document: Path) -> str:
    """All text of the document in reading order, without line breaks."""
    return " ".join(poppler("pdftotext", "-raw", str(document), "-").split())


def test_dciodvfy_is_content(case: StoredResult, tmp_path: Path) -> None:
    dicom, document = stored(case, tmp_path)
    assert complaints(dicom) == []
    assert document.read_bytes().startswith(b"%PDF-")
    assert document.read_bytes().rstrip().endswith(b"%%EOF")


@pytest.mark.parametrize("name", HEADERS)
def test_dciodvfy_is_content_whatever_the_source_headers(name: str, make_case: MakeCase, tmp_path: Path) -> None:
    dicom, _ = stored(make_case("negative", count=2, **HEADERS[name]), tmp_path)
    assert complaints(dicom) == []
    back = dcmread(dicom)
    assert str(back.PatientName or "") == (HEADERS[name].get("PatientName", "Test^Patient") or "")


def test_two_encodes_are_byte_identical(case: StoredResult) -> None:
    assert encoded(encode_pdf(case)[0]) == encoded(encode_pdf(case)[0])


def test_every_answer_and_number_can_be_selected_as_text(case: StoredResult, tmp_path: Path) -> None:
    _, document = stored(case, tmp_path)
    text = words(document)
    for finding in case.report.findings:
        for measurement in finding.measurements:
            assert format_number(measurement) in text or format_measurements(finding.measurements) in text
        assert not finding.reason or finding.reason in text
    for line in ("NOT A MEDICAL DEVICE", case.report.report_uid, case.report.disclaimer, case.report.model.name):
        assert line in text
    assert not case.report.refusal or f"Not analysed: {case.report.refusal}" in text


@pytest.mark.parametrize("name", ["UTF-8 name", "GB18030 name"])
def test_a_chinese_patient_is_named_on_every_page(name: str, make_case: MakeCase, tmp_path: Path) -> None:
    dicom, document = stored(make_case("findings", **HEADERS[name]), tmp_path)
    assert "王^小东".encode() in dicom.read_bytes()
    pages = poppler("pdftotext", str(document), "-").split("\f")[:-1]
    assert len(pages) <= 2
    for number, page in enumerate(pages, start=1):
        assert "王小东" in page
        assert f"page {number} of {len(pages)}" in page


def test_all_fonts_are_embedded(case: StoredResult, tmp_path: Path) -> None:
    _, document = stored(case, tmp_path)
    _, _, *fonts = poppler("pdffonts", str(document)).splitlines()
    assert fonts
    for line in fonts:
        embedded, subset, unicode = line.split()[-5:-2]
        assert (embedded, subset, unicode) == ("yes", "yes", "yes"), line


def test_it_is_marked_as_unverified_research(case: StoredResult) -> None:
    (ds,) = encode_pdf(case)
    assert (ds.VerificationFlag, ds.ContentQualification, ds.BurnedInAnnotation) == ("UNVERIFIED", "RESEARCH", "YES")
    assert ds.SeriesDescription == "AI chest CT report (unverified)"
    assert [item.ReferencedSOPInstanceUID for item in ds.SourceInstanceSequence] == [
        header.SOPInstanceUID for header in case.headers.instances
    ]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("Wang^XiaoDong=王^小东", "Wang XiaoDong (王小东)"),
        ("王^小东", "王小东"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada Tarou (山田太郎)"),
        ("Smith^John^^Dr", "Smith John Dr"),
        ("=王^小东", "王小东"),
        ("<b>^&amp;", "<b> &amp;"),
        ("", "name unknown"),
    ],
)
def test_a_name_is_written_as_it_is_read(name: str, read: str, make_case: MakeCase, tmp_path: Path) -> None:
    assert person_name(name) == read
    if read in ("<b> &amp;", "name unknown"):
        _, document = stored(make_case("refused", PatientName=name), tmp_path)
        assert f"{read}, ID P-1" in words(document)


def test_dcmtk_gives_the_document_back(make_case: MakeCase, tmp_path: Path) -> None:
    dicom, document = stored(make_case("negative"), tmp_path)
    out = tmp_path / "dcmtk.pdf"
    subprocess.run([tool("dcm2pdf"), str(dicom), str(out)], check=True)
    assert out.read_bytes().rstrip(b"\0") == document.read_bytes()


@pytest.mark.parametrize(
    "reason", ["a reason that a careful author made long, " * 200, "x" * 3000, "右肺上叶结节，" * 300]
)
def test_there_is_room_for_everything(reason: str, make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("findings", PatientName="王" * 60, StudyDescription="y" * 64)
    findings = tuple(f.model_copy(update={"reason": reason, "site": reason[:200]}) for f in case.report.findings)
    long_case = replace(case, report=case.report.model_copy(update={"findings": findings}))
    _, document = stored(long_case, tmp_path)
    text = "".join(words(document).split())
    assert text.count("".join(reason[-20:].split())) >= len({f.kind for f in findings if f.presence != "not_assessed"})
    box = re.search(r"Page size:\s+([\d.]+) x ([\d.]+)", poppler("pdfinfo", str(document)))
    assert box is not None
    width, height = map(float, box.groups())
    right_edges = re.findall(r'xMax="([\d.]+)" yMax="([\d.]+)"', poppler("pdftotext", "-bbox", str(document), "-"))
    assert all(float(x) < width - 20 and float(y) < height - 5 for x, y in right_edges)
