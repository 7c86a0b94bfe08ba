"""What a connector counts of the records that it reads, by our own envelope."""

from __future__ import annotations

from collections import Counter

import msgspec

from connectors.runtime import Statistics
from connectors.source import SourceRecord
from schemas.envelope import encode
from schemas.event import ChangeEvent, Operation, version_of
from schemas.mutation import Cell, Marker, Mutation, MutationSource, encode_heartbeat, encode_mutation
from schemas.topics import HEARTBEAT_PREFIX

NOW_MS = 1_764_000_000_000
SCYLLA = MutationSource("scylla", "s", "shop", "t")


def records(operation: Operation, count: int = 1) -> list[SourceRecord]:
    """As the connector writes them, tombstones included."""
    message = (HEARTBEAT_PREFIX, b'"op":"c" is no operation') if operation is Operation.MESSAGE else None
    row = {"id": 1, "t": '"op":"u","ts_ms":1764000000000}'}
    event = ChangeEvent(
        source="s", table="public.t", operation=operation, key={"id": 1}, version=version_of(7, 8), commit_time_us=5,
        row=row if operation.value in "rcu" else None, before=row if operation.value == "d" else None, message=message,
    )  # fmt: skip
    return [SourceRecord("s.public.t", found.key, found.value) for found in encode(event, "db", NOW_MS)] * count


def test_each_change_is_counted_once() -> None:
    statistics = Statistics()
    for count, operation in enumerate(Operation):
        statistics.count(records(operation, count + 1))
    statistics.count([SourceRecord("s.public.t", b"k", b"{}"), SourceRecord("s.public.t", b"k", None)])
    counts = {"snapshot": 1, "create": 2, "update": 3, "delete": 4, "truncate": 5}
    assert statistics.operations == Counter(counts)
    assert statistics.snapshot_rows == {"s.public.t": 1}


def test_mutations_of_wide_column_databases_are_counted_too() -> None:
    statistics = Statistics()
    row = Mutation(marker=Marker(5), cells={"t": Cell(value='"op":"d","ts_ms":1764000000000}', ts=5)})
    ranges = Mutation(scope="range", deleted=5)
    for source, mutation in (
        (SCYLLA, row),
        (SCYLLA, row),
        (SCYLLA, Mutation(cells={"t": Cell(value=None, ts=6)})),
        (SCYLLA, Mutation(scope="partition", deleted=7)),
        (SCYLLA, ranges),
        (msgspec.structs.replace(SCYLLA, snapshot=True), row),
    ):
        key, value = encode_mutation(source, {"id": 1}, mutation, NOW_MS)
        statistics.count([SourceRecord("s.shop.t", key, value), SourceRecord("s.shop.t", key, None)])
    key, value = encode_heartbeat(SCYLLA, 5, NOW_MS)
    statistics.count([SourceRecord("s.shop.t", key, value)])
    assert statistics.operations == Counter({"create": 2, "update": 1, "delete": 2, "snapshot": 1})
    assert statistics.snapshot_rows == {"s.shop.t": 1}
