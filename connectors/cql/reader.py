"""Reads tables of Cassandra and Scylla as they are now, by CQL: the side of `ctxpipe verify` that asks the source.

It knows nothing of mutations, write times or what the pipeline made of them: the server has merged, and says what the
rows are. Static columns are left out, because they are not captured.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from connectors.cql.reader_plan import Asked, Lookup, Row, indexed, lookup_of
from connectors.cql.schema import TableSchema, read_table, tables_of
from connectors.cql.session import CqlServer, CqlSession, connect
from pipeline.core.errors import EnvironmentProblem, Fatal, Retryable

Values = tuple[Any, ...]
Match = Mapping[str, Sequence[str]]
Progress = Callable[[str, int], None]

BATCH_ROWS = 4_000
LOOKUPS_AT_ONCE = 64
RANGES = 64
LANES = 4
HELD_BYTES_MAX = 256 * 1024 * 1024
KEPT_PER_LIMIT = 2
"""A list that shall have so many rows is cut when it has so many times as many, and some."""

_CLOCK = "SELECT toUnixTimestamp(now()) FROM system.local"
_INDEXES = "SELECT kind, options FROM system_schema.indexes WHERE keyspace_name = ? AND table_name = ?"

Held = dict[tuple[str, ...], list[Row]]


class CqlReader:
    """One cluster; connects at the first question; `close` when done. Values are canonical.

    Rows are found by their partition key, with as many of the clustering columns behind it as the question names; by an
    index, where few values are wanted. What CQL can't find so is looked up in memory: the table is read once, by token
    ranges, and its rows are held by the columns that are asked for, up to `held_bytes_max` of all such tables together,
    until `forget`. Of a table for which that is not enough each question reads all rows and keeps those that match.
    """

    def __init__(
        self,
        server: CqlServer,
        name: str,
        progress: Progress = lambda what, count: None,
        held_bytes_max: int = HELD_BYTES_MAX,
    ) -> None:
        """`progress` is told which table is being read as a whole, and how many rows of it have come."""
        self._server, self._name, self._progress = server, name, progress
        self._session: CqlSession | None = None
        self._tables: dict[str, TableSchema] = {}
        self._indexed: dict[str, frozenset[str]] = {}
        self._held: dict[tuple[Any, ...], Held] = {}
        self._held_bytes, self._held_bytes_max = 0, held_bytes_max
        self._too_large: set[tuple[Any, ...]] = set()
        self._lock = asyncio.Lock()
        self._connecting = asyncio.Lock()

    async def columns(self, table: str) -> dict[str, str]:
        """Column → type name. Raises EnvironmentProblem when there is no such table, or none that this login sees."""
        with self._named():
            schema = await self._schema(table)
        return {column.name: Asked.type_name(column) for column in schema.columns if column.kind != "static"}

    async def rows(
        self, table: str, columns: Sequence[str], match: Match | None, order: Sequence[str], limit: int | None
    ) -> AsyncIterator[list[Values]]:
        """See pipeline.ops.reader.TableReader.rows. Each query sees its own moment."""
        with self._named():
            asked = Asked.make(await self._schema(table), columns, match, order, limit)
            async for rows in self._all(asked) if match is None else self._matching(asked, match):
                for start in range(0, len(rows), BATCH_ROWS):
                    yield [asked.values(row) for row in rows[start : start + BATCH_ROWS]]

    async def clock_us(self) -> int:
        """The clock of the node that answers; it tells milliseconds."""
        with self._named():
            (sent,) = (await (await self._connected()).rows(_CLOCK, consistency="LOCAL_ONE")).rows
        return int.from_bytes(sent[0] or b"", "big", signed=True) * 1000

    async def other_nodes(self) -> int:
        """How many nodes the cluster has beside the one that answers."""
        with self._named():
            return await (await self._connected()).other_nodes()

    def forget(self) -> None:
        """Tables that are held in memory are read again when they are asked for."""
        self._held.clear()
        self._held_bytes = 0

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _matching(self, asked: Asked, match: Match) -> AsyncIterator[list[Row]]:
        wanted = asked.wanted(match)
        if not wanted:
            return
        lookup = lookup_of(asked, list(match)) or indexed(
            asked, list(match), await self._indexes(asked.schema), len(wanted)
        )
        if lookup is not None:
            async for rows in self._looked_up(asked, lookup, wanted):
                yield rows
            return
        held = await self._hold(asked, list(match))
        if held is not None:
            for spelt in wanted:
                yield asked.cut(list(held.get(spelt, ())))
        else:
            async for rows in self._sifted(asked, wanted):
                yield rows

    async def _looked_up(self, asked: Asked, lookup: Lookup, wanted: set[tuple[str, ...]]) -> AsyncIterator[list[Row]]:
        """Several at once; of each the rows that are wanted, in order."""
        session = await self._connected()
        statement = await session.prepare(lookup.query)
        questions = lookup.questions(wanted)
        for start in range(0, len(questions), LOOKUPS_AT_ONCE):
            asking = [session.rows(statement, question) for question in questions[start : start + LOOKUPS_AT_ONCE]]
            for answer in await asyncio.gather(*asking):
                for rows in asked.grouped(answer.rows, wanted).values():
                    yield asked.cut(rows)

    async def _hold(self, asked: Asked, columns: list[str]) -> Held | None:
        """All rows by what they have in these columns; None where they are too many to hold."""
        name = (asked.schema.keyspace, asked.schema.table, *columns, "", *asked.names)
        async with self._lock:
            if name in self._held or name in self._too_large:
                return self._held.get(name)
            held: Held = {}
            size = 0
            async for rows in self._all(asked):
                for spelt, group in asked.grouped(rows, None).items():
                    held.setdefault(spelt, []).extend(group)
                size += sum(map(asked.size_of, rows))
                if self._held_bytes + size > self._held_bytes_max:
                    self._too_large.add(name)
                    return None
            self._held[name] = held
            self._held_bytes += size
            return held

    async def _sifted(self, asked: Asked, wanted: set[tuple[str, ...]]) -> AsyncIterator[list[Row]]:
        """What is wanted of a table that can't be held."""
        kept: Held = {}
        async for rows in self._all(asked):
            for spelt, group in asked.grouped(rows, wanted).items():
                if not asked.order and asked.limit is None:
                    yield group
                    continue
                known = kept.setdefault(spelt, [])
                known += group
                if asked.limit is not None and len(known) > KEPT_PER_LIMIT * asked.limit + BATCH_ROWS:
                    kept[spelt] = asked.cut(known)
        for known in kept.values():
            yield asked.cut(known)

    async def _all(self, asked: Asked) -> AsyncIterator[list[Row]]:
        """Every row, page by page, from several token ranges at once."""
        lanes = [self._lane(asked, number) for number in range(LANES)]
        waiting = {asyncio.ensure_future(anext(lane, None)): lane for lane in lanes}
        count = 0
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    lane, rows = waiting.pop(task), task.result()
                    if rows is None:
                        continue
                    waiting[asyncio.ensure_future(anext(lane, None))] = lane
                    count += len(rows)
                    self._progress(f"reading {asked.schema.keyspace}.{asked.schema.table}", count)
                    yield asked.existing(rows)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _lane(self, asked: Asked, number: int) -> AsyncIterator[list[Row]]:
        session = await self._connected()
        statement = await session.prepare(asked.range_query)
        for after, until in list(_ranges())[number::LANES]:
            async for page in session.pages(statement, (after, until)):
                if page.rows:
                    yield page.rows

    async def _schema(self, table: str) -> TableSchema:
        if table not in self._tables:
            keyspace, _, name = table.rpartition(".")
            session = await self._connected()
            schema = await read_table(session, keyspace, name)
            if schema is None:
                near = get_close_matches(name, await tables_of(session, keyspace), 1)
                hint = f"; did you mean {keyspace}.{near[0]}?" if near else ""
                raise EnvironmentProblem(f"there is no table {table} at {session.where}{hint}")
            self._tables[table] = schema
        return self._tables[table]

    async def _indexes(self, schema: TableSchema) -> frozenset[str]:
        """Columns with an index that finds whole values as they are."""
        name = f"{schema.keyspace}.{schema.table}"
        if name not in self._indexed:
            session = await self._connected()
            found = await session.rows(_INDEXES, (schema.keyspace, schema.table), consistency="LOCAL_ONE")
            plain = [row["options"] for row in found.dicts() if set(row["options"]) <= {"target", "class_name"}]
            self._indexed[name] = frozenset(options["target"].strip('"') for options in plain)
        return self._indexed[name]

    async def _connected(self) -> CqlSession:
        async with self._connecting:
            if self._session is None:
                self._session = await connect(self._server)
            return self._session

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Says which source it was; whoever verifies can't go on, whatever it was."""
        try:
            yield
        except (Retryable, Fatal, EnvironmentProblem) as error:
            raise EnvironmentProblem(f"source {self._name}: {error}") from error


def _ranges() -> Iterator[tuple[int, int]]:
    """The ring in equal parts, each above one token up to another; no key has the smallest token."""
    edges = [-(1 << 63) + ((1 << 64) - 1) * number // RANGES for number in range(RANGES + 1)]
    return pairwise(edges)
