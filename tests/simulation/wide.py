"""Three wide-column tables under random writes: late, early, repeated, deleted by row, partition and range, for a time.

What they hold in the end is worked out from the log as a whole, by looking for the winner of each cell, not by merging.
"""

from __future__ import annotations

from random import Random
from typing import Any
from zlib import crc32

from schemas.keys import key_text
from schemas.mutation import Bound, Cell, Marker, Mutation, MutationSource, encode_mutation
from schemas.record import Record
from tests.simulation.specs import COLUMNS, TABLES
from tests.simulation.world import PARTITIONS, Source

STEP_US = 300_000
START_US = 1_000_000_000

Written = tuple[str, dict[str, Any], Mutation]
"""(table, key row, mutation)."""


class WideSource(Source):
    """As Source, of mutations: table c has partition key p and clustering column q."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.now_us = START_US
        self.written: list[Written] = []

    def transaction(self) -> None:
        self.now_us += STEP_US
        for _ in range(self.random.choice([1, 1, 2, 4])):
            table = self.random.choice(sorted(TABLES))
            self._write(table, *self._mutation(table))

    def _mutation(self, table: str) -> tuple[dict[str, Any], Mutation]:
        row, roll = self._row(table), self.random.random()
        key = {column: row[column] for column in TABLES[table]}
        # Clocks differ, writes are late, and some share a timestamp.
        ts = self.now_us - self.random.choice([0, 0, 0, 1, STEP_US, 4 * STEP_US])
        if table == "c" and roll < 0.06:
            return {"p": key["p"], "q": None}, Mutation(scope="partition", deleted=ts)
        if table == "c" and roll < 0.14:
            lower = self.random.choice([None, Bound((self.random.choice([1, 2]),), self.random.random() < 0.5)])
            upper = self.random.choice([None, Bound((self.random.choice([1, 2]),), self.random.random() < 0.5)])
            return {"p": key["p"], "q": None}, Mutation(scope="range", deleted=ts, lower=lower, upper=upper)
        if roll < 0.25:
            return key, Mutation(deleted=ts)
        columns = [column for column in row if column not in key]
        chosen = columns if roll < 0.6 else self.random.sample(columns, 2)
        expires = self.random.choice([None, None, None, self.now_us + self.random.randint(1, 8) * STEP_US])
        cells = {name: Cell(ts, row[name], expires if row[name] is not None else None) for name in chosen}
        return key, Mutation(cells=cells, marker=Marker(ts, expires) if roll < 0.6 else None)

    def _write(self, table: str, key: dict[str, Any], mutation: Mutation) -> None:
        self.written.append((table, key, mutation))
        source = MutationSource("scylla", "s", "public", table)
        encoded, value = encode_mutation(source, key, mutation, self.now_us // 1000)
        partition = crc32(encoded) % PARTITIONS
        records = self.log.setdefault((f"s.public.{table}", partition), [])
        records.append(Record(f"s.public.{table}", partition, len(records), encoded, value))

    def settle(self) -> None:
        """The tables as they are once everything that lives for a time has lived it."""
        for table in TABLES:
            rows = {
                key_text(key.values()): key
                for name, key, _ in self.written
                if name == table and None not in key.values()
            }
            found = {text: _row_of(self.written, table, key) for text, key in rows.items()}
            self.tables[f"s.public.{table}"] = {text: row for text, row in found.items() if row is not None}


def _row_of(written: list[Written], table: str, key: dict[str, Any]) -> dict[str, Any] | None:
    mutations = [mutation for name, other, mutation in written if name == table and _concerns(other, key, mutation)]
    deleted = max((mutation.deleted for mutation in mutations if mutation.deleted is not None), default=-1)
    cells: dict[str, list[Cell]] = {}
    markers: list[Marker] = []
    for mutation in mutations:
        if mutation.marker is not None:
            markers.append(mutation.marker)
        for column, cell in mutation.cells.items():
            assert isinstance(cell, Cell)
            cells.setdefault(column, []).append(cell)
    row: dict[str, Any] = {**dict.fromkeys(COLUMNS[table]), **key}
    row.update({column: _winning(found, deleted) for column, found in cells.items()})
    newest = max(markers, key=lambda marker: (marker.ts, marker.expires or 0), default=None)
    alive = newest is not None and newest.ts > deleted and newest.expires is None
    return row if alive or any(row[column] is not None for column in cells) else None


def _winning(cells: list[Cell], deleted: int) -> Any:
    newest = max(cell.ts for cell in cells)
    last = [cell for cell in cells if cell.ts == newest]
    if newest <= deleted or any(cell.value is None or cell.expires is not None for cell in last):
        return None
    return max((cell.value for cell in last), key=_in_bytes)


def _in_bytes(value: Any) -> bytes:
    if isinstance(value, bool):
        return bytes([value])
    return value.to_bytes(16, "big", signed=True) if isinstance(value, int) else str(value).encode()


def _concerns(other: dict[str, Any], key: dict[str, Any], mutation: Mutation) -> bool:
    if mutation.scope == "row":
        return other == key
    if other["p"] != key["p"]:
        return False
    lower, upper, value = mutation.lower, mutation.upper, key["q"]
    above = lower is None or value > lower.values[0] or (lower.inclusive and value == lower.values[0])
    below = upper is None or value < upper.values[0] or (upper.inclusive and value == upper.values[0])
    return above and below
