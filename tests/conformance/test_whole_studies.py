"""Everything that is made of a study, as the judges see it: in each language, whatever became of the study."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conformance.conftest import write_ct
from conformance.test_amendment import amended
from conformance.test_dicom_results import MakeCase, complaints, encoded, tool
from conformance.test_result_objects import OF_FINDINGS
from conformance.test_verified import OTHERWISE, verified
from pydicom import dcmread

from dicom_gateway.report.edition import PLAIN, Edition
from dicom_gateway.report.language import CHINESE
from dicom_gateway.report.objects import ENCODERS
from dicom_gateway.report.stored import StoredResult
from models.findings import FindingKind


def contradictions(files: Sequence[Path]) -> list[str]:
    """What dcentvfy finds to differ between objects of one patient and study."""
    result = subprocess.run([tool("dcentvfy"), *map(str, files)], capture_output=True, errors="replace", check=False)
    return re.findall(r"^Error.*", result.stdout + result.stderr, re.MULTILINE)


def revisions(study: str, make_case: MakeCase, results: Path) -> list[StoredResult]:
    """The results of a study, the earlier ones first."""
    if study in ("negative", "refused"):
        return [make_case(study)]
    first = make_case("all outlined")
    assert {f.kind for f in first.report.findings if f.presence == "present"} == set(FindingKind)
    if study == "amended":
        return [first, amended(first, first, results)]
    return [first, verified(first, results, OTHERWISE)] if study == "verified" else [first]


def written(case: StoredResult, folder: Path) -> list[Path]:
    """A file of each object of every kind: "kind.number.dcm"."""
    folder.mkdir()
    files = []
    for name, encode in ENCODERS.items():
        for number, ds in enumerate(encode(case)):
            files.append(folder / f"{name}.{number}.dcm")
            files[-1].write_bytes(encoded(ds))
    return files


@pytest.mark.parametrize(
    ("study", "edition"),
    [
        *((study, PLAIN) for study in ("every finding", "negative", "refused", "amended", "verified")),
        *((study, Edition(CHINESE)) for study in ("refused", "verified")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.language.tag,
)
def test_the_judges_are_content_with_every_object(
    study: str, edition: Edition, make_case: MakeCase, tmp_path: Path
) -> None:
    *earlier, newest = revisions(study, make_case, tmp_path)
    images = write_ct(tmp_path / "ct")
    before = [file for case in earlier for file in written(replace(case, edition=edition), tmp_path / "before")]
    after = written(replace(newest, edition=edition), tmp_path / "after")
    of_nothing = set(OF_FINDINGS) if study in ("negative", "refused") else set()
    assert {file.stem.partition(".")[0] for file in after} == set(ENCODERS) - of_nothing
    for file in after:
        assert complaints(file) == [], file.name
        if dcmread(file, specific_tags=["Modality"]).Modality in ("SR", "KO"):
            dump = subprocess.run([tool("dsrdump"), str(file)], capture_output=True, check=False)
            assert dump.returncode == 0, dump.stderr
    assert contradictions([*images, *before, *after]) == []
