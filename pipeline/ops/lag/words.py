"""Numbers as a person reads them: times, rates and counts in few signs."""

from __future__ import annotations

_UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))


def duration(seconds: float | None) -> str:
    """`0 s`, `240 ms`, `4.2 s`, `3 min`, `2.5 h`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    if seconds < 0.0005:
        return "0 s"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for size, unit in _UNITS:
        if seconds >= size:
            amount = seconds / size
            return f"{amount:.1f} {unit}" if amount < 10 and (unit != "min") else f"{amount:.0f} {unit}"
    return f"{seconds:.1f} s"


def count(number: float | None) -> str:
    """`1,234`; `unknown` for None."""
    return "unknown" if number is None else f"{number:,.0f}"


def records(number: float) -> str:
    return several(number, "record")


def several(number: float, noun: str) -> str:
    """`1 record`, `20,000 records`."""
    return f"1 {noun}" if round(number) == 1 else f"{number:,.0f} {noun}s"
