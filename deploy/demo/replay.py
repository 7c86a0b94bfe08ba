"""Real departures as live changes: each flight of the last day is scheduled again, and a moment later it leaves."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from deploy.demo.data import FLIGHTS, Values, read_rows

# What is not known before a flight has left.
ACTUAL = ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")
_BETWEEN_ROWS = 50
"""So many other changes lie between the insert of a flight and the update that tells of its departure."""


def departures(loaded: int, count: int) -> list[dict[str, Any]]:
    """The last `count` loaded flights as tomorrow's, with ids after all loaded ones; values typed for asyncpg."""
    tail: deque[Values] = deque(read_rows(FLIGHTS, loaded), maxlen=count)
    kinds = dict(FLIGHTS.columns)
    rows = []
    for number, values in enumerate(tail, start=1):
        row = {name: _typed(kinds[name], value) for (name, _), value in zip(FLIGHTS.columns, values, strict=True)}
        row["flight_id"] = loaded + number
        row["time_hour"] += timedelta(days=1)
        rows.append(row)
    return rows


async def replay(
    dsn: str, rows: list[dict[str, Any]], rate: float, committed: Callable[[str, bytes, int], None]
) -> int:
    """Inserts and updates at `rate` changes per second, each its own transaction; returns the number of changes.

    `committed(key, marker, time_ns)` is called after each update: the flight's bundle will contain `marker`.
    """
    import asyncpg

    connection = await asyncpg.connect(dsn)
    changes = _changes(rows)
    started = time.monotonic()
    try:
        for number, (row, insert) in enumerate(changes):
            await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
            if insert:
                await _insert(connection, row)
            else:
                await _update(connection, row)
                committed(str(row["flight_id"]), marker_of(row), time.time_ns())
    finally:
        await connection.close()
    return len(changes)


def marker_of(row: dict[str, Any]) -> bytes:
    """Bytes that only the bundle of the departed flight holds."""
    return b'"arr_delay":%b,"distance"' % (b"null" if row["arr_delay"] is None else b"%d" % row["arr_delay"])


def _changes(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], bool]]:
    """(row, is the insert), interleaved. A flight that never arrived has nothing to tell, so it stays scheduled."""
    changes: list[tuple[dict[str, Any], bool]] = []
    waiting: deque[dict[str, Any]] = deque()
    for row in rows:
        changes.append((row, True))
        if row["arr_delay"] is not None:
            waiting.append(row)
        if len(waiting) > _BETWEEN_ROWS:
            changes.append((waiting.popleft(), False))
    return changes + [(row, False) for row in waiting]


async def _insert(connection: Any, row: dict[str, Any]) -> None:
    names = list(row)
    values = [None if name in ACTUAL else row[name] for name in names]
    places = ", ".join(f"${number}" for number in range(1, len(names) + 1))
    await connection.execute(f"INSERT INTO flights ({', '.join(names)}) VALUES ({places})", *values)


async def _update(connection: Any, row: dict[str, Any]) -> None:
    settings = ", ".join(f"{name} = ${number}" for number, name in enumerate(ACTUAL, start=2))
    values = [row[name] for name in ACTUAL]
    await connection.execute(f"UPDATE flights SET {settings} WHERE flight_id = $1", row["flight_id"], *values)


def _typed(kind: str, value: str | None) -> Any:
    if value is None:
        return None
    if kind == "integer":
        return int(value)
    return datetime.fromisoformat(value.replace("Z", "+00:00")) if kind == "timestamptz" else value
