"""Values that vectors may be narrowed by, as numbers: what a condition means is in pipeline.stores.conditions.

Columns of segments keep one number per row and field; a condition is decided once per distinct value, not per row.
Written by one thread; searches read beside it, and look at each hit's own values again before they give it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import ge, gt, le, lt
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy

from pipeline.stores.conditions import meets
from pipeline.stores.spaces import Condition
from schemas.vectors import FilterValue

Value: TypeAlias = FilterValue | list[FilterValue]
Flags: TypeAlias = numpy.ndarray[tuple[int], numpy.dtype[numpy.bool_]]

_COMPARISONS: MappingProxyType[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {"lt": lt, "le": le, "gt": gt, "ge": ge}
)
_FIRST_CODES = 16


class FieldValues:
    """The distinct values of one field, numbered. `take` and `drop` count how many bundles have one; a number that
    nobody has any more is given to the next new value."""

    def __init__(self) -> None:
        self._codes: dict[Any, int] = {}
        self._values: list[Value] = []
        self._uses: list[int] = []
        self._free: list[int] = []
        self._members: dict[Any, set[int]] = {}
        self._numbers = numpy.full(_FIRST_CODES, numpy.nan, dtype=numpy.float64)

    def __len__(self) -> int:
        return len(self._codes)

    def take(self, value: Value) -> int:
        """The number of this value, counted once more."""
        identity = _identity(value)
        code = self._codes.get(identity)
        if code is None:
            code = self._new(value)
            self._codes[identity] = code
        self._uses[code] += 1
        return code

    def drop(self, value: Value) -> None:
        """One bundle fewer has this value."""
        identity = _identity(value)
        code = self._codes[identity]
        self._uses[code] -= 1
        if self._uses[code] == 0:
            del self._codes[identity]
            for member in _members(value):
                self._members[member].discard(code)
                if not self._members[member]:
                    del self._members[member]
            self._numbers[code] = numpy.nan
            self._free.append(code)

    def allowed(self, condition: Condition) -> Flags:
        """One flag per number: whether a value of this number meets the condition."""
        flags = numpy.zeros(len(self._values), dtype=numpy.bool_)
        if condition.comparison in ("eq", "in"):
            wanted = condition.value if isinstance(condition.value, list) else [condition.value]
            for value in wanted:
                flags[[code for code in tuple(self._members.get(_single(value), ())) if code < len(flags)]] = True
        elif _kind(condition.value) == "number":
            self._allow_numbers(flags, condition)
        else:
            compare, limit = _COMPARISONS[condition.comparison], condition.value
            flags[:] = [isinstance(value, str) and compare(value, limit) for value in self._values[: len(flags)]]
        return flags

    def _allow_numbers(self, flags: Flags, condition: Condition) -> None:
        assert isinstance(condition.value, int | float)
        # As 64-bit floats whole numbers above 2**53 are rounded: what is equal then is compared as it really is.
        numbers = self._numbers[: len(flags)]
        limit = _as_float(condition.value)
        flags[:] = _COMPARISONS[condition.comparison](numbers, limit)
        for code in numpy.flatnonzero(numbers == limit):
            flags[code] = _meets(self._values[int(code)], condition)

    def _new(self, value: Value) -> int:
        if self._free:
            code = self._free.pop()
            self._values[code] = value
        else:
            code = len(self._values)
            if code == len(self._numbers):
                grown = numpy.full(2 * code, numpy.nan, dtype=numpy.float64)
                grown[:code] = self._numbers
                self._numbers = grown
            self._values.append(value)
            self._uses.append(0)
        if not isinstance(value, list) and _kind(value) == "number":
            assert isinstance(value, int | float)
            self._numbers[code] = _as_float(value)
        for member in _members(value):
            self._members.setdefault(member, set()).add(code)
        return code


class Filters:
    """The dictionaries of all marked fields. Values of a bundle stand in the order of `fields`."""

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields = tuple(fields)
        self._places = {field: number for number, field in enumerate(self.fields)}
        self._dictionaries = [FieldValues() for _ in self.fields]

    def values(self, filters: Mapping[str, Value]) -> list[Value]:
        """A bundle's values of the marked fields; what is missing is null."""
        return [filters.get(field) for field in self.fields]

    def named(self, values: Sequence[Value]) -> dict[str, Value]:
        return dict(zip(self.fields, values, strict=True))

    def take(self, values: Sequence[Value]) -> list[int]:
        return [dictionary.take(value) for dictionary, value in zip(self._dictionaries, values, strict=True)]

    def drop(self, values: Sequence[Value]) -> None:
        for dictionary, value in zip(self._dictionaries, values, strict=True):
            dictionary.drop(value)

    def allowed(self, conditions: Sequence[Condition]) -> list[tuple[int, Flags]]:
        """Per condition the number of its field and the flags of that field's values."""
        places = [self._places[condition.field] for condition in conditions]
        return [
            (place, self._dictionaries[place].allowed(condition))
            for place, condition in zip(places, conditions, strict=True)
        ]


def _meets(value: Value, condition: Condition) -> bool:
    return meets([condition], {condition.field: value})


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "other"


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _single(value: Value) -> tuple[str, Any]:
    """True is not 1, while 1.0 is; all that is no number is one value, though it equals nothing."""
    return (_kind(value), value) if value == value else ("no number", None)


def _identity(value: Value) -> Any:
    return tuple(_single(one) for one in value) if isinstance(value, list) else _single(value)


def _members(value: Value) -> list[tuple[str, Any]]:
    return [_single(one) for one in value] if isinstance(value, list) else [_single(value)]
