"""What the reader behind `ctxpipe verify` makes of CQL values: how they are shown, looked up and put in order. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from connectors.cql.schema import Column
from connectors.cql.times import date_text, timestamp_text
from connectors.cql.values import CqlType, decoder

Show = Callable[[bytes | None], Any]
OrderKey = tuple[Any, ...]

TYPE_NAMES = {
    "tinyint": "smallint",
    "smallint": "smallint",
    "int": "integer",
    "bigint": "bigint",
    "counter": "bigint",
    "varint": "numeric",
    "decimal": "numeric",
    "float": "real",
    "double": "double precision",
    "timestamp": "timestamp with time zone",
}
"""As the oracle calls what sorts as numbers and times; all other types keep CQL's name."""

_INTEGER_BITS = {"tinyint": 8, "smallint": 16, "int": 32, "bigint": 64}
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,18})", re.ASCII)
_IN_ORDER = ("timestamp", "date", "time")
_MOMENT = re.compile(
    r"(?P<year>[+-]?\d{4,9})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:T(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<fraction>\d{1,3}))?Z)?",
    re.ASCII,
)
_DATE_OFFSET = 1 << 31


def shown(column: Column) -> Show:
    """The canonical value of a column's bytes.

    What is written element by element is shown as merging its elements shows it, which knows no CQL types: sets in the
    order of their canonical elements, maps and user-defined types by name and without what is null.
    """
    decode, kind = decoder(column.type), column.type
    if column.multi_cell and kind.name == "set" and kind.parameters[0].name not in _IN_ORDER:
        return lambda value: None if value is None else sorted(decode(value), key=_element_order)
    if column.multi_cell and kind.name in ("map", "udt"):
        return lambda value: None if value is None else _live_entries(decode(value))
    return lambda value: None if value is None else decode(value)


def _live_entries(entries: dict[str, Any]) -> dict[str, Any] | None:
    return {name: entries[name] for name in sorted(entries) if entries[name] is not None} or None


def _element_order(value: Any) -> OrderKey:
    if isinstance(value, bool):
        return (1, value)
    return (2, value) if isinstance(value, int | float) else (3, _text(value))


def order_of(kind: CqlType) -> Callable[[bytes | None], OrderKey]:
    """As the protocol of readers has it: null is smallest, NaN the greatest number, text goes by code point."""
    decode, name = decoder(kind), kind.name

    def key(value: bytes | None) -> OrderKey:
        if value is None:
            return (0,)
        if name in _IN_ORDER and value:
            return (1, int.from_bytes(value, "big", signed=name != "date"))
        found = decode(value)
        if name not in TYPE_NAMES or found == "":
            return (1, found) if isinstance(found, bool) else (2, _text(found))
        number = Decimal(found) if isinstance(found, str) else found
        return (1, 1, 0) if number != number else (1, 0, number)

    return key


def sort_rows(rows: list[Any], order: Sequence[tuple[Callable[[Any], OrderKey], bool]]) -> None:
    """In place, by several keys, each (key of a row, whether descending)."""
    for key, descending in reversed(order):
        rows.sort(key=key, reverse=descending)


def _text(value: Any) -> bytes:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text.encode("utf-8", "surrogatepass")


def parameter_of(kind: CqlType) -> Callable[[str], Any] | None:
    """Key text → what a prepared statement takes for it, None where no value of the type is spelt like that.

    None for types in which several values are spelt alike or none is worth asking for (decimals, floats, lists, …).
    """
    if kind.name in _INTEGER_BITS:
        return lambda text: _integer(text, _INTEGER_BITS[kind.name])
    return _PARAMETERS.get(kind.name)


def _integer(text: str, bits: int) -> int | None:
    if _INTEGER.fullmatch(text) is None or text == "-0":
        return None
    number = int(text)
    return number if -(1 << (bits - 1)) <= number < 1 << (bits - 1) else None


def _utf8(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text


def _uuid(text: str) -> UUID | None:
    try:
        found = UUID(text)
    except ValueError:
        return None
    return found if str(found) == text else None


def _timestamp(text: str) -> int | None:
    """Milliseconds since 1970."""
    found = _MOMENT.fullmatch(text)
    if found is None or found["hour"] is None:
        return None
    hours, minutes, seconds = int(found["hour"]), int(found["minute"]), int(found["second"])
    clock_s = (hours * 60 + minutes) * 60 + seconds
    milliseconds = (_day(found) * 86_400 + clock_s) * 1000 + int((found["fraction"] or "").ljust(3, "0"))
    fits = -(1 << 63) <= milliseconds < 1 << 63
    return milliseconds if fits and timestamp_text(milliseconds) == text else None


def _date(text: str) -> int | None:
    """Days, as CQL counts them: 1970 begins in the middle of 32 bits."""
    found = _MOMENT.fullmatch(text)
    if found is None or found["hour"] is not None:
        return None
    day = _day(found)
    return day + _DATE_OFFSET if 0 <= day + _DATE_OFFSET < 1 << 32 and date_text(day) == text else None


def _day(found: re.Match[str]) -> int:
    """Days since 1970 in the calendar without end; a day that no month has is found out by spelling it again."""
    year, month, day = int(found["year"]), int(found["month"]), int(found["day"])
    eras, year_of_era = divmod(year - (month <= 2), 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return eras * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


_PARAMETERS: dict[str, Callable[[str], Any]] = {
    "text": _utf8,
    "varchar": _utf8,
    "ascii": lambda text: text if text.isascii() else None,
    "boolean": lambda text: {"true": True, "false": False}.get(text),
    "uuid": _uuid,
    "timeuuid": lambda text: found if (found := _uuid(text)) is not None and found.version == 1 else None,
    "timestamp": _timestamp,
    "date": _date,
}
