"""The suite's tests of single records: what they hold of every type, of nothing, of keys, and in which order."""

from __future__ import annotations

import re
from typing import Any

from connectors.conformance.harness import Deleting, Folding, Nulling, Rekeying, Typed, needs
from connectors.conformance.memory import change_of, changes_of
from connectors.conformance.running import Subject, read_until
from schemas.envelope import decode_record
from schemas.record import Record


class RecordTests:
    """Records are what every stage behind Kafka takes them for."""

    async def test_every_record_is_understood_behind_kafka(self, subject: Subject) -> None:
        await subject.write({1: "before the start", 2: "deleted later"})
        async with subject.running() as running:
            await running.until_equal()
            await subject.write({1: "changed", 3: 'ünï ✓ " \\ \n'})
            await running.until_equal()
            for offset, record in enumerate(running.records):
                decode_record(Record(record.topic, 0, offset, record.key, record.value, 0, tuple(record.headers)))

    @needs(Deleting)
    async def test_a_deleted_row_disappears(self, subject: Subject, harness: Any) -> None:
        await subject.write({1: "stays", 2: "goes"})
        async with subject.running() as running:
            await running.until_equal()
            await harness.delete([2])
            await running.until_equal()
            await subject.write({2: "comes back"})
            await running.until_equal()

    @needs(Deleting, without=(Folding,))
    async def test_a_tombstone_follows_a_delete(self, subject: Subject, harness: Any) -> None:
        await subject.write({1: "goes"})
        async with subject.running() as running:
            await running.until_equal()
            await harness.delete([1])
            await running.until_equal()
        records = running.sink.records
        (place,) = [index for index, record in enumerate(records) if (change_of(record) or " ")[0] == "d"]
        assert [one.value for one in records[place + 1 :] if one.key == records[place].key][:1] == [None]

    @needs(Typed)
    async def test_the_golden_table_of_types(self, subject: Subject, harness: Any) -> None:
        golden = await harness.write_types()
        async with subject.running() as running:
            await running.until(lambda: golden.keys() <= running.fold().keys(), "the rows")
            found = running.fold()
        wrong = {
            f"{key} {column}": (found[key].get(column, "absent"), value)
            for key, row in golden.items()
            for column, value in row.items()
            if found[key].get(column, "absent") != value or type(found[key][column]) is not type(value)
        }
        assert not wrong, "column: (in the record, in the golden table)"

    @needs(Nulling)
    async def test_null_absent_and_unavailable_are_three_things(self, subject: Subject, harness: Any) -> None:
        start = await subject.streaming_position()
        async with subject.opened(start) as source:
            golden = await harness.write_nulls()
            await subject.write({999: "the marker"})
            batches = await read_until(source, "the marker")
        found = [after for _, _, after in changes_of([one for batch in batches for one in batch.records])]
        assert found[:-1] == golden

    @needs(Rekeying)
    async def test_a_changed_key_leaves_nothing_under_the_old_one(self, subject: Subject, harness: Any) -> None:
        await subject.write({1: "moves", 2: "stays"})
        async with subject.running() as running:
            await running.until_equal()
            await harness.change_key(1, 3)
            await running.until_equal()
            await harness.change_key(3, 1)
            await running.until_equal()

    async def test_changes_of_a_key_keep_their_order(self, subject: Subject) -> None:
        start = await subject.streaming_position()
        async with subject.opened(start) as source:
            for number in range(30):
                await subject.write({1: f"first {number}.", 2 + number: "older"})
                await subject.write({2 + number: "newer"})
            await subject.write({999: "the marker"})
            batches = await read_until(source, "the marker")
        records = [record for batch in batches for record in batch.records if change_of(record)]
        assert {record.partition for record in records} == {None}, "Kafka places changes by their key"
        numbers = [int(found) for one in records for found in _FIRST.findall(one.value or b"")]
        assert numbers == [*range(30)]
        last = {record.key: record.value or b"" for record in records if not _FIRST.search(record.value or b"")}
        wrong = [key.decode() for key, value in last.items() if b"newer" not in value and b"the marker" not in value]
        assert not wrong and len(last) == 31, "rows that end with their older change"


_FIRST = re.compile(rb"first (\d+)\.")
