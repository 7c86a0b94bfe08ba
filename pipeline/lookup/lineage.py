"""Where every value of a bundle came from: field → table, column, row key and position in the source.

A bundle of a spec that keeps lineage names its rows in the order in which they were rendered (schemas.bundle.Meta). The
walk over its bytes meets the same objects in the same order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.core.errors import Retryable
from pipeline.lookup.answer import hash_of, iso_time
from pipeline.lookup.bundle_ids import Shape, id_of
from pipeline.lookup.history import FIND_S_MAX, Kept, as_answered, position_of
from pipeline.lookup.keys import check_key
from pipeline.lookup.options import NO_OPTIONS
from pipeline.lookup.page_fields import FieldOrigin, origins
from pipeline.lookup.principal import Principal
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.splicing import splice
from pipeline.stores.store import Fetched
from pipeline.text import decode_bundle, names_used
from schemas.bundle import RowReference, SourceState, Stored
from schemas.context import ContextSpec, FieldSpec, Section
from schemas.keys import root_key_texts, split_key_text

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
NOTHING_NAMED = (
    "this bundle does not name its rows: its spec's history keeps no lineage, or did not when it was written"
)
NO_ROW = "no row: the section is empty"


class RowOrigin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`key` is the row's key text, `columns` its parts by column. Of aggregates: the rows are all those with these
    values in these columns, and `position` is missing, since they are many."""

    key: str
    columns: dict[str, str]
    many: bool = False
    version: str = ""
    position: dict[str, str | None] = {}
    commit_time_us: int = 0


class FieldLineage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One value. `path` has the places in lists (`items[0].line`), `origin.path` has not. `written_us` is when the
    bundle or the fragment that holds it was put together. Without `row`, `reason` says why."""

    path: str
    value: msgspec.Raw
    origin: FieldOrigin
    written_us: int
    row: RowOrigin | None = None
    reason: str = ""
    embedded: bool = False

    def told(self) -> dict[str, Any]:
        """As JSON has it: what the spec says of the field beside what is known of this value."""
        origin: dict[str, Any] = msgspec.to_builtins(self.origin)
        row: dict[str, Any] | None = None if self.row is None else msgspec.to_builtins(self.row)
        if row is not None:
            row.pop("commit_time_us", None)
        return {
            **{name: value for name, value in origin.items() if name not in ("path", "section")},
            **({"expression": origin["value"]} if "value" in origin else {}),
            "path": self.path,
            "field": self.origin.path,
            "value": self.value,
            "row": row,
            "reason": self.reason or None,
            "written": iso_time(self.written_us),
            "embedded": self.embedded,
        }


class VectorOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """The space that answers searches now, and whether its vector of this key was made from exactly this bundle."""

    space: str
    of_this_bundle: bool


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Of one answer. `id` is missing where no history is kept; `hash` is of the bundle's bytes that the caller sees."""

    context: str
    key: str
    id: str | None
    spec_version: int
    hash: str
    vector: VectorOrigin | None
    fields: list[FieldLineage]

    def to_json(self, records: Mapping[str, Mapping[str, Any]] | None = None) -> bytes:
        """`records`: path → where in Kafka the row's change lies; without them nothing is said of that."""
        fields = [
            {**field.told(), **({} if records is None else {"record": records.get(field.path)})}
            for field in self.fields
        ]
        return msgspec.json.encode(
            {
                "context": self.context,
                "key": self.key,
                "id": self.id,
                "spec_version": self.spec_version,
                "hash": self.hash,
                "vector": self.vector,
                "fields": fields,
            }
        )


async def lineage_of_key(
    lookups: LookupService, context: str, key: str, principal: Principal | None = None
) -> Lineage | None:
    """Of the bundle as it is now; None where there is none that the caller may see. Raises UnknownContext,
    MalformedKey, Retryable."""
    served = lookups.served(context)
    check_key(served.spec, key)
    text = root_key_texts(served.spec, [key])[0]
    try:
        async with asyncio.timeout(FIND_S_MAX):
            fetched = (await served.reader.fetch([text]))[0]
    except TimeoutError:
        raise Retryable(f"the store did not answer within {FIND_S_MAX:g} s") from None
    root = fetched.bundle
    if root is None or root.meta is None or (principal is not None and not principal.sees(served.spec, root.meta)):
        return None
    allowed = None if principal is None else principal.fields.get(context)
    answer = as_answered(served, fetched, text, Shape(allowed))
    options = msgspec.structs.replace(NO_OPTIONS, principal=principal)
    named = id_of(text, fetched, options, answer) if served.spec.history is not None else None
    return await _lineage(served, text, named, fetched, answer.bundle or b"{}")


async def lineage_of(kept: Kept) -> Lineage:
    """Of a past answer, as it was given."""
    return await _lineage(kept.served, kept.past.key, kept.past.id, kept.fetched, kept.past.bundle)


async def _lineage(served: ServedContext, key: str, bundle_id: str | None, fetched: Fetched, bundle: bytes) -> Lineage:
    root = fetched.bundle
    assert root is not None and root.meta is not None
    whole = splice(root.body, root.meta.fragments, fetched.fragments, served.empty)
    fields = fields_of(served.spec, fetched, served.empty)
    if bundle != whole:
        seen = decode_bundle(bundle)
        fields = [field for field in fields if _is_in(seen, field.path)]
    return Lineage(
        context=served.spec.context,
        key=key,
        id=bundle_id,
        spec_version=root.meta.spec_version,
        hash=hash_of(bundle),
        vector=await _vector(served, key, root.meta.hash),
        fields=fields,
    )


async def _vector(served: ServedContext, key: str, bundle_hash: str) -> VectorOrigin | None:
    """None where the context embeds nothing, no space serves yet, or the store does not tell."""
    if served.spec.embedding is None or served.spaces is None or served.states is None:
        return None
    try:
        space = await served.spaces.serving()
        if space is None:
            return None
        state = (await served.states.read_states(space, [key]))[0]
    except Retryable:
        return None
    same = state is not None and state.bundle_hash == bundle_hash and state.vector_hash == state.text_hash
    return VectorOrigin(space=space, of_this_bundle=same)


def fields_of(spec: ContextSpec, fetched: Fetched, empty: Mapping[str, bytes]) -> list[FieldLineage]:
    """Every value of the whole bundle, in its order. Pure."""
    root = fetched.bundle
    if root is None or root.meta is None:
        return []
    return list(_Walk(spec, fetched, root, empty).fields())


class _Rows:
    """What a unit says of its rows, one after the other; there are none where there is no unit. `named` False: it says
    nothing of any."""

    def __init__(self, stored: Stored | None) -> None:
        self.references: Sequence[RowReference] = () if stored is None or stored.meta is None else stored.meta.rows
        self.written_us = 0 if stored is None else stored.counter
        self.named = stored is None or bool(self.references)
        self._next = 0

    def take(self, node: int) -> RowReference | None:
        """The next one, if it is of this node."""
        if self._next < len(self.references) and self.references[self._next].node == node:
            self._next += 1
            return self.references[self._next - 1]
        return None


class _Walk:
    def __init__(self, spec: ContextSpec, fetched: Fetched, root: Stored, empty: Mapping[str, bytes]) -> None:
        assert root.meta is not None
        self.spec, self.fetched, self.root = spec, fetched, root
        self.bundle = splice(root.body, root.meta.fragments, fetched.fragments, empty)
        self.origins = {field.path: field for field in origins(spec).fields}
        self.numbers = {path: number for number, path in enumerate(("", *_paths(spec.sections, "")))}
        self.linked = {reference.unit for reference in root.meta.fragments}
        self.references = iter(root.meta.fragments)
        template = spec.embedded_template
        self.embedded = names_used(template) if template is not None else frozenset()

    def fields(self) -> Iterator[FieldLineage]:
        spec = self.spec
        value = msgspec.Raw(self.bundle)
        yield from self._object(value, spec.root, spec.fields, spec.sections, "", "", _Rows(self.root))

    def _object(
        self,
        value: msgspec.Raw,
        entity: str,
        fields: Sequence[FieldSpec],
        sections: Mapping[str, Section],
        path: str,
        shown: str,
        rows: _Rows,
    ) -> Iterator[FieldLineage]:
        members = _OBJECT.decode(value)
        row = self._row(rows, path, self.spec.entities[entity].key)
        for name in [field.name for field in fields if field.name in members]:
            yield self._field(members[name], _joined(path, name), _joined(shown, name), row, rows)
        for name, section in sections.items():
            inner, at, inside = _joined(path, name), _joined(shown, name), rows
            if inner in self.linked:
                reference = next(self.references)
                place = None if reference.key is None else (reference.unit, reference.key)
                inside = _Rows(None if place is None else self.fetched.fragments.get(place))
            if name in members:
                yield from self._section(members[name], section, entity, inner, at, inside)

    def _section(
        self, value: msgspec.Raw, section: Section, parent: str, path: str, shown: str, rows: _Rows
    ) -> Iterator[FieldLineage]:
        inside = (section.entity, section.fields, section.sections, path)
        if section.aggregates:
            yield from self._aggregates(value, section, parent, path, shown, rows)
        elif section.kind == "one":
            if bytes(value) != b"null":
                yield from self._object(value, *inside, shown, rows)
        else:
            for number, item in enumerate(_LIST.decode(value)):
                yield from self._object(item, *inside, f"{shown}[{number}]", rows)

    def _aggregates(
        self, value: msgspec.Raw, section: Section, parent: str, path: str, shown: str, rows: _Rows
    ) -> Iterator[FieldLineage]:
        row = self._row(rows, path, _join_columns(self.spec, section, parent), many=True)
        groups = enumerate(_LIST.decode(value)) if section.group_by else [(None, value)]
        for number, group in groups:
            at = shown if number is None else f"{shown}[{number}]"
            for name, member in _OBJECT.decode(group).items():
                yield self._field(member, _joined(path, name), _joined(at, name), row, rows)

    def _row(self, rows: _Rows, path: str, columns: Sequence[str], many: bool = False) -> RowOrigin | None:
        reference = rows.take(self.numbers[path])
        if reference is None or reference.key is None:
            return None
        parts = split_key_text(reference.key)
        named = dict(zip(columns, parts, strict=False)) if len(parts) == len(columns) else {}
        if many:
            return RowOrigin(key=reference.key, columns=named, many=True)
        position = position_of(SourceState(reference.version, reference.commit_time_us))
        return RowOrigin(
            key=reference.key,
            columns=named,
            version=reference.version,
            position=position,
            commit_time_us=reference.commit_time_us,
        )

    def _field(self, value: msgspec.Raw, path: str, shown: str, row: RowOrigin | None, rows: _Rows) -> FieldLineage:
        reason = "" if row is not None else NO_ROW if rows.named else NOTHING_NAMED
        return FieldLineage(
            path=shown,
            value=value,
            origin=self.origins[path],
            written_us=rows.written_us or self.root.counter,
            row=row,
            reason=reason,
            embedded=path.partition(".")[0] in self.embedded,
        )


def _join_columns(spec: ContextSpec, section: Section, parent: str) -> list[str]:
    """Columns of the section's rows in the order of the join value, which is that of a primary key where one is
    joined (pipeline.plan)."""
    own = spec.entities[section.entity].key
    if set(section.on) == set(own):
        return [column for column in own if column in section.on]
    theirs = spec.entities[parent].key
    if set(section.on.values()) == set(theirs) and len(section.on) == len(theirs):
        return sorted(section.on, key=lambda column: theirs.index(section.on[column]))
    return list(section.on)


def _paths(sections: Mapping[str, Section], before: str) -> Iterator[str]:
    """In the order of the plan's nodes: a section before those in it, those before the next."""
    for name, section in sections.items():
        path = _joined(before, name)
        yield path
        yield from _paths(section.sections, path)


def _joined(before: str, name: str) -> str:
    return f"{before}.{name}" if before else name


def _is_in(bundle: Any, shown: str) -> bool:
    """Whether the value at this path is in what the caller sees, decoded."""
    value = bundle
    for step in shown.replace("[", ".[").split("."):
        if step.startswith("["):
            if not isinstance(value, list) or int(step[1:-1]) >= len(value):
                return False
            value = value[int(step[1:-1])]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            return False
    return True
