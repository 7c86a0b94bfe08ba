"""Which columns of which tables a context uses: nothing else is stored. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from schemas.context import ContextSpec, FieldSpec, Section
from schemas.expression import compile_expression


def columns_by_table(spec: ContextSpec) -> dict[str, set[str]]:
    """Every column that the context uses, by `source.table`; nothing else is stored (promise 7)."""
    uses: dict[str, set[str]] = {}

    def add(entity_name: str, *columns: str | None) -> None:
        entity = spec.entities[entity_name]
        uses.setdefault(f"{entity.source}.{entity.table}", set()).update(column for column in columns if column)

    def add_expression(entity_name: str, text: str | None) -> None:
        if text:
            add(entity_name, *compile_expression(text).columns)

    def add_fields(entity_name: str, fields: list[FieldSpec]) -> None:
        for spec_field in fields:
            add(entity_name, spec_field.column)
            add_expression(entity_name, spec_field.value)

    for name, entity in spec.entities.items():
        add(name, *entity.key)
        add_expression(name, entity.filter)
    add_fields(spec.root, spec.fields)
    add(spec.root, spec.tenant)
    for section, parent_entity in _walk(spec.sections, spec.root):
        add(parent_entity, *section.on.values())
        add(section.entity, *section.on, *section.group_by)
        add_fields(section.entity, section.fields)
        add_expression(section.entity, section.filter)
        if not section.group_by:
            add(section.entity, *(text.removeprefix("-") for text in section.order_by))
        for aggregate in section.aggregates.values():
            add(section.entity, aggregate.column, aggregate.by)
            add_expression(section.entity, aggregate.where)
    return uses


def _walk(sections: Mapping[str, Section], entity: str) -> Iterator[tuple[Section, str]]:
    """(section, its parent's entity), parents first."""
    for section in sections.values():
        yield section, entity
        yield from _walk(section.sections, section.entity)
