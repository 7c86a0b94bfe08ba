"""The oracle: bundles computed from the sources by their own languages, sharing nothing with the path that computes
them from changes.

It goes level by level through the spec: for a chunk of root rows, each section is one question per source ("the rows
with these join values, in this order, so many each"), whose answers are remembered by join value, since thousands of
bundles share a parent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.ops.aggregates import aggregate, empty_section
from pipeline.ops.levels import Level, Row, build_levels, undeclared_numbers, walk
from pipeline.ops.reader import Holding, Match, TableReader
from pipeline.ops.sorting import sort_key
from schemas.context import ContextSpec
from schemas.keys import key_text, plain_decimal, split_key_text

JOIN_VALUES_MAX = 5_000
"""Join values asked for at once."""

ROOT_ROWS = 16_000
MEMO_BYTES_MAX = 256 * 1024 * 1024

_encode = msgspec.json.Encoder(decimal_format="number").encode


class Oracle:
    """Expected bundles of one context; make it with `create`. Not safe for concurrent calls."""

    def __init__(self, root: Level, memo_bytes_max: int = MEMO_BYTES_MAX) -> None:
        self._root = root
        self._memo = _Memo(memo_bytes_max)

    @classmethod
    async def create(cls, spec: ContextSpec, readers: Mapping[str, TableReader], mask_secret: bytes = b"") -> Oracle:
        """`readers` by source name. Raises ConfigError for tables, columns or sources that do not exist."""
        return cls(await build_levels(spec, readers, mask_secret))

    @property
    def hints(self) -> list[str]:
        """Likely causes of differences that the spec itself shows, one sentence each."""
        return undeclared_numbers(self._root)

    def forget(self) -> None:
        """Drops what is remembered, so that the sources are read again."""
        self._memo.clear()
        for level in walk(self._root):
            if isinstance(level.reader, Holding):
                level.reader.forget()

    async def all_bundles(self) -> AsyncIterator[dict[str, bytes]]:
        """Root key text → JSON of the whole bundle, in chunks; every root row that the filter lets through."""
        async for rows in self._root_rows(None):
            yield await self._bundles(rows)

    async def bundles(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The same for these root keys; those that do not exist are absent."""
        match = self._key_match(keys)
        wanted = set(keys)
        found: dict[str, bytes] = {}
        if not match:
            return found
        async for rows in self._root_rows(match):
            exact = [row for row in rows if self._key(row) in wanted]
            found.update(await self._bundles(exact))
        return found

    async def existing(self, keys: Sequence[str]) -> set[str]:
        """Those of these root keys that exist: there is a row, and the filter lets it through."""
        match = self._key_match(keys)
        found: set[str] = set()
        if match:
            async for rows in self._root_rows(match):
                found.update(map(self._key, rows))
        return found

    async def keys(self) -> AsyncIterator[list[str]]:
        """All root keys, in chunks."""
        async for rows in self._root_rows(None):
            yield [self._key(row) for row in rows]

    def _key_match(self, keys: Sequence[str]) -> Match:
        columns = self._root.entity.key
        parts = [split_key_text(key) for key in dict.fromkeys(keys)]
        fitting = [part for part in parts if len(part) == len(columns)]
        return _match(columns, fitting) if fitting else {}

    def _key(self, row: Row) -> str:
        decimals = self._root.decimals
        return key_text([_spelt(row[column], column in decimals) for column in self._root.entity.key])

    async def _root_rows(self, match: Match | None) -> AsyncIterator[list[Row]]:
        """In chunks large enough that a source without an index on a join column is not scanned too often."""
        level = self._root
        rows: list[Row] = []
        async for batch in level.reader.rows(level.entity.table, level.columns, match, (), None):
            found = (dict(zip(level.columns, values, strict=True)) for values in batch)
            rows += [row for row in found if level.accepts(row)]
            if len(rows) >= ROOT_ROWS:
                yield rows
                rows = []
        yield rows

    async def _bundles(self, rows: list[Row]) -> dict[str, bytes]:
        objects = await self._objects(self._root, rows)
        return {self._key(row): _encode(item) for row, item in zip(rows, objects, strict=True)}

    async def _objects(self, level: Level, rows: Sequence[Row]) -> list[Row]:
        objects = [{name: get(row) for name, get in level.fields} for row in rows]
        for child in level.children:
            parent_columns = list(child.declared.on.values())
            joins = [_join(row, parent_columns, child.joined_decimals) for row in rows]
            values = await self._section(child, dict.fromkeys(join for join in joins if join is not None))
            empty = msgspec.Raw(_encode(empty_section(child)))
            for item, join in zip(objects, joins, strict=True):
                item[child.name] = values.get(join, empty) if join is not None else empty
        return objects

    async def _section(self, level: Level, joins: Mapping[str, None]) -> dict[str, msgspec.Raw]:
        """Join value → the section's JSON; absent where it is empty."""
        found = {}
        missing = []
        for join in joins:
            known = self._memo.get((level.path, join))
            if known is None:
                missing.append(join)
            elif known:
                found[join] = msgspec.Raw(known)
        for start in range(0, len(missing), JOIN_VALUES_MAX):
            chunk = missing[start : start + JOIN_VALUES_MAX]
            values = await self._ask(level, chunk)
            for join in chunk:
                encoded = _encode(values[join]) if join in values else b""
                self._memo.put((level.path, join), encoded)
                if encoded:
                    found[join] = msgspec.Raw(encoded)
        return found

    async def _ask(self, level: Level, joins: Sequence[str]) -> dict[str, Any]:
        match = _match(list(level.declared.on), [split_key_text(join) for join in joins])
        if level.declared.aggregates:
            return await aggregate(level, match)
        listed = await self._listed(level, match, set(joins))
        flat = [row for rows in listed.values() for row in rows]
        objects = iter(await self._objects(level, flat))
        values = {join: [next(objects) for _ in rows] for join, rows in listed.items()}
        if level.declared.kind == "one":
            return {join: items[0] for join, items in values.items()}
        return values

    async def _listed(self, level: Level, match: Match, joins: set[str]) -> dict[str, list[Row]]:
        """The first rows at each join value, in order. Filters and orders that the source lacks are applied here."""
        own_columns, limit, sort_here = list(match), level.limit, _sorts_otherwise(level)
        at_source = None if level.accept or sort_here else limit
        listed: dict[str, list[Row]] = {}
        async for batch in level.reader.rows(level.entity.table, level.columns, match, level.order, at_source):
            for values in batch:
                row = dict(zip(level.columns, values, strict=True))
                join = _join(row, own_columns, level.joined_decimals)
                if join in joins and level.accepts(row):
                    rows = listed.setdefault(join, [])
                    if sort_here or len(rows) < limit:
                        rows.append(row)
        if not sort_here:
            return listed
        return {join: _sorted(level, rows)[:limit] for join, rows in listed.items()}


def _sorts_otherwise(level: Level) -> bool:
    """Whether the spec's declared types give an order that the source's own types would not."""
    columns = {text.removeprefix("-") for text in level.declared.order_by}
    return any(level.kind_of(column) != level.source_kind(column) for column in (*columns, *level.entity.key))


def _sorted(level: Level, rows: list[Row]) -> list[Row]:
    """Equals by primary key: sorting keeps their order."""
    order_by = [(text.removeprefix("-"), text.startswith("-")) for text in level.declared.order_by]
    for column, descending in reversed([*order_by, *((column, False) for column in level.entity.key)]):
        keys = [sort_key(row[column], level.kind_of(column)) for row in rows]
        order = sorted(range(len(rows)), key=keys.__getitem__, reverse=descending)
        rows = [rows[index] for index in order]
    return rows


def _join(row: Row, columns: Sequence[str], decimals: Sequence[bool]) -> str | None:
    values = [_spelt(row[column], decimal) for column, decimal in zip(columns, decimals, strict=True)]
    return None if None in values else key_text(values)


def _spelt(value: Any, decimal: bool) -> Any:
    return plain_decimal(value) if decimal else value


def _match(columns: Sequence[str], parts: Sequence[Sequence[str]]) -> Match:
    return {column: [part[index] for part in parts] for index, column in enumerate(columns)}


class _Memo:
    """Least recently used sections, up to a number of bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max, self._bytes = bytes_max, 0
        self._entries: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def get(self, key: tuple[str, str]) -> bytes | None:
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: tuple[str, str], value: bytes) -> None:
        self._entries[key] = value
        self._bytes += len(value) + len(key[1]) + 200
        while self._bytes > self._bytes_max:
            (_, join), old = self._entries.popitem(last=False)
            self._bytes -= len(old) + len(join) + 200

    def clear(self) -> None:
        self._entries.clear()
        self._bytes = 0
