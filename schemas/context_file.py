"""From a context's YAML file to its spec, or to a list of everything that is wrong with it, by file and line."""

from __future__ import annotations

import copy
import difflib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.context import AggregateFunction, ContextSpec, FieldSpec, Section
from schemas.context_checks import LINE, check_spec
from schemas.errors import SpecError
from schemas.expression import compile_expression
from schemas.yaml_file import Document, Location, Mistake, known_keys, mistakes_of, read_yaml

__all__ = ["ContextFile", "SpecError", "column_uses", "load_context", "read_context"]

SHORTHAND_KEYS = {"Aggregate": typing.get_args(AggregateFunction)}
"""Keys beside a model's own that its short form accepts: `{avg: dep_delay}`."""

_REPAIRS_MAX = 8
_STAND_INS: dict[str, Any] = {"context": "placeholder", "version": 1, "root": "placeholder", "fields": ["placeholder"]}
_PART_STAND_INS: dict[str | int, dict[str, Any]] = {
    "entities": {"source": "placeholder", "table": "public.placeholder", "key": ["placeholder"]},
    "sections": {"entity": "placeholder", "on": {"placeholder": "placeholder"}},
}
_SHAPED = ("fields", "sections", "order_by", "limit", "group_by", "aggregates")
"""Parts of a section whose meaning depends on its kind, group_by and aggregates."""


@dataclass(frozen=True)
class ContextFile:
    """A valid spec with the file that it came from."""

    spec: ContextSpec
    document: Document


def load_context(path: Path | str) -> ContextSpec:
    """Raises SpecError with all mistakes of the file."""
    return read_context(path).spec


def read_context(path: Path | str) -> ContextFile:
    """As load_context, with the lines of the file for later messages."""
    document = read_yaml(Path(path))
    if not isinstance(document.data, dict):
        raise SpecError([f"{path}:1: a context is a mapping (context: …, version: …), see README"])
    try:
        spec = ContextSpec.model_validate(document.data)
        mistakes: list[Mistake] = []
        broken: set[Location] = set()
    except ValidationError as error:
        mistakes = mistakes_of(error, ContextSpec, SHORTHAND_KEYS)
        broken = {tuple(entry["loc"]) for entry in error.errors()}
        repaired = _repaired(document.data, error)
        if repaired is None:
            raise SpecError(document.sentences(mistakes)) from None
        spec = repaired
    entities = document.data.get("entities")
    found = check_spec(spec, list(entities) if isinstance(entities, dict) else [])
    mistakes += [_at_text(document, m) for m in found if not _follows(m.location, broken)]
    if mistakes:
        raise SpecError(document.sentences(mistakes))
    return ContextFile(spec, document)


def _repaired(data: dict[str, Any], error: ValidationError) -> ContextSpec | None:
    """The spec without its misshapen parts, so that the rest can be checked in the same run; None where that fails."""
    data = copy.deepcopy(data)
    for _ in range(_REPAIRS_MAX):
        unknown = [tuple(entry["loc"]) for entry in error.errors() if entry["type"] == "extra_forbidden"]
        for location in unknown:
            _rename(data, location)
        misspelt = {location[:-1] for location in unknown}
        for entry in error.errors():
            if entry["type"] != "extra_forbidden" and (entry["type"] != "missing" or entry["loc"][:-1] not in misspelt):
                _take_out(data, tuple(entry["loc"]), entry["type"] == "missing")
        try:
            return ContextSpec.model_validate(data)
        except ValidationError as next_error:
            error = next_error
        except RecursionError:
            return None
    return None


def _rename(data: Any, location: Location) -> None:
    """Gives an unknown key the name that was probably meant; drops it where there is none."""
    container = _part(data, location[:-1])
    if not isinstance(container, dict) or location[-1] not in container:
        return
    value = container.pop(location[-1])
    near = difflib.get_close_matches(str(location[-1]), known_keys(ContextSpec, location[:-1], SHORTHAND_KEYS), 1, 0.6)
    if near and near[0] not in container:
        container[near[0]] = value


def _take_out(data: dict[str, Any], location: Location, missing: bool) -> None:
    """Drops a misshapen part, or the part that lacks something."""
    if len(location) == 1 and location[0] in _STAND_INS:
        data[str(location[0])] = _STAND_INS[str(location[0])]
        return
    container, name = _part(data, location[:-1]), str(location[-1])
    stand_ins = _PART_STAND_INS.get(location[-3] if len(location) > 2 else "", {})
    if name in stand_ins and isinstance(container, dict):
        container[name] = stand_ins[name]
        return
    if missing:
        location = location[:-1]
    while location and _part(data, location) is None:
        location = location[:-1]
        if not missing and isinstance(_part(data, location), (dict, list)):
            return
    container = _part(data, location[:-1])
    if isinstance(container, list):
        container[int(location[-1])] = _blank(container, int(location[-1]))
    elif isinstance(container, dict) and location:
        del container[location[-1]]


def _part(data: Any, location: Location) -> Any:
    """The part at `location`; None where there is none."""
    for step in location:
        if isinstance(data, dict):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return None
    return data


def _blank(container: list[Any], position: int) -> str:
    """Holds the place of a misshapen list item, so that the positions of its neighbours stay right."""
    return f"placeholder_{len(container)}_{position}"


def _follows(location: Location, broken: set[Location]) -> bool:
    """Only a consequence of what is reported already: inside or around such a part, or a name from it."""
    if location[:1] == ("text",) and LINE not in location:
        return any(other[:1] in (("fields",), ("sections",)) for other in broken)
    if location[-2:-1] == ("order_by",):
        aggregates = (*location[:-2], "aggregates")
        return any(other[: len(aggregates)] == aggregates for other in broken)
    if location[:1] == ("entities",) and location[2:] == ("key",):
        return any(other[:1] == ("entities",) for other in broken)  # compared with a key that stands in for another
    return any(
        location[: len(other)] == other or location == other[: len(location)] or _shaped_by(other, location)
        for other in broken
    )


def _shaped_by(other: Location, location: Location) -> bool:
    """Whether what a part may be is open, because what gives it its meaning in the same section is broken itself."""
    if other[-1:] not in (("kind",), ("group_by",), ("aggregates",)) or len(location) < len(other):
        return False
    return location[: len(other) - 1] == other[:-1] and location[len(other) - 1] in _SHAPED


def _at_text(document: Document, mistake: Mistake) -> Mistake:
    """Places a mistake in line n of a text at that line of the file."""
    at, marker, number = mistake.location[:-2], mistake.location[-2:-1], mistake.location[-1:]
    if marker == (LINE,) and isinstance(number[0], int):
        document.lines[mistake.location] = document.texts.get(at, document.line(at)) + number[0] - 1
    return mistake


def column_uses(spec: ContextSpec, place: Callable[[Location], str] | None = None) -> dict[str, dict[str, list[str]]]:
    """Entity → column → everywhere it is used: `sections.plane.fields.0`, or `file:line: sections.plane.fields.0`.

    `place` is the `document.place` of a ContextFile.
    """
    uses: dict[str, dict[str, list[str]]] = {}
    for entity, column, location in _uses(spec):
        where = ".".join(map(str, location))
        places = uses.setdefault(entity, {}).setdefault(column, [])
        places.append(f"{place(location)}: {where}" if place else where)
    return uses


def _uses(spec: ContextSpec) -> Iterator[tuple[str, str, Location]]:
    for name, entity in spec.entities.items():
        at: Location = ("entities", name)
        yield from ((name, column, (*at, "key", i)) for i, column in enumerate(entity.key))
        yield from ((name, column, (*at, "types", column)) for column in entity.types)
        yield from _expression_uses(name, entity.filter, (*at, "filter"))
    yield from _field_uses(spec.root, spec.fields, ())
    if spec.tenant is not None:
        yield spec.root, spec.tenant, ("tenant",)
    yield from _section_uses(spec.root, spec.sections, ())


def _section_uses(parent: str, sections: Mapping[str, Section], above: Location) -> Iterator[tuple[str, str, Location]]:
    for name, section in sections.items():
        at, entity = (*above, "sections", name), section.entity
        for own, parents in section.on.items():
            yield entity, own, (*at, "on", own)
            yield parent, parents, (*at, "on", own)
        yield from _field_uses(entity, section.fields, at)
        yield from _expression_uses(entity, section.filter, (*at, "filter"))
        yield from ((entity, column, (*at, "group_by", i)) for i, column in enumerate(section.group_by))
        if not section.aggregates:
            for i, text in enumerate(section.order_by):
                yield entity, text.removeprefix("-"), (*at, "order_by", i)
        for aggregate_name, aggregate in section.aggregates.items():
            inner = (*at, "aggregates", aggregate_name)
            yield from ((entity, column, inner) for column in (aggregate.column, aggregate.by) if column is not None)
            yield from _expression_uses(entity, aggregate.where, (*inner, "where"))
        yield from _section_uses(entity, section.sections, at)


def _field_uses(entity: str, fields: list[FieldSpec], at: Location) -> Iterator[tuple[str, str, Location]]:
    for i, field in enumerate(fields):
        if field.column is not None:
            yield entity, field.column, (*at, "fields", i)
        yield from _expression_uses(entity, field.value, (*at, "fields", i, "value"))


def _expression_uses(entity: str, text: str | None, at: Location) -> Iterator[tuple[str, str, Location]]:
    if text is not None:
        yield from ((entity, column, at) for column in sorted(compile_expression(text).columns))
