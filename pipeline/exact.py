"""Exact sums in a store that only adds 64-bit integers: a number is limbs of base 10⁹, each its own counter.

Limbs need no carry: the reader adds up the total of limb e, times 10⁹ᵉ, with Python's integers.
Each limb of one child is below 10⁹, so a counter holds more than nine billion children. NaN and the infinities are
counted in limbs of their own and decide the result as Postgres does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

_BASE_DIGITS = 9
_BASE = 10**_BASE_DIGITS
_NAN, _INFINITY, _MINUS_INFINITY = 32765, 32766, 32767
_SPECIAL = {"NaN": _NAN, "Infinity": _INFINITY, "-Infinity": _MINUS_INFINITY}
# Decimal would also take 1_000, blanks around a number, and digits of other scripts: to a database they are text.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,6})?", re.ASCII)
_EXPONENT_MAX = 150_000
"""Beyond the digits of any numeric that Postgres holds."""


def number_of(value: Any) -> int | Decimal | str | None:
    """A canonical value as an exact number; text such as "12.50" counts; one of "NaN", "Infinity", "-Infinity" stays
    text; None for what is no number. Floats are taken by their shortest text."""
    kind = value.__class__
    if kind is int:
        return int(value)
    if kind is bool or value is None:
        return None
    if kind is float:
        return Decimal(repr(value))
    if kind is Decimal:
        return Decimal(value)
    if kind is not str:
        return None
    if value in _SPECIAL:
        return str(value)
    if _NUMBER.fullmatch(value) is None:
        return None
    number = Decimal(value)
    return number if abs(number.adjusted()) < _EXPONENT_MAX else None


def limbs_of(number: int | Decimal | str) -> dict[int, int]:
    """Exponent of 10⁹ → limb, signed, zero limbs left out."""
    if number.__class__ is int and -_BASE < number < _BASE:
        return {0: int(number)} if number else {}
    if isinstance(number, str):
        return {_SPECIAL[number]: 1}
    shift, coefficient = 0, number
    if isinstance(number, Decimal):
        sign, digits, exponent = number.as_tuple()
        shift, extra = divmod(int(exponent), _BASE_DIGITS)
        coefficient = _integer(digits) * 10**extra * (-1 if sign else 1)
    rest, sign_factor = abs(int(coefficient)), -1 if coefficient < 0 else 1
    limbs = {}
    while rest:
        rest, limb = divmod(rest, _BASE)
        if limb:
            limbs[shift] = limb * sign_factor
        shift += 1
    return limbs


def total_of(limbs: Mapping[int, int]) -> int | Decimal | str:
    """The exact sum of what `limbs_of` split: an int where integral, else a Decimal without trailing zeros."""
    nan, plus, minus = limbs.get(_NAN, 0), limbs.get(_INFINITY, 0), limbs.get(_MINUS_INFINITY, 0)
    if nan or (plus and minus):
        return "NaN"
    if plus or minus:
        return "Infinity" if plus else "-Infinity"
    lowest = min(limbs, default=0)
    coefficient = sum(limb * _BASE ** (exponent - lowest) for exponent, limb in limbs.items())
    return integral_or_decimal(coefficient, lowest * _BASE_DIGITS)


def integral_or_decimal(coefficient: int, exponent: int) -> int | Decimal:
    """coefficient × 10^exponent."""
    if exponent >= 0:
        return coefficient * int(10**exponent)
    while exponent < 0 and coefficient % 10 == 0:
        if coefficient == 0:
            return 0
        coefficient, exponent = coefficient // 10, exponent + 1
    if exponent == 0:
        return coefficient
    return Decimal((int(coefficient < 0), Decimal(abs(coefficient)).as_tuple().digits, exponent))


def _integer(digits: tuple[int, ...]) -> int:
    """Through Decimal, because Python refuses to turn text of more than 4300 digits into an integer."""
    return int(Decimal((0, digits, 0)))


def quotient(total: int | Decimal | str, count: int, places: int) -> int | Decimal | str | None:
    """total / count, rounded half to even to `places` decimals; None when count is 0."""
    if count == 0 or isinstance(total, str):
        return total if isinstance(total, str) and count else None
    _, digits, exponent = Decimal(total).as_tuple()
    numerator = _integer(digits) * (-1 if total < 0 else 1)
    shift = int(exponent) + places
    numerator, denominator = (numerator * 10**shift, count) if shift >= 0 else (numerator, count * 10**-shift)
    whole, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and whole % 2):
        whole += 1
    return integral_or_decimal(whole, -places)
