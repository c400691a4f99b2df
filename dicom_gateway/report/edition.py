"""How one destination wants the report told. Editions differ in words and codes, never in what they say."""

from dataclasses import dataclass

from dicom_gateway.report.language import ENGLISH, LANGUAGES, Language
from dicom_gateway.settings import ReportDestination


@dataclass(frozen=True, slots=True)
class Edition:
    """The language of all words that people read. Without arguments: what is written where nobody asks for another."""

    language: Language = ENGLISH

    @property
    def uid_parts(self) -> tuple[str, ...]:
        """What tells the UIDs of this edition's objects from those of another; nothing for that without arguments."""
        return () if self == PLAIN else ("edition", self.language.tag)


PLAIN = Edition()


def edition_for(destination: ReportDestination) -> Edition:
    """The edition that a destination's profile asks for."""
    return Edition(LANGUAGES[destination.language])
