"""The topics kind's tests of single records: what they say of every type, of nothing, of keys, and in which order."""

from __future__ import annotations

import random
from typing import Any

from connectors.conformance.deployed import Deployed
from connectors.conformance.harness import Deleting, Duplicating, Late, Nulling, Rekeying, Typed, needs
from connectors.conformance.topics import is_delete, said_by
from connectors.conformance.topics_harness import Beginning, Merging, Truncating
from schemas.event import Operation


class TopicRecordTests:
    """What lies in the topic is what every stage behind Kafka takes it for."""

    async def test_rows_from_before_and_after_the_start(self, deployed: Deployed) -> None:
        await deployed.write({number: f"row {number}" for number in range(1, 200)})
        await deployed.start()
        await deployed.until_equal()
        await deployed.write({1: 'ünï ✓ " \\ \n', 500: "new"})
        await deployed.until_equal()
        assert {one.record.topic for one in deployed.told} == {deployed.log.topic}

    @needs(Beginning)
    async def test_rows_that_were_there_before_say_so(self, deployed: Deployed, harness: Any) -> None:
        await deployed.write({number: f"row {number}" for number in range(1, harness.many() + 1)})
        await deployed.start()
        await deployed.until_equal()
        kinds = [event.operation for event in deployed.writes()]
        assert {*kinds} == {Operation.SNAPSHOT}, "a row that was there came as a change"
        await deployed.write({1: "changed", 2: "changed"})
        await deployed.until_equal()
        later = {event.operation for event in deployed.writes()[len(kinds) :]}
        assert Operation.SNAPSHOT not in later and later, "a change came as a snapshot's row"

    async def test_no_gap_between_the_start_and_the_stream(self, deployed: Deployed, harness: Any) -> None:
        await deployed.write({number: f"row {number}" for number in range(100_001, 100_400)})
        async with deployed.writing() as written:
            await deployed.until(lambda: len(written) > 20, "some rows before the start")
            await deployed.start()
            await deployed.until(lambda: deployed.told, "a first record")
            if isinstance(harness, Deleting):
                await harness.delete([100_001, 100_002, 101])
            seen = len(written)
            await deployed.until(lambda: len(written) > seen + 20, "some rows after it")
        await deployed.until_equal()

    @needs(Deleting)
    async def test_a_deleted_row_disappears(self, deployed: Deployed, harness: Any) -> None:
        await deployed.started()
        await deployed.write({1: "stays", 2: "goes"})
        await deployed.until_equal()
        await harness.delete([2])
        await deployed.until_equal()
        await deployed.write({2: "comes back"})
        await deployed.until_equal()
        await harness.delete([2])
        await deployed.until_equal()

    @needs(Deleting, without=(Merging,))
    async def test_a_tombstone_follows_a_delete(self, deployed: Deployed, harness: Any) -> None:
        """Without, compaction would keep the delete for ever."""
        await deployed.started()
        await deployed.write({1: "goes"})
        await deployed.until_equal()
        await harness.delete([1])
        await deployed.until_equal()
        (place,) = [index for index, one in enumerate(deployed.told) if is_delete(one.event)]
        key = deployed.told[place].record.key

        def followed() -> bool:
            return [one.record.value for one in deployed.told[place + 1 :] if one.record.key == key][:1] == [None]

        await deployed.until(followed, "the tombstone")

    @needs(Truncating)
    async def test_a_truncate_empties_the_table(self, deployed: Deployed, harness: Any) -> None:
        await deployed.started()
        await deployed.write({1: "goes", 2: "comes back"})
        await deployed.until_equal()
        await harness.truncate()
        await deployed.write({2: "back"})
        await deployed.until_equal()

    @needs(Typed)
    async def test_the_golden_table_of_types(self, deployed: Deployed, harness: Any) -> None:
        await deployed.started()
        golden = await harness.write_types()
        await deployed.until(lambda: golden.keys() <= deployed.fold().keys(), "the rows")
        found = deployed.fold()
        wrong = {
            f"{key} {column}": (found[key].get(column, "absent"), value)
            for key, row in golden.items()
            for column, value in row.items()
            if found[key].get(column, "absent") != value or type(found[key][column]) is not type(value)
        }
        assert not wrong, "column: (in the topic, in the golden table)"

    @needs(Nulling)
    async def test_null_absent_and_unavailable_are_three_things(self, deployed: Deployed, harness: Any) -> None:
        await deployed.started()
        before = len(deployed.writes())
        golden = await harness.write_nulls()
        await deployed.until(lambda: len(deployed.writes()) >= before + len(golden), "these changes")
        told = sorted(deployed.writes()[before:], key=lambda event: event.version)  # they may lie in several partitions
        assert [said_by(event) for event in told] == golden

    @needs(Rekeying)
    async def test_a_changed_key_leaves_nothing_under_the_old_one(self, deployed: Deployed, harness: Any) -> None:
        await deployed.started()
        await deployed.write({1: "moves", 2: "stays"})
        await deployed.until_equal()
        await harness.change_key(1, 3)
        await deployed.until_equal()
        await harness.change_key(3, 1)
        await deployed.until_equal()

    async def test_changes_of_a_row_keep_their_order(self, deployed: Deployed) -> None:
        """By their own order, which workers go by; whole rows in that of their partition as well."""
        await deployed.started()
        for number in range(30):
            await deployed.write({1: f"first {number}.", 2 + number: "older"})
            await deployed.write({2 + number: "newer"})
        await deployed.until_equal()
        assert deployed.values_of_first() == [f"first {number}." for number in range(30)]
        places: dict[bytes | None, set[int]] = {}
        versions: dict[bytes | None, list[str]] = {}
        for one in deployed.told:
            if one.event is not None and one.event.key is not None and None not in one.event.key.values():
                places.setdefault(one.record.key, set()).add(one.record.partition)
                versions.setdefault(one.record.key, []).append(one.event.version)
        assert not [key for key, numbers in places.items() if len(numbers) > 1], "a key in two partitions"
        if not isinstance(deployed.harness, Merging):
            assert not [key for key, found in versions.items() if found != sorted(found)], "later before earlier"

    @needs(Duplicating)
    async def test_copies_of_a_change_are_one(self, deployed: Deployed, harness: Any) -> None:
        await deployed.started()
        for number in range(5):
            await harness.write_copies({1: f"copy {number}", 2 + number: "copied"})
        await deployed.until_equal()

    @needs(Late)
    async def test_late_writes_are_read_and_win_over_nothing_newer(self, deployed: Deployed, harness: Any) -> None:
        await deployed.started()
        await deployed.write({1: "new"})
        await deployed.until_equal()
        await harness.write_late({1: "late", 2: "late"})
        await deployed.until(lambda: '{"id":2}' in deployed.fold(), "what was written late")
        await deployed.until_equal()
        await deployed.write({2: "newer"})
        await deployed.until_equal()

    async def test_repetition_changes_nothing(self, deployed: Deployed, conformance_random: random.Random) -> None:
        """A deployment may send a stretch again; records that merge may come in any order besides."""
        await deployed.started()
        await deployed.write(dict.fromkeys(range(1, 20), "a row"))
        await deployed.write({number: f"row {number}" for number in range(1, 20, 2)})
        if isinstance(deployed.harness, Deleting):
            await deployed.harness.delete([2, 3])
        await deployed.until_equal()
        events, rows = deployed.events(), await deployed.rows()
        cut = conformance_random.randrange(len(events))
        assert deployed.folded(events + events[cut:]) == rows
        if isinstance(deployed.harness, Merging):
            shuffled = [*events, *events]
            conformance_random.shuffle(shuffled)
            assert deployed.folded(shuffled) == rows
