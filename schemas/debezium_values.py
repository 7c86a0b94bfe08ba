"""Debezium's value forms → canonical values (see schemas/event.py): numerics, times, bits, intervals, placeholders.

Every converter takes a value that is not null and raises ValueError or TypeError for one that it cannot be; messages
never show the value, because they travel to logs and dead letters.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import Any

import msgspec

from schemas.types import element_of, length_of, scale_of

Converter = Callable[[Any], Any]

PLACEHOLDER = "__debezium_unavailable_value"
"""What Debezium writes for a TOAST column that did not change: the source did not send it."""

_CODES = list(PLACEHOLDER.encode())
_UUID = str(uuid.UUID(bytes=hashlib.md5(PLACEHOLDER.encode(), usedforsecurity=False).digest(), version=3))
_PLACEHOLDER_TEXTS = frozenset(
    {
        PLACEHOLDER,
        base64.b64encode(PLACEHOLDER.encode()).decode(),
        base64.urlsafe_b64encode(PLACEHOLDER.encode()).decode(),
        PLACEHOLDER.encode().hex(),
        msgspec.json.encode({PLACEHOLDER: PLACEHOLDER}).decode(),
    }
)
_PLACEHOLDER_LISTS = ([PLACEHOLDER], _CODES, [_UUID])
_PLACEHOLDER_MAP = {PLACEHOLDER: PLACEHOLDER}

_SCALE_MAX = 20_000
_BYTES_MAX = 60_000
_WIDE = Context(prec=200_000, Emax=999_999, Emin=-999_999)
_INFINITIES_US = {9223372036825200000: "infinity", -9223372036832400000: "-infinity"}
"""The driver's infinities, which Debezium takes for microseconds before it converts them to the column's unit."""
_INFINITIES = {**_INFINITIES_US, 9223372036854775807: "infinity", -9223372036854775808: "-infinity"}
_DATE_INFINITIES = {
    2147483647: "infinity",
    -2147483648: "-infinity",
    -2147472692: "infinity",  # Debezium's POSITIVE_INFINITY_LOCAL_DATE; no date of Postgres is so early
    -2147472691: "-infinity",
}
_BITS_PADDED_MAX = 1_000_000
"""Longest `bit(n)` that is filled up with zeros; an unlimited `bit varying` claims two billion."""
_NUMBER_WORDS = {
    "NAN": "NaN",
    "INFINITY": "Infinity",
    "-INFINITY": "-Infinity",
    "POSITIVE_INFINITY": "Infinity",
    "NEGATIVE_INFINITY": "-Infinity",
}
_DAY_US = 86_400_000_000


def is_unavailable(value: Any) -> bool:
    """Whether the value is the placeholder, in the form that its column's type gives it."""
    kind = value.__class__
    if kind is str:
        return value in _PLACEHOLDER_TEXTS
    if kind is list:
        return value in _PLACEHOLDER_LISTS
    return kind is dict and value == _PLACEHOLDER_MAP


def decimal_of_bytes(scale: int) -> Converter:
    """base64 of the big-endian two's complement unscaled number."""
    return lambda value: _scaled(_unbase64(value), scale)


def variable_decimal(value: Any) -> str:
    """`{"scale": 5, "value": "BMsv"}`."""
    return _scaled(_unbase64(value["value"]), value["scale"])


def decimal(value: Any) -> str:
    """Any form that names its own scale: a struct, text, a JSON number."""
    if value.__class__ is dict:
        return variable_decimal(value)
    if value.__class__ is str:
        text = _NUMBER_WORDS.get(value.upper(), value)
        if text not in _NUMBER_WORDS.values() and not _DECIMAL_TEXT.fullmatch(text):
            raise ValueError("no decimal text; declare decimal(precision,scale) if the wire holds base64")
        # Text mode writes small numbers as Java does: 1E-8, 0E-8.
        return format(Decimal(text), "f") if "e" in text.lower() else text
    if value.__class__ is bool:
        raise TypeError("a boolean is no decimal")
    return format(Decimal(repr(value)), "f")


_DECIMAL_TEXT = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d{1,5})?", re.ASCII)


def declared_decimal(scale: int) -> Converter:
    """For a column declared with a scale: base64 where the wire is precise, else as `decimal`."""
    precise = decimal_of_bytes(scale)

    def convert(value: Any) -> str:
        if value.__class__ is not str:
            return decimal(value)
        # base64 has neither a dot nor a minus.
        if "." in value or "-" in value or value.upper() in _NUMBER_WORDS:
            return decimal(value)
        try:
            return precise(value)  # type: ignore[no-any-return]
        except binascii.Error:
            raise ValueError("no base64; declare decimal if the wire holds the number as text") from None

    return convert


def date(value: Any) -> str:
    """Days since 1970."""
    return _DATE_INFINITIES.get(_int(value)) or _dated(value, "")


def timestamp(units_per_second: int, zone: str = "") -> Converter:
    """Units since 1970."""
    to_us = 1_000_000 / units_per_second
    converted = {moment * units_per_second // 1_000_000: word for moment, word in _INFINITIES_US.items()}
    infinities = {**_INFINITIES, **converted}

    def convert(value: Any) -> str:
        infinity = infinities.get(_int(value))
        if infinity is not None:
            return infinity
        microseconds = value * int(to_us) if to_us >= 1 else value // int(1 / to_us)
        day, rest = divmod(microseconds, _DAY_US)
        return _dated(day, f"T{_clock(rest)}{zone}")

    return convert


def time(units_per_second: int) -> Converter:
    """Units since midnight; 24:00:00 exists."""

    digits = len(str(units_per_second)) - 1

    def convert(value: Any) -> str:
        seconds, fraction = divmod(_int(value), units_per_second)
        if not 0 <= value <= 86_400 * units_per_second:
            raise ValueError("no time of a day")
        return _clock(seconds * 1_000_000) + (f".{fraction:0{digits}d}".rstrip("0") if fraction else "")

    return convert


def zoned_timestamp(value: Any) -> str:
    """ISO text in UTC; trailing zeros of the fraction go."""
    text = _str(value)
    if text.endswith("Z"):
        return _with_era(_trimmed(text[:-1]), "Z")
    if _OFFSET.search(text):  # a transform has moved it to another zone
        text = datetime.fromisoformat(text).astimezone(UTC).isoformat().removesuffix("+00:00")
        return f"{_trimmed(text)}Z"
    return text


_OFFSET = re.compile(r"T.*[+-]\d\d:?\d\d$")


def iso_local(value: Any) -> str:
    """ISO text without a zone (isostring mode, which adds a Z)."""
    text = _str(value).removesuffix("Z")
    return _with_era(_trimmed(text), "")


def zoned_time(value: Any) -> str:
    """Debezium moves a time with a zone to UTC; Postgres writes that zone as +00."""
    text = _str(value)
    return f"{_trimmed(text[:-1])}+00" if text.endswith("Z") else text


def interval(units_per_second: int) -> Converter:
    """A duration as ISO 8601 in hours, minutes and seconds; months are lost on Debezium's side."""

    def convert(value: Any) -> str:
        microseconds = _int(value) * 1_000_000 // units_per_second
        sign, rest = ("-", -microseconds) if microseconds < 0 else ("", microseconds)
        seconds, fraction = divmod(rest, 1_000_000)
        parts = [(seconds // 3600, "H", ""), (seconds // 60 % 60, "M", ""), (seconds % 60, "S", _fraction(fraction))]
        text = "".join(f"{sign}{amount}{more}{unit}" for amount, unit, more in parts if amount or more)
        return f"PT{text or '0S'}"

    return convert


_INTERVAL = re.compile(r"P(?:(-?\d+)Y)?(?:(-?\d+)M)?(?:(-?\d+)D)?(?:T(?:(-?\d+)H)?(?:(-?\d+)M)?(?:(-?[\d.]+)S)?)?")


def iso_interval(value: Any) -> str:
    """`P0Y1M2DT0H0M0S` as Postgres prints it: P1M2D."""
    found = _INTERVAL.fullmatch(_str(value))
    if found is None:
        raise ValueError("no ISO 8601 interval")
    parts = [
        f"{_trimmed(amount)}{unit}" if amount and amount.strip("-0.") else ""
        for amount, unit in zip(found.groups(), "YMDHMS", strict=True)
    ]
    days, times = "".join(parts[:3]), "".join(parts[3:])
    return f"P{days}T{times}" if times else f"P{days}" if days else "PT0S"


def bits(length: int | None) -> Converter:
    """base64, least byte first, as text of 0 and 1. Zeros in front are not on the wire: `bit(n)` gets them back."""

    def convert(value: Any) -> Any:
        if value.__class__ is bool:
            return value
        content = base64.b64decode(_str(value), validate=True)
        width = length if length and length <= _BITS_PADDED_MAX else len(content) * 8
        return format(int.from_bytes(content, "little"), f"0{width}b") if width else ""

    return convert


def point(value: Any) -> dict[str, Any]:
    return {"x": value["x"], "y": value["y"]}


def geometry(value: Any) -> str:
    """Hexadecimal (E)WKB, as PostGIS prints it."""
    return base64.b64decode(value["wkb"], validate=True).hex().upper()


def vector(value: Any) -> str:
    """As pgvector prints it: [1,2.5]."""
    return f"[{','.join(_short(number) for number in value)}]"


def sparse_vector(value: Any) -> str:
    """As pgvector prints it: {1:1.5,3:2}/5."""
    pairs = value["vector"]
    items = sorted((int(place), number) for place, number in (pairs.items() if pairs.__class__ is dict else pairs))
    return f"{{{','.join(f'{place}:{_short(number)}' for place, number in items)}}}/{_int(value['dimensions'])}"


def hstore(value: Any) -> Any:
    """A map, or JSON text of one."""
    content = msgspec.json.decode(value) if value.__class__ is str else value
    if content.__class__ is not dict:
        raise TypeError("no map")
    return content


def json_text(value: Any) -> str:
    """JSON documents travel as text."""
    return value if value.__class__ is str else msgspec.json.encode(value).decode()


def plain(value: Any) -> Any:
    """What needs no schema to be understood; the two structs that speak for themselves are unpacked."""
    if value.__class__ is dict:
        if value.keys() == {"scale", "value"} and value["scale"].__class__ is int:
            return variable_decimal(value)
        if value.keys() == {"x", "y", "wkb", "srid"}:
            return point(value)
    return value


def whole(text: str) -> int | str:
    """A varint, which Debezium's connector for Cassandra writes as text: a number where 64 bits hold it."""
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 63 else str(number)


def inet(value: Any) -> str:
    """Debezium's connector for Cassandra writes an address as Java shows it, `/fe80:0:0:0:0:0:0:1`; others as text."""
    text = _str(value)
    return str(ipaddress.ip_address(text[1:])) if text.startswith("/") else text


def array_of(element: Converter) -> Converter:
    def convert(value: Any) -> list[Any]:
        if value.__class__ is not list:
            raise TypeError("no array")
        return [None if item is None else element(item) for item in value]

    return convert


def of_declared_type(declared: str) -> Converter:
    """The converter of a type that a spec declares; schemas.types.check_type has accepted it."""
    element = element_of(declared)
    if element is not None:
        return array_of(of_declared_type(element))
    scale = scale_of(declared)
    if scale is not None:
        return declared_decimal(scale)
    if declared.startswith("bits"):
        return bits(length_of(declared))
    return _BY_DECLARED_TYPE.get(declared, plain)


_BY_DECLARED_TYPE: dict[str, Converter] = {
    "decimal": decimal,
    "numeric": decimal,
    "json": json_text,
    "hstore": hstore,
    "point": point,
    "date": lambda value: date(value) if value.__class__ is int else _str(value),
    "date_ms": lambda value: date(_int(value) // 86_400_000),
    "time_ms": time(1_000),
    "time_us": time(1_000_000),
    "time_ns": time(1_000_000_000),
    "timestamp": lambda value: timestamp(1_000_000)(value) if value.__class__ is int else iso_local(value),
    "timestamp_ms": timestamp(1_000),
    "timestamp_us": timestamp(1_000_000),
    "timestamp_ns": timestamp(1_000_000_000),
    "timestamptz": zoned_timestamp,
    "timestamptz_ms": timestamp(1_000, "Z"),
    "timestamptz_us": timestamp(1_000_000, "Z"),
    "interval_us": interval(1_000_000),
    "inet": lambda value: inet(value),
    "integer": lambda value: whole(value) if value.__class__ is str else value,
}


def _scaled(content: bytes, scale: Any) -> str:
    if abs(_int(scale)) > _SCALE_MAX or len(content) > _BYTES_MAX:
        raise ValueError("a decimal beyond what Postgres can hold")
    number = int.from_bytes(content, "big", signed=True)
    if not 0 <= scale <= 18 or len(content) > 8:
        return format(Decimal(number).scaleb(-scale, context=_WIDE), "f")
    if scale == 0:
        return str(number)
    digits = str(abs(number)).zfill(scale + 1)
    return f"{'-' if number < 0 else ''}{digits[:-scale]}.{digits[-scale:]}"


def _dated(days: int, rest: str) -> str:
    """Days since 1970 as a date of the Gregorian calendar, far years and years before Christ as Postgres has them."""
    if not -10_000_000 < days < 110_000_000:
        raise ValueError("a date beyond what Postgres can hold")
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = year_of_era + era * 400 + (month <= 2)
    day = day_of_year - (153 * shifted + 2) // 5 + 1
    if year <= 0:
        return f"{1 - year:04d}-{month:02d}-{day:02d}{rest} BC"
    return f"{year:04d}-{month:02d}-{day:02d}{rest}"


def _with_era(text: str, zone: str) -> str:
    """Java's signed years as Postgres prints them: +10000 is 10000, -0043 is 44 BC."""
    if text[:1] == "+":
        return f"{text[1:]}{zone}"
    if text.startswith("0000-") or (text[:1] == "-" and text[1:2].isdigit()):
        year, _, rest = text.removeprefix("-").partition("-")
        return f"{int(year) + 1:04d}-{rest}{zone} BC"
    return f"{text}{zone}"


def _clock(microseconds: int) -> str:
    seconds, fraction = divmod(microseconds, 1_000_000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{_fraction(fraction)}"


def _fraction(microseconds: int) -> str:
    return f".{microseconds:06d}".rstrip("0") if microseconds else ""


def _trimmed(value: str) -> str:
    return value.rstrip("0").rstrip(".") if "." in value else value


def _short(number: Any) -> str:
    return repr(float(number)).removesuffix(".0")


def _unbase64(value: Any) -> bytes:
    return base64.b64decode(_str(value), validate=True)


def _int(value: Any) -> int:
    if value.__class__ is not int:
        raise TypeError("no integer")
    return int(value)


def _str(value: Any) -> str:
    if value.__class__ is not str:
        raise TypeError("no text")
    return str(value)
