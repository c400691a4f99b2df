"""The languages in which a destination can have its reports.

The record holds English sentences, which models and quality gates write with their numbers in them. They are translated
by a catalogue of such sentences; one that is not in it stays English rather than become wrong.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from dicom_gateway.report import chinese, codes
from dicom_gateway.report.codes import CodeEntry

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NUMBER = r"-?\d+(?:\.\d+)?|nan"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Language:
    """How sentences are said and joined. `tag` is of RFC 5646, `entry` its code for TID 1204.

    `sentences` are our own, by the English ones; `record` is what a stored record can hold (see `chinese`).
    """

    tag: str
    entry: CodeEntry
    sentences: Mapping[str, str] = field(default_factory=dict, repr=False)
    record: Mapping[str, str] = field(default_factory=dict, repr=False)
    comma: str = ", "
    enumeration: str = ", "
    semicolon: str = "; "
    colon: str = ": "
    stop: str = "."
    after_stop: str = " "

    def say(self, sentence: str, /, **values: object) -> str:
        """`sentence`, English and with its values in braces, in this language."""
        return self.sentences.get(sentence, sentence).format(**values)

    def told(self, text: str) -> str:
        """A text of the record in this language; the parts that the catalogue does not have stay as they are."""
        if not self.record:
            return text
        parts = _divided(text, "; ")
        return self.semicolon.join(translated(self, part) or part for part in parts)

    def listed(self, names: Iterable[str]) -> str:
        """Names of equal rank: "a, b, c"."""
        return self.enumeration.join(names)

    def paragraph(self, sentences: Iterable[str]) -> str:
        """Whole sentences, each with its stop."""
        return self.after_stop.join(f"{sentence}{self.stop}" for sentence in sentences)


ENGLISH = Language(tag="en-US", entry=codes.ENGLISH)
CHINESE = Language(
    tag="zh-CN",
    entry=codes.CHINESE,
    sentences=chinese.MEANINGS | chinese.NAMES | chinese.SENTENCES,
    record=chinese.RECORD,
    comma="，",
    enumeration="、",
    semicolon="；",
    colon="：",
    stop="。",
    after_stop="",
)
LANGUAGES: Mapping[str, Language] = {"en": ENGLISH, "zh": CHINESE}


@cache
def translated(language: Language, text: str) -> str | None:
    """A text of the record in `language`, or None where the catalogue cannot tell all of it."""
    if text in language.record:
        return language.record[text]
    for pattern, sentence in _patterns(language):
        values = _translated_values(language, pattern.fullmatch(text))
        if values is not None:
            return sentence.format(**values)
    for separator, ours in (("; ", language.semicolon), (": ", language.colon), (", ", language.comma)):
        parts = _divided(text, separator)
        words = [translated(language, part) for part in parts] if len(parts) > 1 else [None]
        if None not in words:
            return ours.join(filter(None, words))
    return None


def _translated_values(language: Language, match: re.Match[str] | None) -> dict[str, str] | None:
    if match is None:
        return None
    values = match.groupdict()
    for name, value in values.items():
        if len(name) > 1 and not name.startswith("text"):
            word = translated(language, value)
            if word is None:
                return None
            values[name] = word
    return values


@cache
def _patterns(language: Language) -> tuple[tuple[re.Pattern[str], str], ...]:
    """The sentences with placeholders, those that say most by themselves first."""
    told = [sentence for sentence in language.record if _PLACEHOLDER.search(sentence)]
    told.sort(key=lambda sentence: -len(_PLACEHOLDER.sub("", sentence)))
    return tuple((re.compile(_pattern(sentence)), language.record[sentence]) for sentence in told)


def _pattern(sentence: str) -> str:
    literals_and_names = _PLACEHOLDER.split(sentence)
    groups = [f"(?P<{name}>{_NUMBER if len(name) == 1 else '.+?'})" for name in literals_and_names[1::2]]
    literals = map(re.escape, literals_and_names[::2])
    return "".join(literal + group for literal, group in zip(literals, [*groups, ""], strict=True))


def _divided(text: str, separator: str) -> list[str]:
    """`text` divided at each separator that stands in no brackets."""
    parts, depth = [""], 0
    for piece in re.split(f"({re.escape(separator)})", text):
        if piece == separator and depth <= 0:
            parts.append("")
            continue
        depth += piece.count("(") - piece.count(")")
        parts[-1] += piece
    return parts
