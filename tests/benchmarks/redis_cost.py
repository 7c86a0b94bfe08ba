"""What a row, a bundle, a change and a lookup cost Redis: bytes, and seconds of its one core. `ctxpipe plan` needs it.

`python -m tests.benchmarks.redis_cost [ROWS]` starts a Redis of its own, puts real flights through the production
stages in this process, and prints JSON for tests/benchmarks/redis.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

from deploy.demo.data import FLIGHTS, TABLES
from deploy.demo.events import table_events
from deploy.demo.harness import CONTEXTS, PARTITIONS
from deploy.local import install
from deploy.local.processes import choose_port
from deploy.local.redis import RedisServer
from pipeline.flow import Flow
from pipeline.plan import compile_plan
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import Stores, open_stores
from schemas.context_file import load_context
from schemas.record import Record

BATCH_RECORDS = 1_000
LOOKUPS, ROUNDS = 2_000, 5
SCAN_COUNT = 1_000
MILLION = 1_000_000


async def measure(url: str, rows: int) -> dict[str, Any]:
    """On an empty Redis at `url`: `rows` flights with the tables that they are joined to."""
    spec = load_context(CONTEXTS / "flight.yaml")
    stores = await open_stores(RedisSettings(url=url, context=spec.context, version=spec.version))
    try:
        flow = Flow(compile_plan(spec), stores.rows, stores.relations, stores.bundles, in_order=stores.in_order)
        empty = await _memory_bytes(stores)
        small = [event for table in TABLES if table is not FLIGHTS for event in table_events(table)]
        flights = list(table_events(FLIGHTS, rows))
        await _apply(flow, small)
        before_s = await _cpu_s(stores)
        await _apply(flow, flights)
        event_s = (await _cpu_s(stores) - before_s) / len(flights)
        used = await _memory_bytes(stores) - empty
        values = [event[2] for event in (*small, *flights)]
        kinds = await _by_kind(stores)
        lookup_s = await _lookup_s(stores, [str(number + 1) for number in range(min(rows, LOOKUPS))])
    finally:
        await stores.close()
    bundles, stored, whole = kinds
    return {
        "rows": len(small) + len(flights),
        "bundles_and_fragments": bundles,
        "event_bytes": round(sum(map(len, values)) / len(values)),
        "row_json_bytes": round(_row_bytes(values)),
        "bundle_bytes": round(stored / bundles),
        "overhead_bytes_per_bundle": round((whole - stored) / bundles),
        "state_bytes_per_row": round((used - whole) / (len(small) + len(flights))),
        "used_memory_mib": round(used / 2**20, 1),
        "cpu_us_per_event": round(event_s * MILLION, 1),
        "cpu_us_per_lookup": round(lookup_s * MILLION, 1),
    }


async def _apply(flow: Flow, events: Iterable[Sequence[Any]]) -> None:
    lanes: dict[tuple[str, int], list[Record]] = {}
    for topic, key, value, *_ in events:
        lane = lanes.setdefault((topic, crc32(key) % PARTITIONS), [])
        lane.append(Record(topic, crc32(key) % PARTITIONS, len(lane), key, value))
    for lane in lanes.values():
        for start in range(0, len(lane), BATCH_RECORDS):
            await flow.process(lane[start : start + BATCH_RECORDS])


async def _by_kind(stores: Stores) -> tuple[int, int, int]:
    """(bundles and fragments, bytes of their values, bytes that Redis takes for them, keys included)."""
    client = stores.client.connection
    count = values = whole = 0
    names = [name async for name in client.scan_iter(match=f"{stores.bundles.prefix}*", count=SCAN_COUNT)]
    for start in range(0, len(names), SCAN_COUNT):
        pipe = client.pipeline(transaction=False)
        for name in names[start : start + SCAN_COUNT]:
            pipe.strlen(name)
            pipe.memory_usage(name)
        answers = await pipe.execute()
        count += len(answers) // 2
        values += sum(answers[::2])
        whole += sum(answers[1::2])
    return count, values, whole


async def _lookup_s(stores: Stores, keys: Sequence[str]) -> float:
    """The median of some rounds, because others use the machine too."""
    rounds = []
    for _ in range(ROUNDS):
        before_s = await _cpu_s(stores)
        for key in keys:
            await stores.reader.fetch([key])
        rounds.append((await _cpu_s(stores) - before_s) / len(keys))
    return statistics.median(rounds)


async def _cpu_s(stores: Stores) -> float:
    found = await stores.client.connection.info("cpu")
    return float(found["used_cpu_user"] + found["used_cpu_sys"])


async def _memory_bytes(stores: Stores) -> int:
    return int((await stores.client.connection.info("memory"))["used_memory"])


def _row_bytes(values: Sequence[bytes]) -> float:
    rows = [json.dumps(json.loads(value)["after"], separators=(",", ":")) for value in values]
    return sum(map(len, rows)) / len(rows)


def main() -> int:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    install.ensure(["redis"])
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder), choose_port())
        server.start()
        try:
            found = asyncio.run(measure(server.address, rows))
            version = str(server.ask("INFO", "server")).split("redis_version:")[1].split()[0]
        finally:
            server.kill()
    started = time.perf_counter()
    for _ in range(10_000_000):
        pass
    found |= {
        "date": datetime.now(UTC).date().isoformat(),
        "environment": {
            "cpus": os.cpu_count(),
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "redis": version,
            "ten_million_loops_s": round(time.perf_counter() - started, 3),
            "load": round(os.getloadavg()[0], 2),
        },
    }
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
