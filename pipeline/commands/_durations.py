"""Durations as people write them on a command line: 30s, 15m, 6h, 90d."""

from __future__ import annotations

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration_s(option: str, text: str) -> int:
    """Seconds. Raises ConfigError that names the option."""
    from pipeline.core.errors import ConfigError

    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit() and len(number) < 7 and unit in _UNITS_S):
        raise ConfigError([f"{option} {text!r} is no duration; write a number and s, m, h or d, e.g. 90d"])
    return int(number) * _UNITS_S[unit]
