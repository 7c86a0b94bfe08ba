"""Reads Postgres tables as they are now, by SQL: the side of `ctxpipe verify` that asks the source itself."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.adapt import AdaptersMap
from psycopg.types.string import TextLoader

from connectors.postgres.reader_values import Convert, converter
from pipeline.core.errors import ConfigError, EnvironmentProblem

Values = tuple[Any, ...]
Match = Mapping[str, Sequence[str]]

BATCH_ROWS = 4_000
CONNECT_TIMEOUT_S = 10

_SETTINGS = {
    "datestyle": "ISO",
    "timezone": "UTC",
    "intervalstyle": "iso_8601",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "xmlbinary": "base64",
    "row_security": "off",
    "cursor_tuple_fraction": "1",
    "default_transaction_read_only": "on",
    "jit": "off",
}
_SESSION = "; ".join(f"SET {name} = '{value}'" for name, value in _SETTINGS.items())
_CATALOG = """
WITH RECURSIVE part AS (
  SELECT attnum, attname, atttypid AS type, atttypmod AS modifier, '' AS brackets, 0 AS depth
  FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
  UNION ALL
  SELECT attnum, attname, CASE typtype WHEN 'd' THEN typbasetype ELSE typelem END,
         CASE WHEN typtype = 'd' AND modifier = -1 THEN typtypmod ELSE modifier END,
         brackets || CASE typtype WHEN 'd' THEN '' ELSE '[]' END, depth + 1
  FROM part JOIN pg_type ON oid = type
  WHERE typtype = 'd' OR (typcategory = 'A' AND typelem <> 0 AND typname NOT IN ('int2vector', 'oidvector'))
)
SELECT DISTINCT ON (attnum) attname, format_type(type, NULL) || brackets, modifier FROM part ORDER BY attnum, depth DESC
"""
_INTEGERS = ("smallint", "integer", "bigint")
_NUMBERS = (*_INTEGERS, "real", "double precision", "numeric")
_TEXTS = ("text", "character varying", "character", "name")
_TIMES = ("date", "timestamp without time zone", "timestamp with time zone")
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,18})", re.ASCII)
_NUMBER = re.compile(r"-?(\d+(\.\d*)?([eE][+-]?\d{1,3})?|Infinity)|NaN", re.ASCII)
_BIGINT_MAX = 2**63 - 1
_GREATEST = {"real": 3.4e38, "double precision": 1.7e308}
_UNMATCHED = ("bytea", "json", "jsonb", "hstore", "point", "interval", "bit")


class _Column(NamedTuple):
    type_name: str
    convert: Convert


class PostgresReader:
    """One database. Values are canonical; opens connections as concurrent calls need them; `close` when done."""

    def __init__(self, dsn: str, name: str = "postgres", row_filters: Mapping[str, str] | None = None) -> None:
        """`row_filters` are the publication's: rows outside them are not captured, so they don't exist here either."""
        self._dsn, self._name, self._row_filters = dsn, name, dict(row_filters or {})
        self._idle: list[psycopg.AsyncConnection[Values]] = []
        self._tables: dict[str, dict[str, _Column]] = {}

    async def columns(self, table: str) -> dict[str, str]:
        """Column → type name without modifiers. Raises ConfigError when there is no such table."""
        return {name: column.type_name for name, column in (await self._catalog(table)).items()}

    async def rows(
        self, table: str, columns: Sequence[str], match: Match | None, order: Sequence[str], limit: int | None
    ) -> AsyncIterator[list[Values]]:
        """See pipeline.ops.reader.TableReader.rows. One repeatable-read cursor per call."""
        known = await self._catalog(table)
        condition, parameters = _condition(table, known, match)
        query = _select(self._source(table), table, known, columns, match, order, limit, condition)
        converts = [known[column].convert for column in columns]
        async with (
            self._connection() as connection,
            connection.transaction(),
            connection.cursor(name="ctxpipe_reader") as cursor,
        ):
            await cursor.execute(query, parameters)
            while batch := await cursor.fetchmany(BATCH_ROWS):
                yield _converted(batch, converts)

    async def totals(
        self,
        table: str,
        match: Match,
        group_by: Sequence[str],
        measures: Sequence[tuple[str, str | None, tuple[str, ...]]],
    ) -> list[tuple[Values, Values, Values]]:
        """See pipeline.ops.reader.Aggregating.totals."""
        known = await self._catalog(table)
        condition, parameters = _condition(table, known, match)
        names = [*match, *group_by]
        shown = [sql.Identifier(name) for name in names]
        texts = [_text(name) for name in [*_spelt(known, match), *group_by]]
        measured = [_measure(known, *measure) for measure in measures]
        query = sql.SQL("SELECT {} FROM {} WHERE {} GROUP BY {}").format(
            sql.SQL(", ").join([*shown, *measured]),
            self._source(table),
            condition,
            sql.SQL(", ").join([*shown, *texts]),
        )
        converts = [known[name].convert for name in names] + [_measured(known, *measure) for measure in measures]
        async with self._connection() as connection:
            cursor = await connection.execute(query, parameters)
            rows = _converted(await cursor.fetchall(), converts)
        first, second = len(match), len(names)
        return [(row[:first], row[first:second], row[second:]) for row in rows]

    async def clock_us(self) -> int:
        """The server's clock_timestamp()."""
        async with self._connection() as connection:
            cursor = await connection.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
            row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    def _source(self, table: str) -> sql.Composable:
        if table not in self._row_filters:
            return _table(table)
        condition: Any = self._row_filters[table]  # SQL by contract: the configuration's owner wrote it
        return sql.SQL("(SELECT * FROM {} WHERE ({})) AS captured").format(_table(table), sql.SQL(condition))

    async def _catalog(self, table: str) -> dict[str, _Column]:
        if table not in self._tables:
            async with self._connection() as connection:
                try:
                    cursor = await connection.execute(_CATALOG, (_table(table).as_string(),))
                    found = await cursor.fetchall()
                except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                    raise ConfigError([f"source {self._name} has no table {table}"]) from None
            self._tables[table] = {
                name: _Column(kind, converter(kind, int(modifier) if kind in ("bit", "bit[]") else None))
                for name, kind, modifier in found
            }
        return self._tables[table]

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[psycopg.AsyncConnection[Values]]:
        """An idle connection or a new one; foreign errors become ours here."""
        try:
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                yield connection
            except BaseException:
                await connection.close()
                raise
            self._idle.append(connection)
        except psycopg.OperationalError as error:
            raise EnvironmentProblem(
                f"source {self._name}: {_first_line(error)}; check its dsn and that it runs"
            ) from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise EnvironmentProblem(f"source {self._name}: {_first_line(error)}; grant SELECT to this user") from error
        except psycopg.Error as error:
            code = error.sqlstate or type(error).__name__
            raise EnvironmentProblem(f"source {self._name} refuses a query: {_first_line(error)} ({code})") from error

    async def _connect(self) -> psycopg.AsyncConnection[Values]:
        connection = await psycopg.AsyncConnection[Values].connect(
            self._dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, context=_TEXT_ONLY
        )
        await connection.execute(_SESSION)
        return connection


class _TextOnly:
    """Every value as the text that Postgres prints: what the replication stream carries too."""

    connection = None

    def __init__(self) -> None:
        self.adapters = AdaptersMap(psycopg.adapters)
        for info in psycopg.adapters.types:
            for oid in (info.oid, info.array_oid):
                self.adapters.register_loader(oid, TextLoader)


_TEXT_ONLY = _TextOnly()


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _table(table: str) -> sql.Identifier:
    return sql.Identifier(*table.split(".", 1))


def _text(column: str) -> sql.Composed:
    return sql.SQL("{}::text").format(sql.Identifier(column))


def _converted(rows: Sequence[Values], converts: Sequence[Convert]) -> list[Values]:
    return [
        tuple([None if value is None else convert(value) for value, convert in zip(row, converts, strict=True)])
        for row in rows
    ]


def _select(
    source: sql.Composable,
    table: str,
    known: Mapping[str, _Column],
    columns: Sequence[str],
    match: Match | None,
    order: Sequence[str],
    limit: int | None,
    condition: sql.Composable,
) -> sql.Composed:
    shown = sql.SQL(", ").join([sql.Identifier(_known(table, known, column)) for column in columns])
    terms: sql.Composable = sql.SQL("")
    if order:
        terms = sql.SQL(" ORDER BY ") + sql.SQL(", ").join([_order_term(table, known, text) for text in order])
    if limit is None or not match:
        return sql.SQL("SELECT {} FROM {} WHERE {}{}").format(shown, source, condition, terms)
    parts = sql.SQL(", ").join([*map(sql.Identifier, match), *map(_text, _spelt(known, match))])
    return sql.SQL(
        "SELECT {shown} FROM (SELECT *, row_number() OVER (PARTITION BY {parts}{terms}) AS ctxpipe_rank "
        "FROM {source} WHERE {where}) AS ranked WHERE ctxpipe_rank <= {limit} ORDER BY ctxpipe_rank"
    ).format(shown=shown, parts=parts, terms=terms, source=source, where=condition, limit=sql.Literal(limit))


def _spelt(known: Mapping[str, _Column], match: Match) -> list[str]:
    """Columns whose join values differ where their texts do; of numeric, 1.0 and 1.00 are one."""
    return [column for column in match if known[column].type_name != "numeric"]


def _known(table: str, known: Mapping[str, _Column], column: str) -> str:
    if column not in known:
        raise ConfigError([f"table {table} has no column {column!r}"])
    return column


def _order_term(table: str, known: Mapping[str, _Column], text: str) -> sql.Composed:
    """Null is smallest; what is no number, boolean or time sorts as its text, by code point."""
    column = _known(table, known, text.removeprefix("-"))
    kind, name = known[column].type_name, sql.Identifier(column)
    if kind in (*_NUMBERS, *_TIMES, "boolean"):
        term: sql.Composed | sql.Identifier = name
    else:
        term = sql.SQL('{}::text COLLATE "C"').format(name)
    return term + sql.SQL(" DESC NULLS LAST" if text.startswith("-") else " ASC NULLS FIRST")


def _measure(known: Mapping[str, _Column], function: str, column: str | None, order: tuple[str, ...]) -> sql.Composable:
    if column is None:
        return sql.SQL("count(*)")
    name = sql.Identifier(column)
    if function in ("first", "first_present"):
        terms = sql.SQL(", ").join([_order_term("", known, text) for text in order])
        picked = sql.SQL("(array_agg({} ORDER BY {})").format(name, terms)
        present = sql.SQL(" FILTER (WHERE {} IS NOT NULL)").format(name) if function == "first_present" else sql.SQL("")
        return picked + present + sql.SQL(")[1]")
    forms = {"count": "count({})", "count_distinct": "count(DISTINCT {}::text)", "sum": "sum({}::text::numeric)"}
    return sql.SQL(forms[function]).format(name)


def _measured(known: Mapping[str, _Column], function: str, column: str | None, order: tuple[str, ...]) -> Convert:
    if function in ("first", "first_present") and column is not None:
        return known[column].convert
    return str if function == "sum" else int


def _condition(table: str, known: Mapping[str, _Column], match: Match | None) -> tuple[sql.Composable, list[list[str]]]:
    """SQL that lets through at least the rows that match; index-friendly, since the column itself is compared."""
    if match is None:
        return sql.SQL("true"), []
    kinds = [known[_known(table, known, column)].type_name for column in match]
    rows = [row for row in zip(*match.values(), strict=True) if all(map(_possible, kinds, row))]
    if not rows:
        return sql.SQL("false"), []
    sides, arrays = [], []
    for column, kind in zip(match, kinds, strict=True):
        if kind in _UNMATCHED or kind.endswith("[]"):
            raise ConfigError([f"{table}.{column}: joins by a column of type {kind} cannot be verified"])
        castable = kind in _NUMBERS + _TEXTS + _TIMES or kind in ("boolean", "uuid")
        target = "bigint" if kind in _INTEGERS else kind if castable else "text"
        sides.append(sql.Identifier(column) if castable else _text(column))
        arrays.append(sql.SQL("%s::text[]::" + target + "[]"))
    parameters = [list(part) for part in zip(*rows, strict=True)]
    if len(sides) == 1:
        return sql.SQL("{} = ANY({})").format(sides[0], arrays[0]), parameters
    left, right = sql.SQL(", ").join(sides), sql.SQL(", ").join(arrays)
    return sql.SQL("({}) IN (SELECT * FROM unnest({}))").format(left, right), parameters


def _possible(kind: str, text: str) -> bool:
    """Whether a value of this type can have this canonical text: what cannot would make the cast fail."""
    if "\x00" in text or (not text.isascii() and not _encodable(text)):
        return False
    if kind in _INTEGERS:
        return _INTEGER.fullmatch(text) is not None and abs(int(text)) <= _BIGINT_MAX
    if kind in _NUMBERS:
        return _NUMBER.fullmatch(text) is not None and (kind not in _GREATEST or _fits(text, _GREATEST[kind]))
    if kind == "boolean":
        return text in ("true", "false")
    if kind == "uuid":
        return _parses(UUID, text)
    if kind in _TIMES:
        return text in ("infinity", "-infinity") or _parses(
            date.fromisoformat if kind == "date" else datetime.fromisoformat, text
        )
    return True


def _fits(number: str, greatest: float) -> bool:
    return number in ("NaN", "Infinity", "-Infinity") or abs(float(number)) <= greatest


def _encodable(text: str) -> bool:
    return _parses(str.encode, text)


def _parses(parse: Any, text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True
