"""Text of a source header in Unicode, also where its bytes are not in the character set that the header declares."""

import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as ItemSequence

UNICODE = "ISO_IR 192"
_ONE_PARAGRAPH = frozenset({"LO", "PN", "SH", "UC"})
_PARAGRAPHS = frozenset({"LT", "ST", "UT"})
_GB_CHARACTER_SETS = frozenset({"GB18030", "GBK", "ISO 2022 IR 58", "ISO 2022 GBK"})
_UNDECLARED = frozenset({"", "ISO_IR 6", "ISO 2022 IR 6", "ISO_IR 100", "ISO 2022 IR 100"})
# Latin-9 (PS3.3 C.12.1.1.2), which pydicom 3.0 takes for Latin-1.
_LATIN_9 = frozenset({"ISO_IR 203", "ISO 2022 IR 203"})
# Code extensions (PS3.3 C.12.1.1.2): pydicom 3.0 leaves the one of GB 2312 in the text.
_GB_ESCAPES = re.compile(rb"\x1b\$\)A|\x1b\(B")
_DELIMITERS = {0x0A, 0x0C, 0x0D, 0x5C, 0x5E, 0x3D}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# One ideograph touching a Latin letter is a Latin-1 letter with its neighbour ("M" 0xFC 0x6C "er" is Müller).
_MISREAD_LATIN = re.compile(r"[A-Za-z][^\x00-\x7f](?![^\x00-\x7f])|(?<![^\x00-\x7f])[^\x00-\x7f][A-Za-z]")
_IDEOGRAPHS_AND_ASCII = re.compile(r"[\x00-\x7f\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]*")


def decode_text(value: bytes, character_sets: Sequence[str]) -> str:
    """The text of one element's value field, without padding and control characters.

    `character_sets` is what the header declares. Chinese scanners often write GB bytes under another label, or
    UTF-8 under none, so bytes that cannot be what the label says are tried as UTF-8, then as GB 18030.
    """
    value = value.strip(b" \0")
    if value.isascii() and b"\x1b" not in value:
        return _CONTROL.sub("", value.decode("ascii"))
    declared = frozenset(character_sets or ("",))
    if declared & _GB_CHARACTER_SETS:
        text = _first_strict(_GB_ESCAPES.sub(b"", value), "gb18030", "utf-8")
    elif declared == {"ISO_IR 192"}:
        text = _first_strict(value, "utf-8", "gb18030")
    elif declared <= _UNDECLARED:
        text = _undeclared(_GB_ESCAPES.sub(b"", value))
    elif declared <= _LATIN_9:
        text = value.decode("iso8859_15")
    else:
        text = _by_declaration(value, character_sets)
    return _CONTROL.sub("", text).strip()


def declared_character_sets(source: Dataset) -> tuple[str, ...]:
    """Specific Character Set (0008,0005) of a data set; empty where there is none."""
    value: Any = source.get("SpecificCharacterSet")
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def in_unicode(source: Dataset, character_sets: Sequence[str] = ()) -> Dataset:
    """The elements of a data set as it was read, all text by `decode_text`, in items of sequences, too.

    `character_sets` are those of what the data set is an item of. What its VR cannot hold is left out.
    """
    declared = declared_character_sets(source) or tuple(character_sets)
    decoded = Dataset()
    for tag in list(source.keys()):
        # pydicom converts a value when it is asked for, and fails in many ways.
        with suppress(Exception):
            element = _text_element(source, int(tag), declared) or source[tag]
            if element.VR == "SQ":
                items = ItemSequence(in_unicode(item, declared) for item in element.value)
                element = DataElement(element.tag, "SQ", items)
            decoded.add(element)
    decoded.SpecificCharacterSet = UNICODE
    return decoded


def _text_element(source: Dataset, tag: int, declared: Sequence[str]) -> DataElement | None:
    """The element decoded, None where it is no text or has been decoded before."""
    raw = source.get_item(tag)
    if raw is None or not isinstance(raw.value, bytes):
        return None
    vr = raw.VR or dictionary_VR(tag)
    if vr in _ONE_PARAGRAPH:
        return DataElement(tag, vr, decode_text(raw.value, declared))
    if vr in _PARAGRAPHS:
        return DataElement(tag, vr, "\r\n".join(decode_text(line, declared) for line in raw.value.splitlines()))
    return None


def _first_strict(value: bytes, *encodings: str) -> str:
    for encoding in encodings:
        try:
            return value.decode(encoding)
        except UnicodeDecodeError:
            continue
    return value.decode(encodings[0], errors="replace")


def _undeclared(value: bytes) -> str:
    """UTF-8 or GB where the bytes can be that and no Latin text reads like it; else Latin-1."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        pass
    try:
        text = value.decode("gb18030")
    except UnicodeDecodeError:
        return value.decode("latin-1")
    if _MISREAD_LATIN.search(text) or not _IDEOGRAPHS_AND_ASCII.fullmatch(text):
        return value.decode("latin-1")
    return text


def _by_declaration(value: bytes, character_sets: Sequence[str]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of what the source declares; it is what is repaired here
        return str(decode_bytes(value, convert_encodings(list(character_sets)), _DELIMITERS))
