"""Results in Chinese: no English left in them, still content for the judges, and nothing said that English does not."""

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from conformance.test_amendment import amended
from conformance.test_dicom_results import MakeCase, complaints, encoded, group_by_tracking_uid, items, read_back, tool
from conformance.test_pdf import stored, words
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from dicom_gateway.report import chinese, codes
from dicom_gateway.report.content import DISCLAIMER
from dicom_gateway.report.edition import Edition, edition_for
from dicom_gateway.report.fhir import encode_bundle
from dicom_gateway.report.hl7 import encode_oru
from dicom_gateway.report.language import CHINESE, ENGLISH, translated
from dicom_gateway.report.objects import ENCODERS, part_10
from dicom_gateway.report.stored import StoredResult
from dicom_gateway.report.typefaces import printable
from dicom_gateway.report.wording import KIND_NAMES, PRESENCE_NAMES, QUANTITY_NAMES
from dicom_gateway.settings import Destination, ResultObject
from imaging.quality import Verdict
from models import BUNDLED_MODEL_DIR
from models.manifest import load_manifest

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = get_args(ResultObject)
DOCUMENTS = ("sr", "marks", "sr_comprehensive", "sr_enhanced", "sr_text", "ko")
IN_CHINESE = Edition(CHINESE)

# Where the sentences of a record come from: modules, and what in them a report never shows.
SOURCES = (
    *sorted((ROOT / "models" / "measured").glob("*.py")),
    *(ROOT / "models" / name for name in ("detect.py", "contrast.py", "contrast_phase.py", "measure.py", "heads.py")),
    ROOT / "models" / "evaluation" / "evidence.py",
    *(
        ROOT / "imaging" / name
        for name in ("quality.py", "witnesses.py", "kernel.py", "selection.py", "volume.py", "decoding.py")
    ),
    ROOT / "dicom_gateway" / "report" / "compose.py",
    ROOT / "dicom_gateway" / "pipeline.py",
)
# Sentences made of parts, by what the parts can be.
MADE_OF_PARTS = {
    "{}: {}": ("ascending aorta: its border could not be followed", "chest wall: piece of metal"),
    "{}, {}": ("left lung, upper zone, solid", "right lung, middle zone, ground-glass"),
    "{} lung, {}": ("left lung, lower zone", "right lung, lower zone"),
    "image {} is {}, not {}": ("image 3 is (512, 512) pixels, not (256, 256)",),
    "{} lung": ("left lung", "right lung"),
    "{} pleural space": ("left pleural space", "right pleural space"),
    "{} {} HU": ("lung -850 HU", "soft tissue 42 HU", "pulmonary trunk 158 HU", "spleen 99 HU"),
    "{}: steps up to {} mm where {} mm is usual": (
        "2 images seem to be missing: steps up to 3.00 mm where 1.00 mm is usual",
        "the slice spacing varies: steps up to 1.30 mm where 1.00 mm is usual",
    ),
    "{} aerated enough to be assessed": (
        "no lung is aerated enough to be assessed",
        "only one lung is aerated enough to be assessed",
    ),
    "{} raises the attenuation of bone": (
        "contrast was given, which raises the attenuation of bone",
        "contrast may have been given, which raises the attenuation of bone",
    ),
    "{}, which raises the attenuation of the liver": (
        "contrast was given, which raises the attenuation of the liver",
        "contrast may have been given, which raises the attenuation of the liver",
    ),
    "the {} side of the inner thorax is not wholly outlined": (
        "the left side of the inner thorax is not wholly outlined",
        "the right side of the inner thorax is not wholly outlined",
    ),
    "the diameter lies between {}": ("the diameter lies between 27 mm, the limit for women, and 29 mm, that for men",),
    "the study score lies between the absent and present operating points{}": (
        "the study score lies between the absent and present operating points",
    ),
    "the series mixes {} {}": (
        "the series mixes 2 image sizes",
        "the series mixes 3 pixel spacings",
        "the series mixes 2 frames of reference",
    ),
    "hardly any aerated lung on the {} ({} ml)": (
        "hardly any aerated lung on the left (12 ml)",
        "hardly any aerated lung on the right (12 ml)",
    ),
    "the lung {} lie outside the images: half a thorax": (
        "the lung apices lie outside the images: half a thorax",
        "the lung bases lie outside the images: half a thorax",
    ),
    "of the lungs only the {} are in the images, with {} mm of the body {}": (
        "of the lungs only the apices are in the images, with 225 mm of the body above them: a neck",
        "of the lungs only the bases are in the images, with 390 mm of the body below them: an abdomen",
    ),
    "the lung {} are cut off": ("the lung apices are cut off", "the lung bases are cut off"),
    "lung {} covered": ("lung apices covered", "lung bases covered"),
    "by the noise of the image it is {}": (
        "by the noise of the image it is sharp",
        "by the noise of the image it is soft",
    ),
    "the kernel {} is not known": ("the kernel E1 is not known",),
    "median of {} is {} HU, not within {} to {}": (
        "median of lung is -400 HU, not within -950 to -550",
        "median of soft tissue is 300 HU, not within -150 to 130",
    ),
    "not axial ({} images)": (
        "not axial (sagittal images)",
        "not axial (coronal images)",
        "not axial (oblique images)",
    ),
    "this model was tried on {} {} with it only": (
        "this model was tried on 1 study with it only",
        "this model was tried on 2 studies with it only",
    ),
    "this model found it in {} of {} {}studies with it: too few to answer": (
        "this model found it in 1 of 9 studies with it: too few to answer",
        "this model found it in 1 of 9 real studies with it: too few to answer",
    ),
    "this model named it in {} of {} {}studies without it": (
        "this model named it in 8 of 9 studies without it",
        "this model named it in 8 of 9 real studies without it",
    ),
}
# Parts of the sentences above, values of headers, and words of an empty list.
NOT_SENTENCES = {
    "image sizes",
    "pixel spacings",
    "frames of reference",
    "soft tissue",
    "the slice spacing varies",
    "{} images seem to be missing",
    "no lung is",
    "only one lung is",
    "contrast was given, which",
    "contrast may have been given, which",
    "contrast was given",
    "contrast may have been given",
    "{} mm, the limit for women, and {} mm, that for men",
    "PROJECTION IMAGE",
    "SCREEN SAVE",
    "BONE SUBTRACTED",
    "from imaging.decoding import serve",
    "{} pixels",
    "Rows and Columns",
    "above them: a neck",
    "below them: an abdomen",
    "RescaleSlope and RescaleIntercept",
}
# What stays as it is in a Chinese report: abbreviations, names, units, keywords of DICOM, and what the source wrote.
_KEPT = re.compile(
    r"OneScan|onescan-chest|sha256|CT|AI|HU|LAA|CAC-DRS|ID|UID|Agatston|Genant|UTC|mm³?|ml|Thorax|Br40|(?:ab)+|PDF|SR|"
    r"SOP Instance|Wang XiaoDong|P-1|A-77"
)


def chinese_of(case: StoredResult) -> StoredResult:
    return replace(case, edition=IN_CHINESE)


def true_to_life(case: StoredResult) -> StoredResult:
    """The case with sentences that the models and the quality gates write, in place of the made-up ones."""
    every = iter(sorted(chinese.RECORD) * 4)

    def sentence(text: str | None) -> str | None:
        return text and re.sub(r"\{[a-z]\}", "7", next(s for s in every if not re.search(r"\{\w\w", s)))

    def sayable(finding: Any) -> Any:
        site = finding.site and "left lung, upper zone, part-solid"
        told = {"reason": sentence(finding.reason), "method": sentence(finding.method), "site": site}
        return finding.model_copy(update=told)

    report = case.report
    quality = tuple(issue.model_copy(update={"message": sentence(issue.message)}) for issue in report.quality)
    series = report.analysed_series
    analysed = series and series.model_copy(
        update={
            "contrast_phase": "venous",
            "contrast_evidence": "blood in the mediastinum measures 109 HU; aorta 118 HU",
        }
    )
    values = {
        "findings": tuple(map(sayable, report.findings)),
        "quality": quality,
        "analysed_series": analysed,
    }
    return replace(case, report=report.model_copy(update=values))


def texts(ds: Dataset) -> Iterator[str]:
    """What a person may read of an object: every text but identifiers, names and codes of the source and of ours."""
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                names = item.get("ConceptNameCodeSequence", ())
                if not any(name.CodeValue in _MACHINE_TEXTS for name in names):
                    yield from texts(item)
        elif element.VR in ("LO", "LT", "ST", "UT") and element.keyword not in _NOT_READ:
            yield from map(str, element.value if element.VM > 1 else (element.value,))


_NOT_READ = {
    *("PatientID", "StudyDescription", "Manufacturer", "ManufacturerModelName", "SoftwareVersions"),
    *("DeviceSerialNumber", "TrackingID", "AlgorithmName", "AlgorithmVersion", "AlgorithmSource"),
    *("InstitutionName", "CodingSchemeResponsibleOrganization", "CodingSchemeName", "MIMETypeOfEncapsulatedDocument"),
    *("ContributionDescription", "DimensionDescriptionLabel", "PositionReferenceIndicator"),
}
_MACHINE_TEXTS = {"112039", "111001", "111003", "122405", "121013", "121014", "121015", "121016"}


def english_words(text: str) -> list[str]:
    found = re.findall(r"[A-Za-z]{2,}", _KEPT.sub(" ", text))
    return [word for word in found if tag_for_keyword(word) is None]


def strings(tree: ast.AST) -> Iterator[str]:
    """String literals but docstrings and messages of ValueErrors; an f-string with {} for what is put in."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in node.values)
        if (
            isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call)
            and ast.unparse(node.exc.func) == "ValueError"
        ):
            inside.update(map(id, ast.walk(node)))
        if id(node) in inside:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def sentences_of_the_code() -> set[str]:
    """Every literal of SOURCES that has a blank in it, divided where `Language.told` divides it."""
    found = (text for path in SOURCES for text in strings(ast.parse(path.read_text(encoding="utf-8"))))
    pieces = (piece.strip() for text in found if " " in text.strip() for piece in text.split("; "))
    return {piece for piece in pieces if " " in piece}


def checks_of_the_code() -> set[str]:
    """The names of quality checks."""
    calls = (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    found = set()
    for node in calls:
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("_reject", "_warn"):
            found.add(node.args[0])
        elif isinstance(node, ast.keyword) and node.arg == "check":
            found.add(node.value)
    return {str(node.value) for node in found if isinstance(node, ast.Constant)}


@pytest.mark.parametrize("shape", sorted(sentences_of_the_code() - NOT_SENTENCES))
def test_every_sentence_that_the_code_can_put_in_a_record_has_a_translation(shape: str) -> None:
    shapes = {re.sub(r"\{\w+\}", "{}", sentence) for sentence in chinese.RECORD}
    examples = MADE_OF_PARTS.get(shape, () if "{}" in shape else (shape,))
    assert examples or shape in shapes
    for text in examples:
        assert translated(CHINESE, text), text


def test_the_exceptions_are_used() -> None:
    assert set(MADE_OF_PARTS) | NOT_SENTENCES <= sentences_of_the_code()


def test_every_check_and_everything_that_the_model_does_not_answer_has_a_translation() -> None:
    assert len(checks_of_the_code()) > 10
    assert checks_of_the_code() | set(Verdict) <= set(chinese.SENTENCES)
    manifest = load_manifest(BUNDLED_MODEL_DIR)
    for reason in (*manifest.not_assessed.values(), *manifest.withheld.values(), DISCLAIMER):
        assert not re.search("[A-Za-z]{4}", CHINESE.told(reason)), reason


def test_every_code_and_name_has_a_translation() -> None:
    meanings = {entry.meaning for entry in codes.every_code()}
    names = {*KIND_NAMES.values(), *QUANTITY_NAMES.values(), *PRESENCE_NAMES.values()}
    assert meanings <= set(CHINESE.sentences)
    assert names == set(chinese.NAMES)
    for meaning in chinese.MEANINGS.values():
        assert len(meaning) <= 64, "Code Meaning is an LO"


def test_a_translation_puts_the_same_values_in_as_the_sentence() -> None:
    for sentences in (chinese.SENTENCES, chinese.RECORD):
        for english, ours in sentences.items():
            assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", ours)), english


def test_the_fonts_have_every_character() -> None:
    for sentence in (*CHINESE.sentences.values(), *CHINESE.record.values(), CHINESE.comma, CHINESE.stop):
        assert printable(sentence) == sentence


@pytest.mark.parametrize(
    ("english", "ours"),
    [
        (
            "the kernel X1 is not known; by the noise of the image it is soft",
            "未知卷积核X1；按图像噪声判断为平滑卷积核",
        ),
        (
            "no suitable series (localizer (scout); modality SR is not CT (3 series))",
            "无合适的序列（定位像；设备类型SR不是CT（3个序列））",
        ),
        ("spine, about T7 to T9 (estimated level)", "脊柱，约T7至T9（节段为估计）"),
        ("spine (level not told)", "脊柱（节段未判定）"),
        ("sharp kernel (B70, f); a softer one gives truer HU", "锐利卷积核（B70, f）；较软的卷积核CT值更准确"),
        ("image 3 is (512, 512) pixels, not (256, 256)", "第3幅图像为(512, 512)像素，而非(256, 256)"),
        ("", ""),
        # What is not in the catalogue stays as it is, and no part of it is guessed.
        ("a new reason; contrast medium hides calcium", "a new reason；对比剂掩盖钙化"),
        ("left wherever, upper zone", "left wherever, upper zone"),
        ("noise of many HU: faint findings may be missed", "noise of many HU: faint findings may be missed"),
        ("{n} [x] (y", "{n} [x] (y"),
    ],
)
def test_a_text_of_the_record_is_told(english: str, ours: str) -> None:
    assert CHINESE.told(english) == ours
    assert ENGLISH.told(english) == english


@pytest.fixture(scope="module", params=("findings", "negative", "refused"))
def made(request: pytest.FixtureRequest, make_case: MakeCase) -> StoredResult:
    name = {"PatientName": "Wang^XiaoDong=王^小东", "StudyDescription": "胸部CT平扫"}
    return true_to_life(make_case(request.param, **name))


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_judges_are_content_and_no_english_is_left(name: str, made: StoredResult, tmp_path: Path) -> None:
    in_english = ENCODERS[name](made)
    in_chinese = ENCODERS[name](chinese_of(made))
    assert len(in_english) == len(in_chinese)
    for before, after in zip(in_english, in_chinese, strict=True):
        assert before.SOPInstanceUID != after.SOPInstanceUID
        assert before.SeriesInstanceUID != after.SeriesInstanceUID
        assert (before.SOPClassUID, before.StudyInstanceUID) == (after.SOPClassUID, after.StudyInstanceUID)
        assert "（未审核）" in after.SeriesDescription
        path = tmp_path / "object.dcm"
        path.write_bytes(encoded(after))
        assert complaints(path) == []
        assert [text for text in texts(read_back(after)) if english_words(text)] == []
        if name in DOCUMENTS:
            # It cuts long texts anywhere.
            dump = subprocess.run([tool("dsrdump"), str(path)], capture_output=True, errors="replace", check=False)
            assert dump.returncode == 0, dump.stderr
    assert [encoded(ds) for ds in ENCODERS[name](chinese_of(made))] == [encoded(ds) for ds in in_chinese]
    assert [encoded(ds) for ds in ENCODERS[name](made)] == [encoded(ds) for ds in in_english]


def test_the_sr_says_the_same_in_both_languages(made: StoredResult) -> None:
    """Codes, numbers, references and their order are those of the English one; it declares its language."""
    (before,), (after,) = ENCODERS["sr"](made), ENCODERS["sr"](chinese_of(made))

    def said(ds: Dataset) -> list[tuple[Any, ...]]:
        return [
            (
                item.ValueType,
                item.ConceptNameCodeSequence[0].CodeValue,
                item.ConceptCodeSequence[0].CodeValue if item.ValueType == "CODE" else "",
                item.MeasuredValueSequence[0].NumericValue if item.ValueType == "NUM" else "",
                item.get("UID", ""),
            )
            for item in items(ds)
            if item.ConceptNameCodeSequence[0].CodeValue != "121049"
        ]

    assert said(read_back(before)) == said(read_back(after))
    assert set(group_by_tracking_uid(after)) == {finding.tracking_uid for finding in made.report.findings}
    languages = [i for i in items(after) if i.ConceptNameCodeSequence[0].CodeValue == "121049"]
    assert [i.ConceptCodeSequence[0].CodeValue for i in languages] == ["zh-CN"]


def test_references_between_objects_stay_within_the_language(make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case("findings")
    (sr,), (seg,) = (ENCODERS[name](chinese_of(case)) for name in ("sr", "seg"))
    pointed_at = {
        reference.ReferencedSOPInstanceUID
        for item in items(sr)
        if item.ConceptNameCodeSequence[0].CodeValue == "121191"
        for reference in item.ReferencedSOPSequence
    }
    assert pointed_at == {seg.SOPInstanceUID}
    second = chinese_of(amended(case, case, tmp_path))
    for name in ("sr", "marks", "sr_text"):
        (first,), (later,) = ENCODERS[name](chinese_of(case)), ENCODERS[name](second)
        (study,) = later.PredecessorDocumentsSequence
        (series,) = study.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == first.SeriesInstanceUID
        assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
        assert later.SeriesDescription.endswith("（未审核），第2版")
        path = tmp_path / "amended.dcm"
        path.write_bytes(encoded(later))
        assert complaints(path) == []


def test_the_pdf_is_chinese(made: StoredResult, tmp_path: Path) -> None:
    _, document = stored(chinese_of(made), tmp_path)
    text = "".join(words(document).split())
    for expected in ("仅供科研使用", "印象", "王小东", "第1页", "未评估" if made.report.refusal else "所见"):
        assert expected in text
    assert english_words(words(document)) == []


def test_a_picture_in_chinese_is_another(make_case: MakeCase) -> None:
    case = true_to_life(make_case("findings"))
    (before,), (after,) = ENCODERS["sc"](case), ENCODERS["sc"](chinese_of(case))
    assert before.pixel_array.shape != after.pixel_array.shape or np.any(before.pixel_array != after.pixel_array)


def test_fhir_is_told_in_chinese_beside_the_displays_of_the_code_systems(made: StoredResult) -> None:
    before, after = (json.loads(encode_bundle(case)) for case in (made, chinese_of(made)))
    assert [entry["request"]["url"] for entry in before["entry"]] == [e["request"]["url"] for e in after["entry"]]
    told = list(_told(after))
    assert [text for text in told if english_words(text)] == []
    assert [coding for coding in _codings(before)] == [coding for coding in _codings(after)]
    report = after["entry"][-1]["resource"]
    assert report["language"] == "zh-CN"
    assert 'xml:lang="zh-CN"' in report["text"]["div"]
    assert "仅供科研使用" in report["conclusion"]


def _told(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _told(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("text", "conclusion", "unit") and isinstance(value, str):
                yield value
            else:
                yield from _told(value)


def _codings(node: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(node, list):
        for item in node:
            yield from _codings(item)
    elif isinstance(node, dict):
        if {"system", "code", "display"} <= set(node):
            yield node["system"], node["code"], node["display"]
        for value in node.values():
            yield from _codings(value)


def test_hl7_is_chinese_and_valid(made: StoredResult) -> None:
    before, after = (encode_oru(case).decode() for case in (made, chinese_of(made)))
    message = parse_message(after, validation_level=VALIDATION_LEVEL.TOLERANT)
    assert message.validate()
    header, *_ = after.split("\r")
    assert header.split("|")[18] == "zh^中文（中国）^ISO639"
    spoken = [line.split("|") for line in after.split("\r") if line.startswith(("OBX", "NTE"))]
    told = [f[5] for f in spoken if f[0] == "OBX" and f[2] in ("TX", "ST")] + [f[3] for f in spoken if f[0] == "NTE"]
    assert [text for text in told if english_words(text) and not re.fullmatch(r"[\d.]+", text)] == []
    numbers = [
        [f[5] for f in (line.split("|") for line in text.split("\r")) if f[:1] == ["OBX"] and f[2] == "NM"]
        for text in (before, after)
    ]
    assert numbers[0] == numbers[1]


def test_a_destination_gets_its_language() -> None:
    peer = {"name": "pacs", "ae_title": "PACS", "host": "pacs", "port": 104}
    assert edition_for(Destination(**peer)) == Edition(ENGLISH)
    assert edition_for(Destination(**peer, language="zh")) == IN_CHINESE


@pytest.mark.parametrize("name", ENCODERS)
def test_english_stays_english_after_chinese(name: str, make_case: MakeCase) -> None:
    """highdicom hands out the same coded items again and again: they must not be translated in place."""
    english = make_case("findings")
    before = [part_10(ds) for ds in ENCODERS[name](english)]
    ENCODERS[name](replace(english, edition=IN_CHINESE))
    assert [part_10(ds) for ds in ENCODERS[name](english)] == before
