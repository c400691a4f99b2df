"""Series with the defects of real archives: each is reported with the right voxels in the right place, or refused."""

from pathlib import Path

import pytest
from broken_series import CASES, Corpus, make_corpus, outcome_of

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus()


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")
@pytest.mark.parametrize("name", CASES)
def test_reported_right_or_refused_by_name(name: str, corpus: Corpus, tmp_path: Path) -> None:
    outcome = outcome_of(name, corpus, tmp_path)
    assert outcome.name == CASES[name][1], outcome.said
