"""Row → its places in relations: join values, ordered entries and exact aggregate contributions. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from pipeline import sortable
from pipeline.counters import counter_field
from pipeline.exact import limbs_of, number_of
from pipeline.plan import CounterPlan, OrderPlan, RelationPlan, TablePlan, Values
from pipeline.stores.store import Contribution, Membership

Links = tuple[str | None, ...]

_MEMBER = Contribution()
_DISTINCT_VALUE_BYTES_MAX = 64


def links_of(table: TablePlan, values: Values) -> Links:
    """The row's join value in each of its table's relations."""
    return tuple([relation.join(values) for relation in table.relations])


def memberships(
    table: TablePlan, key: str, version: str, values: Values | None, links: Links, former_links: Sequence[Links]
) -> list[Membership]:
    """What to write so that the row stands where its values say, and nowhere else.

    `values` None (deleted, `links` then empty) takes it out everywhere. `former_links` are places that it may still
    have to leave.
    """
    changes = []
    for relation, link in zip(table.relations, links or (None,) * len(table.relations), strict=True):
        if link is not None and values is not None:
            contribution = contribution_of(relation, key, values)
            changes.append(Membership(relation.index, link, key, version, contribution))
        left = {former[relation.place] for former in former_links} if former_links else ()
        for place in left:
            if place is not None and place != link:
                changes.append(Membership(relation.index, place, key, version, None))
    return changes


def contribution_of(relation: RelationPlan, key: str, values: Values) -> Contribution | None:
    """None when the relation's filter leaves the row out."""
    if relation.accept is not None and not relation.accept(values):
        return None
    if relation.plain:
        return _MEMBER
    group = group_prefix([values[position] for position in relation.group]) if relation.group else b""
    entries = [_entry(order, group, key, values) for order in relation.orders]
    counters: list[tuple[bytes, int]] = []
    distincts: list[tuple[bytes, bytes]] = []
    for counter, suffix in relation.counters:
        _count(counter, group, group + suffix, values, counters, distincts)
    return Contribution(entries, counters, distincts)


def group_prefix(values: list[Any]) -> bytes:
    """The group-by values as a JSON array: prefix-free, and readable back."""
    return msgspec.json.encode(values)


def _entry(order: OrderPlan, group: bytes, key: str, values: Values) -> bytes | None:
    if order.where is not None and not order.where(values):
        return None
    if order.skip_null and values[order.columns[0][0]] is None:
        return None
    prefix = group
    for position, encode in order.columns:
        prefix += encode(values[position])
    payload = key.encode() if order.payload is None else order.payload(values)
    return sortable.make_entry(prefix, payload)


def _count(
    counter: CounterPlan,
    group: bytes,
    field: bytes,
    values: Values,
    counters: list[tuple[bytes, int]],
    distincts: list[tuple[bytes, bytes]],
) -> None:
    if counter.where is not None and not counter.where(values):
        return
    value = values[counter.column] if counter.column is not None else True
    if value is None:
        return
    if counter.function == "count_distinct":
        distincts.append((counter_field(group, counter.identifier) + _distinct_text(value), field))
        return
    if counter.function in ("sum", "avg"):
        number = number_of(value)
        if number is None:
            return
        counters.extend(
            (counter_field(group, counter.identifier, limb), part) for limb, part in limbs_of(number).items()
        )
    counters.append((field, 1))


def _distinct_text(value: Any) -> bytes:
    text = msgspec.json.encode(value)
    return text if len(text) <= _DISTINCT_VALUE_BYTES_MAX else hashlib.sha256(text).digest()
