"""A table with a Scylla-style log as the conformance kit's harness: everything that can be done to it."""

from __future__ import annotations

import asyncio
import datetime
import uuid
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec
from cassandra.util import Duration

from connectors.conformance.harness import Rows
from connectors.scylla.config import LOG_SUFFIX
from connectors.scylla.log_statements import Overwrite, Write
from connectors.scylla.log_tables import forget_generation, value_columns
from connectors.scylla.plugin import PLUGIN
from connectors.source import Position, SourceRecord
from deploy.local.cassandra import CassandraServer
from pipeline.core.errors import Retryable
from tests.support.eventually import eventually
from tests.support.scylla import ScyllaTable, now_us, position_order

COLUMNS = "id bigint PRIMARY KEY, v text, extra int"
CONFIDENCE_S = 1.0
WRITERS = 16
ALTERATIONS = (
    ("ADD", "added text"),
    ("ADD", "many map<text, int>"),
    ("DROP", "added"),
)
TYPES = (
    # type, least and greatest or oddest value, and both as they must be read
    ("bigint", -(2**63), 2**63 - 1, -(2**63), 2**63 - 1),
    ("smallint", -(2**15), 2**15 - 1, -(2**15), 2**15 - 1),
    ("varint", -(2**70), 0, str(-(2**70)), 0),
    (
        "decimal",
        Decimal("-0.000001"),
        Decimal("123456789012345678901234.567891"),
        "-0.000001",
        "123456789012345678901234.567891",
    ),
    ("double", float("-inf"), float("nan"), "-Infinity", "NaN"),
    ("float", -0.1, 3.4028234663852886e38, -0.1, 3.4028235e38),
    ("boolean", False, True, False, True),
    ("text", "", 'ünï ☃ 😀 \\ " \n', "", 'ünï ☃ 😀 \\ " \n'),
    ("ascii", "", "~", "", "~"),
    ("blob", b"", b"\x00\xff", "", "AP8="),
    ("timestamp", -62_135_596_800_001, 253_402_300_799_999, "0000-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
    ("date", datetime.date(1, 1, 1), datetime.date(9999, 12, 31), "0001-01-01", "9999-12-31"),
    ("time", 0, 86_399_999_999_999, "00:00:00", "23:59:59.999999999"),
    ("uuid", uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), str(uuid.UUID(int=0)), str(uuid.UUID(int=2**128 - 1))),
    ("inet", "0.0.0.0", "fe80::1", "0.0.0.0", "fe80::1"),
    ("duration", Duration(0, 0, 0), Duration(-14, -3, -1), "PT0S", "-P1Y2M3DT0.000000001S"),
    ("frozen<list<int>>", [], [2, 1], [], [2, 1]),
    ("frozen<tuple<int, text>>", (None, None), (1, "a"), [None, None], [1, "a"]),
    ("set<text>", {"b", "a"}, {""}, ["a", "b"], [""]),
    ("map<int, text>", {1: ""}, {-1: "x", 2: "y"}, {"1": ""}, {"-1": "x", "2": "y"}),
    ("list<int>", [3, 1, 3], [-1], [3, 1, 3], [-1]),
)


class ScyllaConformance:
    """On a table that scylla_table made with COLUMNS, whose generations have one stream, so that order shows."""

    plugin = PLUGIN

    def __init__(self, made: ScyllaTable, server: CassandraServer) -> None:
        self.made = made
        self._server = server

    def section(self) -> dict[str, Any]:
        taken = self.made.config.model_dump(mode="json", exclude_defaults=True, exclude={"name", "connector"})
        return {**taken, "connector": "scylla", "hosts": self.made.config.hosts}

    async def write(self, rows: Mapping[int, str]) -> None:
        """Each with the time of its own writing: all of one time would be late before they are logged."""
        free = asyncio.Semaphore(WRITERS)

        async def one(number: int, v: str) -> None:
            async with free:
                await self._insert(number, v=v)

        await asyncio.gather(*[one(number, v) for number, v in rows.items()])

    async def _insert(self, number: int, *, ts: int | None = None, late: bool = False, **values: Any) -> int:
        ts = now_us() if ts is None else ts
        edits = {name: Overwrite(value) for name, value in values.items()}
        await self.made.writer.write(Write(kind="insert", key={"id": number}, ts=ts, edits=edits), late=late)
        return ts

    async def rows(self) -> Rows:
        return _by_record_key(await self.made.rows())

    def fold(self, records: Sequence[SourceRecord]) -> Rows:
        return _by_record_key(self.made.folded(records))

    def order(self, position: Position) -> Any:
        return position_order(position)

    async def delete(self, ids: Sequence[int]) -> None:
        for number in ids:
            await self.made.writer.write(Write(kind="delete partition", key={"id": number}, ts=now_us()))

    async def write_types(self) -> Rows:
        columns = [f"t{number}" for number in range(len(TYPES))]
        for column, (kind, *_) in zip(columns, TYPES, strict=True):
            await self._alter("ADD", f"{column} {kind}")
        golden: Rows = {}
        for number, (value, read) in enumerate(((1, 3), (2, 4)), start=1):
            values = {column: one[value] for column, one in zip(columns, TYPES, strict=True)}
            await self._insert(number, **values)
            expected = {column: one[read] for column, one in zip(columns, TYPES, strict=True)}
            golden[f'{{"id":{number}}}'] = {"id": number, "v": None, "extra": None, **expected}
        # Of a list that is not frozen the snapshot does not know the places: from the log as well it would come twice.
        await asyncio.sleep(2 * CONFIDENCE_S)
        return golden

    async def write_nulls(self) -> list[dict[str, Any]]:
        """A value that a change does not touch is not in the log, large or not."""
        null = await self._insert(1, v=None)
        large = await self._insert(2, v="x" * 8000)
        other = await self._insert(2, extra=2)
        return [
            {"id": 1, "v": {"value": None, "ts": null}},
            {"id": 2, "v": {"value": "x" * 8000, "ts": large}},
            {"id": 2, "extra": {"value": 2, "ts": other}},
        ]

    async def foreign_position(self, position: Position) -> Position:
        table = {**position["tables"]["t"], "id": str(uuid.uuid4())}
        return {**position, "tables": {"t": table}}

    async def lose(self) -> None:
        """As after a generation's time: nothing tells any more where its changes are."""
        await self.switch()
        await forget_generation(self.made.session, self.made.config.metadata, self.made.generations[-2].time_ms)

    async def bad_sections(self) -> Mapping[str, dict[str, Any]]:
        section = self.section()
        keyspace = self.made.table.keyspace
        await self.made.session.execute(f"CREATE TABLE IF NOT EXISTS {keyspace}.plain (id int PRIMARY KEY)")
        return {
            "no server": {**section, "port": 1},
            "a wrong datacenter": {**section, "local_datacenter": "nowhere"},
            "no such table": {**section, "tables": ["no_such_table"]},
            "CDC is not enabled": {**section, "tables": ["plain"]},
        }

    async def alter(self, step: int) -> bool:
        if step >= len(ALTERATIONS):
            return False
        await self._alter(*ALTERATIONS[step])
        return True

    async def _alter(self, what: str, column: str) -> None:
        """Scylla alters table and log as one."""
        await self.made.session.execute(f"ALTER TABLE {self.made.name} {what} {column}")
        await self.made.look_again()
        added = self.made.table.column(column.partition(" ")[0])
        for part in value_columns(added) if added is not None else []:
            await self.made.session.execute(f"ALTER TABLE {self.made.name}{LOG_SUFFIX} ADD {part}")

    async def write_late(self, rows: Mapping[int, str]) -> None:
        ts = now_us() - int(CONFIDENCE_S * 500_000)
        for number, v in rows.items():
            await self._insert(number, ts=ts, v=v)

    async def switch(self) -> None:
        """Returns when the new one is written to."""
        time_ms = now_us() // 1000 + 50
        await self.made.generation(time_ms)
        await asyncio.sleep((time_ms * 1000 - now_us()) / 1_000_000 + 0.01)


class RestartedScylla(ScyllaConformance):
    async def restart(self) -> None:
        """In order: a server that loses the last second of both logs may lose it of one only."""
        await asyncio.to_thread(self._server.restart)
        await eventually(
            lambda: self.made.session.rows("SELECT key FROM system.local"),
            lambda found: bool(found.rows),
            what="the test's own session is connected again",
            ignore=(Retryable,),
            timeout_s=90,
        )


def _by_record_key(rows: Mapping[str, dict[str, Any]]) -> Rows:
    return {msgspec.json.encode({"id": row["id"]}).decode(): row for row in rows.values()}
