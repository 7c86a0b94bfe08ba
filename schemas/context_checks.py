"""Second look at a context spec, after its shape is right: names that must exist, combinations that make sense."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from schemas.context import Aggregate, ContextSpec, Entity, FieldSpec, Section
from schemas.expression import ExpressionError, compile_expression
from schemas.topics import table_topic
from schemas.types import NESTING_MAX, check_type, nested_too_deep
from schemas.yaml_file import Location, Mistake, suggestion

SECTION_DEPTH_MAX = 6
LINE = "@line"
"""Stands in a location before the number of a line in a text."""
GROUP_NEEDS = "group_by makes one object per group and needs aggregates to put into it"


def check_spec(spec: ContextSpec, entity_names: Collection[str]) -> list[Mistake]:
    """All mistakes. `entity_names` are those written in the file, also of entities that are themselves mistaken."""
    checker = _Checker(spec, {*entity_names, *spec.entities})
    return list(checker.mistakes())


class _Checker:
    def __init__(self, spec: ContextSpec, entity_names: Collection[str]) -> None:
        self.spec = spec
        self.entity_names = entity_names

    def mistakes(self) -> Iterator[Mistake]:
        spec = self.spec
        if spec.root not in self.entity_names:
            yield Mistake(("root",), f"there is no entity {spec.root!r}{suggestion(spec.root, self.entity_names)}")
        for name, entity in spec.entities.items():
            yield from _entity(("entities", name), entity)
        yield from _conflicts(spec.entities)
        types = self._types(spec.root)
        yield from _fields((), spec.fields, spec.sections, types)
        for name, section in spec.sections.items():
            yield from self._section(("sections", name), section, spec.root, 1, inside_link=False)
        yield from _default(("serving", "default"), spec.serving.default)
        yield from _text(spec)
        yield from _embedding(spec)

    def _types(self, entity_name: str) -> Mapping[str, str]:
        entity = self.spec.entities.get(entity_name)
        return entity.types if entity else {}

    def _section(self, at: Location, section: Section, parent: str, depth: int, inside_link: bool) -> Iterator[Mistake]:
        if depth > SECTION_DEPTH_MAX:
            yield Mistake(at, f"sections go at most {SECTION_DEPTH_MAX} deep")
            return
        if section.entity not in self.entity_names:
            hint = suggestion(section.entity, self.entity_names)
            yield Mistake((*at, "entity"), f"there is no entity {section.entity!r}{hint}")
        types = self._types(section.entity)
        yield from _expression((*at, "filter"), section.filter, types)
        yield from _fields(at, section.fields, section.sections, types)
        yield from self._shape(at, section)
        for name, aggregate in section.aggregates.items():
            yield from _aggregate((*at, "aggregates", name), aggregate, section, types)
        linked = section.compose == "link"
        if linked and inside_link:
            text = "a linked section inside a linked section; write copy (the outer fragment then holds it)"
            yield Mistake((*at, "compose"), text)
        for name, inner in section.sections.items():
            below = (*at, "sections", name)
            yield from self._section(below, inner, section.entity, depth + 1, inside_link or linked)

    def _shape(self, at: Location, section: Section) -> Iterator[Mistake]:
        """What one kind of section may have beside what."""
        one = section.kind == "one"
        if one and section.limit is not None:
            yield Mistake((*at, "limit"), "kind one gives a single object; leave limit out or write kind: many")
        if one and section.aggregates:
            yield Mistake((*at, "aggregates"), "aggregates are over many rows; write kind: many")
        if section.group_by and not section.aggregates and not one:
            yield Mistake((*at, "group_by"), GROUP_NEEDS)
        if one and section.group_by:
            yield Mistake((*at, "group_by"), "groups are of many rows; write kind: many and aggregates")
        entity = self.spec.entities.get(section.entity)
        if one and entity and section.order_by and set(entity.key) <= set(section.on):
            yield Mistake((*at, "order_by"), "the join by the whole key finds one row at most; leave order_by out")
        if section.aggregates:
            yield from _beside_aggregates(at, section)
        elif not section.fields and not section.sections:
            yield Mistake(at, "gives nothing: list fields, sections or aggregates")
        yield from _order(at, section)


def _beside_aggregates(at: Location, section: Section) -> Iterator[Mistake]:
    for key, value in (("fields", section.fields), ("sections", section.sections)):
        if value:
            text = f"{key} are of single rows, aggregates of all of them; put the {key} into a section of their own"
            yield Mistake((*at, key), text)
    if not section.group_by:
        for key, given in (("order_by", bool(section.order_by)), ("limit", section.limit is not None)):
            if given:
                yield Mistake((*at, key), f"aggregates without group_by give one object, so {key} has no meaning")
    for i, column in enumerate(section.group_by):
        if column in section.aggregates:
            yield Mistake((*at, "group_by", i), f"{column!r} is also the name of an aggregate; rename the aggregate")
    yield from _twice((*at, "group_by"), section.group_by, "column")


_DIRECTION = re.compile(r"(.+)\s(asc|desc)", re.IGNORECASE)


def _order(at: Location, section: Section) -> Iterator[Mistake]:
    names = [text.removeprefix("-") for text in section.order_by]
    grouped = [*section.group_by, *section.aggregates]
    for i, name in enumerate(names):
        here = (*at, "order_by", i)
        if direction := _DIRECTION.fullmatch(name):
            column = direction.group(1).strip()
            wanted = f"-{column}" if direction.group(2).lower() == "desc" else column
            yield Mistake(here, f"the direction is a sign here; did you mean {wanted}?")
        elif not name or name != name.strip():
            yield Mistake(here, "write a name, or -name for descending order, without blanks")
        elif section.aggregates and section.group_by and name not in grouped:
            hint = suggestion(name, grouped)
            yield Mistake(here, f"groups are ordered by a group_by column or an aggregate; {name!r} is neither{hint}")
    yield from _twice((*at, "order_by"), names, "column")


def _entity(at: Location, entity: Entity) -> Iterator[Mistake]:
    if entity.table.count(".") != 1 or not all(entity.table.split(".")):
        parts = [part for part in entity.table.split(".") if part]
        hint = f"; did you mean {'.'.join(['public', *parts][-2:])}?" if parts else ""
        yield Mistake((*at, "table"), f"{entity.table!r} is not schema.table{hint}")
    yield from _twice((*at, "key"), entity.key, "column")
    if list(entity.partition_key) != list(entity.key[: len(entity.partition_key)]):
        leading = list(entity.key[: len(entity.partition_key)])
        yield Mistake((*at, "partition_key"), f"the partition key is made of the first key columns: {leading}")
    yield from _expression((*at, "filter"), entity.filter, entity.types)
    for column, declared in entity.types.items():
        problem = check_type(declared)
        if problem:
            yield Mistake((*at, "types", column), problem)


def _conflicts(entities: Mapping[str, Entity]) -> Iterator[Mistake]:
    """Entities over one table share its stored rows, so they must agree on its key and types."""
    first: dict[tuple[str, str], tuple[str, Entity]] = {}
    topics: dict[str, Entity] = {}
    for name, entity in entities.items():
        one = topics.setdefault(table_topic(entity.source, entity.table), entity)
        if (one.source, one.table) != (entity.source, entity.table):
            text = f"{entity.table} and {one.table} come on one topic, since Kafka's names have fewer characters"
            yield Mistake(("entities", name, "table"), f"{text}; take one of them out")
        other_name, other = first.setdefault((entity.source, entity.table), (name, entity))
        if list(other.key) != list(entity.key):
            text = f"entity {other_name} has key {other.key} for the same table; give both the same"
            yield Mistake(("entities", name, "key"), text)
        elif list(other.partition_key) != list(entity.partition_key):
            text = f"entity {other_name} has partition_key {other.partition_key} for the same table; give both the same"
            yield Mistake(("entities", name, "partition_key"), text)
        for column, declared in entity.types.items():
            if other.types.get(column, declared) != declared:
                text = f"entity {other_name} declares {other.types[column]!r} for the same column; give both the same"
                yield Mistake(("entities", name, "types", column), text)


def _fields(
    at: Location, fields: list[FieldSpec], sections: Mapping[str, Section], types: Mapping[str, str]
) -> Iterator[Mistake]:
    yield from _twice((*at, "fields"), [spec.name for spec in fields], "name")
    for i, spec in enumerate(fields):
        yield from _expression((*at, "fields", i, "value"), spec.value, types)
        yield from _default((*at, "fields", i, "default"), spec.default)
        if spec.name in sections:
            text = f"{spec.name!r} is also the name of a section here; one of them needs another name"
            yield Mistake((*at, "fields", i), text)


def _default(at: Location, value: Any) -> Iterator[Mistake]:
    """A default goes into bundles as it is, so it must be JSON."""
    if nested_too_deep(value):
        yield Mistake(at, f"nested more than {NESTING_MAX} levels deep")
        return
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        yield Mistake(at, "half of a surrogate pair is no character")
    except ValueError:
        yield Mistake(at, "a number too large for a float; write it as text")


def _aggregate(at: Location, aggregate: Aggregate, section: Section, types: Mapping[str, str]) -> Iterator[Mistake]:
    yield from _expression((*at, "where"), aggregate.where, types)
    if aggregate.function == "share":
        if not section.group_by:
            yield Mistake(at, "share is a group's part of all rows and needs group_by")
        if aggregate.column is not None:
            yield Mistake(at, "share counts rows and takes no column")
        if aggregate.where is not None:
            yield Mistake((*at, "where"), "share is of all rows; put the condition into the section's filter")
    if aggregate.by is not None and aggregate.function != "latest":
        yield Mistake((*at, "by"), f"'by' belongs to latest, not to {aggregate.function}")


def _text(spec: ContextSpec) -> Iterator[Mistake]:
    if spec.text is None:
        return
    yield from _template(("text", "template"), spec.text.template, spec)
    paths = set(_paths(spec.sections, ""))
    for i, path in enumerate(spec.text.priorities):
        if path not in paths:
            yield Mistake(("text", "priorities", i), f"there is no section {path!r}{suggestion(path, paths)}")
    yield from _twice(("text", "priorities"), spec.text.priorities, "section")


def _embedding(spec: ContextSpec) -> Iterator[Mistake]:
    if spec.embedding is None:
        return
    if spec.embedding.template is not None:
        yield from _template(("embedding", "template"), spec.embedding.template, spec)
    paths = {*_value_paths(spec.fields, spec.sections, "")}
    for i, path in enumerate(spec.embedding.filters):
        if path not in paths:
            yield Mistake(("embedding", "filters", i), f"the bundle has no field {path!r}{suggestion(path, paths)}")
    yield from _twice(("embedding", "filters"), spec.embedding.filters, "field")


def _template(at: Location, template: str, spec: ContextSpec) -> Iterator[Mistake]:
    from jinja2 import TemplateError, TemplateSyntaxError, meta  # 50 ms of import that few specs need
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment()
    del environment.globals["lipsum"], environment.filters["random"]  # the same bundle gives the same text
    names = {*spec.sections, *(given.name for given in spec.fields)}
    try:
        environment.from_string(template)
        tree = environment.parse(template)
        used = meta.find_undeclared_variables(tree)
    except TemplateSyntaxError as error:
        yield Mistake((*at, LINE, error.lineno), f"not a Jinja template: {error.message}")
    except (TemplateError, RecursionError) as error:
        yield Mistake(at, f"not a Jinja template: {error}")
    else:
        if any(True for _ in meta.find_referenced_templates(tree)):
            yield Mistake(at, "a template stands alone here: there is nothing to include, import or extend")
        for name in sorted(used - names - set(environment.globals)):
            yield Mistake(at, f"the bundle has no {name!r}{suggestion(name, names)}")


def _value_paths(fields: Iterable[FieldSpec], sections: Mapping[str, Section], prefix: str) -> Iterator[str]:
    """Every value of a bundle, with dots: `name`, `airline.name`, `carriers.flights`."""
    yield from (prefix + field.name for field in fields)
    for name, section in sections.items():
        yield from (f"{prefix}{name}.{value}" for value in (*section.group_by, *section.aggregates))
        yield from _value_paths(section.fields, section.sections, f"{prefix}{name}.")


def _paths(sections: Mapping[str, Section], prefix: str) -> Iterator[str]:
    for name, section in sections.items():
        yield prefix + name
        yield from _paths(section.sections, f"{prefix}{name}.")


def _expression(at: Location, text: str | None, types: Mapping[str, str]) -> Iterator[Mistake]:
    if text is None:
        return
    try:
        compile_expression(text, types)
    except ExpressionError as error:
        yield Mistake(at, f"in {text!r}, {error}" if len(text) <= 80 else str(error))


def _twice(at: Location, names: Iterable[str], what: str) -> Iterator[Mistake]:
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            yield Mistake((*at, i), f"the {what} {name!r} stands here twice")
        seen.add(name)
