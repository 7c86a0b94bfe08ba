"""Where every field of a context's bundles comes from, as the spec says it: table, column or expression, mask. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.lookup.answer import is_within
from schemas.context import Aggregate, ContextSpec, FieldSpec, Section


class FieldOrigin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One field by its path with dots. `kind`: column (as it is, or masked), value (an expression over the row),
    aggregate (over the section's rows) or group (what the rows are grouped by). `section` is the path that it lies in,
    empty for the bundle's own."""

    path: str
    section: str
    kind: str
    entity: str
    source: str
    table: str
    column: str | None = None
    value: str | None = None
    mask: str | None = None
    function: str | None = None
    by: str | None = None
    where: str | None = None
    default: Any = None


class SectionOrigin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How rows come into a section; the path of the bundle's own row is empty. `on`: its column → the parent's.
    `compose`: copy (written into each bundle), link (kept once) or auto (measured by the worker)."""

    path: str
    entity: str
    source: str
    table: str
    kind: str
    key: list[str]
    on: dict[str, str] = {}
    filters: list[str] = []
    order_by: list[str] = []
    limit: int | None = None
    compose: str | None = None


class Origins(msgspec.Struct, frozen=True):
    """Of all fields of a version, in the bundle's order."""

    context: str
    spec_version: int
    sections: list[SectionOrigin]
    fields: list[FieldOrigin]


def origins(spec: ContextSpec, shown: Sequence[str] | None = None) -> Origins:
    """`shown`: paths that the caller may see; what lies in none of them is left out. None: all."""
    fields = [field for field in _fields(spec) if shown is None or is_within(field.path, shown)]
    kept = {field.section for field in fields}
    sections = [one for one in _sections(spec) if shown is None or _holds(one.path, kept)]
    return Origins(spec.context, spec.version, sections, fields)


def _holds(path: str, kept: set[str]) -> bool:
    """Whether a section has a field that is shown, or leads to one."""
    return path == "" or any(section == path or section.startswith(f"{path}.") for section in kept)


def _fields(spec: ContextSpec) -> Iterator[FieldOrigin]:
    root = {"section": "", **_table(spec, spec.root)}
    yield from (_field(field, root) for field in spec.fields)
    for path, section in _walk(spec.sections):
        place = {"section": path, **_table(spec, section.entity)}
        for column in section.group_by:
            yield FieldOrigin(path=f"{path}.{column}", kind="group", column=column, **place)
        yield from (_field(field, place) for field in section.fields)
        yield from (_aggregate(name, one, place) for name, one in section.aggregates.items())


def _field(field: FieldSpec, place: Mapping[str, Any]) -> FieldOrigin:
    return FieldOrigin(
        path=_joined(place["section"], field.name),
        kind="column" if field.value is None else "value",
        column=field.column,
        value=field.value,
        mask=field.mask,
        default=field.default,
        **place,
    )


def _aggregate(name: str, aggregate: Aggregate, place: Mapping[str, Any]) -> FieldOrigin:
    return FieldOrigin(
        path=_joined(place["section"], name),
        kind="aggregate",
        function=aggregate.function,
        column=aggregate.column,
        by=aggregate.by,
        where=aggregate.where,
        **place,
    )


def _sections(spec: ContextSpec) -> Iterator[SectionOrigin]:
    root = spec.entities[spec.root]
    yield SectionOrigin(path="", kind="one", key=root.key, filters=_given(root.filter), **_table(spec, spec.root))
    for path, section in _walk(spec.sections):
        entity = spec.entities[section.entity]
        yield SectionOrigin(
            path=path,
            kind=section.kind,
            key=entity.key,
            on=section.on,
            filters=_given(entity.filter, section.filter),
            order_by=section.order_by,
            limit=section.limit,
            compose=section.compose,
            **_table(spec, section.entity),
        )


def _walk(sections: Mapping[str, Section], before: str = "") -> Iterator[tuple[str, Section]]:
    """An outer section stands before those in it."""
    for name, section in sections.items():
        path = _joined(before, name)
        yield path, section
        yield from _walk(section.sections, path)


def _table(spec: ContextSpec, entity: str) -> dict[str, Any]:
    return {"entity": entity, "source": spec.entities[entity].source, "table": spec.entities[entity].table}


def _joined(before: str, name: str) -> str:
    return f"{before}.{name}" if before else name


def _given(*conditions: str | None) -> list[str]:
    return [condition for condition in conditions if condition is not None]
