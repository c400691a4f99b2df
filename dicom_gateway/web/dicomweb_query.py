"""Search parameters of QIDO-RS (PS3.18 section 8.3.4) and the matching they ask for (PS3.4 section C.2.2.2)."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_gateway.errors import GatewayError

DEFAULT_RESULTS, MAXIMUM_RESULTS = 200, 5000
_MAXIMUM_OFFSET = 10_000_000
_LONGEST_VALUE = 4096
_RANGES = frozenset({"DA", "DT", "TM"})
_WILD_CARDS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_SEQUENCE = "SQ"


class BadQuery(GatewayError):
    """The search parameters cannot be understood; the message quotes none of their values."""


class SearchTooBroad(GatewayError):
    """The search takes too long: it has to name more, or attributes that the index knows."""


@dataclass(frozen=True, slots=True)
class Key:
    """An attribute that has to have a value: one, a list of UIDs, a range or a pattern."""

    keyword: str
    vr: str
    value: str

    @property
    def is_exact(self) -> bool:
        """Whether only the value itself matches."""
        return self.vr not in _RANGES and not (self.vr in _WILD_CARDS and set(self.value) & {"*", "?"})

    def values(self) -> tuple[str, ...]:
        """The value, or those of a list of UIDs."""
        return tuple(filter(None, re.split(r"[,\\]", self.value))) if self.vr == "UI" else (self.value,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is searched and what is told of it; `fields` are keywords asked for beside those that are always told."""

    keys: tuple[Key, ...] = ()
    fields: tuple[str, ...] = ()
    all_fields: bool = False
    limit: int = DEFAULT_RESULTS
    offset: int = 0
    fuzzy: bool = False

    def key(self, keyword: str) -> Key | None:
        return next((key for key in self.keys if key.keyword == keyword), None)


def parse_query(parameters: Iterable[tuple[str, str]]) -> Query:
    """Raises BadQuery for unknown attributes, a key given twice, sequences, and numbers that are none."""
    values: dict[str, Any] = {}
    keys: dict[str, Key] = {}
    fields: list[str] = []
    for name, value in parameters:
        match name:
            case "limit":
                values["limit"] = min(_number(name, value), MAXIMUM_RESULTS)
            case "offset":
                values["offset"] = min(_number(name, value), _MAXIMUM_OFFSET)
            case "fuzzymatching":
                values["fuzzy"] = value == "true"
            case "includefield":
                fields += value.split(",")
            case "accept" | "charset":
                pass  # of the answer, not of the search (PS3.18 section 8.3.3)
            case _:
                key = _key(name, value)
                if key.keyword in keys:
                    raise BadQuery(f"{key.keyword} is given twice")
                keys[key.keyword] = key
    named = tuple(dict.fromkeys(_keyword(field.split(".")[0]) for field in fields if field and field != "all"))
    return Query(keys=tuple(k for k in keys.values() if k.value), fields=named, all_fields="all" in fields, **values)


def matches(header: Dataset, keys: Iterable[Key]) -> bool:
    """Whether every key that `header` has an answer to, even an empty one, fits; a missing attribute is empty."""
    return all(any(_fits(key, value) for value in _values_of(header, key.keyword)) for key in keys)


def _number(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise BadQuery(f"{name} is not a whole number")
    return int(value)


def _key(name: str, value: str) -> Key:
    keyword = _keyword(name)
    vr = dictionary_VR(keyword).split(" ")[0]
    if vr == _SEQUENCE or "." in name:
        raise BadQuery(f"{keyword}: sequences cannot be searched")
    if len(value) > _LONGEST_VALUE or not value.isprintable():
        raise BadQuery(f"{keyword}: the value is too long, or no text")
    return Key(keyword, vr, value.strip())


def _keyword(attribute: str) -> str:
    """The keyword of an attribute given as keyword or as eight hexadecimal digits."""
    told = keyword_for_tag(int(attribute, 16)) if re.fullmatch(r"[0-9A-Fa-f]{8}", attribute) else attribute
    if not re.fullmatch(r"[A-Za-z0-9]{1,64}", told) or tag_for_keyword(told) is None:
        raise BadQuery("a parameter is no attribute of the DICOM dictionary")
    return told


def _values_of(header: Dataset, keyword: str) -> Iterator[str]:
    value = header.get(keyword)
    values = list(value) if isinstance(value, (MultiValue, list)) else [value]
    for one in values or [None]:
        yield "" if one is None else str(one).strip()


def _fits(key: Key, value: str) -> bool:
    if key.vr == "PN":
        pattern = key.value.casefold()
        return any(_is_like(group, pattern) for group in (value.casefold(), *value.casefold().split("=")))
    if key.vr in _RANGES:
        return _is_within(value, key.value)
    if key.vr in _WILD_CARDS:
        return _is_like(value, key.value)
    return value in key.values()


def _is_like(value: str, pattern: str) -> bool:
    """'*' and '?' only (PS3.4 C.2.2.2.4), so that brackets mean themselves."""
    return fnmatchcase(value, pattern.replace("[", "[[]"))


def _is_within(value: str, wanted: str) -> bool:
    """Range matching of PS3.4 C.2.2.2.5; dates and times compare as their text."""
    least, dash, greatest = wanted.partition("-")
    if not dash:
        return value == wanted
    # A shorter bound names a whole period: 1200 as an end holds 120059.
    return bool(value) and least <= value and (not greatest or value[: len(greatest)] <= greatest)
