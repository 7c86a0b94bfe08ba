"""A table of Cassandra with a change log, as both kinds of the kit's harness write and read it."""

from __future__ import annotations

import asyncio
import datetime
import time
import uuid
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from connectors.conformance.harness import Rows
from connectors.conformance.topics import key_text
from connectors.cql.session import CqlSession
from schemas.event import ChangeEvent
from tests.support.cassandra_source import merge

CREATE = "CREATE TABLE {} (id bigint PRIMARY KEY, v text, extra int) WITH cdc = true"
SEGMENT_BYTES, FILLER_BYTES = 32 << 20, 8 << 20
ROOMY = {"commitlog_segment_size": "32MiB", "commitlog_sync_period": "200ms"}
"""Settings of a node that takes rows of 10 MB (half a segment is the most) and shows changes to readers soon."""
WRITERS = 16
TYPES = (
    # type, how a context declares it, least and greatest or oddest value, and both as they must be read
    ("bigint", "", -(2**63), 2**63 - 1, -(2**63), 2**63 - 1),
    ("smallint", "", -(2**15), 2**15 - 1, -(2**15), 2**15 - 1),
    ("tinyint", "", -128, 127, -128, 127),
    ("varint", "integer", -(2**70), 0, str(-(2**70)), 0),
    ("decimal", "decimal", Decimal("-0.000001"), Decimal("123456789012345678901234.567891"),
     "-0.000001", "123456789012345678901234.567891"),
    ("double", "", float("-inf"), float("nan"), "-Infinity", "NaN"),
    ("float", "", -0.1, 3.4028234663852886e38, -0.1, 3.4028235e38),
    ("boolean", "", False, True, False, True),
    ("ascii", "", "", "~", "", "~"),
    ("blob", "bytes", b"", b"\x00\xff", "", "AP8="),
    ("timestamp", "timestamptz_ms", -1, 253_402_300_799_999, "1969-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
    ("date", "date", datetime.date(1, 1, 1), datetime.date(9999, 12, 31), "0001-01-01", "9999-12-31"),
    ("time", "time_ns", 0, 86_399_999_999_999, "00:00:00", "23:59:59.999999999"),
    ("uuid", "", uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), str(uuid.UUID(int=0)), str(uuid.UUID(int=2**128 - 1))),
    ("inet", "inet", "0.0.0.0", "fe80::1", "0.0.0.0", "fe80::1"),
    ("frozen<list<int>>", "frozen", [], [2, 1], [], [2, 1]),
    ("frozen<set<text>>", "frozen", {"b", "a"}, {""}, ["a", "b"], [""]),
    ("frozen<map<text, int>>", "frozen", {}, {"x": 1}, {}, {"x": 1}),
)  # fmt: skip


DECLARED = {f"t{number}": one[1] for number, one in enumerate(TYPES) if one[1]}
"""What a context has to declare of them."""


class CassandraTable:
    """Both harnesses inherit it, and set these three."""

    session: CqlSession
    keyspace: str
    table: str

    def __init__(self) -> None:
        self.columns = ["id", "v", "extra"]

    @property
    def name(self) -> str:
        return f"{self.keyspace}.{self.table}"

    async def execute(self, statement: str, *parameters: Any) -> None:
        await self.session.execute(statement.format(self.name), parameters)

    async def write(self, rows: Mapping[int, str]) -> None:
        free = asyncio.Semaphore(WRITERS)

        async def one(number: int, v: str) -> None:
            async with free:
                await self.execute("INSERT INTO {} (id, v) VALUES (?, ?)", number, v)

        await asyncio.gather(*[one(number, v) for number, v in rows.items()])

    async def rows(self) -> Rows:
        found = (await self.session.rows(f"SELECT {', '.join(self.columns)} FROM {self.name}")).dicts()
        return {key_text({"id": row["id"]}): row for row in found}

    def merge(self, events: Sequence[ChangeEvent]) -> Rows:
        rows = merge([event for event in events if event.mutation is not None], self.columns)
        return {key_text({"id": row["id"]}): row for row in rows.values()}

    async def delete(self, ids: Sequence[int]) -> None:
        for number in ids:
            await self.execute("DELETE FROM {} WHERE id = ?", number)

    async def write_types(self) -> Rows:
        columns = [f"t{number}" for number in range(len(TYPES))]
        added = ", ".join(f"{column} {kind}" for column, (kind, *_) in zip(columns, TYPES, strict=True))
        await self.session.execute(f"ALTER TABLE {self.name} ADD ({added})")
        self.columns += columns
        insert = f"INSERT INTO {{}} ({', '.join(self.columns)}) VALUES ({', '.join('?' * len(self.columns))})"
        golden: Rows = {}
        for number, (written, read) in enumerate(((2, 4), (3, 5)), start=1):
            text = "" if number == 1 else 'ünï ☃ 😀 \\ " \n'
            await self.execute(insert, number, text, None, *(one[written] for one in TYPES))
            expected = {column: one[read] for column, one in zip(columns, TYPES, strict=True)}
            golden[f'{{"id":{number}}}'] = {"id": number, "v": text, "extra": None, **expected}
        return golden

    async def write_copies(self, rows: Mapping[int, str]) -> None:
        """As each replica of a row has them: the same write with the same time."""
        ts = time.time_ns() // 1000
        for _replica in range(3):
            await self.write_at(rows, ts)

    async def write_at(self, rows: Mapping[int, str], ts: int) -> None:
        for number, v in rows.items():
            await self.execute(f"INSERT INTO {{}} (id, v) VALUES (?, ?) USING TIMESTAMP {ts}", number, v)

    async def switch(self) -> None:
        """Writes what nobody captures until the node's commit log goes on in a new segment."""
        await self.session.execute(f"CREATE TABLE IF NOT EXISTS {self.keyspace}.filler (id int PRIMARY KEY, b blob)")
        for _part in range(SEGMENT_BYTES // FILLER_BYTES + 1):
            await self.session.execute(
                f"INSERT INTO {self.keyspace}.filler (id, b) VALUES (1, ?)", [bytes(FILLER_BYTES)]
            )
