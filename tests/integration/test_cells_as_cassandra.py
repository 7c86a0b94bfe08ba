"""Random mutations with random timestamps, written to a real Cassandra and merged here: both hold the same rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from connectors.cql.session import CqlSession
from deploy.local.cassandra import CassandraServer
from pipeline.cells import RowState, Tombstone, expired, merged, newest_cover, values_of
from schemas.mutation import Bound, Cell, Elements, Marker, Mutation
from tests.support.cassandra import cql_session, fresh_keyspace

pytestmark = pytest.mark.servers

COLUMNS = ("p", "c", "n", "w", "f", "ok", "tags", "names")
LISTED = frozenset(COLUMNS)
TABLE = """CREATE TABLE {} (p int, c int, n int, w text, f double, ok boolean, tags set<text>, names map<text, int>,
PRIMARY KEY (p, c)) WITH CLUSTERING ORDER BY (c DESC)"""
VALUES: dict[str, list[Any]] = {
    "n": [0, 1, -1, 2_000_000_000, -2_000_000_000, 256],
    "w": ["", "a", "b", "aa", "ä", "Z"],
    "f": [0.5, -0.5, 1e300, -1e300, 3.0],
    "ok": [True, False],
}
STATEMENTS = 90

Written = tuple[dict[str, int | None], Mutation]


class Writer:
    """Makes statements, and the mutations that they are. Timestamps collide often; every time to live is unique."""

    def __init__(self, seed: int, table: str) -> None:
        self.random, self.table = Random(seed), table
        self.lives = iter(range(1000, 100_000, 10))

    def statement(self) -> tuple[str, Written]:
        pick = self.random.choice
        p, c, ts = pick([1, 2]), pick([1, 2, 3]), self.random.randint(1, 12)
        roll = self.random.random()
        where = f"WHERE p = {p} AND c = {c}"
        if roll < 0.05:
            return f"DELETE FROM {self.table} USING TIMESTAMP {ts} WHERE p = {p}", (
                {"p": p, "c": None},
                Mutation(scope="partition", deleted=ts),
            )
        if roll < 0.13:
            return self._range(p, ts)
        if roll < 0.22:
            return f"DELETE FROM {self.table} USING TIMESTAMP {ts} {where}", ({"p": p, "c": c}, Mutation(deleted=ts))
        expires, using = self._life(ts)
        if roll < 0.55:
            return self._insert(p, c, ts, expires, using)
        cells, sets = self._changes(ts, expires)
        return f"UPDATE {self.table} {using} SET {', '.join(sets)} {where}", ({"p": p, "c": c}, Mutation(cells=cells))

    def _life(self, ts: int) -> tuple[int | None, str]:
        roll = self.random.random()
        if roll < 0.7:
            return None, f"USING TIMESTAMP {ts}"
        # Some live for a second only, and are dead when the rows are compared.
        life_s = 1 if roll < 0.8 else next(self.lives)
        return (int(time.time()) + life_s) * 1_000_000, f"USING TIMESTAMP {ts} AND TTL {life_s}"

    def _insert(self, p: int, c: int, ts: int, expires: int | None, using: str) -> tuple[str, Written]:
        chosen = self.random.sample(sorted(VALUES), self.random.randint(0, 3))
        values = {name: self.random.choice([None, *VALUES[name]]) for name in chosen}
        cells: dict[str, Any] = {name: _cell(ts, value, expires) for name, value in values.items()}
        names = ", ".join(["p", "c", *chosen])
        literals = ", ".join([str(p), str(c), *map(_literal, values.values())])
        mutation = Mutation(marker=Marker(ts, expires), cells=cells)
        return f"INSERT INTO {self.table} ({names}) VALUES ({literals}) {using}", ({"p": p, "c": c}, mutation)

    def _changes(self, ts: int, expires: int | None) -> tuple[dict[str, Any], list[str]]:
        cells: dict[str, Any] = {}
        sets = []
        for name in self.random.sample([*VALUES, "tags", "names"], self.random.randint(1, 3)):
            if name in VALUES:
                value = self.random.choice([None, *VALUES[name]])
                cells[name] = _cell(ts, value, expires)
                sets.append(f"{name} = {_literal(value)}")
            else:
                cells[name], text = self._collection(name, ts, expires)
                sets.append(text)
        return cells, sets

    def _collection(self, name: str, ts: int, expires: int | None) -> tuple[Elements, str]:
        keys = self.random.sample(["x", "y", "z"], self.random.randint(1, 2))
        how = self.random.choice(["add", "set", "remove"])
        values = {key: True if name == "tags" else self.random.randint(-5, 5) for key in keys}
        shown = ", ".join(f"'{key}'" if name == "tags" else f"'{key}': {value}" for key, value in values.items())
        kind: Any = "set" if name == "tags" else "map"
        if how == "remove":
            keys_shown = ", ".join(f"'{key}'" for key in keys)
            return Elements(kind, tuple((key, Cell(ts)) for key in keys)), f"{name} = {name} - {{{keys_shown}}}"
        elements = tuple((key, Cell(ts, value, expires)) for key, value in values.items())
        if how == "add":
            return Elements(kind, elements), f"{name} = {name} + {{{shown}}}"
        return Elements(kind, elements, cleared=ts - 1), f"{name} = {{{shown}}}"

    def _range(self, p: int, ts: int) -> tuple[str, Written]:
        low, high = self.random.choice([None, 1, 2]), self.random.choice([None, 2, 3])
        closed = self.random.random() < 0.5
        parts = [] if low is None else [f"c {'>=' if closed else '>'} {low}"]
        parts += [] if high is None else [f"c {'<=' if closed else '<'} {high}"]
        if not parts:
            return self.statement()
        lower = None if low is None else Bound((low,), closed)
        upper = None if high is None else Bound((high,), closed)
        mutation = Mutation(scope="range", deleted=ts, lower=lower, upper=upper)
        text = f"DELETE FROM {self.table} USING TIMESTAMP {ts} WHERE p = {p} AND {' AND '.join(parts)}"
        return text, ({"p": p, "c": None}, mutation)


def _cell(ts: int, value: Any, expires: int | None) -> Cell:
    return Cell(ts, value, None if value is None else expires)


def _literal(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, int | float) else "'" + value + "'"


def rows_merged_here(written: Sequence[Written]) -> dict[tuple[int, int], list[Any]]:
    found = {}
    for p in (1, 2):
        stones = [
            Tombstone(mutation.deleted or 0, mutation.lower, mutation.upper)
            for key, mutation in written
            if key["p"] == p and mutation.scope != "row"
        ]
        for c in (1, 2, 3):
            state = RowState(key=(p, c))
            for key, mutation in written:
                if key == {"p": p, "c": c}:
                    state = merged(state, mutation, LISTED)
            newest = newest_cover(stones, [c], [None])
            if newest is not None:
                state = merged(state, Mutation(deleted=newest), LISTED)
            values = values_of(expired(state, time.time_ns() // 1000), COLUMNS)
            if values:
                found[p, c] = values
    return found


async def rows_of_cassandra(session: CqlSession, table: str) -> dict[tuple[int, int], list[Any]]:
    rows = (await session.rows(f"SELECT {', '.join(COLUMNS)} FROM {table}")).dicts()
    return {(row["p"], row["c"]): [row[column] for column in COLUMNS] for row in rows}


async def test_random_mutations_give_the_rows_that_cassandra_returns(cassandra_server: CassandraServer) -> None:
    """A table for each seed, so that one wait is long enough for what has to expire in all of them."""
    async with cql_session(cassandra_server) as session, fresh_keyspace(session) as keyspace:
        writers = [Writer(seed, f"{keyspace}.t{seed}") for seed in range(12)]
        written: list[list[Written]] = []
        for seed, writer in enumerate(writers):
            await session.execute(TABLE.format(f"{keyspace}.t{seed}"))
            written.append([])
            for _ in range(STATEMENTS):
                statement, mutation = writer.statement()
                await session.execute(statement)
                written[-1].append(mutation)
        await asyncio.sleep(2.1)
        for seed, (writer, mutations) in enumerate(zip(writers, written, strict=True)):
            shuffled = mutations + writer.random.sample(mutations, 20)
            writer.random.shuffle(shuffled)
            wanted = await rows_of_cassandra(session, f"{keyspace}.t{seed}")
            assert rows_merged_here(shuffled) == wanted, f"seed {seed}"
