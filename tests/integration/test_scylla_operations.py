"""Everything that a log can say, written as Scylla writes it and read by the source: in the end the records, merged,
are the table as CQL shows it."""

from __future__ import annotations

import random
import uuid
from decimal import Decimal

import pytest

from connectors.scylla.log_statements import Add, Edit, Erase, Overwrite, Remove, Write
from deploy.local.cassandra import CassandraServer
from tests.support.scylla import ScyllaTable, changes, now_us, read_until, records_of, scylla_table

pytestmark = pytest.mark.servers

COLUMNS = (
    "p int, c int, d text, a int, b text, st text static, m map<int, text>, s set<text>, l list<int>, u u, "
    "fm frozen<map<int, text>>, fu frozen<u>, PRIMARY KEY (p, c, d)"
)
TYPE = "CREATE TYPE {keyspace}.u (x int, y text)"


def key(c: int, d: str = "k", p: int = 1) -> dict[str, object]:
    return {"p": p, "c": c, "d": d}


async def written_and_read(made: ScyllaTable, writes: list[Write]) -> list[dict[str, object]]:
    """Writes, reads, compares with CQL; the envelopes."""
    await made.writer.write(*writes)
    source = made.source()
    await source.open(None)
    try:
        batches = await read_until(source, max(writes, key=lambda write: write.ts))
    finally:
        await source.close()
    records = records_of(batches)
    assert made.folded(records) == await made.rows()
    return changes(records)


async def test_cells_rows_and_deletions(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS, before_ddl=TYPE) as made:
        ts = now_us()
        found = await written_and_read(
            made,
            [
                Write(kind="insert", key=key(1), ts=ts, edits={"a": Overwrite(1), "b": Overwrite("x")}),
                Write(kind="insert", key=key(2), ts=ts + 1),
                Write(kind="update", key=key(3), ts=ts + 2, edits={"a": Overwrite(3)}),
                Write(kind="update", key=key(1), ts=ts + 3, edits={"a": Overwrite(None)}),
                Write(kind="update", key=key(3), ts=ts + 4, edits={"a": Erase()}),
                Write(kind="insert", key=key(4), ts=ts + 5, ttl=3600, edits={"a": Overwrite(4), "b": Overwrite(None)}),
                Write(kind="delete row", key=key(2), ts=ts + 6),
                Write(kind="insert", key=key(5, p=2), ts=ts + 7, edits={"b": Overwrite("gone")}),
                Write(kind="delete partition", key={"p": 2}, ts=ts + 8),
                Write(kind="insert", key=key(6, p=2), ts=ts + 9, edits={"b": Overwrite("after")}),
                Write(kind="update", key={"p": 1}, ts=ts + 10, edits={"st": Overwrite("static")}),
            ],
        )
        by_time = {event["source"]["ts_us"] - ts: event for event in found}
        assert [by_time[number]["op"] for number in range(10)] == [*list("iiuuu"), by_time[5]["op"], *list("didi")]
        assert by_time[0]["source"]["connector"] == "scylla" and by_time[0]["source"]["table"] == "t"
        assert by_time[0]["after"] == {
            "p": 1,
            "c": 1,
            "d": "k",
            "a": {"value": 1, "ts": ts},
            "b": {"value": "x", "ts": ts},
        }
        assert by_time[1]["mutation"]["marker"] == {"ts": ts + 1, "expires": None}
        assert by_time[3]["after"]["a"] == {"value": None, "ts": ts + 3}
        expires = next(event for event in found if event["source"]["ts_us"] == ts + 5 and event["op"] == "i")
        assert expires["after"]["a"] == {"value": 4, "ts": ts + 5, "expires": ts + 5 + 3_600_000_000}
        assert expires["mutation"]["marker"]["expires"] == ts + 5 + 3_600_000_000
        assert by_time[6]["mutation"]["deleted"] == ts + 6 and by_time[6]["after"] == key(2)
        assert by_time[8]["after"] == {"p": 2, "c": None, "d": None}
        assert 10 not in by_time, "static columns are not captured"


async def test_ranges(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS, before_ddl=TYPE) as made:
        ts = now_us()
        rows = [
            Write(kind="insert", key=key(c, d, p), ts=ts, edits={"a": Overwrite(1)})
            for p in range(1, 6)
            for c in range(4)
            for d in "xyz"
        ]
        ranges = [
            Write(kind="delete range", key={"p": 1}, ts=ts + 1, lower=((1,), False), upper=((3,), False)),
            Write(kind="delete range", key={"p": 2}, ts=ts + 1, lower=((2,), True)),
            Write(kind="delete range", key={"p": 3}, ts=ts + 1, upper=((2,), True)),
            Write(kind="delete range", key={"p": 4, "c": 1}, ts=ts + 1, lower=((1, "x"), False)),
            Write(kind="delete range", key={"p": 5, "c": 2}, ts=ts + 1),
        ]
        found = await written_and_read(made, [*rows, *ranges])
        bounds = {e["after"]["p"]: e["mutation"] for e in found if e["op"] == "r"}
        assert bounds[1]["lower"] == {"values": [1], "inclusive": False}
        assert bounds[1]["upper"] == {"values": [3], "inclusive": False}
        assert bounds[2]["upper"] is None and bounds[3]["lower"] is None
        assert bounds[4]["lower"] == {"values": [1, "x"], "inclusive": False}
        assert bounds[4]["upper"] == bounds[5]["upper"] | {"values": [1]}
        assert bounds[5]["lower"] == bounds[5]["upper"] == {"values": [2], "inclusive": True}


async def test_ranges_of_descending_columns(cassandra_server: CassandraServer) -> None:
    order = "WITH CLUSTERING ORDER BY (c DESC, d ASC)"
    async with scylla_table(
        cassandra_server, "p int, c int, d text, a int, PRIMARY KEY (p, c, d)", options=order
    ) as made:
        ts = now_us()
        rows = [
            Write(kind="insert", key=key(c, d, p), ts=ts, edits={"a": Overwrite(1)})
            for p in range(1, 5)
            for c in range(4)
            for d in "xyz"
        ]
        found = await written_and_read(
            made,
            [
                *rows,
                Write(kind="delete range", key={"p": 1}, ts=ts + 1, lower=((1,), True), upper=((3,), False)),
                Write(kind="delete range", key={"p": 2}, ts=ts + 1, lower=((2,), False)),
                Write(kind="delete range", key={"p": 3}, ts=ts + 1, upper=((1,), True)),
                Write(kind="delete range", key={"p": 4, "c": 2}, ts=ts + 1, lower=((2, "y"), True)),
            ],
        )
        bounds = {e["after"]["p"]: e["mutation"] for e in found if e["op"] == "r"}
        assert bounds[1]["lower"] == {"values": [1], "inclusive": True}
        assert bounds[1]["upper"] == {"values": [3], "inclusive": False}
        assert bounds[2]["lower"] == {"values": [2], "inclusive": False} and bounds[2]["upper"] is None


async def test_collections_and_types(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS, before_ddl=TYPE) as made:
        ts = now_us()
        every = {
            "m": Overwrite({1: "a", 2: "b"}),
            "s": Overwrite({"x", "y"}),
            "l": Overwrite([3, 1, 2]),
            "u": Overwrite((1, "one")),
            "fm": Overwrite({1: "a"}),
            "fu": Overwrite((2, None)),
        }
        found = await written_and_read(
            made,
            [
                Write(kind="insert", key=key(1), ts=ts, edits=every),
                Write(kind="insert", key=key(2), ts=ts, ttl=3600, edits=every),
                Write(kind="update", key=key(3), ts=ts, edits={"m": Add({7: "seven"}), "s": Add({"z"}), "l": Add([9])}),
                Write(kind="update", key=key(3), ts=ts + 1, edits={"l": Add([8, 7]), "u": Add({"y": "only"})}),
                Write(kind="update", key=key(1), ts=ts + 2, edits={"m": Remove({1}), "s": Remove({"x"})}),
                Write(kind="update", key=key(1), ts=ts + 3, edits={"l": Remove([1]), "u": Remove({"x"})}),
                Write(kind="update", key=key(2), ts=ts + 10, edits={"m": Erase()}),
                Write(kind="update", key=key(2), ts=ts + 20, edits={"s": Overwrite(None), "l": Overwrite([5])}),
                Write(kind="update", key=key(2), ts=ts + 30, ttl=3600, edits={"u": Overwrite((None, "new"))}),
            ],
        )
        first = next(event for event in found if event["after"]["c"] == 1 and event["op"] == "i")["after"]
        assert first["m"] == {"kind": "map", "cleared": ts - 1, "elements": [[1, "a", ts, None], [2, "b", ts, None]]}
        assert first["s"] == {
            "kind": "set",
            "cleared": ts - 1,
            "elements": [["x", True, ts, None], ["y", True, ts, None]],
        }
        assert [item[1] for item in first["l"]["elements"]] == [3, 1, 2] and first["l"]["kind"] == "list"
        assert all(uuid.UUID(item[0]).version == 1 for item in first["l"]["elements"])
        assert first["u"]["elements"] == [["x", 1, ts, None], ["y", "one", ts, None]]
        assert first["fm"]["value"] == {"1": "a"} and first["fm"]["raw"]
        assert first["fu"]["value"] == {"x": 2, "y": None}
        erased = next(event for event in found if event["source"]["ts_us"] == ts + 10)["after"]["m"]
        assert erased == {"kind": "map", "cleared": ts + 10, "elements": []}


async def test_images_change_nothing(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, COLUMNS, before_ddl=TYPE) as made:
        made.use(preimage="affected", postimage=True)
        ts = now_us()
        found = await written_and_read(
            made,
            [
                Write(kind="insert", key=key(1), ts=ts, edits={"a": Overwrite(1), "l": Overwrite([1])}),
                Write(kind="update", key=key(1), ts=ts + 1, edits={"a": Overwrite(2), "m": Add({1: "x"})}),
                Write(kind="delete row", key=key(1), ts=ts + 2),
                Write(kind="insert", key=key(1), ts=ts + 3, edits={"b": Overwrite("again")}),
            ],
        )
        logged = (await made.session.rows(f'SELECT "cdc$operation" FROM {made.name}_scylla_cdc_log')).dicts()
        operations = sorted(row["cdc$operation"] for row in logged)
        assert operations == [0, 0, 1, 2, 2, 3, 9, 9, 9] and len(found) == 4


async def test_alternators_deletions(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, "p int, c int, a int, PRIMARY KEY (p, c)") as made:
        ts = now_us()
        rows = [Write(kind="insert", key={"p": p, "c": c}, ts=ts) for p in (1, 2) for c in (1, 2)]
        gone = [
            Write(kind="delete row", key={"p": 1, "c": 1}, ts=ts + 1),
            Write(kind="delete partition", key={"p": 2}, ts=ts + 1),
        ]
        await made.writer.write(*rows, *gone)
        log = f"{made.name}_scylla_cdc_log"
        for row in (await made.session.rows(f"SELECT * FROM {log}")).objects():
            if row["cdc$operation"] in (3, 4):
                where = '"cdc$stream_id" = ? AND "cdc$time" = ? AND "cdc$batch_seq_no" = ?'
                change = f'UPDATE {log} SET "cdc$operation" = ? WHERE {where}'
                place = (row["cdc$stream_id"], row["cdc$time"], row["cdc$batch_seq_no"])
                await made.session.execute(change, (-row["cdc$operation"] if row["cdc$operation"] == 3 else -4, *place))
        last = Write(kind="insert", key={"p": 3, "c": 1}, ts=ts + 2)
        found = await written_and_read(made, [last])
        assert sorted(event["op"] for event in found) == ["d", "d", "i", "i", "i", "i", "i"]


async def test_a_table_without_clustering_columns(cassandra_server: CassandraServer) -> None:
    async with scylla_table(cassandra_server, "k text PRIMARY KEY, v decimal") as made:
        ts = now_us()
        found = await written_and_read(
            made,
            [
                Write(kind="insert", key={"k": "a"}, ts=ts, edits={"v": Overwrite(Decimal("1.50"))}),
                Write(kind="insert", key={"k": "b"}, ts=ts, edits={"v": Overwrite(Decimal(2))}),
                Write(kind="delete partition", key={"k": "b"}, ts=ts + 1),
            ],
        )
        assert [event["after"]["v"]["value"] for event in found if event["after"]["k"] == "a"] == ["1.50"]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_random_writes_with_few_times(cassandra_server: CassandraServer, seed: int) -> None:
    """Ties of every kind: the log tells them in any order, and merging finds what Cassandra found."""
    columns = "p int, c int, a int, b text, m map<int, text>, s set<text>, u u, fm frozen<map<int, text>>"
    async with scylla_table(
        cassandra_server, f"{columns}, PRIMARY KEY (p, c)", seed=seed, before_ddl=TYPE, options=DESCENDING
    ) as made:
        chosen = random.Random(seed)
        begin = now_us()
        writes = [random_write(chosen, begin + chosen.randint(0, 12)) for _ in range(120)]
        writes.append(Write(kind="insert", key={"p": 99, "c": 0}, ts=now_us()))
        await written_and_read(made, writes)


DESCENDING = "WITH CLUSTERING ORDER BY (c DESC)"


def random_write(chosen: random.Random, ts: int) -> Write:
    partition = {"p": chosen.randint(1, 2)}
    row = {**partition, "c": chosen.randint(1, 4)}
    ttl = chosen.choice([0, 0, 3600, 7200])
    kind = chosen.choices(["insert", "update", "erase", "row", "range", "partition"], [6, 8, 2, 2, 1, 1])[0]
    if kind == "insert":
        return Write(kind="insert", key=row, ts=ts, ttl=ttl, edits=random_edits(chosen, whole=True))
    if kind == "update":
        return Write(kind="update", key=row, ts=ts, ttl=ttl, edits=random_edits(chosen, whole=False))
    if kind == "erase":
        return Write(kind="update", key=row, ts=ts, edits={chosen.choice("abmsu"): Erase()})
    if kind == "row":
        return Write(kind="delete row", key=row, ts=ts)
    if kind == "range":
        low, high = sorted((chosen.randint(1, 4), chosen.randint(1, 4)))
        upper = ((high,), True) if chosen.random() < 0.7 else None
        return Write(kind="delete range", key=partition, ts=ts, lower=((low,), high == low), upper=upper)
    return Write(kind="delete partition", key=partition, ts=ts)


def random_edits(chosen: random.Random, *, whole: bool) -> dict[str, Edit]:
    text = chosen.choice("xyz")
    possible: dict[str, list[Edit]] = {
        "a": [Overwrite(chosen.randint(-3, 3)), Overwrite(None)],
        "b": [Overwrite(text), Overwrite(None)],
        "m": [Overwrite({1: text, 2: text}), Overwrite(None), Add({chosen.randint(1, 3): text}), Remove({1})],
        "s": [Overwrite({text, "w"}), Add({text}), Remove({text})],
        "u": [Overwrite((1, text)), Add({"y": text}), Remove({"x"})],
        "fm": [Overwrite({1: text}), Overwrite({chosen.randint(-2, 2): "t"})],
    }
    names = chosen.sample(sorted(possible), chosen.randint(1, 4))
    kinds = (Overwrite,) if whole else (Overwrite, Add, Remove)
    return {name: chosen.choice([edit for edit in possible[name] if isinstance(edit, kinds)]) for name in names}
