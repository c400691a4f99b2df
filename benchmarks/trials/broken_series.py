"""The broken series of the tests as a table: what becomes of each, and why. It stands in RESULTS.md."""

import warnings
from collections import Counter
from pathlib import Path

from broken_series import (
    CASES,
    NO_SERIES,
    REPORTED,
    SILENTLY_WRONG,
    UNREADABLE,
    WARNED,
    Outcome,
    make_corpus,
    outcome_of,
)

_RESULTS = Path(__file__).with_name("RESULTS.md")
_BEGIN = "<!-- begin broken series: written by python benchmarks/trials broken-series -->"
_END = "<!-- end broken series -->"
_WORDS = {REPORTED: "reported right", WARNED: "reported with a warning", SILENTLY_WRONG: "**silently wrong**"}


def tabulate(folder: Path, trials: int, seed: int) -> str:
    """Try every case once (`trials` and `seed` change nothing) and write the table; the line that counts them."""
    corpus, outcomes = make_corpus(), {}
    with warnings.catch_warnings():
        # What pydicom thinks of the defects.
        warnings.simplefilter("ignore")
        for number, name in enumerate(CASES):
            files = folder / str(number)
            files.mkdir()
            outcomes[name] = outcome_of(name, corpus, files)
    usual = set(outcomes["nothing wrong"].said)
    rows = [f"| {name} | {_word(outcome)} | {_why(outcome, usual)} |" for name, outcome in outcomes.items()]
    counts = Counter(map(_word, outcomes.values()))
    counted = f"{len(outcomes)} series: " + ", ".join(
        f"{counts[word]} {word.strip('*')}" for word in (*_WORDS.values(), "refused")
    )
    table = "\n".join(
        [counted + ".", "", "| defect | outcome | what the report says of it |", "| --- | --- | --- |", *rows]
    )
    before, _, rest = _RESULTS.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    _RESULTS.write_text(f"{before}{_BEGIN}\n\n{table}\n\n{_END}{after}", encoding="utf-8")
    return counted


def _word(outcome: Outcome) -> str:
    return _WORDS.get(outcome.name, "refused")


def _why(outcome: Outcome, usual: set[str]) -> str:
    """Without what is said of the phantom itself."""
    kind = {UNREADABLE: "no file can be read: ", NO_SERIES: "no suitable series: "}.get(outcome.name, "")
    return kind + "; ".join(said for said in sorted(outcome.said) if said not in usual)
