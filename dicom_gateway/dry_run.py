"""What the rules would have done with the studies that are stored: nothing is changed."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from dicom_gateway.rules import StudyTraits, first_match
from dicom_gateway.settings import Rule, Settings
from dicom_gateway.store import index
from dicom_gateway.store.traits import read_traits


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A stored study and the rule that fits it, None where none does."""

    study: index.StudyRow
    traits: StudyTraits
    rule: Rule | None


def try_rules(
    engine: sa.Engine,
    settings: Settings,
    since: datetime,
    *,
    limit: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Trial, ...]:
    """Try the rules on the studies that were last heard of since then, the latest first, `limit` at most.

    `on_progress` is called with the number of studies done and of all.
    """
    studies = index.list_studies(engine, limit, since=since)
    trials = []
    for done, study in enumerate(studies, start=1):
        traits = read_traits(engine, settings.data_dir, study)
        trials.append(Trial(study=study, traits=traits, rule=first_match(settings.rules, traits)))
        on_progress(done, len(studies))
    return tuple(trials)


def tally(rules: Sequence[Rule], trials: Sequence[Trial]) -> tuple[tuple[Rule | None, int], ...]:
    """How many studies each rule fits, in the order of the rules; those that none fits last."""
    numbers = Counter(trial.rule and trial.rule.name for trial in trials)
    return tuple((rule, numbers[rule and rule.name]) for rule in (*rules, None))
