"""The canary's decisions: what has come through, what is late, and what somebody says who only reads."""

from __future__ import annotations

import pytest

from connectors.canary import record_key, rows_of, writer_of
from connectors.cql.canary import create_statement as create_cql
from connectors.cql.canary import write_statement as write_cql
from connectors.partitioner import partition_of
from connectors.postgres.canary import create_statement, write_statement
from connectors.postgres.encoder import TableEncoder
from connectors.postgres.pgoutput import Relation, RelationColumn
from connectors.postgres.values import BUILT_IN_TYPES, converter_for
from connectors.registry import configure
from pipeline.commands._canary_judging import Shown, judge_shown
from pipeline.commands._canary_sightings import ATTEMPTS_MAX, Place, Sightings
from pipeline.core.errors import ConfigError
from schemas.mutation import Mutation, MutationSource, encode_mutation

HERE = Place("lookups", "http://here", 15.0)
THERE = Place("lookups", "http://there", 15.0)
SEARCH = Place("searches", "http://here", 25.0)
NOW_US = 1_800_000_000_000_000


def row(slot: int, stamp: int, number: int = 1) -> Shown:
    return Shown(slot, (0, 3), {0: 1, 3: 0}[slot], number, stamp)


def sightings(*places: Place, began_s: float = 100.0) -> Sightings:
    return Sightings({0: 1, 3: 0}, places or (HERE,), 15.0, began_s)


def wrote(one: Sightings, at_s: float, stamp: int | None = None) -> int:
    stamp = one.next_stamp(NOW_US + round(at_s * 1e6)) if stamp is None else stamp
    one.attempt(stamp, at_s)
    one.committed(stamp, at_s)
    return stamp


def test_each_row_is_counted_once_from_its_commit() -> None:
    one = sightings()
    assert one.verdict(100).up is None and one.waits(HERE) is None
    first = wrote(one, 100)
    assert one.waits(HERE) == 100
    assert one.shown(HERE, [row(0, first)], 100.2, NOW_US) == [pytest.approx(0.2)]
    assert one.waits(HERE) == 100, "row 3 is still on its way"
    assert one.verdict(101).up is None
    assert one.shown(HERE, [row(0, first), row(3, first)], 100.5, NOW_US) == [pytest.approx(0.5)]
    assert one.waits(HERE) is None
    assert one.verdict(102) == (True, 2.0, "", ())


def test_a_stall_counts_for_all_rows_that_it_held_up() -> None:
    one = sightings()
    stamps = [wrote(one, at_s) for at_s in (100, 105, 110)]
    took = one.shown(HERE, [row(0, stamps[-1]), row(3, stamps[0])], 111, NOW_US)
    assert sorted(took) == [1, 6, 11, 11]
    assert one.shown(HERE, [row(3, stamps[-1])], 112, NOW_US) == [7, 2]


def test_late_is_said_with_what_is_late_and_taken_back() -> None:
    one = sightings(HERE, THERE)
    first = wrote(one, 100)
    for place in (HERE, THERE):
        one.shown(place, [row(0, first), row(3, first)], 100, NOW_US)
    second = wrote(one, 105)
    one.shown(HERE, [row(0, second), row(3, second)], 105, NOW_US)
    one.shown(THERE, [row(3, second)], 105, NOW_US)
    assert one.verdict(115).up is True
    late = one.verdict(116)
    assert late.up is False and late.age_s == 16 and late.late == ("partition 1",)
    assert late.reason == "lookups at http://there show rows of 16 s ago in partition 1"
    one.unanswered(THERE, "http://there gave no answer within 2000 ms")
    assert one.verdict(121).reason.endswith("lookups at http://there: gave no answer within 2000 ms")
    third = wrote(one, 121)
    for place in (HERE, THERE):
        one.shown(place, [row(0, third), row(3, third)], 121.5, NOW_US)
    assert one.verdict(122) == (True, 1.0, "", ())


def test_a_source_that_takes_nothing_is_late_too_and_said_first() -> None:
    one = sightings()
    first = wrote(one, 100)
    one.shown(HERE, [row(0, first), row(3, first)], 100, NOW_US)
    one.attempt(one.next_stamp(NOW_US), 105)
    one.refused("Postgres h:1/d can't be reached")
    assert one.verdict(114).up is True and one.waits(HERE) is None
    late = one.verdict(116)
    assert late.up is False and late.reason.startswith("the source takes no rows: Postgres h:1/d can't be reached; ")


def test_a_write_without_an_answer_may_still_have_worked() -> None:
    one = sightings()
    stamp = one.next_stamp(NOW_US)
    one.attempt(stamp, 100)
    one.refused("no answer within 5 s")
    assert one.shown(HERE, [row(0, stamp), row(3, stamp)], 106, NOW_US) == [], "nobody knows when it was committed"
    assert one.verdict(106) == (True, 6.0, "", ())


def test_rows_of_before_are_not_taken_for_ours_even_by_a_clock_that_was_ahead() -> None:
    one = sightings()
    future = NOW_US + 3_600_000_000
    assert one.shown(HERE, [row(0, future), row(3, NOW_US - 7_000_000)], 100, NOW_US) == []
    assert one.verdict(100) == (None, 7.0, "", ())
    ours = wrote(one, 100)
    assert one.shown(HERE, [row(0, future), row(3, NOW_US - 7_000_000)], 101, NOW_US) == []
    assert one.verdict(116).up is False, "the row of before does not stand in for ours"
    assert one.shown(HERE, [row(0, ours), row(3, ours)], 117, NOW_US) == [17, 17]


def test_rows_of_another_role_prove_that_ours_before_them_came_through() -> None:
    one = sightings()
    one.shown(HERE, [row(0, NOW_US - 5), row(3, NOW_US - 5)], 100, NOW_US)
    ours = wrote(one, 100)
    assert one.shown(HERE, [row(0, ours + 10), row(3, ours - 1)], 101, NOW_US) == [1]
    assert one.waits(HERE) == 100, "the other row came before ours"


def test_stamps_never_go_back_and_memory_has_a_limit() -> None:
    one = sightings()
    stamps = [wrote(one, 100 + number, one.next_stamp(NOW_US)) for number in range(ATTEMPTS_MAX + 5)]
    assert stamps == sorted(set(stamps))
    took = one.shown(HERE, [row(0, stamps[-1]), row(3, stamps[-1])], 2000, NOW_US)
    assert len(took) == 2 * ATTEMPTS_MAX


def test_searches_and_other_contexts_are_judged_beside_lookups() -> None:
    one = sightings(HERE, SEARCH)
    for at_s in (100, 105, 110, 115, 120, 125):
        stamp = wrote(one, at_s)
        one.shown(HERE, [row(0, stamp), row(3, stamp)], at_s, NOW_US)
        if at_s == 100:
            one.shown(SEARCH, [row(0, stamp), row(3, stamp)], at_s, NOW_US)
        one.stated("http://here", "item", max(1.0, at_s - 108), at_s)
    late = one.verdict(126)
    assert late.up is False and late.age_s == 1, "the age is that of lookups"
    assert late.reason == (
        "searches at http://here show rows of 26 s ago; lookups in context item at http://here state an age of 18 s"
    )
    assert late.late == ("partition 1", "partition 0", "context item")


def test_who_only_reads_says_what_is_missing_late_or_fine() -> None:
    fresh = judge_shown("shop", "canary_shop", "u", 15, [row(0, NOW_US - 4_000_000), row(3, NOW_US + 9)], NOW_US)
    assert fresh.up and (fresh.age_s, fresh.rows, fresh.reason, fresh.late) == (4.0, 2, "", ())
    late = judge_shown("shop", "canary_shop", "u", 15, [row(0, NOW_US - 16_000_000), row(3, NOW_US)], NOW_US)
    assert (
        not late.up and late.late == ("partition 1",) and "1 of 2 rows: the row shown was written 16 s" in late.reason
    )
    part = judge_shown("shop", "canary_shop", "u", 15, [row(0, NOW_US)], NOW_US)
    assert not part.up and part.late == ("row 3",)
    none = judge_shown("shop", "canary_shop", "u", 15, [], NOW_US)
    assert not none.up and none.age_s is None and "was it written" in none.reason
    assert set(none.as_dict()) >= {"source", "context", "url", "up", "age_s", "reason", "late"}


@pytest.mark.parametrize("partitions", [1, 2, 3, 12, 100])
def test_one_row_for_each_partition(partitions: int) -> None:
    found = rows_of(partitions, ours=True)
    assert next(iter(found)) == 0 and sorted(found.values(), key=int) == list(range(partitions))  # type: ignore[call-overload]
    assert all(partition_of(record_key(slot), partitions) == number for slot, number in found.items())
    unknown = rows_of(partitions, ours=False)
    keys = [b'{"schema":{"type":"int32"},"payload":{"slot":%d}}' % slot for slot in unknown]
    assert len({partition_of(key, partitions) for key in keys}) >= partitions - 1
    assert set(unknown.values()) == {None} and len(unknown) <= 1000


def test_keys_are_as_our_connectors_write_them() -> None:
    relation = Relation(0, 1, "public", "c", "d", (RelationColumn("slot", 23, -1, True),))
    encoder = TableEncoder("s", "d", relation, ["slot"], [converter_for(23, -1, BUILT_IN_TYPES)])
    assert encoder.key(encoder.fragments([b"17"])) == record_key(17)
    key, _ = encode_mutation(MutationSource("scylla", "s", "ks", "c"), {"slot": 17}, Mutation(), 0)
    assert key == record_key(17)


def test_statements() -> None:
    assert create_statement("public.c").startswith('CREATE TABLE "public"."c" (slot int PRIMARY KEY, slots text')
    assert create_statement("public.c").endswith('ALTER TABLE "public"."c" ALTER slots SET STORAGE PLAIN')
    assert write_statement("public.c").endswith(
        "ON CONFLICT (slot) DO UPDATE SET slots = excluded.slots, kafka_partition = excluded.kafka_partition, "
        "number = excluded.number, written_us = excluded.written_us"
    )
    assert create_cql("ks", "c", is_scylla=True).endswith("WITH cdc = {'enabled': true};")
    assert create_cql("ks", "c", is_scylla=False).endswith("written_us bigint) WITH cdc = true;")
    assert write_cql("ks", "c") == (
        'INSERT INTO "ks"."c" (slot, slots, kafka_partition, number, written_us) VALUES (?, ?, ?, ?, ?)'
    )


def test_who_writes_is_chosen_by_the_source_and_told_when_nobody_can() -> None:
    postgres, cassandra, foreign, bare, files = configure(
        {
            "shop": {"connector": "postgres", "dsn": "postgresql://h/d", "tables": ["public.c"]},
            "ring": {
                "connector": "cassandra",
                "hosts": ["h"],
                "keyspace": "ks",
                "tables": ["c"],
                "data_directory": "ring",
            },
            "old": {"connector": "debezium", "verify": {"connector": "scylla", "hosts": ["h"]}},
            "bare": {"connector": "debezium"},
            "files": {"connector": "jsonlines", "directory": "x", "tables": {"files.t": {"files": "t", "key": ["id"]}}},
        }
    )
    assert type(writer_of(postgres, "public.c", {"dsn": "postgresql://other@h/d"})).__name__ == "PostgresCanary"
    assert type(writer_of(cassandra, "ks.c", {"user": "u"})).__name__ == "CqlCanary"
    assert type(writer_of(foreign, "ks.c", {})).__name__ == "CqlCanary"
    login = {"connector": "postgres", "dsn": "postgresql://h/d"}
    assert type(writer_of(bare, "public.c", login)).__name__ == "PostgresCanary"
    for source, given, words in (
        (bare, {}, "no row can be written into a source of debezium"),
        (files, {}, "no row can be written into a source of jsonlines"),
        (postgres, {"dsnn": "x"}, "canary.sources.shop.login.dsnn: unknown key; did you mean"),
    ):
        with pytest.raises(ConfigError, match=words):
            writer_of(source, "public.c", given)
