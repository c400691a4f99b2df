"""The report in 30 seconds: what is present, most urgent first, what is open, not looked at, and what limits it."""

from collections import defaultdict

from dicom_gateway.report.content import Report, ReportedFinding
from dicom_gateway.report.language import ENGLISH, Language
from dicom_gateway.report.wording import KIND_NAMES, finding_title, key_measurements, place
from models.findings import FindingKind, Quantity

_MOST_URGENT_FIRST = (
    FindingKind.PNEUMOTHORAX,
    FindingKind.AORTIC_DILATATION,
    FindingKind.PERICARDIAL_EFFUSION,
    FindingKind.PLEURAL_EFFUSION,
    FindingKind.CONSOLIDATION,
    FindingKind.PULMONARY_NODULE,
)
# Rank of a kind: what cannot wait first, then the order of the vocabulary.
URGENCY = {kind: i for i, kind in enumerate(dict.fromkeys((*_MOST_URGENT_FIRST, *FindingKind)))}
_LISTED_LESIONS = 2
_NAMED_KINDS = 6
_REASONS_IN_A_SENTENCE = 2
_SIZE_FIRST = (Quantity.LONG_AXIS, Quantity.MAXIMUM_DIAMETER, Quantity.VOLUME)


def by_urgency(findings: tuple[ReportedFinding, ...]) -> list[ReportedFinding]:
    """Most urgent kind first, then in the order of the vocabulary."""
    return sorted(findings, key=lambda f: (URGENCY[FindingKind(f.kind)], f.lesion or 0))


def headline(report: Report, language: Language = ENGLISH) -> tuple[str, ...]:
    """`positives`, then a sentence each for what is absent, what was not assessed, and what limits all of it."""
    if report.refusal is not None:
        return (
            _sentence(language, "Not analysed: {reason}", reason=language.told(report.refusal)),
            _sentence(language, "None of the {n} finding kinds was assessed", n=len(FindingKind)),
        )
    return (
        *positives(report, language),
        *_absent(report, language),
        *_not_assessed(report, language),
        *limitations(report, language),
    )


def positives(report: Report, language: Language = ENGLISH) -> tuple[str, ...]:
    """One sentence for each kind that is present, or that nothing is, then one for what is indeterminate."""
    studied = _about_the_study(report)
    lesions = [f for f in report.findings if f.lesion is not None and f.presence == "present"]
    present = [f for f in studied if f.presence == "present"]
    lines = [_present(f, [x for x in lesions if x.kind == f.kind], language) for f in present]
    if not present:
        assessed = sum(f.presence != "not_assessed" for f in studied)
        is_open = any(f.presence == "indeterminate" for f in report.findings)
        nothing = (
            "Nothing clearly present among the finding kinds assessed ({n} of {m})"
            if is_open
            else "Nothing found among the finding kinds assessed ({n} of {m})"
        )
        lines.append(_sentence(language, nothing, n=assessed, m=len(FindingKind)))
    names = [finding_title(f, language).lower() for f in studied if f.presence == "indeterminate"]
    if names:
        lines.append(_sentence(language, "Indeterminate: {names}", names=language.listed(names)))
    return tuple(lines)


def limitations(report: Report, language: Language = ENGLISH) -> tuple[str, ...]:
    """At most one sentence: what the quality gates warn of, which holds for every answer of the report."""
    warnings = dict.fromkeys(language.told(issue.message) for issue in report.quality if issue.verdict == "warn")
    if not warnings:
        return ()
    return (_sentence(language, "Limited: {warnings}", warnings=language.semicolon.join(warnings)),)


def commented(report: Report, language: Language = ENGLISH) -> tuple[str, ...]:
    """What the person who verified the report said in words of their own, if anything; they are never translated."""
    if report.verification is None or report.verification.comment is None:
        return ()
    return (language.say("Comment of the verifying observer: {text}", text=report.verification.comment),)


def not_assessed_by_reason(report: Report, language: Language = ENGLISH) -> dict[str, list[str]]:
    """Reason -> names of the kinds that were not assessed for it, in the order of the report."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for finding in report.findings:
        if finding.presence == "not_assessed" and finding.lesion is None:
            groups[language.told(finding.reason or "")].append(language.say(KIND_NAMES[FindingKind(finding.kind)]))
    return dict(groups)


def _sentence(language: Language, words: str, /, **values: object) -> str:
    return f"{language.say(words, **values)}{language.stop}"


def _about_the_study(report: Report) -> list[ReportedFinding]:
    return by_urgency(tuple(f for f in report.findings if f.lesion is None))


def _present(finding: ReportedFinding, lesions: list[ReportedFinding], language: Language) -> str:
    title = finding_title(finding, language)
    if len(lesions) > _LISTED_LESIONS:
        title = language.say("{title} ({n})", title=title, n=len(lesions))
        details = [language.say("largest {details}", details=_details(max(lesions, key=_size), language))]
    else:
        details = [_details(lesion, language) for lesion in lesions] or [_details(finding, language)]
    told = [words for words in (*details, language.told(finding.reason or "")) if words]
    sentence = language.say("{title}: {words}", title=title, words=language.semicolon.join(told)) if told else title
    if finding.evidence_grade == "C":
        sentence = language.say("{sentence} (simulation evidence only)", sentence=sentence)
    return f"{sentence}{language.stop}"


def _details(finding: ReportedFinding, language: Language) -> str:
    return language.comma.join(filter(None, (place(finding, language), key_measurements(finding, language))))


def _size(finding: ReportedFinding) -> float:
    values = {m.quantity: m.value for m in finding.measurements}
    return next((values[q] for q in _SIZE_FIRST if q in values), 0.0)


def _absent(report: Report, language: Language) -> list[str]:
    """The kinds in one sentence, but one of its own for an answer with a reservation."""
    absent = [f for f in _about_the_study(report) if f.presence == "absent"]
    names = [finding_title(f, language).lower() for f in absent if not f.reason]
    lines = [_sentence(language, "Assessed, not found: {names}", names=language.listed(names))] if names else []
    return lines + [
        _sentence(
            language,
            "{title}: not found; {reason}",
            title=finding_title(f, language),
            reason=language.told(f.reason),
        )
        for f in absent
        if f.reason
    ]


def _not_assessed(report: Report, language: Language) -> list[str]:
    groups = not_assessed_by_reason(report, language)
    if not groups:
        return []
    total = language.say("{n} of {m} kinds", n=sum(map(len, groups.values())), m=len(FindingKind))
    if len(groups) == 1 and _named(next(iter(groups.values())), language) is None:
        (reason,) = groups
        return [_sentence(language, "Not assessed: {total} ({reason})", total=total, reason=reason)]
    if len(groups) > _REASONS_IN_A_SENTENCE:
        names = language.listed(name for names in groups.values() for name in names).lower()
        each = "Not assessed, {total}, each for the reason stated with it: {names}"
        return [_sentence(language, each, total=total, names=names)]
    reasons = language.semicolon.join(
        language.say(
            "{names} ({reason})",
            names=_named(names, language) or language.say("{n} kinds", n=len(names)),
            reason=reason,
        )
        for reason, names in groups.items()
    )
    return [_sentence(language, "Not assessed, {total}: {groups}", total=total, groups=reasons)]


def _named(names: list[str], language: Language) -> str | None:
    return language.listed(names).lower() if len(names) <= _NAMED_KINDS else None
