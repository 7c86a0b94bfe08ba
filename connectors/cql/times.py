"""CQL's times as text: ISO 8601, over the whole range of CQL, which is wider than Python's. Pure."""

from __future__ import annotations

import struct

_DAY_S = 86_400
_DAYS_OF_400_YEARS = 146_097
_EPOCH_DAY = 719_468
"""Days from 1 March of year 0 to 1970."""
_GREGORIAN_100NS = 0x01B21DD213814000
"""From 15 October 1582, where the time of a version 1 UUID begins, to 1970."""
_LARGEST_LOW = b"\x7f" * 8
_HALVES = struct.Struct(">Q8s")


def timestamp_text(milliseconds: int) -> str:
    """Milliseconds since 1970 → 2026-11-23T08:00:00.25Z."""
    seconds, thousandths = divmod(milliseconds, 1000)
    day, second = divmod(seconds, _DAY_S)
    return f"{date_text(day)}T{_clock(second)}{_fraction(thousandths, 3)}Z"


def date_text(day: int) -> str:
    """Days since 1970 → 2026-11-23; years that four digits do not hold with their sign, as ISO 8601 has it."""
    shifted = day + _EPOCH_DAY
    era, day_of_era = divmod(shifted, _DAYS_OF_400_YEARS)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    day_of_month = day_of_year - (153 * month_from_march + 2) // 5 + 1
    month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    year = year_of_era + era * 400 + (month <= 2)
    shown = f"{year:04}" if 0 <= year <= 9999 else f"{year:+05}"
    return f"{shown}-{month:02}-{day_of_month:02}"


def time_text(nanoseconds: int) -> str:
    """Nanoseconds since midnight → 08:00:00.25."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return _clock(seconds) + _fraction(rest, 9)


def duration_text(months: int, days: int, nanoseconds: int) -> str:
    """P1Y2M3DT4H5M6.5S; all parts of a CQL duration have one sign, which stands in front."""
    sign = "-" if min(months, days, nanoseconds) < 0 else ""
    months, days, nanoseconds = abs(months), abs(days), abs(nanoseconds)
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    seconds, rest = divmod(rest, 1_000_000_000)
    date = [(months // 12, "Y"), (months % 12, "M"), (days, "D")]
    shown = "".join(f"{number}{unit}" for number, unit in date if number)
    clock = "".join(f"{number}{unit}" for number, unit in [(minutes // 60, "H"), (minutes % 60, "M")] if number)
    if seconds or rest or not (shown or clock):
        clock += f"{seconds}{_fraction(rest, 9)}S"
    return f"{sign}P{shown}{'T' if clock else ''}{clock}"


def zigzag(number: int) -> int:
    """An unsigned number of a duration's bytes → the signed one."""
    return (number >> 1) ^ -(number & 1)


def timeuuid_us(value: bytes) -> int:
    """Microseconds since 1970 of a version 1 UUID: the write timestamp in Scylla's log."""
    return (_hundred_ns(value) - _GREGORIAN_100NS) // 10


def timeuuid_order(value: bytes) -> tuple[int, bytes]:
    """Compares as CQL compares timeuuids: by time, then by signed bytes."""
    return _hundred_ns(value), bytes(byte ^ 0x80 for byte in value[8:])


def last_timeuuid(microseconds: int) -> bytes:
    """The largest timeuuid of a microsecond: nothing of it is behind it."""
    return timeuuid(microseconds * 10 + 9, _LARGEST_LOW)


def timeuuid(hundred_ns: int, low: bytes) -> bytes:
    """A version 1 UUID of hundreds of nanoseconds since 1970 and its lower eight bytes, whatever these are."""
    time = hundred_ns + _GREGORIAN_100NS
    high = ((time & 0xFFFFFFFF) << 32) | ((time >> 32) & 0xFFFF) << 16 | 0x1000 | (time >> 48) & 0x0FFF
    return _HALVES.pack(high, low)


def _hundred_ns(value: bytes) -> int:
    high = int.from_bytes(value[:8], "big")
    return (high & 0x0FFF) << 48 | ((high >> 16) & 0xFFFF) << 32 | high >> 32


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _fraction(rest: int, digits: int) -> str:
    return f".{rest:0{digits}}".rstrip("0") if rest else ""
