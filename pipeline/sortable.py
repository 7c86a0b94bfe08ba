"""Order-preserving bytes: the entries of a relation's ordered indexes compare as their values do.

An entry is the sort values, then the child's primary key as the last tie-break, then a payload that plays no part in
the order (the child's key text, or a JSON value), then the payload's length in four bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

import msgspec

_NULL = b"\x01"
_FALSE = b"\x02"
_TRUE = b"\x03"
_NUMBER = b"\x05"
_TEXT = b"\x06"
_COMPLEMENT = bytes(255 - byte for byte in range(256))
_ZERO = b"\x80"
_EXPONENT_BIAS = 1 << 31
_REMEMBERED_TEXTS = 4096
"""Names, times and categories come again in most rows of a batch."""
_END = b"\x00\x00"
_END_UTC = b"\x00\x01"
_MOMENT = re.compile(r"(\d{4,6})(-\d\d-\d\d)(?:(T\d\d:\d\d:\d\d(?:\.\d+)?)(Z)?)?( BC)?", re.ASCII)
_DIGITS_COMPLEMENT = bytes.maketrans(b"0123456789", b"9876543210")
NUMBER_TYPES = ("decimal", "numeric", "integer", "float", "number")


def encode_value(value: Any) -> bytes:
    """Prefix-free bytes: null < false < true < numbers < text (by code point) < lists and objects by their JSON.

    Canonical times are text that sorts as the moment that it names.
    """
    kind = value.__class__
    if kind is str:
        return _encode_text(value)
    if value is None:
        return _NULL
    if kind is bool:
        return _TRUE if value else _FALSE
    if kind is int or kind is float or kind is Decimal:
        return _NUMBER + _number(value)
    return encode_value(msgspec.json.encode(value).decode())


@lru_cache(_REMEMBERED_TEXTS)
def _encode_text(text: str) -> bytes:
    found = _MOMENT.fullmatch(text)
    return _encode_plain(text) if found is None else _encode_moment(*found.groups(""))


def _encode_plain(text: str) -> bytes:
    return _TEXT + text.encode("utf-8", "surrogatepass").replace(b"\x00", b"\x00\xff") + _END


def _encode_moment(year: str, day: str, clock: str, zone: str, era: str) -> bytes:
    """By code point, but 05Z before 05.5Z, and years of more digits or before Christ in their places, which bytes that
    no text has keep apart from all text. A date of such a year alone isn't sure to be one: it may be a part's number.
    """
    if era:
        head = b"/\xff" + year.encode().translate(_DIGITS_COMPLEMENT)  # between -infinity and the years after Christ
    elif len(year) > 4 and clock:
        head = b"9" + b"\xff" * (len(year) - 4) + year.encode()
    else:
        head = year.encode()
    return b"%b%b%b%b%b" % (_TEXT, head, day.encode(), clock.encode(), _END_UTC if zone else _END)


@lru_cache(_REMEMBERED_TEXTS)
def _encode_text_descending(text: str) -> bytes:
    return _encode_text(text).translate(_COMPLEMENT)


def encode_descending(value: Any) -> bytes:
    """As encode_value, in the opposite order."""
    if value.__class__ is str:
        return _encode_text_descending(value)
    return encode_value(value).translate(_COMPLEMENT)


def typed(encode: Callable[[Any], bytes], declared: str | None) -> Callable[[Any], bytes]:
    """`encode` for a column of a declared type: numbers that travel as text ("12.50", "NaN") sort as numbers, and what
    is declared to be text as text, also where it looks like a time."""
    if declared == "text":
        complement = _COMPLEMENT if encode is encode_descending else None
        return lambda value: _encode_plain(value).translate(complement) if value.__class__ is str else encode(value)
    if declared is None or not declared.startswith(NUMBER_TYPES):
        return encode

    def encode_number(value: Any) -> bytes:
        if value.__class__ is str:
            try:
                return encode(Decimal(value))
            except InvalidOperation:
                return encode(value)
        return encode(value)

    return encode_number


def make_entry(prefix: bytes, payload: bytes) -> bytes:
    """An index entry from encoded sort and key values and the payload (at most 4 GiB)."""
    return b"%b%b%b" % (prefix, payload, len(payload).to_bytes(4, "big"))


def entry_payload(entry: bytes) -> bytes:
    """The payload of an entry."""
    length = int.from_bytes(entry[-4:], "big")
    return entry[len(entry) - 4 - length : -4]


def _number(value: int | float | Decimal) -> bytes:
    if value.__class__ is int and value > 0:
        text = str(value)
        return b"\xc0%b%b\x00" % ((len(text) + _EXPONENT_BIAS).to_bytes(5, "big"), text.rstrip("0").encode())
    if value.__class__ is float:
        value = Decimal(repr(value))
    elif value.__class__ is int:
        value = Decimal(value)
    assert isinstance(value, Decimal)
    if value.is_nan():
        return b"\xff"
    if value.is_infinite():
        return b"\xfe" if value > 0 else b"\x00"
    if not value:
        return _ZERO
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    power = len(text) + int(exponent)
    encoded = (power + _EXPONENT_BIAS).to_bytes(5, "big") + text.rstrip("0").encode() + b"\x00"
    return b"\x40" + encoded.translate(_COMPLEMENT) if sign else b"\xc0" + encoded
