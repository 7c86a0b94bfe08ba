"""The oracle's aggregates: counted by the source where it can, else from its rows, one accumulator per aggregate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Context, Decimal, Inexact
from fractions import Fraction
from typing import Any

from pipeline.ops.levels import Level, Row
from pipeline.ops.reader import NUMBER_TYPES, Aggregating, Match, Measure, Values
from pipeline.ops.sorting import Kind, number_of, sort_key
from schemas.context import Aggregate
from schemas.keys import key_text, plain_decimal

Partial = Any
"""What one aggregate came to in one group: a count; (sum, count of numbers); or a value."""

Groups = dict[str, dict[str, tuple[Values, int, list[Partial]]]]
"""Join value → group's text → (group values, rows, one partial per aggregate)."""

INTEGER_DIGITS_MAX = 4_000
_EXACT = Context(prec=400_000, traps=[Inexact], Emax=999_999_999, Emin=-999_999_999)


def empty_section(level: Level) -> Any:
    """The value of a section without rows."""
    if level.declared.kind == "one":
        return None
    if not level.declared.aggregates or level.declared.group_by:
        return []
    return _object(level, (), 0, [_Accumulator(level, name).partial for name in level.declared.aggregates], 0)


async def aggregate(level: Level, match: Match) -> dict[str, Any]:
    """Join value (key text) → the section's value, for join values that have rows."""
    reader = level.reader
    if isinstance(reader, Aggregating) and _countable(level):
        groups = await _counted(level, reader, match)
    else:
        groups = await _accumulated(level, match)
    return {join: _finished(level, found) for join, found in groups.items()}


def _countable(level: Level) -> bool:
    if level.accept or level.wheres:
        return False
    for spec in level.declared.aggregates.values():
        kind = level.types[spec.column] if spec.column else ""
        if kind.endswith("[]") or (spec.function in ("sum", "avg") and kind not in NUMBER_TYPES):
            return False
        if spec.function in ("min", "max", "latest") and (spec.by or spec.column) in level.entity.types:
            return False
    return True


async def _counted(level: Level, reader: Aggregating, match: Match) -> Groups:
    section = level.declared
    measures = [Measure("count")]
    for spec in section.aggregates.values():
        measures += _measures(spec, tuple(level.entity.key))
    groups: Groups = {}
    for on_values, group_values, values in await reader.totals(level.entity.table, match, section.group_by, measures):
        rest = list(values[1:])
        partials = [_partial(spec, rest, values[0]) for spec in section.aggregates.values()]
        by_group = groups.setdefault(_join(level, on_values), {})
        by_group[key_text(group_values)] = (group_values, values[0], partials)
    return groups


def _measures(spec: Aggregate, key: tuple[str, ...]) -> list[Measure]:
    column = spec.column
    if spec.function in ("sum", "avg"):
        return [Measure("sum", column), Measure("count", column)]
    if spec.function == "min":
        return [Measure("first_present", column, (str(column), *key))]
    if spec.function == "max":
        return [Measure("first_present", column, (f"-{column}", *key))]
    if spec.function == "latest":
        return [Measure("first", column, (f"-{spec.by}", *key))]
    return [] if spec.function == "share" else [Measure(spec.function, column)]


def _partial(spec: Aggregate, values: list[Any], rows: int) -> Partial:
    """Takes this aggregate's measures from the front of `values`."""
    if spec.function == "share":
        return rows
    first = values.pop(0)
    if spec.function in ("sum", "avg"):
        return (Decimal(first or 0), values.pop(0))
    return first


async def _accumulated(level: Level, match: Match) -> Groups:
    section, table = level.declared, level.entity.table
    found: dict[str, dict[str, _Group]] = {}
    async for batch in level.reader.rows(table, level.columns, match, (), None):
        for values in batch:
            row = dict(zip(level.columns, values, strict=True))
            if not level.accepts(row):
                continue
            by_group = found.setdefault(_join(level, [row[column] for column in match]), {})
            group_values = tuple(row[column] for column in section.group_by)
            name = key_text(group_values)
            if name not in by_group:
                by_group[name] = _Group(level, group_values)
            by_group[name].add(row)
    return {join: {name: group.result() for name, group in groups.items()} for join, groups in found.items()}


def _join(level: Level, values: Sequence[Any]) -> str:
    pairs = zip(values, level.joined_decimals, strict=True)
    return key_text([plain_decimal(value) if decimal else value for value, decimal in pairs])


class _Group:
    def __init__(self, level: Level, values: Values) -> None:
        self._values, self._rows = values, 0
        self._accumulators = [_Accumulator(level, name) for name in level.declared.aggregates]

    def add(self, row: Row) -> None:
        self._rows += 1
        for accumulator in self._accumulators:
            accumulator.add(row)

    def result(self) -> tuple[Values, int, list[Partial]]:
        return self._values, self._rows, [accumulator.partial for accumulator in self._accumulators]


class _Accumulator:
    """One aggregate over the rows that it is shown."""

    def __init__(self, level: Level, name: str) -> None:
        self._spec = level.declared.aggregates[name]
        self._where = level.wheres.get(name)
        self._key, self._kind = level.entity.key, level.kind_of
        self._count, self._sum = 0, Decimal(0)
        self._distinct: set[str] = set()
        self._best: tuple[Any, Any, Any] | None = None

    def add(self, row: Row) -> None:
        if self._where is not None and not self._where(row):
            return
        spec = self._spec
        value = row[spec.column] if spec.column else True
        if spec.function == "latest":
            self._consider(row, row[str(spec.by)], str(spec.by), value, greatest=True)
        elif value is None:
            return
        elif spec.function in ("min", "max"):
            self._consider(row, value, str(spec.column), value, greatest=spec.function == "max")
        elif spec.function in ("sum", "avg"):
            self._add_number(number_of(value))
        else:
            self._count += 1
            if spec.function == "count_distinct":
                self._distinct.add(f"{type(value).__name__} {value!r}")

    def _add_number(self, number: Decimal | None) -> None:
        if number is not None:
            self._count += 1
            self._sum = (
                _EXACT.add(self._sum, number)
                if number.is_finite() and self._sum.is_finite()
                else _special(self._sum, number)
            )

    def _consider(self, row: Row, by: Any, column: str, value: Any, greatest: bool) -> None:
        order = sort_key(by, self._kind(column))
        key = tuple(sort_key(row[name], self._kind(name)) for name in self._key)
        best = self._best
        better = best is None or (order > best[0] if greatest else order < best[0])
        if better or (best is not None and order == best[0] and key < best[1]):
            self._best = (order, key, value)

    @property
    def partial(self) -> Partial:
        function = self._spec.function
        if function in ("sum", "avg"):
            return (self._sum, self._count)
        if function in ("min", "max", "latest"):
            return self._best[2] if self._best else None
        return len(self._distinct) if function == "count_distinct" else self._count


def _special(total: Decimal, number: Decimal) -> Decimal:
    """Sums with NaN and the infinities, as Postgres has them."""
    if total.is_nan() or number.is_nan() or (total.is_infinite() and number.is_infinite() and total != number):
        return Decimal("NaN")
    return total if total.is_infinite() else number


def _finished(level: Level, groups: Mapping[str, tuple[Values, int, list[Partial]]]) -> Any:
    total = sum(rows for _, rows, _ in groups.values())
    objects = [_object(level, values, rows, partials, total) for values, rows, partials in groups.values()]
    if not level.declared.group_by:
        return objects[0]
    ordered = _sorted(level, objects)
    return ordered[: level.limit]


def _object(level: Level, group: Values, rows: int, partials: Sequence[Partial], total: int) -> Row:
    section = level.declared
    result: Row = dict(zip(section.group_by, group, strict=True))
    for (name, spec), partial in zip(section.aggregates.items(), partials, strict=True):
        result[name] = _value(spec, partial, total)
    return result


def _value(spec: Aggregate, partial: Partial, total: int) -> Any:
    if spec.function == "share":
        return _rounded(Fraction(partial, total), spec.round) if total else None
    if spec.function not in ("sum", "avg"):
        return partial
    amount, count = partial
    if not count:
        return None
    if not amount.is_finite():
        return str(amount)
    if spec.function == "sum":
        return plain(amount)
    return _rounded(Fraction(amount) / count, spec.round)


def _rounded(value: Fraction, places: int) -> int | Decimal:
    rounded = round(value * 10**places)
    return plain(_EXACT.scaleb(Decimal(rounded), -places))


def plain(number: Decimal) -> int | Decimal:
    """An int where integral and not so long that Python refuses to print it, else without trailing zeros."""
    integral = number == number.to_integral_value(context=_EXACT)
    return int(number) if integral and number.adjusted() < INTEGER_DIGITS_MAX else _EXACT.normalize(number)


def _sorted(level: Level, objects: list[Row]) -> list[Row]:
    section = level.declared

    def kind_of(name: str) -> Kind:
        spec = section.aggregates.get(name)
        return level.kind_of(name if spec is None else spec.column or "")

    for text in reversed([*section.order_by, *section.group_by]):
        name = text.removeprefix("-")
        kind = kind_of(name)
        objects.sort(key=lambda item, n=name, k=kind: sort_key(item[n], k), reverse=text.startswith("-"))  # type: ignore[misc]
    return objects
