"""The oracle's reading of a context spec: one level per section, with columns, fields and filters by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.masks import mask
from pipeline.ops.reader import NUMBER_TYPES, TIME_TYPES, TableReader
from pipeline.ops.sorting import Kind
from schemas.context import ContextSpec, Entity, FieldSpec, Section
from schemas.expression import Expression, compile_expression
from schemas.types import is_decimal, nested_too_deep

Row = dict[str, Any]
Getter = Callable[[Row], Any]
Predicate = Callable[[Row], bool]
ROWS_MAX = 1000
"""A list or a list of groups without a limit ends here."""

_DECLARED_NUMBERS = ("decimal", "numeric", "integer", "float", "number")


@dataclass
class Level:
    """The root (section None) or a section. `types` are the catalog's, over them the declared ones."""

    path: str
    name: str
    entity: Entity
    section: Section | None
    reader: TableReader
    types: Mapping[str, str]
    numbers: frozenset[str] = frozenset()
    decimals: frozenset[str] = frozenset()
    """Columns that some entity of this table declares as decimals: a key is spelt by them."""
    joined_decimals: tuple[bool, ...] = ()
    """Which pairs of the join compare as SQL's numeric does: 1.00 finds 1."""
    columns: tuple[str, ...] = ()
    fields: list[tuple[str, Getter]] = field(default_factory=list)
    accept: list[Predicate] = field(default_factory=list)
    wheres: dict[str, Predicate] = field(default_factory=dict)
    children: list[Level] = field(default_factory=list)

    @property
    def declared(self) -> Section:
        assert self.section is not None, "the root has no section"
        return self.section

    @property
    def limit(self) -> int:
        return 1 if self.declared.kind == "one" else self.declared.limit or ROWS_MAX

    def kind_of(self, column: str) -> Kind:
        """How the column's texts sort: as declared, else as the source has it."""
        declared = self.entity.types.get(column, "")
        if column in self.numbers:
            return "number"
        if declared.startswith(("timestamp", "date")) and not declared.endswith("[]"):
            return "time"
        return "text" if declared == "text" else self.source_kind(column)

    def source_kind(self, column: str) -> Kind:
        """How the source itself sorts the column."""
        kind = self.types.get(column, "")
        return "number" if kind in NUMBER_TYPES else "time" if kind in TIME_TYPES else "text"

    @property
    def order(self) -> tuple[str, ...]:
        return (*self.declared.order_by, *self.entity.key)

    def accepts(self, row: Row) -> bool:
        return all(predicate(row) for predicate in self.accept)


async def build_levels(spec: ContextSpec, readers: Mapping[str, TableReader], mask_secret: bytes) -> Level:
    """The root level with all below it. Raises ConfigError with every column or source that does not exist."""
    builder = _Builder(spec, readers, mask_secret)
    root = await builder.level("", "", spec.root, None, spec.fields, spec.sections)
    mistakes = [mistake for level in walk(root) for mistake in _missing(level)]
    if mistakes:
        raise ConfigError(mistakes)
    return root


def walk(level: Level) -> Iterator[Level]:
    """The level and all below it, parents first."""
    yield level
    for child in level.children:
        yield from walk(child)


def undeclared_numbers(root: Level) -> list[str]:
    """Decimal columns that sort, compare, join or add up in this context but are not declared as numbers: on the wire
    they are text, and the pipeline takes them as text unless the spec says otherwise."""
    used = [use for level in walk(root) for use in (*_ordered(level), *_joined(level))]
    return sorted(
        {
            f"{level.entity.table}.{column} is numeric in the source: declare it under 'types' as decimal"
            for level, column in used
            if level.types.get(column) == "numeric" and column not in level.entity.types
        }
    )


def _ordered(level: Level) -> Iterator[tuple[Level, str]]:
    if level.section:
        yield from ((level, text.removeprefix("-")) for text in level.section.order_by)
        aggregates = level.section.aggregates.values()
        yield from ((level, a.by or a.column or "") for a in aggregates if a.function in ("min", "max", "latest"))


def _joined(level: Level) -> Iterator[tuple[Level, str]]:
    """Joins by numbers of which no side is declared a decimal."""
    for child in level.children:
        for (own, other), decimal in zip(child.declared.on.items(), child.joined_decimals, strict=True):
            if decimal and own not in child.decimals and other not in level.decimals:
                yield from ((child, own), (level, other))


def _missing(level: Level) -> list[str]:
    known = level.types
    return [
        f"context section {level.path or '(root)'}: table {level.entity.table} has no column {column!r}"
        for column in level.columns
        if column not in known
    ]


class _Builder:
    def __init__(self, spec: ContextSpec, readers: Mapping[str, TableReader], mask_secret: bytes) -> None:
        self._spec, self._readers, self._mask_secret = spec, readers, mask_secret
        self._catalog: dict[tuple[str, str], dict[str, str]] = {}

    async def level(
        self,
        path: str,
        name: str,
        entity_name: str,
        section: Section | None,
        fields: list[FieldSpec],
        sections: Mapping[str, Section],
    ) -> Level:
        entity = self._spec.entities[entity_name]
        reader = self._readers.get(entity.source)
        if reader is None:
            raise ConfigError([f"entity {entity_name}: no source {entity.source!r} in the configuration"])
        level = Level(path, name, entity, section, reader, await self._columns(entity, reader))
        level.numbers = frozenset(column for column in level.types if _is_number(level, column))
        level.decimals = frozenset(
            column
            for other in self._spec.entities.values()
            if (other.source, other.table) == (entity.source, entity.table)
            for column, declared in other.types.items()
            if is_decimal(declared)
        )
        used = [*entity.key]
        level.fields = [(spec.name, self._field(level, spec, used)) for spec in fields]
        level.accept = [
            self._predicate(level, text, used)
            for text in (entity.filter, section.filter if section else None)
            if text is not None
        ]
        for child_name, child in sections.items():
            child_path = f"{path}.{child_name}" if path else child_name
            below = await self.level(child_path, child_name, child.entity, child, child.fields, child.sections)
            below.joined_decimals = tuple(_joins_decimals(below, own, level, other) for own, other in child.on.items())
            level.children.append(below)
            used += child.on.values()
        if section is not None:
            self._section_columns(level, section, used)
        level.columns = tuple(dict.fromkeys(used))
        return level

    async def _columns(self, entity: Entity, reader: TableReader) -> dict[str, str]:
        place = (entity.source, entity.table)
        if place not in self._catalog:
            self._catalog[place] = await reader.columns(entity.table)
        return self._catalog[place]

    def _section_columns(self, level: Level, section: Section, used: list[str]) -> None:
        used += [*section.on, *section.group_by]
        if not section.aggregates:
            used += [text.removeprefix("-") for text in section.order_by]
        for name, aggregate in section.aggregates.items():
            used += [column for column in (aggregate.column, aggregate.by) if column]
            if aggregate.where is not None:
                level.wheres[name] = self._predicate(level, aggregate.where, used)

    def _field(self, level: Level, spec: FieldSpec, used: list[str]) -> Getter:
        if spec.value is not None:
            expression = self._expression(level, spec.value, used)
            get: Getter = expression.evaluate
        else:
            column = spec.column or spec.name
            used.append(column)
            get = _json_column(column) if level.entity.types.get(column) == "json" else _column(column)
        masked, secret, default = spec.mask, self._mask_secret, spec.default
        if masked is None and default is None:
            return get

        def finished(row: Row) -> Any:
            value = get(row) if masked is None else mask(masked, get(row), secret)
            return default if value is None else value

        return finished

    def _predicate(self, level: Level, text: str, used: list[str]) -> Predicate:
        evaluate = self._expression(level, text, used).evaluate
        return lambda row: evaluate(row) is True

    def _expression(self, level: Level, text: str, used: list[str]) -> Expression:
        numbers = dict.fromkeys(level.numbers, "decimal")
        expression = compile_expression(text, {**numbers, **level.entity.types})
        used += sorted(expression.columns)
        return expression


def _is_number(level: Level, column: str) -> bool:
    declared = level.entity.types.get(column)
    return declared.startswith(_DECLARED_NUMBERS) if declared else level.types[column] in NUMBER_TYPES


def _joins_decimals(level: Level, own: str, parent: Level, other: str) -> bool:
    """Where a side is declared a decimal; and where the source has numeric columns that nobody declared, which the
    pipeline joins by their spelling: there a difference is to show, with the hint to declare them."""
    if own in level.decimals or other in parent.decimals:
        return True
    kinds = {level.types.get(own), parent.types.get(other)}
    return "numeric" in kinds and kinds <= NUMBER_TYPES


def _column(name: str) -> Getter:
    return lambda row: row[name]


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large")
    return number


def _json_column(name: str) -> Getter:
    def get(row: Row) -> Any:
        value = row[name]
        if not isinstance(value, str):
            return value
        try:
            parsed = json.loads(value, parse_float=_finite)
            if "\\u" in value:
                json.dumps(parsed, ensure_ascii=False).encode()  # half of a surrogate pair can't travel
        except (ValueError, RecursionError):
            return value
        return value if nested_too_deep(parsed) else parsed

    return get
