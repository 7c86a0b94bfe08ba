"""Unit keys + rows and relations → final bytes: the reads that an assembly needs, and the rendering. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from pipeline.counters import COUNT_OFFSET, ROWS, split_counter_field
from pipeline.exact import quotient, total_of
from pipeline.plan import AggregatePlan, Node, Plan, Values, plain_number
from pipeline.section_tokens import SectionMarks
from pipeline.sortable import encode_descending, encode_value, entry_payload, typed
from pipeline.stores.store import RelationRead, RelationView, StoredRow
from schemas.bundle import FragmentReference, Meta, RowReference, SourceState, UnitKey
from schemas.keys import tenant_text

_ENCODE = msgspec.json.Encoder(decimal_format="number").encode
_DECODE = msgspec.json.Decoder().decode
_EMPTY_VIEW = RelationView()
_ROWS_FIELD = COUNT_OFFSET + ROWS

RowKey = tuple[str, str]


class Assembly:
    """Assembles many units together, so that each level of all of them is one round of reads.

    Call `needed` and read what it names, `supply` what was read, and so on until `needed` gives nothing; then `render`.
    """

    def __init__(self, plan: Plan, keys: Sequence[UnitKey]) -> None:
        self.plan, self.keys = plan, keys
        self._rows: dict[RowKey, StoredRow | None] = {}
        self._views: dict[tuple[int, str], RelationView] = {}
        self._row_wants: dict[RowKey, list[Node]] = {}
        self._view_wants: dict[tuple[int, str], list[tuple[Node, RelationRead]]] = {}
        for unit_key in keys:
            self._want(plan.units[unit_key.unit], unit_key.key)

    def needed(self) -> tuple[list[RowKey], list[RelationRead]]:
        """The reads of the next level; both empty when everything is there."""
        return list(self._row_wants), [wants[0][1] for wants in self._view_wants.values()]

    def supply(self, rows: Sequence[StoredRow | None], views: Sequence[RelationView]) -> None:
        """Takes what was read, in the order of `needed`, and works out the next level."""
        row_wants, view_wants = self._row_wants, self._view_wants
        self._row_wants, self._view_wants = {}, {}
        live = (row if row is not None and row.live else None for row in rows)
        self._rows.update(zip(row_wants, live, strict=True))
        self._views.update(zip(view_wants, views, strict=True))
        for (_, key), nodes in row_wants.items():
            for node in nodes:
                self._expand(node, key)
        for read_key, wants in view_wants.items():
            for node, _ in wants:
                if not node.aggregates and not node.leaf:
                    for entry in self._views[read_key].entries:
                        self._want_row(node, entry_payload(entry).decode())

    def _want(self, node: Node, key: str) -> None:
        """`key` is a row's key for the root and sections joined by primary key, else a join value."""
        if node.parent is None or node.by_key:
            self._want_row(node, key)
            return
        read = _relation_read(node, key)
        read_key = (read.relation, key)
        if read_key not in self._views:
            self._view_wants.setdefault(read_key, []).append((node, read))

    def _want_row(self, node: Node, key: str) -> None:
        row_key = (node.table.name, key)
        if row_key in self._rows:
            self._expand(node, key)
        else:
            wants = self._row_wants.setdefault(row_key, [])
            if node not in wants:
                wants.append(node)

    def _expand(self, node: Node, key: str) -> None:
        if not node.children:
            return
        row = self._rows[node.table.name, key]
        if row is None or (node.accept is not None and not node.accept(row.values)):
            return
        for child in node.children:
            link = None if child.linked else child.join(row.values)
            if link is not None:
                self._want(child, link)

    def render(self) -> list[tuple[UnitKey, Meta | None, bytes]]:
        """(key, meta, body) per unit; meta None where the unit does not exist: no such row, nothing under the key."""
        return [(key, *_Rendering(self, key).result()) for key in self.keys]

    def row(self, node: Node, key: str) -> StoredRow | None:
        """The row if it exists for this node: there, and accepted by the filters."""
        row = self._rows.get((node.table.name, key))
        if row is None or (node.accept is not None and not node.accept(row.values)):
            return None
        return row

    def listed(self, node: Node, link: str) -> list[tuple[str, StoredRow]]:
        """The rows of a list that still have this join value: an index may be a moment behind its rows."""
        assert node.relation is not None
        found = []
        for entry in self._views[node.relation.index, link].entries:
            key = entry_payload(entry).decode()
            row = self.row(node, key)
            if row is not None and node.relation.join(row.values) == link:
                found.append((key, row))
        return found

    def view(self, node: Node, link: str) -> RelationView:
        assert node.relation is not None
        return self._views.get((node.relation.index, link), _EMPTY_VIEW)


def _relation_read(node: Node, link: str) -> RelationRead:
    assert node.relation is not None
    if node.aggregates:
        return RelationRead(node.relation.index, link, tops=len(node.relation.orders))
    return RelationRead(node.relation.index, link, limit=node.limit)


def foresee(
    plan: Plan, keys: Sequence[UnitKey], known: Mapping[RowKey, Values | None]
) -> tuple[list[RowKey], list[RelationRead]]:
    """The reads of the first level, and those of deeper ones as far as `known` rows and the keys themselves tell.

    A guess that saves round trips: rows may have changed meanwhile, then the assembly asks for what it lacks.
    """
    row_keys: dict[RowKey, None] = {}
    reads: dict[tuple[int, str], RelationRead] = {}
    ahead = [(plan.units[unit_key.unit], unit_key.key) for unit_key in keys]
    while ahead:
        node, key = ahead.pop()
        if node.parent is not None and not node.by_key:
            read = _relation_read(node, key)
            reads[read.relation, key] = read
            continue
        row_key = (node.table.name, key)
        row_keys[row_key] = None
        values = known.get(row_key)
        for child in node.children:
            if not child.linked:
                # Without a relation of its own, a child's parent is found by the parent's key: its join value.
                link = child.join(values) if values else key if child.parent_relation is None else None
                if link is not None:
                    ahead.append((child, link))
    return list(row_keys), list(reads.values())


class _Rendering:
    """One unit's bytes, its fragment references, the newest change per source and, where the spec asks for them, the
    rows in it and the tokens of its sections."""

    def __init__(self, assembly: Assembly, key: UnitKey) -> None:
        self.assembly, self.key = assembly, key
        self.node = assembly.plan.units[key.unit]
        self.body = bytearray()
        self.references: list[FragmentReference] = []
        self.sources: dict[str, SourceState] = {}
        self.tenant: str | None = None
        self.rows: list[RowReference] = []
        self.marks = SectionMarks(self.node.path) if assembly.plan.count is not None else None

    def result(self) -> tuple[Meta | None, bytes]:
        plan = self.assembly.plan
        if self.node.parent is None:
            row = self.assembly.row(self.node, self.key.key)
            if row is not None:
                self._object(self.node, self.key.key, row)
                self.tenant = None if plan.tenant is None else tenant_text(row.values[plan.tenant])
        else:
            self._section(self.node, self.key.key)
        body = bytes(self.body)
        if not body or (self.key.unit and body == empty_bytes(self.node) and not self.references):
            return None, b""
        digest = hashlib.blake2b(body, digest_size=16)
        if self.references:
            digest.update(_ENCODE(self.references))
        sources = self.sources if len(self.sources) < 2 else dict(sorted(self.sources.items()))
        tokens = self.marks.counted(body, plan.count) if self.marks is not None and plan.count is not None else {}
        meta = Meta(
            digest.hexdigest(), plan.spec.version, sources, self.references, self.tenant, tokens=tokens, rows=self.rows
        )
        return meta, body

    def _object(self, node: Node, key: str, row: StoredRow) -> None:
        self._note(node, key, row)
        values = row.values
        self.body += _ENCODE(node.fields(values))
        if not node.children:
            return
        body = self.body
        del body[-1:]
        first = body[-1] == 0x7B  # no fields before it
        marks = self.marks
        for child in node.children:
            if marks is not None:
                marks.begin(len(body), child.path)
            body += child.opening[1:] if first else child.opening
            first = False
            link = child.join(values)
            if child.linked:
                self.references.append(FragmentReference(len(body), child.unit, link))
            elif link is None:
                self._nothing(child)
            else:
                self._section(child, link)
            if marks is not None:
                marks.begin(len(body), node.path)
        body += b"}"

    def _nothing(self, node: Node) -> None:
        if node.names_rows and node.aggregates:
            self.rows.append(RowReference(node.number, None))
        self.body += empty_bytes(node)

    def _section(self, node: Node, link: str) -> None:
        if node.leaf:
            self._leaf(node, link)
        elif node.kind == "object":
            found = self._one(node, link)
            if found is None:
                self.body += b"null"
            else:
                self._object(node, *found)
        elif node.kind == "list":
            self.body += b"["
            for number, (key, row) in enumerate(self.assembly.listed(node, link)):
                self.body += b"," if number else b""
                self._object(node, key, row)
            self.body += b"]"
        else:
            if node.names_rows:
                self.rows.append(RowReference(node.number, link))
            self.body += _ENCODE(_aggregated(node, self.assembly.view(node, link)))

    def _leaf(self, node: Node, link: str) -> None:
        items = [entry_payload(entry) for entry in self.assembly.view(node, link).entries]
        if node.kind == "list":
            self.body += b"[%b]" % b",".join(items)
        else:
            self.body += items[0] if items else b"null"

    def _one(self, node: Node, link: str) -> tuple[str, StoredRow] | None:
        if node.by_key:
            row = self.assembly.row(node, link)
            return None if row is None else (link, row)
        listed = self.assembly.listed(node, link)
        return listed[0] if listed else None

    def _note(self, node: Node, key: str, row: StoredRow) -> None:
        if node.names_rows:
            self.rows.append(RowReference(node.number, key, row.version, row.commit_time_us))
        known = self.sources.get(node.table.source)
        if known is None or row.version > known.version:
            self.sources[node.table.source] = SourceState(row.version, row.commit_time_us)


def empty_bytes(node: Node) -> bytes:
    """The section without any row: null, an empty list, or aggregates over nothing."""
    if node.kind == "object":
        return b"null"
    if node.kind == "aggregates":
        return _ENCODE(_aggregated(node, _EMPTY_VIEW))
    return b"[]"


def _aggregated(node: Node, view: RelationView) -> Any:
    groups: dict[bytes, dict[int, dict[int, int]]] = {}
    for field, amount in view.counters.items():
        group, identifier, limb = split_counter_field(field)
        groups.setdefault(group, {}).setdefault(identifier, {})[limb] = amount
    if node.kind == "aggregates":
        return _group_values(node, groups.get(b"", {}), view.tops.get(b"", []), _rows(groups.get(b"", {})))
    assert node.section is not None
    total = sum(map(_rows, groups.values()))
    found = []
    for group, counters in groups.items():
        if not _rows(counters):
            continue
        values = _DECODE(group)
        row = dict(zip(node.section.group_by, values, strict=True))
        row.update(_group_values(node, counters, view.tops.get(group, []), total))
        found.append((_group_order(node, row, values), row))
    found.sort(key=lambda item: item[0])
    return [row for _, row in found[: node.limit]]


def _group_order(node: Node, row: dict[str, Any], values: list[Any]) -> bytes:
    assert node.section is not None
    types, order = node.table.types, b""
    for text in node.section.order_by:
        name = text.removeprefix("-")
        aggregate = node.section.aggregates.get(name)
        column = name if aggregate is None else aggregate.column
        # Counts and sums are numbers already; the least, greatest and latest keep their column's type.
        encode = typed(encode_descending if text.startswith("-") else encode_value, types.get(column or ""))
        order += encode(_number_or_value(row[name]))
    columns = zip(node.section.group_by, values, strict=True)
    return order + b"".join(typed(encode_value, types.get(column))(value) for column, value in columns)


def _number_or_value(value: Any) -> Any:
    return Decimal(bytes(value).decode()) if isinstance(value, msgspec.Raw) else value


def _rows(counters: dict[int, dict[int, int]]) -> int:
    return counters.get(_ROWS_FIELD, {}).get(0, 0)


def _group_values(
    node: Node, counters: dict[int, dict[int, int]], tops: Sequence[bytes | None], total: int
) -> dict[str, Any]:
    return {plan.name: _aggregate_value(plan, counters, tops, total) for plan in node.aggregates}


def _aggregate_value(
    plan: AggregatePlan, counters: dict[int, dict[int, int]], tops: Sequence[bytes | None], total: int
) -> Any:
    if plan.top is not None:
        entry = tops[plan.top] if plan.top < len(tops) else None
        return None if entry is None else _DECODE(entry_payload(entry))
    function = plan.spec.function
    if function == "share":
        return plain_number(quotient(_rows(counters), total, plan.spec.round))
    count = counters.get(COUNT_OFFSET + plan.identifier, {}).get(0, 0)
    if function in ("count", "count_distinct"):
        return count
    if count == 0:
        return None
    amount = total_of(counters.get(plan.identifier, {}))
    return plain_number(quotient(amount, count, plan.spec.round) if function == "avg" else amount)
