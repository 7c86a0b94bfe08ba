"""What bundles must be, computed naively from whole tables: no keys to chase, no indexes, no increments.

It shares only the spec model, expressions and masks with the product.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

import msgspec

from pipeline.masks import mask
from schemas.context import Aggregate, ContextSpec, Entity, FieldSpec, Section
from schemas.expression import compile_expression
from schemas.keys import key_text

Row = dict[str, Any]
Tables = dict[str, dict[str, Row]]
"""`source.table` → key text → row."""


def bundles(spec: ContextSpec, tables: Tables, secret: bytes = b"") -> dict[str, Any]:
    """Root key text → bundle as plain JSON values."""
    oracle = _Oracle(spec, tables, secret)
    entity = spec.entities[spec.root]
    found = {}
    for row in oracle.rows(entity):
        found[key_text([row[column] for column in entity.key])] = oracle.object(row, entity, spec.fields, spec.sections)
    return found


class _Oracle:
    def __init__(self, spec: ContextSpec, tables: Tables, secret: bytes) -> None:
        self.spec, self.tables, self.secret = spec, tables, secret

    def rows(self, entity: Entity, section_filter: str | None = None) -> list[Row]:
        rows = list(self.tables.get(f"{entity.source}.{entity.table}", {}).values())
        return [row for row in rows if _true(entity.filter, row, entity) and _true(section_filter, row, entity)]

    def object(self, row: Row, entity: Entity, fields: list[FieldSpec], sections: dict[str, Section]) -> dict[str, Any]:
        result = {field.name: self.field(row, entity, field) for field in fields}
        for name, section in sections.items():
            result[name] = self.section(row, entity, section)
        return result

    def field(self, row: Row, entity: Entity, field: FieldSpec) -> Any:
        if field.value is not None:
            value = _number(compile_expression(field.value, entity.types).evaluate(row))
        else:
            value = row[field.column or field.name]
            if entity.types.get(field.column or field.name) == "json" and isinstance(value, str):
                value = msgspec.json.decode(value)
        if field.mask is not None:
            value = mask(field.mask, value, self.secret)
        return field.default if value is None else value

    def section(self, parent: Row, parent_entity: Entity, section: Section) -> Any:
        entity = self.spec.entities[section.entity]
        exact = {
            own
            for own, other in section.on.items()
            if "decimal" in (entity.types.get(own), parent_entity.types.get(other))
        }
        rows = [row for row in self.rows(entity, section.filter) if _joined(row, parent, section.on, exact)]
        rows.sort(key=lambda row: _order([row[column] for column in entity.key]))
        if section.aggregates:
            return self.groups(rows, section, entity) if section.group_by else self.aggregates(rows, section, len(rows))
        for text in reversed(section.order_by):
            column = text.removeprefix("-")
            rows.sort(key=lambda row, c=column: _order([_typed(row[c], entity.types.get(c))]), reverse=text[0] == "-")
        objects = [self.object(row, entity, section.fields, section.sections) for row in rows]
        if section.kind == "one":
            return objects[0] if objects else None
        return objects[: section.limit or 1000]

    def groups(self, rows: list[Row], section: Section, entity: Entity) -> list[dict[str, Any]]:
        by_group: dict[str, list[Row]] = {}
        for row in rows:
            by_group.setdefault(msgspec.json.encode([row[c] for c in section.group_by]).decode(), []).append(row)
        result = []
        for text, members in by_group.items():
            values = dict(zip(section.group_by, msgspec.json.decode(text), strict=True))
            result.append({**values, **self.aggregates(members, section, len(rows))})
        result.sort(key=lambda item: _order([item[column] for column in section.group_by]))
        for text in reversed(section.order_by):
            column = text.removeprefix("-")
            result.sort(key=lambda item, c=column: _order([item[c]]), reverse=text[0] == "-")
        return result[: section.limit or 1000]

    def aggregates(self, rows: list[Row], section: Section, total: int) -> dict[str, Any]:
        entity = self.spec.entities[section.entity]
        return {name: _aggregate(rows, spec, entity, total) for name, spec in section.aggregates.items()}


def _aggregate(rows: list[Row], spec: Aggregate, entity: Entity, total: int) -> Any:
    counted = [row for row in rows if _true(spec.where, row, entity)]
    if spec.function == "share":
        return _rounded(Decimal(len(rows)), total, spec.round)
    if spec.function == "count" and spec.column is None:
        return len(counted)
    assert spec.column is not None
    if spec.function == "latest":
        counted.sort(
            key=lambda row: _order([_typed(row[spec.by or ""], entity.types.get(spec.by or ""))]), reverse=True
        )
        return counted[0][spec.column] if counted else None
    values = [row[spec.column] for row in counted if row[spec.column] is not None]
    if spec.function == "count":
        return len(values)
    if spec.function == "count_distinct":
        return len({msgspec.json.encode(value) for value in values})
    if spec.function in ("min", "max"):
        ordered = sorted(values, key=lambda value: _order([_typed(value, entity.types.get(spec.column or ""))]))
        return None if not ordered else ordered[0 if spec.function == "min" else -1]
    numbers = [Decimal(str(value)) for value in values]
    if not numbers:
        return None
    return (
        _number(sum(numbers))
        if spec.function == "sum"
        else _rounded(sum(numbers, Decimal(0)), len(numbers), spec.round)
    )


def _rounded(total: Decimal, count: int, places: int) -> Any:
    if count == 0:
        return None
    with localcontext() as context:
        context.prec = 200
        return _number((total / count).quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN))


def _number(value: Any) -> Any:
    """As JSON would carry it: an int where integral."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value


def _true(text: str | None, row: Row, entity: Entity) -> bool:
    return text is None or compile_expression(text, entity.types).evaluate(row) is True


def _joined(row: Row, parent: Row, on: dict[str, str], exact: set[str]) -> bool:
    """`exact`: the columns that compare as numbers, 1 = 1.00; others do by their spelling."""
    pairs = [(row[own], parent[other], own in exact) for own, other in on.items()]
    return all(a is not None and b is not None and _equal(a, b, number) for a, b, number in pairs)


def _equal(a: Any, b: Any, number: bool) -> bool:
    return Decimal(a) == Decimal(b) if number else key_text([a]) == key_text([b])


def _typed(value: Any, declared: str | None) -> Any:
    return Decimal(value) if declared == "decimal" and isinstance(value, str) else value


def _order(values: list[Any]) -> list[tuple[int, Any]]:
    order: list[tuple[int, Any]] = []
    for value in values:
        if value is None:
            order.append((0, 0))
        elif isinstance(value, bool):
            order.append((1, value))
        elif isinstance(value, int | float | Decimal):
            order.append((2, Decimal(str(value))))
        else:
            order.append((3, str(value).encode()))
    return order
