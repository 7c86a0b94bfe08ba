"""The demo's second database: the weather in Cassandra, and what happens at the gates in a table with Scylla's log.

Scylla itself needs Docker; its log of changes is written here by the connector kit's writer, into the same Cassandra,
row for row as Scylla would write it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from connectors.cassandra.heartbeat_table import SUGGESTED as HEARTBEAT_TABLE
from connectors.cassandra.heartbeat_table import create_statement
from connectors.cql.schema import read_table
from connectors.cql.session import CqlServer, CqlSession, connect
from connectors.scylla.config import Metadata
from connectors.scylla.log_statements import Overwrite, Write
from connectors.scylla.log_tables import create_log, create_metadata, new_generation, tell_vnodes
from connectors.scylla.log_writer import LogWriter
from deploy.demo.data import WEATHER, Values, read_rows
from schemas.topics import table_topic

WEATHER_TOPIC = table_topic("sky", "sky.weather")
CONFIDENCE_WINDOW_S = 0.5
"""All writes come from this process, in order and at once: Scylla's own 30 s would only be waited for."""
_TYPES = {"text": "text", "integer": "int", "numeric": "decimal", "timestamptz": "timestamp"}
_LOAD_TOGETHER = 32
_VNODES, _SHARDS = 4, 2
_METADATA = Metadata(keyspace="gates", tablets_keyspace="gates")


class WideDatabase:
    """Order of calls: `open`, `create`, `load_weather`, then `follow` while flights are replayed; `close`."""

    def __init__(self, session: CqlSession, address: str, folder: Path) -> None:
        self._session, self._folder = session, folder
        host, _, port = address.rpartition(":")
        self._place = {"hosts": [host], "port": int(port)}
        self._log: LogWriter | None = None

    @classmethod
    async def open(cls, address: str, folder: Path) -> WideDatabase:
        """`folder` is where the demo's own files lie. Raises EnvironmentProblem."""
        host, _, port = address.rpartition(":")
        return cls(await connect(CqlServer(hosts=[host], port=int(port))), address, folder)

    def sources(self, cassandra_yaml: Path) -> dict[str, Any]:
        """Their sections of ctxpipe.yaml."""
        sky = {
            "connector": "cassandra",
            **self._place,
            "keyspace": "sky",
            "tables": [WEATHER.name],
            "data_directory": str(self._folder / "sky"),
            "sidecar": {"cassandra_yaml": str(cassandra_yaml)},
            "heartbeat_table": HEARTBEAT_TABLE,
            "heartbeat_interval_s": 0.3,
            "watch_interval_s": 0.3,
        }
        gates = {
            "connector": "scylla",
            **self._place,
            "keyspace": "gates",
            "tables": ["flight_status"],
            "confidence_window_s": CONFIDENCE_WINDOW_S,
            "metadata": {"keyspace": _METADATA.keyspace, "tablets_keyspace": _METADATA.tablets_keyspace},
        }
        return {"sky": sky, "gates": gates}

    async def create(self) -> None:
        """Both keyspaces, empty: CDC is on for the weather, and flight_status has its log."""
        execute = self._session.execute
        for keyspace in ("sky", "gates"):
            await execute(
                f"CREATE KEYSPACE {keyspace} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': 1}}"
            )
        columns = ", ".join(f"{name} {_TYPES[kind]}" for name, kind in WEATHER.columns)
        key = f"PRIMARY KEY ({', '.join(WEATHER.key)})"
        await execute(f"CREATE TABLE sky.weather ({columns}, {key}) WITH cdc = true")
        await execute(create_statement("sky", HEARTBEAT_TABLE))
        await execute(
            "CREATE TABLE gates.flight_status (flight_id int PRIMARY KEY, gate text, status text, passengers int)"
        )
        table = await read_table(self._session, "gates", "flight_status")
        assert table is not None
        await create_log(self._session, table)
        await create_metadata(self._session, _METADATA)
        generation = new_generation(int(time.time() * 1000) - 1000, _VNODES, _SHARDS, random.Random(1))
        await tell_vnodes(self._session, _METADATA, generation)
        self._log = LogWriter(self._session, table, [generation], randomness=random.Random(2))

    async def load_weather(self, progress: Callable[[int], None]) -> int:
        """The weather of every hour; returns how many. `progress(count)` is called now and then."""
        rows = list(read_rows(WEATHER))
        for start in range(0, len(rows), _LOAD_TOGETHER):
            part = rows[start : start + _LOAD_TOGETHER]
            await asyncio.gather(*[self._weather(_typed(values)) for values in part])
            progress(len(part))
        return len(rows)

    async def follow(self, flights: Sequence[dict[str, Any]], per_second: float) -> int:
        """While these flights are replayed: the weather of each new hour, as it was a day before, and what the gate
        says of each flight, cell by cell. Returns the number of writes."""
        weather = {(values[0], values[-1]): values for values in read_rows(WEATHER)}
        hours: set[tuple[Any, ...]] = set()
        written, started = 0, time.monotonic()
        for number, flight in enumerate(flights):
            await asyncio.sleep(max(0.0, started + number / per_second - time.monotonic()))
            hour = (flight["origin"], flight["time_hour"])
            values = weather.get((hour[0], _text(hour[1] - timedelta(days=1))))
            if hour not in hours and values is not None:
                hours.add(hour)
                await self._weather({**_typed(values), "time_hour": hour[1]})
                written += 1
            written += await self._gate(flight["flight_id"], number)
        return written

    async def close(self) -> None:
        await self._session.close()

    async def _weather(self, row: dict[str, Any]) -> None:
        marks = ", ".join("?" * len(row))
        await self._session.execute(f"INSERT INTO sky.weather ({', '.join(row)}) VALUES ({marks})", list(row.values()))

    async def _gate(self, flight_id: int, number: int) -> int:
        """Its gate is known first, then who is on board, then that it left; some are cancelled and forgotten."""
        assert self._log is not None, "create() comes first"
        key, ts = {"flight_id": flight_id}, time.time_ns() // 1000
        steps = [
            Write(kind="insert", key=key, ts=ts, edits={"gate": Overwrite(f"B{number % 40}")}),
            Write(kind="update", key=key, ts=ts + 1, edits={"passengers": Overwrite(50 + number % 140)}),
            Write(kind="update", key=key, ts=ts + 2, edits={"status": Overwrite("boarding")}),
        ]
        if number % 20 == 19:
            steps.append(Write(kind="delete row", key=key, ts=ts + 3))
        await self._log.write(*steps)
        return len(steps)


def _typed(values: Values) -> dict[str, Any]:
    row = {}
    for (name, kind), value in zip(WEATHER.columns, values, strict=True):
        row[name] = None if value is None else _CONVERT[kind](value)
    return row


_CONVERT: dict[str, Callable[[str], Any]] = {
    "text": str,
    "integer": int,
    "numeric": Decimal,
    "timestamptz": lambda text: datetime.fromisoformat(text.replace("Z", "+00:00")),
}


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
