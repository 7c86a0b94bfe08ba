"""Reads rows by COPY, as text: the same spelling of every value as in the replication stream."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from connectors.postgres.pgoutput import Tuple
from connectors.postgres.server import quote_name, quote_table

ROWS_MAX = 1000
"""Rows handed on at once."""

_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPES = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v", b"\\": b"\\"}


def parse_line(line: bytes) -> Tuple:
    """One line of COPY's text format, without its end."""
    if b"\\" not in line:
        return list(line.split(b"\t"))
    return [
        None if field == b"\\N" else _ESCAPE.sub(_unescape, field) if b"\\" in field else field
        for field in line.split(b"\t")
    ]


def _unescape(match: re.Match[bytes]) -> bytes:
    return _ESCAPES[match.group(1)]


async def copy_rows(reader: Any, query: str, take: Callable[[list[Tuple]], Awaitable[None]]) -> int:
    """Runs COPY (query) and awaits `take` for every few rows, so that a slow taker slows the server. Returns the rows.

    `reader` is an asyncpg connection.
    """
    rest, count = b"", 0

    async def output(data: bytes) -> None:
        nonlocal rest, count
        lines = (rest + data).split(b"\n")
        rest = lines.pop()
        count += len(lines)
        for start in range(0, len(lines), ROWS_MAX):
            await take([parse_line(line) for line in lines[start : start + ROWS_MAX]])

    await reader.copy_from_query(query, output=output)
    return count


def lock_sql(tables: Iterable[str]) -> str:
    """Before the first row is read, and where possible before the snapshot is taken: ALTER TABLE then waits. A table
    that it writes anew looks empty to older snapshots, and the stream does not tell of it.
    """
    return f"LOCK TABLE {', '.join(quote_table(table) for table in tables)} IN ACCESS SHARE MODE"


def select_list(columns: Sequence[str]) -> str:
    return ", ".join(quote_name(name) for name in columns)
