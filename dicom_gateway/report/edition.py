"""How one destination wants the report told. Editions differ in words and codes, never in what they say."""

from dataclasses import dataclass

from dicom_gateway.report import codes
from dicom_gateway.report.codes import CodeEntry
from dicom_gateway.report.language import ENGLISH, LANGUAGES, Language
from dicom_gateway.settings import CodeSet, ReportDestination
from models.findings import FindingKind


@dataclass(frozen=True, slots=True)
class Edition:
    """The language of all words that people read, and which codes findings have.

    Without arguments: what is written where nobody asks for another.
    """

    language: Language = ENGLISH
    code_set: CodeSet = "freeset"

    @property
    def uid_parts(self) -> tuple[str, ...]:
        """What tells the UIDs of this edition's objects from those of another; nothing for that without arguments."""
        if self == PLAIN:
            return ()
        return ("edition", self.language.tag, *(() if self.code_set == PLAIN.code_set else (self.code_set,)))

    def finding_code(self, kind: FindingKind) -> CodeEntry:
        """What a finding of this kind is called."""
        exact = codes.SNOMED_CODES.get(kind) if self.code_set == "snomed" else None
        return exact or codes.KIND_CODES[kind].finding


PLAIN = Edition()


def edition_for(destination: ReportDestination) -> Edition:
    """The edition that a destination's profile asks for."""
    return Edition(LANGUAGES[destination.language], destination.code_set)
