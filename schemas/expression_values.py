"""What the expression language computes: exact numbers and SQL-like nulls; nothing here raises on a row's values.

A value that does not fit an operation gives null, as does a null operand. Numbers are int or Decimal; text that spells
a number ("12.50", how decimals travel) counts as one wherever a number is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from math import ceil as _ceil
from math import floor as _floor
from typing import Any

import msgspec

DIGITS_MAX = 300
"""Numbers longer than this (digits, or powers of ten) give null, so that no row can make a calculation slow."""
TEXT_LENGTH_MAX = 1_000_000
ROUND_PLACES_MAX = 18

SPECIAL = frozenset({"NaN", "Infinity", "-Infinity"})
"""Numbers that can only be compared: arithmetic with them gives null."""

_NUMBER_TEXT = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_INTEGER_LIMIT = 10**DIGITS_MAX
_EXACT = Context(prec=DIGITS_MAX * 4, Emin=-9999, Emax=9999)
_ZERO = Decimal(0)
_DIVISION = Context(prec=28, Emin=-9999, Emax=9999)


def number(value: Any) -> int | Decimal | None:
    """A canonical value as an exact number, floats by their shortest text; null for what is no finite number."""
    kind = value.__class__
    if kind is int:
        return value if -_INTEGER_LIMIT < value < _INTEGER_LIMIT else None
    if kind is str:
        if len(value) > DIGITS_MAX or _NUMBER_TEXT.fullmatch(value) is None:
            return None
        return int(value) if value.lstrip("+-").isdecimal() else _limited(Decimal(value))
    if kind is float:
        return _limited(Decimal(repr(value)))
    return _limited(value) if kind is Decimal else None


def number_or_special(value: Any) -> int | Decimal | str | None:
    """As number, but NaN and the infinities stay: they can still be compared."""
    return value if value.__class__ is str and value in SPECIAL else number(value)


_JSON = msgspec.json.Decoder(float_hook=number)


def _limited(value: Decimal) -> Decimal | None:
    """Null when not finite, too large or too small."""
    if -DIGITS_MAX <= value.adjusted() < DIGITS_MAX and value.is_finite():
        return value
    return _ZERO if value == _ZERO else None


def finish(value: Any) -> Any:
    """A result as it leaves: a number is an int where integral, else a Decimal without trailing zeros or exponent."""
    kind = value.__class__
    if kind is float:
        value, kind = number(value), Decimal
    if kind is not Decimal or value is None:
        return value
    limited = _limited(value)
    if limited is None:
        return None
    whole = int(limited)
    return whole if whole == limited else limited.normalize(_EXACT)


def add(left: Any, right: Any) -> int | Decimal | None:
    left, right = number(left), number(right)
    if left is None or right is None:
        return None
    return number(left + right if _integers(left, right) else _EXACT.add(left, right))


def subtract(left: Any, right: Any) -> int | Decimal | None:
    left, right = number(left), number(right)
    if left is None or right is None:
        return None
    return number(left - right if _integers(left, right) else _EXACT.subtract(left, right))


def multiply(left: Any, right: Any) -> int | Decimal | None:
    left, right = number(left), number(right)
    if left is None or right is None:
        return None
    return number(left * right if _integers(left, right) else _EXACT.multiply(left, right))


def divide(left: Any, right: Any) -> int | Decimal | None:
    """28 significant digits, half to even; an int where both are ints and it divides evenly."""
    left, right = number(left), number(right)
    if left is None or right is None or right == 0:
        return None
    if _integers(left, right) and left % right == 0:
        return number(left // right)
    return number(_DIVISION.divide(Decimal(left), Decimal(right)))


def floor_divide(left: Any, right: Any) -> int | Decimal | None:
    """The greatest integer not above the quotient, as in Python (Postgres' div rounds towards zero)."""
    pair = _scaled(left, right)
    return None if pair is None else number(pair[0] // pair[1])


def modulo(left: Any, right: Any) -> int | Decimal | None:
    """What floor_divide leaves; it has the sign of the divisor."""
    pair = _scaled(left, right)
    if pair is None:
        return None
    rest, places = pair[0] % pair[1], pair[2]
    return number(rest if places == 0 else Decimal(rest).scaleb(-places, context=_EXACT))


def negate(value: Any) -> int | Decimal | None:
    return subtract(0, value)


def compare(left: Any, right: Any) -> int | None:
    """-1, 0 or 1; null unless both are numbers, both text, both booleans, or a number and text that spells one.

    As in Postgres, infinity is beyond all numbers and NaN beyond infinity.
    """
    left_kind, right_kind = left.__class__, right.__class__
    if left_kind is not right_kind or left_kind is float or left_kind is Decimal:
        if left.__class__ is str and left in SPECIAL and number(right) is not None:
            return -1 if left == "-Infinity" else 1
        if right.__class__ is str and right in SPECIAL and number(left) is not None:
            return 1 if right == "-Infinity" else -1
        left, right = number(left), number(right)
    elif left_kind is str:
        if left[-1:] == "Z" == right[-1:] and left[10:11] == "T" == right[10:11]:
            left, right = left[:-1], right[:-1]  # 05Z comes before 05.5Z, though Z comes after the dot
    elif left_kind is not int and left_kind is not bool:
        return None
    if left is None or right is None:
        return None
    return int(left > right) - int(left < right)


def absolute(value: Any) -> int | Decimal | None:
    exact = number(value)
    if exact is None:
        return None
    return exact.copy_abs() if isinstance(exact, Decimal) else abs(exact)


def round_to(value: Any, places: Any = 0) -> int | Decimal | None:
    """Half away from zero, as Postgres rounds numeric; an int without places."""
    value, places = number(value), number(places)
    if value is None or places.__class__ is not int or abs(places) > ROUND_PLACES_MAX:
        return None
    try:
        rounded = Decimal(value).quantize(
            Decimal(1).scaleb(-places, context=_EXACT), rounding=ROUND_HALF_UP, context=_EXACT
        )
    except InvalidOperation:
        return None
    result = number(rounded)
    return int(result) if places <= 0 and result is not None else result


def floor(value: Any) -> int | None:
    exact = number(value)
    return None if exact is None else _floor(exact)


def ceil(value: Any) -> int | None:
    exact = number(value)
    return None if exact is None else _ceil(exact)


def least(*values: Any) -> Any:
    return _extreme(values, -1)


def greatest(*values: Any) -> Any:
    return _extreme(values, 1)


def lower(value: Any) -> str | None:
    return value.lower() if value.__class__ is str else None


def upper(value: Any) -> str | None:
    return value.upper() if value.__class__ is str else None


def length(value: Any) -> int | None:
    """Characters of a text, elements of an array."""
    return len(value) if value.__class__ is str or value.__class__ is list else None


def concat(*values: Any) -> str | None:
    texts = [part for value in values if (part := text(value)) is not None]
    return _short("".join(texts)) if len(texts) == len(values) else None


def text(value: Any) -> str | None:
    """Text as it is, numbers as they print, booleans as true and false."""
    kind = value.__class__
    if kind is str:
        return value  # type: ignore[no-any-return]
    if kind is bool:
        return "true" if value else "false"
    exact = finish(number(value))
    return None if exact is None else format(exact, "f")


def starts_with(value: Any, part: Any) -> bool | None:
    return bool(value.startswith(part)) if _texts(value, part) else None


def ends_with(value: Any, part: Any) -> bool | None:
    return value.endswith(part) if _texts(value, part) else None


def contains(value: Any, part: Any) -> bool | None:
    return part in value if _texts(value, part) else None


def substring(value: Any, start: Any, count: Any = DIGITS_MAX * TEXT_LENGTH_MAX) -> str | None:
    """As in SQL: the first character is 1, and `count` characters from `start` on, however few of them exist."""
    if value.__class__ is not str or start.__class__ is not int or count.__class__ is not int or count < 0:
        return None
    return value[max(start - 1, 0) : max(start - 1 + count, 0)]


def json_get(value: Any, *path: Any) -> Any:
    """The element at `path` (names of an object, 0-based positions of an array) of JSON text, an array or a map."""
    if value.__class__ is str:
        try:
            value = _JSON.decode(value)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return None
    for step in path:
        if value.__class__ is dict and step.__class__ is str:
            value = value.get(step)
        elif value.__class__ is list and step.__class__ is int and -len(value) <= step < len(value):
            value = value[step]
        else:
            return None
    return value


def strict(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with null for any null argument."""

    def checked(*values: Any) -> Any:
        return None if None in values else function(*values)

    return checked


def _integers(left: Any, right: Any) -> bool:
    return left.__class__ is int and right.__class__ is int


def _scaled(left: Any, right: Any) -> tuple[int, int, int] | None:
    """Both as integers of one power of ten, and that power; null where there is nothing to divide."""
    left, right = number(left), number(right)
    if left is None or right is None or right == 0:
        return None
    if _integers(left, right):
        return left, right, 0
    left, right = Decimal(left), Decimal(right)
    places = max(-left.as_tuple().exponent, -right.as_tuple().exponent, 0)
    return int(left.scaleb(places, context=_EXACT)), int(right.scaleb(places, context=_EXACT)), places


def _extreme(values: tuple[Any, ...], wanted: int) -> Any:
    best = values[0]
    for value in values[1:]:
        order = compare(value, best)
        if order is None:
            return None
        if order == wanted:
            best = value
    return best


def _texts(value: Any, part: Any) -> bool:
    return value.__class__ is str and part.__class__ is str


def _short(value: str) -> str | None:
    return value if len(value) <= TEXT_LENGTH_MAX else None
