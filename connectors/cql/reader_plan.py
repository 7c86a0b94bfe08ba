"""One question to a CQL table: which columns it takes, which rows match it, in what order, how CQL can find them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.cql.reader_values import TYPE_NAMES, OrderKey, Show, order_of, parameter_of, shown, sort_rows
from connectors.cql.schema import Column, TableSchema, full_name, quoted
from pipeline.core.errors import ConfigError
from schemas.keys import key_part, plain_decimal, split_key_text

Row = tuple[bytes | None, ...]
"""As the server sent it, undecoded."""

INDEXED_VALUES_MAX = 100
"""An index asks every node for each value: for more of them reading the table is less work for everybody."""
KEY_BYTES_MAX = 65_535
ROW_OVERHEAD_BYTES = 200
VALUE_OVERHEAD_BYTES = 40


@dataclass(frozen=True)
class Asked:
    """A question about `schema`. `names` are the columns that are read, the primary key first; `order` and `limit` hold
    among the rows that have the same in the columns of the match."""

    schema: TableSchema
    names: tuple[str, ...]
    shows: tuple[tuple[int, Show], ...]
    spells: tuple[tuple[int, Show, bool], ...]
    order: tuple[tuple[Callable[[Row], OrderKey], bool], ...]
    limit: int | None

    @classmethod
    def make(
        cls,
        schema: TableSchema,
        columns: Sequence[str],
        match: Mapping[str, Sequence[str]] | None,
        order: Sequence[str],
        limit: int | None,
    ) -> Asked:
        """Raises ConfigError for columns that the table has not."""
        terms = [(text.removeprefix("-"), text.startswith("-")) for text in order] if match is not None else []
        own = [column.name for column in schema.key]
        names = tuple(dict.fromkeys([*own, *columns, *(match or ()), *(name for name, _ in terms)]))
        place = {name: number for number, name in enumerate(names)}
        known = {name: _known(schema, name) for name in names}
        spells = [(place[name], shown(known[name]), known[name].type.name == "decimal") for name in match or ()]
        keys = [(_at(place[name], order_of(known[name].type)), descending) for name, descending in terms]
        shows = tuple((place[name], shown(known[name])) for name in columns)
        return cls(schema, names, shows, tuple(spells), tuple(keys), limit if match is not None else None)

    @staticmethod
    def type_name(column: Column) -> str:
        return TYPE_NAMES.get(column.type.name, str(column.type))

    def values(self, row: Row) -> tuple[Any, ...]:
        return tuple([show(row[place]) for place, show in self.shows])

    def wanted(self, match: Mapping[str, Sequence[str]]) -> set[tuple[str, ...]]:
        """The rows of the match, spelt as `grouped` spells what is in the table."""
        decimals = [decimal for _, _, decimal in self.spells]
        return {
            tuple([plain_decimal(text) if decimal else text for text, decimal in zip(texts, decimals, strict=True)])
            for texts in zip(*match.values(), strict=True)
        }

    def grouped(self, rows: Iterable[Row], wanted: set[tuple[str, ...]] | None) -> dict[tuple[str, ...], list[Row]]:
        """Rows by what they have in the columns of the match; only the `wanted` ones. Null matches nothing."""
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in self.existing(rows):
            if any(row[place] is None for place, _, _ in self.spells):
                continue
            spelt = tuple([_spelt(show(row[place]), decimal) for place, show, decimal in self.spells])
            if wanted is None or spelt in wanted:
                groups.setdefault(spelt, []).append(row)
        return groups

    def existing(self, rows: Iterable[Row]) -> list[Row]:
        """Without partitions of which there is nothing but static columns."""
        last = len(self.schema.key) - 1
        return [row for row in rows if row[last] is not None]

    def cut(self, rows: list[Row]) -> list[Row]:
        """Rows of one group in their order, as many as are wanted."""
        sort_rows(rows, self.order)
        return rows if self.limit is None else rows[: self.limit]

    def size_of(self, row: Row) -> int:
        """About how much memory it takes."""
        values = sum([len(value) + VALUE_OVERHEAD_BYTES for value in row if value is not None])
        return values + ROW_OVERHEAD_BYTES

    @property
    def select(self) -> str:
        names = ", ".join(map(quoted, self.names))
        return f"SELECT {names} FROM {full_name(self.schema.keyspace, self.schema.table)}"

    @property
    def range_query(self) -> str:
        """Rows above one token, up to another."""
        token = f"token({', '.join(quoted(column.name) for column in self.schema.partition_key)})"
        return f"{self.select} WHERE {token} > ? AND {token} <= ?"


@dataclass(frozen=True)
class Lookup:
    """A query with parameters from some columns of the match, each with its place there and how its text is read."""

    query: str
    parameters: tuple[tuple[int, Callable[[str], Any]], ...]
    partition_columns: int = 0

    def questions(self, wanted: Iterable[tuple[str, ...]]) -> list[tuple[Any, ...]]:
        """Each once; what no row can have is not asked for."""
        found: dict[tuple[Any, ...], None] = {}
        for spelt in wanted:
            values = tuple([read(spelt[place]) for place, read in self.parameters])
            if None not in values and self._is_key([spelt[place] for place, _ in self.parameters]):
                found[values] = None
        return list(found)

    def _is_key(self, texts: list[str]) -> bool:
        """The server refuses an empty partition key and one that is too long."""
        key = texts[: self.partition_columns]
        return key != [""] and sum([len(text.encode("utf-8", "surrogatepass")) + 3 for text in key]) <= KEY_BYTES_MAX


def lookup_of(asked: Asked, match: Sequence[str]) -> Lookup | None:
    """By the partition key and the clustering columns behind it that the match has; None where it lacks some of it."""
    columns = asked.schema.partition_key
    if any(column.name not in match or parameter_of(column.type) is None for column in columns):
        return None
    for column in asked.schema.clustering:
        if column.name not in match or parameter_of(column.type) is None:
            break
        columns = [*columns, column]
    return _lookup(asked, match, columns, len(asked.schema.partition_key))


def indexed(asked: Asked, match: Sequence[str], indexes: frozenset[str], count: int) -> Lookup | None:
    """By one column that has an index, where few values are wanted."""
    for name in match:
        column = _known(asked.schema, name)
        if name in indexes and count <= INDEXED_VALUES_MAX and parameter_of(column.type) is not None:
            return _lookup(asked, match, [column], 0)
    return None


def _lookup(asked: Asked, match: Sequence[str], columns: Sequence[Column], partition_columns: int) -> Lookup:
    condition = " AND ".join(f"{quoted(column.name)} = ?" for column in columns)
    parameters = []
    for column in columns:
        read = parameter_of(column.type)
        assert read is not None, "its callers asked"
        parameters.append((match.index(column.name), read))
    return Lookup(f"{asked.select} WHERE {condition}", tuple(parameters), partition_columns)


def _known(schema: TableSchema, name: str) -> Column:
    column = schema.column(name)
    if column is None:
        raise ConfigError([f"table {schema.keyspace}.{schema.table} has no column {name!r}"])
    return column


def _at(place: int, key: Callable[[bytes | None], OrderKey]) -> Callable[[Row], OrderKey]:
    return lambda row: key(row[place])


def _spelt(value: Any, decimal: bool) -> str:
    """The text of a value in a key, as a match has it: without what keeps the parts of a key apart."""
    if value.__class__ is str:
        return str(plain_decimal(value)) if decimal else str(value)
    return split_key_text(key_part(value))[0]
