"""A seeded world around the production flow: a source with transactions, a log in partitions, stores that fail midway.

Nothing here waits for real time: coroutines are driven by hand, and at every store call the seed decides who goes on,
who is slow, who fails and who dies. A run is a pure function of its seed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from random import Random
from typing import Any
from zlib import crc32

import msgspec

from pipeline.core.errors import Retryable
from pipeline.stores.memory import MemoryBundles, MemoryCells, MemoryMarks, MemoryRelations, MemoryRows
from schemas.keys import key_text
from schemas.record import Record
from tests.simulation.specs import COLUMNS, TABLES

PARTITIONS = 2


class Crash(BaseException):
    """The process is gone between two steps; nothing catches it."""


class Pause:
    """Gives the driver the choice of who runs next."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Source:
    """Three tables, changed by random transactions, and the log that a connector would write of them."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.tables: dict[str, dict[str, dict[str, Any]]] = {f"s.public.{table}": {} for table in TABLES}
        self.log: dict[tuple[str, int], list[Record]] = {}
        self.position = 100

    def transaction(self) -> None:
        self.position += 10
        commit = self.position + 5
        for _ in range(self.random.choice([1, 1, 1, 2, 4])):
            self.position += 1
            self._change(self.random.choice(sorted(TABLES)), commit)
        self.position = commit

    def duplicate(self) -> None:
        """A connector that died before it noted its position sends the end of the log again, in order."""
        count = self.random.randint(1, 6)
        for partition, records in sorted(self.log.items()):
            tail = records[-count:]
            for record in tail:
                records.append(msgspec.structs.replace(record, offset=len(records)))
            self.log[partition] = records

    def _change(self, table: str, commit: int) -> None:
        rows = self.tables[f"s.public.{table}"]
        action = self.random.random()
        if action < 0.02 and rows:
            rows.clear()
            self._append(table, None, "t", None, commit)
        elif action < 0.2 and rows:
            key = self.random.choice(sorted(rows))
            self._append(table, rows.pop(key), "d", None, commit)
        elif action < 0.3 and rows:
            self._change_key(table, rows, commit)
        elif action < 0.75 and rows:
            self._update(table, rows, commit)
        else:
            row = self._row(table)
            key = self._key(table, row)
            self._append(table, row, "u" if key in rows else "c", row, commit)
            rows[key] = row

    def _update(self, table: str, rows: dict[str, dict[str, Any]], commit: int) -> None:
        key = self.random.choice(sorted(rows))
        row, fresh = dict(rows[key]), self._row(table)
        for column in self.random.sample(COLUMNS[table], 2):
            if column not in TABLES[table]:
                row[column] = fresh[column]
        sent = dict(row)
        if self.random.random() < 0.3 and row["u"] == rows[key]["u"]:
            sent["u"] = "__debezium_unavailable_value"
        rows[key] = row
        self._append(table, row, "u", sent, commit)

    def _change_key(self, table: str, rows: dict[str, dict[str, Any]], commit: int) -> None:
        old = self.random.choice(sorted(rows))
        row = dict(rows[old])
        fresh = self._row(table)
        row.update({column: fresh[column] for column in TABLES[table]})
        new = self._key(table, row)
        if new in rows:
            return
        self._append(table, rows.pop(old), "d", None, commit)
        self.position += 1
        self._append(table, row, "c", row, commit)
        rows[new] = row

    def _key(self, table: str, row: dict[str, Any]) -> str:
        return key_text([row[column] for column in TABLES[table]])

    def _row(self, table: str) -> dict[str, Any]:
        pick = self.random.choice
        row: dict[str, Any] = {
            "a_id": pick([None, 1, 2, 3]),
            "b_id": pick([None, 1, 2]),
            "n": pick([None, 0, 1, 2, 3]),
            "m": pick([None, 1, 2, -7, 10**12]),
            "d": pick([None, "1.50", "-0.25", "1.0", "2.00"]),
            "t": pick([None, "x", "y", "é", "a|b%"]),
            "u": pick(["small", "large" * 3, None]),
            "flag": pick([None, True, False]),
            "p": pick([None, 1, 2]),
            "q": pick([None, 1, 2]),
        }
        keys = {"id": pick([1, 2, 3, 4])} if table != "c" else {"p": pick([1, 2, 3]), "q": pick([1, 2])}
        return {**row, **keys}

    def _append(self, table: str, row: dict[str, Any] | None, operation: str, after: Any, commit: int) -> None:
        key = {"__ctxpipe": "truncate"} if row is None else {column: row[column] for column in TABLES[table]}
        source = {
            "version": "ctxpipe-simulated",
            "connector": "postgresql",
            "name": "s",
            "ts_ms": commit,
            "ts_us": commit * 1000,
            "snapshot": "false",
            "db": "d",
            "schema": "public",
            "table": table,
            "txId": commit,
            "lsn": self.position,
            "sequence": f'["{commit}","{self.position}"]',
        }
        value = {"before": None, "after": after, "source": source, "op": operation, "ts_ms": commit}
        encoded = msgspec.json.encode(key)
        partition = 0 if row is None else crc32(encoded) % PARTITIONS
        records = self.log.setdefault((f"s.public.{table}", partition), [])
        records.append(Record(f"s.public.{table}", partition, len(records), encoded, msgspec.json.encode(value)))
        if operation == "d":
            records.append(Record(f"s.public.{table}", partition, len(records), encoded, None))


class Faults:
    """What may go wrong, and how often; all zero once the faults stop."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.failure, self.crash = random.choice([0, 0.03, 0.1]), random.choice([0, 0.01, 0.04])

    def stop(self) -> None:
        self.failure = self.crash = 0.0

    def strike(self) -> None:
        roll = self.random.random()
        if roll < self.crash:
            raise Crash
        if roll < self.crash + self.failure:
            raise Retryable("the store is away")


class FaultyStore:
    """A store whose batches are carried out bucket by bucket, with everything that may happen in between."""

    def __init__(self, store: Any, faults: Faults) -> None:
        self.store, self.faults = store, faults

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.store, name)

        async def call(*arguments: Any) -> Any:
            await Pause()
            self.faults.strike()
            if name in ("apply", "relate", "mark_dirty", "put", "read", "write") and isinstance(arguments[0], Sequence):
                result = await self._in_parts(method, list(arguments[0]))
            else:
                result = await method(*arguments)
            await Pause()
            self.faults.strike()
            return result

        return call

    async def _in_parts(self, method: Callable[..., Awaitable[Any]], items: list[Any]) -> list[Any]:
        buckets: dict[int, list[int]] = {}
        for number, item in enumerate(items):
            buckets.setdefault(crc32(_place(item).encode()) % 3, []).append(number)
        order = list(buckets.values())
        self.faults.random.shuffle(order)
        results: list[Any] = [None] * len(items)
        for numbers in order:
            answers = await method([items[number] for number in numbers])
            for number, answer in zip(numbers, answers or [None] * len(numbers), strict=True):
                results[number] = answer
            if len(order) > 1:
                await Pause()
                self.faults.strike()
        return results


def _place(item: Any) -> str:
    """The text that decides an item's bucket: items of one place keep their order."""
    if isinstance(item, tuple):
        return _place(item[0]) if not isinstance(item[0], str) else str(item[1])
    return str(getattr(item, "parent", None) or getattr(item, "place", item).key)


class Memory:
    """All state of one Redis, which can be remembered and brought back as it was."""

    def __init__(self) -> None:
        self.rows, self.relations, self.bundles = MemoryRows(), MemoryRelations(), MemoryBundles()
        self.cells = MemoryCells(self.rows)
        self.marks = MemoryMarks()
