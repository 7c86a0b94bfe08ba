"""The reader's canonical values on a real Postgres. They are spelled out here by hand."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from connectors.postgres.reader import PostgresReader
from pipeline.core.errors import ConfigError
from schemas.keys import key_text

pytestmark = pytest.mark.servers

# (type, literal, canonical value)
VALUES: list[tuple[str, str, Any]] = [
    ("smallint", "-7", -7),
    ("bigint", "9223372036854775807", 9223372036854775807),
    ("real", "0.1", 0.1),
    ("double precision", "10", 10),
    ("double precision", "1e21", 1e21),
    ("double precision", "-Infinity", "-Infinity"),
    ("double precision", "NaN", "NaN"),
    ("numeric", "10.50", "10.50"),
    ("numeric", "NaN", "NaN"),
    ("boolean", "true", True),
    ("text", "a\\b'\"\n\u00e9\U0001f600", "a\\b'\"\n\u00e9\U0001f600"),
    ("char(4)", "ab", "ab  "),
    ("json", '{"b": 1,  "a": 2}', '{"b": 1,  "a": 2}'),
    ("jsonb", '{"b": 1,  "a": 2}', '{"a": 2, "b": 1}'),
    ("bytea", "\\x00ff10", "AP8Q"),
    ("date", "2026-01-02", "2026-01-02"),
    ("date", "infinity", "infinity"),
    ("timestamp", "2026-01-02 03:04:05.600", "2026-01-02T03:04:05.6"),
    ("timestamp", "-infinity", "-infinity"),
    ("timestamptz", "2026-01-02 03:04:05+02", "2026-01-02T01:04:05Z"),
    ("timestamptz", "infinity", "infinity"),
    ("time", "03:04:05.600", "03:04:05.6"),
    ("interval", "1 year 2 days 03:04:05", "P1Y2DT3H4M5S"),
    ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("int[]", "{1,NULL,3}", [1, None, 3]),
    ("int[]", "[0:1]={5,6}", [5, 6]),
    ("text[]", '{a,"b \\"c\\" \\\\,{}",NULL,"NULL",""}', ["a", 'b "c" \\,{}', None, "NULL", ""]),
    ("int[][]", "{{1,2},{3,4}}", [[1, 2], [3, 4]]),
    ("timestamptz[]", "{2026-01-02 03:04:05+00}", ["2026-01-02T03:04:05Z"]),
    ("bit(1)", "1", True),
    ("bit(3)", "101", "101"),
    ("point", "(1.5,-2)", {"x": 1.5, "y": -2}),
    ("inet", "10.0.0.1/8", "10.0.0.1/8"),
    ("short_text", "x", "x"),
    ("small_number", "4", 4),
    ("mood", "glad", "glad"),
    ("smaller_number", "4", 4),
    ("small_number[]", "{4,NULL}", [4, None]),
    ("numbers", "{1,2}", [1, 2]),
    ("int2vector", "1 2", "1 2"),
]


async def test_values_are_canonical(postgres_dsn: str) -> None:
    columns = ", ".join(f"c{number} {kind}" for number, (kind, _, _) in enumerate(VALUES))
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("CREATE DOMAIN short_text AS varchar(9); CREATE DOMAIN small_number AS smallint")
        connection.execute("CREATE DOMAIN smaller_number AS small_number; CREATE DOMAIN numbers AS int[]")
        connection.execute("CREATE TYPE mood AS ENUM ('sad', 'glad')")
        connection.execute(f'CREATE TABLE public."Every Type" (id int PRIMARY KEY, {columns})')
        marks = ", ".join(f"%s::text::{kind}" for kind, _, _ in VALUES)
        connection.execute(
            f'INSERT INTO "Every Type" VALUES (1, {marks}), (2{", NULL" * len(VALUES)})',
            [literal for _, literal, _ in VALUES],
        )
    reader = PostgresReader(postgres_dsn)
    names = [f"c{number}" for number in range(len(VALUES))]
    rows = [row async for batch in reader.rows("public.Every Type", names, None, ("id",), None) for row in batch]
    await reader.close()
    assert list(rows[0]) == [value for _, _, value in VALUES]
    assert [type(value) for value in rows[0]] == [type(value) for _, _, value in VALUES]
    assert rows[1] == (None,) * len(VALUES)


MATCHES: list[tuple[str, str, list[str], str]] = [
    ("int", "7", ["7", "x", "-07", "99999999999999999999", ""], "7"),
    ("numeric", "7.50", ["7.50", "x", "1e9999"], "7.50"),
    ("double precision", "0.1", ["0.1", "zero", "1e999", "NaN"], "0.1"),
    ("boolean", "true", ["true", "t", "1"], "true"),
    (
        "uuid",
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0"],
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    ),
    ("date", "2026-01-02", ["2026-01-02", "2026-02-30", "infinity"], "2026-01-02"),
    ("timestamptz", "2026-01-02 03:04:05+00", ["2026-01-02T03:04:05Z", "yesterday"], "2026-01-02T03:04:05Z"),
    ("text", "a|b%", ["a|b%", "\x00", "\ud800"], "a%7Cb%25"),
    ("char(3)", "a", ["a  "], "a  "),
    ("mood", "glad", ["glad", "furious"], "glad"),
]


@pytest.mark.parametrize(("kind", "literal", "texts", "expected"), MATCHES, ids=[item[0] for item in MATCHES])
async def test_any_text_may_be_asked_for(
    postgres_dsn: str, kind: str, literal: str, texts: list[str], expected: str
) -> None:
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("CREATE TYPE mood AS ENUM ('sad', 'glad')")
        connection.execute(f"CREATE TABLE t (id int, k {kind})")
        connection.execute(f"INSERT INTO t VALUES (1, %s::text::{kind}), (2, NULL)", (literal,))
    reader = PostgresReader(postgres_dsn)
    for match in ({"k": texts}, {"k": texts, "id": ["1"] * len(texts)}):
        found = [row async for batch in reader.rows("public.t", ["k"], match, (), None) for row in batch]
        assert [key_text(row) for row in found] == [expected]
    nothing = [row async for batch in reader.rows("public.t", ["k"], {"k": texts[1:]}, (), 3) for row in batch]
    assert nothing == []
    await reader.close()


async def test_joins_that_cannot_be_asked_are_refused(postgres_dsn: str) -> None:
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (k bytea)")
    reader = PostgresReader(postgres_dsn)
    with pytest.raises(ConfigError, match=r"public\.t\.k: joins by a column of type bytea"):
        async for _ in reader.rows("public.t", ["k"], {"k": ["AP8Q"]}, (), None):
            pass
    await reader.close()
