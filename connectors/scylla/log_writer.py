"""Writes to a table of a plain Cassandra what an application would, and to its log what Scylla would: the stand-in for
the real server in tests, samples and benchmarks.

What Scylla does on its own side of the wire is done here: streams by token, one cdc$time and atomic batch for what was
written at one time, end_of_batch on the last row, images when they are wanted, generations by write timestamp.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from connectors.cql.schema import Column, TableSchema, full_name, quoted
from connectors.cql.session import CqlSession
from connectors.cql.times import timeuuid
from connectors.scylla import decoding
from connectors.scylla.config import LOG_SUFFIX
from connectors.scylla.log_statements import Add, Edit, Erase, Overwrite, Part, Remove, Write, base_cql, log_parts
from connectors.scylla.log_tables import Generation

Image = Literal["none", "affected", "full"]
Places = list[tuple[uuid.UUID, Any]]


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """As in `WITH cdc = {…}`; `preimage` affected is Scylla's true."""

    ttl_s: int = 86_400
    preimage: Image = "none"
    postimage: bool = False


class LogWriter:
    """Of one table. `generations` may grow while it writes. Not for several tasks at once where lists or images are
    written; else for any number."""

    def __init__(
        self,
        session: CqlSession,
        table: TableSchema,
        generations: Sequence[Generation],
        options: LogOptions | None = None,
        randomness: random.Random | None = None,
    ) -> None:
        self.table = table
        self._session = session
        self._generations = generations
        self._options = options or LogOptions()
        self._random = randomness or random.Random()
        self._places: dict[tuple[Any, ...], Places] = {}
        self._late: list[tuple[Write, list[Part]]] = []

    async def write(self, *writes: Write, late: bool = False) -> None:
        """`late`: the table has it at once, the log only after `catch_up`, as when a node is slow."""
        for write in writes:
            before = await self._row(write) if self._options.preimage != "none" else None
            query, parameters = base_cql(write, self.table)
            await self._session.execute(query, parameters)
            parts = log_parts(self._with_places(write), self.table)
            after = await self._row(write) if self._options.postimage else None
            parts = [self._with_images(part, write, before, after) for part in parts]
            if late:
                self._late.append((write, parts))
            else:
                await self._log(write, parts)

    async def catch_up(self) -> None:
        """Logs what was written late."""
        late, self._late = self._late, []
        for write, parts in late:
            await self._log(write, parts)

    async def _log(self, write: Write, parts: list[Part]) -> None:
        token = await self._token(write)
        for part in parts:
            stream = self._stream(part.ts, token)
            time = uuid.UUID(bytes=timeuuid(part.ts * 10, self._random.randbytes(8)))
            rows = []
            for number, row in enumerate(part.rows):
                full = {"cdc$stream_id": stream, "cdc$time": time, "cdc$batch_seq_no": number, **row}
                if number == len(part.rows) - 1:
                    full["cdc$end_of_batch"] = True
                rows.append(self._insert(full, part.ts))
            if len(rows) == 1:
                await self._session.execute(*rows[0])  # servers refuse large batches earlier than large rows
            else:
                await self._session.batch(rows)

    def _insert(self, row: Mapping[str, Any], ts: int) -> tuple[str, list[Any]]:
        names, marks = ", ".join(map(quoted, row)), ", ".join("?" * len(row))
        log = full_name(self.table.keyspace, self.table.table + LOG_SUFFIX)
        query = f"INSERT INTO {log} ({names}) VALUES ({marks}) USING TTL ? AND TIMESTAMP ?"
        return query, [*row.values(), self._options.ttl_s, ts]

    def _stream(self, ts: int, token: int) -> bytes:
        """Of the generation in whose time the write falls, whenever it is written."""
        fitting = [generation for generation in self._generations if generation.time_ms * 1000 <= ts]
        return max(fitting, key=lambda generation: generation.time_ms).stream_of(token)

    async def _token(self, write: Write) -> int:
        names = [column.name for column in self.table.partition_key]
        where = " AND ".join(f"{quoted(name)} = ?" for name in names)
        query = f"SELECT {quoted(names[0])} FROM {full_name(self.table.keyspace, self.table.table)} WHERE {where}"
        return await self._session.token(query, [write.key[name] for name in names])

    # lists: the log shows their places, which CQL does not tell

    def _with_places(self, write: Write) -> Write:
        edits = dict(write.edits)
        for name, edit in write.edits.items():
            column = self.table.column(name)
            if column is not None and column.multi_cell and column.type.name == "list":
                edits[name] = self._placed(column, edit, write)
        return msgspec.structs.replace(write, edits=edits)

    def _placed(self, column: Column, edit: Edit, write: Write) -> Edit:
        known = self._places.setdefault((*write.key.values(), column.name), [])
        if isinstance(edit, Remove):
            gone = {place for place, value in known if value in edit.keys}
            known[:] = [(place, value) for place, value in known if place not in gone]
            return Remove(gone)
        if not isinstance(edit, Add):
            known.clear()
        if isinstance(edit, Erase):
            return edit
        new = [(self._place(write.ts, number), value) for number, value in enumerate(edit.value or ())]
        known.extend(new)
        if isinstance(edit, Overwrite):
            return Overwrite(dict(new) or None)
        return Add(dict(new))

    def _place(self, ts: int, number: int) -> uuid.UUID:
        return uuid.UUID(bytes=timeuuid(ts * 10 + number, self._random.randbytes(8)))

    # images

    async def _row(self, write: Write) -> dict[str, Any] | None:
        """The row as it is now; None when there is none, or when the write is of no single row."""
        if not write.kind.startswith(("insert", "update", "delete row")):
            return None
        where = " AND ".join(f"{quoted(name)} = ?" for name in write.key)
        query = f"SELECT * FROM {full_name(self.table.keyspace, self.table.table)} WHERE {where}"
        found = (await self._session.rows(query, list(write.key.values()))).objects()
        return found[0] if found else None

    def _with_images(
        self, part: Part, write: Write, before: dict[str, Any] | None, after: dict[str, Any] | None
    ) -> Part:
        affected = set(write.edits) if self._options.preimage == "affected" and write.edits else None
        first = [] if before is None else [self._image(decoding.PREIMAGE, write, before, affected)]
        last = [] if after is None else [self._image(decoding.POSTIMAGE, write, after, None)]
        return Part(part.ts, [*first, *part.rows, *last])

    def _image(self, operation: int, write: Write, row: dict[str, Any], affected: set[str] | None) -> dict[str, Any]:
        found: dict[str, Any] = {**write.key, "cdc$operation": operation}
        for column in self.table.columns:
            if column.kind != "regular" or (affected is not None and column.name not in affected):
                continue
            value = row.get(column.name)
            if column.multi_cell and column.type.name == "list":
                value = dict(self._places.get((*write.key.values(), column.name), ())) or None
            if value is not None:
                found[column.name] = value
            elif operation == decoding.PREIMAGE:
                found[f"cdc$deleted_{column.name}"] = True
        return found
