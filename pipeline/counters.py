"""Names of the counters at a parent value: which group, which aggregate, which limb of its sum."""

from __future__ import annotations

COUNT_OFFSET = 128
"""A counter's identifier plus this is the field of its number of rows; the identifier alone, of its sum's limbs."""

ROWS = 127
"""Identifier of the counter that counts all rows of a group."""

_LIMB_BIAS = 0x8000


def counter_field(group: bytes, identifier: int, limb: int = 0) -> bytes:
    """Group, then one byte for the counter and two for the limb."""
    return b"%b%c%b" % (group, identifier, (limb + _LIMB_BIAS).to_bytes(2, "big"))


def split_counter_field(field: bytes) -> tuple[bytes, int, int]:
    """(group, identifier, limb)."""
    return field[:-3], field[-3], int.from_bytes(field[-2:], "big") - _LIMB_BIAS
